/* eval.h: what trained weights are worth. */
#ifndef GROUTER_EVAL_H
#define GROUTER_EVAL_H

#include "grouter/train.h"

typedef struct gr_eval_loss {
    double nats_per_token, perplexity;
    double nats_per_byte; /* all losses / bytes predicted; NaN unless the vocabulary is the byte-level one */
    uint64_t n_token, n_byte, n_window;
    gr_mask mask;         /* of the tables' router */
    double last_position; /* gr_eval_weights, if that mask sees ahead: nats per token at the last position of the
                             windows, where nothing lies ahead; else NaN */
} gr_eval_loss;

/* Mean loss over the feed's validation windows; collective, the same result on every rank. */
GR_MUST gr_err gr_eval_loss_run(gr_feed *valid, gr_model *model, gr_comm *comm, gr_eval_loss *out);

/* Loads weights (a safetensors file as train writes it) into a model of the config and runs the above; collective over
 * the comm, whose groups it forms. Errors before the computation are agreed by all ranks: 64, 65, 66, 69. */
GR_MUST gr_err gr_eval_weights(const gr_config *config, gr_comm *comm, const char *weights, gr_eval_loss *out);

#endif
