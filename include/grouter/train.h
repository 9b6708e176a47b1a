/* train.h: the training loop and what it leaves behind. */
#ifndef GROUTER_TRAIN_H
#define GROUTER_TRAIN_H

#include "grouter/config.h"
#include "grouter/comm.h"
#include "grouter/data.h"
#include "grouter/links.h"
#include "grouter/model.h"
#include "grouter/optim.h"
#include "grouter/placement.h"
#include "grouter/routes.h"
#include "grouter/teacher.h"

/* ---------------------------------------------------------------- feed: next windows, their routes, the plan */

typedef struct gr_feed gr_feed;

typedef enum gr_feed_kind {
    GR_FEED_TRAIN, /* data.train in the order of the stream, for all steps of the run */
    GR_FEED_VALID, /* data.valid in file order: eval.windows windows, the same at each evaluation */
} gr_feed_kind;

/* Opens token files and route tables, binds them to each other and to the config (65), and computes the exact plan
 * limits of every micro-batch of the run from the touch counts. Collective: all ranks fail or none. `like`, or NULL: a
 * feed whose router this one's tables must share, or whose Grouter routes for it too; then it must be closed before
 * that. config, comm, map and placement are borrowed. With routing.source learned there are no tables: a micro-batch is
 * tokens and targets of the own windows, without a plan, and the limits are those of any choice. With online a Grouter
 * routes the own windows one micro-batch before they are planned, two before they are computed, and the group exchanges
 * the routes; the limits are 1.25 times those of uniform routing, and a plan may exceed them: gr_model_make_room. */
GR_MUST gr_err gr_feed_open(gr_feed **out, gr_feed_kind kind, const gr_config *config, gr_comm *comm,
    const gr_expert_map *map, const gr_feed *like);
/* Where training begins: limits are those of the steps from here on. */
typedef struct gr_feed_start {
    int64_t step;
    uint64_t cursor;
} gr_feed_start;

typedef struct gr_feed_options {
    gr_feed_kind kind;
    const gr_config *config;
    gr_comm *comm;
    const gr_expert_map *map; /* with a placement, its experts */
    const gr_feed *like;
    const gr_placement *placement; /* of the training tables, or NULL */
    gr_feed_start start;
} gr_feed_options;

/* The same in two halves: survey finds everything that can be wrong and the limits, allocate takes the memory for
 * plans, which gr_feed_prepare needs. Collective, both.
 * With a placement every table of data.train has a section there (65), whose touch counts are looked up. data.windows
 * batch: a global batch keeps its windows, gr_packing_run says which rank and micro-batch takes which, and the limits
 * are a bound for every such choice: of rank r in a global batch
 *   received rows <= the (R_ep-1)*B largest touch[w][r] together, sent rows <= the B largest sums of touch[w] over
 * other ranks, pairs <= the R_ep*B largest sums of w's histogram over r's experts. data.windows corpus: the ranks at
 * place r of their groups read the windows that the placement has on r, each once per epoch of that group and file;
 * limits are exact. Validation windows, and with online routes all, stay where they are. */
GR_MUST gr_err gr_feed_survey(gr_feed **out, const gr_feed_options *o);
GR_MUST gr_err gr_feed_allocate(gr_feed *f);
/* Bytes that gr_feed_allocate takes with these limits; `layout` is the one it places by. */
GR_MUST gr_err gr_feed_measure(
    const gr_config *config, const gr_expert_map *map, const gr_plan_limits *limits, size_t *n_byte);
void gr_feed_close(gr_feed *f); /* accepts NULL */
const gr_plan_limits *gr_feed_limits(const gr_feed *f);
/* Rows that one dispatch sends, of a rank and step, by the link they travel on. */
typedef struct gr_step_links {
    double within, between; /* to other ranks of its node; to other nodes */
} gr_step_links;
/* Rows this rank sends in one dispatch of all micro-batches of a step, mean over the steps; where windows are packed,
 * the mean of all ranks over the first 32, which are packed for it (69). 0 without tables. */
GR_MUST gr_err gr_feed_rows(gr_feed *f, gr_step_links *per_step);
/* Header of the routes: of the first table, or the Grouter's, without sizes; NULL without either. */
const gr_routes_info *gr_feed_routes(const gr_feed *f);
/* What file i holds, for people and comparison, into text[GR_FEED_CONTENT_MAX]: hash and router of its route table;
 * without one, the number of tokens and the hash of the first and the last window, and the router of online routes.
 * Returns text. */
