/* bytes_suite.h: what ranks hand to each other in a training step is what the plan and the dry run say, to the byte;
 * run by mpi_2_bytes and mpi_4_bytes. */
#ifndef GROUTER_TESTS_BYTES_SUITE_H
#define GROUTER_TESTS_BYTES_SUITE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <unistd.h>

#include "model_case.h"

static gr_backend *backend;
static gr_comm *comm;

/* In model_case_config the layers after the first have experts. */
enum { MOE_LAYERS = 2, T = 13, WINDOWS = 2 };

static gr_model_config with_routing(gr_source source, gr_gates gates) {
    gr_model_config c = model_case_config;
    c.routing = (gr_routing){.source = source, .gates = gates, .scale = 2.5, .z_loss_coef = 0.02};
    c.norm_topk_prob = true;
    return c;
}

static model_case_bytes count(const gr_model_config *c, int R_ep, gr_recompute recompute, gr_zero zero) {
    assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
    return model_case_count_bytes(backend, comm,
        &(model_case_options){.config = c,
            .n_window = WINDOWS,
            .T = T,
            .unused_slots = c->routing.gates == GR_GATES_FIXED,
            .only_expert = -1,
            .recompute = recompute,
            .zero = zero});
}

static void expect(const char *what, gr_traffic traffic, uint64_t counted, uint64_t forecast) {
    if (counted != forecast)
        fail_msg("%s of %s: %llu bytes counted, %llu expected", gr_traffic_name(traffic), what,
            (unsigned long long)counted, (unsigned long long)forecast);
}

/* Dispatches, combines and gates of one micro-batch, forward alone and with backward. */
static void check_rows(gr_gates gates, int R_ep, gr_recompute recompute) {
    gr_model_config c = with_routing(GR_SOURCE_TABLE, gates);
    model_case_bytes b = count(&c, R_ep, recompute, GR_ZERO_OFF);
    gr_model_transfers transfers = gr_model_transfers_count(&c, recompute);
    uint64_t row = (uint64_t)c.hidden_size * backend->elem_size;
    uint64_t gate_row = gates == GR_GATES_LEARNED ? (uint64_t)c.num_experts_per_tok * sizeof(float) : 0;
    assert_int_equal(transfers.dispatch, 2 * MOE_LAYERS + (recompute != GR_RECOMPUTE_NONE ? MOE_LAYERS - 1 : 0));
    assert_int_equal(transfers.combine, 2 * MOE_LAYERS);
    assert_int_equal(transfers.gates, gates == GR_GATES_LEARNED ? MOE_LAYERS : 0);
    assert_true(R_ep == 1 ? b.n_send == 0 && b.n_recv == 0 : b.n_send > 0 && b.n_recv > 0);
    expect("forward", GR_TRAFFIC_DISPATCH, b.forward[GR_TRAFFIC_DISPATCH], b.n_send * row * MOE_LAYERS);
    expect("forward", GR_TRAFFIC_COMBINE, b.forward[GR_TRAFFIC_COMBINE], b.n_recv * row * MOE_LAYERS);
    expect("forward", GR_TRAFFIC_GATES, b.forward[GR_TRAFFIC_GATES], b.n_send * gate_row * MOE_LAYERS);
    expect("a micro-batch", GR_TRAFFIC_DISPATCH, b.micro[GR_TRAFFIC_DISPATCH],
        b.n_send * row * (uint64_t)transfers.dispatch);
    expect(
        "a micro-batch", GR_TRAFFIC_COMBINE, b.micro[GR_TRAFFIC_COMBINE], b.n_recv * row * (uint64_t)transfers.combine);
    expect("a micro-batch", GR_TRAFFIC_GATES, b.micro[GR_TRAFFIC_GATES], (b.n_send + b.n_recv) * gate_row * MOE_LAYERS);
    for (gr_traffic t = GR_TRAFFIC_ROUTES; t < GR_N_TRAFFIC; t++) {
        expect("forward", t, b.forward[t], 0);
        expect("a micro-batch", t, b.micro[t], 0);
    }
    expect("a micro-batch", GR_TRAFFIC_OTHER, b.micro[GR_TRAFFIC_OTHER], 0);
}

