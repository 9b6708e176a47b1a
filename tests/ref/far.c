#include "far.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows of `width` bytes that start every ld bytes, here and in the backend's memory; `before` is what they held. */
typedef struct copy {
    uint8_t *near, *before;
    void *far;
    int64_t n_row, width, ld;
    bool written;
} copy;

enum { COPIES_MAX = 20 };
typedef struct copies {
    gr_backend *b;
    copy list[COPIES_MAX];
    int n;
} copies;

static void die(const char *what) {
    fprintf(stderr, "far: %s %s\n", what, gr_error_text());
    abort();
}

static void must(gr_err err) {
    if (err)
        die("the backend failed:");
}

static size_t bytes_of(const copy *c) {
    return c->n_row > 0 && c->width > 0 ? (size_t)((c->n_row - 1) * c->ld + c->width) : 0;
}

/* Arrays that are one in the call stay one: ops may work in place. */
static void *add(copies *all, const void *array, const int64_t shape[3], size_t size, bool written) {
    if (!array)
        return NULL;
    for (int i = 0; i < all->n; i++)
        if (all->list[i].near == array) {
            all->list[i].written |= written;
            return all->list[i].far;
        }
    if (all->n == COPIES_MAX)
        die("too many arrays");
    const int64_t unit = (int64_t)size;
    copy *c = &all->list[all->n++];
    *c = (copy){.near = (uint8_t *)(uintptr_t)array,
        .n_row = shape[0],
        .width = shape[1] * unit,
        .ld = shape[2] * unit,
        .written = written};
    const size_t n = bytes_of(c);
    c->before = malloc(n ? n : 1);
    if (!c->before)
        die("no memory");
    if (n)
        memcpy(c->before, c->near, n);
    must(all->b->alloc(all->b, n, "test", &c->far));
    must(all->b->upload(all->b, GR_LANE_COMPUTE, c->far, c->before, n));
    return c->far;
}

#define ROWS(n_row, width, ld) ((const int64_t[3]){(n_row), (width), (ld)})

static const void *in(copies *all, const void *array, int64_t n_row, int64_t width, int64_t ld) {
    return add(all, array, ROWS(n_row, width, ld), all->b->elem_size, false);
}

static void *out(copies *all, void *array, int64_t n_row, int64_t width, int64_t ld) {
    return add(all, array, ROWS(n_row, width, ld), all->b->elem_size, true);
}

/* n numbers of a fixed type. */
#define IN(all, array, n) ((array) = add((all), (array), ROWS(1, (n), (n)), sizeof *(array), false))
#define OUT(all, array, n) ((array) = add((all), (array), ROWS(1, (n), (n)), sizeof *(array), true))

static void bring_back(copies *all, const copy *c) {
    const size_t n = bytes_of(c);
    uint8_t *now = malloc(n ? n : 1);
    if (!now)
        die("no memory");
    must(all->b->download(all->b, GR_LANE_COMPUTE, now, c->far, n));
    must(all->b->sync(all->b));
    if (!c->written && n && memcmp(now, c->before, n) != 0)
        die("an op wrote into an input");
    for (int64_t r = 0; r < c->n_row && n && c->written; r++) {
        const size_t at = (size_t)(r * c->ld), width = (size_t)c->width, gap = (size_t)(c->ld - c->width);
        memcpy(c->near + at, now + at, width);
        if (r + 1 < c->n_row && memcmp(now + at + width, c->before + at + width, gap) != 0)
            die("an op wrote between rows");
    }
    free(now);
}

static gr_err finish(copies *all, gr_err err) {
    for (int i = 0; i < all->n; i++) {
        bring_back(all, &all->list[i]);
        free(all->list[i].before);
        all->b->release(all->b, all->list[i].far);
    }
    return err;
}

static gr_backend *real(gr_backend *b) {
    return b->state;
}

static copies copies_for(gr_backend *b) {
    return (copies){.b = real(b)};
}

