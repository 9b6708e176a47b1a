/* The decoder: opening, forward, backward. Read with block.c and attention.c: a micro-batch is
 *   embed -> per layer [norm, attention, norm, dispatch, experts, combine] -> final norm, head, loss
 *   -> layers in reverse with the same plan -> embedding gradient. */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

/* ---------------------------------------------------------------- opening */

static int64_t offset_of(const gr_params *p, int l, const char *suffix) {
    char name[GR_TENSOR_NAME_MAX];
    if (l < 0)
        snprintf(name, sizeof name, "%s", suffix);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s", l, suffix);
    const gr_param *found = gr_params_find(p, name);
    return found ? found->offset : NONE;
}

static layer_params find_layer(const gr_model *m, int l) {
    const gr_params *p = &m->params;
    bool dense = l < m->config.first_k_dense_replace;
    layer_params layer = {.norm1 = offset_of(p, l, "input_layernorm.weight"),
        .wqkv = offset_of(p, l, "self_attn.q_proj.weight"),
        .q_norm = offset_of(p, l, "self_attn.q_norm.weight"),
        .k_norm = offset_of(p, l, "self_attn.k_norm.weight"),
        .wo = offset_of(p, l, "self_attn.o_proj.weight"),
        .norm2 = offset_of(p, l, "post_attention_layernorm.weight"),
        .expert13 = offset_of(p, l, "mlp.experts.%u.gate_proj.weight"),
        .expert2 = offset_of(p, l, "mlp.experts.%u.down_proj.weight")};
    layer.ffn13 = offset_of(p, l, dense ? "mlp.gate_proj.weight" : "mlp.shared_expert.gate_proj.weight");
    layer.ffn2 = offset_of(p, l, dense ? "mlp.down_proj.weight" : "mlp.shared_expert.down_proj.weight");
    layer.ffn_width = dense ? m->config.intermediate_size : m->config.shared_expert_intermediate_size;
    return layer;
}

static gr_err find_params(gr_model *m, const gr_model_options *o) {
    GR_TRY(gr_params_open(
        &m->params, o->config, o->map, (uint32_t)o->comm->rank[GR_EP], o->comm->size[GR_WORLD], o->comm->size[GR_EDP]));
    m->embed = offset_of(&m->params, -1, "model.embed_tokens.weight");
    m->final_norm = offset_of(&m->params, -1, "model.norm.weight");
    m->head = o->config->tie_word_embeddings ? m->embed : offset_of(&m->params, -1, "lm_head.weight");
    GR_TRY(gr_alloc((void **)&m->layer, (size_t)o->config->num_hidden_layers, sizeof *m->layer, "layer table"));
    for (int l = 0; l < o->config->num_hidden_layers; l++)
        m->layer[l] = find_layer(m, l);
    return GR_OK;
}

typedef void (*layout_function)(gr_model *m, gr_arena *arena);

/* Bytes the layout takes. */
static gr_err measure(gr_model *m, layout_function layout, const char *what, size_t *n_byte) {
    gr_arena arena = {0};
    layout(m, &arena);
    *n_byte = arena.peak;
    if (arena.overflow)
        return gr_fail(
            GR_RESOURCE, "%s: expected a size that fits the address space, got an overflow; use a smaller model", what);
    return GR_OK;
}

/* Runs the layout twice: measures, allocates, places. */
static gr_err place(gr_model *m, layout_function layout, const char *what, void **memory) {
    size_t n_byte;
    GR_TRY(measure(m, layout, what, &n_byte));
    GR_TRY(m->backend->alloc(m->backend, n_byte, what, memory));
    gr_arena arena = {.base = *memory, .size = n_byte};
    layout(m, &arena);
    return GR_OK;
}

/* Angles in double: at position 40,000 a float angle has lost three digits. */
static void fill_rotation(gr_model *m) {
    int64_t half = m->config.head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(m->config.rope_theta, -2.0 * (double)i / (double)m->config.head_dim);
        for (int64_t t = 0; t < m->T; t++) {
            m->cosine[t * half + i] = (float)cos((double)t * frequency);
            m->sine[t * half + i] = (float)sin((double)t * frequency);
        }
    }
}

/* How many slots the activations kept for backward take. */
static void count_slots(gr_model *m, const gr_model_options *o) {
    int L = o->config->num_hidden_layers;
    m->n_attention = o->train && o->recompute != GR_RECOMPUTE_BLOCK ? L : 1;
    m->n_ffn = o->train && o->recompute == GR_RECOMPUTE_NONE ? L : 1;
    m->n_x = o->train ? L + 1 : 2;
}

/* Everything that follows from the options without memory for the model. */
static gr_err describe(gr_model *m, const gr_model_options *o) {
    m->config = *o->config;
    m->backend = o->backend;
    m->comm = o->comm;
    m->limits = *o->limits;
    m->N = o->limits->N;
    m->T = o->T;
    m->D = o->config->hidden_size;
    m->train = o->train;
    count_slots(m, o);
    GR_ASSERT(m->backend->host_memory, "backend %s: host code fills tables and reads plans in place", m->backend->name);
    GR_TRY(find_params(m, o));
    GR_TRY(gr_alloc((void **)&m->attention, (size_t)m->n_attention, sizeof *m->attention, "activation table"));
    GR_TRY(gr_alloc((void **)&m->ffn, (size_t)m->n_ffn, sizeof *m->ffn, "activation table"));
    return gr_alloc((void **)&m->x, (size_t)m->n_x, sizeof *m->x, "activation table");
}

