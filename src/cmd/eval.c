/* grouter-train eval: weights -> validation loss. */
#include <math.h>

#include "cmd.h"
#include "grouter/eval.h"
#include "session.h"

#define SET_MAX 256

static void print_loss(const char *weights, const gr_eval_loss *r) {
    printf("weights          %s\n", weights);
    printf("windows          %llu (%llu tokens)\n", (unsigned long long)r->n_window, (unsigned long long)r->n_token);
    printf("loss             %.6f nats per token\n", r->nats_per_token);
    printf("perplexity       %.4f\n", r->perplexity);
    if (!isnan(r->nats_per_byte))
        printf("nats per byte    %.6f\n", r->nats_per_byte);
}

static gr_err run_eval(int argc, char **argv) {
    const char *path = NULL, *set[SET_MAX], *weights = NULL;
    int n_path = 0, n_set = 0;
    const gr_option options[] = {{"--set", set, SET_MAX, &n_set}, {"--weights", &weights, 1, NULL}};
    GR_TRY(gr_options_parse(argc, argv, options, sizeof options / sizeof *options, &path, 1, &n_path));
    if (n_path == 0)
        return gr_fail(GR_USAGE, "eval: expected a config file, got none; see `grouter-train eval --help`");
    gr_session s;
    gr_eval_loss loss;
    char own[GR_PATH_MAX + 32];
    gr_err e = gr_session_open(&s, GR_CONFIG_TRAIN, path, set, n_set);
    if (!e && !weights) {
        snprintf(own, sizeof own, "%s/model.safetensors", s.config->run.dir);
        weights = own;
    }
    if (!e)
        e = gr_eval_weights(s.config, s.comm, weights, &loss);
    if (!e && s.comm->rank[GR_WORLD] == 0)
        print_loss(weights, &loss);
    return gr_session_close(&s, e);
}

const gr_command gr_cmd_eval = {
    .name = "eval",
    .summary = "validation loss of trained weights",
    .help = "usage: grouter-train eval CONFIG [--weights FILE] [--set KEY=VALUE]...\n"
            "\n"
            "Prints loss, perplexity and (byte-level vocabulary) nats per byte of the weights over the windows of "
            "data.valid\n"
            "(eval.windows of them; 0 = all), with the routes of their tables. Runs on as many ranks as train\n"
            "could with this config; no more than one is needed.\n"
            "\n"
            "  --weights FILE    safetensors file; default: model.safetensors in the config's run.dir\n"
            "  --set KEY=VALUE   override one config key; repeatable\n"
            "\n"
            "example:\n"
            "  grouter-train eval configs/quickstart/train.json --set eval.windows=0 --set "
            "parallel.expert_parallel_size=1\n",
    .run = run_eval,
};
