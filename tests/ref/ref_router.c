#include "ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double log_sum_exp(int64_t n, const double *l) {
    double largest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, l[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp(l[i] - largest);
    return largest + log(sum);
}

static bool contains(int64_t K, const uint16_t *ids, int64_t i) {
    for (int64_t k = 0; k < K; k++)
        if (ids[k] == i)
            return true;
    return false;
}

/* Expert i is chosen if fewer than K others come before it: larger, or equal with a lower id. */
static void choose(int64_t E, int64_t K, const double *l, uint16_t *ids) {
    int64_t n = 0;
    for (int64_t i = 0; i < E; i++) {
        int64_t before = 0;
        for (int64_t j = 0; j < E; j++)
            before += l[j] > l[i] || (l[j] == l[i] && j < i);
        if (before < K)
            ids[n++] = (uint16_t)i;
    }
}

/* Log of what the gates of token t are divided by. */
static double log_divisor(const ref_router *s, int64_t t, const uint16_t *ids) {
    const double *l = s->logits + t * s->E;
    if (!s->normalise)
        return log_sum_exp(s->E, l);
    double *chosen = ref_alloc(s->K);
    for (int64_t k = 0; k < s->K; k++)
        chosen[k] = l[ids[t * s->K + k]];
    double lse = log_sum_exp(s->K, chosen);
    free(chosen);
    return lse;
}

/* Tokens of t's window that have expert i. */
static double count_of(const ref_router *s, int64_t t, const uint16_t *ids, int64_t i) {
    int64_t first = t / s->T * s->T, n = 0;
    for (int64_t u = first; u < first + s->T; u++)
        n += contains(s->K, ids + u * s->K, i);
    return (double)n;
}

void ref_router_forward(const ref_router *s, uint16_t *ids, double *gates, double loss[2]) {
    for (int64_t t = 0; s->choose && t < s->n; t++)
        choose(s->E, s->K, s->logits + t * s->E, ids + t * s->K);
    for (int64_t t = 0; t < s->n; t++) {
        const double *l = s->logits + t * s->E;
        double lse = log_sum_exp(s->E, l), divisor = log_divisor(s, t, ids);
        for (int64_t k = 0; k < s->K; k++)
            gates[t * s->K + k] = s->scale * exp(l[ids[t * s->K + k]] - divisor);
        for (int64_t i = 0; i < s->E; i++)
            loss[0] += s->aux * count_of(s, t, ids, i) * exp(l[i] - lse);
        loss[1] += s->z * lse * lse;
    }
}

/* The derivative of every gate, probability and log-sum-exp by every logit, one at a time. */
void ref_router_backward(const ref_router *s, const uint16_t *ids, const double *dgate, double *dlogits) {
    for (int64_t t = 0; t < s->n; t++) {
        const double *l = s->logits + t * s->E;
        const uint16_t *own = ids + t * s->K;
        double lse = log_sum_exp(s->E, l), divisor = log_divisor(s, t, ids);
        for (int64_t j = 0; j < s->E; j++) {
            double pj = exp(l[j] - lse), d = 2 * s->z * lse * pj;
            for (int64_t i = 0; i < s->E; i++)
                d += s->aux * count_of(s, t, ids, i) * exp(l[i] - lse) * ((i == j) - pj);
            bool counts = !s->normalise || contains(s->K, own, j);
            for (int64_t k = 0; k < s->K; k++) {
                double q = exp(l[own[k]] - divisor), by = counts ? exp(l[j] - divisor) : 0;
                d += dgate[t * s->K + k] * s->scale * q * ((own[k] == j) - by);
            }
            dlogits[t * s->E + j] += d;
        }
    }
}
