/* Memory, copies, lanes and counters of backend cuda, on a GPU: skipped where there is none. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"

#include "backend/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static gr_backend *backend;

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

static void *memory_of(size_t n_byte) {
    void *p;
    assert_int_equal(backend->alloc(backend, n_byte, "test", &p), 0);
    return p;
}

static void memory_is_zeroed_and_aligned(void **state) {
    (void)state;
    static const size_t size[] = {0, 1, 4097, (5 << 20) + 3, 40 << 20};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        uint8_t *p = memory_of(size[i]), *host = malloc(size[i] + 1);
        assert_non_null(host);
        memset(host, 0xff, size[i] + 1);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_true(backend->owns(backend, p));
        assert_false(backend->owns(backend, host));
        assert_int_equal(backend->download(backend, GR_LANE_COMM, host, p, size[i]), 0);
        assert_int_equal(backend->sync(backend), 0);
        for (size_t j = 0; j < size[i]; j++)
            assert_int_equal(host[j], 0);
        assert_int_equal(host[size[i]], 0xff);
        backend->release(backend, p);
        free(host);
    }
}

static void memory_that_is_not_there_is_an_error_naming_its_use(void **state) {
    (void)state;
    void *p;
    assert_int_equal(backend->alloc(backend, (size_t)1 << 50, "weights", &p), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "weights"));
    assert_non_null(strstr(gr_error_text(), "GiB are free"));
    assert_null(p);
    backend->release(backend, memory_of(100)); /* it goes on */
}

/* Through every lane, with the host's array overwritten at once, and more of them than the ring holds. */
static void copies_arrive_whole_though_the_host_goes_on(void **state) {
    (void)state;
    enum { N = (9 << 20) + 5, RUNS = 9 };
    uint8_t *host = malloc(N), *back = malloc(N), *p[RUNS], *q = memory_of(N);
    assert_true(host && back);
    for (int run = 0; run < RUNS; run++)
        p[run] = memory_of(N);
    for (int run = 0; run < RUNS; run++) {
        for (size_t i = 0; i < N; i++)
            host[i] = (uint8_t)(i * 31 + (size_t)run * 7 + (i >> 8));
        assert_int_equal(backend->upload(backend, (gr_lane)(run % GR_N_LANE), p[run], host, N), 0);
    }
    memset(host, 0, N);
    for (int run = 0; run < RUNS; run++) {
        const gr_lane lane = (gr_lane)(run % GR_N_LANE);
        assert_int_equal(backend->copy(backend, lane, q, p[run], N), 0);
        assert_int_equal(backend->fill_zero(backend, lane, q, 3), 0);
        assert_int_equal(backend->download(backend, lane, back, q, N), 0);
        for (size_t i = 0; i < N; i++)
            if (back[i] != (i < 3 ? 0 : (uint8_t)(i * 31 + (size_t)run * 7 + (i >> 8))))
                fail_msg("byte %zu of upload %d", i, run);
    }
    for (int run = 0; run < RUNS; run++)
        backend->release(backend, p[run]);
    backend->release(backend, q);
    free(host);
    free(back);
}

/* COMPUTE has much to do; SIDE, told to wait, must see its result. */
static void a_lane_waits_for_another(void **state) {
    (void)state;
    enum { SIDE_LENGTH = 512 };
    const size_t n = (size_t)SIDE_LENGTH * SIDE_LENGTH;
    float *host = check_random(1, (int64_t)n), *first = malloc(4096 * sizeof *first),
          *second = malloc(4096 * sizeof *second);
    assert_true(first && second);
    float *x = memory_of(n * sizeof *x), *y = memory_of(n * sizeof *y), *z = memory_of(n * sizeof *z);
    assert_int_equal(backend->upload(backend, GR_LANE_COMPUTE, x, host, n * sizeof *x), 0);
    const gr_gemm g = {.layout = GR_NN,
        .m = SIDE_LENGTH,
        .n = SIDE_LENGTH,
        .k = SIDE_LENGTH,
        .a = x,
        .lda = SIDE_LENGTH,
        .b = x,
        .ldb = SIDE_LENGTH,
        .c = y,
        .ldc = SIDE_LENGTH,
        .c_dtype = GR_F32};
    for (int run = 0; run < 3; run++)
        assert_int_equal(backend->gemm(backend, GR_LANE_COMPUTE, &g), 0);
    assert_int_equal(backend->wait(backend, GR_LANE_SIDE, GR_LANE_COMPUTE), 0);
    assert_int_equal(backend->copy(backend, GR_LANE_SIDE, z, y, n * sizeof *z), 0);
    assert_int_equal(backend->download(backend, GR_LANE_SIDE, first, z + n - 4096, 4096 * sizeof *first), 0);
    assert_int_equal(backend->sync(backend), 0);
    assert_int_equal(backend->download(backend, GR_LANE_COMPUTE, second, y + n - 4096, 4096 * sizeof *second), 0);
    assert_memory_equal(first, second, 4096 * sizeof *first);
    for (int i = 0; i < 4096; i++)
        assert_true(first[i] != 0);
    assert_non_null(backend->lane_native(backend, GR_LANE_COMPUTE));
    assert_ptr_not_equal(backend->lane_native(backend, GR_LANE_COMPUTE), backend->lane_native(backend, GR_LANE_SIDE));
    backend->release(backend, x), backend->release(backend, y), backend->release(backend, z);
    free(host), free(first), free(second);
}

