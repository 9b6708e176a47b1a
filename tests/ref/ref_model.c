#include "ref_model.h"

#include <stdlib.h>
#include <string.h>

/* One evaluation. `g` is NULL when only the loss is wanted. */
typedef struct pass {
    const ref_model *m;
    const gr_model_config *c;
    const double *w;
    double *g;
    const ref_batch *b;
    int64_t N, D;
    double scale;
} pass;

static uint16_t *ids_alloc(size_t n) {
    uint16_t *p = calloc(n ? n : 1, sizeof *p);
    GR_ASSERT(p, "reference: no memory for %zu ids", n);
    return p;
}

void ref_model_open(ref_model *m, const gr_model_config *config) {
    *m = (ref_model){.config = *config};
    uint32_t E = (uint32_t)config->num_experts;
    m->map = (gr_expert_map){
        .E = E, .n_rank = 1, .E_local = E, .rank_of = ids_alloc(E), .slot_of = ids_alloc(E), .expert_at = ids_alloc(E)};
    for (uint32_t e = 0; e < E; e++)
        m->map.slot_of[e] = m->map.expert_at[e] = (uint16_t)e;
    gr_err err = gr_params_open(&m->params, &m->config, &m->map, 0, 1, 1);
    GR_ASSERT(!err, "%s", gr_error_text());
}

void ref_model_close(ref_model *m) {
    gr_params_close(&m->params);
    free(m->map.rank_of);
    free(m->map.slot_of);
    free(m->map.expert_at);
    *m = (ref_model){0};
}

void ref_model_init(const ref_model *m, uint64_t seed, double *weights) {
    float *w = malloc((size_t)m->params.n_element * sizeof *w);
    GR_ASSERT(w, "reference: no memory for %lld weights", (long long)m->params.n_element);
    GR_ASSERT(!gr_params_init(&m->params, seed, gr_weights_whole(&m->params, w)), "reference: %s", gr_error_text());
    for (int64_t i = 0; i < m->params.n_element; i++)
        weights[i] = w[i];
    free(w);
}

void ref_model_share(const ref_model *m, const double *whole, const gr_params *local, double *share) {
    memset(share, 0, (size_t)local->n_element * sizeof *share);
    for (int i = 0; i < local->n; i++) {
        const gr_param *to = &local->list[i], *from = gr_params_find(&m->params, to->name);
        GR_ASSERT(from, "%s", to->name);
        for (uint32_t k = 0; k < to->n_matrix; k++) {
            uint32_t e = to->owner == GR_WORLD ? 0 : local->map->expert_at[local->ep_rank * local->map->E_local + k];
            memcpy(share + to->offset + k * to->stride, whole + from->offset + e * from->stride,
                (size_t)gr_param_size(to) * sizeof *share);
        }
    }
}

/* ---------------------------------------------------------------- weights by name */

static const gr_param *entry(const pass *p, int layer, const char *suffix) {
    char name[128];
    if (layer < 0)
        snprintf(name, sizeof name, "%s", suffix);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, suffix);
    const gr_param *found = gr_params_find(&p->m->params, name);
    GR_ASSERT(found, "%s", name);
    return found;
}

static const double *weight(const pass *p, int layer, const char *suffix) {
    return p->w + entry(p, layer, suffix)->offset;
}

static double *gradient(const pass *p, int layer, const char *suffix) {
    return p->g + entry(p, layer, suffix)->offset;
}

/* ---------------------------------------------------------------- attention: x + attention(norm(x)) */

typedef struct attention_state {
    double *n;       /* [N,D] normed input */
    double *q, *k;   /* projections as attention uses them: normed and turned */
    double *q0, *k0; /* before QK-norm and turning */
    double *v, *o;
    ref_attention op;
} attention_state;

static void attention_close(attention_state *s) {
    free(s->n);
    free(s->q);
    free(s->k);
    free(s->q0);
    free(s->k0);
    free(s->v);
    free(s->o);
}

/* Copies or norms the raw heads into `out`, then turns them. */
static void heads_prepare(const pass *p, int layer, const char *norm, int n_head, const double *raw, double *out) {
    const gr_model_config *c = p->c;
    if (c->use_qk_norm)
        ref_norm(p->N * n_head, c->head_dim, c->rms_norm_eps, raw, weight(p, layer, norm), out);
    else
        memcpy(out, raw, (size_t)(p->N * n_head * c->head_dim) * sizeof *out);
    ref_rope(p->N, p->b->T, n_head, c->head_dim, c->rope_theta, false, out);
}

