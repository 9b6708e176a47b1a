/* The command line of everything that trains. */
#include "training.h"
#include "cmd.h"
#include "session.h"

#define SET_MAX 256
#define RANKS_MAX 65536
#define MEMORY_MIN_GIB 1e-3
#define MEMORY_MAX_GIB 1e6

static gr_err parse_question(int dry, const char *ranks, const char *memory, gr_dry_run *out) {
    *out = (gr_dry_run){0};
    if (!dry && (ranks || memory))
        return gr_fail(GR_USAGE, "%s: expected only together with --dry-run; add it, or start real ranks with mpirun",
            ranks ? "--ranks" : "--memory");
    uint64_t n_rank = 0;
    if (ranks)
        GR_TRY(gr_option_u64("--ranks", ranks, 1, RANKS_MAX, &n_rank));
    if (memory)
        GR_TRY(gr_option_f64("--memory", memory, MEMORY_MIN_GIB, MEMORY_MAX_GIB, &out->memory_gib));
    out->n_rank = (int)n_rank;
    return GR_OK;
}

static gr_err run(gr_session *s, const gr_train_options *o, const gr_dry_run *question, gr_result_print print) {
    gr_train_result result;
    GR_TRY(gr_comm_agree(s->comm, gr_train_complete(s->config)));
    if (question)
        return gr_train_dry_run(s->config, s->comm, question, stdout);
    GR_TRY(gr_train_run(o, &result));
    if (s->comm->rank[GR_WORLD] != 0)
        return GR_OK;
    if (gr_mask_sees_ahead(result.mask))
        printf("note: %s\n", gr_mask_warning(result.mask));
    print(s->config, &result);
    return GR_OK;
}

gr_err gr_training_command(gr_config_kind kind, gr_result_print print, int argc, char **argv) {
    const char *path = NULL, *set[SET_MAX], *override[SET_MAX], *ranks = NULL, *memory = NULL;
    int n_path = 0, n_set = 0, n_override = 0, fresh = 0, dry = 0;
    const gr_option options[] = {{"--set", set, SET_MAX, &n_set}, {"--override", override, SET_MAX, &n_override},
        {"--fresh", NULL, 0, &fresh}, {"--dry-run", NULL, 0, &dry}, {"--ranks", &ranks, 1, NULL},
        {"--memory", &memory, 1, NULL}};
    GR_TRY(gr_options_parse(argc, argv, options, sizeof options / sizeof *options, &path, 1, &n_path));
    if (n_path == 0)
        return gr_fail(
            GR_USAGE, "%s: expected a config file, got none; see `grouter-train %s --help`", argv[0], argv[0]);
    gr_dry_run question;
    GR_TRY(parse_question(dry, ranks, memory, &question));
    for (int i = 0; i < n_override; i++)
        GR_TRY(gr_config_check_override(override[i]));
    if (!dry)
        GR_TRY(gr_stop_listen());
    gr_session s;
    gr_err e = gr_session_open(&s, kind, path, set, n_set);
    const gr_train_options o = {.config = s.config,
        .comm = s.comm,
        .folder = fresh ? GR_RUN_FRESH : GR_RUN_RESUME,
        .override = override,
        .n_override = n_override};
    if (!e)
        e = run(&s, &o, dry ? &question : NULL, print);
    return gr_session_close(&s, e);
}
