/* Learned routers on four ranks as 4 x 1, 2 x 2 and 1 x 4 data- and expert-parallel: losses and reduced gradients of
 * one step equal the reference that sees all windows at once. One step only: later ones flip near-ties. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "model_case.h"

static gr_backend *backend;
static gr_comm *comm;

static gr_model_config routed(gr_source source, bool norm_topk_prob) {
    gr_model_config c = model_case_config;
    c.norm_topk_prob = norm_topk_prob;
    c.routing = (gr_routing){.source = source, .gates = GR_GATES_LEARNED, .scale = 2.5, .z_loss_coef = 0.02};
    c.routing.aux_loss_coef = source == GR_SOURCE_LEARNED ? 0.3 : 0;
    return c;
}

static void check(const gr_model_config *c, bool zero_routers, gr_recompute recompute) {
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2) {
        assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
        model_case_result r = model_case_run(backend, comm,
            &(model_case_options){.config = c,
                .n_window = 2,
                .T = 13,
                .only_expert = -1,
                .zero_routers = zero_routers,
                .recompute = recompute});
        if (!(r.loss_error <= 1e-5 && r.gradient_error <= 1e-5 && r.router_error <= 1e-5) || r.load_wrong)
            fail_msg("R_ep %d: loss error %.3g, gradient error %.3g in %s, router losses %.3g, loads %s", R_ep,
                r.loss_error, r.gradient_error, r.worst, r.router_error, r.load_wrong ? "wrong" : "right");
    }
}

static void learned_routes_equal_the_reference_in_any_layout(void **state) {
    (void)state;
    gr_model_config c = routed(GR_SOURCE_LEARNED, true);
    check(&c, false, GR_RECOMPUTE_NONE);
    check(&c, false, GR_RECOMPUTE_BLOCK);
    c.norm_topk_prob = false;
    check(&c, false, GR_RECOMPUTE_EXPERTS);
}

static void learned_gates_of_given_experts_equal_the_reference_in_any_layout(void **state) {
    (void)state;
    gr_model_config c = routed(GR_SOURCE_TABLE, true);
    check(&c, false, GR_RECOMPUTE_NONE);
    c.norm_topk_prob = false;
    check(&c, false, GR_RECOMPUTE_NONE);
}

/* With 8 experts on 4 ranks, K = 1: three ranks have experts without tokens. K = 8: every token goes everywhere. */
static void all_tokens_to_one_expert_or_to_all_equal_the_reference(void **state) {
    (void)state;
    gr_model_config c = routed(GR_SOURCE_LEARNED, false);
    c.num_experts_per_tok = 1;
    check(&c, true, GR_RECOMPUTE_NONE);
    c = routed(GR_SOURCE_LEARNED, true);
    c.num_experts_per_tok = c.num_experts;
    check(&c, false, GR_RECOMPUTE_NONE);
}

static void one_step_of_any_layout_equals_one_rank(void **state) {
    (void)state;
    gr_comm *alone;
    gr_model_config c = routed(GR_SOURCE_LEARNED, true);
    const model_case_options o = {.config = &c, .n_window = 2, .T = 13, .only_expert = -1};
    assert_int_equal(gr_comm_open(&alone, "self"), GR_OK);
    assert_int_equal(gr_comm_group(alone, 1), GR_OK);
    model_case_state whole, part;
    model_case_train(backend, alone, &o, 4, 1, &whole);
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2) {
        assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
        model_case_train(backend, comm, &o, 4, 1, &part);
        char worst[2][160];
        double weights = model_case_difference(&o, &part, part.weights, whole.weights, worst[0]);
        double gradients = model_case_difference(&o, &part, part.gradients, whole.gradients, worst[1]);
        print_message("R_ep %d: weights %.2g, gradients %.2g\n", R_ep, weights, gradients);
        model_case_state_close(&part);
        if (!(weights <= 1e-5 && gradients <= 1e-5))
            fail_msg("R_ep %d: weights differ by %.3g in %s, gradients by %.3g in %s", R_ep, weights, worst[0],
                gradients, worst[1]);
    }
    model_case_state_close(&whole);
    gr_comm_close(alone, GR_OK);
}

static void recomputation_changes_no_bit_in_any_layout(void **state) {
    (void)state;
    gr_model_config c = routed(GR_SOURCE_LEARNED, true);
    const model_case_options o = {.config = &c, .n_window = 2, .T = 13, .only_expert = -1};
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2) {
        assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
        assert_true(model_case_recompute_is_exact(backend, comm, &o, 4));
    }
}

static int open_all(void **state) {
    (void)state;
    return gr_backend_open(&backend, "cpu", GR_F32) || gr_comm_open(&comm, "mpi");
}

static int close_all(void **state) {
    (void)state;
    gr_backend_close(backend);
    gr_comm_close(comm, GR_OK);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learned_routes_equal_the_reference_in_any_layout),
        cmocka_unit_test(learned_gates_of_given_experts_equal_the_reference_in_any_layout),
        cmocka_unit_test(all_tokens_to_one_expert_or_to_all_equal_the_reference),
        cmocka_unit_test(one_step_of_any_layout_equals_one_rank),
        cmocka_unit_test(recomputation_changes_no_bit_in_any_layout),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
