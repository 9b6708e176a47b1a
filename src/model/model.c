/* The decoder: opening, forward, backward. Read with block.c and attention.c: a micro-batch is
 *   embed -> per layer [norm, attention, norm, dispatch, experts, combine] -> final norm, head, loss
 *   -> layers in reverse with the same plan -> embedding gradient. */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

/* ---------------------------------------------------------------- opening */

static const gr_param *param_of(const gr_params *p, int l, const char *suffix) {
    char name[GR_TENSOR_NAME_MAX];
    if (l < 0)
        snprintf(name, sizeof name, "%s", suffix);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s", l, suffix);
    return gr_params_find(p, name);
}

static int64_t offset_of(const gr_params *p, int l, const char *suffix) {
    const gr_param *found = param_of(p, l, suffix);
    return found ? found->offset : NONE;
}

static vector_place place_of(const gr_params *p, int l, const char *suffix) {
    const gr_param *found = param_of(p, l, suffix);
    return found ? (vector_place){found->offset, found->vector} : (vector_place){NONE, NONE};
}

static layer_params find_layer(const gr_model *m, int l) {
    const gr_params *p = &m->params;
    bool dense = l < m->config.first_k_dense_replace;
    layer_params layer = {.norm1 = place_of(p, l, "input_layernorm.weight"),
        .wqkv = offset_of(p, l, "self_attn.q_proj.weight"),
        .q_norm = place_of(p, l, "self_attn.q_norm.weight"),
        .k_norm = place_of(p, l, "self_attn.k_norm.weight"),
        .wo = offset_of(p, l, "self_attn.o_proj.weight"),
        .norm2 = place_of(p, l, "post_attention_layernorm.weight"),
        .router = offset_of(p, l, "mlp.gate.weight"),
        .expert13 = offset_of(p, l, "mlp.experts.%u.gate_proj.weight"),
        .expert2 = offset_of(p, l, "mlp.experts.%u.down_proj.weight")};
    layer.ffn13 = offset_of(p, l, dense ? "mlp.gate_proj.weight" : "mlp.shared_expert.gate_proj.weight");
    layer.ffn2 = offset_of(p, l, dense ? "mlp.down_proj.weight" : "mlp.shared_expert.down_proj.weight");
    if (layer.ffn13 != NONE)
        layer.ffn_width = dense ? m->config.intermediate_size : m->config.shared_expert_intermediate_size;
    layer.linear = offset_of(p, l, "linear.weight");
    layer.ln_w = place_of(p, l, "layer_norm.weight");
    layer.ln_b = place_of(p, l, "layer_norm.bias");
    return layer;
}

