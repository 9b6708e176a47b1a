/* Attention half of a block: mid = x + Wo attend(rope(Wqkv norm(x))), with optional norms of q and k before the
 * rotation. */
#include "internal.h"

/* q, k and v lie side by side in one row of width A; O = H*head_dim is the width of q and of the output. */
typedef struct shape {
    int64_t H, H_kv, hd, A, O;
} shape;

static shape shape_of(const gr_model *m) {
    const gr_model_config *c = &m->config;
    shape s = {.H = c->num_attention_heads, .H_kv = c->num_key_value_heads, .hd = c->head_dim};
    s.A = (s.H + 2 * s.H_kv) * s.hd;
    s.O = s.H * s.hd;
    return s;
}

/* Where the product Wqkv n1 goes. */
static void *projected(const gr_model *m, const attention_saved *s) {
    return m->config.use_qk_norm ? s->qk_raw : s->qkv;
}

static gr_norm input_norm(gr_model *m, int l) {
    attention_saved *s = attention_of(m, l);
    return (gr_norm){.n_row = m->N,
        .width = m->D,
        .ldx = m->D,
        .ldy = m->D,
        .eps = (float)m->config.rms_norm_eps,
        .x = stream_before(m, l),
        .w = norm_at(m, m->layer[l].norm1),
        .y = s->n1,
        .rstd = s->rstd1};
}

/* The heads of q and k are neighbours in qk_raw and in qkv: one call norms and turns all. */
static gr_head_norm head_norm(gr_model *m, int l) {
    shape z = shape_of(m);
    attention_saved *s = attention_of(m, l);
    bool rotated = gr_model_rotated(m) > 0;
    return (gr_head_norm){.n_row = m->N,
        .T = m->T,
        .n_q = z.H,
        .n_k = z.H_kv,
        .head_dim = z.hd,
        .ldx = z.A,
        .ldy = z.A,
        .eps = (float)m->config.rms_norm_eps,
        .cosine = rotated ? m->cosine : NULL,
        .sine = rotated ? m->sine : NULL,
        .x = s->qk_raw,
        .wq = norm_at(m, m->layer[l].q_norm),
        .wk = norm_at(m, m->layer[l].k_norm),
        .y = s->qkv,
        .rstd = s->rstd_qk};
}

/* Without norms q and k are turned in place. */
static gr_err rotate(gr_model *m, void *qkv, bool inverse) {
    shape z = shape_of(m);
    if (gr_model_rotated(m) == 0)
        return GR_OK;
    return m->backend->rope(m->backend, GR_LANE_COMPUTE,
        &(gr_rope){.n_row = m->N,
            .T = m->T,
            .n_head = z.H + z.H_kv,
            .head_dim = z.hd,
            .ld = z.A,
            .cosine = m->cosine,
            .sine = m->sine,
            .x = qkv,
            .inverse = inverse});
}

/* Without arrays. */
static gr_attention attend_shape(const gr_model *m) {
    shape z = shape_of(m);
    return (gr_attention){.mask = sees_ahead(&m->config) ? GR_ATTEND_BIDIRECTIONAL : GR_ATTEND_CAUSAL,
        .n_window = m->N / m->T,
        .T = m->T,
        .H = z.H,
        .H_kv = z.H_kv,
        .head_dim = z.hd,
        .ldq = z.A,
        .ldk = z.A,
        .ldv = z.A,
        .ldo = z.O};
}

static gr_attention attend_args(gr_model *m, int l) {
    shape z = shape_of(m);
    attention_saved *s = attention_of(m, l);
    gr_attention a = attend_shape(m);
    a.documents = m->now.documents;
    a.q = s->qkv;
    a.k = act_at(m, s->qkv, z.O);
    a.v = act_at(m, projected(m, s), z.O + z.H_kv * z.hd); /* takes neither norm nor rotation */
    a.o = s->o;
    a.lse = s->lse;
    return a;
}

/* Only a Grouter's windows have documents, and it is fp32, where they take nothing more. */
size_t gr_model_attention_scratch(const gr_model *m) {
    const gr_backend *b = m->backend;
    if (!b->attention_scratch || m->n_attention == 0)
        return 0;
    const gr_attention a = attend_shape(m);
    const size_t forward = b->attention_scratch(b, &a, false);
    const size_t backward = m->train ? b->attention_scratch(b, &a, true) : 0;
    return forward > backward ? forward : backward;
}

