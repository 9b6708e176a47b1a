/* device_suite.h: the same run on the CPU backend and on a double of a device, whose memory host code cannot touch: the
 * same bits. Of test_device.c on one rank and of mpi_2_device.c on two. */
#ifndef GROUTER_DEVICE_SUITE_H
#define GROUTER_DEVICE_SUITE_H

#include "device_double.h"
#include "model_case.h"

static gr_backend *cpu, *device;
static gr_comm *comm;

static const gr_routing routings[] = {
    {.source = GR_SOURCE_TABLE, .gates = GR_GATES_FIXED},
    {.source = GR_SOURCE_TABLE, .gates = GR_GATES_LEARNED, .scale = 2, .z_loss_coef = 0.01},
    {.source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1, .aux_loss_coef = 0.01, .z_loss_coef = 0.01},
};
enum { FIXED, TABLE_GATES, LEARNED, N_ROUTING };

static int open_all(const char *comm_name) {
    gr_backend *inner = NULL;
    return gr_backend_open(&cpu, "cpu", CHECK_DTYPE) || gr_backend_open(&inner, "cpu", CHECK_DTYPE) ||
           device_double_open(&device, inner) || gr_comm_open(&comm, comm_name) || gr_comm_group(comm, 1);
}

static void close_all(void) {
    gr_comm_close(comm, GR_OK);
    gr_backend_close(device);
    gr_backend_close(cpu);
}

static gr_model_config config_of(int routing) {
    gr_model_config c = model_case_config;
    c.routing = routings[routing];
    return c;
}

static model_case_options options_of(const gr_model_config *c) {
    return (model_case_options){.config = c,
        .n_window = 2,
        .T = 17,
        .unused_slots = c->routing.gates == GR_GATES_FIXED,
        .only_expert = -1,
        .zero = GR_ZERO_1};
}

/* The run on the device, which its comm must know. */
static void train_on_device(const model_case_options *o, int n_part, int steps, model_case_state *out) {
    assert_int_equal(gr_comm_attach(comm, device), GR_OK);
    model_case_train(device, comm, o, n_part, steps, out);
    gr_comm_detach(comm, GR_OK);
}

static void check_training(const model_case_options *o, int steps) {
    int n_part = 2 * comm->size[GR_WORLD];
    model_case_state expected, found;
    model_case_train(cpu, comm, o, n_part, steps, &expected);
    train_on_device(o, n_part, steps, &found);
    assert_true(model_case_same_bits(&expected, &found));
    model_case_state_close(&found);
    model_case_state_close(&expected);
}

/* Gradients that are reduced by parts while backward goes on have the sums of those reduced at its end. */
static void check_beside(const model_case_options *o) {
    int n_part = 2 * comm->size[GR_WORLD];
    model_case_options beside = *o;
    model_case_state expected, on_cpu, found;
    beside.beside = true;
    model_case_train(cpu, comm, o, n_part, 2, &expected);
    model_case_train(cpu, comm, &beside, n_part, 2, &on_cpu);
    train_on_device(&beside, n_part, 2, &found);
    assert_true(model_case_same_bits(&expected, &on_cpu) && model_case_same_bits(&expected, &found));
    model_case_state_close(&found);
    model_case_state_close(&on_cpu);
    model_case_state_close(&expected);
}

/* So many steps with routes of each kind, then 2 with each kind of recomputation and with whole moments. */
static void check_all_training(int steps) {
    for (int routing = 0; routing < N_ROUTING; routing++) {
        gr_model_config c = config_of(routing);
        model_case_options o = options_of(&c);
        check_training(&o, steps);
        for (o.recompute = GR_RECOMPUTE_EXPERTS; o.recompute <= GR_RECOMPUTE_BLOCK; o.recompute++)
            check_training(&o, 2);
        check_beside(&o);
        o.zero = GR_ZERO_OFF;
        check_training(&o, 2);
    }
}

/* A step that the device skips without telling the host first: the next ones are as if it had not been. */
static void check_skip(void) {
    const int n_part = 2 * comm->size[GR_WORLD];
    gr_model_config c = config_of(FIXED);
    model_case_options o = options_of(&c);
    for (o.zero = GR_ZERO_OFF; o.zero <= GR_ZERO_1; o.zero++) {
        model_case_state expected, found, whole;
        o.bad_step = 0;
        train_on_device(&o, n_part, 4, &whole);
        o.bad_step = 3;
        model_case_train(cpu, comm, &o, n_part, 4, &expected);
        train_on_device(&o, n_part, 4, &found);
        assert_true(model_case_same_bits(&expected, &found));
        assert_false(model_case_same_bits(&whole, &found));
        assert_true(whole.counts.n_applied == 4 && found.counts.n_applied == 3 && found.counts.n_skipped == 0);
        model_case_state_close(&expected);
        model_case_state_close(&found);
        model_case_state_close(&whole);
    }
}

static void check_evaluation(void) {
    enum { N = 2 * 17 };
    for (int routing = 0; routing < N_ROUTING; routing++) {
        gr_model_config c = config_of(routing);
        model_case_options o = options_of(&c);
        double expected[N], found[N], expected_sum, sum;
        model_case_losses(cpu, comm, &o, expected, &expected_sum);
        assert_int_equal(gr_comm_attach(comm, device), GR_OK);
        model_case_losses(device, comm, &o, found, &sum);
        gr_comm_detach(comm, GR_OK);
        assert_true(sum == expected_sum && sum > 0);
        assert_memory_equal(found, expected, sizeof found);
    }
}

static model_case_waits waits_of(int routing) {
    gr_model_config c = config_of(routing);
    model_case_options o = options_of(&c);
    assert_int_equal(gr_comm_attach(comm, device), GR_OK);
    model_case_waits w = model_case_count_waits(device, comm, &o);
    gr_comm_detach(comm, GR_OK);
    return w;
}

#endif
