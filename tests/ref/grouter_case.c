#include "grouter_case.h"

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { END = 3, ZERO = END + 1 }; /* the tokens that end a document and embed to zero */

#define EVERY_GROUTER                                                                                                  \
    .vocab_size = 19, .hidden_size = 8, .rms_norm_eps = 1e-5, .rope_theta = 100, .initializer_range = 0.3,             \
    .head = GR_HEAD_SCORES, .num_labels = 5, .position = GR_POSITION_WINDOW, .document_end = END, .zero_token = ZERO

const gr_model_config grouter_case_attention = {
    EVERY_GROUTER,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 2,
    .head_dim = 4,
    .intermediate_size = 6,
    .first_k_dense_replace = 2,
    .body = GR_BODY_ATTENTION,
    .mask = GR_MASK_BIDIRECTIONAL,
};

const gr_model_config grouter_case_linear = {EVERY_GROUTER, .body = GR_BODY_LINEAR};

const gr_model_config grouter_case_residual_linear = {
    EVERY_GROUTER,
    .num_hidden_layers = 4,
    .intermediate_size = 12,
    .first_k_dense_replace = 4,
    .body = GR_BODY_RESIDUAL_LINEAR,
};

#define MUST(expr)                                                                                                     \
    do {                                                                                                               \
        if (expr) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, gr_error_text());                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

gr_model_options grouter_case_model_options(const grouter_case_options *o, gr_plan_limits *limits) {
    *limits = (gr_plan_limits){.N = (uint32_t)(o->n_window * o->T), .n_rank = 1};
    return (gr_model_options){.config = o->config,
        .backend = o->backend,
        .comm = o->comm,
        .limits = limits,
        .T = o->T,
        .train = o->train,
        .trained = o->trained,
        .recompute = o->recompute};
}

/* Norms away from 1 and biases from 0, so that each counts. */
static void weights_fill(gr_model *model) {
    const gr_params *p = gr_model_params(model);
    float *w = gr_model_weights(model);
    MUST(gr_params_init(p, 3, gr_weights_whole(p, w)));
    for (int i = 0; i < p->n; i++)
        for (int64_t j = 0; p->list[i].init_std == 0 && j < gr_param_size(&p->list[i]); j++)
            w[p->list[i].offset + j] += 0.4f * gr_random_normal(31, (uint64_t)i, (uint64_t)j);
}

/* A quarter of the tokens each are END and ZERO, whatever they mean to the config. */
static uint32_t draw_token(uint64_t i, const gr_model_config *c) {
    uint32_t kind = gr_random_below(32, 0, i, 4);
    if (kind < 2)
        return kind ? END : ZERO;
    uint32_t token = gr_random_below(32, 1, i, (uint32_t)c->vocab_size - 2);
    return token < END ? token : token + 2;
}

void grouter_case_open(grouter_case *c, const grouter_case_options *o) {
    gr_plan_limits limits;
    gr_model_options options = grouter_case_model_options(o, &limits);
    *c = (grouter_case){.options = *o, .N = o->n_window * o->T, .n_score = o->n_window * o->T * o->config->num_labels};
    MUST(gr_model_open(&c->model, &options));
    weights_fill(c->model);
    c->token = calloc((size_t)c->N, sizeof *c->token);
    GR_ASSERT(c->token, "test: no memory for %lld tokens", (long long)c->N);
    for (int64_t i = 0; i < c->N; i++)
        c->token[i] = draw_token((uint64_t)i, o->config);
    c->r = check_random(33, c->n_score);
}

void grouter_case_close(grouter_case *c) {
    gr_model_close(c->model);
    free(c->token);
    free(c->r);
}

float *grouter_case_scores(grouter_case *c) {
    gr_batch batch = {.token = c->token};
    gr_phases phases = {0};
    float *scores;
    MUST(gr_model_scores(c->model, &batch, &scores, NULL, &phases));
    return check_copy(c->n_score, scores);
}

const float *grouter_case_gradients(grouter_case *c) {
    gr_batch batch = {.token = c->token};
    gr_phases phases = {0};
    float *scores;
    MUST(gr_model_zero_gradients(c->model));
    MUST(gr_model_scores(c->model, &batch, &scores, NULL, &phases));
    MUST(gr_model_scores_backward(c->model, c->r, &phases));
    return gr_model_gradients(c->model);
}
