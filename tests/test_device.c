/* The model and its optimizer on memory that host code cannot touch: the bits of the CPU backend, and how often the
 * host waits. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "device_suite.h"

static int setup(void **state) {
    (void)state;
    return open_all("self");
}

static int teardown(void **state) {
    (void)state;
    close_all();
    return 0;
}

static void training_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    check_all_training(20);
}

static void evaluation_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    check_evaluation();
}

static void a_skipped_step_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    check_skip();
}

/* What happens, in order: g and G a part of the dense range or of the experts is gathered, j COMPUTE joins what travels
 * beside it; E, A, X ops that read the embedding, a layer, the head. */
static char happened[128];

static void happens(char what) {
    size_t n = strlen(happened);
    assert_true(n + 1 < sizeof happened);
    happened[n] = what;
}

static gr_err gather_seen(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    assert_true(c->beside && c->traffic == GR_TRAFFIC_WEIGHTS && dtype == CHECK_DTYPE && data && p.n > 0);
    c->traffic = GR_TRAFFIC_OTHER;
    happens(g == GR_WORLD ? 'g' : 'G');
    return GR_OK;
}

static gr_err join_seen(gr_comm *c) {
    assert_false(c->beside);
    happens('j');
    return GR_OK;
}

static gr_backend real;

static gr_err embed_seen(gr_backend *b, gr_lane lane, const gr_embed *a) {
    happens('E');
    return real.embed_forward(b, lane, a);
}

static gr_err attention_seen(gr_backend *b, gr_lane lane, const gr_attention *a) {
    happens('A');
    return real.attention_forward(b, lane, a);
}

static gr_err cross_entropy_seen(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    happens('X');
    return real.cross_entropy(b, lane, a);
}

/* The part behind it travels beside a layer; of three layers the first has no experts. After the last step all that is
 * left comes at once. */
static void weights_are_joined_part_by_part_before_they_are_read(void **state) {
    (void)state;
    const gr_comm before = *comm;
    gr_model_config c = config_of(FIXED);
    model_case_options o = options_of(&c);
    model_case_state s;
    o.beside = true;
    real = *cpu;
    comm->gather_piece = gather_seen;
    comm->join = join_seen;
    cpu->embed_forward = embed_seen;
    cpu->attention_forward = attention_seen;
    cpu->cross_entropy = cross_entropy_seen;
    model_case_train(cpu, comm, &o, 1, 2, &s);
    *cpu = real;
    *comm = before;
    assert_string_equal(happened, "EAAAX"
                                  "jg" /* the norm is summed; the embedding sets out */
                                  "jgEjgGAjgGAjgAjX"
                                  "jg"
                                  "jgjgGjgGjgj");
    model_case_state_close(&s);
}

/* What was decided: one copy, one wait. */
static void with_given_routes_the_host_waits_once_in_a_step(void **state) {
    (void)state;
    for (int routing = FIXED; routing <= TABLE_GATES; routing++) {
        model_case_waits w = waits_of(routing);
        assert_int_equal(w.n_download, 1);
        assert_int_equal(w.n_sync, 1);
    }
}

/* Its choices: once per micro-batch and layer with experts. */
static void a_learned_router_is_waited_for_in_every_layer(void **state) {
    (void)state;
    gr_model_config c = config_of(LEARNED);
    const uint64_t n = 2 * (uint64_t)gr_model_routers(&c);
    model_case_waits w = waits_of(LEARNED);
    assert_int_equal(w.n_download, 1 + n);
    assert_true(w.n_sync >= 1 + n);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(training_has_the_bits_of_the_cpu),
        cmocka_unit_test(evaluation_has_the_bits_of_the_cpu), cmocka_unit_test(a_skipped_step_has_the_bits_of_the_cpu),
        cmocka_unit_test(weights_are_joined_part_by_part_before_they_are_read),
        cmocka_unit_test(with_given_routes_the_host_waits_once_in_a_step),
        cmocka_unit_test(a_learned_router_is_waited_for_in_every_layer)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
