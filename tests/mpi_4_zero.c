/* mpi_4_zero.c: four ranks in every expert-parallel size: who holds and owns which moments, and that sharding them
 * changes memory and nothing else. */
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

/* This rank's share of a model in training. Weights are f.flat. */
typedef struct trainee {
    weights_fixture f;
    gr_optimizer_options options;
    gr_optimizer *optimizer;
    float *gradients;
    size_t n_byte; /* of weights, of gradients */
} trainee;

static void trainee_open(trainee *t, int R_ep, gr_zero zero) {
    assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
    fixture_open_sharded(&t->f, (uint32_t)R_ep, (uint32_t)comm->rank[GR_EP], comm->size[GR_WORLD], comm->size[GR_EDP]);
    t->n_byte = (size_t)t->f.params.n_element * sizeof(float);
    t->gradients = malloc(t->n_byte);
    assert_non_null(t->gradients);
    t->options = (gr_optimizer_options){.backend = backend,
        .comm = comm,
        .params = &t->f.params,
        .zero = zero,
        .lr = {.schedule = GR_SCHEDULE_CONSTANT, .lr = 1e-2},
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .clip = 1};
    assert_int_equal(gr_optimizer_open(&t->optimizer, &t->options), GR_OK);
}

static void trainee_close(trainee *t) {
    gr_optimizer_close(t->optimizer);
    free(t->gradients);
    fixture_close(&t->f);
}

static void for_each_layout(void (*check)(int R_ep, gr_zero zero)) {
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2) {
        check(R_ep, GR_ZERO_OFF);
        check(R_ep, GR_ZERO_1);
    }
}

/* This rank's part of the gradients of `step`: 0 where no parameter is. */
static void gradients_fill(trainee *t, int64_t step) {
    const gr_params *params = &t->f.params;
    memset(t->gradients, 0, t->n_byte);
    for (int i = 0; i < params->n; i++)
        for (uint32_t k = 0; k < params->list[i].n_matrix; k++) {
            const gr_param *p = &params->list[i];
            char name[128];
            uint64_t stream = gr_stream_id(gr_param_name(params, p, k, name));
            uint64_t place = (uint64_t)(4 * step + comm->rank[GR_WORLD]) << 32;
            float *g = t->gradients + p->offset + k * p->stride;
            for (int64_t j = 0; j < gr_param_size(p); j++)
                g[j] = 0.1f * gr_random_normal(5, stream, place + (uint64_t)j);
        }
}

static gr_update update(trainee *t, int64_t step) {
    gr_update u;
    assert_int_equal(
        gr_optimizer_step(t->optimizer, step, 1, gr_weights_whole(&t->f.params, t->f.flat), t->gradients, &u), GR_OK);
    return u;
}

static void train(trainee *t, int64_t first, int64_t n_step) {
    for (int64_t step = first; step < first + n_step; step++) {
        gradients_fill(t, step);
        assert_false(update(t, step).skipped);
    }
}

static uint64_t world_total(int64_t n) {
    uint64_t total = (uint64_t)n;
    assert_int_equal(comm->sum(comm, GR_WORLD, GR_U64, &total, 1), GR_OK);
    return total;
}

/* ---------------------------------------------------------------- who keeps what */

static bool owns(const gr_moments owned[2], int64_t at) {
    bool dense = at >= owned[0].first && at < owned[0].first + owned[0].n;
    bool expert = at >= owned[1].first && at < owned[1].first + owned[1].n;
    return dense || expert;
}

/* Counts owners by the element's place in the model of one rank, whose table has the same entries. */
static void check_one_owner(int R_ep, gr_zero zero) {
    trainee t;
    weights_fixture whole;
    trainee_open(&t, R_ep, zero);
    fixture_open(&whole, 1, 0);
    size_t n = (size_t)whole.params.n_element, n_param = 0;
    uint64_t *owners = calloc(n, sizeof *owners);
    bool *is_param = calloc(n, sizeof *is_param);
    gr_moments owned[2];
    gr_optimizer_owned(t.optimizer, owned);
    for (int i = 0; i < t.f.params.n; i++) {
        const gr_param *p = &t.f.params.list[i], *q = &whole.params.list[i];
        assert_string_equal(p->name, q->name);
        for (uint32_t k = 0; k < p->n_matrix; k++) {
            uint32_t expert = t.f.expert_at[t.f.params.ep_rank * t.f.map.E_local + k];
            int64_t to = q->offset + (p->owner == GR_EDP ? whole.slot_of[expert] * q->stride : 0);
            for (int64_t j = 0; j < gr_param_size(p); j++)
                owners[to + j] += owns(owned, p->offset + k * p->stride + j);
        }
        for (uint32_t k = 0; k < q->n_matrix; k++)
            memset(is_param + q->offset + k * q->stride, true, (size_t)gr_param_size(q));
    }
    assert_int_equal(comm->sum(comm, GR_WORLD, GR_U64, owners, n), GR_OK);
    for (size_t i = 0; i < n; i++) {
        n_param += is_param[i];
        if (owners[i] != is_param[i])
            fail_msg("R_ep %d, ZeRO %d: element %zu has %d owners", R_ep, (int)zero, i, (int)owners[i]);
    }
    assert_true(n_param > 1000 && n_param < n);
    free(is_param);
    free(owners);
    fixture_close(&whole);
    trainee_close(&t);
}

