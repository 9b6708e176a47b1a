/* optim.h: from accumulated gradients to new weights: reduce, norm, clip, AdamW, schedule. */
#ifndef GROUTER_OPTIM_H
#define GROUTER_OPTIM_H

#include "grouter/model.h"

/* Learning rate of 0-based `step`, with w = warmup_steps and d = decay_steps:
 * - warm-up: lr*(step+1)/w for step < w, whatever follows.
 * - cosine: lr_min + (lr-lr_min)*(1+cos(pi*(step-w)/(d-w)))/2, lr_min from d on.
 * - linear: lr + (lr_min-lr)*(step-w)/(d-w), lr_min from d on.
 * - wsd: lr until d - ceil(0.2*(d-w)), then linear to lr_min at d, lr_min from d on.
 * - constant: lr. */
typedef struct gr_lr {
    gr_schedule schedule;
    double lr, lr_min;
    int64_t warmup_steps, decay_steps;
} gr_lr;
double gr_lr_at(const gr_lr *s, int64_t step);

/* ZeRO stage 1 shards what AdamW remembers: after reduce-scatter every element of the flat range has one owner, which
 * keeps its moments and updates it; all-gather brings the weights back. Dense parameters are sharded over the world,
 * experts over the ranks that hold the same experts; both ranges are padded to equal shards (gr_params_open). Where the
 * ops read a rounded copy, that copy comes back and the fp32 weights stay with their owners (gr_weights_gather). Off:
 * every rank keeps the moments and the fp32 weights of all it holds. */
typedef enum gr_zero { GR_ZERO_OFF, GR_ZERO_1 } gr_zero;

typedef struct gr_optimizer gr_optimizer;

typedef struct gr_optimizer_options {
    gr_backend *backend;
    gr_comm *comm;
    const gr_params *params;
    void *weights_act; /* gr_model_weights_act: refreshed with every update; NULL where there is none */
    float *vectors;    /* gr_model_vectors: with zero 1 there if weights_act is */
    gr_zero zero;
    gr_lr lr;
    double beta1, beta2, eps, weight_decay, clip; /* eps > 0; clip 0 = off */
} gr_optimizer_options;

GR_MUST gr_err gr_optimizer_open(gr_optimizer **out, const gr_optimizer_options *o); /* moments: zero */
void gr_optimizer_close(gr_optimizer *o);

/* Bytes of the moments that gr_optimizer_open allocates; of the options' comm only ranks and sizes are read. */
size_t gr_optimizer_memory(const gr_optimizer_options *o);

/* Bytes that a rank sends in one update: mean over the ranks, of which each sends as much but for norms and biases that
 * travel apart. Of the options' comm only sizes are read. */
typedef struct gr_optimizer_traffic {
    double gradients; /* each element once to its sum, and, without ZeRO, the sum once back */
    double weights;   /* each element once back from its owner */
} gr_optimizer_traffic;
/* shared: gr_model_options.shared_weights: rounded weights come back, and norms and biases in fp32 by a sum. */
gr_optimizer_traffic gr_optimizer_traffic_get(const gr_optimizer_options *o, bool shared);

/* A part [first, first+n) of the flat range and its moments. */
typedef struct gr_moments {
    int64_t first, n;
    float *m, *v;
    gr_backend *backend; /* whose memory that is */
} gr_moments;

/* What this rank must get back on resume: [0] of the dense part, [1] of the experts; either may be empty. */
void gr_optimizer_held(gr_optimizer *o, gr_moments held[2]);
/* What this rank saves: over all ranks each element of the model exactly once, whatever `zero` is. */
void gr_optimizer_owned(gr_optimizer *o, gr_moments owned[2]);

typedef struct gr_optimizer_counts {
    int64_t n_applied; /* updates that were not skipped */
    int64_t n_skipped; /* in a row */
} gr_optimizer_counts;
gr_optimizer_counts gr_optimizer_counts_get(const gr_optimizer *o);
void gr_optimizer_counts_set(gr_optimizer *o, gr_optimizer_counts counts);

/* Losses that travel with the gradient norm: [0] of tokens, by which a step is decided, and what else is to be summed
 * over the ranks. */
