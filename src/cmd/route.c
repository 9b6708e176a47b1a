/* route: makes routers (balanced hash, random) and route tables. Under mpirun the ranks share a table's windows. */
#include "cmd/cmd.h"
#include "grouter/comm.h"
#include "grouter/router.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { FIT_MAX = 64, NAME_MAX_BYTES = 4200, CHUNK = 1 << 16 };

/* ---------------------------------------------------------------- arguments */

enum { METHOD, ROUTER, FIT, TOKENS, VOCAB, EXPERTS, TOP_K, SCALE, SEED, SEQ_LEN, THRESHOLD, BIAS, OUT, N_OPTION };
static const char *const option_name[N_OPTION] = {"--method", "--router", "--fit", "--tokens", "--vocab", "--experts",
    "--top-k", "--scale", "--seed", "--seq-len", "--threshold", "--bias", "--out"};

/* Which options a form of the command needs ('r') or allows ('o'); the others do not belong to it. */
typedef struct form {
    const char *name;
    char rule[N_OPTION];
} form;
static const form hash_form = {"--method hash",
    {[METHOD] = 'r', [FIT] = 'r', [VOCAB] = 'r', [EXPERTS] = 'r', [TOP_K] = 'r', [SCALE] = 'o', [OUT] = 'r'}};
static const form random_form = {
    "--method random", {[METHOD] = 'r', [EXPERTS] = 'r', [TOP_K] = 'r', [SEED] = 'r', [SCALE] = 'o', [OUT] = 'r'}};
static const form table_form = {
    "--router", {[ROUTER] = 'r', [TOKENS] = 'r', [SEQ_LEN] = 'r', [THRESHOLD] = 'o', [BIAS] = 'o', [OUT] = 'r'}};

typedef struct route_args {
    const form *form;
    const char *text[N_OPTION]; /* as given; FIT: the first */
    const char *fit[FIT_MAX];
    int n_fit;
    uint64_t vocab, experts, top_k, seed, seq_len;
    double scale, threshold;
} route_args;

static gr_err choose_form(route_args *a) {
    const char *method = a->text[METHOD];
    if (!method == !a->text[ROUTER])
        return gr_fail(GR_USAGE, "route: expected either --method hash|random or --router FILE, got %s; see --help",
            method ? "both" : "neither");
    if (!method)
        a->form = &table_form;
    else if (strcmp(method, "hash") == 0)
        a->form = &hash_form;
    else if (strcmp(method, "random") == 0)
        a->form = &random_form;
    else
        return gr_fail(GR_USAGE, "--method: expected hash or random, got '%s'", method);
    for (int i = 0; i < N_OPTION; i++) {
        if (a->form->rule[i] == 'r' && !a->text[i])
            return gr_fail(GR_USAGE, "route %s: expected %s, got none; see --help", a->form->name, option_name[i]);
        if (a->form->rule[i] == 0 && a->text[i])
            return gr_fail(
                GR_USAGE, "route %s: expected no %s, got '%s'; see --help", a->form->name, option_name[i], a->text[i]);
    }
    return GR_OK;
}

static gr_err parse_u64(const route_args *a, int option, uint64_t min, uint64_t max, uint64_t *out) {
    return a->text[option] ? gr_option_u64(option_name[option], a->text[option], min, max, out) : GR_OK;
}

static gr_err parse(int argc, char **argv, route_args *a) {
    gr_option options[N_OPTION];
    int n_positional = 0, bias = 0;
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    options[FIT] = (gr_option){.name = option_name[FIT], .value = a->fit, .max = FIT_MAX, .n_seen = &a->n_fit};
    options[BIAS] = (gr_option){.name = option_name[BIAS], .n_seen = &bias};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, NULL, 0, &n_positional));
    a->text[BIAS] = bias ? "it" : NULL;
    a->text[FIT] = a->fit[0];
    a->scale = 1.0;
    GR_TRY(choose_form(a));
    GR_TRY(parse_u64(a, VOCAB, 1, 1u << 24, &a->vocab));
    GR_TRY(parse_u64(a, EXPERTS, 1, GR_EXPERTS_MAX, &a->experts));
    GR_TRY(parse_u64(a, TOP_K, 1, a->experts < GR_TOPK_MAX ? a->experts : GR_TOPK_MAX, &a->top_k));
    GR_TRY(parse_u64(a, SEED, 0, UINT64_MAX, &a->seed));
    GR_TRY(parse_u64(a, SEQ_LEN, 1, INT32_MAX, &a->seq_len));
    if (a->text[SCALE])
        GR_TRY(
            gr_option_f64(option_name[SCALE], a->text[SCALE], (double)GR_SCALE_MIN, (double)GR_SCALE_MAX, &a->scale));
    if (a->text[THRESHOLD])
        GR_TRY(gr_option_f64(option_name[THRESHOLD], a->text[THRESHOLD], 0, (double)GR_SCALE_MAX, &a->threshold));
    return GR_OK;
}

