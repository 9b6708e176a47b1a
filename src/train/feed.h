/* feed.h: what the files of the feed share. feed.c opens it, feed_order.c says which window is where, feed_limits.c how
 * large plans get, feed_batch.c makes micro-batches, online.c routes. */
#ifndef GROUTER_TRAIN_FEED_H
#define GROUTER_TRAIN_FEED_H

#include "grouter/packing.h"
#include "internal.h"

/* ---------------------------------------------------------------- the Grouter of a run (online.c) */

/* A frozen Grouter with a backend of its own, whatever the model's storage type: routes are made in F32. */
typedef struct gr_online gr_online;

/* The Grouter of config.routing, used as the config says; it must route the config's model (65). Holds its weights, but
 * nothing to compute with until it is prepared. */
GR_MUST gr_err gr_online_open(gr_online **out, const gr_config *config);
GR_MUST gr_err gr_online_prepare(gr_online *o);
void gr_online_close(gr_online *o); /* accepts NULL */
/* What a table of these routes would have in its header, without sizes. */
const gr_routes_info *gr_online_info(const gr_online *o);
/* Window `window` of file `path`, tokens[T+1]: ids[T*K] and gates[T*K], checked like those of a table (65), and their
 * histogram counts[E]. */
GR_MUST gr_err gr_online_route(gr_online *o, const char *path, uint64_t window, const uint32_t *tokens, uint16_t *ids,
    float *gates, uint32_t *counts);

/* T7: tables against the Grouter that the config names as theirs, by about 1,000 rows of each: another router's, or
 * more than 0.1 % of rows with other experts: 65. Each rank looks at its share of the files; not agreed. */
GR_MUST gr_err gr_online_check_tables(const gr_feed *f);

/* ---------------------------------------------------------------- the feed */

typedef struct feed_source {
    gr_tokens *tokens;
    gr_routes *routes;             /* of tables */
    gr_touch touch;                /* of tables; empty when the group is one rank, or with `placed` */
    uint64_t ends_hash;            /* without tables: of the first and the last window */
    const gr_placed_table *placed; /* the placement's section of this table; NULL without one */
    const uint32_t *touches;       /* [n_window][R_ep] of `touch` or `placed`; NULL when the group is one rank */
    /* With windows read by group: those of rank r are member[first_member[r]..first_member[r+1]), ascending. */
    uint64_t *member, *first_member; /* [n_window], [R_ep+1] */
} feed_source;

typedef struct feed_place {
    int source;
    uint64_t window;
    bool ignored; /* fills up the last micro-batch of an evaluation: computed, not counted */
} feed_place;

/* With a placement: one global batch, n = its windows, n_bin = its micro-batches x expert-parallel groups. */
typedef struct feed_batch {
    bool listed, packed; /* the windows and counts are those of `cursor`; the order is */
    uint64_t cursor;
    uint32_t n, n_bin;
    feed_place *place;       /* [n] as the stream has them */
    uint32_t *touch, *pairs; /* [n][R_ep] tokens with experts on each rank, pairs there */
    uint32_t *order;         /* [n] which of them is at each position of the batch */
    uint64_t *value;         /* [n] scratch of the limits */
    gr_packing_report report;
} feed_batch;

/* What one micro-batch owns; two of them, so that the next can be prepared while one is in use. */
typedef struct feed_slot {
    uint32_t *token;  /* [N] */
    int32_t *target;  /* [N] */
    float *pair_gate; /* [pair_max] */
    uint32_t *load;   /* [E] */
    gr_plan plan;
    gr_plan_builder *builder;
    uint16_t *ids; /* [N, K] of the own tokens, for learned gates */
} feed_slot;

/* Routes that are made online; two of them: one micro-batch is planned while the one after it is routed. */
typedef struct feed_records {
    bool routed; /* the own windows are, or will be once lane SIDE is done */
    uint64_t cursor, micro;
    feed_place *own; /* [B] */
    uint16_t *ids;   /* [R_ep*N, K] of the group: own windows when routed, the others' after the exchange */
    uint16_t *gates; /* [R_ep*N, K] bf16 */
} feed_records;

struct gr_feed {
    gr_feed_kind kind;
    const gr_config *config;
    gr_comm *comm;
    const gr_expert_map *map;
    gr_source routing;
    gr_online *online; /* routing ONLINE */
    bool owns_online;  /* else it is that of the feed it was opened like */
    int n_source;
    feed_source *source;
    gr_stream stream;
    gr_stream_file *stream_file;
    const gr_placement *placement; /* of the training tables; NULL without one */
    gr_stream *group_stream;       /* [R_ep] windows read by group: one stream for the ranks of each place in a group */
    gr_stream_file *group_file;    /* [R_ep][n_source] */
    feed_batch batch;
    feed_place *group; /* [R_ep*B] windows of this rank's group in the micro-batch that was asked for last */
    gr_feed_start start;
    uint64_t n_window; /* of all files, or of one evaluation */
    uint64_t end;      /* cursor at which the run ends: routing ahead stops there */
    uint32_t B, T, K, E;
    gr_plan_limits limits; /* for the model's buffers */
    gr_links links;        /* rows that this rank sends in all micro-batches of the run, unless they are packed */

    void *memory;
    uint32_t *window_token; /* [T+1] */
    uint16_t *ids;          /* [R_ep*N, K] of the whole group, with tables */
    float *gates;           /* [R_ep*N, K] */
    uint32_t *window_load;  /* [E] */
    feed_slot slot[2];
    int next_slot;
    feed_records records[2]; /* routing ONLINE */
};

/* feed_order.c. Windows that training groups or packs need their lists, once tables and touch counts are open: 65 where
 * a group has no window of a file. */
GR_MUST gr_err gr_feed_order_open(gr_feed *f);
void gr_feed_order_close(gr_feed *f); /* accepts a half-opened feed */
/* Does the feed choose which rank takes which window of a global batch? */
bool gr_feed_packs(const gr_feed *f);
/* The window at position `at` of the global batch (evaluation: cursor 0) before it is packed. Going back replays the
 * stream. */
feed_place gr_feed_place(gr_feed *f, uint64_t cursor, uint64_t at);
/* The same in the plain order of the stream, whatever the placement says. */
feed_place gr_feed_stream_place(gr_feed *f, uint64_t index);
/* Position of the first window of this rank's group in a micro-batch; the group's R_ep*B windows follow it. */
uint64_t gr_feed_group_first(const gr_feed *f, uint64_t micro);
/* place[R_ep*B]: this group's windows in a micro-batch, by rank; valid until the next call. Packs the global batch if
 * it is to be packed and another than the last: 69. */
GR_MUST gr_err gr_feed_group(gr_feed *f, uint64_t cursor, uint64_t micro, const feed_place **place);
/* With a placement: batch.place, touch and pairs of this global batch... */
void gr_feed_batch_list(gr_feed *f, uint64_t cursor);
/* ...and its order and report. */
GR_MUST gr_err gr_feed_batch_pack(gr_feed *f, uint64_t cursor);

/* feed_limits.c. The largest plans from the start of the run on; with tables also n_send. */
void gr_feed_find_limits(gr_feed *f);
/* Pairs of a window on each rank, from its histogram: pairs[R_ep]. A damaged one must not ask for more memory than a
 * window can need, and counts no more than that. */
void gr_feed_pairs(gr_feed *f, const feed_place *p, uint32_t *pairs);

/* What a plan may need: the model's limits, but the worst case where routes are not known before. */
gr_plan_limits gr_feed_plan_limits(const gr_feed *f);

#endif
