/* exchange_check.c: rows that say whose they are, and plain loops for what must come of them. */
#include "exchange.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STREAM_X = 11, STREAM_DY = 12 };
#define CHOSEN 4.0f /* in the columns of a token's experts; elsewhere rows are random in [-1, 1) */

/* ---------------------------------------------------------------- numbers in the storage type */

static float get(const bench_layer *l, const void *base, size_t i) {
    return l->backend->elem_size == sizeof(float) ? ((const float *)base)[i]
                                                  : gr_f32_from_bf16(((const uint16_t *)base)[i]);
}

static void put(const bench_layer *l, void *base, size_t i, float v) {
    if (l->backend->elem_size == sizeof(float))
        ((float *)base)[i] = v;
    else
        ((uint16_t *)base)[i] = gr_bf16_from_f32(v);
}

static size_t row_bytes(const bench_layer *l) {
    return (size_t)l->D * l->backend->elem_size;
}

static const void *row_at(const bench_layer *l, const void *base, size_t row) {
    return (const uint8_t *)base + row * row_bytes(l);
}

/* ---------------------------------------------------------------- rows of tokens, numbered over all ranks */

static void make_row(const bench_layer *l, const bench_batch *b, uint64_t stream, uint32_t token, void *row) {
    for (size_t j = 0; j < (size_t)l->D; j++) {
        uint64_t bits = gr_random_u64(stream, token, j) >> 40;
        put(l, row, j, (float)bits * 0x1p-23f - 1);
    }
    for (uint32_t k = 0; stream == STREAM_X && k < b->K; k++)
        put(l, row, b->ids[(size_t)token * b->K + k], CHOSEN);
}

static void make_own(bench_layer *l, const bench_batch *b, uint64_t stream, void *rows) {
    for (uint32_t t = 0; t < b->N; t++)
        make_row(l, b, stream, b->rank * b->N + t, (uint8_t *)rows + t * row_bytes(l));
}

void gr_bench_fill(bench_layer *l, const bench_batch *b) {
    make_own(l, b, STREAM_X, l->x);
    make_own(l, b, STREAM_DY, l->dy);
}

/* What the stand-in for an expert multiplies by. */
static float factor(uint32_t expert) {
    return 1 + (float)(expert % 7) / 8;
}

/* ---------------------------------------------------------------- who is who */

typedef struct known_row {
    uint64_t hash;
    uint32_t token;
} known_row;

typedef struct checker {
    bench_layer *l;
    const bench_batch *b;
    gr_exchange_way w;
    known_row *known[2]; /* [R*N] by hash: rows of x, of dy */
    uint8_t *seen;       /* [R*N*K] pairs that were found */
    void *row;           /* one */
} checker;

static int by_hash(const void *a, const void *b) {
    uint64_t x = ((const known_row *)a)->hash, y = ((const known_row *)b)->hash;
    return (x > y) - (x < y);
}

static gr_err checker_open(checker *c, bench_layer *l, gr_exchange_way w) {
    const bench_batch *b = &l->batch[gr_bench_ways[w].batch];
    const size_t n = (size_t)b->R * b->N;
    *c = (checker){.l = l, .b = b, .w = w};
    GR_TRY(gr_alloc(&c->row, 1, row_bytes(l), "a row"));
    GR_TRY(gr_alloc((void **)&c->seen, n * b->K, 1, "pairs that were found"));
    for (int i = 0; i < 2; i++) {
        GR_TRY(gr_alloc((void **)&c->known[i], n, sizeof *c->known[i], "rows by content"));
        for (uint32_t token = 0; token < n; token++) {
            make_row(l, b, i ? STREAM_DY : STREAM_X, token, c->row);
            c->known[i][token] = (known_row){.hash = gr_hash64(c->row, row_bytes(l)), .token = token};
        }
        qsort(c->known[i], n, sizeof *c->known[i], by_hash);
    }
    return GR_OK;
}

static void checker_close(checker *c) {
    free(c->known[1]);
    free(c->known[0]);
    free(c->seen);
    free(c->row);
}

GR_MUST static gr_err fail_check(const checker *c, const char *what, uint64_t at, double expected, double got) {
    const bench_way *way = &gr_bench_ways[c->w];
    return gr_fail(GR_BUG,
        "bench exchange: routes by %s, a row per %s: rank %u: %s %llu: expected %.9g, got %.9g; please report it",
        way->routes, way->row, c->b->rank, what, (unsigned long long)at, expected, got);
}

