/* model_case.h: one micro-batch on every rank of a comm, computed by the real model and by the reference. Used with one
 * rank (test_model.c) and with several (mpi_4_model.c). */
#ifndef GROUTER_MODEL_CASE_H
#define GROUTER_MODEL_CASE_H

#include "grouter/model.h"
#include "grouter/optim.h"
#include "ref_model.h"

/* A few kB with every kind of layer: dense and MoE, shared expert, grouped queries, q and k norms. */
extern const gr_model_config model_case_config;

typedef struct model_case_options {
    const gr_model_config *config;
    int n_window, T;   /* per rank */
    bool unused_slots; /* some gates are exactly 0 */
    int only_expert;   /* >= 0: slot 0 of every token names it (a hostile table) */
    bool zero_routers; /* every token has equal logits in every layer: all go to experts 0 to K-1 */
    gr_recompute recompute;
    gr_zero zero; /* of model_case_train */
    bool beside;  /* of model_case_train, with ZeRO-1: gradients travel during backward, weights during forward */
    int bad_step; /* of model_case_train: the loss of this step, counted from 1, is not finite; 0: of none */
} model_case_options;

typedef struct model_case_result {
    double loss_error;     /* |ours - reference| / |reference| of the summed loss */
    double gradient_error; /* largest ||ours - reference|| / ||reference|| of any tensor on this rank */
    char worst[160];       /* its name */
    double router_error;   /* largest relative difference of the routers' losses; 0 without routers */
    bool load_wrong;       /* the routers' counts do not add up */
} model_case_result;

/* The same training run in another layout: n_window windows on each of n_part parts of the global batch; a comm of R
 * ranks takes n_part/R micro-batches per step. */
typedef struct model_case_state {
    float *weights, *gradients; /* this rank's, flat; gradients reduced, of the last step */
    gr_params params;
    gr_expert_map map;
    gr_optimizer_counts counts;
} model_case_state;

/* Trains `steps` steps (AdamW, clipping on) from seed 3 on random windows. The caller closes the state. */
void model_case_train(
    gr_backend *backend, gr_comm *comm, const model_case_options *o, int n_part, int steps, model_case_state *out);
void model_case_state_close(model_case_state *s);

/* This rank's weights and gradients. */
bool model_case_same_bits(const model_case_state *a, const model_case_state *b);

/* Two such steps with each train.recompute: true if this rank's weights and gradients have the same bits in all. */
bool model_case_recompute_is_exact(gr_backend *backend, gr_comm *comm, const model_case_options *o, int n_part);

/* Largest ||a - b|| / ||b|| of any tensor that `part` holds; `whole` holds all experts. worst[160] gets its name. */
double model_case_difference(const model_case_options *o, const model_case_state *part, const float *part_flat,
    const float *whole_flat, char *worst);

/* Bytes that this rank hands to others in one step of one micro-batch, as its comm counts them. */
typedef struct model_case_bytes {
    uint64_t forward[GR_N_TRAFFIC]; /* of gr_model_loss */
    uint64_t micro[GR_N_TRAFFIC];   /* of gr_model_step: forward and backward */
    uint64_t update[GR_N_TRAFFIC];  /* of gr_optimizer_step */
    uint64_t n_send, n_recv;        /* rows of the plan; not of learned routes, of which every layer makes its own */
    gr_optimizer_traffic forecast;  /* of the update */
} model_case_bytes;
model_case_bytes model_case_count_bytes(gr_backend *backend, gr_comm *comm, const model_case_options *o);

/* Evaluation before any step: the loss of each of this rank's n_window*T tokens, and their sum. */
void model_case_losses(
    gr_backend *backend, gr_comm *comm, const model_case_options *o, double *token_loss, double *loss_sum);

/* How often the host copied from the backend and waited for it in one training step of two micro-batches, the second of
 * its run, as the trainer makes one. */
typedef struct model_case_waits {
    uint64_t n_download, n_sync;
} model_case_waits;
model_case_waits model_case_count_waits(gr_backend *backend, gr_comm *comm, const model_case_options *o);

/* Runs forward and backward over all ranks of comm (groups formed), reduces gradients, compares with the reference that
 * sees all windows at once. Ends the process on failure to open anything. */
model_case_result model_case_run(gr_backend *backend, gr_comm *comm, const model_case_options *o);

#endif