/* An op of one argument struct, whose arrays `copied` exchanges for those of the backend. */
#define OP(op, type, copied)                                                                                           \
    static gr_err op(gr_backend *b, gr_lane lane, const type *a) {                                                     \
        copies all = copies_for(b);                                                                                    \
        type g = copied(&all, a);                                                                                      \
        return finish(&all, real(b)->op(real(b), lane, &g));                                                           \
    }

/* Rows that a list of indices reaches. */
static int64_t rows_reached(const uint32_t *index, int64_t n) {
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++)
        most = index[i] >= most ? index[i] + 1 : most;
    return most;
}

/* ---------------------------------------------------------------- products and rows */

static gr_err gemm(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    copies all = copies_for(b);
    gr_gemm g = *a;
    const bool ta = a->layout == GR_TN, tb = a->layout == GR_NT;
    g.a = in(&all, a->a, ta ? a->k : a->m, ta ? a->m : a->k, a->lda);
    g.b = in(&all, a->b, tb ? a->n : a->k, tb ? a->k : a->n, a->ldb);
    g.c = add(&all, a->c, ROWS(a->m, a->n, a->ldc), gr_dtype_size(a->c_dtype), true);
    return finish(&all, real(b)->gemm(real(b), lane, &g));
}

static gr_gather far_gather(copies *all, const gr_gather *a, size_t size) {
    gr_gather g = *a;
    g.in = add(all, a->in, ROWS(rows_reached(a->index, a->n_row), a->width, a->width), size, false);
    g.out = add(all, a->out, ROWS(a->n_row, a->width, a->width), size, true);
    IN(all, g.index, a->n_row);
    return g;
}

static gr_err gather_rows(gr_backend *b, gr_lane lane, const gr_gather *a) {
    copies all = copies_for(b);
    gr_gather g = far_gather(&all, a, real(b)->elem_size);
    return finish(&all, real(b)->gather_rows(real(b), lane, &g));
}

static gr_err gather_f32(gr_backend *b, gr_lane lane, const gr_gather *a) {
    copies all = copies_for(b);
    gr_gather g = far_gather(&all, a, sizeof(float));
    return finish(&all, real(b)->gather_f32(real(b), lane, &g));
}

static gr_sum far_sum(copies *all, const gr_sum *a, size_t size) {
    gr_sum g = *a;
    g.base = add(all, a->base, ROWS(a->n_row, a->width, a->width), size, false);
    for (int s = 0; s < 2; s++) {
        if (!a->source[s])
            continue;
        const int64_t n = a->offset[s][a->n_row];
        g.source[s] = add(all, a->source[s], ROWS(rows_reached(a->index[s], n), a->width, a->width), size, false);
        IN(all, g.offset[s], a->n_row + 1);
        IN(all, g.index[s], n);
    }
    g.out = add(all, a->out, ROWS(a->n_row, a->width, a->width), size, true);
    return g;
}

static gr_err sum_rows(gr_backend *b, gr_lane lane, const gr_sum *a) {
    copies all = copies_for(b);
    gr_sum g = far_sum(&all, a, real(b)->elem_size);
    return finish(&all, real(b)->sum_rows(real(b), lane, &g));
}

static gr_err sum_f32(gr_backend *b, gr_lane lane, const gr_sum *a) {
    copies all = copies_for(b);
    gr_sum g = far_sum(&all, a, sizeof(float));
    return finish(&all, real(b)->sum_f32(real(b), lane, &g));
}

static gr_pair_gates far_pair_gates(copies *all, const gr_pair_gates *a) {
    gr_pair_gates g = *a;
    IN(all, g.pair_row, a->n_pair);
    IN(all, g.pair_slot, a->n_pair);
    IN(all, g.gate, a->n_row * a->K);
    OUT(all, g.pair_gate, a->n_pair);
    IN(all, g.dpair_gate, a->n_pair);
    OUT(all, g.dgate, a->n_row * a->K);
    return g;
}

OP(pair_gates_forward, gr_pair_gates, far_pair_gates)
OP(pair_gates_backward, gr_pair_gates, far_pair_gates)

