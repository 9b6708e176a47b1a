/* kernels_backend.c: backend "cpu" whose ops are those of backend cuda, their kernels run on the CPU (kernels/host):
 * linked with --wrap into test programs that were written for the CPU backend, so that each kernel passes the same
 * tests. Here are stand-ins for what needs a GPU: memory, streams and products are the CPU's; the ops themselves are
 * src/backend/cuda_*.c.
 *
 * Scratch is poisoned before each op and guarded behind its end. GR_HOST_ORDER=falling in the environment runs blocks
 * and threads in the other order. */
#include <stdlib.h>
#include <string.h>

#include "backend/cuda.h"
#include "kernels/host/host.h"

gr_err __real_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);
gr_err __wrap_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);

enum { GUARD = 256 };

/* `cuda` is first: the ops under test know no more. */
typedef struct kernels {
    gr_cuda cuda;
    gr_backend *cpu;
    uint8_t *scratch;
    size_t n_scratch;
} kernels;

static kernels *state_of(gr_backend *b) {
    return b->state;
}

gr_err gr_cuda_check(int status, const char *what) {
    return status ? gr_fail(GR_BUG, "kernels: expected success from %s, got %d", what, status) : GR_OK;
}

/* ---------------------------------------------------------------- streams: there are none */

static void *lane_native(gr_backend *b, gr_lane lane) {
    (void)b;
    (void)lane;
    return NULL;
}

gr_err gr_cuda_fork(gr_cuda *s, gr_lane lane, int n_worker) {
    (void)s;
    (void)lane;
    (void)n_worker;
    return GR_OK;
}

gr_err gr_cuda_join(gr_cuda *s, gr_lane lane, int n_worker) {
    return gr_cuda_fork(s, lane, n_worker);
}

/* ---------------------------------------------------------------- scratch */

static void check_guard(const kernels *s) {
    for (int i = 0; s->scratch && i < GUARD; i++)
        GR_ASSERT(
            s->scratch[s->n_scratch + (size_t)i] == 0x5a, "an op wrote behind its %zu bytes of scratch", s->n_scratch);
}

gr_err gr_cuda_scratch(gr_backend *b, gr_lane lane, size_t n_byte, void **out) {
    kernels *s = state_of(b);
    (void)lane;
    check_guard(s);
    free(s->scratch);
    s->scratch = aligned_alloc(GUARD, (n_byte + 2 * GUARD - 1) / GUARD * GUARD);
    GR_ASSERT(s->scratch, "no memory for %zu bytes", n_byte);
    s->n_scratch = n_byte;
    memset(s->scratch, 0xff, n_byte); /* NaNs, and indices out of bounds */
    memset(s->scratch + n_byte, 0x5a, GUARD);
    *out = s->scratch;
    return GR_OK;
}

/* ---------------------------------------------------------------- products */

/* By one thread, as inside any parallel region: the bits of the library's products depend on their number. */
gr_err gr_cuda_product(gr_backend *b, int queue, const gr_gemm *g, gr_rows rows) {
    gr_backend *cpu = state_of(b)->cpu;
    (void)queue;
    (void)rows;
    gr_err err = GR_OK;
#pragma omp parallel num_threads(2)
#pragma omp single
    err = cpu->gemm(cpu, GR_LANE_COMPUTE, g);
    return err;
}

gr_err gr_cuda_gemm(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    return gr_cuda_product(b, (int)lane, a, GR_ROWS_FIXED);
}

gr_err gr_cuda_product_batch(gr_backend *b, int queue, const gr_gemm *g, gr_cuda_batch batch) {
    for (int64_t i = 0; i < batch.n; i++) {
        gr_gemm one = *g;
        one.a = (const char *)g->a + (size_t)(i * batch.stride_a) * b->elem_size;
        one.b = (const char *)g->b + (size_t)(i * batch.stride_b) * b->elem_size;
        one.c = (char *)g->c + (size_t)(i * batch.stride_c) * gr_dtype_size(g->c_dtype);
        GR_TRY(gr_cuda_product(b, queue, &one, GR_ROWS_FIXED));
    }
    return GR_OK;
}

gr_err gr_cuda_peak(gr_backend *b, double *flops_per_s) {
    gr_backend *cpu = state_of(b)->cpu;
    return cpu->peak(cpu, flops_per_s);
}

/* Small enough that windows of a few rows have many blocks and several batches of heads. */
gr_attend_limits gr_cuda_attend_limits(void) {
    return (gr_attend_limits){.n_query = 32, .n_score = 6000};
}

size_t gr_cuda_attend_room(void) {
    return 0;
}

/* ---------------------------------------------------------------- opening */

static void close_both(gr_backend *b) {
    kernels *s = state_of(b);
    check_guard(s);
    gr_backend_close(s->cpu);
    free(s->scratch);
    free(s);
    free(b);
}

gr_err __wrap_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype) {
    gr_backend *cpu;
    void *memory, *state;
    const char *order = getenv("GR_HOST_ORDER");
    gr_host_set_order(order && strcmp(order, "falling") == 0 ? GR_HOST_FALLING : GR_HOST_RISING);
    GR_TRY(__real_gr_backend_open(&cpu, name, dtype));
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "test"));
    GR_TRY(gr_alloc(&state, 1, sizeof(kernels), "test"));
    gr_backend *b = *out = memory;
    *b = *cpu;
    b->state = state;
    b->close = close_both;
    b->lane_native = lane_native;
    b->experts_best = GR_EXPERTS_MMA;
    b->attention_best = GR_ATTENTION_FLASH;
    state_of(b)->cpu = cpu;
    state_of(b)->cuda.shared_max = SIZE_MAX;
    gr_cuda_set_ops(b);
    return GR_OK;
}
