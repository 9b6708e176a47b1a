/* fold: a Grouter for another number of experts. Under mpirun the ranks share the sampled windows. */
#include "cmd/cmd.h"
#include "grouter/folding.h"

#include <inttypes.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 64, PATH_BYTES = 4200, WINDOWS_DEFAULT = 4096, VECTORS_DEFAULT = 1 << 20 };

/* ---------------------------------------------------------------- arguments */

enum {
    GROUTER,
    TOKENS,
    SEQ_LEN,
    EXPERTS,
    TOP_K,
    METHOD,
    FOLD,
    SCALE,
    SEED,
    WINDOWS,
    SAMPLE,
    MAPPING,
    MAPPING_IN,
    OUT,
    N_OPTION
};
static const char *const option_name[N_OPTION] = {"--grouter", "--tokens", "--seq-len", "--experts", "--top-k",
    "--method", "--fold", "--scale", "--seed", "--windows", "--sample", "--mapping", "--mapping-in", "--out"};

typedef struct fold_args {
    const char *text[N_OPTION]; /* as given; TOKENS: the first */
    const char *tokens[TOKENS_MAX];
    int n_tokens;
    uint64_t experts, top_k, seed, seq_len, n_window, n_vector; /* top_k 0: not given */
    double scale;
    gr_fold_kind fold;
    char mapping[PATH_BYTES]; /* where the mapping goes; "" with --mapping-in */
} fold_args;

static gr_err need(const fold_args *a, int option, const char *why) {
    if (a->text[option])
        return GR_OK;
    return gr_fail(GR_USAGE, "fold: expected %s%s, got none; see --help", option_name[option], why);
}

static gr_err forbid(const fold_args *a, int option, const char *why) {
    if (!a->text[option])
        return GR_OK;
    return gr_fail(
        GR_USAGE, "fold: expected no %s %s, got \"%s\"; leave it out", option_name[option], why, a->text[option]);
}

static gr_err check_combination(const fold_args *a) {
    static const int made[] = {EXPERTS, METHOD, FOLD, SAMPLE, MAPPING};
    GR_TRY(need(a, GROUTER, ""));
    GR_TRY(need(a, OUT, ""));
    if (!a->text[MAPPING_IN])
        GR_TRY(need(a, EXPERTS, " or --mapping-in"));
    for (size_t i = 0; a->text[MAPPING_IN] && i < sizeof made / sizeof *made; i++)
        GR_TRY(forbid(a, made[i], "with --mapping-in"));
    if (a->text[TOKENS])
        return need(a, SEQ_LEN, " with --tokens");
    GR_TRY(forbid(a, SEQ_LEN, "without --tokens"));
    return forbid(a, WINDOWS, "without --tokens");
}

static gr_err parse_u64(const fold_args *a, int option, uint64_t min, uint64_t max, uint64_t *out) {
    return a->text[option] ? gr_option_u64(option_name[option], a->text[option], min, max, out) : GR_OK;
}

/* Names are the library's; here they are part of a command line. */
static gr_err as_usage(gr_err e, const char *option) {
    return e == GR_CONFIG ? gr_fail(GR_USAGE, "%s%s", option, gr_error_text()) : e;
}

static gr_err set_mapping_path(fold_args *a) {
    if (a->text[MAPPING_IN])
        return GR_OK;
    const char *given = a->text[MAPPING], *out = a->text[OUT];
    const int n = snprintf(a->mapping, sizeof a->mapping, "%s%s", given ? given : out, given ? "" : ".mapping.json");
    if (n < 1 || (size_t)n >= sizeof a->mapping)
        return gr_fail(GR_USAGE, "%s: expected a path of 1 to %d bytes, got %d", option_name[given ? MAPPING : OUT],
            PATH_BYTES - 20, n);
    return GR_OK;
}

