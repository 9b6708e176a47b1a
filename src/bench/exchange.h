/* exchange.h: what the files of the exchange benchmark share. exchange_batch.c: routes; exchange_plan.c: plans made
 * ahead; exchange_dynamic.c: what a layer does without; exchange_layer.c: the ways; exchange_check.c: their results;
 * exchange.c: time. */
#ifndef GROUTER_BENCH_EXCHANGE_H
#define GROUTER_BENCH_EXCHANGE_H

#include "grouter/bench.h"
#include "grouter/links.h"
#include "grouter/moe.h"

/* ---------------------------------------------------------------- routes (exchange_batch.c) */

/* A micro-batch of all ranks. */
typedef struct bench_batch {
    uint32_t R, rank, N, K, E, T;
    float scale; /* what a token's gates sum to */
    gr_expert_map map;
    uint16_t *ids;     /* [R*N, K] by rank, then token; every slot is used */
    float *gates;      /* [R*N, K] */
    gr_links expected; /* placed: rows of this rank's windows by the placement's counts */
} bench_batch;

enum { BATCH_PLAIN, BATCH_PLACED, BATCH_CORPUS, N_BATCH };

/* Fills as many as there are, 1 or all. */
GR_MUST gr_err gr_bench_batches_open(bench_batch batch[N_BATCH], const gr_exchange_options *o);
void gr_bench_batch_close(bench_batch *b); /* accepts a zeroed one */

/* ---------------------------------------------------------------- plans (exchange_plan.c) */

/* The plan of one rank in two views: `rows` for rows of D and their sums; `gates` for gates, one row of gates.K floats
 * for each row sent. With a row per rank they are the same. With a row per pair `gates` takes each of a token's K pairs
 * for a token of its own with one expert; `rows` is that plan over the N tokens they stand for. */
typedef struct bench_plan {
    gr_plan rows, gates;
    gr_plan_limits limits; /* of gates */
    gr_plan_builder *builder;
    bool per_pair;
    uint32_t N, K; /* of the batch */
    void *memory;
} bench_plan;

/* Room within these limits, and NULL for as much as any routes may need. */
GR_MUST gr_err gr_bench_plan_open(bench_plan *p, const bench_batch *b, bool per_pair, const gr_plan_limits *limits);
void gr_bench_plan_close(bench_plan *p); /* accepts a zeroed one */
GR_MUST gr_err gr_bench_plan_build(bench_plan *p, const bench_batch *b);
/* `rows` from `gates`. */
void gr_bench_plan_fold(bench_plan *p);

/* ---------------------------------------------------------------- without a plan (exchange_dynamic.c) */

typedef struct bench_dynamic {
    gr_comm *comm;
    const gr_expert_map *map;
    uint32_t rank;
    bench_plan plan;            /* made anew in every run, with room for exactly what `like` needs */
    uint32_t *counts, *coming;  /* [R][E_local] pairs by rank and slot (row per pair): mine to them, theirs to me */
    uint32_t *cursor;           /* [max(E, R) + 1] */
    uint32_t *order;            /* [N*K] own pairs by rank and slot */
    uint32_t *place;            /* [max(N*K, R)] where a pair went; or the last token that went to a rank */
    uint32_t *one_row;          /* [R] ones */
    uint16_t *ids_out, *ids_in; /* [n_send, K], [n_recv, K] (row per rank) */
    void *memory;
} bench_dynamic;

GR_MUST gr_err gr_bench_dynamic_open(bench_dynamic *d, gr_comm *comm, const bench_batch *b, const bench_plan *like);
void gr_bench_dynamic_close(bench_dynamic *d); /* accepts a zeroed one */
/* What comes before the rows travel: from the own tokens' ids [N, K] to the plan, with the exchange of counts. With a
 * row per rank the pairs are still unknown. */
GR_MUST gr_err gr_bench_dynamic_rows(bench_dynamic *d, const uint16_t *ids);
/* With a row per rank, what comes after it: ids follow the rows, and make pairs of them. */
GR_MUST gr_err gr_bench_dynamic_pairs(bench_dynamic *d, const uint16_t *ids);

/* ---------------------------------------------------------------- the ways (exchange_layer.c) */

enum { PLAN_PAIRS, PLAN_RANKS, PLAN_PLACED, PLAN_CORPUS, N_PLAN };

typedef struct bench_way {
    const char *routes, *row;
    bool router, counts;
    int plan, batch;
} bench_way;
extern const bench_way gr_bench_ways[GR_N_EXCHANGE_WAY];

/* Arrays of one layer, large enough for every way. */
typedef struct bench_layer {
    gr_comm *comm;
    gr_backend *backend;
    bench_batch *batch; /* [N_BATCH] */
    int n_batch;
    bench_plan plan[N_PLAN];  /* those of the batches there are */
    bench_dynamic dynamic[2]; /* PLAN_PAIRS, PLAN_RANKS */
    int64_t D;
    uint32_t recv_max;
    void *memory;
    void *x, *dy;                    /* act [N + recv_max, D] own rows, then received ones */
    void *out, *dx;                  /* act [N, D] */
    void *send, *partial, *pair_out; /* as in gr_moe */
    float *given, *chosen;           /* [N*K + ...] gates: the batch's, the router's; own first, then received ones */
    float *dgate;                    /* like them */
    float *gate_send;                /* as in gr_moe */
    float *pair_gate[N_PLAN];        /* [n_pair] from the batch */
    float *moved_gate, *pair_dgate;  /* [n_pair] as they came; of backward */
    void *router, *dlogits;          /* act [E, D], [N, E] */
    float *drouter;                  /* [E, D] */
    float *p, *lse;                  /* [N, E], [N] */
    uint16_t *ids;                   /* [N, K] the router's */
    uint32_t *count;                 /* [B, E] */
    gr_moe rows, gates;              /* of the way being run */
} bench_layer;

GR_MUST gr_err gr_bench_layer_open(bench_layer *l, const gr_exchange_options *o, bench_batch *batch);
void gr_bench_layer_close(bench_layer *l); /* accepts a zeroed one */

/* A way runs in four parts; the experts would come after the first and the third. */
enum { PART_DISPATCH, PART_COMBINE, PART_BACK_DISPATCH, PART_BACK_COMBINE, N_PART };
GR_MUST gr_err gr_bench_layer_run(bench_layer *l, gr_exchange_way w, int part);
/* Gates of the pairs of the way that has run. */
const float *gr_bench_layer_gates(const bench_layer *l, gr_exchange_way w);
/* Bytes this rank sends in its two directions, by the plan. */
void gr_bench_layer_forecast(const bench_layer *l, gr_exchange_way w, uint64_t bytes[2]);

/* ---------------------------------------------------------------- results (exchange_check.c) */

/* Runs all parts of a way with rows that carry their rank and token and experts that multiply, and checks what arrives:
 * 70, on this rank alone. bytes: counted. */
GR_MUST gr_err gr_bench_check(bench_layer *l, gr_exchange_way w, uint64_t bytes[2]);
/* Rows that the router of the layer finds the plain batch's experts in. */
void gr_bench_fill(bench_layer *l, const bench_batch *b);

#endif