static gr_err find_params(gr_model *m, const gr_model_options *o) {
    GR_TRY(gr_params_open(
        &m->params, o->config, o->map, (uint32_t)o->comm->rank[GR_EP], o->comm->size[GR_WORLD], o->comm->size[GR_EDP]));
    m->embed = offset_of(&m->params, -1, "model.embed_tokens.weight");
    m->final_norm = place_of(&m->params, -1, "model.norm.weight");
    m->head = o->config->tie_word_embeddings ? m->embed : offset_of(&m->params, -1, "lm_head.weight");
    if (o->config->head == GR_HEAD_SCORES)
        m->head = offset_of(&m->params, -1, "score.weight");
    for (int i = 0; o->trained != GR_TRAINED_ALL && i < m->params.n; i++)
        m->params.list[i].frozen = o->trained == GR_TRAINED_BIAS || m->params.list[i].kind != GR_PARAM_SCORE;
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

/* Plans are host data, whatever the backend. */
static gr_err place_plans(gr_model *m) {
    size_t n_byte;
    GR_TRY(measure(m, gr_model_layout_plans, "plans", &n_byte));
    GR_TRY(gr_alloc(&m->plan_memory, n_byte + GR_ALIGN, 1, "plans"));
    uintptr_t base = ((uintptr_t)m->plan_memory + GR_ALIGN - 1) & ~(uintptr_t)(GR_ALIGN - 1);
    gr_arena arena = {.base = (uint8_t *)base, .size = n_byte};
    gr_model_layout_plans(m, &arena);
    size_t n_used = m->group_used ? (size_t)m->limits.n_rank * m->limits.N * m->limits.K : 0;
    for (size_t i = 0; i < n_used; i++)
        m->group_used[i] = 1;
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
static gr_err fill_rotation(gr_model *m, gr_staging *s, double (*of)(double angle), float *table) {
    int64_t width = gr_model_rotated(m), half = width / 2;
    size_t n_byte = (size_t)(m->T * half) * sizeof *table;
    void *room;
    GR_TRY(gr_staging_room(s, table, n_byte, &room));
    float *to = room;
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(m->config.rope_theta, -2.0 * (double)i / (double)width);
        for (int64_t t = 0; t < m->T; t++)
            to[t * half + i] = (float)of((double)t * frequency);
    }
    return gr_staging_store(s, table, n_byte);
}

static gr_err fill_iota(gr_model *m, gr_staging *s) {
    size_t n_byte = (size_t)(m->N + 1) * sizeof *m->iota;
    void *room;
    GR_TRY(gr_staging_room(s, m->iota, n_byte, &room));
    uint32_t *to = room;
    for (int64_t i = 0; i <= m->N; i++)
        to[i] = (uint32_t)i;
    return gr_staging_store(s, m->iota, n_byte);
}

static gr_err fill_tables(gr_model *m) {
    gr_staging s = {.backend = m->backend};
    gr_err e = fill_iota(m, &s);
    if (!e && gr_model_rotated(m) > 0)
        e = fill_rotation(m, &s, cos, m->cosine);
    if (!e && gr_model_rotated(m) > 0)
        e = fill_rotation(m, &s, sin, m->sine);
    gr_staging_close(&s);
    return e;
}

/* How many slots the activations kept for backward take. */
static void count_slots(gr_model *m, const gr_model_options *o) {
    int L = o->config->num_hidden_layers;
    bool keep = o->train && o->trained == GR_TRAINED_ALL, linear = is_linear_body(o->config);
    int blocks = linear ? 0 : L;
    m->n_attention = keep && o->recompute != GR_RECOMPUTE_BLOCK ? blocks : blocks > 0;
    m->n_ffn = keep && o->recompute == GR_RECOMPUTE_NONE ? blocks : blocks > 0;
    m->n_linear = linear ? (keep ? L : L > 0) : 0;
    m->n_x = keep ? L + 1 : 2;
    if (gr_model_routers(o->config))
        m->n_router = o->train ? L : 1;
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
    m->trained = o->trained;
    m->shared_weights = o->shared_weights;
    GR_ASSERT(!m->shared_weights || m->backend->dtype != GR_F32, "weights stored as fp32 are read whole");
    m->stream_width = m->D;
    if (is_linear_body(o->config) && o->config->intermediate_size > m->D)
        m->stream_width = o->config->intermediate_size;
    count_slots(m, o);
    GR_TRY(find_params(m, o));
    GR_TRY(gr_alloc((void **)&m->attention, (size_t)m->n_attention, sizeof *m->attention, "activation table"));
    GR_TRY(gr_alloc((void **)&m->ffn, (size_t)m->n_ffn, sizeof *m->ffn, "activation table"));
    GR_TRY(gr_alloc((void **)&m->linear, (size_t)m->n_linear, sizeof *m->linear, "activation table"));
    if (m->n_router)
        GR_TRY(gr_alloc((void **)&m->router, (size_t)m->n_router, sizeof *m->router, "activation table"));
    return gr_alloc((void **)&m->x, (size_t)m->n_x, sizeof *m->x, "activation table");
}

static gr_err measure_model(gr_model *m, const gr_model_options *o) {
    size_t n_byte;
    GR_TRY(describe(m, o));
    GR_TRY(measure(m, gr_model_layout_run, "weights and gradients", &n_byte));
    GR_TRY(measure(m, gr_model_layout_plans, "plans", &n_byte));
    GR_TRY(measure(m, gr_model_layout_step, "activations", &n_byte));
    m->memory.plans += gr_model_parcel_largest(m);
    m->memory.attention = gr_model_attention_scratch(m);
    return GR_OK;
}

static gr_err open_model(gr_model *m, const gr_model_options *o) {
    GR_TRY(describe(m, o));
    GR_TRY(place(m, gr_model_layout_run, "weights and gradients", &m->run_memory));
    GR_TRY(place(m, gr_model_layout_step, "activations", &m->step_memory));
    GR_TRY(place_plans(m));
    GR_TRY(gr_model_parcels_open(m));
    m->memory.plans += gr_model_parcel_largest(m);
    m->memory.attention = gr_model_attention_scratch(m);
    void *sums;
    GR_TRY(o->backend->alloc_host(o->backend, N_SUM * sizeof *m->sums_read, "losses", &sums));
    m->sums_read = sums;
    return fill_tables(m);
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

/* More than is needed now by an eighth: plans that grow slowly must not come back every time. */
static void raise_limit(uint64_t need, uint64_t worst, uint64_t *limit) {
    if (need > *limit)
        *limit = need + need / 8 < worst ? need + need / 8 : worst;
}

gr_err gr_model_make_room(gr_model *m, const gr_plan *plan) {
    gr_plan_limits *l = &m->limits;
    if (!plan || (plan->n_send <= l->send_max && plan->n_recv <= l->recv_max && plan->n_pair <= l->pair_max))
        return GR_OK;
    const gr_plan_limits before = *l, worst = gr_plan_limits_worst(l->N, l->K, m->params.map);
    raise_limit(plan->n_send, worst.send_max, &l->send_max);
    raise_limit(plan->n_recv, worst.recv_max, &l->recv_max);
    raise_limit(plan->n_pair, worst.pair_max, &l->pair_max);
    gr_info("buffers grow: rows sent %llu -> %llu, received %llu -> %llu, pairs %llu -> %llu",
        (unsigned long long)before.send_max, (unsigned long long)l->send_max, (unsigned long long)before.recv_max,
        (unsigned long long)l->recv_max, (unsigned long long)before.pair_max, (unsigned long long)l->pair_max);
    GR_TRY(m->backend->sync(m->backend));
    m->backend->release(m->backend, m->step_memory);
    m->step_memory = NULL;
    GR_TRY(place(m, gr_model_layout_step, "activations", &m->step_memory));
    return gr_model_parcels_open(m);
}

gr_model_memory gr_model_memory_get(const gr_model *m) {
    return m->memory;
}

void gr_model_close(gr_model *m) {
    if (!m)
        return;
    if (m->sums_read)
        m->backend->release_host(m->backend, m->sums_read);
    free(m->parcel_host);
    free(m->plan_memory);
    if (m->step_memory) /* a model that was only measured may be of a backend that is not here */
        m->backend->release(m->backend, m->step_memory);
    if (m->run_memory)
        m->backend->release(m->backend, m->run_memory);
    free(m->x);
    free(m->linear);
    free(m->router);
    free(m->ffn);
    free(m->attention);
    free(m->layer);
    gr_params_close(&m->params);
    free(m);
}

const gr_params *gr_model_params(const gr_model *m) {
    return &m->params;
}

gr_weights gr_model_masters(gr_model *m) {
    return m->weights;
}

float *gr_model_weights(gr_model *m) {
    return m->shared_weights ? NULL : m->weights.at[0];
}

void *gr_model_weights_act(gr_model *m) {
    return m->weights_act;
}

float *gr_model_vectors(gr_model *m) {
    return m->vectors;
}

gr_err gr_model_weights_changed(gr_model *m) {
    gr_backend *b = m->backend;
    if (!m->weights_act)
        return GR_OK;
    for (int part = 0; part < 2; part++) {
        gr_share s = m->weights.share[part];
        GR_TRY(b->round_weights(b, GR_LANE_COMPUTE, m->weights.at[part], act_at(m, m->weights_act, s.first), s.n));
    }
    GR_TRY(b->sync(b));
    return m->vectors ? gr_weights_gather(&m->params, m->comm, &m->weights, m->weights_act, b->dtype, m->vectors)
                      : GR_OK;
}

float *gr_model_gradients(gr_model *m) {
    return m->gradients;
}

gr_err gr_model_zero_gradients(gr_model *m) {
    gr_backend *b = m->backend;
    size_t n_load = (size_t)gr_model_routers(&m->config) * (size_t)m->config.num_experts;
    GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, m->sums, N_SUM * sizeof *m->sums));
    if (n_load)
        GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, m->load, n_load * sizeof *m->load));
    return b->fill_zero(b, GR_LANE_COMPUTE, m->gradients, (size_t)m->params.n_element * sizeof *m->gradients);
}

