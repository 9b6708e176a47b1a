/* ref.h: every op once more, as plain loops in double: what the backends are compared with.
 *
 * Written from the formulas, not from the backends. Arrays are dense and row-major. Forward functions overwrite their
 * results; backward functions add to every gradient they are given and skip those that are NULL. Saved state is
 * recomputed rather than passed, so a backward needs only the forward's inputs.
 */
#ifndef GROUTER_REF_H
#define GROUTER_REF_H

#include <stdbool.h>
#include <stdint.h>

/* Zeroed memory; ends the process when there is none. Free with free(). */
double *ref_alloc(int64_t n);

/* y[n,n_out] = x[n,n_in] w[n_out,n_in]^T */
void ref_linear(int64_t n, int64_t n_in, int64_t n_out, const double *x, const double *w, double *y);
void ref_linear_backward(
    int64_t n, int64_t n_in, int64_t n_out, const double *x, const double *w, const double *dy, double *dx, double *dw);

/* y = x / sqrt(mean(x^2) + eps) * w per row of `width` */
void ref_norm(int64_t n, int64_t width, double eps, const double *x, const double *w, double *y);
void ref_norm_backward(
    int64_t n, int64_t width, double eps, const double *x, const double *w, const double *dy, double *dx, double *dw);

/* y = relu((x - mean) / sqrt(variance + eps) * w + b) + residual per row of `width`, mean and variance of that row. The
 * residual (NULL: none) gets dy. */
typedef struct ref_layer_norm {
    int64_t n, width;
    double eps;
    const double *x, *w, *b, *residual;
} ref_layer_norm;
void ref_layer_norm_forward(const ref_layer_norm *s, double *y);
void ref_layer_norm_backward(const ref_layer_norm *s, const double *dy, double *dx, double *dw, double *db);

/* In place: dims i and i + head_dim/2 of every head turn by (row % T) * theta^(-2i/head_dim). Its transpose is the turn
 * back, so the backward of a gradient is `inverse`. x [n_row, n_head * head_dim]. */
void ref_rope(int64_t n_row, int64_t T, int64_t n_head, int64_t head_dim, double theta, bool inverse, double *x);

/* o = softmax(q k^T / sqrt(head_dim)) v in windows of T; head j of H reads key/value head j / (H/H_kv). The row at
 * position t of its window sees keys of positions [first, end), causal: [first, t]. */
typedef struct ref_attention {
    bool causal;
    const uint32_t *first, *end; /* [n_window*T] positions in the window; NULL: 0 and T */
    int64_t n_window, T, H, H_kv, head_dim;
    const double *q;     /* [n_window*T, H*head_dim] */
    const double *k, *v; /* [n_window*T, H_kv*head_dim] */
} ref_attention;
void ref_attention_forward(const ref_attention *s, double *o, double *lse); /* lse [n_window,H,T] or NULL */
void ref_attention_backward(const ref_attention *s, const double *dout, double *dq, double *dk, double *dv);

/* One SwiGLU expert on n rows: [h1 | h3] = x w13^T, y = (gate * silu(h1) * h3) w2^T. w13 [2F,D], w2 [D,F];
 * gate [n] or NULL for 1. */
typedef struct ref_swiglu {
    int64_t n, D, F;
    const double *x, *gate, *w13, *w2;
} ref_swiglu;
void ref_swiglu_forward(const ref_swiglu *s, double *y);
void ref_swiglu_backward(const ref_swiglu *s, const double *dy, double *dx, double *dw13, double *dw2, double *dgate);

/* Experts over pairs sorted by expert: pair p of expert e, offset[e] <= p < offset[e+1], reads row pair_row[p] of x
 * and of dy (NULL: row p) and has its own row p of y and dx. w13 [n_expert,2F,D], w2 [n_expert,D,F]. */
typedef struct ref_ffn {
    int64_t n_expert, D, F;
    const uint32_t *offset, *pair_row;
    const double *x, *pair_gate, *w13, *w2;
} ref_ffn;
void ref_ffn_forward(const ref_ffn *s, double *y);
void ref_ffn_backward(const ref_ffn *s, const double *dy, double *dx, double *dw13, double *dw2, double *dgate);

/* Sum over tokens with target >= 0 of logsumexp(x_i w^T) - (x_i w^T)[target_i]; x [n,D], w [V,D]. The backward is of
 * scale times that sum. */
double ref_cross_entropy(int64_t n, int64_t D, int64_t V, const double *x, const double *w, const int32_t *target);
void ref_cross_entropy_backward(int64_t n, int64_t D, int64_t V, const double *x, const double *w,
    const int32_t *target, double scale, double *dx, double *dw);

/* The router of a layer on logits [n,E] of tokens in windows of T: ids [n,K] ascending, chosen as the K largest logits
 * (ties to the lower id) if `choose`, else given; gates [n,K] = scale * softmax over the chosen (`normalise`) or over
 * all experts. The losses are aux * sum_t sum_i count_i p_ti, with count_i the tokens of t's window at expert i, and
 * z * sum_t logsumexp_t^2. The backward is of <dgate, gates> + both losses; counts are constants. */
typedef struct ref_router {
    bool choose, normalise;
    int64_t n, T, E, K;
    double scale, aux, z;
    const double *logits;
} ref_router;
void ref_router_forward(const ref_router *s, uint16_t *ids, double *gates, double loss[2]); /* losses are added */
void ref_router_backward(const ref_router *s, const uint16_t *ids, const double *dgate, double *dlogits);

/* out[i,:] = table[id[i],:] */
void ref_embed(int64_t n, int64_t width, const uint32_t *id, const double *table, double *out);
void ref_embed_backward(int64_t n, int64_t width, const uint32_t *id, const double *dout, double *dtable);

/* AdamW with decoupled decay, step counted from 1; updates p, m, v. */
typedef struct ref_adamw {
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
} ref_adamw;
void ref_adamw_update(const ref_adamw *o, int64_t n, const double *g, double *p, double *m, double *v);

#endif