static gr_embed far_embed(copies *all, const gr_embed *a) {
    gr_embed g = *a;
    g.table = in(all, a->table, a->n_vocab, a->width, a->width);
    g.out = out(all, a->out, a->n, a->width, a->width);
    g.dout = in(all, a->dout, a->n, a->width, a->width);
    IN(all, g.id, a->n);
    OUT(all, g.dtable, a->n_vocab * a->width);
    return g;
}

OP(embed_forward, gr_embed, far_embed)
OP(embed_backward, gr_embed, far_embed)

/* ---------------------------------------------------------------- experts and their router */

static gr_ffn far_ffn(copies *all, const gr_ffn *a) {
    gr_ffn g = *a;
    const int64_t n_row = a->pair_row ? rows_reached(a->pair_row, a->n_pair) : a->n_pair;
    g.x = in(all, a->x, n_row, a->D, a->D);
    g.w13 = in(all, a->w13, a->n_expert * 2 * a->F, a->D, a->D);
    g.w2 = in(all, a->w2, a->n_expert * a->D, a->F, a->F);
    g.h = out(all, a->h, a->n_pair, 2 * a->F, 2 * a->F);
    g.a = out(all, a->a, a->n_pair, a->F, a->F);
    g.y = out(all, a->y, a->n_pair, a->D, a->D);
    g.dy = in(all, a->dy, n_row, a->D, a->D);
    g.da = out(all, a->da, a->n_pair, a->F, a->F);
    g.dx = out(all, a->dx, a->n_pair, a->D, a->D);
    IN(all, g.pair_row, a->n_pair);
    IN(all, g.pair_gate, a->n_pair);
    OUT(all, g.dw13, a->n_expert * 2 * a->F * a->D);
    OUT(all, g.dw2, a->n_expert * a->D * a->F);
    OUT(all, g.dgate, a->n_pair);
    IN(all, g.tiles, a->n_tile);
    IN(all, g.expert_order, a->n_expert);
    IN(all, g.device_offset, a->n_expert + 1);
    return g;
}

static gr_err ffn_forward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    copies all = copies_for(b);
    gr_ffn g = far_ffn(&all, a);
    real(b)->experts = b->experts;
    return finish(&all, real(b)->ffn_forward(real(b), lane, &g));
}

static gr_err ffn_backward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    copies all = copies_for(b);
    gr_ffn g = far_ffn(&all, a);
    real(b)->experts = b->experts;
    return finish(&all, real(b)->ffn_backward(real(b), lane, &g));
}

static gr_router_op far_router(copies *all, const gr_router_op *a) {
    gr_router_op g = *a;
    OUT(all, g.p, a->n * a->E);
    OUT(all, g.lse, a->n);
    OUT(all, g.ids, a->n * a->K);
    OUT(all, g.gate, a->n * a->K);
    OUT(all, g.count, a->n / a->T * a->E);
    OUT(all, g.load, a->E);
    OUT(all, g.loss, 2);
    IN(all, g.dgate, a->n * a->K);
    g.dlogits = out(all, a->dlogits, a->n, a->E, a->E);
    return g;
}

OP(router_forward, gr_router_op, far_router)
OP(router_backward, gr_router_op, far_router)

static gr_err divergence(gr_backend *b, gr_lane lane, const gr_divergence *a) {
    copies all = copies_for(b);
    gr_divergence g = *a;
    IN(&all, g.teacher, a->n * a->E);
    IN(&all, g.student, a->n * a->E);
    OUT(&all, g.dstudent, a->n * a->E);
    OUT(&all, g.loss_sum, 1);
    return finish(&all, real(b)->divergence(real(b), lane, &g));
}

/* ---------------------------------------------------------------- layers */

static gr_norm far_norm(copies *all, const gr_norm *a) {
    gr_norm g = *a;
    g.x = in(all, a->x, a->n_row, a->width, a->ldx);
    g.y = out(all, a->y, a->n_row, a->width, a->ldy);
    g.dy = in(all, a->dy, a->n_row, a->width, a->ldy);
    g.dx = out(all, a->dx, a->n_row, a->width, a->ldx);
    IN(all, g.w, a->width);
    OUT(all, g.rstd, a->n_row);
    OUT(all, g.dw, a->width);
    return g;
}