/* The gate a pair should come with: the table's, or the same for all of a token's experts, whose logits are equal. */
static bool is_gate(const checker *c, size_t pair, float gate) {
    if (!gr_bench_ways[c->w].router)
        return gate == c->b->gates[pair];
    return fabsf(gate * (float)c->b->K / c->b->scale - 1) <= 1e-5f;
}

/* The pair of an expert that this row brings, if the row is a token's that chose the expert. */
static gr_err check_pair(checker *c, const void *row, int kind, uint32_t expert, uint32_t pair) {
    const bench_batch *b = c->b;
    const known_row wanted = {.hash = gr_hash64(row, row_bytes(c->l))};
    const known_row *found = bsearch(&wanted, c->known[kind], (size_t)b->R * b->N, sizeof wanted, by_hash);
    if (!found)
        return fail_check(c, kind ? "backward, row of pair" : "row of pair", pair, 1, 0);
    size_t first = (size_t)found->token * b->K, k = 0;
    while (k < b->K && b->ids[first + k] != expert)
        k++;
    if (k == b->K || c->seen[first + k])
        return fail_check(c, k == b->K ? "token without expert" : "pair met twice of token", found->token, expert, -1);
    c->seen[first + k] = 1;
    float gate = gr_bench_layer_gates(c->l, c->w)[pair];
    return is_gate(c, first + k, gate)
               ? GR_OK
               : fail_check(c, "gate of token", found->token, (double)b->gates[first + k], (double)gate);
}

/* All pairs of this rank's experts, each once and with its token's row. */
static gr_err check_rows(checker *c, const void *x, int kind) {
    const bench_batch *b = c->b;
    const gr_plan *p = c->l->rows.plan;
    const size_t n = (size_t)b->R * b->N * b->K;
    uint64_t n_here = 0;
    memset(c->seen, 0, n);
    for (uint32_t s = 0; s < p->E_local; s++) {
        uint32_t expert = b->map.expert_at[(size_t)b->rank * p->E_local + s];
        for (uint32_t i = p->expert_offset[s]; i < p->expert_offset[s + 1]; i++)
            GR_TRY(check_pair(c, row_at(c->l, x, p->pair_row[i]), kind, expert, i));
    }
    for (size_t i = 0; i < n; i++)
        n_here += b->map.rank_of[b->ids[i]] == b->rank;
    return n_here == p->n_pair ? GR_OK : fail_check(c, "pairs of rank", b->rank, (double)n_here, p->n_pair);
}

/* ---------------------------------------------------------------- experts that multiply, and their sums */

static void stand_in(checker *c, const void *x) {
    bench_layer *l = c->l;
    const gr_plan *p = l->rows.plan;
    const float *gates = gr_bench_layer_gates(l, c->w);
    for (uint32_t s = 0; s < p->E_local; s++) {
        float by = factor(c->b->map.expert_at[(size_t)c->b->rank * p->E_local + s]);
        for (uint32_t i = p->expert_offset[s]; i < p->expert_offset[s + 1]; i++) {
            const void *row = row_at(l, x, p->pair_row[i]);
            l->pair_dgate[i] = by;
            for (size_t j = 0; j < (size_t)l->D; j++)
                put(l, l->pair_out, i * (size_t)l->D + j, by * gates[i] * get(l, row, j));
        }
    }
}

/* What the router adds to dx in column `ids[k]`: g_k (dg_k - sum of g dg / scale), rounded as the logits' gradients
 * are.
 */
static double router_term(const checker *c, const uint16_t *ids, uint32_t k) {
    double g = (double)c->b->scale / c->b->K, mean = 0;
    for (uint32_t i = 0; i < c->b->K; i++)
        mean += (double)factor(ids[i]) * g;
    return g * ((double)factor(ids[k]) - mean / (double)c->b->scale);
}

