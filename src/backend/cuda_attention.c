/* cuda_attention.c: attention over packed windows, in one of three ways (gr_attention_kernels): by cuDNN
 * (cuda_cudnn.c), by kernels that keep no scores (kernels/flash_*.cu), whose lse is the same number, or, for every
 * shape, by products of cuBLAS and the kernels between them, the plain path:
 *
 * A block of query rows against all keys they may see, for one query head of each of several key/value heads at once:
 * the heads of a batch lie side by side in a row, so their products are one strided batch. Scores take
 * gr_attend_tiles_of (kernels/geometry.h) floats, whatever the length of a window; of documents, which lie on the
 * device, the kernels know.
 *
 * Backward walks the query heads of a key/value head in order and their blocks from the last to the first: the first
 * one sees every key, so that it sets the fp32 sums of dk and dv and the others add to them; they are rounded once.
 *
 * Products: 4 T^2 head_dim flops per head in forward and 10 in backward, half of that where the mask is causal and
 * blocks are short. */
#include "kernels/kernels.h"

#include "cuda.h"

/* One call, its scratch, and the block under way. */
typedef struct attend {
    gr_backend *b;
    gr_lane lane;
    const gr_attention *a;
    gr_attend_tiles tiles;
    float *dk, *dv; /* fp32 [heads of a batch, T, head_dim], backward only */
    gr_attend_block block;
} attend;

static bool is_causal(const gr_attention *a) {
    return a->mask == GR_ATTEND_CAUSAL;
}

static gr_err attend_open(attend *t, gr_backend *b, gr_lane lane, const gr_attention *a, bool backward) {
    *t = (attend){.b = b, .lane = lane, .a = a, .tiles = gr_attend_tiles_of(gr_cuda_attend_limits(), a->T, a->H_kv)};
    const gr_attend_room room = gr_attend_room_of(&t->tiles, a->T, a->head_dim, b->elem_size, backward);
    void *memory;
    GR_TRY(gr_cuda_scratch(b, lane, room.n_byte, &memory));
    char *at = memory;
    t->dk = (float *)(at + room.dk);
    t->dv = (float *)(at + room.dv);
    t->block = (gr_attend_block){.scores = (float *)(at + room.scores),
        .dscores = (float *)(at + room.dscores),
        .p = at + room.p,
        .ds = at + room.ds,
        .ld = t->tiles.ld};
    return GR_OK;
}

/* Query rows [first, ...) of the batch under way. */
static void set_rows(attend *t, int64_t first) {
    const gr_attention *a = t->a;
    t->block.first = first;
    t->block.n_query = gr_at_most(t->tiles.n_query, a->T - first);
    t->block.n_key = gr_attend_keys(is_causal(a), a->T, first, t->block.n_query);
}

/* ---------------------------------------------------------------- operands
 *
 * The first head's, of the block under way; `stride` elements lead to the next head's. */

typedef struct operand {
    const void *p; /* the op's inputs among them */
    int64_t ld, stride;
} operand;

/* Of q, o, dout, dq: the block's rows. */
static operand of_queries(const attend *t, const void *array, int64_t ld) {
    const gr_attention *a = t->a;
    const gr_attend_block *block = &t->block;
    const int64_t group = a->H / a->H_kv, row = block->window * a->T + block->first;
    const int64_t at = row * ld + (block->kv_head * group + block->member) * a->head_dim;
    return (operand){(const char *)array + (size_t)at * t->b->elem_size, ld, group * a->head_dim};
}

/* Of k, v, dk, dv: the window's rows from the first on. */
static operand of_keys(const attend *t, const void *array, int64_t ld) {
    const gr_attention *a = t->a;
    const int64_t at = t->block.window * a->T * ld + t->block.kv_head * a->head_dim;
    return (operand){(const char *)array + (size_t)at * t->b->elem_size, ld, a->head_dim};
}

/* Of scores and what is made of them. */
static operand of_scores(const attend *t, const void *array) {
    return (operand){array, t->block.ld, t->block.n_query * t->block.ld};
}

