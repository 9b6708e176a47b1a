#include "narrow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A rounded copy of rows that start every ld elements; `before` is what it held before the op. */
typedef struct copy {
    float *wide;
    int64_t n_row, width, ld;
    uint16_t *now, *before;
    bool written;
} copy;

enum { COPIES_MAX = 12 };
typedef struct copies {
    copy list[COPIES_MAX];
    int n;
} copies;

static void die(const char *what) {
    fprintf(stderr, "narrow: %s\n", what);
    abort();
}

static size_t elements(const copy *c) {
    return c->n_row > 0 ? (size_t)((c->n_row - 1) * c->ld + c->width) : 0;
}

static void *memory_of(size_t n) {
    void *p = malloc((n ? n : 1) * sizeof(uint16_t));
    if (!p)
        die("no memory");
    return p;
}

/* Arrays that are one in the call stay one: ops may work in place. */
static void *add(copies *all, const void *array, int64_t n_row, int64_t width, int64_t ld, bool written) {
    if (!array)
        return NULL;
    for (int i = 0; i < all->n; i++)
        if (all->list[i].wide == array) {
            all->list[i].written |= written;
            return all->list[i].now;
        }
    if (all->n == COPIES_MAX)
        die("too many arrays");
    copy *c = &all->list[all->n++];
    *c = (copy){.wide = (float *)(uintptr_t)array, .n_row = n_row, .width = width, .ld = ld, .written = written};
    size_t n = elements(c);
    c->now = memory_of(n);
    c->before = memory_of(n);
    for (size_t i = 0; i < n; i++)
        c->now[i] = gr_bf16_from_f32(c->wide[i]);
    memcpy(c->before, c->now, n * sizeof *c->now);
    return c->now;
}

static const void *in(copies *all, const void *array, int64_t n_row, int64_t width, int64_t ld) {
    return add(all, array, n_row, width, ld, false);
}

static void *out(copies *all, void *array, int64_t n_row, int64_t width, int64_t ld) {
    return add(all, array, n_row, width, ld, true);
}

static void widen_back(const copy *c) {
    for (size_t i = 0; i < elements(c); i++) {
        bool gap = (int64_t)i % c->ld >= c->width;
        if (gap || !c->written) {
            if (c->now[i] != c->before[i])
                die(gap ? "an op wrote between rows" : "an op wrote into an input");
        } else {
            c->wide[i] = gr_f32_from_bf16(c->now[i]);
        }
    }
}

/* The op's result, with everything it wrote brought back. */
static gr_err finish(copies *all, gr_err err) {
    for (int i = 0; i < all->n; i++) {
        widen_back(&all->list[i]);
        free(all->list[i].now);
        free(all->list[i].before);
    }
    return err;
}

static gr_backend *real(gr_backend *b) {
    return b->state;
}

/* Rows that a list of indices reaches. */
static int64_t rows_reached(const uint32_t *index, int64_t n) {
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++)
        most = index[i] >= most ? index[i] + 1 : most;
    return most;
}

/* ---------------------------------------------------------------- the ops */

/* An op of one argument struct, whose arrays `copied` exchanges for rounded ones. */
#define OP(op, type, copied)                                                                                           \
    static gr_err op(gr_backend *b, gr_lane lane, const type *a) {                                                     \
        copies all = {0};                                                                                              \
        type g = copied(&all, a);                                                                                      \
        return finish(&all, real(b)->op(real(b), lane, &g));                                                           \
    }

static gr_err gemm(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    copies all = {0};
    gr_gemm g = *a;
    bool ta = a->layout == GR_TN, tb = a->layout == GR_NT;
    g.a = in(&all, a->a, ta ? a->k : a->m, ta ? a->m : a->k, a->lda);
    g.b = in(&all, a->b, tb ? a->n : a->k, tb ? a->k : a->n, a->ldb);
    if (a->c_dtype == GR_BF16)
        g.c = out(&all, a->c, a->m, a->n, a->ldc);
    return finish(&all, real(b)->gemm(real(b), lane, &g));
}