#define GR_LOSSES 3

typedef struct gr_update {
    double lr, grad_norm;   /* norm before clipping; may be non-finite */
    bool skipped;           /* weights and moments untouched */
    double loss[GR_LOSSES]; /* over the global batch; [0] per token */
    /* Of the host: where the backend works behind it, what it waited for and the time of giving out work. */
    double reduce_ms;    /* sums over groups and the norm, without the parts that went beside backward */
    double optimizer_ms; /* AdamW; with ZeRO-1 also gathering weights, but for parts gathered in the next forward */
} gr_update;

/* One update of the weights (with zero 1 and weights_act those this rank owns, else whole) in `step` (0-based; it also
 * counts when skipped) with the loss of the global batch, of which rank 0's counts: sums gradients over
 * their groups (with ZeRO-1 those of other owners are undefined afterwards), takes the global norm, clips, decides (the
 * same on every rank: proceeds only if the global loss is finite and the clipped norm's square fits fp32, as second
 * moments must), applies AdamW. The fourth skip in a row is 71, agreed by all ranks. The moment correction counts
 * applied updates. */
GR_MUST gr_err gr_optimizer_step(
    gr_optimizer *o, int64_t step, double loss, gr_weights weights, float *gradients, gr_update *out);

/* The same for losses that are still on the backend, in parts, in this order:
 * - The caller puts this rank's sums of losses into gr_optimizer_losses, [GR_LOSSES] in backend memory, by an op of
 *   lane COMPUTE.
 * - reduce: the sums over groups and the norm's squares.
 * - apply: norm, clip, decision and update of what this rank owns, all queued: the backend decides, and nothing of it
 *   waits for the device (comm mpi moves device memory and does).
 * - gather: with ZeRO-1 everybody's weights.
 * - finish: waits until it is decided, not until the update is done, and says what became of the step; 71 as above.
 *   n_token: in the global batch. */
double *gr_optimizer_losses(gr_optimizer *o);
GR_MUST gr_err gr_optimizer_reduce(gr_optimizer *o, float *gradients);
GR_MUST gr_err gr_optimizer_apply(gr_optimizer *o, int64_t step, gr_weights weights, const float *gradients);
GR_MUST gr_err gr_optimizer_gather(gr_optimizer *o, gr_weights weights);
GR_MUST gr_err gr_optimizer_finish(gr_optimizer *o, double n_token, gr_update *out);

/* With ZeRO-1, before reduce and in the place of its sums over groups, which are then only waited for by COMPUTE: the
 * same of one part of the gradients that is complete on all ranks, beside what COMPUTE still does (gr_comm.beside). For
 * gr_model_gradients_watch: all parts of the dense range and of the experts, each once. */
GR_MUST gr_err gr_optimizer_reduce_part(gr_optimizer *o, float *gradients, gr_share part);
/* In the place of gather, with ZeRO-1: first what is small and read everywhere, then by gr_model_weights_await one part
 * after the other beside COMPUTE. */
GR_MUST gr_err gr_optimizer_gather_vectors(gr_optimizer *o, gr_weights weights);
GR_MUST gr_err gr_optimizer_gather_part(gr_optimizer *o, gr_weights weights, gr_share part);

/* The sums over groups alone: dense gradients over the world, expert gradients over the ranks with the same experts. */
GR_MUST gr_err gr_gradients_reduce(const gr_params *p, gr_comm *comm, float *gradients);
/* The same sums, only of the elements this rank owns; the others are undefined afterwards. */
GR_MUST gr_err gr_gradients_scatter(const gr_params *p, gr_comm *comm, float *gradients);
/* Of one part alone, which lies within the dense range or the experts. */
GR_MUST gr_err gr_gradients_scatter_part(const gr_params *p, gr_comm *comm, float *gradients, gr_share part);

/* *squares (backend memory) = sum of squares of the reduced or scattered gradients that this rank owns. Each element of
 * the model has one owner: the sum over the world is the norm's square. */
GR_MUST gr_err gr_gradients_squares(
    const gr_params *p, gr_backend *b, const gr_comm *comm, const float *gradients, double *squares);

#endif
