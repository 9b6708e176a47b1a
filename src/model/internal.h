/* internal.h: what the files of src/model share. */
#ifndef GROUTER_MODEL_INTERNAL_H
#define GROUTER_MODEL_INTERNAL_H

#include "grouter/model.h"

/* Offsets into the flat range of parameters (and, equally, of gradients). NONE: the layer does not have it. */
#define NONE (-1)
/* A norm's weights or a bias, which the ops read as fp32: where it lies in the flat range and among the vectors. */
typedef struct vector_place {
    int64_t offset, vector;
} vector_place;

typedef struct layer_params {
    vector_place norm1, q_norm, k_norm, norm2;
    int64_t wqkv, wo;
    int64_t router;            /* NONE with fixed gates and in dense layers */
    int64_t ffn13, ffn2;       /* dense layer, or shared expert */
    int64_t ffn_width;         /* of those, 0 = none */
    int64_t expert13, expert2; /* NONE in dense layers */
    int64_t linear;            /* of a residual linear body */
    vector_place ln_w, ln_b;
} layer_params;

/* What a block's halves keep for backward. Layers that keep nothing share one slot: all of them without training; with
 * recomputation the halves whose forward runs again in backward. Widths: A = (H + 2 H_kv) * head_dim. */
typedef struct attention_saved {
    void *n1;       /* act [N, D] normalised input of attention */
    float *rstd1;   /* [N] */
    void *qk_raw;   /* act [N, A] before the q and k norms; NULL without them */
    float *rstd_qk; /* [N, H+H_kv] */
    void *qkv;      /* act [N, A] after norms and rotation; where there is a qk_raw, that has v */
    void *o;        /* act [N, H*head_dim] attention output */
    float *lse;     /* [B, H, T] */
    void *mid;      /* act [N, D] residual stream after attention */
} attention_saved;

typedef struct ffn_saved {
    float *rstd2; /* [N] */
    void *n2;     /* act [N + recv_max, D] normalised input of the experts, received rows behind */
    void *h;      /* act [pair_max, 2F] */
    void *ffn_h;  /* act [N, 2*ffn_width] */
} ffn_saved;

/* What a layer of a residual linear body keeps. */
typedef struct linear_saved {
    void *z;            /* act [N, width] product, before the layer norm */
    float *mean, *rstd; /* [N] */
} linear_saved;

/* Of a MoE layer's router. Recomputation never routes again: in training each layer keeps its own. */
typedef struct router_saved {
    float *p;         /* [N, E] probabilities */
    float *lse;       /* [N] */
    uint16_t *ids;    /* [N, K] */
    float *gate;      /* [N + recv_max, K], received rows behind */
    float *pair_gate; /* [pair_max] */
    uint32_t *count;  /* [N/T, E] */
    gr_plan plan;     /* host; with routing.source learned */
    gr_plan device;   /* as the ops read it */
    gr_plan_builder *builder;
    gr_parcel parcel;
} router_saved;

/* A micro-batch as the ops read it: the batch's own arrays, or what its parcel has of them. */
typedef struct batch_arrays {
    const uint32_t *token;
    const int32_t *target;
    const uint16_t *ids;
    gr_documents documents;
    gr_plan plan;
    const float *pair_gate;
} batch_arrays;

/* Places in gr_model.sums; the routers' are aux and z. */
enum { SUM_LOSS = 0, SUM_ROUTERS = 1, N_SUM = GR_MODEL_SUMS };

struct gr_model {
    gr_model_config config;
    gr_backend *backend;
    gr_comm *comm;
    gr_plan_limits limits;
    int64_t N, T, D;
    bool train;
    gr_trained trained;
    gr_params params;
    int64_t embed, head; /* offsets; head = embed when tied; scores: head is the score matrix */
    vector_place final_norm;
    layer_params *layer; /* [L] */

    gr_model_memory memory; /* what the layouts took */
    void *run_memory, *step_memory;
    gr_weights weights; /* whole, or in shares */
    bool shared_weights;
    float *gradients;         /* flat, NULL without training */
    void *weights_act;        /* act, flat: what the ops read; NULL where it would equal the weights */
    float *vectors;           /* [n_vector] with weights in shares: what else the ops read; else NULL */
    float *cosine, *sine;     /* [T, head_dim/2] */
    uint32_t *iota;           /* [N+1] 0, 1, 2, ...: the identity as a sum list */
    double *sums_read;        /* [N_SUM] page-locked host memory: where sums and losses arrive */
    double *sums;             /* [N_SUM] losses since gr_model_zero_gradients: tokens', aux, z; NULL without training */
    uint32_t *document_first; /* [N] host, of the current batch; NULL: windows are not divided */
    uint32_t *document_end;   /* [N] */