OP(norm_forward, gr_norm, far_norm)
OP(norm_backward, gr_norm, far_norm)

static gr_head_norm far_head_norm(copies *all, const gr_head_norm *a) {
    gr_head_norm g = *a;
    const int64_t n_head = a->n_q + a->n_k, width = n_head * a->head_dim, n_angle = a->T * (a->head_dim / 2);
    g.x = in(all, a->x, a->n_row, width, a->ldx);
    g.y = out(all, a->y, a->n_row, width, a->ldy);
    g.dy = in(all, a->dy, a->n_row, width, a->ldy);
    g.dx = out(all, a->dx, a->n_row, width, a->ldx);
    IN(all, g.cosine, n_angle);
    IN(all, g.sine, n_angle);
    IN(all, g.wq, a->head_dim);
    IN(all, g.wk, a->head_dim);
    OUT(all, g.rstd, a->n_row * n_head);
    OUT(all, g.dwq, a->head_dim);
    OUT(all, g.dwk, a->head_dim);
    return g;
}

OP(head_norm_forward, gr_head_norm, far_head_norm)
OP(head_norm_backward, gr_head_norm, far_head_norm)

static gr_layer_norm far_layer_norm(copies *all, const gr_layer_norm *a) {
    gr_layer_norm g = *a;
    g.x = in(all, a->x, a->n_row, a->width, a->width);
    g.residual = in(all, a->residual, a->n_row, a->width, a->width);
    g.y = out(all, a->y, a->n_row, a->width, a->width);
    g.dy = in(all, a->dy, a->n_row, a->width, a->width);
    g.dx = out(all, a->dx, a->n_row, a->width, a->width);
    IN(all, g.w, a->width);
    IN(all, g.b, a->width);
    OUT(all, g.mean, a->n_row);
    OUT(all, g.rstd, a->n_row);
    OUT(all, g.dw, a->width);
    OUT(all, g.db, a->width);
    return g;
}

OP(layer_norm_forward, gr_layer_norm, far_layer_norm)
OP(layer_norm_backward, gr_layer_norm, far_layer_norm)

static gr_err rope(gr_backend *b, gr_lane lane, const gr_rope *a) {
    copies all = copies_for(b);
    gr_rope g = *a;
    g.x = out(&all, a->x, a->n_row, a->n_head * a->head_dim, a->ld);
    IN(&all, g.cosine, a->T * (a->head_dim / 2));
    IN(&all, g.sine, a->T * (a->head_dim / 2));
    return finish(&all, real(b)->rope(real(b), lane, &g));
}

static gr_attention far_attention(copies *all, const gr_attention *a) {
    gr_attention g = *a;
    const int64_t n = a->n_window * a->T, q = a->H * a->head_dim, kv = a->H_kv * a->head_dim;
    g.q = in(all, a->q, n, q, a->ldq);
    g.k = in(all, a->k, n, kv, a->ldk);
    g.v = in(all, a->v, n, kv, a->ldv);
    g.o = out(all, a->o, n, q, a->ldo);
    g.dout = in(all, a->dout, n, q, a->ldo);
    g.dq = out(all, a->dq, n, q, a->ldq);
    g.dk = out(all, a->dk, n, kv, a->ldk);
    g.dv = out(all, a->dv, n, kv, a->ldv);
    OUT(all, g.lse, n * a->H);
    IN(all, g.documents.first, n);
    IN(all, g.documents.end, n);
    return g;
}

static gr_err attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    copies all = copies_for(b);
    gr_attention g = far_attention(&all, a);
    real(b)->attention = b->attention;
    return finish(&all, real(b)->attention_forward(real(b), lane, &g));
}

