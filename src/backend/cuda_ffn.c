/* cuda_ffn.c: grouped SwiGLU experts, by kernels of our own (two sets) or by a library (gr_experts).
 *
 * Own kernels: each product of all experts is one launch (one more adds up dgate) on the op's lane, rows are gathered
 * by the kernels, and there is nothing else to do.
 *
 * The library: cuBLASLt products of every expert on several streams, all else in one launch.
 * Forward   gather x | up products | SwiGLU | down products
 * Backward  gather dy | da products | SwiGLU backward | dW2 products | gather x | dW13 and dx products
 * where a | is a join of the workers. Rows are gathered into memory that the pairs own anyway and that is written
 * later: y in forward, dx in backward and in a forward that only makes h. Counts of rows are known on the host, so
 * nothing is waited for. An op of one expert stays on its lane. */
#include "kernels/kernels.h"

#include "cuda.h"

/* One call, as its steps see it. */
typedef struct ffn {
    gr_backend *b;
    gr_lane lane;
    const gr_ffn *a;
    const char *x, *dy; /* act [n_pair, D]: rows of pairs, packed */
    int n_worker;       /* 0: on the lane itself */
} ffn;

/* One expert's pairs. */
typedef struct expert {
    int32_t e;
    int64_t first, n;
} expert;

static expert expert_of(const gr_ffn *a, int32_t e) {
    const int64_t first = a->expert_offset ? a->expert_offset[e] : 0;
    return (expert){.e = e, .first = first, .n = (a->expert_offset ? a->expert_offset[e + 1] : a->n_pair) - first};
}

static const char *row_of(const ffn *f, const void *array, int64_t row, int64_t width) {
    return (const char *)array + (size_t)(row * width) * f->b->elem_size;
}

static char *row_for(const ffn *f, void *array, int64_t row, int64_t width) {
    return (char *)array + (size_t)(row * width) * f->b->elem_size;
}

/* c [m,n] of packed matrices. Gradients of weights, the TN products, are fp32 and summed up; all others are act. */
static gr_err product(
    const ffn *f, int queue, gr_layout layout, const int64_t shape[3], const void *const in[2], void *c) {
    const int64_t m = shape[0], n = shape[1], k = shape[2];
    const gr_gemm g = {.layout = layout,
        .write = layout == GR_TN ? GR_ACCUMULATE : GR_OVERWRITE,
        .m = m,
        .n = n,
        .k = k,
        .a = in[0],
        .lda = layout == GR_TN ? m : k,
        .b = in[1],
        .ldb = layout == GR_NT ? k : n,
        .c = c,
        .ldc = n,
        .c_dtype = layout == GR_TN ? GR_F32 : f->b->dtype};
    return gr_cuda_product(f->b, queue, &g, GR_ROWS_CHANGE);
}

#define SHAPE(m, n, k) ((const int64_t[3]){(m), (n), (k)})
#define PAIR(a, b) ((const void *const[2]){(a), (b)})

/* ---------------------------------------------------------------- an expert's products */

static const char *w13_of(const ffn *f, const expert *x) {
    return row_of(f, f->a->w13, x->e * 2 * f->a->F, f->a->D);
}

static const char *w2_of(const ffn *f, const expert *x) {
    return row_of(f, f->a->w2, x->e * f->a->D, f->a->F);
}

/* h = x W13^T */
static gr_err up(const ffn *f, int queue, const expert *x) {
    const int64_t D = f->a->D, F = f->a->F;
    return product(f, queue, GR_NT, SHAPE(x->n, 2 * F, D), PAIR(row_of(f, f->x, x->first, D), w13_of(f, x)),
        row_for(f, f->a->h, x->first, 2 * F));
}

/* y = a W2^T */
static gr_err down(const ffn *f, int queue, const expert *x) {
    const int64_t D = f->a->D, F = f->a->F;
    return product(f, queue, GR_NT, SHAPE(x->n, D, F), PAIR(row_of(f, f->a->a, x->first, F), w2_of(f, x)),
        row_for(f, f->a->y, x->first, D));
}

/* da = dy W2 */
static gr_err down_input(const ffn *f, int queue, const expert *x) {
    const int64_t D = f->a->D, F = f->a->F;
    return product(f, queue, GR_NN, SHAPE(x->n, F, D), PAIR(row_of(f, f->dy, x->first, D), w2_of(f, x)),
        row_for(f, f->a->da, x->first, F));
}

/* dW2 += dy^T a */
static gr_err down_weights(const ffn *f, int queue, const expert *x) {
    const int64_t D = f->a->D, F = f->a->F;
    return product(f, queue, GR_TN, SHAPE(D, F, x->n),
        PAIR(row_of(f, f->dy, x->first, D), row_of(f, f->a->a, x->first, F)), f->a->dw2 + x->e * D * F);
}

/* dW13 += dh^T x, then dx = dh W13 over the rows of x: they may be the same memory. */
static gr_err up_gradients(const ffn *f, int queue, const expert *x) {
    const int64_t D = f->a->D, F = f->a->F;
    const char *dh = row_of(f, f->a->h, x->first, 2 * F);
    GR_TRY(product(
        f, queue, GR_TN, SHAPE(2 * F, D, x->n), PAIR(dh, row_of(f, f->x, x->first, D)), f->a->dw13 + x->e * 2 * F * D));
    return product(f, queue, GR_NN, SHAPE(x->n, D, 2 * F), PAIR(dh, w13_of(f, x)), row_for(f, f->a->dx, x->first, D));
}

