#include "ref_grouter.h"

#include "ref.h"

#include <stdlib.h>
#include <string.h>

/* One evaluation. */
typedef struct pass {
    const ref_grouter *g;
    const gr_model_config *c;
    const double *w;
    int64_t N, D;
    uint32_t *first, *end; /* [N] of each position's document; NULL: the window is one */
} pass;

void ref_grouter_open(
    ref_grouter *g, const gr_model_config *config, int64_t n_window, int64_t T, const uint32_t *token) {
    *g = (ref_grouter){.config = *config, .n_window = n_window, .T = T, .token = token};
    gr_err err = gr_params_open(&g->params, &g->config, NULL, 0, 1, 1);
    GR_ASSERT(!err, "%s", gr_error_text());
}

void ref_grouter_close(ref_grouter *g) {
    gr_params_close(&g->params);
    *g = (ref_grouter){0};
}

static const double *weight(const pass *p, int layer, const char *suffix) {
    char name[128];
    if (layer < 0)
        snprintf(name, sizeof name, "%s", suffix);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, suffix);
    const gr_param *found = gr_params_find(&p->g->params, name);
    GR_ASSERT(found, "%s", name);
    return p->w + found->offset;
}

static void add(int64_t n, const double *x, double *y) {
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* ---------------------------------------------------------------- documents */

static bool ends_document(const pass *p, int64_t row) {
    return p->c->document_end >= 0 && p->g->token[row] == (uint32_t)p->c->document_end;
}

/* A document reaches from the token after one that ends a document to the next such token, within its window. */
static void documents_open(pass *p) {
    int64_t T = p->g->T;
    if (p->c->mask != GR_MASK_CAUSAL_DOC && p->c->mask != GR_MASK_BIDIRECTIONAL_DOC)
        return;
    p->first = calloc((size_t)p->N, sizeof *p->first);
    p->end = calloc((size_t)p->N, sizeof *p->end);
    GR_ASSERT(p->first && p->end, "reference: no memory for %lld rows", (long long)p->N);
    for (int64_t row = 0; row < p->N; row++) {
        int64_t window = row / T * T, first = row, end = row + 1;
        while (first > window && !ends_document(p, first - 1))
            first--;
        while (end < window + T && !ends_document(p, end - 1))
            end++;
        p->first[row] = (uint32_t)(first - window);
        p->end[row] = (uint32_t)(end - window);
    }
}

/* ---------------------------------------------------------------- a block: x += attention, x += MLP */

/* Queries or keys as attention uses them: projected, normed, turned. */
static double *heads(const pass *p, int layer, char which, int n_head, const double *n) {
    const gr_model_config *c = p->c;
    int64_t width = (int64_t)n_head * c->head_dim;
    char proj[64], norm[64];
    snprintf(proj, sizeof proj, "self_attn.%c_proj.weight", which);
    snprintf(norm, sizeof norm, "self_attn.%c_norm.weight", which);
    double *raw = ref_alloc(p->N * width), *out = ref_alloc(p->N * width);
    ref_linear(p->N, p->D, width, n, weight(p, layer, proj), raw);
    if (c->use_qk_norm)
        ref_norm(p->N * n_head, c->head_dim, c->rms_norm_eps, raw, weight(p, layer, norm), out);
    else
        memcpy(out, raw, (size_t)(p->N * width) * sizeof *out);
    if (c->position == GR_POSITION_WINDOW)
        ref_rope(p->N, p->g->T, n_head, c->head_dim, c->rope_theta, false, out);
    free(raw);
    return out;
}

static void attention(const pass *p, int layer, double *x) {
    const gr_model_config *c = p->c;
    int H = c->num_attention_heads, H_kv = c->num_key_value_heads;
    int64_t q_width = (int64_t)H * c->head_dim, kv_width = (int64_t)H_kv * c->head_dim;
    double *n = ref_alloc(p->N * p->D), *v = ref_alloc(p->N * kv_width), *o = ref_alloc(p->N * q_width);
    double *y = ref_alloc(p->N * p->D);
    ref_norm(p->N, p->D, c->rms_norm_eps, x, weight(p, layer, "input_layernorm.weight"), n);
    double *q = heads(p, layer, 'q', H, n), *k = heads(p, layer, 'k', H_kv, n);
    ref_linear(p->N, p->D, kv_width, n, weight(p, layer, "self_attn.v_proj.weight"), v);
    ref_attention op = {.causal = c->mask == GR_MASK_CAUSAL || c->mask == GR_MASK_CAUSAL_DOC,
        .first = p->first,
        .end = p->end,
        .n_window = p->g->n_window,
        .T = p->g->T,
        .H = H,
        .H_kv = H_kv,
        .head_dim = c->head_dim,
        .q = q,
        .k = k,
        .v = v};
    ref_attention_forward(&op, o, NULL);
    ref_linear(p->N, q_width, p->D, o, weight(p, layer, "self_attn.o_proj.weight"), y);
    add(p->N * p->D, y, x);
    free(n);
    free(q);
    free(k);
    free(v);
    free(o);
    free(y);
}

/* gate and up lie side by side, as ref_swiglu reads them. */
static void mlp(const pass *p, int layer, double *x) {
    double *n = ref_alloc(p->N * p->D), *y = ref_alloc(p->N * p->D);
    ref_norm(p->N, p->D, p->c->rms_norm_eps, x, weight(p, layer, "post_attention_layernorm.weight"), n);
    ref_swiglu s = {.n = p->N,
        .D = p->D,
        .F = p->c->intermediate_size,
        .x = n,
        .w13 = weight(p, layer, "mlp.gate_proj.weight"),
        .w2 = weight(p, layer, "mlp.down_proj.weight")};
    ref_swiglu_forward(&s, y);
    add(p->N * p->D, y, x);
    free(n);
    free(y);
}

/* ---------------------------------------------------------------- bodies: x [N,D] becomes the features */

static void attention_body(const pass *p, double *x) {
    double *n = ref_alloc(p->N * p->D);
    for (int l = 0; l < p->c->num_hidden_layers; l++) {
        attention(p, l, x);
        mlp(p, l, x);
    }
    ref_norm(p->N, p->D, p->c->rms_norm_eps, x, weight(p, -1, "model.norm.weight"), n);
    memcpy(x, n, (size_t)(p->N * p->D) * sizeof *x);
    free(n);
}

/* Hidden width, intermediate width between all layers, hidden width. */
static void residual_linear_body(const pass *p, double *x) {
    int L = p->c->num_hidden_layers;
    double *at = ref_alloc(p->N * p->D);
    memcpy(at, x, (size_t)(p->N * p->D) * sizeof *x);
    for (int l = 0; l < L; l++) {
        int64_t in = l == 0 ? p->D : p->c->intermediate_size, out = l == L - 1 ? p->D : p->c->intermediate_size;
        double *z = ref_alloc(p->N * out), *y = ref_alloc(p->N * out);
        ref_linear(p->N, in, out, at, weight(p, l, "linear.weight"), z);
        ref_layer_norm s = {.n = p->N,
            .width = out,
            .eps = 1e-5,
            .x = z,
            .w = weight(p, l, "layer_norm.weight"),
            .b = weight(p, l, "layer_norm.bias"),
            .residual = in == out ? at : NULL};
        ref_layer_norm_forward(&s, y);
        free(z);
        free(at);
        at = y;
    }
    memcpy(x, at, (size_t)(p->N * p->D) * sizeof *x);
    free(at);
}

/* ---------------------------------------------------------------- the whole */

void ref_grouter_scores(const ref_grouter *g, const double *weights, double *scores) {
    pass p = {.g = g, .c = &g->config, .w = weights, .N = g->n_window * g->T, .D = g->config.hidden_size};
    double *x = ref_alloc(p.N * p.D);
    documents_open(&p);
    ref_embed(p.N, p.D, g->token, weight(&p, -1, "model.embed_tokens.weight"), x);
    if (p.c->body != GR_BODY_ATTENTION && p.c->position == GR_POSITION_WINDOW)
        ref_rope(p.N, g->T, 1, p.D, p.c->rope_theta, false, x);
    if (p.c->body == GR_BODY_ATTENTION)
        attention_body(&p, x);
    else if (p.c->body == GR_BODY_RESIDUAL_LINEAR)
        residual_linear_body(&p, x);
    ref_linear(p.N, p.D, p.c->num_labels, x, weight(&p, -1, "score.weight"), scores);
    free(x);
    free(p.first);
    free(p.end);
}

static double scalar(const ref_grouter *g, const double *weights, const double *r, double *scores) {
    double sum = 0;
    ref_grouter_scores(g, weights, scores);
    for (int64_t i = 0; i < g->n_window * g->T * g->config.num_labels; i++)
        sum += r[i] * scores[i];
    return sum;
}

void ref_grouter_gradient(const ref_grouter *g, double h, const double *r, double *weights, double *gradient) {
    double *scores = ref_alloc(g->n_window * g->T * g->config.num_labels);
    memset(gradient, 0, (size_t)g->params.n_element * sizeof *gradient);
    for (int i = 0; i < g->params.n; i++) {
        const gr_param *p = &g->params.list[i];
        for (int64_t j = 0; j < gr_param_size(p); j++) {
            double *w = weights + p->offset + j, start = *w;
            if (p->zero_row >= 0 && j / p->dim[1] == p->zero_row)
                continue;
            *w = start + h;
            double above = scalar(g, weights, r, scores);
            *w = start - h;
            gradient[p->offset + j] = (above - scalar(g, weights, r, scores)) / (2 * h);
            *w = start;
        }
    }
    free(scores);
}