enum { GR_FEED_CONTENT_MAX = 128 };
const char *gr_feed_content(const gr_feed *f, int i, char text[GR_FEED_CONTENT_MAX]);
/* What the placement decides: its experts, and with data.windows corpus its groups of windows; "none" without one. */
const char *gr_feed_placement(const gr_feed *f, char text[GR_FEED_CONTENT_MAX]);
/* What part of a window the router of its routes sees; NONE without given routes. */
gr_mask gr_feed_mask(const gr_feed *f);
uint64_t gr_feed_windows(const gr_feed *f);       /* windows of all files (train), of one evaluation (valid) */
uint64_t gr_feed_micro_batches(const gr_feed *f); /* per step (train), per evaluation (valid) */

/* The larger of two limits, for buffers that serve both. */
gr_plan_limits gr_plan_limits_max(const gr_plan_limits *a, const gr_plan_limits *b);

typedef struct gr_micro {
    gr_batch batch;
    uint64_t n_target;    /* of this rank, not ignored */
    uint64_t n_byte;      /* of those, bytes of the byte-level vocabulary; 0 for other vocabularies */
    const uint32_t *load; /* [E] pairs per expert over the expert-parallel group's windows; NULL without given routes */
    /* With a placement, of the global batch: the fewest rows that its windows need at equal counts per rank, and the
     * least pairs of the fullest rank of a micro-batch over the mean; NaN without. */
    double rows_best, imbalance_best;
} gr_micro;

/* Micro-batch `micro` of the step that starts at stream index `cursor` (valid: cursor 0). Reads and checks the routes
 * of all windows of the expert-parallel group (65) and builds the plan. Routed online it is collective over that group.
 * Valid until the second next call. Calls with increasing (cursor, micro) are fast, going back replays the stream and,
 * online, routes anew. */
GR_MUST gr_err gr_feed_prepare(gr_feed *f, uint64_t cursor, uint64_t micro, gr_micro *out);

/* ---------------------------------------------------------------- metrics: run/metrics.jsonl, progress, plain lines */

typedef struct gr_metrics gr_metrics;

typedef struct gr_step_record {
    int64_t step; /* 1-based: steps done */
    uint64_t tokens_seen;
    double loss, lr, grad_norm;
    double loss_valid;       /* NaN when not measured in this step */
    double bytes_nats_valid; /* nats per byte, NaN when not measured */
    /* step_ms: the whole step without its evaluation; eval_ms counts with loss_valid only */
    double step_ms, prepare_ms, forward_ms, backward_ms, exchange_ms, reduce_ms, optimizer_ms, eval_ms;
    double aux_loss, z_loss; /* of learned routers, multiplied by their coefficients; NaN without them */
    /* load of the fullest expert over the mean load, minus 1, of the global batch; with learned routes the mean over
     * layers and the largest of any layer (else NaN) */
    double max_vio, max_vio_layer;
    /* Validation of a Grouter against what it imitates (gr_fidelity), means over tokens; NaN when not measured. */
    double exact_match, overlap, gate_cosine;
    double max_vio_valid; /* of its choices over the validation windows */
    double bytes_sent;    /* by dispatches and combines of this step, all ranks together; NaN without experts */
    /* With tables and several expert-parallel ranks: rows sent in one dispatch per token; pairs of the fullest rank of
     * a micro-batch over the mean; and the best that any choice of ranks for these windows can have, with a placement.
     */
    double rows_per_token, rows_per_token_best, imbalance, imbalance_best;
    bool skipped;
} gr_step_record;

typedef struct gr_metrics_options {
    const char *path; /* metrics.jsonl; NULL on ranks other than 0: everything is silent */
    int64_t steps, log_every;
    int64_t resume_step; /* an existing log keeps its records up to this step; the rest is cut off */
    double tokens_per_step;
    double flops_per_token;
    double peak_flops; /* of all ranks together; 0 = unknown */
} gr_metrics_options;

/* Appends to `path`; 74 if it cannot be opened. */
GR_MUST gr_err gr_metrics_open(gr_metrics **out, const gr_metrics_options *o);
/* One flushed JSON object per step (schema in README; what was not measured or is not finite is absent) and, every
 * log_every steps, at the first and the last, after evaluations and skips, a line for people:
 * step 12/300 | loss 4.213 | gnorm 0.81 | lr 9.9e-05 | 412 ms | 31.4k tok/s | 34.1% of peak | maxvio 0.12 | eta 3m18s
 * On a terminal the steps between rewrite one line. In both, ms is this step's; tokens_per_s in the file is this step's
 * too, in the line it and the ETA are averages that leave out the first step and steps with evaluation ("warming up"
 * until then). Errors writing the log never stop training: one warning. */
void gr_metrics_step(gr_metrics *m, const gr_step_record *r);
void gr_metrics_close(gr_metrics *m); /* accepts NULL */

/* ---------------------------------------------------------------- the run */

