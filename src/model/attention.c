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

static gr_norm input_norm(gr_model *m, int l) {
    attention_saved *s = attention_of(m, l);
    return (gr_norm){.n_row = m->N,
        .width = m->D,
        .n_sub = 1,
        .ldx = m->D,
        .ldy = m->D,
        .eps = (float)m->config.rms_norm_eps,
        .x = stream_before(m, l),
        .w = norm_at(m, m->layer[l].norm1),
        .y = s->n1,
        .rstd = s->rstd1};
}

typedef enum head_kind { QUERY, KEY } head_kind;

/* Norm of every head of q or k, from qk_raw into qkv; both have rows of width A. */
static gr_norm head_norm(gr_model *m, int l, head_kind kind) {
    shape z = shape_of(m);
    attention_saved *s = attention_of(m, l);
    int64_t first = kind == KEY ? z.O : 0, heads = kind == KEY ? z.H_kv : z.H;
    return (gr_norm){.n_row = m->N * heads,
        .width = z.hd,
        .n_sub = heads,
        .ldx = z.A,
        .ldy = z.A,
        .eps = (float)m->config.rms_norm_eps,
        .x = act_at(m, s->qk_raw, first),
        .w = norm_at(m, kind == KEY ? m->layer[l].k_norm : m->layer[l].q_norm),
        .y = act_at(m, s->qkv, first),
        .rstd = kind == KEY ? s->rstd_k : s->rstd_q};
}

/* The heads of q and k are neighbours, so one call turns both. */
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
    a.v = act_at(m, s->qkv, z.O + z.H_kv * z.hd);
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

static gr_err norm_heads(gr_model *m, int l) {
    gr_backend *b = m->backend;
    attention_saved *s = attention_of(m, l);
    gr_norm q = head_norm(m, l, QUERY), k = head_norm(m, l, KEY);
    /* v takes no norm: whole rows are copied, q and k then overwritten. */
    GR_TRY(b->copy(b, GR_LANE_COMPUTE, s->qkv, s->qk_raw, (size_t)(m->N * shape_of(m).A) * b->elem_size));
    GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &q));
    return b->norm_forward(b, GR_LANE_COMPUTE, &k);
}

static gr_err norm_heads_backward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    gr_norm q = head_norm(m, l, QUERY), k = head_norm(m, l, KEY);
    q.dy = q.dx = m->dqkv;
    q.dw = gradient_at(m, m->layer[l].q_norm.offset);
    k.dy = k.dx = act_at(m, m->dqkv, shape_of(m).O);
    k.dw = gradient_at(m, m->layer[l].k_norm.offset);
    GR_TRY(b->norm_backward(b, GR_LANE_COMPUTE, &q));
    return b->norm_backward(b, GR_LANE_COMPUTE, &k);
}

gr_err gr_model_attention_forward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    attention_saved *s = attention_of(m, l);
    shape z = shape_of(m);
    bool qk_norm = m->config.use_qk_norm;

    gr_norm norm = input_norm(m, l);
    GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &norm));
    GR_TRY(project(m, GR_OVERWRITE, s->n1, m->D, m->layer[l].wqkv, qk_norm ? s->qk_raw : s->qkv, z.A));
    if (qk_norm)
        GR_TRY(norm_heads(m, l));
    GR_TRY(rotate(m, s->qkv, false));
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
    GR_TRY(rotate(m, m->dqkv, true));
    if (m->config.use_qk_norm)
        GR_TRY(norm_heads_backward(m, l));
    GR_TRY(project_backward(m, m->dqkv, z.A, m->layer[l].wqkv, s->n1, m->dn, m->D));
    gr_norm norm = input_norm(m, l);
    norm.dy = m->dn;
    norm.dx = m->dres;
    norm.dx_write = GR_ACCUMULATE;
    norm.dw = gradient_at(m, m->layer[l].norm1.offset);
    return b->norm_backward(b, GR_LANE_COMPUTE, &norm);
}
