/* cpu_ops.c: products of any shape, the best rate of one, and the table of the ops of one storage type. */
#include "cpu_ops.h"

#include <string.h>

static void zero_rows(const gr_gemm *g) {
    const size_t size = gr_dtype_size(g->c_dtype);
    for (int64_t i = 0; i < g->m; i++)
        memset((char *)g->c + (size_t)(i * g->ldc) * size, 0, (size_t)g->n * size);
}

int GR_CPU(gemm)(const gr_cpu *cpu, const gr_gemm *g) {
    if (g->m == 0 || g->n == 0)
        return 0;
    if (g->k > 0)
        return GR_CPU(product)(cpu->products, g);
    if (g->write == GR_OVERWRITE)
        zero_rows(g);
    return 0;
}

static gr_err gemm(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    (void)lane;
    GR_ASSERT(a->c_dtype == GR_F32 || a->c_dtype == b->dtype, "c_dtype %s", gr_dtype_name(a->c_dtype));
    return gr_cpu_gemm_check(GR_CPU(gemm)(b->state, a));
}

static gr_err peak(gr_backend *b, double *flops_per_s) {
    enum { SIDE = 768, RUNS = 6 };
    const size_t n = (size_t)SIDE * SIDE;
    void *memory = NULL;
    GR_TRY(b->alloc(b, 3 * n * sizeof(gr_act), "peak measurement", &memory));
    gr_act *x = memory;
    for (size_t i = 0; i < 2 * n; i++) /* speed depends on the data: no zeros */
        x[i] = gr_act_store((float)(i * 2654435761u % 1024) / 512 - 1);
    const gr_gemm g = {.layout = GR_NN,
        .m = SIDE,
        .n = SIDE,
        .k = SIDE,
        .a = x,
        .lda = SIDE,
        .b = x + n,
        .ldb = SIDE,
        .c = x + 2 * n,
        .ldc = SIDE,
        .c_dtype = GR_ACT_DTYPE};
    double best = 0;
    int status = 0;
    for (int run = 0; run < RUNS && !status; run++) {
        double start = gr_time_s();
        status = GR_CPU(gemm)(b->state, &g);
        double rate = 2.0 * SIDE * SIDE * SIDE / (gr_time_s() - start);
        best = rate > best ? rate : best;
    }
    b->release(b, memory);
    *flops_per_s = best;
    return gr_cpu_gemm_check(status);
}

void GR_CPU(set_ops)(gr_backend *b) {
    b->dtype = GR_ACT_DTYPE;
    b->elem_size = sizeof(gr_act);
    b->gemm = gemm;
    b->peak = peak;
    b->gather_rows = GR_CPU(gather_rows);
    b->sum_rows = GR_CPU(sum_rows);
    b->router_forward = GR_CPU(router_forward);
    b->router_backward = GR_CPU(router_backward);
    b->ffn_forward = GR_CPU(ffn_forward);
    b->ffn_backward = GR_CPU(ffn_backward);
    b->embed_forward = GR_CPU(embed_forward);
    b->embed_backward = GR_CPU(embed_backward);
    b->norm_forward = GR_CPU(norm_forward);
    b->norm_backward = GR_CPU(norm_backward);
    b->head_norm_forward = GR_CPU(head_norm_forward);
    b->head_norm_backward = GR_CPU(head_norm_backward);
    b->layer_norm_forward = GR_CPU(layer_norm_forward);
    b->layer_norm_backward = GR_CPU(layer_norm_backward);
    b->rope = GR_CPU(rope);
    b->attention_forward = GR_CPU(attention_forward);
    b->attention_backward = GR_CPU(attention_backward);
    b->cross_entropy = GR_CPU(cross_entropy);
    b->adamw = GR_CPU(adamw);
    b->round_weights = GR_CPU(round_weights);
}
