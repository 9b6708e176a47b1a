/* Finite differences of the reference model's gradients, for every parameter of every kind of layer. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref_model.h"

enum { N_WINDOW = 2, WINDOW = 5, N = N_WINDOW * WINDOW, K = 2 };

static const gr_model_config base = {
    .vocab_size = 11,
    .hidden_size = 6,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 2,
    .head_dim = 4,
    .intermediate_size = 7,
    .moe_intermediate_size = 5,
    .num_experts = 4,
    .num_experts_per_tok = K,
    .rms_norm_eps = 1e-5,
    .rope_theta = 100,
    .initializer_range = 0.5,
};

typedef struct fixture {
    ref_model m;
    ref_batch b;
    double *w;
    uint32_t token[N];
    int32_t target[N];
    uint16_t ids[N * K];
    float gates[N * K];
    double router_loss[2];
} fixture;

/* Expert 3 gets no token, one target is ignored, one slot is unused; norm weights are far from 1. */
static void fixture_open(fixture *f, const gr_model_config *c) {
    ref_model_open(&f->m, c);
    f->w = ref_alloc(f->m.params.n_element);
    ref_model_init(&f->m, 3, f->w);
    for (int i = 0; i < f->m.params.n; i++) {
        const gr_param *p = &f->m.params.list[i];
        for (int64_t j = 0; p->kind == GR_PARAM_NORM && j < p->dim[0]; j++)
            f->w[p->offset + j] = 1 + 0.3 * (double)gr_random_normal(4, (uint64_t)i, (uint64_t)j);
    }
    for (uint32_t i = 0; i < N; i++) {
        f->token[i] = gr_random_below(5, 0, i, (uint32_t)c->vocab_size);
        f->target[i] = (int32_t)gr_random_below(5, 1, i, (uint32_t)c->vocab_size);
        uint16_t skipped = (uint16_t)gr_random_below(5, 2, i, 3);
        f->ids[i * K] = skipped == 0;
        f->ids[i * K + 1] = (uint16_t)(skipped == 2 ? 1 : 2);
        f->gates[i * K] = 0.25f + 0.5f * (float)gr_random_below(5, 3, i, 100) / 100;
        f->gates[i * K + 1] = 1 - f->gates[i * K];
    }
    f->target[3] = -1;
    f->gates[2 * K] = 0;
    f->b = (ref_batch){.n_window = N_WINDOW,
        .T = WINDOW,
        .token = f->token,
        .target = f->target,
        .ids = f->ids,
        .gates = f->gates,
        .router_loss = f->router_loss};
}

static void fixture_close(fixture *f) {
    free(f->w);
    ref_model_close(&f->m);
}

static double total_loss(fixture *f, double scale) {
    memset(f->router_loss, 0, sizeof f->router_loss);
    double loss = ref_model_loss(&f->m, f->w, &f->b, scale, NULL);
    return loss + f->router_loss[0] + f->router_loss[1];
}

static double difference_quotient(fixture *f, int64_t i, double scale) {
    double h = 1e-5, kept = f->w[i];
    f->w[i] = kept + h;
    double up = total_loss(f, scale);
    f->w[i] = kept - h;
    double down = total_loss(f, scale);
    f->w[i] = kept;
    return scale * (up - down) / (2 * h);
}

static void check_gradients(const gr_model_config *c) {
    const double scale = 0.125;
    fixture f;
    fixture_open(&f, c);
    double *g = ref_alloc(f.m.params.n_element);
    ref_model_loss(&f.m, f.w, &f.b, scale, g);
    for (int i = 0; i < f.m.params.n; i++) {
        const gr_param *p = &f.m.params.list[i];
        for (uint32_t k = 0; k < p->n_matrix; k++) {
            double error = 0, size = 0;
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                double d = difference_quotient(&f, at, scale) - g[at];
                error += d * d;
                size += g[at] * g[at];
            }
            bool unused = p->kind == GR_PARAM_EXPERT && k == 3 && c->routing.source == GR_SOURCE_TABLE;
            if (unused ? error > 0 || size > 0 : !(size > 0 && sqrt(error) <= 1e-6 * sqrt(size)))
                fail_msg("%s, matrix %u: |difference| %g, |gradient| %g", p->name, k, sqrt(error), sqrt(size));
        }
    }
    free(g);
    fixture_close(&f);
}

static void gradient_of_a_plain_moe_matches_finite_differences(void **state) {
    (void)state;
    check_gradients(&base);
}

