#include "ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

double *ref_alloc(int64_t n) {
    double *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    if (!p) {
        fprintf(stderr, "reference: no memory for %lld numbers\n", (long long)n);
        abort();
    }
    return p;
}

static double dot(int64_t n, const double *a, const double *b) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += s * x; y may be NULL */
static void add_scaled(int64_t n, double s, const double *x, double *y) {
    for (int64_t i = 0; y && i < n; i++)
        y[i] += s * x[i];
}

/* Pointer to element i, or NULL of NULL. */
static double *at(double *p, int64_t i) {
    return p ? p + i : NULL;
}

/* ---------------------------------------------------------------- linear, norms, rope */

void ref_linear(int64_t n, int64_t n_in, int64_t n_out, const double *x, const double *w, double *y) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n_out; j++)
            y[i * n_out + j] = dot(n_in, x + i * n_in, w + j * n_in);
}

void ref_linear_backward(int64_t n, int64_t n_in, int64_t n_out, const double *x, const double *w, const double *dy,
    double *dx, double *dw) {
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n_out; j++) {
            double g = dy[i * n_out + j];
            add_scaled(n_in, g, w + j * n_in, at(dx, i * n_in));
            add_scaled(n_in, g, x + i * n_in, at(dw, j * n_in));
        }
    }
}

void ref_norm(int64_t n, int64_t width, double eps, const double *x, const double *w, double *y) {
    for (int64_t i = 0; i < n; i++) {
        const double *row = x + i * width;
        double rms = sqrt(dot(width, row, row) / (double)width + eps);
        for (int64_t j = 0; j < width; j++)
            y[i * width + j] = row[j] / rms * w[j];
    }
}

/* With r = rms(x): dy_j/dx_k = w_j (delta_jk / r - x_j x_k / (width r^3)). */
void ref_norm_backward(
    int64_t n, int64_t width, double eps, const double *x, const double *w, const double *dy, double *dx, double *dw) {
    for (int64_t i = 0; i < n; i++) {
        const double *row = x + i * width, *g = dy + i * width;
        double rms = sqrt(dot(width, row, row) / (double)width + eps);
        double along = 0;
        for (int64_t j = 0; j < width; j++)
            along += w[j] * g[j] * row[j];
        for (int64_t j = 0; j < width; j++) {
            if (dx)
                dx[i * width + j] += w[j] * g[j] / rms - row[j] * along / ((double)width * rms * rms * rms);
            if (dw)
                dw[j] += g[j] * row[j] / rms;
        }
    }
}

/* One row of a layer norm. */
typedef struct normed {
    double mean, std;
} normed;

static normed normed_row(const ref_layer_norm *s, int64_t i) {
    const double *x = s->x + i * s->width;
    normed r = {0};
    for (int64_t j = 0; j < s->width; j++)
        r.mean += x[j] / (double)s->width;
    for (int64_t j = 0; j < s->width; j++)
        r.std += (x[j] - r.mean) * (x[j] - r.mean) / (double)s->width;
    r.std = sqrt(r.std + s->eps);
    return r;
}

void ref_layer_norm_forward(const ref_layer_norm *s, double *y) {
    for (int64_t i = 0; i < s->n; i++) {
        normed r = normed_row(s, i);
        for (int64_t j = 0; j < s->width; j++) {
            int64_t k = i * s->width + j;
            y[k] = fmax((s->x[k] - r.mean) / r.std * s->w[j] + s->b[j], 0) + (s->residual ? s->residual[k] : 0);
        }
    }
}

/* With n = (x - mean) / std: dn_j/dx_k = (delta_jk - (1 + n_j n_k) / width) / std. */
void ref_layer_norm_backward(const ref_layer_norm *s, const double *dy, double *dx, double *dw, double *db) {
    double *n = ref_alloc(2 * s->width), *dn = n + s->width;
    for (int64_t i = 0; i < s->n; i++) {
        normed r = normed_row(s, i);
        double sum = 0, along = 0;
        for (int64_t j = 0; j < s->width; j++) {
            n[j] = (s->x[i * s->width + j] - r.mean) / r.std;
            double g = n[j] * s->w[j] + s->b[j] > 0 ? dy[i * s->width + j] : 0;
            dn[j] = g * s->w[j];
            sum += dn[j];
            along += dn[j] * n[j];
            dw[j] += g * n[j];
            db[j] += g;
        }
        for (int64_t j = 0; j < s->width; j++)
            dx[i * s->width + j] += (dn[j] - (sum + n[j] * along) / (double)s->width) / r.std;
    }
    free(n);
}

void ref_rope(int64_t n_row, int64_t T, int64_t n_head, int64_t head_dim, double theta, bool inverse, double *x) {
    int64_t half = head_dim / 2;
    for (int64_t row = 0; row < n_row; row++) {
        for (int64_t head = 0; head < n_head; head++) {
            double *p = x + (row * n_head + head) * head_dim;
            for (int64_t i = 0; i < half; i++) {
                double angle = (double)(row % T) * pow(theta, -2.0 * (double)i / (double)head_dim);
                double c = cos(angle), s = inverse ? -sin(angle) : sin(angle);
                double a = p[i], b = p[i + half];
                p[i] = a * c - b * s;
                p[i + half] = b * c + a * s;
            }
        }
    }
}

