/* internal.h: the parts of `place`, in the order in which they run. Internal to src/place.
 *
 * A part is what experts and windows are shared out to: a node or a rank. Parts come in groups of consecutive ones, and
 * experts change places within a group: all ranks are one group, or all nodes are, and then each node's ranks. The home
 * of a window is the part that reads it. Windows are counted over all tables, one after the other. */
#ifndef GROUTER_PLACE_INTERNAL_H
#define GROUTER_PLACE_INTERNAL_H

#include "grouter/placement.h"

#define GR_PLACE_NONE UINT16_MAX /* in place of an expert's id: the slot's gate is 0 */

/* ---------------------------------------------------------------- scan.c: windows of tables, by all threads */

typedef struct gr_place_scan {
    gr_routes *const *table; /* [n_table] */
    int n_table;
    const uint64_t *window; /* [n] ascending; NULL: all of them */
    uint64_t n;
    const char *label; /* of the progress */
    /* Called once for each i, in any order and by several threads at once: ids[T][K] of window[i]. */
    void (*visit)(void *context, uint64_t i, const uint16_t *ids);
    void *context;
} gr_place_scan;

/* Every window is verified before it is visited: 65, 69. */
GR_MUST gr_err gr_place_scan_run(const gr_place_scan *s);

uint64_t gr_place_window_count(gr_routes *const *table, int n_table);

/* touch[n_part] := tokens of ids[T][K] with an expert in each part; part[E]. */
void gr_place_touch(
    const uint16_t *ids, uint32_t T, uint32_t K, const uint16_t *part, uint32_t n_part, uint32_t *touch);

/* ---------------------------------------------------------------- sample.c: some windows in memory */

typedef struct gr_place_sample {
    uint32_t E, K, T;
    int n_table;
    size_t n;         /* sampled windows */
    uint64_t *window; /* [n] ascending */
    float *phi;       /* [n][E] affinity: share of each expert in the window's pairs */
    size_t step;      /* every step-th of them with all its routes: */
    uint16_t *ids;    /* [ceil(n/step)][T][K] */
    size_t *begin;    /* [n_table+1] first of each table among those */
} gr_place_sample;

GR_MUST gr_err gr_place_sample_open(gr_place_sample *s, const gr_place_options *o);
void gr_place_sample_close(gr_place_sample *s); /* accepts a zeroed one */

/* Windows whose routes are in memory: window i is at ids + i * step * T * K. */
typedef struct gr_place_view {
    uint32_t E, K, T;
    const uint16_t *ids;
    size_t n, step;
    int n_table;
    size_t *begin; /* [n_table+1] first of each table */
} gr_place_view;

#define GR_PLACE_WIDE_MIN (1 << 15) /* pairs: below, threads cost more than they bring */

/* Evenly spread windows with about n_pair pairs or all of them. */
GR_MUST gr_err gr_place_view_open(gr_place_view *v, const gr_place_sample *s, size_t n_pair);
void gr_place_view_close(gr_place_view *v); /* accepts a zeroed one */

/* ---------------------------------------------------------------- cluster.c: the paper's clusters and experts */

/* Entropy of phi[E] in bits over log2 E: 0..1; 0 if E = 1. */
double gr_place_entropy(const float *phi, uint32_t E);

/* cluster[n] := 0..n_cluster-1 of x[n][D]: agglomerative, complete linkage on 1 - cosine; of pairs equally far apart
 * the one with the lowest points is merged. Clusters are numbered by their lowest point. n >= n_cluster >= 1. 69. */
GR_MUST gr_err gr_place_linkage(const float *x, uint32_t n, uint32_t D, uint32_t n_cluster, uint32_t *cluster);

/* centre[n_part][E] := mean affinity of each cluster of windows (k-means, then linkage). Windows with more entropy than
 * entropy_max are left out, unless fewer than n_part would remain. A cluster that no window is in is all 0. 69. */
GR_MUST gr_err gr_place_centres(
    const gr_place_sample *s, uint32_t n_part, double entropy_max, uint64_t seed, float *centre);

/* part[E] := E/n_part experts for each cluster, so that the sum of centre[part[e]][e] is greatest. 69. */
GR_MUST gr_err gr_place_match(const float *centre, uint32_t n_part, uint32_t E, uint16_t *part);

/* ---------------------------------------------------------------- load.c: expert pairs per part */

typedef struct gr_place_level {
    uint32_t E, n_part, group_size; /* group_size parts are a group */
    uint32_t part_ranks;            /* ranks of each part */
    const uint64_t *load;           /* [E] pairs over all windows */
    uint64_t cap;                   /* pairs of a part, at most */
} gr_place_level;

/* Pairs of the fullest part; sum[n_part] of each. */
uint64_t gr_place_fullest(const gr_place_level *l, const uint16_t *part, uint64_t *sum);

/* No placement of E/R experts each has a smaller fullest rank over the mean. */
double gr_place_load_bound(const uint64_t *load, uint32_t E, uint32_t R);

/* part[E]: each group's experts are shared out anew among its parts, equally many and with loads as equal as is easy,
 * or good enough for the cap. */
void gr_place_even(const gr_place_level *l, uint16_t *part);

/* ---------------------------------------------------------------- homes.c: windows, exactly, at equal counts */

typedef struct gr_place_homes {
    size_t n;        /* windows of one table */
    uint64_t before; /* windows of the tables before it: remainders go round the ranks */
    uint32_t n_part, group_size, part_ranks;
    const uint32_t *touch; /* [n][n_part] */
    const uint16_t *group; /* [n] the group in which a window's home is; NULL: there is one group */
} gr_place_homes;

