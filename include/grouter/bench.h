/* bench.h: measurements of parts of a step.
 *
 * Exchange: dispatch and combine of one layer, forward and the mirrored backward, without the experts between them, by
 * what is known of the routes and by what travels. All ways move the rows of the same micro-batch with the same ops and
 * the same comm; where a token's rows differ in number, the plan does.
 *   router  the layer's router chooses (matrix product, top-k, softmax; in backward their gradients), then as `counts`
 *   counts  routes are given in the layer: pairs are sorted by expert, ranks exchange how many come from whom and wait,
 *           ids or gates travel with the rows, lists are made on both sides
 *   plan    routes were known before the step: only rows travel
 * A row is one pair (token, expert) elsewhere, or one token for all its experts on one rank, whose results come back
 * as one sum. Own tokens stay where they are in all ways. Source: performance model and traffic of expert parallelism,
 * E[c] = (R-1)(1 - C(E-E/R, K) / C(E, K)) rows per token at uniform routing. */
#ifndef GROUTER_BENCH_H
#define GROUTER_BENCH_H

#include "grouter/comm.h"
#include "grouter/placement.h"

typedef enum gr_exchange_way {
    GR_EXCHANGE_ROUTER_PAIRS, /* what others do in every layer */
    GR_EXCHANGE_COUNTS_PAIRS,
    GR_EXCHANGE_PLAN_PAIRS,
    GR_EXCHANGE_ROUTER_RANKS,
    GR_EXCHANGE_COUNTS_RANKS,
    GR_EXCHANGE_PLAN_RANKS, /* what this program does */
    /* The same with a placement: experts where it puts them; windows of the same batch on the ranks that leave the
     * fewest rows, as many on each... */
    GR_EXCHANGE_PLACED_BATCH,
    GR_EXCHANGE_PLACED_CORPUS, /* ...or on each rank windows that the placement gives it: other windows */
    GR_N_EXCHANGE_WAY
} gr_exchange_way;
const char *gr_exchange_way_routes(gr_exchange_way w); /* "router", "counts", "plan" */
const char *gr_exchange_way_row(gr_exchange_way w);    /* "pair", "rank", "rank, placed batch" */

typedef struct gr_exchange_options {
    gr_comm *comm;                 /* of 2 ranks or more; becomes one expert-parallel group */
    const char *routes;            /* a route table; NULL: uniform routes, K of E experts, windows of T tokens */
    const gr_placement *placement; /* of that table for as many ranks, or NULL */
    uint32_t E, K, T;              /* without a table; E <= D */
    uint32_t D, B;                 /* width of a row; windows of a rank */
    gr_dtype dtype;                /* of rows */
    uint32_t n_repeat;             /* runs that are timed */
    uint64_t seed;                 /* of uniform routes, or of which windows of the table */
} gr_exchange_options;

typedef struct gr_bench_time {
    double median_ms, low_ms, high_ms; /* low, high: quartiles */
} gr_bench_time;

typedef struct gr_exchange_figures {
    bool measured;
    uint64_t rows;     /* that one dispatch sends, all ranks together */
    uint64_t rows_max; /* of the rank that sends most */
    uint64_t bytes[2]; /* all that ranks hand to each other forward and backward, all ranks together, as counted */
    gr_bench_time forward, backward, both;
} gr_exchange_figures;

/* What is saved on the way from one way to another. */
typedef struct gr_exchange_gain {
    const char *name;
    gr_exchange_way from, to;
    bool measured;
    gr_bench_time both; /* of the differences of runs next to each other */
} gr_exchange_gain;
enum { GR_EXCHANGE_GAINS = 8 };

typedef struct gr_exchange_report {
    uint32_t R, E, K, T, N; /* N tokens of a rank */
    double uniform;         /* rows per token of uniform routes, one per rank: E[c] */
    gr_bench_time plan;     /* making the plan, once for all layers of a micro-batch; on this rank */
    gr_exchange_figures way[GR_N_EXCHANGE_WAY];
    gr_exchange_gain gain[GR_EXCHANGE_GAINS];
} gr_exchange_report;

/* Collective. Before anything is timed, in each way every row that arrives is recognised, every sum is compared with
 * plain loops, and the bytes that the comm counted with those of the plan: 70, on the rank that finds it. A time is the
 * slowest rank's, parts between two barriers added up. Other errors are agreed by all ranks. 64: fewer than 2 ranks, or
 * as many as do not divide E, a width below E, too much at once, a placement for other ranks. 65: a table that is
 * damaged, too short or leaves slots unused, a placement of other routes. 69. */
GR_MUST gr_err gr_bench_exchange(const gr_exchange_options *o, gr_exchange_report *report);

#endif