gr_err gr_model_sums_get(gr_model *m, gr_model_sums *sums, uint64_t *load) {
    gr_backend *b = m->backend;
    const double *read = m->sums_read;
    GR_TRY(b->download(b, GR_LANE_COMPUTE, m->sums_read, m->sums, N_SUM * sizeof *m->sums));
    if (load)
        GR_TRY(gr_model_load_get(m, load));
    GR_TRY(b->sync(b));
    *sums = (gr_model_sums){.loss = read[SUM_LOSS], .aux_loss = read[SUM_ROUTERS], .z_loss = read[SUM_ROUTERS + 1]};
    return GR_OK;
}

gr_err gr_model_sums_copy(gr_model *m, double *to) {
    return m->backend->copy(m->backend, GR_LANE_COMPUTE, to, m->sums, N_SUM * sizeof *to);
}

gr_err gr_model_load_get(gr_model *m, uint64_t *load) {
    size_t n_load = (size_t)gr_model_routers(&m->config) * (size_t)m->config.num_experts;
    return n_load ? m->backend->download(m->backend, GR_LANE_COMPUTE, load, m->load, n_load * sizeof *load) : GR_OK;
}

double *gr_model_loss_sum(gr_model *m) {
    return m->sums + SUM_LOSS;
}

/* ---------------------------------------------------------------- one micro-batch */

