/* grouter.h: the Grouter: a frozen network that scores experts for every token of a window; and how scores become
 * routes. One file holds network and settings: safetensors with the tensors of a model with scores (model.h) as F32,
 * and the settings as JSON under the metadata key "grouter", with the hash of settings and tensors beside them. */
#ifndef GROUTER_GROUTER_H
#define GROUTER_GROUTER_H

#include "grouter/model.h"
#include "grouter/routes.h"

/* ---------------------------------------------------------------- settings and files */

typedef struct gr_grouter_spec {
    gr_model_config network;      /* GR_HEAD_SCORES; num_labels = E */
    uint32_t K;                   /* experts per token */
    float scale;                  /* what a token's gates sum to */
    char made[GR_PROVENANCE_MAX]; /* how it was made: text for people, not part of its identity; a file holds UTF-8 */
} gr_grouter_spec;

/* Whether the settings make a network and routes: 65, `where` heads the message. */
GR_MUST gr_err gr_grouter_check(const gr_grouter_spec *spec, const char *where);

/* A Grouter in host memory. */
typedef struct gr_grouter {
    gr_grouter_spec spec;
    gr_expert_map map; /* of no experts: the table needs one */
    gr_params params;
    float *weights;  /* flat, [params.n_element] */
    gr_hash128 hash; /* XXH3-128 of settings and tensors */
} gr_grouter;

/* An empty network of these settings: weights 0. 65 if they are wrong, 69. */
GR_MUST gr_err gr_grouter_make(gr_grouter *out, const gr_grouter_spec *spec);
/* Settings, names, shapes, types and the stored hash are checked: 65 (settings, hash) or 66 (a file that is no
 * safetensors file, tensors); memory is taken only for tensors that are there. */
GR_MUST gr_err gr_grouter_open(gr_grouter *out, const char *path);
/* The same without reading tensors: weights NULL, the hash as the file states it. */
GR_MUST gr_err gr_grouter_describe(gr_grouter *out, const char *path);
void gr_grouter_close(gr_grouter *g); /* accepts a zeroed or half-made one */
/* By one process. Sets g->hash. 65 if the settings are wrong, 74. */
GR_MUST gr_err gr_grouter_save(gr_grouter *g, const char *path);
/* The same of weights that lie elsewhere, in the layout of `params`, which may be padded for more ranks. */
GR_MUST gr_err gr_grouter_write(
    const gr_grouter_spec *spec, const gr_params *params, const float *weights, const char *path, gr_hash128 *hash);
/* True if the file begins like a safetensors file: of routers only Grouters are. */
bool gr_grouter_is(const char *path);
/* True if the file says that it is a Grouter. */
bool gr_grouter_claims(const gr_safetensors *file);

/* "causal", "bidirectional", ...; "attention", "linear", "residual-linear"; "none", "window". */
const char *gr_mask_name(gr_mask mask);
const char *gr_body_name(gr_body body);
const char *gr_position_name(gr_position position);
/* Does a route depend on tokens after its own? */
bool gr_mask_sees_ahead(gr_mask mask);
/* What has to be said wherever routes of such a mask are made or used: one sentence; NULL for masks that do not see
 * ahead. */
const char *gr_mask_warning(gr_mask mask);

/* ---------------------------------------------------------------- from scores to routes */

typedef struct gr_selection {
    uint32_t E, K;
    float scale;
    float threshold;   /* dynamic activation: see below; >= scale: off */
    const float *bias; /* [E] bias routing, or NULL */
} gr_selection;

/* Routes of T tokens from scores[T*E] fp32. The K experts with the largest scores (with bias: scores + bias), ties to
 * the lower id; ids[T*K] ascending. gates[T*K] = scale * softmax over the selected tokens' scores (never the bias),
 * rounded to bf16; a gate that would round to 0 becomes the smallest normal number, so that every slot is used.
 * Dynamic activation (paper, threshold tau): gates in descending order (ties to the lower id), running sums c_j; the
 * first is kept, and each further one while c_j <= tau; the others are exactly 0, nothing is renormalised.
 * Of scores that are not finite the ids are still K distinct ones below E, but the gates are no numbers to use: callers
 * that route refuse such scores before (gr_router_route). */
void gr_select(const gr_selection *s, uint32_t T, const float *scores, uint16_t *ids, float *gates);

#endif