static gr_err gather_rows(gr_backend *b, gr_lane lane, const gr_gather *a) {
    copies all = {0};
    gr_gather g = *a;
    g.in = in(&all, a->in, rows_reached(a->index, a->n_row), a->width, a->width);
    g.out = out(&all, a->out, a->n_row, a->width, a->width);
    return finish(&all, real(b)->gather_rows(real(b), lane, &g));
}

static gr_err sum_rows(gr_backend *b, gr_lane lane, const gr_sum *a) {
    copies all = {0};
    gr_sum g = *a;
    g.base = in(&all, a->base, a->n_row, a->width, a->width);
    for (int s = 0; s < 2; s++)
        if (a->source[s])
            g.source[s] = in(&all, a->source[s], rows_reached(a->index[s], a->offset[s][a->n_row]), a->width, a->width);
    g.out = out(&all, a->out, a->n_row, a->width, a->width);
    return finish(&all, real(b)->sum_rows(real(b), lane, &g));
}

static gr_ffn narrow_ffn(copies *all, const gr_ffn *a) {
    gr_ffn g = *a;
    int64_t n_row = a->pair_row ? rows_reached(a->pair_row, a->n_pair) : a->n_pair;
    g.x = in(all, a->x, n_row, a->D, a->D);
    g.w13 = in(all, a->w13, a->n_expert * 2 * a->F, a->D, a->D);
    g.w2 = in(all, a->w2, a->n_expert * a->D, a->F, a->F);
    g.h = out(all, a->h, a->n_pair, 2 * a->F, 2 * a->F);
    g.a = out(all, a->a, a->n_pair, a->F, a->F);
    g.y = out(all, a->y, a->n_pair, a->D, a->D);
    g.dy = in(all, a->dy, n_row, a->D, a->D);
    g.da = out(all, a->da, a->n_pair, a->F, a->F);
    g.dx = out(all, a->dx, a->n_pair, a->D, a->D);
    return g;
}

static gr_err ffn_forward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    copies all = {0};
    gr_ffn g = narrow_ffn(&all, a);
    real(b)->experts = b->experts;
    return finish(&all, real(b)->ffn_forward(real(b), lane, &g));
}

static gr_err ffn_backward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    copies all = {0};
    gr_ffn g = narrow_ffn(&all, a);
    real(b)->experts = b->experts;
    return finish(&all, real(b)->ffn_backward(real(b), lane, &g));
}

static gr_embed narrow_embed(copies *all, const gr_embed *a) {
    gr_embed g = *a;
    g.table = in(all, a->table, a->n_vocab, a->width, a->width);
    g.out = out(all, a->out, a->n, a->width, a->width);
    g.dout = in(all, a->dout, a->n, a->width, a->width);
    return g;
}

OP(embed_forward, gr_embed, narrow_embed)
OP(embed_backward, gr_embed, narrow_embed)

static gr_norm narrow_norm(copies *all, const gr_norm *a) {
    gr_norm g = *a;
    g.x = in(all, a->x, a->n_row, a->width, a->ldx);
    g.y = out(all, a->y, a->n_row, a->width, a->ldy);
    g.dy = in(all, a->dy, a->n_row, a->width, a->ldy);
    g.dx = out(all, a->dx, a->n_row, a->width, a->ldx);
    return g;
}

OP(norm_forward, gr_norm, narrow_norm)
OP(norm_backward, gr_norm, narrow_norm)

static gr_head_norm narrow_head_norm(copies *all, const gr_head_norm *a) {
    gr_head_norm g = *a;
    const int64_t width = (a->n_q + a->n_k) * a->head_dim;
    g.x = in(all, a->x, a->n_row, width, a->ldx);
    g.y = out(all, a->y, a->n_row, width, a->ldy);
    g.dy = in(all, a->dy, a->n_row, width, a->ldy);
    g.dx = out(all, a->dx, a->n_row, width, a->ldx);
    return g;
}

OP(head_norm_forward, gr_head_norm, narrow_head_norm)
OP(head_norm_backward, gr_head_norm, narrow_head_norm)

static gr_err rope(gr_backend *b, gr_lane lane, const gr_rope *a) {
    copies all = {0};
    gr_rope g = *a;
    g.x = out(&all, a->x, a->n_row, a->n_head * a->head_dim, a->ld);
    return finish(&all, real(b)->rope(real(b), lane, &g));
}

