/* cudnn_double.c: stands in for cuDNN's attention where cuda_double.c stands in for the CUDA runtime: the plans and
 * what runs them, as sums in double (tests/ref). What it tests is what is asked of cuDNN: which parts, with which
 * arrays, on which stream, with how much scratch. Parts are small, so that windows of a few tokens have several. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda.h"
#include "backend/cuda_cudnn.h"
#include "cuda_double.h"
#include "ref.h"

struct cudnnContext {
    cudaStream_t stream;
};

/* ---------------------------------------------------------------- limits */

gr_attend_limits gr_cuda_attend_limits(void) {
    return (gr_attend_limits){.n_query = 512, .n_score = 1 << 24};
}

/* Scores of 6 heads of up to 64 tokens, or of 3 of up to 128. */
size_t gr_cuda_attend_room(void) {
    return 6 * 2 * 64 * 128;
}

/* ---------------------------------------------------------------- the library */

static size_t version(void) {
    return 91900;
}

static const char *error_string(cudnnStatus_t status) {
    (void)status;
    return "an error of the double";
}

static cudnnStatus_t create(cudnnHandle_t *out) {
    *out = calloc(1, sizeof **out);
    return *out ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_INITIALIZED;
}

static cudnnStatus_t destroy(cudnnHandle_t handle) {
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t set_stream(cudnnHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

gr_err gr_cudnn_load(gr_cudnn *out) {
    *out = (gr_cudnn){.cudnnGetVersion = version,
        .cudnnGetErrorString = error_string,
        .cudnnCreate = create,
        .cudnnDestroy = destroy,
        .cudnnSetStream = set_stream};
    return GR_OK;
}

/* ---------------------------------------------------------------- plans */

/* As the library's engine for H100 takes it. */
static size_t scratch_of(const gr_cudnn_shape *s) {
    const size_t T = (size_t)s->T, heads = (size_t)(s->n_window * s->H);
    const size_t scores = 2 * heads * ((T + 63) / 64 * 64) * ((T + 127) / 128 * 128);
    const size_t sums = (heads * T * sizeof(float) + 255) / 256 * 256;
    return sums + scores + (s->H != s->H_kv ? 2 * 2 * heads * T * (size_t)s->head_dim : 0) + 256;
}

/* Heads of 40 in backward have none, so that this way is taken too. */
void gr_cudnn_plan_open(
    const gr_cudnn *c, const gr_cudnn_target *target, const gr_cudnn_shape *shape, gr_cudnn_plan *out) {
    (void)c;
    *out = (gr_cudnn_plan){.shape = *shape, .scratch = shape->backward ? scratch_of(shape) : 0};
    if (!shape->backward || shape->head_dim != 40)
        out->plan = target->handle;
}

void gr_cudnn_plan_close(const gr_cudnn *c, gr_cudnn_plan *p) {
    (void)c;
    *p = (gr_cudnn_plan){0};
}

typedef struct call {
    gr_cudnn_shape shape;
    gr_cudnn_arrays arrays;
    void *scratch;
} call;

static double *rows_of(const call *c, const void *from, int64_t n_head, int64_t ld) {
    const int64_t width = n_head * c->shape.head_dim, n_row = c->shape.n_window * c->shape.T;
    double *to = ref_alloc(n_row * width);
    for (int64_t i = 0; i < n_row; i++)
        for (int64_t j = 0; j < width; j++)
            to[i * width + j] = (double)gr_f32_from_bf16(((const uint16_t *)from)[i * ld + j]);
    return to;
}

static void round_rows(const call *c, double *from, int64_t n_head, int64_t ld, void *to) {
    const int64_t width = n_head * c->shape.head_dim, n_row = c->shape.n_window * c->shape.T;
    for (int64_t i = 0; i < n_row; i++)
        for (int64_t j = 0; j < width; j++)
            ((uint16_t *)to)[i * ld + j] = gr_bf16_from_f32((float)from[i * width + j]);
    free(from);
}

/* Forward has left those of the same windows and heads. */
static void check_lse(const call *c, const ref_attention *r) {
    const int64_t n = c->shape.n_window * c->shape.H * c->shape.T;
    double *o = ref_alloc(n * c->shape.head_dim), *lse = ref_alloc(n);
    ref_attention_forward(r, o, lse);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(lse[i] - (double)c->arrays.lse[i]) < 1e-3))
            double_die("lse of other rows, or none");
    free(o);
    free(lse);
}

static void run_backward(const call *c, const ref_attention *r) {
    const gr_cudnn_shape *s = &c->shape;
    const int64_t n_row = s->n_window * s->T;
    double *dout = rows_of(c, c->arrays.dout, s->H, s->ldo), *dq = ref_alloc(n_row * s->H * s->head_dim);
    double *dk = ref_alloc(n_row * s->H_kv * s->head_dim), *dv = ref_alloc(n_row * s->H_kv * s->head_dim);
    check_lse(c, r);
    ref_attention_backward(r, dout, dq, dk, dv);
    memset(c->scratch, 0xff, scratch_of(s));
    round_rows(c, dq, s->H, s->ldq, c->arrays.dq);
    round_rows(c, dk, s->H_kv, s->ldk, c->arrays.dk);
    round_rows(c, dv, s->H_kv, s->ldv, c->arrays.dv);
    free(dout);
}

static void run_forward(const call *c, const ref_attention *r) {
    const gr_cudnn_shape *s = &c->shape;
    const int64_t n = s->n_window * s->H * s->T;
    double *o = ref_alloc(n * s->head_dim), *lse = ref_alloc(n);
    ref_attention_forward(r, o, lse);
    round_rows(c, o, s->H, s->ldo, c->arrays.o);
    for (int64_t i = 0; i < n; i++)
        c->arrays.lse[i] = (float)lse[i];
    free(lse);
}

static void run(void *work) {
    call *c = work;
    const gr_cudnn_shape *s = &c->shape;
    double *q = rows_of(c, c->arrays.q, s->H, s->ldq), *k = rows_of(c, c->arrays.k, s->H_kv, s->ldk);
    double *v = rows_of(c, c->arrays.v, s->H_kv, s->ldv);
    const ref_attention r = {.causal = s->causal,
        .n_window = s->n_window,
        .T = s->T,
        .H = s->H,
        .H_kv = s->H_kv,
        .head_dim = s->head_dim,
        .q = q,
        .k = k,
        .v = v};
    (s->backward ? run_backward : run_forward)(c, &r);
    free(q);
    free(k);
    free(v);
    free(c);
}

cudnnStatus_t gr_cudnn_plan_run(
    const gr_cudnn *c, cudnnHandle_t handle, const gr_cudnn_plan *p, const gr_cudnn_arrays *arrays, void *scratch) {
    (void)c;
    if (!p->plan)
        double_die("a plan that is none");
    call *work = malloc(sizeof *work);
    if (!work)
        double_die("no memory");
    *work = (call){.shape = p->shape, .arrays = *arrays, .scratch = scratch};
    double_enqueue(handle->stream, run, work);
    return CUDNN_STATUS_SUCCESS;
}