static void attention_open(const pass *p, int layer, const double *x, attention_state *s) {
    const gr_model_config *c = p->c;
    int H = c->num_attention_heads, H_kv = c->num_key_value_heads;
    int64_t q = (int64_t)H * c->head_dim, kv = (int64_t)H_kv * c->head_dim;
    s->n = ref_alloc(p->N * p->D);
    s->q = ref_alloc(p->N * q);
    s->q0 = ref_alloc(p->N * q);
    s->o = ref_alloc(p->N * q);
    s->k = ref_alloc(p->N * kv);
    s->k0 = ref_alloc(p->N * kv);
    s->v = ref_alloc(p->N * kv);
    ref_norm(p->N, p->D, c->rms_norm_eps, x, weight(p, layer, "input_layernorm.weight"), s->n);
    ref_linear(p->N, p->D, q, s->n, weight(p, layer, "self_attn.q_proj.weight"), s->q0);
    ref_linear(p->N, p->D, kv, s->n, weight(p, layer, "self_attn.k_proj.weight"), s->k0);
    ref_linear(p->N, p->D, kv, s->n, weight(p, layer, "self_attn.v_proj.weight"), s->v);
    heads_prepare(p, layer, "self_attn.q_norm.weight", H, s->q0, s->q);
    heads_prepare(p, layer, "self_attn.k_norm.weight", H_kv, s->k0, s->k);
    s->op = (ref_attention){.causal = true,
        .n_window = p->b->n_window,
        .T = p->b->T,
        .H = H,
        .H_kv = H_kv,
        .head_dim = c->head_dim,
        .q = s->q,
        .k = s->k,
        .v = s->v};
    ref_attention_forward(&s->op, s->o, NULL);
}

static void attention_forward(const pass *p, int layer, const double *x, double *y) {
    attention_state s;
    attention_open(p, layer, x, &s);
    ref_linear(p->N, (int64_t)p->c->num_attention_heads * p->c->head_dim, p->D, s.o,
        weight(p, layer, "self_attn.o_proj.weight"), y);
    for (int64_t i = 0; i < p->N * p->D; i++)
        y[i] += x[i];
    attention_close(&s);
}

/* From the gradient of prepared heads to that of the projection's input: turned back, through QK-norm, the matrix. */
static void heads_backward(const pass *p, int layer, const char *which, int n_head, const attention_state *s,
    const double *raw, double *dheads, double *dn) {
    const gr_model_config *c = p->c;
    int64_t width = (int64_t)n_head * c->head_dim;
    char norm[64], proj[64];
    snprintf(norm, sizeof norm, "self_attn.%s_norm.weight", which);
    snprintf(proj, sizeof proj, "self_attn.%s_proj.weight", which);
    ref_rope(p->N, p->b->T, n_head, c->head_dim, c->rope_theta, true, dheads);
    double *draw = ref_alloc(p->N * width);
    if (c->use_qk_norm)
        ref_norm_backward(p->N * n_head, c->head_dim, c->rms_norm_eps, raw, weight(p, layer, norm), dheads, draw,
            gradient(p, layer, norm));
    else
        memcpy(draw, dheads, (size_t)(p->N * width) * sizeof *draw);
    ref_linear_backward(p->N, p->D, width, s->n, weight(p, layer, proj), draw, dn, gradient(p, layer, proj));
    free(draw);
}

