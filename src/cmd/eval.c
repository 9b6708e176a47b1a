/* grouter-train eval: weights -> validation loss; with --leak, what of it comes from the future. */
#include <inttypes.h>
#include <math.h>

#include "cmd.h"
#include "grouter/eval.h"
#include "leak.h"
#include "session.h"

#define SET_MAX 256
#define WINDOWS_MAX 65536
/* What `eval --router` takes for a first idea; eval --leak takes more. */
#define QUICK_WINDOWS 16
#define QUICK_CUTS 8

typedef struct eval_args {
    const char *config, *set[SET_MAX], *weights, *router, *threshold, *windows, *positions, *seed, *json;
    int n_config, n_set, leak, routes_only, bias;
    char own_weights[GR_PATH_MAX + 32]; /* of run.dir */
    gr_leak_options o;
} eval_args;

/* ---------------------------------------------------------------- arguments */

static gr_err check_together(const eval_args *a) {
    const struct {
        const char *name, *value;
    } of_leak[] = {{"--windows", a->windows}, {"--positions", a->positions}, {"--seed", a->seed}, {"--json", a->json},
        {"--routes-only", a->routes_only ? "" : NULL}},
      of_router[] = {{"--threshold", a->threshold}, {"--bias", a->bias ? "" : NULL}};
    for (size_t i = 0; !a->leak && i < sizeof of_leak / sizeof *of_leak; i++)
        if (of_leak[i].value)
            return gr_fail(GR_USAGE, "eval: %s: expected only together with --leak; add it", of_leak[i].name);
    for (size_t i = 0; !a->router && i < sizeof of_router / sizeof *of_router; i++)
        if (of_router[i].value)
            return gr_fail(GR_USAGE, "eval: %s: expected only together with --router; add it", of_router[i].name);
    if (a->leak && !a->router)
        return gr_fail(GR_USAGE, "eval --leak: expected --router, the router of the target's routes, got none");
    if (a->routes_only && a->weights)
        return gr_fail(GR_USAGE, "eval: --routes-only needs no --weights; leave one of them out");
    return GR_OK;
}

static gr_err parse_numbers(eval_args *a) {
    double threshold = 0;
    a->o = (gr_leak_options){.router = a->router, .bias = a->bias > 0, .n_window = QUICK_WINDOWS, .n_cut = QUICK_CUTS};
    if (a->leak) {
        a->o.n_window = 256;
        a->o.n_cut = 64;
    }
    if (a->windows)
        GR_TRY(gr_option_u64("--windows", a->windows, 1, WINDOWS_MAX, &a->o.n_window));
    if (a->positions)
        GR_TRY(gr_option_u64("--positions", a->positions, 1, WINDOWS_MAX, &a->o.n_cut));
    if (a->seed)
        GR_TRY(gr_option_u64("--seed", a->seed, 0, UINT64_MAX, &a->o.seed));
    if (a->threshold)
        GR_TRY(gr_option_f64("--threshold", a->threshold, (double)GR_SCALE_MIN, (double)GR_SCALE_MAX, &threshold));
    a->o.threshold = (float)threshold;
    return GR_OK;
}

static gr_err parse(int argc, char **argv, eval_args *a) {
    const gr_option options[] = {{"--set", a->set, SET_MAX, &a->n_set}, {"--weights", &a->weights, 1, NULL},
        {"--leak", NULL, 0, &a->leak}, {"--router", &a->router, 1, NULL}, {"--bias", NULL, 0, &a->bias},
        {"--threshold", &a->threshold, 1, NULL}, {"--routes-only", NULL, 0, &a->routes_only},
        {"--windows", &a->windows, 1, NULL}, {"--positions", &a->positions, 1, NULL}, {"--seed", &a->seed, 1, NULL},
        {"--json", &a->json, 1, NULL}};
    GR_TRY(gr_options_parse(argc, argv, options, sizeof options / sizeof *options, &a->config, 1, &a->n_config));
    if (a->n_config == 0)
        return gr_fail(GR_USAGE, "eval: expected a config file, got none; see `grouter-train eval --help`");
    GR_TRY(check_together(a));
    return parse_numbers(a);
}

/* Nothing that is read may be written over. */
static gr_err check_json(const eval_args *a) {
    const char *const inputs[] = {a->config, a->router, a->o.weights};
    for (size_t i = 0; a->json && i < sizeof inputs / sizeof *inputs; i++)
        if (inputs[i] && gr_path_same(a->json, inputs[i]))
            return gr_fail(GR_USAGE, "--json: expected another file than the input %s, got %s; choose another name",
                inputs[i], a->json);
    return GR_OK;
}

/* ---------------------------------------------------------------- the loss */

static void print_loss(const char *weights, const gr_eval_loss *r) {
    printf("weights          %s\n", weights);
    printf("windows          %llu (%llu tokens)\n", (unsigned long long)r->n_window, (unsigned long long)r->n_token);
    printf("loss             %.6f nats per token\n", r->nats_per_token);
    printf("perplexity       %.4f\n", r->perplexity);
    if (!isnan(r->nats_per_byte))
        printf("nats per byte    %.6f\n", r->nats_per_byte);
    if (!gr_mask_sees_ahead(r->mask))
        return;
    printf("note: %s\n", gr_mask_warning(r->mask));
    printf("last position    %.6f nats per token, where nothing lies ahead\n", r->last_position);
}

