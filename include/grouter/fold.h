/* fold.h: a Grouter's score head for another number of experts. Fewer: experts are grouped by how often they are chosen
 * together and their score rows are added (folding). More: rows are added for the tokens that no row scores well
 * (expanding). Host mathematics only: no network, no ranks.
 *
 * E_S experts before (source), E_T after (target); D width of the score rows W [E,D].
 */
#ifndef GROUTER_FOLD_H
#define GROUTER_FOLD_H

#include "grouter/routes.h"

/* ---------------------------------------------------------------- affinity: who is chosen together */

/* Counts over routed tokens. Ranks add theirs up by summing `block` (exact, in any order). */
typedef struct gr_affinity {
    uint32_t E;
    uint64_t *pair;    /* [E,E] tokens that chose both; symmetric, diagonal 0 */
    uint64_t *load;    /* [E] tokens that chose this expert */
    uint64_t *n_token; /* [1] tokens counted */
    uint64_t *block;   /* [n_block] the three above, one after the other; owned */
    size_t n_block;
} gr_affinity;

GR_MUST gr_err gr_affinity_open(gr_affinity *a, uint32_t E); /* all 0; E from 1 to GR_EXPERTS_MAX: 64 */
void gr_affinity_close(gr_affinity *a);                      /* accepts a zeroed one */

/* Counts ids[n_token,K], ascending within a token. Where gates[n_token,K] is exactly 0 the slot is unused; gates NULL:
 * all are used. An id >= E or out of order is 65, and then the counts are void. */
GR_MUST gr_err gr_affinity_add(gr_affinity *a, const uint16_t *ids, const float *gates, size_t n_token, uint32_t K);

/* Shares of all tokens, 0 before the first: P_ij of paper section "expert folding", and f_i. */
static inline double gr_affinity_pair_share(const gr_affinity *a, uint32_t i, uint32_t j) {
    return *a->n_token ? (double)a->pair[(size_t)i * a->E + j] / (double)*a->n_token : 0.0;
}
static inline double gr_affinity_load_share(const gr_affinity *a, uint32_t i) {
    return *a->n_token ? (double)a->load[i] / (double)*a->n_token : 0.0;
}

/* ---------------------------------------------------------------- mappings: which experts become one */

typedef enum gr_fold_method {
    GR_FOLD_AFFINITY,          /* greedily, experts that are chosen together */
    GR_FOLD_BALANCE,           /* little used with much used */
    GR_FOLD_GREEDY,            /* little used with little used: unbalanced on purpose */
    GR_FOLD_RANDOM,            /* seeded permutation */
    GR_FOLD_BLOCK,             /* consecutive ids */
    GR_FOLD_BALANCE_REFERENCE, /* the fault of the paper's reference code: experts repeat, others are missing */
    GR_FOLD_EXPAND,            /* every expert stays, new ones follow */
    GR_N_FOLD_METHOD
} gr_fold_method;

typedef enum gr_fold_kind { GR_FOLD_SUM, GR_FOLD_MEAN, GR_N_FOLD_KIND } gr_fold_kind;

const char *gr_fold_method_name(gr_fold_method method); /* "affinity", ..., "balance-reference", "expand" */
const char *gr_fold_kind_name(gr_fold_kind kind);       /* "sum", "mean" */
/* 64 listing the names, and the nearest, for any other. */
GR_MUST gr_err gr_fold_method_find(gr_fold_method *method, const char *name);
GR_MUST gr_err gr_fold_kind_find(gr_fold_kind *kind, const char *name);

/* E_T < or = E_S: E_T groups of source experts. E_T > E_S: E_S groups of one expert, and E_T - E_S new experts. The
 * groups hold E_S members together: every source expert once, but for GR_FOLD_BALANCE_REFERENCE. */
typedef struct gr_mapping {
    gr_fold_method method;
    gr_fold_kind fold;
    uint32_t E_S, E_T;
    gr_hash128 router; /* of the Grouter it was made for */
    uint64_t n_token;  /* sampled to make it; 0 where no data was asked */
    uint32_t n_group;
    uint32_t *offset; /* [n_group+1] group g is member[offset[g]..offset[g+1]-1]; never empty */
    uint16_t *member; /* [E_S] ascending within a group */
} gr_mapping;

/* Room for the groups of method, E_S and E_T, both from 1 to GR_EXPERTS_MAX; the other fields are 0. E_T > E_S is for
 * GR_FOLD_EXPAND only, and the only thing for it; GR_FOLD_BALANCE_REFERENCE needs E_T to divide E_S: 64. */
GR_MUST gr_err gr_mapping_open(gr_mapping *m, gr_fold_method method, uint32_t E_S, uint32_t E_T);
void gr_mapping_close(gr_mapping *m); /* accepts a zeroed one */

/* Source experts that are in some group: E_S unless some are missing. */
uint32_t gr_mapping_used(const gr_mapping *m);
/* Members of the smallest and of the largest group. */
void gr_mapping_sizes(const gr_mapping *m, uint32_t *least, uint32_t *most);

