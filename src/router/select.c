/* select.c: scores of experts to routes. */
#include "grouter/grouter.h"

#include <float.h>
#include <math.h>

/* Inserts expert e with this key into the best so far, best first; ties stay behind, so lower ids win, and so does NaN,
 * which is larger than nothing. */
static void insert_best(uint16_t *best, float *key, uint32_t n, uint32_t e, float value) {
    uint32_t at = n;
    for (; at > 0 && value > key[at - 1]; at--) {
        key[at] = key[at - 1];
        best[at] = best[at - 1];
    }
    key[at] = value;
    best[at] = (uint16_t)e;
}

static void top_k(const gr_selection *s, const float *scores, uint16_t *best) {
    float key[GR_TOPK_MAX + 1];
    uint32_t n = 0;
    for (uint32_t e = 0; e < s->E; e++) {
        float value = s->bias ? scores[e] + s->bias[e] : scores[e];
        if (n == s->K && !(value > key[n - 1]))
            continue;
        insert_best(best, key, n, e, value);
        n += n < s->K;
    }
}

static void sort_ids(uint16_t *ids, uint32_t n) {
    for (uint32_t i = 1; i < n; i++) {
        uint16_t id = ids[i];
        uint32_t at = i;
        for (; at > 0 && ids[at - 1] > id; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

/* gate[K], not yet rounded. In double: the sum of K terms then has no error that matters. */
static void softmax_of(const gr_selection *s, const float *scores, const uint16_t *ids, double *gate) {
    double largest = -INFINITY, sum = 0;
    for (uint32_t k = 0; k < s->K; k++)
        largest = fmax(largest, (double)scores[ids[k]]);
    for (uint32_t k = 0; k < s->K; k++)
        sum += gate[k] = exp((double)scores[ids[k]] - largest);
    for (uint32_t k = 0; k < s->K; k++)
        gate[k] *= (double)s->scale / sum;
}

/* Marks what lies beyond the threshold: a gate of 0 may also be one that the exponential could not hold. */
static void apply_threshold(const gr_selection *s, double *gate, bool *dropped) {
    double sum = 0;
    bool done[GR_TOPK_MAX] = {false};
    for (uint32_t place = 0; place < s->K; place++) {
        uint32_t next = s->K;
        for (uint32_t k = 0; k < s->K; k++)
            if (!done[k] && (next == s->K || gate[k] > gate[next]))
                next = k;
        done[next] = true;
        sum += gate[next];
        dropped[next] = place > 0 && !(sum <= (double)s->threshold);
    }
}

static float rounded(double gate) {
    float g = gr_f32_from_bf16(gr_bf16_from_f32((float)gate));
    return g < FLT_MIN ? FLT_MIN : g; /* the smallest normal number is one of bf16's too */
}

void gr_select(const gr_selection *s, uint32_t T, const float *scores, uint16_t *ids, float *gates) {
    GR_ASSERT(s->K >= 1 && s->K <= GR_TOPK_MAX && s->K <= s->E, "K = %u of E = %u", s->K, s->E);
    for (uint32_t t = 0; t < T; t++) {
        const float *score = scores + (size_t)t * s->E;
        uint16_t best[GR_TOPK_MAX + 1], *row = ids + (size_t)t * s->K;
        double gate[GR_TOPK_MAX];
        bool dropped[GR_TOPK_MAX] = {false};
        top_k(s, score, best);
        sort_ids(best, s->K);
        softmax_of(s, score, best, gate);
        if (s->threshold < s->scale)
            apply_threshold(s, gate, dropped);
        for (uint32_t k = 0; k < s->K; k++) {
            row[k] = best[k];
            gates[(size_t)t * s->K + k] = dropped[k] ? 0 : rounded(gate[k]);
        }
    }
}