static gr_attention narrow_attention(copies *all, const gr_attention *a) {
    gr_attention g = *a;
    int64_t n = a->n_window * a->T, q = a->H * a->head_dim, kv = a->H_kv * a->head_dim;
    g.q = in(all, a->q, n, q, a->ldq);
    g.k = in(all, a->k, n, kv, a->ldk);
    g.v = in(all, a->v, n, kv, a->ldv);
    g.o = out(all, a->o, n, q, a->ldo);
    g.dout = in(all, a->dout, n, q, a->ldo);
    g.dq = out(all, a->dq, n, q, a->ldq);
    g.dk = out(all, a->dk, n, kv, a->ldk);
    g.dv = out(all, a->dv, n, kv, a->ldv);
    return g;
}

static gr_err attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    copies all = {0};
    gr_attention g = narrow_attention(&all, a);
    real(b)->attention = b->attention;
    return finish(&all, real(b)->attention_forward(real(b), lane, &g));
}

static gr_err attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    copies all = {0};
    gr_attention g = narrow_attention(&all, a);
    real(b)->attention = b->attention;
    return finish(&all, real(b)->attention_backward(real(b), lane, &g));
}

static gr_err cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    copies all = {0};
    gr_cross_entropy g = *a;
    g.x = in(&all, a->x, a->n, a->D, a->D);
    g.w = in(&all, a->w, a->V, a->D, a->D);
    g.dx = out(&all, a->dx, a->n, a->D, a->D);
    real(b)->logits_room = b->logits_room;
    g.logits = out(&all, a->logits, gr_logits_chunk(b, a->n, a->V), a->V, a->V);
    return finish(&all, real(b)->cross_entropy(real(b), lane, &g));
}

static gr_err adamw(gr_backend *b, gr_lane lane, const gr_adamw *a) {
    gr_adamw g = *a;
    uint16_t *rounded = memory_of((size_t)a->n);
    for (int64_t i = 0; i < a->n; i++) /* outside the ranges it stays */
        rounded[i] = gr_bf16_from_f32(a->p[i]);
    g.p_act = rounded;
    gr_err err = real(b)->adamw(real(b), lane, &g);
    for (int64_t i = 0; i < a->n; i++)
        if (rounded[i] != gr_bf16_from_f32(a->p[i]))
            die("adamw left a weight's copy other than rounded");
    free(rounded);
    return err;
}

static gr_err round_weights(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n) {
    copies all = {0};
    return finish(&all, real(b)->round_weights(real(b), lane, from, out(&all, to, 1, n, n), n));
}

/* ---------------------------------------------------------------- what has no act arrays */

static gr_err sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *sum) {
    return real(b)->sum_squares(real(b), lane, x, n, sum);
}

static gr_err decide(gr_backend *b, gr_lane lane, const gr_decide *a) {
    return real(b)->decide(real(b), lane, a);
}

static gr_err peak(gr_backend *b, double *flops_per_s) {
    return real(b)->peak(real(b), flops_per_s);
}

static void close_both(gr_backend *b) {
    gr_backend_close(real(b));
    free(b);
}

gr_err narrow_open(gr_backend **opened, gr_backend *inner) {
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "test"));
    gr_backend *b = *opened = memory;
    *b = *inner; /* memory and lanes need no state */
    b->state = inner;
    b->dtype = GR_F32;
    b->elem_size = sizeof(float);
    b->gemm = gemm;
    b->gather_rows = gather_rows;
    b->sum_rows = sum_rows;
    b->ffn_forward = ffn_forward;
    b->ffn_backward = ffn_backward;
    b->embed_forward = embed_forward;
    b->embed_backward = embed_backward;
    b->norm_forward = norm_forward;
    b->norm_backward = norm_backward;
    b->head_norm_forward = head_norm_forward;
    b->head_norm_backward = head_norm_backward;
    b->rope = rope;
    b->attention_forward = attention_forward;
    b->attention_backward = attention_backward;
    b->cross_entropy = cross_entropy;
    b->decide = decide;
    b->adamw = adamw;
    b->round_weights = round_weights;
    b->sum_squares = sum_squares;
    b->peak = peak;
    b->close = close_both;
    return GR_OK;
}