/* What comes after the attention half. */
static gr_err second_half_forward(gr_model *m, int l) {
    if (!is_cut(&m->config, l))
        return gr_model_ffn_forward(m, l);
    gr_norm norm = gr_model_middle_norm(m, l);
    GR_TRY(m->backend->norm_forward(m->backend, GR_LANE_COMPUTE, &norm));
    return gr_model_gate_logits(m, l, m->scores);
}

gr_err gr_model_layers_forward(gr_model *m, const gr_batch *b, double loss_scale) {
    GR_TRY(gr_model_batch_send(m, b, loss_scale));
    GR_TRY(gr_model_part_need(m, 0));
    GR_TRY(gr_model_embed_forward(m));
    for (int l = 0; l < m->config.num_hidden_layers; l++) {
        GR_TRY(gr_model_part_need(m, 1 + l));
        if (m->n_linear) {
            GR_TRY(gr_model_linear_forward(m, l));
            continue;
        }
        GR_TRY(gr_model_attention_forward(m, l));
        GR_TRY(second_half_forward(m, l));
    }
    return GR_OK;
}

/* Fills the shared slots with layer l's activations, by forward's ops on forward's inputs: the same bits. The last
 * layer's are still there. */
static gr_err recompute(gr_model *m, int l) {
    if (l == m->config.num_hidden_layers - 1 || m->n_linear)
        return GR_OK;
    if (m->n_attention == 1)
        GR_TRY(gr_model_attention_forward(m, l));
    return m->n_ffn == 1 ? gr_model_ffn_recompute(m, l) : GR_OK;
}

gr_err gr_model_layers_backward(gr_model *m) {
    for (int l = m->config.num_hidden_layers - 1; l >= 0; l--) {
        if (m->n_linear) {
            GR_TRY(gr_model_linear_backward(m, l));
            continue;
        }
        GR_TRY(recompute(m, l));
        GR_TRY(gr_model_ffn_backward(m, l));
        GR_TRY(gr_model_attention_backward(m, l));
        GR_TRY(gr_model_part_done(m, 1 + l));
    }
    GR_TRY(gr_model_embed_backward(m));
    return gr_model_part_done(m, 0);
}

static double since_ms(double start_s) {
    return 1e3 * (gr_time_s() - start_s);
}

gr_err gr_model_step(gr_model *m, const gr_batch *b, float loss_scale, double *loss_sum, gr_phases *phases) {
    GR_ASSERT(m->train, "model opened without training");
    double start_s = gr_time_s();
    GR_TRY(gr_model_layers_forward(m, b, (double)loss_scale));
    double forward_exchange_ms = m->moe.exchange_ms;
    phases->forward_ms += since_ms(start_s) - forward_exchange_ms;

    start_s = gr_time_s();
    GR_TRY(gr_model_head_backward(m, loss_scale, loss_sum));
    GR_TRY(gr_model_part_done(m, 1 + m->config.num_hidden_layers));
    GR_TRY(gr_model_layers_backward(m));
    phases->backward_ms += since_ms(start_s) - (m->moe.exchange_ms - forward_exchange_ms);
    phases->exchange_ms += m->moe.exchange_ms;
    return GR_OK;
}

gr_err gr_model_token_losses(gr_model *m, const gr_batch *b, double *loss_sum, double *token_loss, gr_phases *phases) {
    double start_s = gr_time_s();
    GR_TRY(gr_model_layers_forward(m, b, 0));
    GR_TRY(gr_model_head_forward(m, loss_sum, token_loss));
    phases->forward_ms += since_ms(start_s) - m->moe.exchange_ms;
    phases->exchange_ms += m->moe.exchange_ms;
    return GR_OK;
}

gr_err gr_model_loss(gr_model *m, const gr_batch *b, double *loss_sum, gr_phases *phases) {
    return gr_model_token_losses(m, b, loss_sum, NULL, phases);
}