/* What a step of fixed routes is made of: nothing of it comes back or makes the host wait, from the second time on. */
static void ops_and_uploads_wait_for_nothing(void **state) {
    (void)state;
    enum { D = 64, F = 32, N_PAIR = 100, N_EXPERT = 5 };
    static const uint32_t offset[N_EXPERT + 1] = {0, 0, 30, 31, 70, N_PAIR};
    uint32_t row[N_PAIR];
    for (uint32_t p = 0; p < N_PAIR; p++)
        row[p] = p * 7 % N_PAIR;
    const size_t size = sizeof(float);
    gr_ffn a = {.n_expert = N_EXPERT,
        .D = D,
        .F = F,
        .n_pair = N_PAIR,
        .expert_offset = offset,
        .x = memory_of(N_PAIR * D * size),
        .w13 = memory_of(N_EXPERT * 2 * F * D * size),
        .w2 = memory_of(N_EXPERT * D * F * size),
        .h = memory_of(N_PAIR * 2 * F * size),
        .a = memory_of(N_PAIR * F * size),
        .y = memory_of(N_PAIR * D * size),
        .dy = memory_of(N_PAIR * D * size),
        .da = memory_of(N_PAIR * F * size),
        .dw13 = memory_of(N_EXPERT * 2 * F * D * size),
        .dw2 = memory_of(N_EXPERT * D * F * size),
        .dx = memory_of(N_PAIR * D * size)};
    double *sum = memory_of(2 * sizeof *sum); /* squares, loss */
    gr_decision *decision = memory_of(sizeof *decision);
    float *moments = memory_of(2 * N_EXPERT * 2 * F * D * size);
    const gr_adamw_range range = {.n = N_EXPERT * 2 * F * D, .decay = true};
    gr_adamw update = {.n = range.n,
        .step = 1,
        .lr = 1e-3f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .decision = decision,
        .range = &range,
        .n_range = 1,
        .p = (float *)(uintptr_t)a.w13,
        .m = moments,
        .v = moments + range.n,
        .g = a.dw13};
    void *rows = memory_of(sizeof row);
    a.pair_row = rows;
    uint64_t n_sync = 0, n_download = 0;
    for (int step = 0; step < 3; step++) {
        assert_int_equal(backend->upload(backend, GR_LANE_SIDE, rows, row, sizeof row), 0);
        assert_int_equal(backend->wait(backend, GR_LANE_COMPUTE, GR_LANE_SIDE), 0);
        assert_int_equal(backend->ffn_forward(backend, GR_LANE_COMPUTE, &a), 0);
        assert_int_equal(backend->ffn_backward(backend, GR_LANE_COMPUTE, &a), 0);
        assert_int_equal(backend->sum_squares(backend, GR_LANE_COMPUTE, a.dw13, N_EXPERT * 2 * F * D, sum), 0);
        assert_int_equal(backend->decide(backend, GR_LANE_COMPUTE,
                             &(gr_decide){.clip = 1, .squares = sum, .loss = sum + 1, .out = decision}),
            0);
        assert_int_equal(backend->adamw(backend, GR_LANE_COMPUTE, &update), 0);
        if (step > 0) {
            assert_int_equal(backend->n_sync, n_sync);
            assert_int_equal(backend->n_download, n_download);
        }
        n_sync = backend->n_sync; /* scratch has grown in the first */
        n_download = backend->n_download;
    }
    double host;
    assert_int_equal(backend->download(backend, GR_LANE_COMPUTE, &host, sum, sizeof host), 0);
    assert_int_equal(backend->sync(backend), 0);
    assert_int_equal(backend->n_download, n_download + 1);
    assert_true(backend->n_sync > n_sync);
    const void *all[] = {
        a.x, a.w13, a.w2, a.h, a.a, a.y, a.dy, a.da, a.dw13, a.dw2, a.dx, sum, decision, moments, rows};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        backend->release(backend, (void *)(uintptr_t)all[i]);
}