/* y [N, n] = x [N, k] W^T with W [n, k] of the parameter table. */
static gr_err project(gr_model *m, gr_write write, const void *x, int64_t k, int64_t w, void *y, int64_t n) {
    return m->backend->gemm(m->backend, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NT,
            .write = write,
            .m = m->N,
            .n = n,
            .k = k,
            .a = x,
            .lda = k,
            .b = weight_at(m, w),
            .ldb = k,
            .c = y,
            .ldc = n,
            .c_dtype = m->backend->dtype});
}

/* dx [N, k] = dy [N, n] W, dW += dy^T x. */
static gr_err project_backward(gr_model *m, const void *dy, int64_t n, int64_t w, const void *x, void *dx, int64_t k) {
    gr_backend *b = m->backend;
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NN,
            .m = m->N,
            .n = k,
            .k = n,
            .a = dy,
            .lda = n,
            .b = weight_at(m, w),
            .ldb = k,
            .c = dx,
            .ldc = k,
            .c_dtype = b->dtype}));
    return b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_TN,
            .write = GR_ACCUMULATE,
            .m = n,
            .n = k,
            .k = m->N,
            .a = dy,
            .lda = n,
            .b = x,
            .ldb = k,
            .c = gradient_at(m, w),
            .ldc = k,
            .c_dtype = GR_F32});
}

static gr_err prepare_heads(gr_model *m, int l) {
    if (!m->config.use_qk_norm)
        return rotate(m, attention_of(m, l)->qkv, false);
    gr_head_norm heads = head_norm(m, l);
    return m->backend->head_norm_forward(m->backend, GR_LANE_COMPUTE, &heads);
}

static gr_err prepare_heads_backward(gr_model *m, int l) {
    if (!m->config.use_qk_norm)
        return rotate(m, m->dqkv, true);
    gr_head_norm heads = head_norm(m, l);
    heads.dy = heads.dx = m->dqkv;
    heads.dwq = gradient_at(m, m->layer[l].q_norm.offset);
    heads.dwk = gradient_at(m, m->layer[l].k_norm.offset);
    return m->backend->head_norm_backward(m->backend, GR_LANE_COMPUTE, &heads);
}

gr_err gr_model_attention_forward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    attention_saved *s = attention_of(m, l);
    shape z = shape_of(m);

    gr_norm norm = input_norm(m, l);
    GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &norm));
    GR_TRY(project(m, GR_OVERWRITE, s->n1, m->D, m->layer[l].wqkv, projected(m, s), z.A));
    GR_TRY(prepare_heads(m, l));
    gr_attention a = attend_args(m, l);
    GR_TRY(b->attention_forward(b, GR_LANE_COMPUTE, &a));
    GR_TRY(b->copy(b, GR_LANE_COMPUTE, s->mid, stream_before(m, l), (size_t)(m->N * m->D) * b->elem_size));
    return project(m, GR_ACCUMULATE, s->o, z.O, m->layer[l].wo, s->mid, m->D);
}

/* dres is the gradient of mid on entry and of x on return: the residual path stays, attention's part is added. */
gr_err gr_model_attention_backward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    attention_saved *s = attention_of(m, l);
    shape z = shape_of(m);

    GR_TRY(project_backward(m, m->dres, m->D, m->layer[l].wo, s->o, m->d_o, z.O));
    gr_attention a = attend_args(m, l);
    a.dout = m->d_o;
    a.dq = m->dqkv;
    a.dk = act_at(m, m->dqkv, z.O);
    a.dv = act_at(m, m->dqkv, z.O + z.H_kv * z.hd);
    GR_TRY(b->attention_backward(b, GR_LANE_COMPUTE, &a));
    GR_TRY(prepare_heads_backward(m, l));
    GR_TRY(project_backward(m, m->dqkv, z.A, m->layer[l].wqkv, s->n1, m->dn, m->D));
    gr_norm norm = input_norm(m, l);
    norm.dy = m->dn;
    norm.dx = m->dres;
    norm.dx_write = GR_ACCUMULATE;
    norm.dw = gradient_at(m, m->layer[l].norm1.offset);
    return b->norm_backward(b, GR_LANE_COMPUTE, &norm);
}