/* What stands beside a loss whose routes see ahead. */
static void print_quick(const gr_leak *leak) {
    if (!gr_mask_sees_ahead(leak->router.mask))
        printf("router           sees no token ahead: routes of a prefix alone are those of the whole window\n");
    else
        printf(
            "prefix routes    %.6f nats per token with routes of the prefix alone, %.6f with those of the whole window "
            "(difference %.6f +- %.6f; %" PRIu64 " windows, %u cuts)\n",
            leak->prefix.mean, leak->full.mean, leak->prefix_rise.mean, leak->prefix_rise.error, leak->n_window,
            leak->n_cut);
}

static gr_err run_loss(const eval_args *a, gr_session *s) {
    bool first = s->comm->rank[GR_WORLD] == 0;
    gr_eval_loss loss;
    gr_leak leak;
    GR_TRY(gr_eval_weights(s->config, s->comm, a->o.weights, &loss));
    if (first)
        print_loss(a->o.weights, &loss);
    if (a->router)
        GR_TRY(gr_leak_run(&a->o, &leak));
    if (a->router && first)
        print_quick(&leak);
    else if (first && gr_mask_sees_ahead(loss.mask))
        printf("prefix routes    not measured: --router FILE names the Grouter to measure them with\n");
    if (a->router)
        gr_leak_close(&leak);
    return GR_OK;
}

/* ---------------------------------------------------------------- the audit */

static gr_err report(const eval_args *a, gr_out *json, const gr_leak *leak) {
    gr_leak_print(&a->o, leak);
    if (!json)
        return GR_OK;
    GR_TRY(gr_leak_write(json, &a->o, leak));
    return gr_out_commit(json);
}

static gr_err run_leak(const eval_args *a, gr_session *s) {
    bool first = s->comm->rank[GR_WORLD] == 0;
    gr_out *json = NULL;
    gr_leak leak = {0};
    gr_err e = check_json(a);
    if (!e && a->json && first) /* a place that cannot be written to shows before the work, not after it */
        e = gr_out_open(&json, a->json);
    e = gr_comm_agree(s->comm, e);
    if (!e)
        e = gr_leak_run(&a->o, &leak);
    if (!e)
        e = gr_comm_agree(s->comm, first ? report(a, json, &leak) : GR_OK);
    gr_leak_close(&leak);
    gr_out_close(json);
    return e;
}

/* ---------------------------------------------------------------- the command */

static gr_err run_eval(int argc, char **argv) {
    eval_args a = {0};
    GR_TRY(parse(argc, argv, &a));
    gr_session s;
    gr_err e = gr_session_open(&s, GR_CONFIG_TRAIN, a.config, a.set, a.n_set);
    if (e)
        return gr_session_close(&s, e);
    snprintf(a.own_weights, sizeof a.own_weights, "%s/model.safetensors", s.config->run.dir);
    a.o.config = s.config;
    a.o.comm = s.comm;
    if (!a.routes_only)
        a.o.weights = a.weights ? a.weights : a.own_weights;
    return gr_session_close(&s, a.leak ? run_leak(&a, &s) : run_loss(&a, &s));
}

const gr_command gr_cmd_eval = {
    .name = "eval",
    .summary = "validation loss of trained weights, and what of it comes from the future",
    .help =
        "usage: grouter-train eval CONFIG [--weights FILE] [--router FILE] [--set KEY=VALUE]...\n"
        "       grouter-train eval CONFIG --leak --router FILE [--weights FILE | --routes-only] [--windows N]\n"
        "                          [--positions N] [--seed S] [--json FILE]\n"
        "       mpirun -n R grouter-train eval CONFIG ...   (the ranks share the windows)\n"
        "\n"
        "Prints loss, perplexity and (byte-level vocabulary) nats per byte of the weights over the windows of "
        "data.valid\n"
        "(eval.windows of them; 0 = all), with the routes of their tables. Runs on as many ranks as train\n"
        "could with this config; no more than one is needed.\n"
        "\n"
        "With --leak it measures whether routes depend on later tokens and what that is worth to the loss: windows of\n"
        "data.valid are cut; the tokens after the cut are replaced by another window's, or left out; the report says\n"
        "how routes before the cut change, by distance, and the loss at the cut with the routes of the whole window,\n"
        "of the prefix alone, and with another suffix. A router that sees nothing ahead changes no bit. A table that\n"
        "sees ahead is named by eval without --leak too, with the loss at the last position of the windows, where\n"
        "nothing lies ahead, and, with --router, a small sample of the loss with routes of prefixes alone.\n"
        "\n"
        "  --weights FILE    safetensors file; default: model.safetensors in the config's run.dir\n"
        "  --router FILE     the router that made the routes: hash, random or Grouter\n"
        "  --bias            bias routing, if the routes were made so\n"
        "  --threshold X     dynamic activation, if the routes were made so\n"
        "  --routes-only     measure the routes, without a trained target\n"
        "  --windows N       windows of data.valid, at most (default 256)\n"
        "  --positions N     cuts, the same in all windows, at most (default 64); the time grows with both\n"
        "  --seed S          of windows, cuts and suffixes (default 0)\n"
        "  --json FILE       the figures once more\n"
        "  --set KEY=VALUE   override one config key; repeatable\n"
        "\n"
        "example:\n"
        "  grouter-train eval configs/quickstart/train.json --set eval.windows=0 --set "
        "parallel.expert_parallel_size=1\n"
        "  mpirun -n 2 grouter-train eval configs/quickstart/train.json --leak --router "
        "build/quickstart/tune/grouter.safetensors\n",
    .run = run_eval,
};
