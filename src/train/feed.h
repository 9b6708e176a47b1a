/* feed.h: what the files of the feed share. feed.c opens it, feed_batch.c makes micro-batches, online.c routes. */
#ifndef GROUTER_TRAIN_FEED_H
#define GROUTER_TRAIN_FEED_H

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
    gr_routes *routes;  /* of tables */
    gr_touch touch;     /* of tables; empty when the group is one rank: nothing moves */
    uint64_t ends_hash; /* without tables: of the first and the last window */
} feed_source;

typedef struct feed_place {
    int source;
    uint64_t window;
    bool ignored; /* fills up the last micro-batch of an evaluation: computed, not counted */
} feed_place;

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
    uint64_t n_window; /* of all files, or of one evaluation */
    uint64_t end;      /* cursor at which the run ends: routing ahead stops there */
    uint32_t B, T, K, E;
    gr_plan_limits limits; /* for the model's buffers */
    gr_links links;        /* rows that this rank sends in all micro-batches of the run, with tables */

    void *memory;
    uint32_t *window_token; /* [T+1] */
    uint16_t *ids;          /* [R_ep*N, K] of the whole group, with tables */
    float *gates;           /* [R_ep*N, K] */
    uint32_t *window_load;  /* [E] */
    feed_slot slot[2];
    int next_slot;
    feed_records records[2]; /* routing ONLINE */
};

/* The window at a stream index. Going back replays the stream. */
feed_place gr_feed_place(gr_feed *f, uint64_t index);
/* Stream index of the first window of this rank's group in a micro-batch; the group's R_ep*B windows follow it. */
uint64_t gr_feed_group_first(const gr_feed *f, uint64_t cursor, uint64_t micro);
/* What a plan may need: the model's limits, but the worst case where routes are not known before. */
gr_plan_limits gr_feed_plan_limits(const gr_feed *f);

#endif
