/* A Grouter's scores and their gradients against the double-precision reference, and what each mask lets through. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "check.h"
#include "grouter/optim.h"
#include "grouter_case.h"
#include "ref.h"
#include "ref_grouter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static gr_backend *backend;
static gr_comm *comm;

static int open_all(void **state) {
    (void)state;
    check_set_threads(1); /* models this small would spend their time in barriers */
    return gr_backend_open(&backend, "cpu", GR_F32) || gr_comm_open(&comm, "self") || gr_comm_group(comm, 1);
}

static int close_all(void **state) {
    (void)state;
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
    return 0;
}

static grouter_case_options options_of(const gr_model_config *c, int64_t n_window, int64_t T) {
    return (grouter_case_options){
        .config = c, .backend = backend, .comm = comm, .n_window = n_window, .T = T, .train = true};
}

/* Calls check for every body, mask, with and without positions and a zero token. */
static void for_every_grouter(void (*check)(const gr_model_config *c)) {
    static const gr_model_config *const bodies[] = {
        &grouter_case_attention, &grouter_case_linear, &grouter_case_residual_linear};
    for (int b = 0; b < 3; b++) {
        for (int mask = GR_MASK_NONE; mask < GR_N_MASK; mask++) {
            gr_model_config c = *bodies[b];
            if ((mask == GR_MASK_NONE) != (c.body != GR_BODY_ATTENTION))
                continue;
            c.mask = (gr_mask)mask;
            for (int variant = 0; variant < 4; variant++) {
                c.position = variant & 1 ? GR_POSITION_WINDOW : GR_POSITION_NONE;
                c.zero_token = variant & 2 ? bodies[b]->zero_token : -1;
                check(&c);
            }
        }
    }
}

/* ---------------------------------------------------------------- against the reference */

static double *weights_of(const grouter_case *c, const ref_grouter *ref) {
    assert_int_equal(gr_model_params(c->model)->n_element, ref->params.n_element);
    return check_double(ref->params.n_element, gr_model_weights(c->model));
}

static void check_scores(const grouter_case_options *o) {
    grouter_case c;
    ref_grouter ref;
    grouter_case_open(&c, o);
    ref_grouter_open(&ref, o->config, o->n_window, o->T, c.token);
    double *weights = weights_of(&c, &ref), *expected = ref_alloc(c.n_score);
    ref_grouter_scores(&ref, weights, expected);
    float *scores = grouter_case_scores(&c);
    double error = check_error(c.n_score, scores, expected);
    if (!(error <= 1e-5))
        fail_msg(
            "error %.3g, body %d, mask %d, position %d", error, o->config->body, o->config->mask, o->config->position);
    free(scores);
    free(expected);
    free(weights);
    ref_grouter_close(&ref);
    grouter_case_close(&c);
}

static void check_scores_of(const gr_model_config *config) {
    grouter_case_options o = options_of(config, 2, 70);
    check_scores(&o);
    o.train = false;
    check_scores(&o);
}

static void scores_equal_the_reference(void **state) {
    (void)state;
    for_every_grouter(check_scores_of);
}

static void scores_of_odd_shapes_equal_the_reference(void **state) {
    (void)state;
    gr_model_config c = grouter_case_attention;
    c.num_attention_heads = 4;
    c.head_dim = 6; /* heads wider than the stream together */
    c.use_qk_norm = true;
    c.mask = GR_MASK_CAUSAL_DOC;
    check_scores_of(&c);
    c.document_end = -1;
    check_scores_of(&c);
    c = grouter_case_residual_linear;
    c.intermediate_size = 6; /* narrower inside than outside */
    check_scores_of(&c);
    c.num_hidden_layers = c.first_k_dense_replace = 1; /* in and out have one width */
    check_scores_of(&c);
}

/* 1e-5 for fp32, as much again for the central differences of step 1e-5: their own error, with the third derivatives of
 * these models, is below 1e-7, but a ReLU may switch within the step. */
#define GRADIENT_TOLERANCE 2e-5