static gr_err parse(int argc, char **argv, fold_args *a) {
    gr_option options[N_OPTION];
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    options[TOKENS] =
        (gr_option){.name = option_name[TOKENS], .value = a->tokens, .max = TOKENS_MAX, .n_seen = &a->n_tokens};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, NULL, 0, NULL));
    a->text[TOKENS] = a->tokens[0];
    GR_TRY(check_combination(a));
    a->n_window = WINDOWS_DEFAULT;
    a->n_vector = VECTORS_DEFAULT;
    GR_TRY(parse_u64(a, EXPERTS, 1, GR_EXPERTS_MAX, &a->experts));
    GR_TRY(parse_u64(a, TOP_K, 1, GR_TOPK_MAX, &a->top_k));
    GR_TRY(parse_u64(a, SEED, 0, UINT64_MAX, &a->seed));
    GR_TRY(parse_u64(a, SEQ_LEN, 1, INT32_MAX, &a->seq_len));
    GR_TRY(parse_u64(a, WINDOWS, 0, UINT64_MAX, &a->n_window));
    GR_TRY(parse_u64(a, SAMPLE, 1, INT32_MAX, &a->n_vector));
    if (a->text[SCALE])
        GR_TRY(
            gr_option_f64(option_name[SCALE], a->text[SCALE], (double)GR_SCALE_MIN, (double)GR_SCALE_MAX, &a->scale));
    if (a->text[FOLD])
        GR_TRY(as_usage(gr_fold_kind_find(&a->fold, a->text[FOLD]), "--"));
    return set_mapping_path(a);
}

/* ---------------------------------------------------------------- files */

typedef struct fold_job {
    gr_comm *comm;
    gr_grouter source;
    gr_mapping mapping; /* of --mapping-in */
    gr_tokens *tokens[TOKENS_MAX];
    gr_backend *backend;
    gr_folding f;
    gr_folding_result result;
} fold_job;

/* One place, also where nothing is yet. */
static bool same_place(const char *a, const char *b) {
    char folder_a[PATH_BYTES], folder_b[PATH_BYTES], name_a[PATH_BYTES], name_b[PATH_BYTES];
    if (gr_path_same(a, b))
        return true;
    snprintf(folder_a, sizeof folder_a, "%s", a);
    snprintf(folder_b, sizeof folder_b, "%s", b);
    snprintf(name_a, sizeof name_a, "%s", a);
    snprintf(name_b, sizeof name_b, "%s", b);
    return strcmp(basename(name_a), basename(name_b)) == 0 && gr_path_same(dirname(folder_a), dirname(folder_b));
}

static gr_err check_outputs(const fold_args *a, const char *input) {
    GR_TRY(gr_output_check(a->text[OUT], input));
    if (gr_path_same(a->mapping, input))
        return gr_fail(GR_USAGE, "--mapping: expected another file than the input %s, got %s; choose another name",
            input, a->mapping);
    return GR_OK;
}

static gr_err open_files(fold_job *j, const fold_args *a) {
    if (same_place(a->text[OUT], a->mapping))
        return gr_fail(GR_USAGE, "--mapping: expected another file than --out, got %s for both; choose another name",
            a->text[OUT]);
    GR_TRY(check_outputs(a, a->text[GROUTER]));
    GR_TRY(gr_grouter_open(&j->source, a->text[GROUTER]));
    if (a->text[MAPPING_IN]) {
        GR_TRY(check_outputs(a, a->text[MAPPING_IN]));
        GR_TRY(gr_mapping_load(&j->mapping, a->text[MAPPING_IN]));
        GR_TRY(gr_mapping_match(&j->mapping, a->text[MAPPING_IN], &j->source, a->text[GROUTER]));
    }
    for (int i = 0; i < a->n_tokens; i++) {
        GR_TRY(gr_tokens_open(&j->tokens[i], a->tokens[i]));
        GR_TRY(check_outputs(a, gr_tokens_bin_path(j->tokens[i])));
        GR_TRY(check_outputs(a, gr_tokens_idx_path(j->tokens[i])));
    }
    return GR_OK;
}

