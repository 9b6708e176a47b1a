/* probe.h: a trained target that predicts one window at a time, with whatever routes it is given. */
#ifndef GROUTER_EVAL_PROBE_H
#define GROUTER_EVAL_PROBE_H

#include "grouter/model.h"

typedef struct gr_probe gr_probe;

/* The model of the config, on this rank alone; the backend must outlive it. 66, 69. */
GR_MUST gr_err gr_probe_open(gr_probe **out, const gr_config *config, gr_backend *backend, const char *weights);
void gr_probe_close(gr_probe *p); /* accepts NULL */

/* loss[T], nats, of the window tokens[T+1] with routes ids[T*K], gates[T*K] (rows as in a route table). The same
 * arguments give the same bits. */
GR_MUST gr_err gr_probe_losses(
    gr_probe *p, const uint32_t *tokens, const uint16_t *ids, const float *gates, double *loss);

#endif
