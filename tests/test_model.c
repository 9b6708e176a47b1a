/* The model's loss and every gradient against the double-precision reference, for every kind of layer. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "model_case.h"

static const gr_model_config plain = {
    .vocab_size = 61,
    .hidden_size = 24,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 4,
    .head_dim = 6,
    .intermediate_size = 20,
    .moe_intermediate_size = 10,
    .num_experts = 8,
    .num_experts_per_tok = 2,
    .rms_norm_eps = 1e-5,
    .rope_theta = 1000,
    .initializer_range = 0.2,
};

/* Every kind of layer and option at once. */
static const gr_model_config mixed = {
    .vocab_size = 61,
    .hidden_size = 24,
    .num_hidden_layers = 4,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .intermediate_size = 20,
    .moe_intermediate_size = 10,
    .num_experts = 8,
    .num_experts_per_tok = 3,
    .shared_expert_intermediate_size = 6,
    .first_k_dense_replace = 2,
    .rms_norm_eps = 1e-5,
    .rope_theta = 1000,
    .initializer_range = 0.2,
    .use_qk_norm = true,
};

/* fp32: kernels of fp32 against double. bf16: against fp32, of which the reference is within 1e-5. */
static const double loss_bound = CHECK_DTYPE == GR_F32 ? 1e-5 : 1e-3;
static const double router_bound = CHECK_DTYPE == GR_F32 ? 1e-5 : 4e-3; /* of losses made of rounded scores */
static const double gradient_bound = CHECK_DTYPE == GR_F32 ? 1e-5 : 5e-2;

static gr_backend *backend;
static gr_comm *comm;

static int open_all(void **state) {
    (void)state;
    return gr_backend_open(&backend, "cpu", CHECK_DTYPE) || gr_comm_open(&comm, "self") || gr_comm_group(comm, 1);
}

static int close_all(void **state) {
    (void)state;
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
    return 0;
}

static void check(const model_case_options *o) {
    model_case_result r = model_case_run(backend, comm, o);
    if (!(r.loss_error <= loss_bound && r.gradient_error <= gradient_bound))
        fail_msg("loss error %.3g, gradient error %.3g in %s", r.loss_error, r.gradient_error, r.worst);
}

static void plain_model_equals_the_reference(void **state) {
    (void)state;
    check(&(model_case_options){.config = &plain, .n_window = 3, .T = 33, .only_expert = -1});
}

static void grouped_query_attention_with_qk_norm_equals_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.num_key_value_heads = 2;
    c.head_dim = 20;
    c.use_qk_norm = true;
    check(&(model_case_options){.config = &c, .n_window = 2, .T = 40, .only_expert = -1});
}

static void shared_expert_dense_layer_and_tied_head_equal_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.num_hidden_layers = 3;
    c.first_k_dense_replace = 1;
    c.shared_expert_intermediate_size = 14;
    c.tie_word_embeddings = true;
    check(&(model_case_options){.config = &c, .n_window = 2, .T = 17, .only_expert = -1});
}

static void unused_slots_and_one_hot_expert_equal_the_reference(void **state) {
    (void)state;
    check(&(model_case_options){.config = &plain, .n_window = 2, .T = 19, .unused_slots = true, .only_expert = 5});
}

static void every_expert_chosen_equals_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.num_experts_per_tok = c.num_experts;
    check(&(model_case_options){.config = &c, .n_window = 1, .T = 9, .only_expert = -1});
}

static void dense_model_equals_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.first_k_dense_replace = c.num_hidden_layers;
    check(&(model_case_options){.config = &c, .n_window = 1, .T = 12, .only_expert = -1});
}

static void recomputed_models_equal_the_reference(void **state) {
    (void)state;
    /* Four windows: over fewer tokens bf16's errors in the six weights of a q norm do not average below the bound. */
    model_case_options o = {.config = &mixed, .n_window = 4, .T = 17, .unused_slots = true, .only_expert = -1};
    o.recompute = GR_RECOMPUTE_EXPERTS;
    check(&o);
    o.recompute = GR_RECOMPUTE_BLOCK;
    check(&o);
}

static void recomputation_changes_no_bit(void **state) {
    (void)state;
    model_case_options o = {.config = &mixed, .n_window = 2, .T = 17, .unused_slots = true, .only_expert = -1};
    assert_true(model_case_recompute_is_exact(backend, comm, &o, 2));
    o.config = &plain;
    assert_true(model_case_recompute_is_exact(backend, comm, &o, 1));
    gr_model_config one_layer = plain;
    one_layer.num_hidden_layers = 1;
    o.config = &one_layer;
    assert_true(model_case_recompute_is_exact(backend, comm, &o, 1));
}

/* With a router in every MoE layer. */
static gr_model_config routed(const gr_model_config *base, gr_source source, bool norm_topk_prob) {
    gr_model_config c = *base;
    c.norm_topk_prob = norm_topk_prob;
    c.routing = (gr_routing){.source = source, .gates = GR_GATES_LEARNED, .scale = 1.5, .z_loss_coef = 0.02};
    c.routing.aux_loss_coef = source == GR_SOURCE_LEARNED ? 0.3 : 0;
    return c;
}

static void check_routed(const model_case_options *o) {
    model_case_result r = model_case_run(backend, comm, o);
    if (!(r.loss_error <= loss_bound && r.gradient_error <= gradient_bound && r.router_error <= router_bound))
        fail_msg("loss error %.3g, gradient error %.3g in %s, router losses %.3g", r.loss_error, r.gradient_error,
            r.worst, r.router_error);
    assert_false(r.load_wrong);
}