static void check_gradients_match(const gr_params *p, const float *ours, const double *expected) {
    for (int i = 0; i < p->n; i++) {
        const gr_param *at = &p->list[i];
        double error = check_error(gr_param_size(at), ours + at->offset, expected + at->offset);
        if (!(error <= GRADIENT_TOLERANCE))
            fail_msg("error %.3g in %s", error, at->name);
    }
}

static void check_gradients(const gr_model_config *config) {
    grouter_case c;
    ref_grouter ref;
    grouter_case_options o = options_of(config, 2, 9);
    grouter_case_open(&c, &o);
    ref_grouter_open(&ref, config, o.n_window, o.T, c.token);
    double *weights = weights_of(&c, &ref), *r = check_double(c.n_score, c.r);
    double *expected = ref_alloc(ref.params.n_element);
    ref_grouter_gradient(&ref, 1e-5, r, weights, expected);
    check_gradients_match(&ref.params, grouter_case_gradients(&c), expected);
    free(expected);
    free(r);
    free(weights);
    ref_grouter_close(&ref);
    grouter_case_close(&c);
}

static void gradients_equal_central_differences(void **state) {
    (void)state;
    for_every_grouter(check_gradients);
    gr_model_config c = grouter_case_attention;
    c.num_key_value_heads = 1;
    c.use_qk_norm = true;
    check_gradients(&c);
    c = grouter_case_residual_linear;
    c.intermediate_size = 6;
    check_gradients(&c);
}

/* ---------------------------------------------------------------- what backward goes into */

static void check_features(const gr_model_config *config) {
    grouter_case c;
    grouter_case_options o = options_of(config, 2, 20);
    grouter_case_open(&c, &o);
    gr_batch batch = {.token = c.token};
    gr_phases phases = {0};
    float *scores;
    const float *features;
    assert_int_equal(gr_model_scores(c.model, &batch, &scores, &features, &phases), GR_OK);
    const gr_param *matrix = gr_params_find(gr_model_params(c.model), "score.weight");
    double *x = check_double(c.N * config->hidden_size, features), *expected = ref_alloc(c.n_score);
    double *w = check_double(gr_param_size(matrix), gr_model_weights(c.model) + matrix->offset);
    ref_linear(c.N, config->hidden_size, config->num_labels, x, w, expected);
    assert_true(check_error(c.n_score, scores, expected) <= CHECK_F32);
    free(x);
    free(w);
    free(expected);
    grouter_case_close(&c);
}

static void features_are_what_the_score_matrix_multiplies(void **state) {
    (void)state;
    for_every_grouter(check_features);
}

static void check_scores_alone(const gr_model_config *config) {
    grouter_case all, alone;
    grouter_case_options o = options_of(config, 2, 20);
    grouter_case_open(&all, &o);
    o.trained = GR_TRAINED_SCORES;
    grouter_case_open(&alone, &o);
    const float *expected = grouter_case_gradients(&all), *got = grouter_case_gradients(&alone);
    const gr_params *p = gr_model_params(alone.model);
    const gr_param *matrix = gr_params_find(p, "score.weight");
    int64_t end = matrix->offset + gr_param_size(matrix);
    for (int64_t i = 0; i < p->n_element; i++)
        assert_true(got[i] == (i >= matrix->offset && i < end ? expected[i] : 0));
    for (int i = 0; i < p->n; i++)
        assert_int_equal(p->list[i].frozen, &p->list[i] != matrix);
    grouter_case_close(&all);
    grouter_case_close(&alone);
}

static void training_scores_alone_gives_their_gradient_and_no_other(void **state) {
    (void)state;
    for_every_grouter(check_scores_alone);
}

