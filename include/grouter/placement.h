/* placement.h: which rank holds which expert and which windows go to which rank, decided from route tables before
 * training (paper section 4, "expert placement"; Algorithm 1).
 *
 * R ranks = n_node * node_ranks; rank r is on node r / node_ranks. Each has E/R experts. T tokens per window.
 *
 * A row is one token sent to one rank that holds at least one of its experts; what a rank needs from its own tokens
 * does not travel. So with p(w) the rank of window w the rows that travel are sum over w, over tokens t of w:  |{ranks
 * with an expert of t} \ {p(w)}| = sum over w, over ranks r != p(w): touch[w][r],   touch[w][r] = tokens of w with at
 * least one expert on rank r.
 *
 * File, little-endian: char[8] "GRPLACE" and NUL | u32 version 1 | u32 bytes of JSON | JSON, text for people and
 * programs (topology, shape, method, experts by rank, tables, scores), filled up with spaces to a multiple of 8 | u32
 * together[E][E] | per table: u16 rank[n_window], filled up to a multiple of 4 bytes; u32 touch[n_window][R] | u64
 * XXH3-64 of everything before.
 */
#ifndef GROUTER_PLACEMENT_H
#define GROUTER_PLACEMENT_H

#include "grouter/routes.h"

#define GR_PLACEMENT_RANKS_MAX 4096

typedef enum gr_place_method {
    GR_PLACE_BALANCED, /* fewest rows at equal window counts, with expert load per rank capped */
    GR_PLACE_PAPER,    /* clusters of windows, experts matched to them, windows by Algorithm 1: no cap of anything */
    GR_N_PLACE_METHOD
} gr_place_method;

typedef enum gr_place_grain {
    GR_PLACE_BY_RANK, /* clusters, matching and windows per rank */
    GR_PLACE_BY_NODE, /* per node; a node's experts go round its ranks, and so do its windows */
    GR_N_PLACE_GRAIN
} gr_place_grain;

/* What a way to place comes to, over all windows of all tables. */
enum { GR_PLACE_SCORE_NAME_MAX = 32 };
typedef struct gr_place_score {
    char name[GR_PLACE_SCORE_NAME_MAX]; /* "round-robin", "random", "paper", "paper, capped", "balanced" */
    double rows;      /* per token: ranks other than its own with an expert of it; the sum that is minimised */
    double pairs;     /* per token: experts on other ranks: rows without one copy per rank */
    double node_rows; /* per token: nodes other than its own with an expert of it */
    double load;      /* expert pairs of the fullest rank over the mean */
    double windows;   /* windows of the fullest rank over the mean */
} gr_place_score;
enum { GR_PLACE_SCORES_MAX = 8 };

typedef struct gr_placed_table {
    char *path; /* where it was: for people */
    uint64_t table_hash, n_window;
    uint16_t *rank; /* [n_window] */
    gr_touch touch; /* [n_window][R] */
} gr_placed_table;

typedef struct gr_placement {
    uint32_t n_node, node_ranks, R;
    uint32_t E, K, T;
    gr_hash128 router; /* of all tables */
    gr_place_method method;
    gr_place_grain grain;
    uint64_t seed;
    uint16_t *expert_at; /* [R][E/R] logical ids, ascending within a rank */
    double *rank_load;   /* [R] expert pairs of each rank over the mean */
    uint32_t *together;  /* [E][E] sampled tokens with both experts; the diagonal: with this one */
    uint64_t n_sampled;  /* tokens behind `together` */
    double load_max;     /* balanced: the cap that was asked for; paper: 0 */
    double load_bound;   /* no placement of E/R experts each can have less `load` */
    int n_score;
    gr_place_score score[GR_PLACE_SCORES_MAX]; /* the last is of this placement */
    int n_table;
    gr_placed_table *table; /* [n_table] */
} gr_placement;

const char *gr_place_method_name(gr_place_method m);
const char *gr_place_grain_name(gr_place_grain g);

/* ---------------------------------------------------------------- the file */

/* Writes atomically (gr_out): 74. */
GR_MUST gr_err gr_placement_write(const gr_placement *p, const char *path);
/* Everything is checked before it is used: format, sizes, checksum, each expert exactly once, E/R of them per rank,
 * window ranks below R, counts at most T: 65 naming file, field, expected and found. */
GR_MUST gr_err gr_placement_read(gr_placement *out, const char *path);
void gr_placement_close(gr_placement *p); /* accepts a zeroed or half-made one */
bool gr_is_placement(const char *path);   /* by its first bytes */
/* Names what a placement does with experts: equal for equal R and expert_at. */
uint64_t gr_placement_hash(const gr_placement *p);
/* The section of this table, or NULL. */
const gr_placed_table *gr_placement_find(const gr_placement *p, uint64_t table_hash);

/* ---------------------------------------------------------------- making one */

typedef struct gr_place_options {
    gr_routes *const *table; /* [n_table] of the same E, K, T and router; read, not owned */
    int n_table;
    uint32_t n_node, node_ranks;
    gr_place_method method;
    gr_place_grain grain;
    double entropy_max; /* paper: windows with more, as a share of log2 E, are left out of the clustering; 6.85/7 */
    double load_max;    /* balanced: cap of `load`; 1.05 */
    uint64_t n_sample;  /* windows behind clusters and local search, at most; 65,536 */
    uint64_t seed;
} gr_place_options;

/* 64: topology (R does not divide E, more ranks than experts), 65: tables that do not belong together or are damaged
 * (every record is verified), 69. Progress with ETA on standard error. The same bits for the same options and any
 * number of threads. */
GR_MUST gr_err gr_place(const gr_place_options *o, gr_placement *out);

#endif