static void every_element_has_one_owner(void **state) {
    (void)state;
    for_each_layout(check_one_owner);
}

static void check_owned_within_held(int R_ep, gr_zero zero) {
    trainee t;
    trainee_open(&t, R_ep, zero);
    gr_moments held[2], owned[2];
    gr_optimizer_held(t.optimizer, held);
    gr_optimizer_owned(t.optimizer, owned);
    for (int i = 0; i < 2; i++) {
        for (int64_t j = 0; j < held[i].n; j++) {
            held[i].m[j] = (float)(held[i].first + j);
            held[i].v[j] = (float)(held[i].first + j) + 0.5f;
        }
        for (int64_t j = 0; j < owned[i].n; j++) {
            assert_true(owned[i].m[j] == (float)(owned[i].first + j));
            assert_true(owned[i].v[j] == (float)(owned[i].first + j) + 0.5f);
        }
        if (zero == GR_ZERO_1)
            assert_true(owned[i].first == held[i].first && owned[i].n == held[i].n);
    }
    trainee_close(&t);
}

static void what_a_rank_owns_is_among_what_it_holds(void **state) {
    (void)state;
    for_each_layout(check_owned_within_held);
}

static void check_memory(int R_ep, gr_zero zero) {
    trainee t;
    trainee_open(&t, R_ep, zero);
    gr_moments held[2];
    gr_optimizer_held(t.optimizer, held);
    int64_t n_held = held[0].n + held[1].n, n_dense = t.f.params.n_dense;
    int64_t model = n_dense + R_ep * (t.f.params.n_element - n_dense); /* each expert once */
    if (zero == GR_ZERO_1)
        assert_true(4 * n_held == model);
    else
        assert_true(n_held == t.f.params.n_element && world_total(n_held) > (uint64_t)model);
    trainee_close(&t);
}

static void sharded_each_of_four_ranks_keeps_a_quarter_of_the_moments(void **state) {
    (void)state;
    for_each_layout(check_memory);
}

/* ---------------------------------------------------------------- sharding changes nothing else */

static void check_same_weights(int R_ep) {
    trainee whole, sharded, again;
    trainee_open(&whole, R_ep, GR_ZERO_OFF);
    train(&whole, 0, 20);
    trainee_open(&sharded, R_ep, GR_ZERO_1);
    train(&sharded, 0, 20);
    trainee_open(&again, R_ep, GR_ZERO_1);
    train(&again, 0, 20);
    assert_memory_equal(sharded.f.flat, again.f.flat, sharded.n_byte);
    double worst = 0;
    for (int i = 0; i < whole.f.params.n; i++) {
        const gr_param *p = &whole.f.params.list[i];
        double difference = 0, size = 0;
        for (uint32_t k = 0; k < p->n_matrix; k++)
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                difference += pow((double)whole.f.flat[at] - (double)sharded.f.flat[at], 2);
                size += pow((double)whole.f.flat[at], 2);
            }
        worst = fmax(worst, sqrt(difference / size));
    }
    print_message("R_ep %d: weights differ by %.2g\n", R_ep, worst);
    assert_true(worst <= 1e-6);
    trainee_close(&again);
    trainee_close(&sharded);
    trainee_close(&whole);
}

static void twenty_sharded_steps_give_the_weights_of_unsharded_ones(void **state) {
    (void)state;
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2)
        check_same_weights(R_ep);
}

static void assert_zero_outside_parameters(const gr_params *params, const float *x, int64_t first, int64_t n) {
    bool *is_param = calloc((size_t)params->n_element, sizeof *is_param);
    for (int i = 0; i < params->n; i++)
        for (uint32_t k = 0; k < params->list[i].n_matrix; k++)
            memset(is_param + params->list[i].offset + k * params->list[i].stride, true,
                (size_t)gr_param_size(&params->list[i]));
    assert_false(is_param[params->n_dense - 1] && is_param[params->n_element - 1]);
    for (int64_t i = 0; i < n; i++)
        assert_true(is_param[first + i] || x[i] == 0);
    free(is_param);
}