typedef struct gr_grouping {
    gr_fold_method method;
    gr_fold_kind fold;
    uint32_t E_S, E_T;
    uint64_t seed;               /* random only */
    const gr_affinity *affinity; /* of E_S experts and 1 token or more; NULL for random, block, expand */
    gr_hash128 router;
} gr_grouping;

/* Groups experts. The first E_S mod E_T groups have one member more than the others. a: experts by ascending load, ties
 * to the lower id.
 *   affinity  a group starts with the lowest free expert and takes, until full, the free expert with the largest sum of
 *             pair counts with its members, ties to the lowest (paper, greedy grouping)
 *   balance   floor(size/2) experts from the low end of a, the others from its high end
 *   greedy    the next ones of a
 *   balance-reference   as balance, but the low end never moves: every group has the same floor(size/2) experts
 * Errors: those of gr_mapping_open; 64 if the method needs counts and there are none. */
GR_MUST gr_err gr_mapping_group(gr_mapping *m, const gr_grouping *g);

/* out[E_T,D] from W[E_S,D] (a bias: D = 1): sum or mean of the rows of each group, added in double in ascending order
 * of members and rounded once. Not for expanding. */
void gr_mapping_fold(const gr_mapping *m, uint32_t D, const float *W, float *out);

/* A mapping file is JSON:
 *   {"format": "grouter-mapping", "version": 1, "method": "affinity", "fold": "sum", "source_experts": E_S,
 *    "target_experts": E_T, "router": "<32 hexadecimal digits>", "tokens": n_token, "groups": [[ids...], ...]}
 * and, for method "expand" alone, "new": E_T - E_S. It appears whole or not at all: 74. */
GR_MUST gr_err gr_mapping_save(const gr_mapping *m, const char *path);
GR_MUST gr_err gr_mapping_write(const gr_mapping *m, gr_out *o); /* the same text; the caller commits */
/* Every field is checked, and that the groups are what gr_mapping says: 65 naming file and line. */
GR_MUST gr_err gr_mapping_load(gr_mapping *m, const char *path);

/* ---------------------------------------------------------------- sampling vectors of a stream too long to keep */

/* Every vector added so far is among the kept ones with equal chance (Vitter 1985, algorithm R). Which ones depends on
 * seed, part and order, not on how the stream is cut into calls.
 *
 * Several ranks: rank r of R keeps gr_reservoir_quota(n_max, r, R) vectors as part r, and the sample of all is theirs
 * in rank order. It is uniform over all vectors when the ranks see equally many; a rank that saw fewer than its quota
 * gives all it saw. */
typedef struct gr_reservoir {
    float *x;        /* [n_max, D], of which n are kept; owned */
    size_t n, n_max; /* n = min(n_seen, n_max) */
    uint32_t D;
    uint64_t n_seen;
    uint64_t seed, stream;
} gr_reservoir;

GR_MUST gr_err gr_reservoir_open(gr_reservoir *r, size_t n_max, uint32_t D, uint64_t seed, uint32_t part);
void gr_reservoir_add(gr_reservoir *r, size_t n, const float *x /* [n, D] */);
void gr_reservoir_close(gr_reservoir *r);                                /* accepts a zeroed one */
size_t gr_reservoir_quota(size_t n_max, uint32_t rank, uint32_t n_rank); /* these add up to n_max */

/* ---------------------------------------------------------------- expanding */

typedef struct gr_expansion {
    uint32_t E_S, E_T, D; /* E_S < E_T <= D */
    const float *W;       /* [E_S, D] score rows */
    const float *bias;    /* [E_S], or NULL */
    const float *x;       /* [n, D] sampled inputs of the score rows; n >= E_T - E_S */
    size_t n;
    uint64_t seed;
} gr_expansion;

typedef struct gr_expansion_report {
    double threshold; /* 0.2-quantile of the best scores */
    size_t n_bad;     /* vectors the new rows were made from */
    double radius;    /* norm of the new rows */
    double inertia;   /* of the clusters */
    int n_iteration;  /* of k-means */
} gr_expansion_report;

/* W_T[E_T,D] = the old rows, bit for bit, then E_T - E_S new ones; bias_T[E_T] (NULL without bias) gets 0 for those.
 *   1. best score of vector t: max_i x_t W_i; bad vectors: those at or below the 0.2-quantile (linear interpolation);
 * if fewer than the new rows, the min(n, 4 (E_T - E_S)) with the lowest best score (ties: the earlier vector)
 *   2. k-means of the bad vectors, one start, at most 100 iterations: centroids C
 *   3. QR of [W^T | C^T]; new row j is column j of Q, turned towards its centroid (times the sign of R_jj), so the new
 *      rows are orthogonal to all old ones and to each other
 *   4. new rows are scaled to the mean norm of the old ones
 * report may be NULL. Errors: 64 unless 1 <= E_S < E_T <= D, with the numbers; 65 with fewer than E_T - E_S vectors,
 * old rows that are all 0, or a centroid with no part of its own outside the rows before it (as when there are fewer
 * different bad vectors than new rows); 71 if a weight or vector is not finite; 69 without memory. */
GR_MUST gr_err gr_expansion_run(const gr_expansion *a, float *W_T, float *bias_T, gr_expansion_report *report);

#endif