/* Of the fp32 sums of dk and dv. */
static operand of_sums(const attend *t, const float *array) {
    return (operand){array, t->a->head_dim, t->a->T * t->a->head_dim};
}

/* g has layout, write, shape and c_dtype. c is one of the op's outputs or of its scratch. */
static gr_err product(const attend *t, gr_gemm g, operand a, operand b, operand c) {
    g.a = a.p;
    g.lda = a.ld;
    g.b = b.p;
    g.ldb = b.ld;
    g.c = (void *)(uintptr_t)c.p;
    g.ldc = c.ld;
    return gr_cuda_product_batch(t->b, (int)t->lane, &g,
        (gr_cuda_batch){.n = t->block.n_head, .stride_a = a.stride, .stride_b = b.stride, .stride_c = c.stride});
}

/* to [queries, keys] = rows keys^T: q k^T, or dout v^T. */
static gr_err score(const attend *t, operand rows, operand keys, float *to) {
    const gr_gemm g = {
        .layout = GR_NT, .m = t->block.n_query, .n = t->block.n_key, .k = t->a->head_dim, .c_dtype = GR_F32};
    return product(t, g, rows, keys, of_scores(t, to));
}

/* to [queries, head_dim] = from keys: p v, or ds k. */
static gr_err mix(const attend *t, const void *from, operand keys, operand to) {
    const gr_gemm g = {
        .layout = GR_NN, .m = t->block.n_query, .n = t->a->head_dim, .k = t->block.n_key, .c_dtype = t->b->dtype};
    return product(t, g, of_scores(t, from), keys, to);
}

/* sums [keys, head_dim] (+)= from^T rows: p^T dout, or ds^T q. */
static gr_err add_to_keys(const attend *t, gr_write write, const void *from, operand rows, float *sums) {
    const gr_gemm g = {.layout = GR_TN,
        .write = write,
        .m = t->block.n_key,
        .n = t->a->head_dim,
        .k = t->block.n_query,
        .c_dtype = GR_F32};
    return product(t, g, of_scores(t, from), rows, of_sums(t, sums));
}

/* ---------------------------------------------------------------- forward */

static gr_err forward_block(attend *t, int64_t first) {
    const gr_attention *a = t->a;
    set_rows(t, first);
    GR_TRY(score(t, of_queries(t, a->q, a->ldq), of_keys(t, a->k, a->ldk), t->block.scores));
    GR_TRY(gr_cuda_check(
        gr_kernel_attend_softmax(t->b->lane_native(t->b, t->lane), t->b->dtype, a, &t->block), "attention's softmax"));
    return mix(t, t->block.p, of_keys(t, a->v, a->ldv), of_queries(t, a->o, a->ldo));
}

static gr_err forward_batch(attend *t) {
    for (t->block.member = 0; t->block.member < t->a->H / t->a->H_kv; t->block.member++)
        for (int64_t first = 0; first < t->a->T; first += t->tiles.n_query)
            GR_TRY(forward_block(t, first));
    return GR_OK;
}

/* ---------------------------------------------------------------- backward */

static gr_err backward_block(attend *t, int64_t first, gr_write write) {
    const gr_attention *a = t->a;
    set_rows(t, first);
    const operand q = of_queries(t, a->q, a->ldq), dout = of_queries(t, a->dout, a->ldo), k = of_keys(t, a->k, a->ldk);
    GR_TRY(score(t, q, k, t->block.scores));
    GR_TRY(score(t, dout, of_keys(t, a->v, a->ldv), t->block.dscores));
    GR_TRY(gr_cuda_check(gr_kernel_attend_gradient(t->b->lane_native(t->b, t->lane), t->b->dtype, a, &t->block),
        "attention's gradient"));
    GR_TRY(add_to_keys(t, write, t->block.p, dout, t->dv));
    GR_TRY(add_to_keys(t, write, t->block.ds, q, t->dk));
    return mix(t, t->block.ds, k, of_queries(t, a->dq, a->ldq));
}