/* d holds dy and becomes dx. */
static void attention_backward(const pass *p, int layer, const double *x, double *d) {
    const gr_model_config *c = p->c;
    int H = c->num_attention_heads, H_kv = c->num_key_value_heads;
    int64_t q = (int64_t)H * c->head_dim, kv = (int64_t)H_kv * c->head_dim;
    attention_state s;
    attention_open(p, layer, x, &s);
    double *dout = ref_alloc(p->N * q), *dq = ref_alloc(p->N * q), *dk = ref_alloc(p->N * kv);
    double *dv = ref_alloc(p->N * kv), *dn = ref_alloc(p->N * p->D);
    ref_linear_backward(p->N, q, p->D, s.o, weight(p, layer, "self_attn.o_proj.weight"), d, dout,
        gradient(p, layer, "self_attn.o_proj.weight"));
    ref_attention_backward(&s.op, dout, dq, dk, dv);
    heads_backward(p, layer, "q", H, &s, s.q0, dq, dn);
    heads_backward(p, layer, "k", H_kv, &s, s.k0, dk, dn);
    ref_linear_backward(p->N, p->D, kv, s.n, weight(p, layer, "self_attn.v_proj.weight"), dv, dn,
        gradient(p, layer, "self_attn.v_proj.weight"));
    ref_norm_backward(p->N, p->D, c->rms_norm_eps, x, weight(p, layer, "input_layernorm.weight"), dn, d,
        gradient(p, layer, "input_layernorm.weight"));
    free(dout);
    free(dq);
    free(dk);
    free(dv);
    free(dn);
    attention_close(&s);
}

/* ---------------------------------------------------------------- MLP: x + experts(norm(x)) + shared(norm(x)) */

/* Where the MLP that every token passes has its weights; false if the layer has none. */
static bool common_mlp(const pass *p, int layer, const gr_param **w13, const gr_param **w2, ref_swiglu *s) {
    bool dense = layer < p->c->first_k_dense_replace;
    if (!dense && p->c->shared_expert_intermediate_size == 0)
        return false;
    *w13 = entry(p, layer, dense ? "mlp.gate_proj.weight" : "mlp.shared_expert.gate_proj.weight");
    *w2 = entry(p, layer, dense ? "mlp.down_proj.weight" : "mlp.shared_expert.down_proj.weight");
    s->F = dense ? p->c->intermediate_size : p->c->shared_expert_intermediate_size;
    s->n = p->N;
    s->D = p->D;
    s->w13 = p->w + (*w13)->offset;
    s->w2 = p->w + (*w2)->offset;
    return true;
}

/* Where a layer's tokens go: the batch's routes, or what its router makes of the normed input n. */
typedef struct layer_routes {
    uint16_t *ids;          /* [N,K] */
    double *gates, *dgates; /* [N,K] */
    double *logits;         /* [N,E] */
    ref_router op;
} layer_routes;

static bool has_router(const pass *p) {
    return p->c->routing.gates == GR_GATES_LEARNED;
}

/* Adds the router's losses to loss[2]. */
static void routes_open(const pass *p, int layer, const double *n, double *loss, layer_routes *r) {
    const gr_model_config *c = p->c;
    int64_t K = c->num_experts_per_tok, E = c->num_experts;
    *r = (layer_routes){.ids = ids_alloc((size_t)(p->N * K)),
        .gates = ref_alloc(p->N * K),
        .dgates = ref_alloc(p->N * K),
        .logits = ref_alloc(p->N * E)};
    if (c->routing.source == GR_SOURCE_TABLE)
        memcpy(r->ids, p->b->ids, (size_t)(p->N * K) * sizeof *r->ids);
    for (int64_t i = 0; !has_router(p) && i < p->N * K; i++)
        r->gates[i] = (double)p->b->gates[i];
    if (!has_router(p))
        return;
    ref_linear(p->N, p->D, E, n, weight(p, layer, "mlp.gate.weight"), r->logits);
    r->op = (ref_router){.choose = c->routing.source == GR_SOURCE_LEARNED,
        .normalise = c->norm_topk_prob,
        .n = p->N,
        .T = p->b->T,
        .E = E,
        .K = K,
        .scale = c->routing.scale,
        .aux = c->routing.aux_loss_coef * (double)E / (double)(K * p->b->T),
        .z = c->routing.z_loss_coef,
        .logits = r->logits};
    ref_router_forward(&r->op, r->ids, r->gates, loss);
}

static void routes_close(layer_routes *r) {
    free(r->ids);
    free(r->gates);
    free(r->dgates);
    free(r->logits);
}

static void routes_backward(const pass *p, int layer, layer_routes *r, const double *n, double *dn) {
    if (!has_router(p))
        return;
    double *dlogits = ref_alloc(p->N * p->c->num_experts);
    r->op.aux *= p->scale;
    r->op.z *= p->scale;
    ref_router_backward(&r->op, r->ids, r->dgates, dlogits);
    ref_linear_backward(p->N, p->D, p->c->num_experts, n, weight(p, layer, "mlp.gate.weight"), dlogits, dn,
        gradient(p, layer, "mlp.gate.weight"));
    free(dlogits);
}

