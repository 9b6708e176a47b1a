/* eval.h: what trained weights are worth. */
#ifndef GROUTER_EVAL_H
#define GROUTER_EVAL_H

#include "grouter/train.h"

typedef struct gr_eval_loss {
    double nats_per_token, perplexity;
    double nats_per_byte; /* NaN unless the vocabulary is the byte-level one */
    uint64_t n_token, n_byte;
} gr_eval_loss;

/* Mean loss over the feed's validation windows; collective, the same result on every rank. */
GR_MUST gr_err gr_eval_loss_run(gr_feed *valid, gr_model *model, gr_comm *comm, gr_eval_loss *out);

#endif
