/* balance.h: how evenly a Grouter loads the experts, and the gradient that evens it. */
#ifndef GROUTER_BALANCE_H
#define GROUTER_BALANCE_H

#include "grouter/grouter.h"

/* For each window w of T tokens, with p = softmax over all E scores, P_wi the mean of p_ti over its tokens and f_wi the
 * share of its T*K choices that expert i has (constant in the gradient): L_w = sum_i P_wi f_wi, at least 1/E (paper,
 * expert tuning). dL_w/dscore_ti = p_ti (f_wi - sum_j p_tj f_wj) / T. */
typedef struct gr_balance gr_balance;
GR_MUST gr_err gr_balance_open(gr_balance **out, gr_backend *backend, int64_t N, int64_t T, uint32_t E, uint32_t K);
void gr_balance_close(gr_balance *b);                                   /* accepts NULL */
size_t gr_balance_memory(int64_t N, int64_t T, uint32_t E, uint32_t K); /* bytes that open allocates */

/* scores [N, E] fp32, backend memory, are overwritten by their softmax. Chosen are the K largest scores, or with bias
 * [E] (host) the K largest of score + bias. *loss_sum += sum over windows of T L_w; load[E] (host) += choices. */
GR_MUST gr_err gr_balance_forward(gr_balance *b, float *scores, const float *bias, double *loss_sum, uint64_t *load);
/* After it, with the softmaxes it left: dscores [N, E] = scale * d(sum over windows of T L_w)/dscores; dscores may not
 * be the softmaxes. The memory is the balance's, valid until its next call. */
GR_MUST gr_err gr_balance_backward(gr_balance *b, float *softmax, double scale, const float **dscores);

/* The sign rule: bias_i -= rate * sign(load_i / sum of load - 1/E). */
void gr_balance_bias(uint32_t E, const uint64_t *load, double rate, float *bias);

#endif