/* The pairs of one expert: entries of the routes, tokens, gates and their rows of `from`. */
typedef struct expert_rows {
    int64_t n;
    int64_t *entry, *token;
    double *gate, *x;
} expert_rows;

static void expert_open(const pass *p, uint32_t e, const layer_routes *routes, const double *from, expert_rows *r) {
    int K = p->c->num_experts_per_tok;
    *r = (expert_rows){.token = calloc((size_t)(2 * p->N * K), sizeof *r->token),
        .gate = ref_alloc(p->N * K),
        .x = ref_alloc(p->N * K * p->D)};
    GR_ASSERT(r->token, "reference: no memory for %lld rows", (long long)(p->N * K));
    r->entry = r->token + p->N * K;
    for (int64_t i = 0; i < p->N * K; i++) {
        if (routes->ids[i] != e || routes->gates[i] == 0)
            continue;
        r->entry[r->n] = i;
        r->token[r->n] = i / K;
        r->gate[r->n] = routes->gates[i];
        memcpy(r->x + r->n * p->D, from + i / K * p->D, (size_t)p->D * sizeof *from);
        r->n++;
    }
}

static void expert_close(expert_rows *r) {
    free(r->token);
    free(r->gate);
    free(r->x);
}

static void rows_add(const pass *p, const expert_rows *r, const double *rows, double *to) {
    for (int64_t i = 0; i < r->n; i++)
        for (int64_t j = 0; j < p->D; j++)
            to[r->token[i] * p->D + j] += rows[i * p->D + j];
}

static ref_swiglu expert_op(const pass *p, uint32_t e, const expert_rows *r, const gr_param *w13, const gr_param *w2) {
    return (ref_swiglu){.n = r->n,
        .D = p->D,
        .F = p->c->moe_intermediate_size,
        .x = r->x,
        .gate = r->gate,
        .w13 = p->w + w13->offset + e * w13->stride,
        .w2 = p->w + w2->offset + e * w2->stride};
}

static void experts_forward(const pass *p, int layer, const layer_routes *routes, const double *n, double *y) {
    const gr_param *w13 = entry(p, layer, "mlp.experts.%u.gate_proj.weight");
    const gr_param *w2 = entry(p, layer, "mlp.experts.%u.down_proj.weight");
    for (uint32_t e = 0; e < w13->n_matrix; e++) {
        expert_rows r;
        expert_open(p, e, routes, n, &r);
        double *out = ref_alloc(r.n * p->D);
        ref_swiglu op = expert_op(p, e, &r, w13, w2);
        ref_swiglu_forward(&op, out);
        rows_add(p, &r, out, y);
        free(out);
        expert_close(&r);
    }
}

static void experts_backward(
    const pass *p, int layer, layer_routes *routes, const double *n, const double *dy, double *dn) {
    const gr_param *w13 = entry(p, layer, "mlp.experts.%u.gate_proj.weight");
    const gr_param *w2 = entry(p, layer, "mlp.experts.%u.down_proj.weight");
    for (uint32_t e = 0; e < w13->n_matrix; e++) {
        expert_rows in, out;
        expert_open(p, e, routes, n, &in);
        expert_open(p, e, routes, dy, &out);
        double *dx = ref_alloc(in.n * p->D), *dgate = ref_alloc(in.n);
        ref_swiglu op = expert_op(p, e, &in, w13, w2);
        ref_swiglu_backward(
            &op, out.x, dx, p->g + w13->offset + e * w13->stride, p->g + w2->offset + e * w2->stride, dgate);
        rows_add(p, &in, dx, dn);
        for (int64_t i = 0; i < in.n; i++)
            routes->dgates[in.entry[i]] = dgate[i];
        free(dx);
        free(dgate);
        expert_close(&in);
        expert_close(&out);
    }
}