    attention_saved *attention; /* [n_attention]: L, or 1 slot shared by all layers */
    ffn_saved *ffn;             /* [n_ffn]: L, or 1 */
    linear_saved *linear;       /* [n_linear]: L, 1, or 0 unless the body is residual linear */
    router_saved *router;       /* [n_router]: L, or 1; NULL with fixed gates */
    void **x;                   /* act [N, stream_width] before each layer: n_x = L+1 in training, else 2 */
    int n_attention, n_ffn, n_linear, n_router, n_x;
    int64_t stream_width; /* D; of a residual linear body its widest layer */

    /* scratch, shared by the layers */
    void *final;            /* act [N, D] final norm's output */
    float *rstd_final;      /* [N] */
    void *logits;           /* act [gr_logits_chunk, V] */
    float *scores;          /* [N, num_labels] */
    double *loss_sum;       /* [1] of one call */
    double *token_loss;     /* [N] of one call; NULL with host_memory: there it is the caller's */
    void *ffn_a, *ffn_da;   /* act [N, ffn_width] */
    void *ffn_y;            /* act [N, D] */
    void *send, *partial;   /* act [send_max, D], [recv_max, D] */
    void *pair_out;         /* act [pair_max, D] */
    void *pair_a, *pair_da; /* act [pair_max, F] */
    void *dres;             /* act [N + recv_max, stream_width] of the residual stream, received rows behind */
    void *dn, *dqkv, *d_o;  /* act [N, D], [N, A], [N, H*head_dim] */

    /* learned gates only */
    float *dgate;        /* [N + recv_max, K] */
    float *pair_dgate;   /* [pair_max] */
    float *gate_send;    /* [send_max, K] */
    void *dlogits;       /* act [N, E] */
    uint64_t *load;      /* [MoE layers, E] since gr_model_zero_gradients */
    uint16_t *group_ids; /* host: [R_ep*N, K] choices of the whole group */
    float *group_used;   /* host: [R_ep*N, K] ones: a learned router leaves no slot unused */
    void *plan_memory;   /* host: plans of the layers, the two above, and borders of documents */

    const gr_batch *batch; /* of the current micro-batch */
    batch_arrays now;      /* the same as the ops read it */
    gr_parcel parcel[2];   /* of this micro-batch and the one before, which COMPUTE may still be reading */
    int parcel_next;
    void *parcel_host; /* where parcels are packed, one at a time */
    double loss_scale; /* of its gradients; 0: only evaluated */

    gr_part_call *done, *gather; /* see gr_model_gradients_watch, gr_model_weights_await; NULL: neither */
    void *done_of, *gather_of;
    int part_due; /* the part that has been asked for last, and is needed next */

    gr_moe moe; /* of the current micro-batch, and of the layer being computed */
};

/* At an offset of the parameter table: matrices and norm weights as the ops read them, gradients. */
static inline const void *weight_at(const gr_model *m, int64_t offset) {
    const uint8_t *first = m->weights_act ? m->weights_act : m->weights.at[0];
    return first + (size_t)offset * m->backend->elem_size;
}

/* The layer whose router is the head of a source that was cut off. */
static inline bool is_cut(const gr_model_config *c, int l) {
    return c->head == GR_HEAD_ROUTER && l == c->num_hidden_layers - 1;
}

static inline bool is_linear_body(const gr_model_config *c) {
    return c->head == GR_HEAD_SCORES && c->body == GR_BODY_RESIDUAL_LINEAR;
}

/* Width before layer l of a residual linear body; l = L: of its output. */
static inline int64_t gr_linear_width(const gr_model_config *c, int l) {
    return l == 0 || l == c->num_hidden_layers ? c->hidden_size : c->intermediate_size;
}

/* A Grouter without attention: what it knows of positions is turned into the embedding. */
static inline bool is_context_free(const gr_model_config *c) {
    return c->head == GR_HEAD_SCORES && c->body != GR_BODY_ATTENTION;
}

