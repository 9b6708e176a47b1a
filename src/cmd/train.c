/* grouter-train train: config -> run folder with metrics and weights. */
#include <math.h>

#include "cmd.h"
#include "grouter/train.h"
#include "session.h"

#define SET_MAX 256
#define RANKS_MAX 65536
#define MEMORY_MIN_GIB 1e-3
#define MEMORY_MAX_GIB 1e6

/* "5.5751 -> 1.7702", or the last alone when the run did not begin here. */
static void print_losses(double first, double last, const char *unit) {
    if (isnan(last))
        return;
    printf("validation loss ");
    if (!isnan(first))
        printf("%.4f -> ", first);
    printf("%.4f nats per %s\n", last, unit);
}

static void print_result(const gr_config *config, const gr_train_result *r) {
    print_losses(r->loss_valid_first, r->loss_valid, "token");
    print_losses(r->nats_per_byte_valid_first, r->nats_per_byte_valid, "byte");
    printf(
        "run folder %s: model.safetensors, metrics.jsonl, config.resolved.json, environment.json\n", config->run.dir);
    char text[33];
    printf("parameter hash %s\n", gr_hash128_text(r->parameter_hash, text));
}

static gr_err parse_question(int dry, const char *ranks, const char *memory, gr_dry_run *out) {
    *out = (gr_dry_run){0};
    if (!dry && (ranks || memory))
        return gr_fail(GR_USAGE,
            "train: %s: expected only together with --dry-run; add it, or start real ranks with "
            "mpirun",
            ranks ? "--ranks" : "--memory");
    uint64_t n_rank = 0;
    if (ranks)
        GR_TRY(gr_option_u64("train: --ranks", ranks, 1, RANKS_MAX, &n_rank));
    if (memory)
        GR_TRY(gr_option_f64("train: --memory", memory, MEMORY_MIN_GIB, MEMORY_MAX_GIB, &out->memory_gib));
    out->n_rank = (int)n_rank;
    return GR_OK;
}

static gr_err run_train(int argc, char **argv) {
    const char *path = NULL, *set[SET_MAX], *override[SET_MAX], *ranks = NULL, *memory = NULL;
    int n_path = 0, n_set = 0, n_override = 0, fresh = 0, dry = 0;
    const gr_option options[] = {{"--set", set, SET_MAX, &n_set}, {"--override", override, SET_MAX, &n_override},
        {"--fresh", NULL, 0, &fresh}, {"--dry-run", NULL, 0, &dry}, {"--ranks", &ranks, 1, NULL},
        {"--memory", &memory, 1, NULL}};
    GR_TRY(gr_options_parse(argc, argv, options, sizeof options / sizeof *options, &path, 1, &n_path));
    if (n_path == 0)
        return gr_fail(GR_USAGE, "train: expected a config file, got none; see `grouter-train train --help`");
    gr_dry_run question;
    GR_TRY(parse_question(dry, ranks, memory, &question));
    gr_session s;
    gr_train_result result;
    for (int i = 0; i < n_override; i++)
        GR_TRY(gr_config_check_override(override[i]));
    if (!dry)
        GR_TRY(gr_stop_listen());
    gr_err e = gr_session_open(&s, GR_CONFIG_TRAIN, path, set, n_set);
    if (!e && dry)
        return gr_session_close(&s, gr_train_dry_run(s.config, s.comm, &question, stdout));
    if (!e)
        e = gr_train_run(&(gr_train_options){.config = s.config,
                             .comm = s.comm,
                             .folder = fresh ? GR_RUN_FRESH : GR_RUN_RESUME,
                             .override = override,
                             .n_override = n_override},
            &result);
    if (!e && s.comm->rank[GR_WORLD] == 0)
        print_result(s.config, &result);
    return gr_session_close(&s, e);
}

const gr_command gr_cmd_train = {
    .name = "train",
    .summary = "train a Mixture-of-Experts model from token files and route tables",
    .help =
        "usage: grouter-train train CONFIG [--set KEY=VALUE]... [--override KEY]... [--fresh]\n"
        "       grouter-train train CONFIG --dry-run [--ranks R] [--memory GIB]\n"
        "       mpirun -n R grouter-train train CONFIG ...\n"
        "\n"
        "Trains the model that CONFIG (JSON; every key is listed in configs/README.md) describes and fills the run\n"
        "folder run.dir: metrics.jsonl (one object per step), model.safetensors (final weights, Hugging Face names),\n"
        "config.resolved.json and environment.json. The last line on stdout is the hash of the final weights.\n"
        "\n"
        "  --set KEY=VALUE   override one config key, e.g. --set optimizer.lr=3e-4; repeatable\n"
        "  --override KEY    go on although this key differs from the checkpoint's; repeatable\n"
        "  --fresh           rename an existing run folder aside and start over\n"
        "  --dry-run         check everything, print parameters, FLOPs, memory, messages, disk and time, and stop\n"
        "  --ranks R         with --dry-run: answer for R ranks; data files may be absent, they are then not checked\n"
        "  --memory GIB      with --dry-run: refuse (69) what does not fit GIB of memory per rank; likewise\n"
        "\n"
        "The same command again goes on from the newest checkpoint in run.dir (checkpoint.every_steps), on any number "
        "of\n"
        "ranks. On SIGUSR1, SIGUSR2, SIGTERM or SIGINT the step is finished, a checkpoint saved, and the exit code is "
        "85.\n"
        "Pin threads per rank with OMP_NUM_THREADS.\n"
        "\n"
        "example:\n"
        "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train train configs/quickstart/train.json --set train.steps=100\n"
        "  grouter-train train configs/paper/mini-qwen3.json --dry-run --ranks 8 --memory 141\n",
    .run = run_train,
};
