/* grouter_case.h: small Grouters of every body with weights away from their initial ones and zeros, and a batch whose
 * windows hold documents of many lengths. */
#ifndef GROUTER_GROUTER_CASE_H
#define GROUTER_GROUTER_CASE_H

#include "grouter/model.h"

/* About 1000 parameters each; token 3 ends a document, token 4 embeds to zero. The attention body is bidirectional. */
extern const gr_model_config grouter_case_attention, grouter_case_linear, grouter_case_residual_linear;

typedef struct grouter_case_options {
    const gr_model_config *config;
    gr_backend *backend;
    gr_comm *comm; /* one rank */
    int64_t n_window, T;
    bool train;
    gr_trained trained;
    gr_recompute recompute;
} grouter_case_options;

typedef struct grouter_case {
    grouter_case_options options;
    gr_model *model;
    int64_t N, n_score; /* rows, scores of all rows */
    uint32_t *token;    /* [N] */
    float *r;           /* [n_score] random: d(sum of r times scores)/d(scores) */
} grouter_case;

/* All functions end the process on failure. */
gr_model_options grouter_case_model_options(const grouter_case_options *o, gr_plan_limits *limits);
void grouter_case_open(grouter_case *c, const grouter_case_options *o);
void grouter_case_close(grouter_case *c);

/* Scores of the case's tokens as they are now: a copy, freed with free(). */
float *grouter_case_scores(grouter_case *c);
/* Gradients of sum of r times scores, from zero: the model's own memory. */
const float *grouter_case_gradients(grouter_case *c);

#endif
