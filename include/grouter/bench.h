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

/* ---------------------------------------------------------------- shapes by name */

typedef struct gr_bench_shape {
    const char *name;
    int64_t T;              /* tokens of a window */
    int64_t D, F, E, K;     /* model width, expert width, experts, experts of a token */
    int64_t H, H_kv, hd, V; /* heads, key/value heads, head width, vocabulary */
} gr_bench_shape;

/* "small", for a CPU, and the layers of tiny-qwen3, mini-qwen3, mini-ds-v2-lite, mini-gpt-oss (paper, tables 3 and 4;
 * what the paper leaves out, and latent attention, as plain heads of 64) and qwen3-30b-a3b. 2 with the nearest name. */
GR_MUST gr_err gr_bench_shape_find(const char *name, gr_bench_shape *out);
const char *gr_bench_shape_names(void); /* "small, tiny-qwen3, ..." */

/* ---------------------------------------------------------------- kernels: every op of a backend */

typedef struct gr_kernels_options {
    gr_comm *comm; /* all ranks run the same ops at the same time; figures are each rank's own */
    const char *backend;
    gr_dtype dtype;
    gr_bench_shape shape;
    int64_t N;         /* tokens, a multiple of shape.T */
    const char *only;  /* ops, comma-separated; NULL: all */
    uint32_t n_repeat; /* 0: as many as fit 0.4 s, at least 5 and at most 50 */
    uint64_t seed;     /* of the data */
} gr_kernels_options;

typedef struct gr_kernel_figures {
    const char *op, *variant; /* as in gr_backend; what of it, "" where there is only one way */
    char shape[64];
    const char *flops_formula, *bytes_formula; /* in the letters of `shape`; s: bytes of a stored number */
    double flops, bytes;                       /* of one run; flops 0: not counted. Bytes: every array once */
    bool compute;                              /* its share is of the matrix product's rate, else of the copy's */
    double share;
    gr_bench_time time;
    double best_ms;
    uint32_t n_run;
    double error; /* norm-wise, of sampled results against double */
} gr_kernel_figures;
enum { GR_KERNELS_MAX = 64 };

typedef struct gr_kernels_report {
    const char *backend; /* what auto stands for */
    double peak_flops;   /* per second, of this rank: the best matrix product before and after the ops */
    double copy_bytes;   /* per second, read and written, of a copy larger than the caches */
    double launch_ms;    /* of an op with nothing to do: it is in every time */
    int n;
    gr_kernel_figures kernel[GR_KERNELS_MAX];
} gr_kernels_report;

/* Times each op alone on fresh random data, its arrays not in the caches: between two runs other memory is written.
 * A time is from the call to the return of `sync`, so what a device computes is in it. Before, the results of each are
 * compared at sampled places with loops in double: 70. Errors are agreed by all ranks. 2: an op that is unknown; 64:
 * tokens or sizes that do not fit each other; 69. */
GR_MUST gr_err gr_bench_kernels(const gr_kernels_options *o, gr_kernels_report *report);

/* ---------------------------------------------------------------- layer: dispatch, experts, combine and their backward
 */

typedef enum gr_load_kind { GR_LOAD_UNIFORM, GR_LOAD_SKEWED, GR_LOAD_HOT, GR_LOAD_TABLE, GR_N_LOAD_KIND } gr_load_kind;
const char *gr_load_kind_name(gr_load_kind k); /* "uniform", "skewed", "hot", "table" */

typedef struct gr_layer_options {
    gr_comm *comm; /* becomes one expert-parallel group */
    const char *backend;
    const char *expert_kernels; /* gr_backend_set_experts */
    gr_dtype dtype;
    uint32_t N, D, F, E, K; /* N tokens of a rank. With a table E and K are its own, N whole windows of it */
    gr_load_kind load;
    double cv;               /* skewed: standard deviation over mean of the experts' loads */
    double hot;              /* hot: load of the first expert over the mean, at most E/K */
    const char *routes;      /* table */
    const char *save_routes; /* not NULL: the routes as a table of one window a rank, which others can read */
    uint32_t n_repeat;
    uint64_t seed;
} gr_layer_options;

typedef struct gr_layer_report {
    const char *backend;
    uint32_t R, N, E, K, T;              /* T: tokens of a window of the table, else N */
    uint64_t n_pair;                     /* of all ranks */
    double load_cv, load_max, imbalance; /* of the experts' pairs: deviation and fullest over mean; fullest rank */
    uint64_t rows;                       /* that one dispatch sends, all ranks together */
    double flops[2];                     /* forward 6 P D F, backward 12 P D F; P pairs of all ranks */
    double peak_flops;                   /* per second, of all ranks together */
    gr_bench_time forward, backward, both;
    gr_bench_time plan;  /* making the plan, once for all layers of a micro-batch; on this rank */
    uint64_t bytes;      /* in backend memory, of the rank with most */
    uint64_t bytes_kept; /* of those, what a layer keeps from forward to backward: its input and h */
    double error;        /* of this rank's sampled results against double */
    double norm_out, norm_dx, norm_dw13, norm_dw2; /* Frobenius, over all ranks: for comparing with other programs */
} gr_layer_report;

/* Times the layer on random data: x, dy normal, weights normal / sqrt(columns) (gr_bench_normal). A time is the slowest
 * rank's, parts between barriers. Before, sampled rows of out and dx and elements of both weights' gradients are
 * compared with loops in double: 70. 64: ranks that do not divide E, a cv or hot that no routes have, too much at once.
 * 65: a table that is damaged or too short. 69, 74. */
GR_MUST gr_err gr_bench_layer(const gr_layer_options *o, gr_layer_report *report);

/* Element i of stream `key`: nearly N(0,1), the sum of four uniform numbers of 16 bits from one word of SplitMix64, so
 * that another program can make the same data. */
float gr_bench_normal(uint64_t key, uint64_t i);
/* The layer's streams with seed S are S * 8 + these; element = row * columns + column, rows of weights by logical
 * expert. */
enum { GR_LAYER_X = 1, GR_LAYER_DY, GR_LAYER_W13, GR_LAYER_W2 };

#endif
