/* ref_model.h: the whole decoder once more in double: loss and the gradient of every parameter, as plain loops over
 * the ops of ref.h. No plan, no exchange, no packing: each expert runs on the tokens that name it.
 *
 *     ref_model m;
 *     ref_model_open(&m, &config);
 *     double *w = ref_alloc(m.params.n_element), *dw = ref_alloc(m.params.n_element);
 *     ref_model_init(&m, seed, w);                          the same numbers as gr_params_init
 *     ref_batch batch = {.n_window = 2, .T = 16, .token = ..., .target = ..., .ids = ..., .gates = ...};
 *     double loss = ref_model_loss(&m, w, &batch, 1.0 / 32, dw);
 *     const gr_param *q = gr_params_find(&m.params, "model.layers.0.self_attn.q_proj.weight");   dw + q->offset
 *     ref_model_close(&m);
 */
#ifndef GROUTER_REF_MODEL_H
#define GROUTER_REF_MODEL_H

#include "grouter/model.h"
#include "ref.h"

/* Weights and gradients are flat arrays of params.n_element doubles in the layout of `params`, which holds all experts:
 * matrix e of an expert entry is expert e. */
typedef struct ref_model {
    gr_model_config config;
    gr_expert_map map; /* one rank, slot = expert */
    gr_params params;
} ref_model;

void ref_model_open(ref_model *m, const gr_model_config *config); /* ends the process on failure */
void ref_model_close(ref_model *m);

/* The weights gr_params_init gives for this seed. */
void ref_model_init(const ref_model *m, uint64_t seed, double *weights);

/* N = n_window*T tokens and K entries per token. */
typedef struct ref_batch {
    int64_t n_window, T;
    const uint32_t *token; /* [N] */
    const int32_t *target; /* [N], -1 = ignored */
    const uint16_t *ids;   /* [N,K] logical experts; unused with routing.source learned */
    const float *gates;    /* [N,K]; 0: the slot is unused; unused with learned gates */
    double *router_loss;   /* [2] or NULL: += aux and z losses of all layers, not yet multiplied by scale */
} ref_batch;

/* Sum of the token losses in nats. With `gradient` (else NULL): gradient += scale * d(sum + router losses)/d(weights);
 * so with scale = 1/N the router losses are those of algorithms with means over windows and tokens. */
double ref_model_loss(const ref_model *m, const double *weights, const ref_batch *b, double scale, double *gradient);

/* What a rank with table `local` holds of `whole`, in local's layout: local->n_element doubles, padding 0. */
void ref_model_share(const ref_model *m, const double *whole, const gr_params *local, double *share);

#endif