static void mlp_forward(const pass *p, int layer, const double *x, double *y) {
    int64_t size = p->N * p->D;
    double *n = ref_alloc(size), *common = ref_alloc(size);
    ref_norm(p->N, p->D, p->c->rms_norm_eps, x, weight(p, layer, "post_attention_layernorm.weight"), n);
    ref_swiglu s = {.x = n};
    const gr_param *w13, *w2;
    if (common_mlp(p, layer, &w13, &w2, &s))
        ref_swiglu_forward(&s, common);
    for (int64_t i = 0; i < size; i++)
        y[i] = x[i] + common[i];
    if (layer >= p->c->first_k_dense_replace) {
        double ignored[2] = {0, 0};
        layer_routes routes;
        routes_open(p, layer, n, p->b->router_loss ? p->b->router_loss : ignored, &routes);
        experts_forward(p, layer, &routes, n, y);
        routes_close(&routes);
    }
    free(n);
    free(common);
}

/* d holds dy and becomes dx. */
static void mlp_backward(const pass *p, int layer, const double *x, double *d) {
    double *n = ref_alloc(p->N * p->D), *dn = ref_alloc(p->N * p->D);
    const double *w = weight(p, layer, "post_attention_layernorm.weight");
    ref_norm(p->N, p->D, p->c->rms_norm_eps, x, w, n);
    ref_swiglu s = {.x = n};
    const gr_param *w13, *w2;
    if (common_mlp(p, layer, &w13, &w2, &s))
        ref_swiglu_backward(&s, d, dn, p->g + w13->offset, p->g + w2->offset, NULL);
    if (layer >= p->c->first_k_dense_replace) {
        double ignored[2] = {0, 0};
        layer_routes routes;
        routes_open(p, layer, n, ignored, &routes);
        experts_backward(p, layer, &routes, n, d, dn);
        routes_backward(p, layer, &routes, n, dn);
        routes_close(&routes);
    }
    ref_norm_backward(
        p->N, p->D, p->c->rms_norm_eps, x, w, dn, d, gradient(p, layer, "post_attention_layernorm.weight"));
    free(n);
    free(dn);
}

/* ---------------------------------------------------------------- the whole */

/* Final norm, head and loss of the last layer's output x; with gradients, d becomes dx. */
static double head(const pass *p, const double *x, double scale, double *d) {
    const gr_model_config *c = p->c;
    const char *matrix = c->tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    double *n = ref_alloc(p->N * p->D), *dn = ref_alloc(p->N * p->D);
    const double *norm = weight(p, -1, "model.norm.weight"), *w = weight(p, -1, matrix);
    ref_norm(p->N, p->D, c->rms_norm_eps, x, norm, n);
    double loss = ref_cross_entropy(p->N, p->D, c->vocab_size, n, w, p->b->target);
    if (p->g) {
        ref_cross_entropy_backward(p->N, p->D, c->vocab_size, n, w, p->b->target, scale, dn, gradient(p, -1, matrix));
        ref_norm_backward(p->N, p->D, c->rms_norm_eps, x, norm, dn, d, gradient(p, -1, "model.norm.weight"));
    }
    free(n);
    free(dn);
    return loss;
}

double ref_model_loss(const ref_model *m, const double *weights, const ref_batch *b, double scale, double *g) {
    pass p = {.m = m,
        .c = &m->config,
        .w = weights,
        .g = g,
        .b = b,
        .N = b->n_window * b->T,
        .D = m->config.hidden_size,
        .scale = scale};
    int L = m->config.num_hidden_layers;
    int64_t size = p.N * p.D;
    double *x = ref_alloc((2 * L + 1) * size); /* what enters each half layer, and the last one's output */
    ref_embed(p.N, p.D, b->token, weight(&p, -1, "model.embed_tokens.weight"), x);
    for (int l = 0; l < L; l++) {
        attention_forward(&p, l, x + 2 * l * size, x + (2 * l + 1) * size);
        mlp_forward(&p, l, x + (2 * l + 1) * size, x + (2 * l + 2) * size);
    }
    double *d = ref_alloc(size);
    double loss = head(&p, x + 2 * L * size, scale, d);
    for (int l = L - 1; g && l >= 0; l--) {
        mlp_backward(&p, l, x + (2 * l + 1) * size, d);
        attention_backward(&p, l, x + 2 * l * size, d);
    }
    if (g)
        ref_embed_backward(p.N, p.D, b->token, d, gradient(&p, -1, "model.embed_tokens.weight"));
    free(d);
    free(x);
    return loss;
}
