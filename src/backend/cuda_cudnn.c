/* cuda_cudnn.c: attention by cuDNN, as part of backend cuda: forward in one call; backward in parts whose scratch stays
 * within gr_cuda_attend_room. Plans are made when their shape is first met, which is in the first step, and kept. */
#include "cuda_cudnn.h"
#include "cuda.h"

#include <stdlib.h>

enum { PLANS_MAX = 64 };

struct gr_cuda_cudnn {
    gr_cudnn call;
    gr_cudnn_target target;
    int n;
    gr_cudnn_plan plan[PLANS_MAX];
};

static gr_err check(const gr_cuda_cudnn *c, cudnnStatus_t status, const char *what) {
    if (status == CUDNN_STATUS_SUCCESS)
        return GR_OK;
    const bool is_ours = status / 1000 == CUDNN_STATUS_BAD_PARAM / 1000; /* its kinds of errors are the thousands */
    return gr_fail(is_ours ? GR_BUG : GR_RESOURCE,
        "backend cuda: expected success from cuDNN at %s, got %s; see nvidia-smi for what else uses the GPU, use "
        "--set parallel.attention_kernels=flash, and report this if it happens again",
        what, c->call.cudnnGetErrorString(status));
}

/* ---------------------------------------------------------------- opening */

static gr_err open_handle(gr_cuda_cudnn *c) {
    GR_TRY(gr_cudnn_load(&c->call));
    return check(c, c->call.cudnnCreate(&c->target.handle), "opening it");
}

gr_err gr_cuda_cudnn_open(gr_dtype dtype, gr_cuda_cudnn **out) {
    void *memory;
    *out = NULL;
    if (dtype != GR_BF16)
        return GR_OK;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_cuda_cudnn), "cuDNN"));
    gr_cuda_cudnn *c = memory;
    if (open_handle(c)) {
        gr_info("backend cuda: attention by its own kernels, not by cuDNN (%s)", gr_error_text());
        free(c);
        return GR_OK;
    }
    const size_t version = c->call.cudnnGetVersion();
    gr_info("backend cuda: cuDNN %zu.%zu.%zu for attention", version / 10000, version / 100 % 100, version % 100);
    *out = c;
    return GR_OK;
}

void gr_cuda_cudnn_close(gr_cuda_cudnn *c) {
    if (!c)
        return;
    for (int i = 0; i < c->n; i++)
        gr_cudnn_plan_close(&c->call, &c->plan[i]);
    c->call.cudnnDestroy(c->target.handle);
    free(c);
}

/* ---------------------------------------------------------------- plans */

static bool is_same(const gr_cudnn_shape *a, const gr_cudnn_shape *b) {
    return a->backward == b->backward && a->causal == b->causal && a->n_window == b->n_window && a->T == b->T &&
           a->H == b->H && a->H_kv == b->H_kv && a->head_dim == b->head_dim && a->ldq == b->ldq && a->ldk == b->ldk &&
           a->ldv == b->ldv && a->ldo == b->ldo;
}

static void say_none(const gr_cudnn_shape *s) {
    gr_info("backend cuda: cuDNN has no deterministic attention %s for %lld tokens, %lld and %lld heads of %lld; own "
            "kernels instead",
        s->backward ? "backward" : "forward", (long long)s->T, (long long)s->H, (long long)s->H_kv,
        (long long)s->head_dim);
}

/* NULL where the library has none, or too many shapes came. */
static const gr_cudnn_plan *plan_of(gr_cuda_cudnn *c, const gr_cudnn_shape *shape) {
    int i = 0;
    while (i < c->n && !is_same(&c->plan[i].shape, shape))
        i++;
    if (i == PLANS_MAX)
        return NULL;
    gr_cudnn_plan *p = &c->plan[i];
    if (i == c->n) {
        gr_cudnn_plan_open(&c->call, &c->target, shape, p);
        c->n++;
        if (!p->plan)
            say_none(shape);
    }
    return p->plan ? p : NULL;
}

/* ---------------------------------------------------------------- the op */

static gr_cudnn_shape shape_of(const gr_attention *a, bool backward, gr_attend_part part) {
    return (gr_cudnn_shape){.backward = backward,
        .causal = a->mask == GR_ATTEND_CAUSAL,
        .n_window = part.n_window,
        .T = a->T,
        .H = part.H_kv * (a->H / a->H_kv),
        .H_kv = part.H_kv,
        .head_dim = a->head_dim,
        .ldq = a->ldq,
        .ldk = a->ldk,
        .ldv = a->ldv,
        .ldo = a->ldo};
}

/* Element of bf16, of one of the op's outputs or inputs; NULL stays. */
static void *at(const void *array, int64_t i) {
    return array ? (uint16_t *)(uintptr_t)array + i : NULL;
}

/* Those of the part that begins with this window and key/value head. */
static gr_cudnn_arrays arrays_of(const gr_attention *a, int64_t window, int64_t kv_head) {
    const int64_t head = kv_head * (a->H / a->H_kv), row = window * a->T;
    const int64_t of_q = row * a->ldq + head * a->head_dim, of_o = row * a->ldo + head * a->head_dim;
    const int64_t of_k = row * a->ldk + kv_head * a->head_dim, of_v = row * a->ldv + kv_head * a->head_dim;
    return (gr_cudnn_arrays){.q = at(a->q, of_q),
        .k = at(a->k, of_k),
        .v = at(a->v, of_v),
        .dout = at(a->dout, of_o),
        .o = at(a->o, of_o),
        .dq = at(a->dq, of_q),
        .dk = at(a->dk, of_k),
        .dv = at(a->dv, of_v),
        .lse = a->lse + (window * a->H + head) * a->T};
}

gr_err gr_cuda_cudnn_attention(gr_backend *b, gr_lane lane, const gr_attention *a, bool backward, bool *done) {
    gr_cuda *s = b->state;
    gr_cuda_cudnn *c = s->cudnn;
    *done = false;
    if (!c)
        return GR_OK;
    const gr_attend_part part = gr_library_part_of(b->dtype, a, backward, gr_cuda_attend_room());
    if (part.n_window == 0)
        return GR_OK;
    const gr_cudnn_shape shape = shape_of(a, backward, part);
    const gr_cudnn_plan *p = plan_of(c, &shape);
    if (!p)
        return GR_OK;
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, p->scratch, &scratch));
    GR_TRY(check(c, c->call.cudnnSetStream(c->target.handle, s->queue[lane]), "choosing a stream"));
    for (int64_t window = 0; window < a->n_window; window += part.n_window)
        for (int64_t head = 0; head < a->H_kv; head += part.H_kv) {
            const gr_cudnn_arrays arrays = arrays_of(a, window, head);
            GR_TRY(check(c, gr_cudnn_plan_run(&c->call, c->target.handle, p, &arrays, scratch), "attention"));
        }
    *done = true;
    return GR_OK;
}
