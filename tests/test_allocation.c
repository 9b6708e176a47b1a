/* A training step allocates nothing of its own once the first one is over (libraries allocate inside themselves). The
 * program is linked with --wrap, so every allocation call in our objects comes through here. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "model_case.h"

static int n_call;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);

void *__wrap_malloc(size_t n) {
    n_call++;
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    n_call++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    n_call++;
    return __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n) {
    n_call++;
    return __real_aligned_alloc(align, n);
}

/* Allocation calls of a whole run of so many steps. */
static int calls_of(const gr_model_config *config, int steps, gr_recompute recompute) {
    gr_backend *backend;
    gr_comm *comm;
    assert_int_equal(gr_backend_open(&backend, "cpu", GR_F32), GR_OK);
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    assert_int_equal(gr_comm_group(comm, 1), GR_OK);
    const model_case_options o = {.config = config,
        .n_window = 2,
        .T = 40,
        .unused_slots = config->routing.gates == GR_GATES_FIXED,
        .only_expert = -1,
        .recompute = recompute,
        .zero = GR_ZERO_1};
    model_case_state state;
    n_call = 0;
    model_case_train(backend, comm, &o, 2, steps, &state);
    int n = n_call;
    model_case_state_close(&state);
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
    return n;
}

static void steps_after_the_first_allocate_nothing(void **state) {
    (void)state;
    enum { PER_STEP = 4 }; /* the test's own: tokens, targets, ids and gates of the step's windows */
    gr_model_config config[2] = {model_case_config, model_case_config}; /* routes given, and made in the step */
    config[1].routing = (gr_routing){
        .source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1, .aux_loss_coef = 0.01, .z_loss_coef = 0.01};
    for (int i = 0; i < 2; i++)
        for (gr_recompute recompute = GR_RECOMPUTE_NONE; recompute <= GR_RECOMPUTE_BLOCK; recompute++) {
            int one = calls_of(&config[i], 1, recompute), six = calls_of(&config[i], 6, recompute);
            assert_true(one > PER_STEP);
            assert_int_equal(six - one, 5 * PER_STEP);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(steps_after_the_first_allocate_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
