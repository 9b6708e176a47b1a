#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

#include "grouter/optim.h"
#include "ref.h"
#include "weights_fixture.h"

static gr_backend *backend;
static gr_comm *comm;

/* A model's worth of weights and gradients in backend memory, and an optimizer on them. */
typedef struct trainee {
    weights_fixture f;
    gr_optimizer *optimizer;
    gr_optimizer_options options;
    size_t n;
    float *w, *g;
} trainee;

static float *floats(size_t n) {
    void *p;
    assert_int_equal(backend->alloc(backend, n * sizeof(float), "test", &p), GR_OK);
    return p;
}

static void trainee_open(trainee *t, double clip) {
    fixture_open(&t->f, 1, 0);
    t->n = (size_t)t->f.params.n_element;
    t->w = floats(t->n);
    t->g = floats(t->n);
    memcpy(t->w, t->f.flat, t->n * sizeof(float));
    t->options = (gr_optimizer_options){.backend = backend,
        .comm = comm,
        .params = &t->f.params,
        .lr = {.schedule = GR_SCHEDULE_COSINE, .lr = 1e-3, .lr_min = 1e-4, .warmup_steps = 50, .decay_steps = 800},
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .clip = clip};
    assert_int_equal(gr_optimizer_open(&t->optimizer, &t->options), GR_OK);
}

static void trainee_close(trainee *t) {
    gr_optimizer_close(t->optimizer);
    backend->release(backend, t->g);
    backend->release(backend, t->w);
    fixture_close(&t->f);
}

/* Gradients of `step` for every parameter, 0 in the padding; their size grows over two decades every 10 steps. */
static void gradients_fill(trainee *t, int64_t step) {
    float size = 0.01f * powf(10, (float)(step % 10) / 5);
    memset(t->g, 0, t->n * sizeof(float));
    for (int i = 0; i < t->f.params.n; i++) {
        const gr_param *p = &t->f.params.list[i];
        for (uint32_t k = 0; k < p->n_matrix; k++)
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                t->g[at] = size * gr_random_normal(9, (uint64_t)step, (uint64_t)at);
            }
    }
}

static gr_update update(trainee *t, int64_t step, double loss) {
    gr_update u;
    assert_int_equal(
        gr_optimizer_step(t->optimizer, step, loss, gr_weights_whole(&t->f.params, t->w), t->g, &u), GR_OK);
    return u;
}

typedef struct reference {
    double *w, *m, *v, *g;
} reference;

static void reference_step(const trainee *t, reference *r, int64_t step, double lr, double norm) {
    for (size_t i = 0; i < t->n; i++)
        r->g[i] = (double)t->g[i];
    ref_adamw o = {.lr = lr,
        .beta1 = t->options.beta1,
        .beta2 = t->options.beta2,
        .eps = t->options.eps,
        .grad_scale = norm > t->options.clip ? t->options.clip / norm : 1,
        .step = step + 1};
    for (int i = 0; i < t->f.params.n; i++) {
        const gr_param *p = &t->f.params.list[i];
        o.weight_decay = strstr(p->name, "norm") ? 0 : t->options.weight_decay;
        for (uint32_t k = 0; k < p->n_matrix; k++) {
            int64_t at = p->offset + k * p->stride;
            ref_adamw_update(&o, gr_param_size(p), r->g + at, r->w + at, r->m + at, r->v + at);
        }
    }
}

static double norm_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void a_thousand_steps_follow_the_double_reference(void **state) {
    (void)state;
    trainee t;
    trainee_open(&t, 5); /* clips the larger half of the steps */
    reference r = {ref_alloc((int64_t)t.n), ref_alloc((int64_t)t.n), ref_alloc((int64_t)t.n), ref_alloc((int64_t)t.n)};
    for (size_t i = 0; i < t.n; i++)
        r.w[i] = (double)t.w[i];
    int n_clipped = 0;
    for (int64_t step = 0; step < 1000; step++) {
        gradients_fill(&t, step);
        double norm = norm_of(t.g, t.n), lr = gr_lr_at(&t.options.lr, step);
        gr_update u = update(&t, step, 1);
        assert_false(u.skipped);
        assert_true(u.lr == lr);
        assert_true(fabs(u.grad_norm - norm) <= 1e-6 * norm);
        n_clipped += norm > t.options.clip;
        reference_step(&t, &r, step, lr, norm);
    }
    assert_true(n_clipped > 100 && n_clipped < 900);
    for (int i = 0; i < t.f.params.n; i++) {
        const gr_param *p = &t.f.params.list[i];
        double error = 0, size = 0;
        for (uint32_t k = 0; k < p->n_matrix; k++)
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                error += pow((double)t.w[at] - r.w[at], 2);
                size += r.w[at] * r.w[at];
                t.w[at] = 0;
            }
        if (!(sqrt(error) <= 1e-5 * sqrt(size)))
            fail_msg("%s: |difference| %g, |weights| %g", p->name, sqrt(error), sqrt(size));
    }
    assert_true(norm_of(t.w, t.n) == 0); /* what is left is padding */
    free(r.w);
    free(r.m);
    free(r.v);
    free(r.g);
    trainee_close(&t);
}