static void rows_and_gates_are_what_the_plan_says(void **state) {
    (void)state;
    for (int R_ep = 1; R_ep <= comm->size[GR_WORLD]; R_ep *= 2)
        for (gr_recompute r = GR_RECOMPUTE_NONE; r <= GR_RECOMPUTE_BLOCK; r++) {
            check_rows(GR_GATES_FIXED, R_ep, r);
            check_rows(GR_GATES_LEARNED, R_ep, r);
        }
}

static void learned_routes_send_their_choices_to_the_group(void **state) {
    (void)state;
    gr_model_config c = with_routing(GR_SOURCE_LEARNED, GR_GATES_LEARNED);
    for (int R_ep = 1; R_ep <= comm->size[GR_WORLD]; R_ep *= 2) {
        model_case_bytes b = count(&c, R_ep, GR_RECOMPUTE_EXPERTS, GR_ZERO_OFF);
        gr_model_transfers transfers = gr_model_transfers_count(&c, GR_RECOMPUTE_EXPERTS);
        uint64_t choices = (uint64_t)(WINDOWS * T * c.num_experts_per_tok * (R_ep - 1)) * sizeof(uint16_t);
        assert_int_equal(transfers.choices, MOE_LAYERS);
        expect("forward", GR_TRAFFIC_ROUTES, b.forward[GR_TRAFFIC_ROUTES], choices * MOE_LAYERS);
        expect("a micro-batch", GR_TRAFFIC_ROUTES, b.micro[GR_TRAFFIC_ROUTES], choices * MOE_LAYERS);
        assert_true((b.micro[GR_TRAFFIC_DISPATCH] > 0) == (R_ep > 1));
        assert_true((b.micro[GR_TRAFFIC_GATES] > 0) == (R_ep > 1));
    }
}

/* All ranks together: norms and biases that travel apart may not split evenly. */
static void check_update(int R_ep, gr_zero zero) {
    gr_model_config c = with_routing(GR_SOURCE_TABLE, GR_GATES_FIXED);
    model_case_bytes b = count(&c, R_ep, GR_RECOMPUTE_NONE, zero);
    uint64_t sent[2] = {b.update[GR_TRAFFIC_GRADIENTS], b.update[GR_TRAFFIC_WEIGHTS]};
    assert_int_equal(comm->sum(comm, GR_WORLD, GR_U64, sent, 2), GR_OK);
    expect("an update", GR_TRAFFIC_GRADIENTS, sent[0], (uint64_t)(b.forecast.gradients * comm->size[GR_WORLD]));
    expect("an update", GR_TRAFFIC_WEIGHTS, sent[1], (uint64_t)(b.forecast.weights * comm->size[GR_WORLD]));
    assert_true(sent[0] > 0 && (sent[1] > 0) == (zero == GR_ZERO_1));
    for (gr_traffic t = GR_TRAFFIC_DISPATCH; t <= GR_TRAFFIC_ROUTES; t++)
        expect("an update", t, b.update[t], 0);
}

static void gradients_and_weights_are_what_the_dry_run_says(void **state) {
    (void)state;
    for (int R_ep = 1; R_ep <= comm->size[GR_WORLD]; R_ep *= 2) {
        check_update(R_ep, GR_ZERO_OFF);
        check_update(R_ep, GR_ZERO_1);
    }
}

static int run_bytes_suite(int n_rank) {
    alarm(120); /* a failed assertion on one rank leaves the others waiting */
    if (gr_comm_open(&comm, "mpi") || comm->size[GR_WORLD] != n_rank || gr_backend_open(&backend, "cpu", CHECK_DTYPE))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_gates_are_what_the_plan_says),
        cmocka_unit_test(learned_routes_send_their_choices_to_the_group),
        cmocka_unit_test(gradients_and_weights_are_what_the_dry_run_says),
    };
    if (cmocka_run_group_tests(tests, NULL, NULL))
        _exit(1); /* the ranks may be out of step: finalising could wait for ever */
    gr_backend_close(backend);
    gr_comm_close(comm, GR_OK);
    return 0;
}

#endif