/* ---------------------------------------------------------------- all experts */

/* The experts that have pairs, in turn on the workers. */
static gr_err for_each_expert(const ffn *f, gr_err (*run)(const ffn *f, int queue, const expert *x)) {
    gr_cuda *s = f->b->state;
    int turn = 0;
    GR_TRY(gr_cuda_fork(s, f->lane, f->n_worker));
    for (int32_t e = 0; e < f->a->n_expert; e++) {
        const expert x = expert_of(f->a, e);
        if (x.n == 0)
            continue;
        GR_TRY(run(f, f->n_worker ? GR_N_LANE + turn++ % f->n_worker : (int)f->lane, &x));
    }
    return gr_cuda_join(s, f->lane, f->n_worker);
}

/* The pairs' rows of `in` [rows, D], packed into `room`; `in` itself where pairs are rows. */
static gr_err pack_rows(const ffn *f, const void *in, void *room, const char **out) {
    const gr_ffn *a = f->a;
    *out = a->pair_row ? room : in;
    if (!a->pair_row)
        return GR_OK;
    const gr_gather g = {.n_row = a->n_pair, .width = a->D, .in = in, .index = a->pair_row, .out = room};
    return f->b->gather_rows(f->b, f->lane, &g);
}

static ffn open_ffn(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    int n_worker = a->n_expert < GR_CUDA_WORKERS ? (int)a->n_expert : GR_CUDA_WORKERS;
    return (ffn){.b = b, .lane = lane, .a = a, .n_worker = n_worker > 1 ? n_worker : 0};
}

static gr_err library_forward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    ffn f = open_ffn(b, lane, a);
    GR_TRY(pack_rows(&f, a->x, a->y ? a->y : a->dx, &f.x));
    GR_TRY(for_each_expert(&f, up));
    if (!a->y)
        return GR_OK;
    GR_TRY(gr_cuda_check(gr_kernel_swiglu_forward(b->lane_native(b, lane), b->dtype, a), "ffn_forward"));
    return for_each_expert(&f, down);
}

static gr_err library_backward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    ffn f = open_ffn(b, lane, a);
    GR_TRY(pack_rows(&f, a->dy, a->dx, &f.dy));
    GR_TRY(for_each_expert(&f, down_input));
    GR_TRY(gr_cuda_check(gr_kernel_swiglu_backward(b->lane_native(b, lane), b->dtype, a), "ffn_backward"));
    GR_TRY(for_each_expert(&f, down_weights));
    GR_TRY(pack_rows(&f, a->x, a->dx, &f.x));
    return for_each_expert(&f, up_gradients);
}

/* ---------------------------------------------------------------- own kernels */

typedef int (*launcher)(void *stream, const gr_ffn *a);
typedef struct own_kernels {
    launcher up, down, down_input, down_weights, up_weights, input;
} own_kernels;

static const own_kernels by_mma = {.up = gr_kernel_grouped_up,
    .down = gr_kernel_grouped_down,
    .down_input = gr_kernel_grouped_down_input,
    .down_weights = gr_kernel_grouped_down_weights,
    .up_weights = gr_kernel_grouped_up_weights,
    .input = gr_kernel_grouped_input};

static const own_kernels by_wgmma = {.up = gr_kernel_wgmma_up,
    .down = gr_kernel_wgmma_down,
    .down_input = gr_kernel_wgmma_down_input,
    .down_weights = gr_kernel_wgmma_down_weights,
    .up_weights = gr_kernel_wgmma_up_weights,
    .input = gr_kernel_wgmma_input};

/* NULL: the library. */
static const own_kernels *own_kernels_for(const gr_backend *b, const gr_ffn *a) {
    switch (gr_kernel_experts_choose(b->experts == GR_EXPERTS_AUTO ? b->experts_best : b->experts, b->dtype, a)) {
    case GR_EXPERTS_WGMMA:
        return &by_wgmma;
    case GR_EXPERTS_MMA:
        return &by_mma;
    default:
        return NULL;
    }
}

/* In order, up to n of them or a NULL. */
static gr_err launch_all(gr_backend *b, gr_lane lane, const gr_ffn *a, const launcher *list, int n) {
    for (int i = 0; i < n && list[i]; i++)
        GR_TRY(gr_cuda_check(list[i](b->lane_native(b, lane), a), "grouped experts"));
    return GR_OK;
}

gr_err gr_cuda_ffn_forward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    const own_kernels *own = own_kernels_for(b, a);
    if (a->n_pair == 0)
        return GR_OK;
    if (!own)
        return library_forward(b, lane, a);
    return launch_all(b, lane, a, (const launcher[]){own->up, a->y ? own->down : NULL}, 2);
}

/* dx last: it may be x. */
gr_err gr_cuda_ffn_backward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    const own_kernels *own = own_kernels_for(b, a);
    if (a->n_pair == 0)
        return GR_OK;
    if (!own)
        return library_backward(b, lane, a);
    return launch_all(
        b, lane, a, (const launcher[]){own->down_input, own->down_weights, own->up_weights, own->input}, 4);
}