/* What depends on the Grouter. */
static gr_err settle(fold_job *j, const fold_args *a) {
    const gr_grouter_spec *s = &j->source.spec;
    const bool given = a->text[MAPPING_IN] != NULL;
    const uint32_t E_T = given ? j->mapping.E_T : (uint32_t)a->experts;
    const bool more = E_T > (uint32_t)s->network.num_labels;
    gr_folding *f = &j->f;
    *f = (gr_folding){.source = &j->source,
        .comm = j->comm,
        .K = a->top_k     ? (uint32_t)a->top_k
             : s->K < E_T ? s->K
                          : E_T,
        .scale = a->text[SCALE] ? (float)a->scale : s->scale,
        .seed = a->seed,
        .mapping = given ? &j->mapping : NULL,
        .method = more ? GR_FOLD_EXPAND : GR_FOLD_AFFINITY,
        .fold = a->fold,
        .E_T = E_T,
        .n_vector = (size_t)a->n_vector,
        .tokens = j->tokens,
        .n_file = a->n_tokens,
        .T = (uint32_t)a->seq_len,
        .n_window = a->n_window};
    if (f->K > E_T)
        return gr_fail(
            GR_USAGE, "--top-k: expected at most the %" PRIu32 " experts of the result, got %" PRIu32, E_T, f->K);
    if (a->text[METHOD])
        GR_TRY(as_usage(gr_fold_method_find(&f->method, a->text[METHOD]), "--method: "));
    if (!more)
        GR_TRY(forbid(a, SAMPLE, "unless --experts is more than the Grouter has"));
    GR_TRY(as_usage(gr_folding_check(f), ""));
    return a->n_tokens > 0 ? gr_backend_open(&j->backend, "auto", GR_F32) : GR_OK;
}

static gr_err job_open(fold_job *j, const fold_args *a) {
    GR_TRY(open_files(j, a));
    GR_TRY(settle(j, a));
    j->f.backend = j->backend;
    return GR_OK;
}

static void job_close(fold_job *j) {
    gr_folding_close(&j->result);
    gr_backend_close(j->backend);
    for (int i = 0; i < TOKENS_MAX; i++)
        gr_tokens_close(j->tokens[i]);
    gr_mapping_close(&j->mapping);
    gr_grouter_close(&j->source);
}

/* ---------------------------------------------------------------- the result */

static void print_groups(const fold_job *j) {
    const gr_mapping *m = gr_folding_mapping(&j->f, &j->result);
    uint32_t least, most;
    gr_mapping_sizes(m, &least, &most);
    printf("groups: %" PRIu32 " of %" PRIu32 " to %" PRIu32 " experts, mean %.2f; %" PRIu32 " of %" PRIu32
           " source experts used\n",
        m->n_group, least, most, (double)m->E_S / m->n_group, gr_mapping_used(m), m->E_S);
    if (m->method != GR_FOLD_EXPAND)
        return;
    const gr_expansion_report *x = &j->result.expansion;
    printf("new experts: %" PRIu32
           ", from the %zu of %zu sampled vectors whose best score is at most %.4g; norm %.4g\n",
        m->E_T - m->E_S, x->n_bad, j->result.n_vector, x->threshold, x->radius);
}

static void print_result(const fold_job *j, const fold_args *a) {
    const gr_folding_result *r = &j->result;
    const gr_mapping *m = gr_folding_mapping(&j->f, r);
    const gr_grouter_spec *s = &r->grouter.spec;
    char hash[33];
    printf(
        "%s: %" PRIu32 " experts from %" PRIu32 " by %s", a->text[OUT], m->E_T, m->E_S, gr_fold_method_name(m->method));
    if (m->method != GR_FOLD_EXPAND)
        printf(" (%s)", gr_fold_kind_name(m->fold));
    printf(", K = %" PRIu32 ", scale %g\n", s->K, (double)s->scale);
    if (r->n_window > 0)
        printf("sampled: %" PRIu64 " of %" PRIu64 " windows, %" PRIu64 " tokens\n", r->n_window, r->n_window_all,
            r->n_window * a->seq_len);
    print_groups(j);
    if (r->n_window > 0)
        printf("MaxVio on the sample: %.4f -> %.4f\n", r->max_vio_before, r->max_vio_after);
    if (a->mapping[0])
        printf("mapping: %s\n", a->mapping);
    printf("from router hash: %s\n", gr_hash128_text(j->source.hash, hash));
    printf("router hash: %s\n", gr_hash128_text(r->grouter.hash, hash));
}