static gr_err attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    copies all = copies_for(b);
    gr_attention g = far_attention(&all, a);
    real(b)->attention = b->attention;
    return finish(&all, real(b)->attention_backward(real(b), lane, &g));
}

static gr_err cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    copies all = copies_for(b);
    gr_cross_entropy g = *a;
    g.x = in(&all, a->x, a->n, a->D, a->D);
    g.w = in(&all, a->w, a->V, a->D, a->D);
    g.dx = out(&all, a->dx, a->n, a->D, a->D);
    real(b)->logits_room = b->logits_room;
    g.logits = out(&all, a->logits, gr_logits_chunk(b, a->n, a->V), a->V, a->V);
    IN(&all, g.target, a->n);
    OUT(&all, g.loss_sum, 1);
    OUT(&all, g.token_loss, a->n);
    OUT(&all, g.dw, a->V * a->D);
    return finish(&all, real(b)->cross_entropy(real(b), lane, &g));
}

/* ---------------------------------------------------------------- flat ranges */

static gr_err decide(gr_backend *b, gr_lane lane, const gr_decide *a) {
    copies all = copies_for(b);
    gr_decide g = *a;
    IN(&all, g.squares, 1);
    IN(&all, g.loss, 1);
    OUT(&all, g.out, 1);
    return finish(&all, real(b)->decide(real(b), lane, &g));
}

static gr_err adamw(gr_backend *b, gr_lane lane, const gr_adamw *a) {
    copies all = copies_for(b);
    gr_adamw g = *a;
    OUT(&all, g.p, a->n);
    OUT(&all, g.m, a->n);
    OUT(&all, g.v, a->n);
    IN(&all, g.g, a->n);
    IN(&all, g.decision, 1);
    g.p_act = out(&all, a->p_act, 1, a->n, a->n);
    return finish(&all, real(b)->adamw(real(b), lane, &g));
}

static gr_err round_weights(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n) {
    copies all = copies_for(b);
    void *far_to = out(&all, to, 1, n, n);
    IN(&all, from, n);
    return finish(&all, real(b)->round_weights(real(b), lane, from, far_to, n));
}

static gr_err sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *sum) {
    copies all = copies_for(b);
    IN(&all, x, n);
    OUT(&all, sum, 1);
    return finish(&all, real(b)->sum_squares(real(b), lane, x, n, sum));
}

static gr_err peak(gr_backend *b, double *flops_per_s) {
    return real(b)->peak(real(b), flops_per_s);
}

static void close_both(gr_backend *b) {
    gr_backend_close(real(b));
    free(b);
}

static const gr_backend far_table = {
    .gemm = gemm,
    .gather_rows = gather_rows,
    .sum_rows = sum_rows,
    .gather_f32 = gather_f32,
    .sum_f32 = sum_f32,
    .router_forward = router_forward,
    .router_backward = router_backward,
    .pair_gates_forward = pair_gates_forward,
    .pair_gates_backward = pair_gates_backward,
    .ffn_forward = ffn_forward,
    .ffn_backward = ffn_backward,
    .embed_forward = embed_forward,
    .embed_backward = embed_backward,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .head_norm_forward = head_norm_forward,
    .head_norm_backward = head_norm_backward,
    .layer_norm_forward = layer_norm_forward,
    .layer_norm_backward = layer_norm_backward,
    .rope = rope,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .cross_entropy = cross_entropy,
    .divergence = divergence,
    .sum_squares = sum_squares,
    .decide = decide,
    .adamw = adamw,
    .round_weights = round_weights,
    .peak = peak,
    .close = close_both,
};

gr_err far_open(gr_backend **opened, gr_backend *inner) {
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "test"));
    gr_backend *b = *opened = memory;
    *b = far_table;
    b->state = inner;
    b->name = inner->name;
    b->dtype = inner->dtype;
    b->elem_size = inner->elem_size;
    b->logits_room = inner->logits_room;
    b->experts_best = inner->experts_best;
    b->attention = inner->attention;
    b->attention_best = inner->attention_best;
    b->host_memory = true; /* of the arrays that ops are given */
    return GR_OK;
}
