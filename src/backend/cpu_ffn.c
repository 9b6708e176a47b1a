/* cpu_ffn.c: grouped SwiGLU experts.
 *
 * Many experts: each is one task on one thread, its matrices staying in that thread's cache. Few experts (a dense or
 * shared one): every matrix product and loop is spread over all threads. An expert's rows are gathered into memory that
 * its pairs own anyway and that is written later: y in forward, dx in backward and in a forward that only makes h. */
#include "cpu_ops.h"

#include <string.h>

/* One expert's part of every array. */
typedef struct expert {
    const gr_ffn *a;
    const gr_cpu *cpu;
    bool wide; /* spread its loops over the threads */
    int64_t n; /* pairs */
    const uint32_t *row;
    const float *gate;
    const gr_act *w13, *w2;
    gr_act *h, *act, *da, *y, *dx;
    float *dw13, *dw2, *dgate;
    const gr_act *x, *dy; /* rows of pairs that are their own rows */
} expert;

static expert expert_of(const gr_ffn *a, const gr_cpu *cpu, int32_t e, bool wide) {
    const int64_t first = a->expert_offset ? a->expert_offset[e] : 0;
    const int64_t end = a->expert_offset ? a->expert_offset[e + 1] : a->n_pair;
    const int64_t D = a->D, F = a->F;
    return (expert){.a = a,
        .cpu = cpu,
        .wide = wide,
        .n = end - first,
        .row = a->pair_row ? a->pair_row + first : NULL,
        .gate = a->pair_gate ? a->pair_gate + first : NULL,
        .w13 = (const gr_act *)a->w13 + e * 2 * F * D,
        .w2 = (const gr_act *)a->w2 + e * D * F,
        .h = (gr_act *)a->h + first * 2 * F,
        .act = (gr_act *)a->a + first * F,
        .da = a->da ? (gr_act *)a->da + first * F : NULL,
        .y = a->y ? (gr_act *)a->y + first * D : NULL,
        .dx = a->dx ? (gr_act *)a->dx + first * D : NULL,
        .dw13 = a->dw13 ? a->dw13 + e * 2 * F * D : NULL,
        .dw2 = a->dw2 ? a->dw2 + e * D * F : NULL,
        .dgate = a->dgate ? a->dgate + first : NULL,
        .x = (const gr_act *)a->x + first * D,
        .dy = a->dy ? (const gr_act *)a->dy + first * D : NULL};
}

/* The pairs' rows of `in` [rows, D], packed into `room`; `own` where pairs are rows already. */
static const gr_act *packed_rows(const expert *x, const void *in, const gr_act *own, gr_act *room) {
    const int64_t D = x->a->D;
    if (!x->row)
        return own;
#pragma omp parallel for if (x->wide)
    for (int64_t p = 0; p < x->n; p++)
        memcpy(room + p * D, (const gr_act *)in + (int64_t)x->row[p] * D, (size_t)D * sizeof(gr_act));
    return room;
}

/* c [m,n] of packed matrices. Gradients of weights, the TN products, are fp32 and summed up; all others are act. */
static int product(const expert *x, gr_layout layout, const int64_t shape[3], const void *a, const void *b, void *c) {
    const int64_t m = shape[0], n = shape[1], k = shape[2];
    const gr_gemm g = {.layout = layout,
        .write = layout == GR_TN ? GR_ACCUMULATE : GR_OVERWRITE,
        .m = m,
        .n = n,
        .k = k,
        .a = a,
        .lda = layout == GR_TN ? m : k,
        .b = b,
        .ldb = layout == GR_NT ? k : n,
        .c = c,
        .ldc = n,
        .c_dtype = layout == GR_TN ? GR_F32 : GR_ACT_DTYPE};
    return GR_CPU(gemm)(x->cpu, &g);
}

#define SHAPE(m, n, k) ((const int64_t[3]){(m), (n), (k)})

/* a = gate silu(h1) h3 */
static void swiglu_row(int64_t F, float gate, const gr_act *h, gr_act *a) {
    const gr_act *h1 = h, *h3 = h + F;
#pragma omp simd
    for (int64_t j = 0; j < F; j++) {
        const float u = gr_act_load(h1[j]);
        a[j] = gr_act_store(gate * u / (1.0f + gr_cpu_exp(-u)) * gr_act_load(h3[j]));
    }
}

/* h to dh in place, a remade; returns <da, silu(h1) h3>. */
static float swiglu_row_backward(int64_t F, float gate, const gr_act *da, gr_act *h, gr_act *a) {
    gr_act *h1 = h, *h3 = h + F;
    float dgate = 0;
#pragma omp simd reduction(+ : dgate)
    for (int64_t j = 0; j < F; j++) {
        const float u = gr_act_load(h1[j]), v = gr_act_load(h3[j]), da_j = gr_act_load(da[j]), d = gate * da_j;
        const float sigmoid = 1.0f / (1.0f + gr_cpu_exp(-u)), silu = u * sigmoid;
        a[j] = gr_act_store(gate * silu * v);
        dgate += da_j * silu * v;
        h1[j] = gr_act_store(d * v * (sigmoid + silu * (1.0f - sigmoid)));
        h3[j] = gr_act_store(d * silu);
    }
    return dgate;
}

static int expert_forward(const expert *x) {
    const int64_t n = x->n, D = x->a->D, F = x->a->F;
    const gr_act *in = packed_rows(x, x->a->x, x->x, x->y ? x->y : x->dx);
    int status = product(x, GR_NT, SHAPE(n, 2 * F, D), in, x->w13, x->h);
    if (!x->y)
        return status;
#pragma omp parallel for if (x->wide)
    for (int64_t p = 0; p < n; p++)
        swiglu_row(F, x->gate ? x->gate[p] : 1.0f, x->h + p * 2 * F, x->act + p * F);
    return status | product(x, GR_NT, SHAPE(n, D, F), x->act, x->w2, x->y);
}

static int expert_backward(const expert *x) {
    const int64_t n = x->n, D = x->a->D, F = x->a->F;
    const gr_act *dy = packed_rows(x, x->a->dy, x->dy, x->dx);
    int status = product(x, GR_NN, SHAPE(n, F, D), dy, x->w2, x->da);
#pragma omp parallel for if (x->wide)
    for (int64_t p = 0; p < n; p++) {
        float dgate =
            swiglu_row_backward(F, x->gate ? x->gate[p] : 1.0f, x->da + p * F, x->h + p * 2 * F, x->act + p * F);
        if (x->dgate)
            x->dgate[p] = dgate;
    }
    status |= product(x, GR_TN, SHAPE(D, F, n), dy, x->act, x->dw2);
    const gr_act *in = packed_rows(x, x->a->x, x->x, x->dx);
    status |= product(x, GR_TN, SHAPE(2 * F, D, n), x->h, in, x->dw13);
    return status | product(x, GR_NN, SHAPE(n, D, 2 * F), x->h, x->w13, x->dx);
}

static gr_err for_each_expert(gr_backend *b, const gr_ffn *a, int (*run)(const expert *)) {
    const gr_cpu *cpu = b->state;
    const bool wide = a->n_expert < cpu->n_thread;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (!wide)
    for (int32_t e = 0; e < a->n_expert; e++) {
        expert x = expert_of(a, cpu, e, wide);
        if (x.n > 0)
            failed |= run(&x);
    }
    return gr_cpu_gemm_check(failed);
}

gr_err GR_CPU(ffn_forward)(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    (void)lane;
    return for_each_expert(b, a, expert_forward);
}

gr_err GR_CPU(ffn_backward)(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    (void)lane;
    return for_each_expert(b, a, expert_backward);
}