/* dk or dv of the batch from its sums. */
static gr_err round_sums(const attend *t, const float *sums, operand to) {
    return gr_cuda_check(gr_kernel_attend_round(t->b->lane_native(t->b, t->lane), t->b->dtype, t->a, t->block.n_head,
                             sums, (void *)(uintptr_t)to.p, to.ld),
        "attention's gradient");
}

static gr_err backward_batch(attend *t) {
    const gr_attention *a = t->a;
    const int64_t last = (a->T - 1) / t->tiles.n_query * t->tiles.n_query;
    for (t->block.member = 0; t->block.member < a->H / a->H_kv; t->block.member++)
        for (int64_t first = last; first >= 0; first -= t->tiles.n_query)
            GR_TRY(backward_block(t, first, t->block.member == 0 && first == last ? GR_OVERWRITE : GR_ACCUMULATE));
    GR_TRY(round_sums(t, t->dk, of_keys(t, a->dk, a->ldk)));
    return round_sums(t, t->dv, of_keys(t, a->dv, a->ldv));
}

/* ---------------------------------------------------------------- the ops */

/* Each window, each batch of its key/value heads. */
static gr_err each_batch(attend *t, gr_err (*run)(attend *t)) {
    const gr_attention *a = t->a;
    for (t->block.window = 0; t->block.window < a->n_window; t->block.window++)
        for (t->block.kv_head = 0; t->block.kv_head < a->H_kv; t->block.kv_head += t->tiles.n_head) {
            t->block.n_head = gr_at_most(t->tiles.n_head, a->H_kv - t->block.kv_head);
            GR_TRY(run(t));
        }
    return GR_OK;
}

static gr_attend_means means_of(const gr_backend *b) {
    const gr_cuda *s = b->state;
    return (gr_attend_means){.way = b->attention == GR_ATTENTION_AUTO ? b->attention_best : b->attention,
        .shared_max = s->shared_max,
        .limits = gr_cuda_attend_limits(),
        .room = gr_cuda_attend_room()};
}

size_t gr_cuda_attention_scratch(const gr_backend *b, const gr_attention *a, bool backward) {
    const gr_attend_means means = means_of(b);
    return gr_attend_scratch(&means, b->dtype, a, backward);
}

static gr_err forward_plain(gr_backend *b, gr_lane lane, const gr_attention *a) {
    attend t;
    if (a->n_window == 0 || a->T == 0)
        return GR_OK;
    GR_TRY(attend_open(&t, b, lane, a, false));
    return each_batch(&t, forward_batch);
}

gr_err gr_cuda_attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    const gr_attend_means means = means_of(b);
    bool done = false;
    if (gr_attend_may(means.way, GR_ATTENTION_CUDNN))
        GR_TRY(gr_cuda_cudnn_attention(b, lane, a, false, &done));
    if (done)
        return GR_OK;
    if (gr_attend_may_flash(&means, b->dtype, a))
        return gr_cuda_check(gr_kernel_flash_forward(b->lane_native(b, lane), a), "attention");
    return forward_plain(b, lane, a);
}

/* No scores in memory. */
static gr_err flash_backward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_flash_backward_scratch(a), &scratch));
    return gr_cuda_check(gr_kernel_flash_backward(b->lane_native(b, lane), a, scratch), "attention's gradient");
}

static gr_err backward_plain(gr_backend *b, gr_lane lane, const gr_attention *a) {
    attend t;
    if (a->n_window == 0 || a->T == 0)
        return GR_OK;
    GR_TRY(attend_open(&t, b, lane, a, true));
    return each_batch(&t, backward_batch);
}

gr_err gr_cuda_attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    const gr_attend_means means = means_of(b);
    bool done = false;
    if (gr_attend_may(means.way, GR_ATTENTION_CUDNN))
        GR_TRY(gr_cuda_cudnn_attention(b, lane, a, true, &done));
    if (done)
        return GR_OK;
    if (gr_attend_may_flash(&means, b->dtype, a))
        return flash_backward(b, lane, a);
    return backward_plain(b, lane, a);
}