/* ---------------------------------------------------------------- attention */

/* Where one (window, head, position) reads and writes: offsets of its query vector, of the first key vector it sees
 * and of its log-sum-exp. */
typedef struct place {
    int64_t q, k, lse, n_key;
} place;

static place place_of(const ref_attention *s, int64_t window, int64_t head, int64_t position) {
    int64_t kv_head = head / (s->H / s->H_kv), row = window * s->T + position;
    int64_t first = s->first ? s->first[row] : 0, end = s->end ? s->end[row] : s->T;
    return (place){.q = (row * s->H + head) * s->head_dim,
        .k = ((window * s->T + first) * s->H_kv + kv_head) * s->head_dim,
        .lse = (window * s->H + head) * s->T + position,
        .n_key = (s->causal ? position + 1 : end) - first};
}

/* Softmax of one query's scaled scores into p[0..n_key); returns their log-sum-exp. */
static double probabilities(const ref_attention *s, place at_i, double *p) {
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < at_i.n_key; j++) {
        const double *key = s->k + at_i.k + j * s->H_kv * s->head_dim;
        p[j] = dot(s->head_dim, s->q + at_i.q, key) / sqrt((double)s->head_dim);
        largest = fmax(largest, p[j]);
    }
    for (int64_t j = 0; j < at_i.n_key; j++)
        sum += exp(p[j] - largest);
    double lse = largest + log(sum);
    for (int64_t j = 0; j < at_i.n_key; j++)
        p[j] = exp(p[j] - lse);
    return lse;
}

void ref_attention_forward(const ref_attention *s, double *o, double *lse) {
    double *p = ref_alloc(s->T);
    int64_t hd = s->head_dim;
    for (int64_t window = 0; window < s->n_window; window++) {
        for (int64_t head = 0; head < s->H; head++) {
            for (int64_t i = 0; i < s->T; i++) {
                place at_i = place_of(s, window, head, i);
                double row_lse = probabilities(s, at_i, p);
                for (int64_t c = 0; c < hd; c++)
                    o[at_i.q + c] = 0;
                for (int64_t j = 0; j < at_i.n_key; j++)
                    add_scaled(hd, p[j], s->v + at_i.k + j * s->H_kv * hd, o + at_i.q);
                if (lse)
                    lse[at_i.lse] = row_lse;
            }
        }
    }
    free(p);
}

/* dS_j = p_j (dP_j - sum_l p_l dP_l) with dP_j = <dout, v_j>. */
void ref_attention_backward(const ref_attention *s, const double *dout, double *dq, double *dk, double *dv) {
    double *p = ref_alloc(2 * s->T), *dp = p + s->T;
    int64_t hd = s->head_dim;
    for (int64_t row = 0; row < s->n_window * s->H * s->T; row++) {
        place at_i = place_of(s, row / (s->H * s->T), row / s->T % s->H, row % s->T);
        probabilities(s, at_i, p);
        for (int64_t j = 0; j < at_i.n_key; j++)
            dp[j] = dot(hd, dout + at_i.q, s->v + at_i.k + j * s->H_kv * hd);
        double mean = dot(at_i.n_key, p, dp);
        for (int64_t j = 0; j < at_i.n_key; j++) {
            int64_t key = at_i.k + j * s->H_kv * hd;
            double ds = p[j] * (dp[j] - mean) / sqrt((double)hd);
            add_scaled(hd, ds, s->k + key, at(dq, at_i.q));
            add_scaled(hd, ds, s->q + at_i.q, at(dk, key));
            add_scaled(hd, p[j], dout + at_i.q, at(dv, key));
        }
    }
    free(p);
}

/* ---------------------------------------------------------------- SwiGLU experts */

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

void ref_swiglu_forward(const ref_swiglu *s, double *y) {
    double *h = ref_alloc(s->n * 2 * s->F), *a = ref_alloc(s->n * s->F);
    ref_linear(s->n, s->D, 2 * s->F, s->x, s->w13, h);
    for (int64_t i = 0; i < s->n; i++) {
        const double *h1 = h + i * 2 * s->F, *h3 = h1 + s->F;
        for (int64_t j = 0; j < s->F; j++)
            a[i * s->F + j] = (s->gate ? s->gate[i] : 1) * h1[j] * sigmoid(h1[j]) * h3[j];
    }
    ref_linear(s->n, s->F, s->D, a, s->w2, y);
    free(h);
    free(a);
}

