/* A layer of a Grouter without context: y = relu(layer_norm(x W^T)), plus x where the widths are equal. With positions
 * the embedding itself was turned before the first layer (embed.c). */
#include "internal.h"

#define LAYER_NORM_EPS 1e-5f

typedef struct shape {
    int64_t in, out;
} shape;

static shape shape_of(const gr_model *m, int l) {
    return (shape){gr_linear_width(&m->config, l), gr_linear_width(&m->config, l + 1)};
}

static gr_layer_norm norm_of(gr_model *m, int l) {
    linear_saved *s = &m->linear[l % m->n_linear];
    shape z = shape_of(m, l);
    return (gr_layer_norm){.n_row = m->N,
        .width = z.out,
        .eps = LAYER_NORM_EPS,
        .x = s->z,
        .w = norm_at(m, m->layer[l].ln_w),
        .b = norm_at(m, m->layer[l].ln_b),
        .residual = z.in == z.out ? stream_before(m, l) : NULL,
        .y = stream_before(m, l + 1),
        .mean = s->mean,
        .rstd = s->rstd};
}

gr_err gr_model_linear_forward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    shape z = shape_of(m, l);
    gr_layer_norm norm = norm_of(m, l);
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NT,
            .m = m->N,
            .n = z.out,
            .k = z.in,
            .a = stream_before(m, l),
            .lda = z.in,
            .b = weight_at(m, m->layer[l].linear),
            .ldb = z.in,
            .c = m->linear[l % m->n_linear].z,
            .ldc = z.out,
            .c_dtype = b->dtype}));
    return b->layer_norm_forward(b, GR_LANE_COMPUTE, &norm);
}

/* dres [N, out] on entry, [N, in] on return; dn takes the gradient of the product. */
gr_err gr_model_linear_backward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    shape z = shape_of(m, l);
    gr_layer_norm norm = norm_of(m, l);
    norm.dy = m->dres;
    norm.dx = m->dn;
    norm.dw = gradient_at(m, m->layer[l].ln_w.offset);
    norm.db = gradient_at(m, m->layer[l].ln_b.offset);
    GR_TRY(b->layer_norm_backward(b, GR_LANE_COMPUTE, &norm));
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_TN,
            .write = GR_ACCUMULATE,
            .m = z.out,
            .n = z.in,
            .k = m->N,
            .a = m->dn,
            .lda = z.out,
            .b = stream_before(m, l),
            .ldb = z.in,
            .c = gradient_at(m, m->layer[l].linear),
            .ldc = z.in,
            .c_dtype = GR_F32}));
    return b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NN,
            .write = z.in == z.out ? GR_ACCUMULATE : GR_OVERWRITE,
            .m = m->N,
            .n = z.in,
            .k = z.out,
            .a = m->dn,
            .lda = z.out,
            .b = weight_at(m, m->layer[l].linear),
            .ldb = z.in,
            .c = m->dres,
            .ldc = z.in,
            .c_dtype = b->dtype});
}