static void check_padding(int R_ep, gr_zero zero) {
    trainee t;
    trainee_open(&t, R_ep, zero);
    train(&t, 0, 5);
    gr_moments held[2];
    gr_optimizer_held(t.optimizer, held);
    assert_zero_outside_parameters(&t.f.params, t.f.flat, 0, t.f.params.n_element);
    for (int i = 0; i < 2; i++) {
        assert_zero_outside_parameters(&t.f.params, held[i].m, held[i].first, held[i].n);
        assert_zero_outside_parameters(&t.f.params, held[i].v, held[i].first, held[i].n);
    }
    trainee_close(&t);
}

static void padding_stays_zero(void **state) {
    (void)state;
    for_each_layout(check_padding);
}

/* ---------------------------------------------------------------- skipping and continuing */

/* Copies of all moments held: [first of 0, 1 | second of 0, 1]; the caller frees them. */
static float *moments_copy(gr_optimizer *o, size_t *n_byte) {
    gr_moments held[2];
    gr_optimizer_held(o, held);
    *n_byte = 2 * (size_t)(held[0].n + held[1].n) * sizeof(float);
    float *copy = malloc(*n_byte), *to = copy;
    for (int i = 0; i < 4; i++) {
        const gr_moments *h = &held[i % 2];
        memcpy(to, i < 2 ? h->m : h->v, (size_t)h->n * sizeof(float));
        to += h->n;
    }
    return copy;
}

static void check_skip(int R_ep, gr_zero zero) {
    trainee t;
    trainee_open(&t, R_ep, zero);
    train(&t, 0, 3);
    size_t n_byte;
    float *moments = moments_copy(t.optimizer, &n_byte), *weights = malloc(t.n_byte);
    memcpy(weights, t.f.flat, t.n_byte);
    for (int bad = 0; bad < 2; bad++) { /* one element of one rank: dense, expert */
        gradients_fill(&t, 3);
        if (comm->rank[GR_WORLD] == 3)
            t.gradients[bad ? t.f.params.n_dense : 0] = bad ? NAN : INFINITY;
        assert_true(update(&t, 3 + bad).skipped);
        gr_optimizer_counts counts = gr_optimizer_counts_get(t.optimizer);
        assert_true(counts.n_applied == 3 && counts.n_skipped == bad + 1);
    }
    float *after = moments_copy(t.optimizer, &n_byte);
    assert_memory_equal(moments, after, n_byte);
    assert_memory_equal(weights, t.f.flat, t.n_byte);
    train(&t, 5, 1);
    assert_int_equal(gr_optimizer_counts_get(t.optimizer).n_skipped, 0);
    free(after);
    free(weights);
    free(moments);
    trainee_close(&t);
}

static void a_skipped_step_leaves_every_rank_as_it_was(void **state) {
    (void)state;
    for_each_layout(check_skip);
}

static void check_continuation(int R_ep, gr_zero zero) {
    trainee t, resumed;
    trainee_open(&t, R_ep, zero);
    trainee_open(&resumed, R_ep, zero);
    train(&t, 0, 3);
    gr_moments from[2], to[2];
    gr_optimizer_held(t.optimizer, from);
    gr_optimizer_held(resumed.optimizer, to);
    for (int i = 0; i < 2; i++) {
        memcpy(to[i].m, from[i].m, (size_t)from[i].n * sizeof(float));
        memcpy(to[i].v, from[i].v, (size_t)from[i].n * sizeof(float));
    }
    memcpy(resumed.f.flat, t.f.flat, t.n_byte);
    gr_optimizer_counts_set(resumed.optimizer, gr_optimizer_counts_get(t.optimizer));
    train(&t, 3, 3);
    train(&resumed, 3, 3);
    assert_memory_equal(t.f.flat, resumed.f.flat, t.n_byte);
    trainee_close(&resumed);
    trainee_close(&t);
}

static void moments_and_counts_are_all_it_takes_to_continue(void **state) {
    (void)state;
    for_each_layout(check_continuation);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element_has_one_owner),
        cmocka_unit_test(what_a_rank_owns_is_among_what_it_holds),
        cmocka_unit_test(sharded_each_of_four_ranks_keeps_a_quarter_of_the_moments),
        cmocka_unit_test(twenty_sharded_steps_give_the_weights_of_unsharded_ones),
        cmocka_unit_test(padding_stays_zero),
        cmocka_unit_test(a_skipped_step_leaves_every_rank_as_it_was),
        cmocka_unit_test(moments_and_counts_are_all_it_takes_to_continue),
    };
    gr_err err = gr_comm_open(&comm, "mpi");
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