static void matrices_decay_and_norms_do_not(void **state) {
    (void)state;
    trainee t;
    trainee_open(&t, 1);
    gr_update u = update(&t, 49, 1);
    assert_true(u.grad_norm == 0 && !u.skipped);
    for (int i = 0; i < t.f.params.n; i++) {
        const gr_param *p = &t.f.params.list[i];
        double kept = strstr(p->name, "norm") ? 1 : 1 - 1e-3 * 0.1;
        for (uint32_t k = 0; k < p->n_matrix; k++)
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                double before = (double)t.f.flat[at];
                assert_true(fabs((double)t.w[at] - kept * before) <= (kept == 1 ? 0 : 1e-7 * fabs(before)));
            }
    }
    trainee_close(&t);
}

/* What happens in an update, in order: p a piece is reduced beside COMPUTE, j COMPUTE joins, s squares are summed. */
static char happened[64];

static void happens(char what) {
    size_t n = strlen(happened);
    assert_true(n + 1 < sizeof happened);
    happened[n] = what;
}

static gr_err piece_seen(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    assert_true(c->beside && c->traffic == GR_TRAFFIC_GRADIENTS && dtype == GR_F32);
    assert_true(data && p.n > 0 && g != GR_EP);
    c->traffic = GR_TRAFFIC_OTHER;
    happens('p');
    return GR_OK;
}

static gr_err join_seen(gr_comm *c) {
    assert_false(c->beside);
    happens('j');
    return GR_OK;
}

static gr_err (*sum_squares)(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out);
static gr_err squares_seen(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out) {
    happens('s');
    return sum_squares(b, lane, x, n, out);
}

static void gradients_reduced_by_parts_are_waited_for_before_the_norm(void **state) {
    (void)state;
    trainee t;
    const gr_comm before = *comm;
    sum_squares = backend->sum_squares;
    trainee_open(&t, 1);
    gr_optimizer_close(t.optimizer);
    t.options.zero = GR_ZERO_1;
    assert_int_equal(gr_optimizer_open(&t.optimizer, &t.options), GR_OK);
    comm->reduce_piece = piece_seen;
    comm->join = join_seen;
    backend->sum_squares = squares_seen;
    const int64_t n_dense = t.f.params.n_dense, n = (int64_t)t.n;
    for (int64_t step = 0; step < 2; step++) { /* by parts, then whole */
        const gr_share parts[] = {{n_dense - 16, 16}, {n_dense, n - n_dense}, {0, n_dense - 16}};
        memset(happened, 0, sizeof happened);
        gradients_fill(&t, step);
        for (size_t i = 0; i < 3 && step == 0; i++)
            assert_int_equal(gr_optimizer_reduce_part(t.optimizer, t.g, parts[i]), GR_OK);
        assert_false(update(&t, step, 1).skipped);
        assert_string_equal(happened, step == 0 ? "pppjss" : "ss");
    }
    *comm = before;
    backend->sum_squares = sum_squares;
    trainee_close(&t);
}

/* Runs `step` so that it must be skipped, and checks that no weight changed. */
static void step_skipped(trainee *t, int64_t step, size_t bad, float value, double loss) {
    float *before = malloc(t->n * sizeof(float));
    memcpy(before, t->w, t->n * sizeof(float));
    gradients_fill(t, step);
    t->g[bad] = value;
    gr_update u = update(t, step, loss);
    assert_true(u.skipped);
    assert_memory_equal(before, t->w, t->n * sizeof(float));
    free(before);
}