static void learned_routes_equal_the_reference(void **state) {
    (void)state;
    if (CHECK_DTYPE != GR_F32)
        skip(); /* bf16 rounds scores that are nearly equal into another order: other experts, other gradients */
    for (int normalise = 0; normalise < 2; normalise++) {
        gr_model_config c = routed(&plain, GR_SOURCE_LEARNED, normalise);
        check_routed(&(model_case_options){.config = &c, .n_window = 3, .T = 33, .only_expert = -1});
        c = routed(&mixed, GR_SOURCE_LEARNED, normalise);
        check_routed(&(model_case_options){.config = &c, .n_window = 2, .T = 17, .only_expert = -1});
    }
}

static void learned_gates_of_given_experts_equal_the_reference(void **state) {
    (void)state;
    for (int normalise = 0; normalise < 2; normalise++) {
        gr_model_config c = routed(&mixed, GR_SOURCE_TABLE, normalise);
        /* Five windows for the six weights of a q norm in bf16: as above. */
        check_routed(&(model_case_options){.config = &c, .n_window = 5, .T = 17, .only_expert = -1});
        check_routed(&(model_case_options){.config = &c, .n_window = 1, .T = 17, .only_expert = 6});
    }
}

static void learned_routes_to_one_and_to_all_experts_equal_the_reference(void **state) {
    (void)state;
    gr_model_config c = routed(&plain, GR_SOURCE_LEARNED, false);
    c.num_experts_per_tok = 1;
    check_routed(&(model_case_options){.config = &c, .n_window = 2, .T = 19, .only_expert = -1});
    check_routed(&(model_case_options){.config = &c, .n_window = 2, .T = 19, .only_expert = -1, .zero_routers = true});
    c = routed(&plain, GR_SOURCE_LEARNED, true);
    c.num_experts_per_tok = c.num_experts;
    check_routed(&(model_case_options){.config = &c, .n_window = 1, .T = 9, .only_expert = -1});
}

static void dense_layers_need_no_router(void **state) {
    (void)state;
    gr_model_config c = routed(&plain, GR_SOURCE_LEARNED, true);
    c.first_k_dense_replace = c.num_hidden_layers;
    check_routed(&(model_case_options){.config = &c, .n_window = 1, .T = 12, .only_expert = -1});
}

static void recomputation_routes_as_before(void **state) {
    (void)state;
    gr_model_config c = routed(&mixed, GR_SOURCE_LEARNED, true);
    model_case_options o = {.config = &c, .n_window = 2, .T = 17, .only_expert = -1};
    assert_true(model_case_recompute_is_exact(backend, comm, &o, 2));
    c = routed(&plain, GR_SOURCE_TABLE, false);
    assert_true(model_case_recompute_is_exact(backend, comm, &o, 1));
}

static size_t activations_of(const gr_model_config *c, gr_recompute recompute) {
    enum { N = 64 };
    gr_expert_map map;
    assert_int_equal(gr_expert_map_open(&map, (uint32_t)c->num_experts, 1), GR_OK);
    const gr_plan_limits limits = {.N = N,
        .K = (uint32_t)c->num_experts_per_tok,
        .n_rank = 1,
        .E_local = (uint32_t)c->num_experts,
        .pair_max = (uint64_t)N * (uint64_t)c->num_experts_per_tok};
    gr_model *m;
    assert_int_equal(gr_model_measure(&m, &(gr_model_options){.config = c,
                                              .backend = backend,
                                              .comm = comm,
                                              .map = &map,
                                              .limits = &limits,
                                              .T = N / 2,
                                              .train = true,
                                              .recompute = recompute}),
        GR_OK);
    size_t n_byte = gr_model_memory_get(m).activations;
    gr_model_close(m);
    gr_expert_map_close(&map);
    return n_byte;
}

static void recomputation_keeps_one_slot_for_all_layers(void **state) {
    (void)state;
    enum { N = 64, L = 6 };
    gr_model_config c = plain; /* all sizes below are whole cache lines, so nothing is lost to alignment */
    c.num_hidden_layers = L;
    size_t D = (size_t)c.hidden_size, F = (size_t)c.moe_intermediate_size, K = (size_t)c.num_experts_per_tok;
    size_t H = (size_t)c.num_attention_heads;
    size_t act = gr_dtype_size(CHECK_DTYPE);
    size_t ffn = sizeof(float) * N + act * (N * D + N * K * 2 * F); /* rstd2; n2, h */
    size_t attention =
        sizeof(float) * (N + N * H) + act * (N * D + 3 * N * D + N * D + N * D); /* rstd1 lse; n1 qkv o mid */
    size_t none = activations_of(&c, GR_RECOMPUTE_NONE);
    assert_int_equal(none - activations_of(&c, GR_RECOMPUTE_EXPERTS), (L - 1) * ffn);
    assert_int_equal(none - activations_of(&c, GR_RECOMPUTE_BLOCK), (L - 1) * (ffn + attention));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_model_equals_the_reference),
        cmocka_unit_test(grouped_query_attention_with_qk_norm_equals_the_reference),
        cmocka_unit_test(shared_expert_dense_layer_and_tied_head_equal_the_reference),
        cmocka_unit_test(unused_slots_and_one_hot_expert_equal_the_reference),
        cmocka_unit_test(every_expert_chosen_equals_the_reference),
        cmocka_unit_test(dense_model_equals_the_reference),
        cmocka_unit_test(recomputed_models_equal_the_reference),
        cmocka_unit_test(recomputation_changes_no_bit),
        cmocka_unit_test(recomputation_keeps_one_slot_for_all_layers),
        cmocka_unit_test(learned_routes_equal_the_reference),
        cmocka_unit_test(learned_gates_of_given_experts_equal_the_reference),
        cmocka_unit_test(learned_routes_to_one_and_to_all_experts_equal_the_reference),
        cmocka_unit_test(dense_layers_need_no_router),
        cmocka_unit_test(recomputation_routes_as_before),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