static gr_err measure_model(gr_model *m, const gr_model_options *o) {
    size_t n_byte;
    GR_TRY(describe(m, o));
    GR_TRY(measure(m, gr_model_layout_run, "weights and gradients", &n_byte));
    return measure(m, gr_model_layout_step, "activations", &n_byte);
}

static gr_err open_model(gr_model *m, const gr_model_options *o) {
    GR_TRY(describe(m, o));
    GR_TRY(place(m, gr_model_layout_run, "weights and gradients", &m->run_memory));
    GR_TRY(place(m, gr_model_layout_step, "activations", &m->step_memory));
    fill_rotation(m);
    for (int64_t i = 0; i <= m->N; i++)
        m->iota[i] = (uint32_t)i;
    return GR_OK;
}

static gr_err open_by(
    gr_err (*open)(gr_model *m, const gr_model_options *o), gr_model **out, const gr_model_options *o) {
    *out = NULL;
    gr_model *m;
    GR_TRY(gr_alloc((void **)&m, 1, sizeof *m, "model"));
    gr_err e = open(m, o);
    if (e) {
        gr_model_close(m);
        return e;
    }
    *out = m;
    return GR_OK;
}

gr_err gr_model_open(gr_model **out, const gr_model_options *o) {
    return open_by(open_model, out, o);
}

gr_err gr_model_measure(gr_model **out, const gr_model_options *o) {
    return open_by(measure_model, out, o);
}

gr_model_memory gr_model_memory_get(const gr_model *m) {
    return m->memory;
}

void gr_model_close(gr_model *m) {
    if (!m)
        return;
    m->backend->release(m->backend, m->step_memory);
    m->backend->release(m->backend, m->run_memory);
    free(m->x);
    free(m->ffn);
    free(m->attention);
    free(m->layer);
    gr_params_close(&m->params);
    free(m);
}

const gr_params *gr_model_params(const gr_model *m) {
    return &m->params;
}

float *gr_model_weights(gr_model *m) {
    return m->weights;
}

void *gr_model_weights_act(gr_model *m) {
    return m->weights_act;
}

gr_err gr_model_weights_changed(gr_model *m) {
    gr_backend *b = m->backend;
    return m->weights_act ? b->round_weights(b, GR_LANE_COMPUTE, m->weights, m->weights_act, m->params.n_element)
                          : GR_OK;
}

float *gr_model_gradients(gr_model *m) {
    return m->gradients;
}

gr_err gr_model_zero_gradients(gr_model *m) {
    return m->backend->fill_zero(
        m->backend, GR_LANE_COMPUTE, m->gradients, (size_t)m->params.n_element * sizeof *m->gradients);
}

/* ---------------------------------------------------------------- one micro-batch */

static void set_plan(gr_model *m, const gr_batch *b) {
    m->moe = (gr_moe){.backend = m->backend,
        .comm = m->comm,
        .plan = b->plan,
        .device = *b->plan,
        .pair_gate = b->pair_gate,
        .D = m->D,
        .F = m->config.moe_intermediate_size,
        .send = m->send,
        .partial = m->partial,
        .pair_out = m->pair_out,
        .a = m->pair_a,
        .da = m->pair_da};
}

static gr_err forward_layers(gr_model *m, const gr_batch *b) {
    set_plan(m, b);
    GR_TRY(gr_model_embed_forward(m, b->token));
    for (int l = 0; l < m->config.num_hidden_layers; l++) {
        GR_TRY(gr_model_attention_forward(m, l));
        GR_TRY(gr_model_ffn_forward(m, l));
    }
    return GR_OK;
}

/* Fills the shared slots with layer l's activations, by forward's ops on forward's inputs: the same bits. The last
 * layer's are still there. */
static gr_err recompute(gr_model *m, int l) {
    if (l == m->config.num_hidden_layers - 1)
        return GR_OK;
    if (m->n_attention == 1)
        GR_TRY(gr_model_attention_forward(m, l));
    return m->n_ffn == 1 ? gr_model_ffn_recompute(m, l) : GR_OK;
}

static gr_err backward_layers(gr_model *m, const gr_batch *b) {
    for (int l = m->config.num_hidden_layers - 1; l >= 0; l--) {
        GR_TRY(recompute(m, l));
        GR_TRY(gr_model_ffn_backward(m, l));
        GR_TRY(gr_model_attention_backward(m, l));
    }
    return gr_model_embed_backward(m, b->token);
}

static double since_ms(double start_s) {
    return 1e3 * (gr_time_s() - start_s);
}

gr_err gr_model_step(gr_model *m, const gr_batch *b, float loss_scale, double *loss_sum, gr_phases *phases) {
    GR_ASSERT(m->train, "model opened without training");
    double start_s = gr_time_s();
    GR_TRY(forward_layers(m, b));
    double forward_exchange_ms = m->moe.exchange_ms;
    phases->forward_ms += since_ms(start_s) - forward_exchange_ms;

    start_s = gr_time_s();
    GR_TRY(gr_model_head_backward(m, b->target, loss_scale, loss_sum));
    GR_TRY(backward_layers(m, b));
    phases->backward_ms += since_ms(start_s) - (m->moe.exchange_ms - forward_exchange_ms);
    phases->exchange_ms += m->moe.exchange_ms;
    return GR_OK;
}

gr_err gr_model_loss(gr_model *m, const gr_batch *b, double *loss_sum, gr_phases *phases) {
    double start_s = gr_time_s();
    GR_TRY(forward_layers(m, b));
    GR_TRY(gr_model_head_forward(m, b->target, loss_sum));
    phases->forward_ms += since_ms(start_s) - m->moe.exchange_ms;
    phases->exchange_ms += m->moe.exchange_ms;
    return GR_OK;
}
