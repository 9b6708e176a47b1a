/* mpi_4_optim.c: four ranks, two expert-parallel groups of two: every gradient is summed over the ranks that share its
 * weight and counted once in the norm, and all ranks decide alike. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

#include "grouter/optim.h"
#include "weights_fixture.h"

static gr_backend *backend;
static gr_comm *comm;

/* Small integers, so that sums are exact in any order: what world rank r contributes to element j of a tensor. */
static float part(const char *name, int64_t j, int r) {
    return (float)gr_random_below(2, gr_stream_id(name), (uint64_t)(4 * j + r), 17) - 8;
}

static float total(const char *name, int64_t j, int first, int step) {
    float sum = 0;
    for (int r = first; r < 4; r += step)
        sum += part(name, j, r);
    return sum;
}

typedef void visit(const gr_param *p, const char *name, int64_t at, int64_t j, void *context);

static void for_each_element(const gr_params *params, visit *call, void *context) {
    for (int i = 0; i < params->n; i++)
        for (uint32_t k = 0; k < params->list[i].n_matrix; k++) {
            const gr_param *p = &params->list[i];
            char name[128];
            gr_param_name(params, p, k, name);
            for (int64_t j = 0; j < gr_param_size(p); j++)
                call(p, name, p->offset + k * p->stride + j, j, context);
        }
}

static void fill(const gr_param *p, const char *name, int64_t at, int64_t j, void *context) {
    (void)p;
    float *g = context;
    g[at] = part(name, j, comm->rank[GR_WORLD]);
}

static void check(const gr_param *p, const char *name, int64_t at, int64_t j, void *context) {
    const float *g = context;
    bool expert = p->owner == GR_EDP;
    assert_true(g[at] == total(name, j, expert ? comm->rank[GR_EP] : 0, expert ? 2 : 1));
}

typedef struct squares {
    const uint16_t *rank_of;
    double sum;
} squares;

/* Over all experts of the model: whichever ranks hold them. */
static void add_square(const gr_param *p, const char *name, int64_t at, int64_t j, void *context) {
    (void)at;
    squares *s = context;
    unsigned expert = 0;
    const char *number = strstr(name, "experts.");
    if (number)
        expert = (unsigned)strtoul(number + strlen("experts."), NULL, 10);
    bool is_expert = p->owner == GR_EDP;
    double g = (double)total(name, j, is_expert ? s->rank_of[expert] : 0, is_expert ? 2 : 1);
    s->sum += g * g;
}

static void gradients_are_summed_where_weights_are_shared_and_counted_once(void **state) {
    (void)state;
    weights_fixture f, whole;
    fixture_open(&f, 2, (uint32_t)comm->rank[GR_EP]);
    fixture_open(&whole, 1, 0);
    float *g = calloc((size_t)f.params.n_element, sizeof *g);
    for_each_element(&f.params, fill, g);
    assert_int_equal(gr_gradients_reduce(&f.params, comm, g), GR_OK);
    for_each_element(&f.params, check, g);

    squares expected = {.rank_of = f.rank_of};
    for_each_element(&whole.params, add_square, &expected);
    double norm, same;
    assert_int_equal(gr_gradients_squares(&f.params, backend, comm, g, &norm), GR_OK);
    assert_int_equal(comm->sum(comm, GR_WORLD, GR_F64, &norm, 1), GR_OK);
    norm = sqrt(norm);
    assert_true(fabs(norm - sqrt(expected.sum)) <= 1e-12 * norm);
    same = comm->rank[GR_WORLD] == 0 ? norm : 0;
    assert_int_equal(comm->bcast(comm, GR_WORLD, &same, sizeof same, 0), GR_OK);
    assert_true(same == norm);
    free(g);
    fixture_close(&whole);
    fixture_close(&f);
}

static void one_bad_expert_gradient_makes_every_rank_skip(void **state) {
    (void)state;
    weights_fixture f;
    fixture_open(&f, 2, (uint32_t)comm->rank[GR_EP]);
    gr_optimizer_options o = {.backend = backend,
        .comm = comm,
        .params = &f.params,
        .lr = {.schedule = GR_SCHEDULE_CONSTANT, .lr = 1e-3},
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .clip = 1};
    gr_optimizer *optimizer;
    gr_update u;
    assert_int_equal(gr_optimizer_open(&optimizer, &o), GR_OK);
    float *g = calloc((size_t)f.params.n_element, sizeof *g);
    if (comm->rank[GR_WORLD] == 3)
        g[f.params.n_element - 1] = NAN;
    assert_int_equal(gr_optimizer_step(optimizer, 0, 1, gr_weights_whole(&f.params, f.flat), g, &u), GR_OK);
    assert_true(u.skipped);
    memset(g, 0, (size_t)f.params.n_element * sizeof *g);
    assert_int_equal(gr_optimizer_step(optimizer, 1, 1, gr_weights_whole(&f.params, f.flat), g, &u), GR_OK);
    assert_false(u.skipped);
    free(g);
    gr_optimizer_close(optimizer);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_summed_where_weights_are_shared_and_counted_once),
        cmocka_unit_test(one_bad_expert_gradient_makes_every_rank_skip),
    };
    gr_err err = gr_comm_open(&comm, "mpi");
    if (!err)
        err = gr_comm_group(comm, 2);
    if (!err)
        err = gr_backend_open(&backend, "cpu", GR_F32);
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_backend_close(backend);
    gr_comm_close(comm, GR_OK);
    return failed;
}