/* Opens a token file that --out may not be written over. */
static gr_err open_tokens(gr_tokens **t, const char *prefix, const char *out) {
    GR_TRY(gr_tokens_open(t, prefix));
    GR_TRY(gr_output_check(out, gr_tokens_bin_path(*t)));
    return gr_output_check(out, gr_tokens_idx_path(*t));
}

/* ---------------------------------------------------------------- making a router */

static gr_err count_tokens(const gr_tokens *t, uint32_t V, uint32_t *ids, uint64_t *frequency) {
    const uint64_t n_token = gr_tokens_count(t);
    gr_progress progress;
    gr_progress_start(&progress, "counting tokens", "tokens", n_token);
    gr_err err = GR_OK;
    for (uint64_t first = 0; first < n_token && !err; first += CHUNK) {
        size_t n = n_token - first < CHUNK ? (size_t)(n_token - first) : CHUNK;
        err = gr_tokens_read(t, first, n, V, ids);
        for (size_t i = 0; i < n && !err; i++)
            frequency[ids[i]]++;
        gr_progress_update(&progress, first + n);
    }
    if (!err)
        gr_progress_finish(&progress, n_token);
    return err;
}

static gr_err count_file(const route_args *a, const char *prefix, uint32_t *ids, uint64_t *frequency) {
    gr_tokens *t = NULL;
    gr_err err = open_tokens(&t, prefix, a->text[OUT]);
    if (!err)
        err = count_tokens(t, (uint32_t)a->vocab, ids, frequency);
    gr_tokens_close(t);
    return err;
}

static gr_err fit_hash(const route_args *a, gr_router **out) {
    uint64_t *frequency = NULL;
    uint32_t *ids = NULL;
    gr_err err = gr_alloc((void **)&frequency, a->vocab, sizeof *frequency, "token frequencies");
    if (!err)
        err = gr_alloc((void **)&ids, CHUNK, sizeof *ids, "tokens being counted");
    for (int i = 0; i < a->n_fit && !err; i++)
        err = count_file(a, a->fit[i], ids, frequency);
    if (!err)
        err = gr_router_fit_hash(
            out, frequency, (uint32_t)a->vocab, (uint32_t)a->experts, (uint32_t)a->top_k, (float)a->scale);
    free(ids);
    free(frequency);
    return err;
}

static gr_err make_router(const route_args *a) {
    gr_router *r = NULL;
    if (a->form == &hash_form)
        GR_TRY(fit_hash(a, &r));
    else
        GR_TRY(gr_router_make_random(&r, a->seed, (uint32_t)a->experts, (uint32_t)a->top_k, (float)a->scale));
    gr_err err = gr_router_save(r, a->text[OUT]);
    if (!err) {
        const gr_router_info *i = gr_router_get(r);
        char hash[33];
        printf("%s: %s router, E = %" PRIu32 ", K = %" PRIu32 ", scale %g\n", a->text[OUT], a->text[METHOD], i->E, i->K,
            (double)i->scale);
        printf("router hash: %s\n", gr_hash128_text(i->hash, hash));
    }
    gr_router_close(r);
    return err;
}

/* ---------------------------------------------------------------- making a table */

typedef struct table_job {
    gr_comm *comm;
    bool resumes;
    const char *out;
    gr_backend *backend;
    gr_router *router;
    gr_tokens *tokens;
    gr_routes_info info;
    gr_routes_writer *writer;
    uint32_t *window; /* [T+1] */
    uint16_t *ids;    /* [T*K] */
    float *gates;     /* [T*K] */
    uint8_t *missing; /* [R * ceil(n_window/R)] 1: the window must be routed */
    uint64_t n_each;  /* ceil(n_window/R) */
} table_job;