static void gradient_with_grouped_queries_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.num_attention_heads = 4;
    check_gradients(&c);
}

static void gradient_with_qk_norm_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.use_qk_norm = true;
    check_gradients(&c);
}

static void gradient_with_a_shared_expert_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.shared_expert_intermediate_size = 3;
    check_gradients(&c);
}

static void gradient_with_a_dense_first_layer_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.first_k_dense_replace = 1;
    check_gradients(&c);
}

static void gradient_with_a_tied_head_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.tie_word_embeddings = true;
    check_gradients(&c);
}

static void gradient_with_everything_at_once_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.num_attention_heads = 4;
    c.use_qk_norm = c.tie_word_embeddings = true;
    c.shared_expert_intermediate_size = 3;
    c.first_k_dense_replace = 1;
    check_gradients(&c);
}

static void gradient_with_learned_routes_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.shared_expert_intermediate_size = 3;
    c.routing = (gr_routing){
        .source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1.7, .aux_loss_coef = 0.5, .z_loss_coef = 0.1};
    check_gradients(&c);
    c.norm_topk_prob = true;
    check_gradients(&c);
}

static void gradient_with_learned_gates_matches_finite_differences(void **state) {
    (void)state;
    gr_model_config c = base;
    c.routing = (gr_routing){.gates = GR_GATES_LEARNED, .scale = 2.5, .z_loss_coef = 0.1};
    check_gradients(&c);
    c.norm_topk_prob = true;
    check_gradients(&c);
}

static void zero_weights_give_the_loss_of_a_uniform_guess(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, &base);
    memset(f.w, 0, (size_t)f.m.params.n_element * sizeof *f.w);
    double loss = ref_model_loss(&f.m, f.w, &f.b, 1, NULL);
    assert_true(fabs(loss - (N - 1) * log(11)) < 1e-12 * N);
    fixture_close(&f);
}

static void a_slot_with_gate_zero_changes_nothing(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, &base);
    double a = ref_model_loss(&f.m, f.w, &f.b, 1, NULL);
    f.ids[2 * K] = 3;
    double b = ref_model_loss(&f.m, f.w, &f.b, 1, NULL);
    assert_true(a == b);
    fixture_close(&f);
}

static void later_tokens_and_other_windows_do_not_change_a_loss(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, &base);
    for (int i = 0; i < N; i++)
        f.target[i] = i <= 2 ? f.target[i] : -1;
    double a = ref_model_loss(&f.m, f.w, &f.b, 1, NULL);
    for (int i = 3; i < N; i++)
        f.token[i] = (f.token[i] + 1) % 11;
    double b = ref_model_loss(&f.m, f.w, &f.b, 1, NULL);
    assert_true(a == b);
    fixture_close(&f);
}

static void gradients_are_added_and_scale_with_the_scale(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, &base);
    int64_t n = f.m.params.n_element;
    double *once = ref_alloc(n), *twice = ref_alloc(n);
    ref_model_loss(&f.m, f.w, &f.b, 2, once);
    ref_model_loss(&f.m, f.w, &f.b, 1, twice);
    ref_model_loss(&f.m, f.w, &f.b, 1, twice);
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs(once[i] - twice[i]) <= 1e-12 * (1 + fabs(once[i])));
    free(once);
    free(twice);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_of_a_plain_moe_matches_finite_differences),
        cmocka_unit_test(gradient_with_grouped_queries_matches_finite_differences),
        cmocka_unit_test(gradient_with_qk_norm_matches_finite_differences),
        cmocka_unit_test(gradient_with_a_shared_expert_matches_finite_differences),
        cmocka_unit_test(gradient_with_a_dense_first_layer_matches_finite_differences),
        cmocka_unit_test(gradient_with_a_tied_head_matches_finite_differences),
        cmocka_unit_test(gradient_with_everything_at_once_matches_finite_differences),
        cmocka_unit_test(gradient_with_learned_routes_matches_finite_differences),
        cmocka_unit_test(gradient_with_learned_gates_matches_finite_differences),
        cmocka_unit_test(zero_weights_give_the_loss_of_a_uniform_guess),
        cmocka_unit_test(a_slot_with_gate_zero_changes_nothing),
        cmocka_unit_test(later_tokens_and_other_windows_do_not_change_a_loss),
        cmocka_unit_test(gradients_are_added_and_scale_with_the_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
