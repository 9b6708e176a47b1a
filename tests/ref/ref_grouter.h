/* ref_grouter.h: the whole Grouter once more in double: its scores, as plain loops over the ops of ref.h. Gradients are
 * measured: central differences of a scalar of the scores. */
#ifndef GROUTER_REF_GROUTER_H
#define GROUTER_REF_GROUTER_H

#include "grouter/model.h"

/* Weights are flat arrays of params.n_element doubles in the layout of `params`. */
typedef struct ref_grouter {
    gr_model_config config;
    gr_params params;
    int64_t n_window, T;
    const uint32_t *token; /* [n_window*T] */
} ref_grouter;

/* Ends the process on failure. The token array is borrowed. */
void ref_grouter_open(
    ref_grouter *g, const gr_model_config *config, int64_t n_window, int64_t T, const uint32_t *token);
void ref_grouter_close(ref_grouter *g);

/* scores [n_window*T, num_labels], without the bias */
void ref_grouter_scores(const ref_grouter *g, const double *weights, double *scores);

/* gradient[i] = (S(w + h e_i) - S(w - h e_i)) / 2h with S = sum of r [n_window*T, num_labels] times scores, for every
 * element of every parameter; 0 between parameters and in the row of the zero token, which is no variable. */
void ref_grouter_gradient(const ref_grouter *g, double h, const double *r, double *weights, double *gradient);

#endif