static void a_skipped_step_leaves_weights_and_moments_as_they_were(void **state) {
    (void)state;
    trainee disturbed, calm;
    trainee_open(&disturbed, 1);
    trainee_open(&calm, 1);
    gradients_fill(&disturbed, 0);
    gradients_fill(&calm, 0);
    update(&disturbed, 0, 1);
    update(&calm, 0, 1);
    step_skipped(&disturbed, 1, 0, NAN, 1);
    step_skipped(&disturbed, 2, (size_t)disturbed.f.params.n_dense, -INFINITY, 1);
    step_skipped(&disturbed, 3, 0, 0, (double)NAN);
    gradients_fill(&disturbed, 4);
    gradients_fill(&calm, 4);
    update(&disturbed, 4, 1);
    update(&calm, 4, 1);
    assert_memory_equal(disturbed.w, calm.w, calm.n * sizeof(float));
    trainee_close(&disturbed);
    trainee_close(&calm);
}

/* At a constant rate a step that is skipped leaves no trace at all. */
static void the_moment_correction_counts_applied_updates(void **state) {
    (void)state;
    trainee t[2];
    for (int i = 0; i < 2; i++) {
        trainee_open(&t[i], 1);
        gr_optimizer_close(t[i].optimizer);
        t[i].options.lr = (gr_lr){.schedule = GR_SCHEDULE_CONSTANT, .lr = 1e-3};
        assert_int_equal(gr_optimizer_open(&t[i].optimizer, &t[i].options), GR_OK);
        gradients_fill(&t[i], 0);
        update(&t[i], 0, 1);
        if (i == 1)
            step_skipped(&t[i], 1, 0, NAN, 1);
        gradients_fill(&t[i], 1);
        update(&t[i], 1 + i, 1);
        assert_int_equal(gr_optimizer_counts_get(t[i].optimizer).n_applied, 2);
    }
    assert_memory_equal(t[0].w, t[1].w, t[0].n * sizeof(float));
    trainee_close(&t[1]);
    trainee_close(&t[0]);
}

static void the_fourth_skip_in_a_row_ends_the_run(void **state) {
    (void)state;
    trainee t;
    trainee_open(&t, 1);
    for (int64_t step = 0; step < 3; step++)
        step_skipped(&t, step, 0, 0, (double)INFINITY);
    gradients_fill(&t, 3);
    update(&t, 3, 1); /* the count starts again */
    for (int64_t step = 4; step < 7; step++)
        step_skipped(&t, step, 0, 0, (double)INFINITY);
    float *before = malloc(t.n * sizeof(float));
    memcpy(before, t.w, t.n * sizeof(float));
    gr_update u;
    gradients_fill(&t, 7);
    assert_int_equal(
        gr_optimizer_step(t.optimizer, 7, (double)INFINITY, gr_weights_whole(&t.f.params, t.w), t.g, &u), GR_NONFINITE);
    assert_memory_equal(before, t.w, t.n * sizeof(float));
    assert_non_null(strstr(gr_error_text(), "step 8: "));
    assert_non_null(strstr(gr_error_text(), "got loss inf, norm "));
    free(before);
    trainee_close(&t);
}

static void a_norm_whose_square_no_float_holds_is_clipped_or_else_skipped(void **state) {
    (void)state;
    trainee t;
    trainee_open(&t, 1);
    t.g[0] = 3e30f;
    t.g[t.f.params.n_dense] = 4e30f;
    gr_update u = update(&t, 100, 1);
    assert_false(u.skipped);
    assert_true(fabs(u.grad_norm - 5e30) < 1e24);
    for (size_t i = 0; i < t.n; i++)
        assert_true(isfinite(t.w[i]));
    trainee_close(&t);
    trainee_open(&t, 0); /* without clipping its second moment would be infinite, its weight stuck */
    step_skipped(&t, 100, 0, 3e30f, 1);
    trainee_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thousand_steps_follow_the_double_reference),
        cmocka_unit_test(matrices_decay_and_norms_do_not),
        cmocka_unit_test(gradients_reduced_by_parts_are_waited_for_before_the_norm),
        cmocka_unit_test(a_skipped_step_leaves_weights_and_moments_as_they_were),
        cmocka_unit_test(the_moment_correction_counts_applied_updates),
        cmocka_unit_test(the_fourth_skip_in_a_row_ends_the_run),
        cmocka_unit_test(a_norm_whose_square_no_float_holds_is_clipped_or_else_skipped),
    };
    gr_err err = gr_backend_open(&backend, "cpu", GR_F32);
    if (!err)
        err = gr_comm_open(&comm, "self");
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
    return failed;
}
