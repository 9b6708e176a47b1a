/* layer.h: what the files of the layer benchmark share. layer_routes.c: routes of a wanted spread of loads;
 * layer_experts.c: one layer's arrays and its parts; layer_check.c: its results; layer.c: time. */
#ifndef GROUTER_BENCH_LAYER_H
#define GROUTER_BENCH_LAYER_H

#include <math.h>

#include "exchange.h"
#include "times.h"

/* ---------------------------------------------------------------- routes (layer_routes.c) */

/* The micro-batch of all ranks, the same on each; gates are bf16 values that sum to 1 within 1/256. scale, T and N are
 * those of the table, if there is one. 64, 65. */
GR_MUST gr_err gr_bench_routes_open(bench_batch *b, const gr_layer_options *o);
/* As a table of R windows with N tokens each. By one rank. */
GR_MUST gr_err gr_bench_routes_save(const bench_batch *b, const gr_layer_options *o);
/* load_cv, load_max, imbalance and n_pair of the report. */
GR_MUST gr_err gr_bench_routes_describe(const bench_batch *b, gr_layer_report *report);

/* ---------------------------------------------------------------- the layer (layer_experts.c) */

typedef struct bench_experts {
    const gr_layer_options *o;
    gr_comm *comm;
    gr_backend *backend;
    bench_batch batch;
    bench_plan plan;
    int64_t N, D, F, M, P; /* own tokens, widths, received rows, pairs */
    uint32_t E_local;
    gr_moe moe;
    gr_expert_weights weights; /* of `place` */
    void *memory;              /* backend memory: all that follows */
    size_t n_byte;
    void *x, *dy;      /* act [N+M, D] own rows, then received ones */
    void *out, *dx;    /* act [N, D] */
    void *h;           /* act [P, 2F] */
    void *w13, *w2;    /* act [E_local, 2F, D], [E_local, D, F] */
    float *dw13, *dw2; /* of the same shapes */
    float *pair_gate;  /* [P] */
    float *host_gate;  /* [P] the same on the host */
    void *staging;     /* host memory of n_staging bytes, on the way to and from the backend */
    size_t n_staging;
} bench_experts;

/* Collective. */
GR_MUST gr_err gr_bench_experts_open(bench_experts *l, const gr_layer_options *o);
void gr_bench_experts_close(bench_experts *l); /* accepts a zeroed one */

/* Forward leaves h for one backward, which overwrites it. Returns when the backend is done. */
enum { LAYER_FORWARD, LAYER_BACKWARD, N_LAYER_PART };
GR_MUST gr_err gr_bench_experts_run(bench_experts *l, int part);

/* Scales of the random weights, so that h and out are of the size of x. */
static inline float gr_bench_w13_scale(const bench_experts *l) {
    return 1 / sqrtf((float)l->D);
}
static inline float gr_bench_w2_scale(const bench_experts *l) {
    return 1 / sqrtf((float)l->F);
}
static inline uint64_t gr_bench_layer_key(const bench_experts *l, int stream) {
    return l->o->seed * 8 + (uint64_t)stream;
}

/* ---------------------------------------------------------------- results (layer_check.c) */

/* After one forward and one backward from zero gradients: error and norms of the report, of all ranks. 70. */
GR_MUST gr_err gr_bench_experts_check(bench_experts *l, gr_layer_report *report);

#endif