/* COMPUTE has much to do after what SIDE waits for: the host, which waits for SIDE, does not wait for that. */
static void the_host_waits_for_one_lane(void **state) {
    (void)state;
    enum { SIDE_LENGTH = 512 };
    const size_t n = (size_t)SIDE_LENGTH * SIDE_LENGTH;
    float *x = memory_of(2 * n * sizeof *x);
    double *from = memory_of(sizeof *from), *to;
    void *host;
    assert_int_equal(backend->alloc_host(backend, sizeof *to, "test", &host), 0);
    to = host;
    const double value = 3.5;
    const gr_gemm g = {.layout = GR_NN,
        .m = SIDE_LENGTH,
        .n = SIDE_LENGTH,
        .k = SIDE_LENGTH,
        .a = x,
        .lda = SIDE_LENGTH,
        .b = x,
        .ldb = SIDE_LENGTH,
        .c = x + n,
        .ldc = SIDE_LENGTH,
        .c_dtype = GR_F32};
    assert_int_equal(backend->upload(backend, GR_LANE_COMPUTE, from, &value, sizeof value), 0);
    assert_int_equal(backend->wait(backend, GR_LANE_SIDE, GR_LANE_COMPUTE), 0);
    assert_int_equal(backend->download(backend, GR_LANE_SIDE, to, from, sizeof *to), 0);
    for (int run = 0; run < 10; run++)
        assert_int_equal(backend->gemm(backend, GR_LANE_COMPUTE, &g), 0);
    const uint64_t n_sync = backend->n_sync;
    assert_int_equal(backend->sync_lane(backend, GR_LANE_SIDE), 0);
    assert_true(*to == value && backend->n_sync == n_sync + 1);
    assert_int_equal(backend->sync(backend), 0);
    backend->release_host(backend, to);
    backend->release(backend, from);
    backend->release(backend, x);
}

static gr_err lose_patience(void *watched, double waited_s) {
    (void)waited_s;
    return ++*(int *)watched > 2 ? gr_fail(GR_PEER, "test: a peer was lost") : GR_OK;
}

static void a_watched_wait_can_be_ended(void **state) {
    (void)state;
    enum { SIDE_LENGTH = 4096 };
    const size_t n = (size_t)SIDE_LENGTH * SIDE_LENGTH;
    float *x = memory_of(2 * n * sizeof *x);
    int n_asked = 0;
    const gr_gemm g = {.layout = GR_NN,
        .m = SIDE_LENGTH,
        .n = SIDE_LENGTH,
        .k = SIDE_LENGTH,
        .a = x,
        .lda = SIDE_LENGTH,
        .b = x,
        .ldb = SIDE_LENGTH,
        .c = x + n,
        .ldc = SIDE_LENGTH,
        .c_dtype = GR_F32};
    for (int run = 0; run < 30; run++)
        assert_int_equal(backend->gemm(backend, GR_LANE_COMPUTE, &g), 0);
    backend->watch = lose_patience;
    backend->watched = &n_asked;
    assert_int_equal(backend->sync(backend), GR_PEER);
    backend->watch = NULL;
    assert_int_equal(n_asked, 3);
    assert_int_equal(backend->sync(backend), 0);
    backend->release(backend, x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_and_aligned),
        cmocka_unit_test(memory_that_is_not_there_is_an_error_naming_its_use),
        cmocka_unit_test(copies_arrive_whole_though_the_host_goes_on),
        cmocka_unit_test(a_lane_waits_for_another),
        cmocka_unit_test(ops_and_uploads_wait_for_nothing),
        cmocka_unit_test(the_host_waits_for_one_lane),
        cmocka_unit_test(a_watched_wait_can_be_ended),
    };
    gr_err err = gr_backend_open(&backend, "cuda", GR_F32);
    if (err == GR_RESOURCE) {
        printf("skipped: %s\n", gr_error_text());
        return 77;
    }
    return err ? 1 : cmocka_run_group_tests(tests, NULL, close_backend);
}