/* Does a position see those after it? */
static inline bool sees_ahead(const gr_model_config *c) {
    return c->head == GR_HEAD_SCORES && (c->mask == GR_MASK_BIDIRECTIONAL || c->mask == GR_MASK_BIDIRECTIONAL_DOC);
}

/* Elements that rotary embedding turns together: of a head, or of the whole embedding; 0: positions do not count. */
static inline int64_t gr_model_rotated(const gr_model *m) {
    const gr_model_config *c = &m->config;
    if (c->head == GR_HEAD_SCORES && c->position == GR_POSITION_NONE)
        return 0;
    return is_context_free(c) ? m->D : c->head_dim;
}

/* Does backward reach below the score matrix? */
static inline bool trains_body(const gr_model *m) {
    return m->train && m->trained == GR_TRAINED_ALL;
}

static inline const float *norm_at(const gr_model *m, vector_place at) {
    return m->vectors ? m->vectors + at.vector : m->weights.at[0] + at.offset;
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

static inline router_saved *router_of(const gr_model *m, int l) {
    return &m->router[l % m->n_router];
}

static inline void *stream_before(const gr_model *m, int l) {
    return m->x[l % m->n_x];
}

/* shares.c */
gr_share gr_share_common(gr_share a, gr_share b);
/* All of what w has becomes 0. */
GR_MUST gr_err gr_weights_clear(const gr_weights *w);

/* layout.c: takes what lives as long as the run, and all activations and scratch (twice each: measure, place). */
void gr_model_layout_run(gr_model *m, gr_arena *arena);
void gr_model_layout_step(gr_model *m, gr_arena *arena);
/* Host memory: with routing.source learned plans, with documents their borders. */
void gr_model_layout_plans(gr_model *m, gr_arena *arena);

/* batch.c: a micro-batch, and a layer's own plan, on their way to the ops. Room to pack them: bytes of the largest, and
 * what is to be called once their memory is placed. */
size_t gr_model_parcel_largest(const gr_model *m);
GR_MUST gr_err gr_model_parcels_open(gr_model *m);
GR_MUST gr_err gr_model_batch_send(gr_model *m, const gr_batch *b, double loss_scale);
GR_MUST gr_err gr_model_plan_send(gr_model *m, router_saved *s);

/* parts.c: gradients of a part are complete; its weights are read by what is queued next. */
GR_MUST gr_err gr_model_part_done(gr_model *m, int part);
GR_MUST gr_err gr_model_part_need(gr_model *m, int part);

gr_norm gr_model_middle_norm(gr_model *m, int l); /* block.c: the norm before a layer's experts */

/* gate.c: the routers. Forward reads n2 of ffn_of(l), makes the layer's choices, plan and gates, and sets m->moe to
 * them; select only sets it again; backward adds to dn. All do nothing with fixed gates. */
gr_err gr_model_gate_forward(gr_model *m, int l);
gr_err gr_model_gate_logits(gr_model *m, int l, float *logits); /* [N, E] */
void gr_model_gate_select(gr_model *m, int l);
gr_err gr_model_gate_backward(gr_model *m, int l);

/* embed.c, attention.c, block.c, linear.c, loss.c. Backward runs the gradient of the residual stream through m->dres in
 * place. */
gr_err gr_model_embed_forward(gr_model *m);
gr_err gr_model_embed_backward(gr_model *m);
gr_err gr_model_attention_forward(gr_model *m, int l);
gr_err gr_model_attention_backward(gr_model *m, int l);
size_t gr_model_attention_scratch(const gr_model *m); /* of the backend's, in forward and, with training, backward */
gr_err gr_model_ffn_forward(gr_model *m, int l);
gr_err gr_model_ffn_recompute(gr_model *m, int l); /* what forward kept, from mid: all but the results */
gr_err gr_model_ffn_backward(gr_model *m, int l);
gr_err gr_model_linear_forward(gr_model *m, int l);
gr_err gr_model_linear_backward(gr_model *m, int l);
/* model.c: all layers of a batch, and back. */
gr_err gr_model_layers_forward(gr_model *m, const gr_batch *b, double loss_scale);
gr_err gr_model_layers_backward(gr_model *m);
gr_norm gr_model_final_norm(gr_model *m);
/* *loss_sum += the losses of the batch; backward: or NULL, and they are added to m->sums. */
gr_err gr_model_head_forward(gr_model *m, double *loss_sum, double *token_loss);
gr_err gr_model_head_backward(gr_model *m, float loss_scale, double *loss_sum);

#endif