/* The same text on every machine and day, so that a table's bytes depend on its inputs only. */
static void set_provenance(gr_routes_info *info, const route_args *a, const gr_router_info *router) {
    snprintf(info->provenance, sizeof info->provenance, "%s router %s on tokens %s",
        gr_router_method_name(router->method), a->text[ROUTER], a->text[TOKENS]);
    for (char *p = info->provenance; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
}

static gr_err open_router(table_job *j, const route_args *a) {
    GR_TRY(gr_router_open(&j->router, a->text[ROUTER]));
    if (a->text[THRESHOLD])
        GR_TRY(gr_router_use_threshold(j->router, (float)a->threshold));
    return a->text[BIAS] ? gr_router_use_bias(j->router) : GR_OK;
}

static gr_err job_open(table_job *j, const route_args *a) {
    GR_TRY(open_router(j, a));
    GR_TRY(gr_output_check(a->text[OUT], a->text[ROUTER]));
    GR_TRY(open_tokens(&j->tokens, a->text[TOKENS], a->text[OUT]));
    gr_routes_info *info = &j->info;
    gr_router_describe(j->router, info);
    info->T = (uint32_t)a->seq_len;
    info->n_token = gr_tokens_count(j->tokens);
    info->n_window = gr_window_count(info->n_token, info->T);
    if (info->n_window == 0)
        return gr_fail(GR_DATA,
            "%s: expected at least %" PRIu64 " tokens for one window, got %" PRIu64 "; use a smaller --seq-len",
            a->text[TOKENS], a->seq_len + 1, info->n_token);
    set_provenance(info, a, gr_router_get(j->router));
    GR_TRY(gr_backend_open(&j->backend, "auto", GR_F32));
    GR_TRY(gr_router_prepare(j->router, j->backend, info->T));
    const uint64_t n_rank = (uint64_t)j->comm->size[GR_WORLD];
    j->n_each = (info->n_window + n_rank - 1) / n_rank;
    GR_TRY(gr_alloc((void **)&j->missing, j->n_each, n_rank, "list of windows"));
    const size_t n_pair = (size_t)info->T * info->K; /* at most 2^31 * 64 */
    GR_TRY(gr_alloc((void **)&j->window, (size_t)info->T + 1, sizeof *j->window, "window tokens"));
    GR_TRY(gr_alloc((void **)&j->ids, n_pair, sizeof *j->ids, "window expert ids"));
    return gr_alloc((void **)&j->gates, n_pair, sizeof *j->gates, "window gates");
}

static void job_close(table_job *j) {
    free(j->missing);
    free(j->gates);
    free(j->ids);
    free(j->window);
    gr_routes_writer_close(j->writer);
    gr_tokens_close(j->tokens);
    gr_router_close(j->router);
    gr_backend_close(j->backend);
}

/* Rank 0 creates the file, the others join it. */
static gr_err open_shared_writer(table_job *j) {
    gr_comm *c = j->comm;
    char name[NAME_MAX_BYTES] = {0};
    gr_err err = GR_OK;
    if (c->rank[GR_WORLD] == 0) {
        err = gr_routes_writer_open(&j->writer, j->out, &j->info);
        const char *temporary = err ? "" : gr_routes_writer_temporary(j->writer);
        if (strlen(temporary) >= sizeof name)
            err = gr_fail(
                GR_STORAGE, "--out: expected a path below %d bytes, got %zu", NAME_MAX_BYTES - 32, strlen(j->out));
        else
            memcpy(name, temporary, strlen(temporary));
    }
    GR_TRY(gr_comm_agree(c, err));
    j->resumes = c->rank[GR_WORLD] == 0 && gr_routes_writer_resumes(j->writer);
    GR_TRY(c->bcast(c, GR_WORLD, name, sizeof name, 0));
    GR_TRY(c->bcast(c, GR_WORLD, &j->resumes, sizeof j->resumes, 0));
    if (c->rank[GR_WORLD] != 0)
        err = gr_routes_writer_join(&j->writer, name, &j->info);
    return gr_comm_agree(c, err);
}

/* Ids below the router's vocabulary; random takes any. */
static gr_err read_window(table_job *j, uint64_t w) {
    const gr_router_info *router = gr_router_get(j->router);
    return gr_window_read(j->tokens, w, j->info.T, router->V ? router->V : UINT32_MAX, j->window);
}

/* Which windows an earlier run has left undone: each rank looks at its share, then all know of all. */
static gr_err look(table_job *j) {
    const uint64_t first = (uint64_t)j->comm->rank[GR_WORLD] * j->n_each;
    for (uint64_t w = first; w < first + j->n_each && w < j->info.n_window; w++) {
        bool found = false;
        if (j->resumes) {
            GR_TRY(read_window(j, w));
            GR_TRY(gr_routes_writer_find(j->writer, w, j->window, j->ids, j->gates, &found));
        }
        j->missing[w] = !found;
    }
    return GR_OK;
}

static gr_err find_missing(table_job *j, uint64_t *n_missing) {
    gr_comm *c = j->comm;
    GR_TRY(gr_comm_agree(c, look(j)));
    GR_TRY(c->all_gather(c, GR_WORLD, GR_U8, j->missing, j->n_each));
    *n_missing = 0;
    for (uint64_t w = 0; w < j->info.n_window; w++)
        *n_missing += j->missing[w];
    if (j->resumes)
        gr_info("%s.partial: going on with it: %" PRIu64 " of %" PRIu64 " windows are routed", j->out,
            j->info.n_window - *n_missing, j->info.n_window);
    return GR_OK;
}

/* This rank's share of the missing windows, consecutive ones among them. */
static gr_err route_share(table_job *j, uint64_t n_missing) {
    const uint64_t rank = (uint64_t)j->comm->rank[GR_WORLD], n_rank = (uint64_t)j->comm->size[GR_WORLD];
    const uint64_t each = n_missing / n_rank, rest = n_missing % n_rank, n = each + (rank < rest);
    uint64_t skip = rank * each + (rank < rest ? rank : rest), done = 0;
    const uint32_t T = j->info.T;
    gr_progress progress;
    gr_progress_start(&progress, n_rank > 1 ? "routing (rank 0's share)" : "routing", "tokens", n * T);
    for (uint64_t w = 0; done < n; w++) {
        if (!j->missing[w] || skip > 0) {
            skip -= j->missing[w];
            continue;
        }
        GR_TRY(read_window(j, w));
        GR_TRY(gr_router_route(j->router, w, T, j->window, j->ids, j->gates));
        GR_TRY(gr_routes_writer_window(j->writer, w, j->window, j->ids, j->gates));
        gr_progress_update(&progress, ++done * T);
    }
    gr_progress_finish(&progress, n * T);
    return gr_routes_writer_sync(j->writer);
}

/* What no table of a hash has. */
static void print_choices(const gr_routes_info *i, const uint64_t *load) {
    double n_pair = 0;
    for (uint32_t e = 0; e < i->E; e++)
        n_pair += (double)load[e];
    if (i->variable_k)
        printf("active experts per token: %.4f in the mean, of at most %" PRIu32 "\n",
            n_pair / ((double)i->n_window * i->T), i->K);
    if (i->mask != GR_MASK_NONE)
        printf("mask: %s\n", gr_mask_name(i->mask));
    if (gr_mask_sees_ahead(i->mask))
        printf("WARNING: %s\n", gr_mask_warning(i->mask));
}

static gr_err print_summary(const char *path) {
    gr_routes *r = NULL;
    gr_map file = {0};
    uint64_t *load = NULL;
    char hash[33];
    gr_err err = gr_routes_open(&r, path);
    if (!err)
        err = gr_map_open(&file, path, GR_DATA);
    if (!err)
        err = gr_alloc((void **)&load, gr_routes_get(r)->E, sizeof *load, "expert loads");
    if (!err) {
        const gr_routes_info *i = gr_routes_get(r);
        const double n_routed = (double)i->n_window * i->T;
        gr_routes_load(r, load);
        printf("%s: %" PRIu64 " windows of %" PRIu32 " tokens, E = %" PRIu32 ", K = %" PRIu32 ", scale %g\n", path,
            i->n_window, i->T, i->E, i->K, (double)i->scale);
        printf("tokens: %.0f routed of %" PRIu64 "\n", n_routed, i->n_token);
        printf("bytes per token: %.3f (%zu bytes)\n", (double)file.n / n_routed, file.n);
        printf("MaxVioGlobal: %.4f\n", gr_load_violation(load, i->E));
        print_choices(i, load);
        printf("router hash: %s\n", gr_hash128_text(i->router, hash));
        printf("table hash: %016" PRIx64 "\n", i->table_hash);
    }
    free(load);
    gr_map_close(&file);
    gr_routes_close(r);
    return err;
}

static gr_err make_table(table_job *j) {
    gr_comm *c = j->comm;
    uint64_t n_missing;
    GR_TRY(find_missing(j, &n_missing));
    GR_TRY(gr_comm_agree(c, route_share(j, n_missing)));
    gr_err err = GR_OK;
    if (c->rank[GR_WORLD] == 0) {
        err = gr_routes_writer_commit(j->writer);
        if (!err)
            err = print_summary(j->out);
    }
    return gr_comm_agree(c, err);
}

/* A rank that was killed takes the others with it: what they have done is for the next run. */
static gr_err run_job(table_job *j, const route_args *a) {
    GR_TRY(gr_comm_agree(j->comm, job_open(j, a)));
    GR_TRY(open_shared_writer(j));
    gr_err err = make_table(j);
    if (err == GR_PEER)
        gr_routes_writer_keep(j->writer);
    return err;
}

/* ---------------------------------------------------------------- the command */

static gr_err run_on(gr_comm *comm, int argc, char **argv) {
    route_args a = {0};
    GR_TRY(gr_comm_agree(comm, parse(argc, argv, &a)));
    if (a.form != &table_form)
        return gr_comm_agree(comm, comm->rank[GR_WORLD] == 0 ? make_router(&a) : GR_OK);
    table_job job = {.comm = comm, .out = a.text[OUT]};
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

const gr_command gr_cmd_route = {
    .name = "route",
    .summary = "make a router, or the route table of a token file",
    .help =
        "usage: grouter-train route --method hash --fit TOKENS [--fit MORE] --vocab V --experts E --top-k K --out "
        "FILE\n"
        "       grouter-train route --method random --experts E --top-k K --seed S --out FILE\n"
        "       grouter-train route --router FILE --tokens TOKENS --seq-len T --out TABLE [--threshold X] [--bias]\n"
        "       mpirun -n R grouter-train route --router ...   (the ranks share the windows, same bytes)\n"
        "\n"
        "The first two forms make a router file, the third routes a token file with any router. Fit the hash on the\n"
        "training tokens only and route training and validation files with that same router.\n"
        "\n"
        "  --method hash|random  hash: ids from most to least frequent take the K lightest experts; random: K experts\n"
        "                        per position, for tests and benchmarks\n"
        "  --fit TOKENS          token file (prefix of .bin/.idx) whose ids are counted; repeatable\n"
        "  --vocab V             ids are below V (257 for the byte-level vocabulary)\n"
        "  --experts E           experts, 1 to 4096\n"
        "  --top-k K             experts per token, 1 to 64\n"
        "  --scale X             what a token's gates sum to (default 1)\n"
        "  --seed S              of the random router\n"
        "  --router FILE         router made by this command, or a Grouter\n"
        "  --tokens TOKENS       token file to route\n"
        "  --seq-len T           tokens per window; training needs the same data.seq_len\n"
        "  --threshold X         of a Grouter, dynamic activation: a token's gates from the largest on, while they add "
        "up to\n"
        "                        at most X (below the Grouter's scale); its other slots stay unused\n"
        "  --bias                of a Grouter, bias routing: experts by score + bias, gates by score\n"
        "  --out FILE            written complete or not at all. A table is FILE.partial until then: after a kill the "
        "same\n"
        "                        command, on any number of ranks, goes on from it\n"
        "\n"
        "example:\n"
        "  grouter-train route --method hash --fit data/train --vocab 257 --experts 16 --top-k 2 --out data/h.router\n"
        "  grouter-train route --router data/h.router --tokens data/train --seq-len 256 --out data/train.routes\n",
    .run = run,
};