static void gradients_accumulate_and_may_start_in_the_scores_memory(void **state) {
    (void)state;
    grouter_case c;
    grouter_case_options o = options_of(&grouter_case_attention, 2, 20);
    grouter_case_open(&c, &o);
    int64_t n = gr_model_params(c.model)->n_element;
    float *once = check_copy(n, grouter_case_gradients(&c));
    gr_batch batch = {.token = c.token};
    gr_phases phases = {0};
    float *scores;
    assert_int_equal(gr_model_scores(c.model, &batch, &scores, NULL, &phases), GR_OK);
    memcpy(scores, c.r, (size_t)c.n_score * sizeof *scores);
    assert_int_equal(gr_model_scores_backward(c.model, scores, &phases), GR_OK);
    double *twice = ref_alloc(n);
    for (int64_t i = 0; i < n; i++)
        twice[i] = 2.0 * (double)once[i];
    assert_true(check_error(n, gr_model_gradients(c.model), twice) <= CHECK_F32);
    assert_true(phases.forward_ms > 0 && phases.backward_ms > 0);
    free(twice);
    free(once);
    grouter_case_close(&c);
}

static void check_zero_token(const gr_model_config *config) {
    grouter_case c;
    grouter_case_options o = options_of(config, 2, 20);
    grouter_case_open(&c, &o);
    const gr_param *embed = gr_params_find(gr_model_params(c.model), "model.embed_tokens.weight");
    assert_int_equal(embed->zero_row, config->zero_token);
    const float *dw = grouter_case_gradients(&c) + embed->offset, *w = gr_model_weights(c.model) + embed->offset;
    for (int64_t i = 0; i < gr_param_size(embed); i++) {
        bool zero = i / config->hidden_size == config->zero_token;
        assert_true(!zero || (w[i] == 0 && dw[i] == 0));
    }
    const float *at_token = dw + grouter_case_attention.zero_token * config->hidden_size;
    assert_true(config->zero_token >= 0 || at_token[0] != 0); /* an ordinary token else */
    grouter_case_close(&c);
}

static void a_zero_token_embeds_to_zero_without_gradient(void **state) {
    (void)state;
    for_every_grouter(check_zero_token);
}

/* Are these the weights of the zero token or of a parameter that is not trained? */
static bool stays(const gr_param *p, int64_t i) {
    return p->frozen || (p->zero_row >= 0 && i / p->dim[1] == p->zero_row);
}

static void train(grouter_case *c, int steps) {
    gr_optimizer *optimizer;
    gr_update update;
    assert_int_equal(gr_optimizer_open(&optimizer, &(gr_optimizer_options){.backend = backend,
                                                       .comm = comm,
                                                       .params = gr_model_params(c->model),
                                                       .lr = {.schedule = GR_SCHEDULE_CONSTANT, .lr = 0.1},
                                                       .beta1 = 0.9,
                                                       .beta2 = 0.95,
                                                       .eps = 1e-8,
                                                       .weight_decay = 0.1}),
        GR_OK);
    for (int step = 0; step < steps; step++) {
        grouter_case_gradients(c);
        assert_int_equal(
            gr_optimizer_step(optimizer, step, 1, gr_model_masters(c->model), gr_model_gradients(c->model), &update),
            GR_OK);
    }
    gr_optimizer_close(optimizer);
}

static void check_training(const gr_model_config *config) {
    for (int trained = GR_TRAINED_ALL; trained <= GR_TRAINED_SCORES; trained++) {
        grouter_case c;
        grouter_case_options o = options_of(config, 2, 20);
        o.trained = (gr_trained)trained;
        grouter_case_open(&c, &o);
        const gr_params *p = gr_model_params(c.model);
        float *w = gr_model_weights(c.model), *before = check_copy(p->n_element, w);
        assert_true(gr_params_find(p, "score.bias")->frozen);
        train(&c, 3);
        for (int i = 0; i < p->n; i++)
            for (int64_t j = 0; j < gr_param_size(&p->list[i]); j++) {
                int64_t at = p->list[i].offset + j;
                if (p->list[i].decay || p->list[i].frozen) /* a norm may get no gradient: what its ReLU cuts */
                    assert_int_equal(w[at] == before[at], stays(&p->list[i], j));
            }
        free(before);
        grouter_case_close(&c);
    }
}