/* home[n]: most own tokens with an expert at home, in other words fewest rows, each rank with floor(n/R) or ceil(n/R)
 * windows. Groups must have as many windows as their parts have room: an invariant. 69. */
GR_MUST gr_err gr_place_homes_find(const gr_place_homes *h, uint16_t *home);

/* ---------------------------------------------------------------- gains.c: what every swap of experts would bring */

typedef struct gr_place_gains {
    uint32_t E, n_part;
    size_t n;          /* windows */
    uint64_t rows;     /* of the experts and homes that were counted */
    uint32_t *touch;   /* [n][n_part] */
    uint32_t *total;   /* [E] tokens with it */
    uint32_t *settled; /* [E][n_part] tokens with it for which that part is home or has another of their experts */
    uint32_t *alone;   /* [E][E] tokens with both whose first is alone in a part that is not home */
} gr_place_gains;

GR_MUST gr_err gr_place_gains_open(gr_place_gains *g, const gr_place_view *v, uint32_t n_part);
void gr_place_gains_close(gr_place_gains *g); /* accepts a zeroed one */
/* part[E], home[n]. 69. */
GR_MUST gr_err gr_place_gains_count(
    gr_place_gains *g, const gr_place_view *v, const uint16_t *part, const uint16_t *home);
/* Change of rows, exactly, if experts e and f of different parts change places and homes stay. */
int64_t gr_place_gains_swap(const gr_place_gains *g, const uint16_t *part, uint32_t e, uint32_t f);

/* together[E][E]: tokens with both; the diagonal: with this one. 69. */
GR_MUST gr_err gr_place_together(const gr_place_view *v, uint32_t *together);

/* ---------------------------------------------------------------- search.c: experts under the cap */

typedef struct gr_place_search {
    gr_place_level level;
    const gr_place_view *view;
    uint16_t *part, *trial; /* [E] */
    uint16_t *group;        /* [n] of each window; NULL: there is one group */
    uint16_t *home;         /* [n] */
    uint16_t *trial_home;   /* [n] */
    gr_place_gains now, next;
    uint64_t *sum; /* [n_part] scratch */
} gr_place_search;

GR_MUST gr_err gr_place_search_open(gr_place_search *s, const gr_place_level *l, const gr_place_view *v);
void gr_place_search_close(gr_place_search *s); /* accepts a zeroed one */
/* part[E]: swaps until no part is above the cap, each the one that costs fewest rows for what it takes off; from even
 * loads if that leads nowhere. 69. */
GR_MUST gr_err gr_place_repair(gr_place_search *s, uint16_t *part);
/* part[E], within the cap: swaps that lower rows, and homes exactly, in turn, until neither brings anything. *rows of
 * the view. 69. */
GR_MUST gr_err gr_place_descend(gr_place_search *s, uint16_t *part, uint64_t *rows);
/* The same, and then out of hollows: swaps that pay only once windows have followed, and descents with a looser cap and
 * back. 69. */
GR_MUST gr_err gr_place_improve(gr_place_search *s, uint16_t *part, uint64_t *rows);

/* ---------------------------------------------------------------- balanced.c: from the paper's experts to ours */

typedef struct gr_place_balance {
    const gr_place_options *o;
    const gr_place_sample *sample;
    const uint64_t *load;     /* [E] */
    const uint32_t *together; /* [E][E] */
    const uint16_t *paper;    /* [E] node or rank of each expert, by granularity */
    uint16_t *capped;         /* [E] ranks: the paper's within the cap */
    uint16_t *balanced;       /* [E] ranks: fewest rows found */
} gr_place_balance;

GR_MUST gr_err gr_place_balance_run(const gr_place_balance *b);

/* rank[E]: the experts of each node go round its ranks in ascending order; node[E]. */
void gr_place_spread(const uint16_t *node, uint32_t E, uint32_t n_node, uint32_t node_ranks, uint16_t *rank);

/* ---------------------------------------------------------------- score.c: all windows */

typedef enum gr_place_rule {
    GR_PLACE_IN_TURN,  /* window w at rank w mod R */
    GR_PLACE_SHUFFLED, /* equally many at random */
    GR_PLACE_LOCAL,    /* Algorithm 1: where most of its tokens have an expert */
    GR_PLACE_MATCHED,  /* exactly, at equal counts */
} gr_place_rule;

typedef struct gr_place_candidate {
    const char *name;
    gr_place_rule rule;
    uint16_t *rank, *node;               /* [E] of each expert */
    uint16_t *home;                      /* [n_window] rank of each window */
    uint32_t *touch;                     /* [n_window][R]; NULL for the rules that need none */
    uint32_t *node_touch;                /* [n_window][n_node]; NULL where it is touch or nothing */
    uint64_t rows, node_rows, own_pairs; /* sums over all windows */
} gr_place_candidate;

typedef struct gr_place_scores {
    const gr_place_options *o;
    uint32_t R;
    uint64_t n_window;
    int n;
    gr_place_candidate at[GR_PLACE_SCORES_MAX];
} gr_place_scores;

/* A candidate of this name with experts at rank[E]. 69. */
GR_MUST gr_err gr_place_scores_add(gr_place_scores *s, const char *name, gr_place_rule rule, const uint16_t *rank);
/* Verifies every window of every table, finds the homes and adds up. 65, 69. */
GR_MUST gr_err gr_place_scores_run(gr_place_scores *s);
gr_place_score gr_place_scores_get(const gr_place_scores *s, int i, const uint64_t *load);
void gr_place_scores_close(gr_place_scores *s); /* accepts a zeroed one */

#endif