/* out[t] is the sum over the token's experts of factor * gate * its row. */
static gr_err check_sums(checker *c, const void *out, int kind) {
    const bench_layer *l = c->l;
    const bench_batch *b = c->b;
    const bool router = gr_bench_ways[c->w].router;
    const double bound = l->backend->elem_size == sizeof(float) ? 1e-5 : 1e-2;
    for (uint32_t t = 0; t < b->N; t++) {
        const uint32_t token = b->rank * b->N + t;
        const uint16_t *ids = b->ids + (size_t)token * b->K;
        double sum = 0, difference = 0, norm = 0;
        for (uint32_t k = 0; k < b->K; k++)
            sum += (double)factor(ids[k]) *
                   (router ? (double)b->scale / b->K : (double)b->gates[(size_t)token * b->K + k]);
        make_row(l, b, kind ? STREAM_DY : STREAM_X, token, c->row);
        for (uint32_t k = 0, j = 0; j < (uint32_t)l->D; j++) {
            double expected = sum * (double)get(l, c->row, j);
            if (kind && router && k < b->K && ids[k] == j)
                expected += router_term(c, ids, k++);
            double d = (double)get(l, out, (size_t)t * (size_t)l->D + j) - expected;
            difference += d * d;
            norm += expected * expected;
        }
        if (!(sqrt(difference) <= bound * sqrt(norm)))
            return fail_check(c, kind ? "backward, sum of token" : "sum of token", t, 0, sqrt(difference / norm));
    }
    return GR_OK;
}

/* Gradients of gates came back to their tokens. */
static gr_err check_gate_gradients(const checker *c) {
    const bench_batch *b = c->b;
    const size_t own = (size_t)b->N * b->K;
    for (size_t i = 0; i < own; i++) {
        float expected = factor(b->ids[b->rank * own + i]);
        if (c->l->dgate[i] != expected)
            return fail_check(c, "gradient of gate", i, (double)expected, (double)c->l->dgate[i]);
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- one way */

/* Every number is NaN until it is written. */
static void poison(bench_layer *l, const bench_batch *b) {
    const size_t n = row_bytes(l);
    memset((uint8_t *)l->x + b->N * n, 0xFF, l->recv_max * n);
    memset((uint8_t *)l->dy + b->N * n, 0xFF, l->recv_max * n);
    memset(l->out, 0xFF, b->N * n);
    memset(l->dx, 0xFF, b->N * n);
    memset(l->chosen, 0xFF, (size_t)b->N * b->K * sizeof *l->chosen);
    memset(l->dgate, 0xFF, (size_t)b->N * b->K * sizeof *l->dgate);
}

static uint64_t bytes_sent(const gr_comm *comm) {
    uint64_t n = 0;
    for (int t = 0; t < GR_N_TRAFFIC; t++)
        n += comm->sent[t];
    return n;
}

/* Forward or backward. */
static gr_err check_direction(checker *c, int kind, uint64_t *bytes) {
    bench_layer *l = c->l;
    void *x = kind ? l->dy : l->x;
    uint64_t before = bytes_sent(l->comm);
    GR_TRY(gr_bench_layer_run(l, c->w, kind ? PART_BACK_DISPATCH : PART_DISPATCH));
    GR_TRY(check_rows(c, x, kind));
    stand_in(c, x);
    GR_TRY(gr_bench_layer_run(l, c->w, kind ? PART_BACK_COMBINE : PART_COMBINE));
    *bytes = bytes_sent(l->comm) - before;
    return check_sums(c, kind ? l->dx : l->out, kind);
}

static gr_err check_way(checker *c, uint64_t bytes[2]) {
    uint64_t forecast[2];
    GR_TRY(check_direction(c, 0, &bytes[0]));
    GR_TRY(check_direction(c, 1, &bytes[1]));
    if (gr_bench_ways[c->w].router)
        GR_TRY(check_gate_gradients(c));
    gr_bench_layer_forecast(c->l, c->w, forecast);
    for (int i = 0; i < 2; i++)
        if (bytes[i] != forecast[i])
            return fail_check(c, i ? "bytes backward, rank" : "bytes forward, rank", c->b->rank, (double)forecast[i],
                (double)bytes[i]);
    return GR_OK;
}

gr_err gr_bench_check(bench_layer *l, gr_exchange_way w, uint64_t bytes[2]) {
    checker c;
    gr_err e = checker_open(&c, l, w);
    if (!e) {
        gr_bench_fill(l, c.b);
        poison(l, c.b);
        e = check_way(&c, bytes);
    }
    checker_close(&c);
    return e;
}