void ref_swiglu_backward(const ref_swiglu *s, const double *dy, double *dx, double *dw13, double *dw2, double *dgate) {
    int64_t n = s->n, F = s->F;
    double *h = ref_alloc(n * 2 * F), *dh = ref_alloc(n * 2 * F), *a = ref_alloc(n * F), *da = ref_alloc(n * F);
    ref_linear(n, s->D, 2 * F, s->x, s->w13, h);
    ref_linear_backward(n, F, s->D, a, s->w2, dy, da, NULL);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < F; j++) {
            double gate = s->gate ? s->gate[i] : 1;
            double h1 = h[i * 2 * F + j], h3 = h[i * 2 * F + F + j], d = da[i * F + j];
            double sig = sigmoid(h1), silu = h1 * sig, dsilu = sig * (1 + h1 * (1 - sig));
            a[i * F + j] = gate * silu * h3;
            dh[i * 2 * F + j] = d * gate * h3 * dsilu;
            dh[i * 2 * F + F + j] = d * gate * silu;
            if (dgate)
                dgate[i] += d * silu * h3;
        }
    }
    ref_linear_backward(n, F, s->D, a, s->w2, dy, NULL, dw2);
    ref_linear_backward(n, s->D, 2 * F, s->x, s->w13, dh, dx, dw13);
    free(h);
    free(dh);
    free(a);
    free(da);
}

/* The one-row expert of pair p. */
static ref_swiglu pair_expert(const ref_ffn *s, int64_t expert, int64_t pair) {
    int64_t row = s->pair_row ? s->pair_row[pair] : pair;
    return (ref_swiglu){.n = 1,
        .D = s->D,
        .F = s->F,
        .x = s->x + row * s->D,
        .gate = s->pair_gate ? s->pair_gate + pair : NULL,
        .w13 = s->w13 + expert * 2 * s->F * s->D,
        .w2 = s->w2 + expert * s->D * s->F};
}

void ref_ffn_forward(const ref_ffn *s, double *y) {
    for (int64_t e = 0; e < s->n_expert; e++) {
        for (int64_t p = s->offset[e]; p < s->offset[e + 1]; p++) {
            ref_swiglu one = pair_expert(s, e, p);
            ref_swiglu_forward(&one, y + p * s->D);
        }
    }
}

void ref_ffn_backward(const ref_ffn *s, const double *dy, double *dx, double *dw13, double *dw2, double *dgate) {
    for (int64_t e = 0; e < s->n_expert; e++) {
        for (int64_t p = s->offset[e]; p < s->offset[e + 1]; p++) {
            ref_swiglu one = pair_expert(s, e, p);
            int64_t row = s->pair_row ? s->pair_row[p] : p;
            ref_swiglu_backward(&one, dy + row * s->D, at(dx, p * s->D), at(dw13, e * 2 * s->F * s->D),
                at(dw2, e * s->D * s->F), at(dgate, p));
        }
    }
}

/* ---------------------------------------------------------------- loss, embedding, optimizer */

/* Probabilities over the vocabulary of one token; returns its log-sum-exp. */
static double token_softmax(int64_t D, int64_t V, const double *x, const double *w, double *p) {
    double largest = -INFINITY, sum = 0;
    ref_linear(1, D, V, x, w, p);
    for (int64_t j = 0; j < V; j++)
        largest = fmax(largest, p[j]);
    for (int64_t j = 0; j < V; j++)
        sum += exp(p[j] - largest);
    double lse = largest + log(sum);
    for (int64_t j = 0; j < V; j++)
        p[j] = exp(p[j] - lse);
    return lse;
}

double ref_cross_entropy(int64_t n, int64_t D, int64_t V, const double *x, const double *w, const int32_t *target) {
    double *p = ref_alloc(V), loss = 0;
    for (int64_t i = 0; i < n; i++) {
        if (target[i] >= 0)
            loss += token_softmax(D, V, x + i * D, w, p) - dot(D, x + i * D, w + target[i] * D);
    }
    free(p);
    return loss;
}

void ref_cross_entropy_backward(int64_t n, int64_t D, int64_t V, const double *x, const double *w,
    const int32_t *target, double scale, double *dx, double *dw) {
    double *p = ref_alloc(V);
    for (int64_t i = 0; i < n; i++) {
        if (target[i] < 0)
            continue;
        token_softmax(D, V, x + i * D, w, p);
        p[target[i]] -= 1;
        for (int64_t j = 0; j < V; j++)
            p[j] *= scale;
        ref_linear_backward(1, D, V, x + i * D, w, p, at(dx, i * D), dw);
    }
    free(p);
}

void ref_embed(int64_t n, int64_t width, const uint32_t *id, const double *table, double *out) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < width; j++)
            out[i * width + j] = table[(int64_t)id[i] * width + j];
}

void ref_embed_backward(int64_t n, int64_t width, const uint32_t *id, const double *dout, double *dtable) {
    for (int64_t i = 0; i < n; i++)
        add_scaled(width, 1, dout + i * width, dtable + (int64_t)id[i] * width);
}

void ref_adamw_update(const ref_adamw *o, int64_t n, const double *g, double *p, double *m, double *v) {
    double correct1 = 1 - pow(o->beta1, (double)o->step), correct2 = 1 - pow(o->beta2, (double)o->step);
    for (int64_t i = 0; i < n; i++) {
        double grad = g[i] * o->grad_scale;
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * grad;
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * grad * grad;
        p[i] -= o->lr * (m[i] / correct1 / (sqrt(v[i] / correct2) + o->eps) + o->weight_decay * p[i]);
    }
}
