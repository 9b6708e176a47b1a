/* train.h: the training loop and what it leaves behind. */
#ifndef GROUTER_TRAIN_H
#define GROUTER_TRAIN_H

#include "grouter/config.h"
#include "grouter/comm.h"
#include "grouter/data.h"
#include "grouter/model.h"
#include "grouter/optim.h"
#include "grouter/routes.h"

/* ---------------------------------------------------------------- feed: next windows, their routes, the plan */

typedef struct gr_feed gr_feed;

typedef struct gr_feed_options {
    const gr_config *config;
    const gr_comm *comm; /* groups formed */
    const gr_expert_map *map;
    bool valid; /* validation files, in order, instead of the training stream */
} gr_feed_options;

/* Opens token files and route tables, binds them to each other and to the config (65), and computes the exact plan
 * limits of the whole run from the touch counts. */
GR_MUST gr_err gr_feed_open(gr_feed **out, const gr_feed_options *o);
void gr_feed_close(gr_feed *f);
const gr_plan_limits *gr_feed_limits(const gr_feed *f);
uint64_t gr_feed_windows(const gr_feed *f);       /* windows of one epoch (train) or of one evaluation (valid) */
uint64_t gr_feed_micro_batches(const gr_feed *f); /* per step (train) or per evaluation (valid) */

/* Places the plan buffers for `limits` (the larger of training's and validation's). */
GR_MUST gr_err gr_feed_allocate(gr_feed *f, const gr_plan_limits *limits);

typedef struct gr_micro {
    gr_batch batch;
    uint64_t n_target; /* of this rank, not ignored */
    uint64_t n_byte;   /* of those, bytes of the byte-level vocabulary (0 otherwise) */
    double max_vio;    /* of the group's windows in this micro-batch: max load / mean load - 1 */
    double prepare_ms;
} gr_micro;

/* Micro-batch `micro` of the step that starts at stream index `cursor`; valid until the second next call. Reads and
 * checks the routes of all windows of the expert-parallel group and builds the plan. */
GR_MUST gr_err gr_feed_prepare(gr_feed *f, uint64_t cursor, uint64_t micro, gr_micro *out);

/* ---------------------------------------------------------------- metrics: run/metrics.jsonl, progress, plain lines */

typedef struct gr_metrics gr_metrics;

typedef struct gr_step_record {
    int64_t step; /* 1-based: steps done */
    uint64_t tokens_seen;
    double loss, lr, grad_norm;
    double loss_valid;       /* NaN when not measured in this step */
    double bytes_nats_valid; /* nats per byte, NaN when not measured */
    double step_ms, prepare_ms, forward_ms, backward_ms, exchange_ms, reduce_ms, optimizer_ms, eval_ms;
    double max_vio;
    bool skipped;
} gr_step_record;

typedef struct gr_metrics_options {
    const char *path; /* metrics.jsonl; NULL on ranks other than 0: everything is silent */
    int64_t steps, log_every;
    double tokens_per_step;
    double flops_per_token;
    double peak_flops; /* of all ranks together; 0 = unknown */
} gr_metrics_options;

GR_MUST gr_err gr_metrics_open(gr_metrics **out, const gr_metrics_options *o);
/* One flushed JSON object per step (schema in README) and, every log_every steps, a line for people:
 * step 12/300 | loss 4.213 | gnorm 0.81 | lr 9.9e-05 | 412 ms | 31.4k tok/s | 34.1% of peak | maxvio 0.12 | eta 3m18s
 * Speed and ETA are averages that leave out the first step and steps with evaluation ("warming up" until then).
 * Errors writing the log never stop training: one warning. */
void gr_metrics_step(gr_metrics *m, const gr_step_record *r);
void gr_metrics_close(gr_metrics *m);

/* ---------------------------------------------------------------- the run */

/* Trains as the config says; collective over the comm (groups formed). `fresh`: an existing run folder is renamed aside
 * instead of refused (64). Writes config.resolved.json, environment.json, metrics.jsonl, model.safetensors; the last
 * line on stdout is "parameter hash <32 hex digits>". */
GR_MUST gr_err gr_train_run(const gr_config *config, gr_comm *comm, bool fresh, bool *agreed);

#endif