static void training_moves_all_but_the_bias_and_the_zero_token(void **state) {
    (void)state;
    for_every_grouter(check_training);
}

static void check_recompute(const gr_model_config *config) {
    grouter_case kept, again;
    grouter_case_options o = options_of(config, 2, 70);
    grouter_case_open(&kept, &o);
    size_t n_byte = (size_t)gr_model_params(kept.model)->n_element * sizeof(float);
    const float *expected = grouter_case_gradients(&kept);
    for (int recompute = GR_RECOMPUTE_EXPERTS; recompute <= GR_RECOMPUTE_BLOCK; recompute++) {
        o.recompute = (gr_recompute)recompute;
        grouter_case_open(&again, &o);
        assert_memory_equal(grouter_case_gradients(&again), expected, n_byte);
        grouter_case_close(&again);
    }
    grouter_case_close(&kept);
}

static void recomputation_changes_no_bit(void **state) {
    (void)state;
    for_every_grouter(check_recompute);
    gr_model_config c = grouter_case_attention;
    c.num_hidden_layers = c.first_k_dense_replace = 4;
    check_recompute(&c);
}

/* ---------------------------------------------------------------- what a position sees */

/* May row `at` of a window see row j? Rows of one window; the document ends at `end` tokens. */
static bool may_see(const gr_model_config *c, const uint32_t *token, int64_t at, int64_t j) {
    bool causal = c->mask == GR_MASK_CAUSAL || c->mask == GR_MASK_CAUSAL_DOC;
    bool doc = c->mask == GR_MASK_CAUSAL_DOC || c->mask == GR_MASK_BIDIRECTIONAL_DOC;
    if (c->mask == GR_MASK_NONE || (causal && j > at))
        return at == j;
    for (int64_t i = at < j ? at : j; doc && i < (at < j ? j : at); i++)
        if (token[i] == (uint32_t)c->document_end)
            return false;
    return true;
}

/* Changes the token of row j; rows of the same window that see it change, all others keep their bits. */
static void check_changed_row(grouter_case *c, const float *before, int64_t j) {
    const gr_model_config *config = c->options.config;
    const int64_t T = c->options.T, labels = config->num_labels;
    uint32_t saved = c->token[j];
    c->token[j] = saved == 7 ? 8 : 7;
    float *after = grouter_case_scores(c);
    for (int64_t i = 0; i < c->N; i++) {
        bool same = memcmp(before + i * labels, after + i * labels, (size_t)labels * sizeof *after) == 0;
        bool seen = i / T == j / T && may_see(config, c->token + i / T * T, i % T, j % T);
        if (same == seen)
            fail_msg(
                "mask %d: row %d %s when row %d changes", config->mask, (int)i, same ? "stays" : "changes", (int)j);
    }
    free(after);
    c->token[j] = saved;
}

/* Tokens that end a document stay: changing one moves borders. */
static void check_sight(const gr_model_config *config) {
    grouter_case c;
    grouter_case_options o = options_of(config, 2, 70);
    o.train = false;
    grouter_case_open(&c, &o);
    float *before = grouter_case_scores(&c);
    for (int64_t j = 0; j < c.N; j += 9)
        if (c.token[j] != (uint32_t)config->document_end)
            check_changed_row(&c, before, j);
    free(before);
    grouter_case_close(&c);
}

static void a_changed_token_reaches_exactly_the_rows_that_see_it(void **state) {
    (void)state;
    for_every_grouter(check_sight);
}

/* To rounding, not to the bit: how a product is split depends on its number of rows. */
static void check_windows(const gr_model_config *config) {
    grouter_case batch, one;
    grouter_case_options o = options_of(config, 5, 70);
    o.train = false;
    grouter_case_open(&batch, &o);
    o.n_window = 1;
    grouter_case_open(&one, &o);
    float *together = grouter_case_scores(&batch);
    for (int64_t window = 0; window < 5; window++) {
        memcpy(one.token, batch.token + window * o.T, (size_t)o.T * sizeof *one.token);
        float *alone = grouter_case_scores(&one);
        double *expected = check_double(one.n_score, together + window * one.n_score);
        assert_true(check_error(one.n_score, alone, expected) <= 1e-6);
        free(expected);
        free(alone);
    }
    free(together);
    grouter_case_close(&batch);
    grouter_case_close(&one);
}

