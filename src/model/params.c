/* The parameter table: which tensor lies where in the flat range [dense | experts], and its initial values.
 *
 * Order: embedding; per layer norms, attention and the MLP that every rank holds; final norm; head; then this rank's
 * experts layer by layer, one block w13 [E_local][2F][D] and one block w2 [E_local][D][F]. What one GEMM reads in one
 * go (q|k|v, gate|up) is contiguous. Every group starts at a multiple of 64 bytes; the elements between groups belong
 * to no parameter and are 0 in weights, gradients and moments alike. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_ALIGN (GR_ALIGN / (int64_t)sizeof(float))
#define ENTRIES_OUTSIDE_MAX 4    /* embedding, final norm, head or scores with their bias */
#define ENTRIES_PER_LAYER_MAX 15 /* 4 norms, q k v o, router, three of a dense MLP or shared expert and of experts */

typedef struct table {
    gr_params *out;
    int64_t next; /* first free element */
    bool overflow;
    int64_t dense_shards, expert_shards;
    float std, residual_std; /* of matrices; of those that add to the residual stream */
} table;

static int64_t aligned_to(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

static int64_t aligned(int64_t n) {
    return aligned_to(n, GROUP_ALIGN);
}

/* First element of a new group of n_matrix matrices [rows, columns]. */
static int64_t group_take(table *t, uint32_t n_matrix, int64_t rows, int64_t columns) {
    int64_t first = t->next, size, end;
    if (__builtin_mul_overflow(rows, columns, &size) || __builtin_mul_overflow(size, (int64_t)n_matrix, &size) ||
        __builtin_add_overflow(first, size, &end) || end > INT64_MAX / (int64_t)sizeof(float) - GROUP_ALIGN) {
        t->overflow = true;
        return 0;
    }
    t->next = aligned(end);
    return first;
}

static gr_param *entry_add(table *t, gr_param_kind kind, int64_t offset, int64_t rows, int64_t columns) {
    gr_param *p = &t->out->list[t->out->n++];
    *p = (gr_param){.kind = kind,
        .n_dim = 2,
        .dim = {rows, columns},
        .n_matrix = 1,
        .offset = offset,
        .stride = rows * columns,
        .decay = true,
        .owner = GR_WORLD,
        .init_std = t->std,
        .zero_row = -1,
        .vector = -1};
    return p;
}

static void name_set(gr_param *p, const char *name) {
    snprintf(p->name, sizeof p->name, "%s", name);
}

static void name_in_layer(gr_param *p, int layer, const char *suffix) {
    int n = snprintf(p->name, sizeof p->name, "model.layers.%d.%s", layer, suffix);
    GR_ASSERT(n > 0 && (size_t)n < sizeof p->name, "%s", suffix);
}

static void layer_matrix(
    table *t, int layer, const char *suffix, gr_param_kind kind, int64_t offset, int64_t rows, int64_t columns) {
    name_in_layer(entry_add(t, kind, offset, rows, columns), layer, suffix);
}

/* A norm's weights or a bias. */
static gr_param *vector_add(table *t, gr_param_kind kind, int64_t width) {
    gr_param *p = entry_add(t, kind, group_take(t, 1, 1, width), width, 1);
    p->n_dim = 1;
    p->decay = false;
    p->init_std = 0;
    p->vector = t->out->n_vector;
    t->out->n_vector += aligned(width);
    return p;
}

static gr_param *norm_add(table *t, int64_t width) {
    return vector_add(t, GR_PARAM_NORM, width);
}

static void attention_add(table *t, const gr_model_config *c, int layer) {
    int64_t D = c->hidden_size, hd = c->head_dim;
    int64_t q = c->num_attention_heads * hd, kv = c->num_key_value_heads * hd;
    int64_t qkv = group_take(t, 1, q + 2 * kv, D);
    layer_matrix(t, layer, "self_attn.q_proj.weight", GR_PARAM_ATTENTION, qkv, q, D);
    layer_matrix(t, layer, "self_attn.k_proj.weight", GR_PARAM_ATTENTION, qkv + q * D, kv, D);
    layer_matrix(t, layer, "self_attn.v_proj.weight", GR_PARAM_ATTENTION, qkv + (q + kv) * D, kv, D);
    if (c->use_qk_norm) {
        name_in_layer(norm_add(t, hd), layer, "self_attn.q_norm.weight");
        name_in_layer(norm_add(t, hd), layer, "self_attn.k_norm.weight");
    }
    gr_param *o = entry_add(t, GR_PARAM_ATTENTION, group_take(t, 1, D, q), D, q);
    o->init_std = t->residual_std;
    name_in_layer(o, layer, "self_attn.o_proj.weight");
}

/* A SwiGLU MLP that every rank holds: gate and up packed [2*width, D], then down. */
static void mlp_add(table *t, int layer, const char *const suffix[3], gr_param_kind kind, int64_t D, int64_t width) {
    int64_t w13 = group_take(t, 1, 2 * width, D);
    layer_matrix(t, layer, suffix[0], kind, w13, width, D);
    layer_matrix(t, layer, suffix[1], kind, w13 + width * D, width, D);
    gr_param *down = entry_add(t, kind, group_take(t, 1, D, width), D, width);
    down->init_std = t->residual_std;
    name_in_layer(down, layer, suffix[2]);
}

static void dense_layer_add(table *t, const gr_model_config *c, int layer) {
    static const char *const dense[3] = {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"};
    static const char *const shared[3] = {
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
        "mlp.shared_expert.down_proj.weight",
    };
    name_in_layer(norm_add(t, c->hidden_size), layer, "input_layernorm.weight");
    attention_add(t, c, layer);
    name_in_layer(norm_add(t, c->hidden_size), layer, "post_attention_layernorm.weight");
    if (layer < c->first_k_dense_replace) {
        mlp_add(t, layer, dense, GR_PARAM_DENSE, c->hidden_size, c->intermediate_size);
        return;
    }
    if (c->routing.gates == GR_GATES_LEARNED) {
        int64_t E = c->num_experts, router = group_take(t, 1, E, c->hidden_size);
        layer_matrix(t, layer, "mlp.gate.weight", GR_PARAM_ROUTER, router, E, c->hidden_size);
    }
    if (c->shared_expert_intermediate_size > 0 && !is_cut(c, layer))
        mlp_add(t, layer, shared, GR_PARAM_SHARED, c->hidden_size, c->shared_expert_intermediate_size);
}

static void expert_add(
    table *t, int layer, const char *suffix, int64_t offset, int64_t rows, int64_t columns, int64_t stride) {
    gr_param *p = entry_add(t, GR_PARAM_EXPERT, offset, rows, columns);
    p->n_matrix = t->out->map->E_local;
    p->stride = stride;
    p->owner = GR_EDP;
    name_in_layer(p, layer, suffix);
}

static void experts_add(table *t, const gr_model_config *c, int layer) {
    int64_t D = c->hidden_size, F = c->moe_intermediate_size;
    uint32_t E_local = t->out->map->E_local;
    int64_t w13 = group_take(t, E_local, 2 * F, D);
    expert_add(t, layer, "mlp.experts.%u.gate_proj.weight", w13, F, D, 2 * F * D);
    expert_add(t, layer, "mlp.experts.%u.up_proj.weight", w13 + F * D, F, D, 2 * F * D);
    expert_add(t, layer, "mlp.experts.%u.down_proj.weight", group_take(t, E_local, D, F), D, F, D * F);
    t->out->list[t->out->n - 1].init_std = t->residual_std;
}

/* One layer of a residual linear body: a linear map, layer norm, ReLU. */
static void linear_layer_add(table *t, const gr_model_config *c, int layer) {
    int64_t in = gr_linear_width(c, layer), out = gr_linear_width(c, layer + 1);
    layer_matrix(t, layer, "linear.weight", GR_PARAM_LINEAR, group_take(t, 1, out, in), out, in);
    name_in_layer(norm_add(t, out), layer, "layer_norm.weight");
    name_in_layer(vector_add(t, GR_PARAM_BIAS, out), layer, "layer_norm.bias");
}

static void body_add(table *t, const gr_model_config *c) {
    bool linear = c->head == GR_HEAD_SCORES && c->body == GR_BODY_RESIDUAL_LINEAR;
    for (int l = 0; l < c->num_hidden_layers; l++)
        (linear ? linear_layer_add : dense_layer_add)(t, c, l);
    if (c->head == GR_HEAD_TOKENS || (c->head == GR_HEAD_SCORES && c->body == GR_BODY_ATTENTION))
        name_set(norm_add(t, c->hidden_size), "model.norm.weight");
}

static void scores_add(table *t, const gr_model_config *c) {
    int64_t labels = c->num_labels, D = c->hidden_size;
    name_set(entry_add(t, GR_PARAM_SCORE, group_take(t, 1, labels, D), labels, D), "score.weight");
    gr_param *bias = vector_add(t, GR_PARAM_BIAS, labels);
    bias->frozen = true;
    name_set(bias, "score.bias");
}

static void table_fill(table *t, const gr_model_config *c) {
    int64_t V = c->vocab_size, D = c->hidden_size;
    gr_param *embed = entry_add(t, GR_PARAM_EMBED, group_take(t, 1, V, D), V, D);
    name_set(embed, "model.embed_tokens.weight");
    if (c->head == GR_HEAD_SCORES)
        embed->zero_row = c->zero_token;
    body_add(t, c);
    if (c->head == GR_HEAD_SCORES)
        scores_add(t, c);
    else if (c->head == GR_HEAD_TOKENS && !c->tie_word_embeddings)
        name_set(entry_add(t, GR_PARAM_HEAD, group_take(t, 1, V, D), V, D), "lm_head.weight");
    t->next = aligned_to(t->next, GROUP_ALIGN * t->dense_shards);
    t->out->n_dense = t->next;
    for (int l = c->first_k_dense_replace; l < c->num_hidden_layers - (c->head == GR_HEAD_ROUTER); l++)
        experts_add(t, c, l);
    t->out->n_element = t->out->n_dense + aligned_to(t->next - t->out->n_dense, GROUP_ALIGN * t->expert_shards);
}

gr_err gr_params_open(gr_params *out, const gr_model_config *c, const gr_expert_map *map, uint32_t ep_rank,
    int dense_shards, int expert_shards) {
    *out = (gr_params){.map = map, .ep_rank = ep_rank};
    size_t n_max = ENTRIES_OUTSIDE_MAX + ENTRIES_PER_LAYER_MAX * (size_t)c->num_hidden_layers;
    void *list;
    GR_TRY(gr_alloc(&list, n_max, sizeof *out->list, "parameter table"));
    out->list = list;
    table t = {.out = out,
        .dense_shards = dense_shards,
        .expert_shards = expert_shards,
        .std = (float)c->initializer_range,
        .residual_std = (float)(c->initializer_range / sqrt(2.0 * c->num_hidden_layers))};
    table_fill(&t, c);
    GR_ASSERT((size_t)out->n <= n_max, "%d entries of %zu", out->n, n_max);
    if (t.overflow) {
        gr_params_close(out);
        return gr_fail(GR_RESOURCE, "model: expected fewer than 2^61 parameters per rank, got more; make the model "
                                    "smaller (vocab_size, hidden_size, num_experts)");
    }
    return GR_OK;
}

void gr_params_close(gr_params *p) {
    free(p->list);
    *p = (gr_params){0};
}

int64_t gr_param_size(const gr_param *p) {
    return p->n_dim == 1 ? p->dim[0] : p->dim[0] * p->dim[1];
}

const char *gr_param_name(const gr_params *params, const gr_param *p, uint32_t i, char name[128]) {
    if (p->owner == GR_WORLD)
        snprintf(name, 128, "%s", p->name);
    else
        snprintf(name, 128, p->name, (unsigned)params->map->expert_at[params->ep_rank * params->map->E_local + i]);
    return name;
}

const gr_param *gr_params_find(const gr_params *p, const char *name_format) {
    for (int i = 0; i < p->n; i++)
        if (strcmp(p->list[i].name, name_format) == 0)
            return &p->list[i];
    return NULL;
}

/* Elements [first, first+n) of one matrix into w[n]. */
static void matrix_init(const gr_param *p, uint64_t seed, uint64_t stream, gr_share part, float *w) {
    float std = p->init_std;
    if (std == 0) {
        for (int64_t i = 0; i < part.n; i++)
            w[i] = p->kind == GR_PARAM_NORM ? 1 : 0;
        return;
    }
    int64_t zero_first = p->zero_row < 0 ? 0 : p->zero_row * p->dim[1];
    int64_t zero_end = p->zero_row < 0 ? 0 : zero_first + p->dim[1];
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < part.n; i++) {
        int64_t at = part.first + i;
        w[i] = at >= zero_first && at < zero_end ? 0 : std * gr_random_normal(seed, stream, (uint64_t)at);
    }
}

/* A matrix in pieces, so that one that is staged takes no more host memory than that. */
static gr_err matrix_fill(gr_staging *s, const gr_param *p, uint64_t seed, uint64_t stream, gr_share part, float *w) {
    const int64_t most = (int64_t)(GR_STAGING_PIECE / sizeof *w);
    for (int64_t at = 0; at < part.n; at += most) {
        gr_share piece = {.first = part.first + at, .n = part.n - at < most ? part.n - at : most};
        size_t n_byte = (size_t)piece.n * sizeof *w;
        void *room;
        GR_TRY(gr_staging_room(s, w + at, n_byte, &room));
        matrix_init(p, seed, stream, piece, room);
        GR_TRY(gr_staging_store(s, w + at, n_byte));
    }
    return GR_OK;
}

static gr_err params_fill(gr_staging *s, const gr_params *p, uint64_t seed, const gr_weights *weights) {
    GR_TRY(gr_weights_clear(weights));
    for (int i = 0; i < p->n; i++)
        for (uint32_t k = 0; k < p->list[i].n_matrix; k++) {
            const gr_param *at = &p->list[i];
            int64_t offset = at->offset + k * at->stride;
            gr_share common = gr_share_common(
                weights->share[at->owner == GR_EDP], (gr_share){.first = offset, .n = gr_param_size(at)});
            if (common.n == 0)
                continue;
            char name[128];
            uint64_t stream = gr_stream_id(gr_param_name(p, at, k, name));
            gr_share part = {.first = common.first - offset, .n = common.n};
            GR_TRY(matrix_fill(s, at, seed, stream, part, gr_weights_at(weights, common)));
        }
    return GR_OK;
}

gr_err gr_params_init(const gr_params *p, uint64_t seed, gr_weights weights) {
    gr_staging s = {.backend = weights.backend};
    gr_err err = params_fill(&s, p, seed, &weights);
    gr_staging_close(&s);
    return err;
}