static gr_err save(fold_job *j, const fold_args *a) {
    GR_TRY(gr_folding_save(&j->result, a->text[OUT], a->mapping[0] ? a->mapping : NULL));
    print_result(j, a);
    return GR_OK;
}

/* ---------------------------------------------------------------- the command */

static gr_err run_job(fold_job *j, const fold_args *a) {
    GR_TRY(gr_comm_agree(j->comm, job_open(j, a)));
    GR_TRY(gr_folding_run(&j->f, &j->result));
    return gr_comm_agree(j->comm, j->comm->rank[GR_WORLD] == 0 ? save(j, a) : GR_OK);
}

static gr_err run_on(gr_comm *comm, int argc, char **argv) {
    fold_args a = {0};
    GR_TRY(gr_comm_agree(comm, parse(argc, argv, &a)));
    fold_job job = {.comm = comm};
    gr_err err = run_job(&job, &a);
    job_close(&job);
    return err;
}

static gr_err run(int argc, char **argv) {
    gr_comm *comm = NULL;
    GR_TRY(gr_comm_open(&comm, "auto"));
    gr_err err = run_on(comm, argc, argv);
    gr_comm_close(comm, err);
    return err;
}

const gr_command gr_cmd_fold = {
    .name = "fold",
    .summary = "a Grouter for fewer or more experts",
    .help =
        "usage: grouter-train fold --grouter FILE --experts E --tokens TOKENS [--tokens MORE]... --seq-len T --out "
        "FILE\n"
        "                          [--top-k K] [--method NAME] [--fold sum|mean] [--scale X] [--seed S] [--windows N]\n"
        "                          [--sample N] [--mapping FILE]\n"
        "       grouter-train fold --grouter FILE --mapping-in FILE --out FILE [--top-k K] [--scale X]\n"
        "                          [--tokens TOKENS --seq-len T] [--seed S] [--windows N]\n"
        "       mpirun -n R grouter-train fold ...   (the ranks share the windows, same bytes)\n"
        "\n"
        "Fewer experts: the Grouter routes sampled windows, its experts are grouped, and the score rows of each group "
        "are\n"
        "added up. More experts: the old score rows stay, and new ones are made for tokens that no row scores well. "
        "The\n"
        "mapping says which source experts became which; with --mapping-in an old one is applied again. Prints how "
        "evenly\n"
        "the experts are loaded on the sample before and after; tune the result if that is not enough.\n"
        "\n"
        "  --grouter FILE      made by distill, tune or fold\n"
        "  --experts E         experts of the result, 1 to 4096; more than the Grouter has: at most its hidden size\n"
        "  --tokens TOKENS     token file (prefix of .bin/.idx) to sample windows from; repeatable. Methods random "
        "and\n"
        "                      block, and --mapping-in, need none: then no load is reported\n"
        "  --seq-len T         tokens per window\n"
        "  --top-k K           experts per token of the result (default: the Grouter's, at most E)\n"
        "  --method NAME       affinity (default): experts that are chosen together; balance: little used with much\n"
        "                      used; greedy: little used with little used; random; block: consecutive ids;\n"
        "                      balance-reference: the fault of the paper's code, where experts repeat and others miss\n"
        "  --fold sum|mean     of the rows of a group (default sum)\n"
        "  --scale X           what a token's gates sum to (default: the Grouter's)\n"
        "  --seed S            of the sample, of method random and of expanding (default 0)\n"
        "  --windows N         windows to sample (default 4096; 0: all)\n"
        "  --sample N          when expanding: inputs of the score rows to keep of them (default 1048576, each 4 "
        "bytes\n"
        "                      times the hidden size, in the memory of rank 0)\n"
        "  --mapping FILE      where the mapping goes (default: the name of --out and .mapping.json)\n"
        "  --mapping-in FILE   a mapping made for this very Grouter\n"
        "  --out FILE          the Grouter; it and the mapping are written complete or not at all\n"
        "\n"
        "example:\n"
        "  grouter-train fold --grouter runs/distill/grouter.safetensors --tokens data/train --seq-len 256 --experts 8 "
        "\\\n"
        "    --out data/g8.safetensors\n",
    .run = run,
};