static void a_window_alone_scores_as_in_a_batch(void **state) {
    (void)state;
    for_every_grouter(check_windows);
}

/* ---------------------------------------------------------------- memory */

static size_t n_allocated;

static gr_err counting_alloc(gr_backend *b, size_t n, const char *what, void **out) {
    n_allocated += n;
    return backend->alloc(b, n, what, out);
}

static size_t sum_of(gr_model_memory m) {
    return m.weights + m.gradients + m.activations + m.logits + m.scratch + m.tables;
}

static void check_memory(const gr_model_config *config) {
    gr_backend counting = *backend;
    counting.alloc = counting_alloc;
    for (int use = 0; use < 3; use++) {
        grouter_case c;
        grouter_case_options o = options_of(config, 2, 20);
        o.backend = &counting;
        o.train = use > 0;
        o.trained = use > 1 ? GR_TRAINED_SCORES : GR_TRAINED_ALL;
        n_allocated = 0;
        grouter_case_open(&c, &o);
        gr_plan_limits limits;
        gr_model_options options = grouter_case_model_options(&o, &limits);
        gr_model *measured;
        assert_int_equal(gr_model_measure(&measured, &options), GR_OK);
        gr_model_memory real = gr_model_memory_get(c.model), told = gr_model_memory_get(measured);
        assert_memory_equal(&real, &told, sizeof real);
        assert_int_equal(sum_of(told), n_allocated);
        gr_model_close(measured);
        grouter_case_close(&c);
    }
}

static void measured_memory_is_what_is_allocated(void **state) {
    (void)state;
    for_every_grouter(check_memory);
}

/* Rows of 64 floats throughout, so nothing is lost to alignment. */
static void a_linear_body_takes_no_memory_for_blocks(void **state) {
    (void)state;
    enum { N = 64, D = 16, I = 48, L = 4 };
    gr_model_config c = grouter_case_residual_linear;
    c.hidden_size = D;
    c.intermediate_size = I;
    grouter_case_options o = options_of(&c, 1, N);
    gr_plan_limits limits;
    gr_model_options options = grouter_case_model_options(&o, &limits);
    gr_model *m;
    assert_int_equal(gr_model_measure(&m, &options), GR_OK);
    gr_model_memory told = gr_model_memory_get(m);
    /* streams; z, mean and rstd of each layer */
    assert_int_equal(told.activations, sizeof(float) * ((L + 1) * N * I + L * (N * I + 2 * N)));
    /* the loss; dres, dn: no final norm */
    assert_int_equal(told.scratch, sizeof(float) * (16 + 2 * N * I));
    gr_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_equal_the_reference),
        cmocka_unit_test(scores_of_odd_shapes_equal_the_reference),
        cmocka_unit_test(gradients_equal_central_differences),
        cmocka_unit_test(features_are_what_the_score_matrix_multiplies),
        cmocka_unit_test(training_scores_alone_gives_their_gradient_and_no_other),
        cmocka_unit_test(gradients_accumulate_and_may_start_in_the_scores_memory),
        cmocka_unit_test(a_zero_token_embeds_to_zero_without_gradient),
        cmocka_unit_test(training_moves_all_but_the_bias_and_the_zero_token),
        cmocka_unit_test(recomputation_changes_no_bit),
        cmocka_unit_test(a_changed_token_reaches_exactly_the_rows_that_see_it),
        cmocka_unit_test(a_window_alone_scores_as_in_a_batch),
        cmocka_unit_test(measured_memory_is_what_is_allocated),
        cmocka_unit_test(a_linear_body_takes_no_memory_for_blocks),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
