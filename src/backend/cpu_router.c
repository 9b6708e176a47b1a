/* cpu_router.c: the learned router of a layer. All fp32 but dlogits, which a matrix product reads. Each token is one
 * task; what is summed over tokens is summed in their order afterwards. */
#include "cpu_ops.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- one token, forward */

/* The K largest of l[E] by ascending id. Only a larger logit displaces another: ties stay with the lower id, and NaN,
 * larger than nothing, displaces none but fills up. */
static void choose(int64_t E, int64_t K, const float *l, uint16_t *ids) {
    for (int64_t i = 0; i < E; i++) { /* ids[] by falling logit */
        int64_t at = i < K ? i : K;
        if (at == K && !(l[i] > l[ids[K - 1]]))
            continue;
        at = at == K ? K - 1 : at;
        for (; at > 0 && l[i] > l[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = (uint16_t)i;
    }
    for (int64_t k = 1; k < K; k++) {
        const uint16_t id = ids[k];
        int64_t at = k;
        for (; at > 0 && ids[at - 1] > id; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

/* g = scale * softmax of the chosen logits. */
static void gates_of_chosen(const gr_router_op *a, const float *l, const uint16_t *ids, float *g) {
    float largest = l[ids[0]], sum = 0;
    for (int64_t k = 1; k < a->K; k++)
        largest = l[ids[k]] > largest ? l[ids[k]] : largest;
    for (int64_t k = 0; k < a->K; k++) {
        g[k] = gr_cpu_exp(l[ids[k]] - largest);
        sum += g[k];
    }
    for (int64_t k = 0; k < a->K; k++)
        g[k] *= a->scale / sum;
}

/* l to its softmax; returns its log-sum-exp. */
static float softmax(int64_t E, float *l) {
    float largest = l[0];
    double sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < E; i++)
        largest = l[i] > largest ? l[i] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < E; i++) {
        l[i] = gr_cpu_exp(l[i] - largest);
        sum += (double)l[i];
    }
    const float factor = (float)(1 / sum);
#pragma omp simd
    for (int64_t i = 0; i < E; i++)
        l[i] *= factor;
    return (float)((double)largest + log(sum));
}

static void token_forward(const gr_router_op *a, int64_t t) {
    float *l = a->p + t * a->E, *g = a->gate + t * a->K;
    uint16_t *ids = a->ids + t * a->K;
    if (a->choice == GR_CHOICE_TOP_K)
        choose(a->E, a->K, l, ids);
    if (a->normalise)
        gates_of_chosen(a, l, ids, g);
    a->lse[t] = softmax(a->E, l);
    for (int64_t k = 0; !a->normalise && k < a->K; k++)
        g[k] = a->scale * l[ids[k]];
}

/* ---------------------------------------------------------------- windows */

static void count_window(const gr_router_op *a, int64_t w) {
    uint32_t *count = a->count + w * a->E;
    const uint16_t *ids = a->ids + w * a->T * a->K;
    memset(count, 0, (size_t)a->E * sizeof *count);
    for (int64_t i = 0; i < a->T * a->K; i++)
        count[ids[i]]++;
}

/* sum_i count_i p_ti */
static double balance(const gr_router_op *a, int64_t t) {
    const float *p = a->p + t * a->E;
    const uint32_t *count = a->count + t / a->T * a->E;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < a->E; i++)
        sum += (double)count[i] * (double)p[i];
    return sum;
}

static gr_err add_losses(gr_backend *b, const gr_router_op *a) {
    void *scratch;
    double aux = 0, z = 0;
    GR_TRY(gr_cpu_scratch(b, (size_t)a->n * sizeof(double), &scratch));
    double *of_token = scratch;
#pragma omp parallel for
    for (int64_t t = 0; t < a->n; t++)
        of_token[t] = balance(a, t);
    for (int64_t t = 0; t < a->n; t++) {
        aux += of_token[t];
        z += (double)a->lse[t] * (double)a->lse[t];
    }
    a->loss[0] += a->aux_scale * aux;
    a->loss[1] += a->z_scale * z;
    return GR_OK;
}

gr_err GR_CPU(router_forward)(gr_backend *b, gr_lane lane, const gr_router_op *a) {
    (void)lane;
    const int64_t n_window = a->n / a->T;
#pragma omp parallel for
    for (int64_t t = 0; t < a->n; t++)
        token_forward(a, t);
#pragma omp parallel for
    for (int64_t w = 0; w < n_window; w++)
        count_window(a, w);
    for (int64_t w = 0; a->load && w < n_window; w++)
        for (int64_t i = 0; i < a->E; i++)
            a->load[i] += a->count[w * a->E + i];
    return a->loss ? add_losses(b, a) : GR_OK;
}

/* ---------------------------------------------------------------- backward */

static void token_backward(const gr_router_op *a, int64_t t) {
    const float *p = a->p + t * a->E, *g = a->gate + t * a->K, *dg = a->dgate + t * a->K;
    const uint16_t *ids = a->ids + t * a->K;
    const uint32_t *count = a->count + t / a->T * a->E;
    gr_act *dl = (gr_act *)a->dlogits + t * a->E;
    float mean = 0; /* of dgate over the gates, times their sum */
    for (int64_t k = 0; k < a->K; k++)
        mean += dg[k] * g[k];
    const float aux = (float)a->aux_scale;
    float all = (float)(2 * a->z_scale * (double)a->lse[t] - (a->aux_scale != 0 ? a->aux_scale * balance(a, t) : 0));
    all -= a->normalise ? 0 : mean;
#pragma omp simd
    for (int64_t i = 0; i < a->E; i++)
        dl[i] = gr_act_store(p[i] * (aux * (float)count[i] + all));
    for (int64_t k = 0; k < a->K; k++) {
        const int64_t i = ids[k];
        const float chosen = g[k] * (dg[k] - (a->normalise ? mean / a->scale : 0));
        dl[i] = gr_act_store(p[i] * (aux * (float)count[i] + all) + chosen);
    }
}

gr_err GR_CPU(router_backward)(gr_backend *b, gr_lane lane, const gr_router_op *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t t = 0; t < a->n; t++)
        token_backward(a, t);
    return GR_OK;
}