typedef struct gr_train_result {
    gr_hash128 parameter_hash;                             /* of the final weights, layout-free (gr_params_save) */
    double loss_valid_first, loss_valid;                   /* nats per token before and after; NaN without data.valid */
    double nats_per_byte_valid_first, nats_per_byte_valid; /* NaN unless the vocabulary is the byte-level one */
    gr_fidelity fidelity_first, fidelity;                  /* of a Grouter, before and after; n_token 0: not measured */
    double max_vio_first, max_vio;                         /* of a Grouter over the validation windows */
    gr_mask mask; /* of the routes that were trained with, or of the Grouter that was trained */
} gr_train_result;

typedef enum gr_run_folder {
    GR_RUN_RESUME, /* go on from the newest checkpoint of an existing run folder; another existing folder is refused: 64
                    */
    GR_RUN_FRESH,  /* an existing run folder is renamed aside */
} gr_run_folder;

typedef struct gr_train_options {
    const gr_config *config;
    gr_comm *comm; /* its groups are formed by the run */
    gr_run_folder folder;
    const char *const *override; /* keys that may differ from the checkpoint's although they are refused */
    int n_override;
} gr_train_options;

/* From now on SIGUSR1, SIGUSR2, SIGTERM and SIGINT ask the run to stop between two steps; a second one ends the process
 * at once with 85, naming the newest durable checkpoint. Call it once, before anything starts threads (the comm
 * does). 69. */
GR_MUST gr_err gr_stop_listen(void);

/* A config for distill or tune names what it starts from: fills in what follows from that, the network and its
 * experts. Every rank, before the run. 65, 66; 64 where the config says otherwise. */
GR_MUST gr_err gr_train_complete(gr_config *config);

/* Trains as the config says (a language model, or with a config for distill or tune a Grouter); collective. Fills the
 * run folder: config.resolved.json, environment.json, metrics.jsonl, checkpoints/, model.safetensors
 * (grouter.safetensors). Nothing is created unless config, data and memory are in order; errors until then are agreed
 * by all ranks. In an existing run folder it goes on from the newest checkpoint that verifies: in the same layout bit
 * for bit, in another one equal to rounding; every changed key is listed, refused ones are 64. A finished run only
 * writes its results again. Asked to stop by a signal it saves and returns 85. result is filled on rank 0. */
GR_MUST gr_err gr_train_run(const gr_train_options *o, gr_train_result *result);

/* What a run would need, without running it. */
typedef struct gr_dry_run {
    int n_rank;        /* 0: the comm's */
    double memory_gib; /* of each rank; 0: of this host, if the ranks are the comm's */
} gr_dry_run;

/* Checks the config for that many ranks and the data files, and prints on `out` (rank 0): parameters, FLOPs, memory per
 * rank, messages per step, disk, time per 1000 steps. When the ranks are the comm's, sizes are exact and the time is
 * measured; absent data files are then an error unless n_rank or memory_gib is given: then, as for ranks that are not
 * here, absent ones are listed as not checked and sizes follow from uniform routing. 69 after the report if it does not
 * fit. Collective; creates nothing but missing counts beside route tables. */
GR_MUST gr_err gr_train_dry_run(const gr_config *config, gr_comm *comm, const gr_dry_run *o, FILE *out);

/* ---------------------------------------------------------------- whole steps, measured */

/* What steps were measured on. */
typedef struct gr_train_measured {
    int n_rank, R_ep;
    const char *backend;
    gr_dtype dtype;
    int64_t n_parameter, n_active; /* of the model; of those, per token */
    double tokens_per_step, flops_per_token;
    double peak_flops;                        /* per second, of all ranks together: the best matrix product */
    uint64_t bytes_predicted, bytes_measured; /* of this rank, on its device if it has one; measured: what more
                                                   is in use than before, 0 unknown */
} gr_train_measured;

/* Algorithms of matrix products are chosen by the clock in the first n_step steps, which are no measure of anything. */
typedef struct gr_train_tuning {
    int64_t n_step; /* 0: not at all; else at least 1 */
    gr_out *out;    /* rank 0: what was chosen, as gr_backend_save_plans writes it; the caller commits */
} gr_train_tuning;

/* Trains a language model for config.train.steps steps as gr_train_run does, from initial weights, without validation,
 * and leaves nothing behind but missing counts beside route tables. record[config.train.steps] are the steps as this
 * rank has timed them. Collective. 71: the loss or the gradient of a step was not finite; 69: nothing can be tuned. */
GR_MUST gr_err gr_train_measure(const gr_config *config, gr_comm *comm, const gr_train_tuning *tuning,
    gr_step_record *record, gr_train_measured *out);

#endif
