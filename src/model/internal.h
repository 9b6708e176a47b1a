/* internal.h: what the files of src/model share. */
#ifndef GROUTER_MODEL_INTERNAL_H
#define GROUTER_MODEL_INTERNAL_H

#include "grouter/model.h"

/* Offsets into the flat range of parameters (and, equally, of gradients). NONE: the layer does not have it. */
#define NONE (-1)
typedef struct layer_params {
    int64_t norm1, wqkv, q_norm, k_norm, wo, norm2;
    int64_t ffn13, ffn2;       /* dense layer, or shared expert */
    int64_t ffn_width;         /* of those, 0 = none */
    int64_t expert13, expert2; /* NONE in dense layers */
} layer_params;

/* What a block's halves keep for backward. Layers that keep nothing share one slot: all of them without training; with
 * recomputation the halves whose forward runs again in backward. Widths: A = (H + 2 H_kv) * head_dim. */
typedef struct attention_saved {
    void *n1;               /* act [N, D] normalised input of attention */
    float *rstd1;           /* [N] */
    void *qk_raw;           /* act [N, A] before the q and k norms; NULL without them */
    float *rstd_q, *rstd_k; /* [N*H], [N*H_kv] */
    void *qkv;              /* act [N, A] after norms and rotation */
    void *o;                /* act [N, H*head_dim] attention output */
    float *lse;             /* [B, H, T] */
    void *mid;              /* act [N, D] residual stream after attention */
} attention_saved;

typedef struct ffn_saved {
    float *rstd2; /* [N] */
    void *n2;     /* act [N + recv_max, D] normalised input of the experts, received rows behind */
    void *h;      /* act [pair_max, 2F] */
    void *ffn_h;  /* act [N, 2*ffn_width] */
} ffn_saved;

struct gr_model {
    gr_model_config config;
    gr_backend *backend;
    gr_comm *comm;
    gr_plan_limits limits;
    int64_t N, T, D;
    bool train;
    gr_params params;
    int64_t embed, final_norm, head; /* offsets; head = embed when tied */
    layer_params *layer;             /* [L] */

    gr_model_memory memory; /* what the layouts took */
    void *run_memory, *step_memory;
    float *weights, *gradients; /* flat, gradients NULL without training */
    void *weights_act;          /* act, flat: what the ops read; NULL where it would equal the weights */
    float *cosine, *sine;       /* [T, head_dim/2] */
    uint32_t *iota;             /* [N+1] 0, 1, 2, ...: the identity as a sum list */

    attention_saved *attention; /* [n_attention]: L, or 1 slot shared by all layers */
    ffn_saved *ffn;             /* [n_ffn]: L, or 1 */
    void **x;                   /* act [N, D] residual stream before each layer: n_x = L+1 in training, else 2 */
    int n_attention, n_ffn, n_x;

    /* scratch, shared by the layers */
    void *final;            /* act [N, D] final norm's output */
    float *rstd_final;      /* [N] */
    void *logits;           /* act [gr_logits_chunk, V] */
    double *loss_sum;       /* [1] */
    void *ffn_a, *ffn_da;   /* act [N, ffn_width] */
    void *ffn_y;            /* act [N, D] */
    void *send, *partial;   /* act [send_max, D], [recv_max, D] */
    void *pair_out;         /* act [pair_max, D] */
    void *pair_a, *pair_da; /* act [pair_max, F] */
    void *dres;             /* act [N + recv_max, D] gradient of the residual stream, received rows behind */
    void *dn, *dqkv, *d_o;  /* act [N, D], [N, A], [N, H*head_dim] */

    gr_moe moe; /* of the current micro-batch */
};

/* At an offset of the parameter table: matrices and norm weights as the ops read them, gradients. */
static inline const void *weight_at(const gr_model *m, int64_t offset) {
    const uint8_t *first = m->weights_act ? m->weights_act : m->weights;
    return first + (size_t)offset * m->backend->elem_size;
}

static inline const float *norm_at(const gr_model *m, int64_t offset) {
    return m->weights + offset;
}

static inline float *gradient_at(const gr_model *m, int64_t offset) {
    return m->gradients + offset;
}

/* Element i of an activation array. */
static inline void *act_at(const gr_model *m, void *base, int64_t i) {
    return (uint8_t *)base + (size_t)i * m->backend->elem_size;
}

static inline attention_saved *attention_of(const gr_model *m, int l) {
    return &m->attention[l % m->n_attention];
}

static inline ffn_saved *ffn_of(const gr_model *m, int l) {
    return &m->ffn[l % m->n_ffn];
}

static inline void *stream_before(const gr_model *m, int l) {
    return m->x[l % m->n_x];
}

/* layout.c: takes what lives as long as the run, and all activations and scratch (twice each: measure, place). */
void gr_model_layout_run(gr_model *m, gr_arena *arena);
void gr_model_layout_step(gr_model *m, gr_arena *arena);

/* embed.c, attention.c, block.c, loss.c. Backward runs the gradient of the residual stream through m->dres in place. */
gr_err gr_model_embed_forward(gr_model *m, const uint32_t *token);
gr_err gr_model_embed_backward(gr_model *m, const uint32_t *token);
gr_err gr_model_attention_forward(gr_model *m, int l);
gr_err gr_model_attention_backward(gr_model *m, int l);
gr_err gr_model_ffn_forward(gr_model *m, int l);
gr_err gr_model_ffn_recompute(gr_model *m, int l); /* what forward kept, from mid: all but the results */
gr_err gr_model_ffn_backward(gr_model *m, int l);
gr_err gr_model_head_forward(gr_model *m, const int32_t *target, double *loss_sum);
gr_err gr_model_head_backward(gr_model *m, const int32_t *target, float loss_scale, double *loss_sum);

#endif
