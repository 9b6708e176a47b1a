/* Memory of a model: two arenas, each laid out by one function that runs twice (measure, place). The step's holds
 * nothing between two micro-batches, so it may be placed anew there. */
#include "internal.h"

static void *take_act(const gr_model *m, gr_arena *arena, int64_t n) {
    return gr_arena_take(arena, (size_t)n, m->backend->elem_size);
}

/* Bytes taken since *mark, which moves on to here. */
static size_t taken(const gr_arena *arena, size_t *mark) {
    size_t n_byte = arena->used - *mark;
    *mark = arena->used;
    return n_byte;
}

void gr_model_layout_run(gr_model *m, gr_arena *arena) {
    size_t mark = arena->used;
    gr_weights shared = gr_weights_shared(&m->params, m->comm, NULL);
    int64_t n_weight = m->shared_weights ? shared.share[0].n + shared.share[1].n : m->params.n_element;
    float *weights = GR_TAKE(arena, n_weight, float);
    m->weights =
        m->shared_weights ? gr_weights_shared(&m->params, m->comm, weights) : gr_weights_whole(&m->params, weights);
    m->weights.backend = m->backend;
    m->memory.weights = taken(arena, &mark);
    m->weights_act = take_act(m, arena, m->backend->dtype == GR_F32 ? 0 : m->params.n_element);
    m->memory.weights_act = taken(arena, &mark);
    m->vectors = m->shared_weights ? GR_TAKE(arena, m->params.n_vector, float) : NULL;
    m->memory.vectors = taken(arena, &mark);
    m->gradients = m->train ? GR_TAKE(arena, m->params.n_element, float) : NULL;
    m->memory.gradients = taken(arena, &mark);
    int64_t n_angle = m->T * gr_model_rotated(m) / 2;
    m->cosine = GR_TAKE(arena, n_angle, float);
    m->sine = GR_TAKE(arena, n_angle, float);
    m->iota = GR_TAKE(arena, m->N + 1, uint32_t);
    m->sums = m->train ? GR_TAKE(arena, N_SUM, double) : NULL;
    if (m->train && gr_model_routers(&m->config))
        m->load = GR_TAKE(arena, (int64_t)gr_model_routers(&m->config) * m->config.num_experts, uint64_t);
    m->memory.tables = taken(arena, &mark);
}

static int64_t qkv_width(const gr_model_config *c) {
    return (int64_t)(c->num_attention_heads + 2 * c->num_key_value_heads) * c->head_dim;
}

/* Widest dense or shared FFN of any layer; 0 = none. */
static int64_t ffn_width_max(const gr_model *m) {
    int64_t widest = 0;
    for (int l = 0; l < m->config.num_hidden_layers; l++)
        widest = m->layer[l].ffn_width > widest ? m->layer[l].ffn_width : widest;
    return widest;
}

static void layout_attention(const gr_model *m, gr_arena *arena, attention_saved *s) {
    const gr_model_config *c = &m->config;
    int64_t N = m->N, heads = c->num_attention_heads, A = qkv_width(c);
    s->n1 = take_act(m, arena, N * m->D);
    s->rstd1 = GR_TAKE(arena, N, float);
    if (c->use_qk_norm) {
        s->qk_raw = take_act(m, arena, N * A);
        s->rstd_qk = GR_TAKE(arena, N * (heads + c->num_key_value_heads), float);
    }
    s->qkv = take_act(m, arena, N * A);
    s->o = take_act(m, arena, N * heads * c->head_dim);
    s->lse = GR_TAKE(arena, N * heads, float);
    s->mid = take_act(m, arena, N * m->D);
}

static void layout_ffn(const gr_model *m, gr_arena *arena, ffn_saved *s, bool moe, int64_t ffn_width) {
    int64_t recv = moe ? (int64_t)m->limits.recv_max : 0, pair = moe ? (int64_t)m->limits.pair_max : 0;
    s->rstd2 = GR_TAKE(arena, m->N, float);
    s->n2 = take_act(m, arena, (m->N + recv) * m->D);
    s->h = take_act(m, arena, pair * 2 * m->config.moe_intermediate_size);
    s->ffn_h = take_act(m, arena, m->N * 2 * ffn_width);
}

static void layout_linear(gr_model *m, gr_arena *arena) {
    for (int i = 0; i < m->n_linear; i++) {
        m->linear[i] = (linear_saved){.z = take_act(m, arena, m->N * m->stream_width),
            .mean = GR_TAKE(arena, m->N, float),
            .rstd = GR_TAKE(arena, m->N, float)};
    }
}

static bool is_divided(const gr_model_config *c) {
    return c->head == GR_HEAD_SCORES && (c->mask == GR_MASK_CAUSAL_DOC || c->mask == GR_MASK_BIDIRECTIONAL_DOC);
}

static bool is_learned(const gr_model *m) {
    return m->config.routing.source == GR_SOURCE_LEARNED && gr_model_routers(&m->config) > 0;
}

/* The parcel's memory is what has been taken since `before`. */
static void parcel_set(const gr_model *m, const gr_arena *arena, size_t before, gr_parcel *p) {
    *p = (gr_parcel){
        .backend = m->backend, .memory = arena->base ? arena->base + before : NULL, .size = arena->used - before};
}

static void layout_batch(const gr_model *m, gr_arena *arena, gr_parcel *p) {
    const gr_backend *b = m->backend;
    size_t before = arena->used, N = (size_t)m->N;
    gr_parcel_take(b, arena, N, sizeof(uint32_t)); /* tokens */
    gr_parcel_take(b, arena, N, sizeof(int32_t));  /* targets */
    for (int border = 0; border < 2 && is_divided(&m->config); border++)
        gr_parcel_take(b, arena, N, sizeof(uint32_t));
    if (m->config.head == GR_HEAD_TOKENS && !is_learned(m)) {
        gr_parcel_take(b, arena, N * m->limits.K, sizeof(uint16_t)); /* ids */
        gr_moe_plan_take(b, arena, &m->limits);
        gr_parcel_take(b, arena, m->limits.pair_max, sizeof(float)); /* gates */
    }
    parcel_set(m, arena, before, p);
}

static void layout_router(const gr_model *m, gr_arena *arena, router_saved *s) {
    int64_t N = m->N, E = m->config.num_experts, K = m->config.num_experts_per_tok;
    s->p = GR_TAKE(arena, N * E, float);
    s->lse = GR_TAKE(arena, N, float);
    s->ids = GR_TAKE(arena, N * K, uint16_t);
    s->gate = GR_TAKE(arena, (N + (int64_t)m->limits.recv_max) * K, float);
    s->pair_gate = GR_TAKE(arena, m->limits.pair_max, float);
    s->count = GR_TAKE(arena, N / m->T * E, uint32_t);
    size_t before = arena->used;
    if (is_learned(m))
        gr_moe_plan_take(m->backend, arena, &m->limits);
    parcel_set(m, arena, before, &s->parcel);
}

/* Of every layer with experts, or the one slot that they share. */
static bool has_router(const gr_model *m, int i) {
    return m->n_router == 1 ? gr_model_routers(&m->config) > 0 : m->layer[i].router != NONE;
}

void gr_model_layout_plans(gr_model *m, gr_arena *arena) {
    size_t mark = arena->used;
    bool learned = is_learned(m);
    size_t group = learned ? (size_t)m->limits.n_rank * m->limits.N * m->limits.K : 0;
    m->group_ids = GR_TAKE(arena, group, uint16_t);
    m->group_used = GR_TAKE(arena, group, float);
    for (int i = 0; learned && i < m->n_router; i++)
        if (has_router(m, i))
            gr_plan_layout(arena, &m->limits, m->params.map, &m->router[i].plan, &m->router[i].builder);
    m->document_first = is_divided(&m->config) ? GR_TAKE(arena, m->N, uint32_t) : NULL;
    m->document_end = is_divided(&m->config) ? GR_TAKE(arena, m->N, uint32_t) : NULL;
    m->memory.plans = taken(arena, &mark);
}

static void layout_saved(gr_model *m, gr_arena *arena) {
    const gr_model_config *c = &m->config;
    for (int i = 0; i < m->n_attention; i++)
        layout_attention(m, arena, &m->attention[i]);
    layout_linear(m, arena);
    for (int i = 0; i < m->n_router; i++)
        if (has_router(m, i))
            layout_router(m, arena, &m->router[i]);
    if (m->n_ffn == 1) { /* shared: room for every kind of layer */
        layout_ffn(m, arena, m->ffn, c->first_k_dense_replace < c->num_hidden_layers, ffn_width_max(m));
        return;
    }
    for (int l = 0; l < m->n_ffn; l++)
        layout_ffn(m, arena, &m->ffn[l], m->layer[l].expert13 != NONE, m->layer[l].ffn_width);
}

static void layout_router_scratch(gr_model *m, gr_arena *arena) {
    int64_t N = m->N, E = m->config.num_experts, K = m->config.num_experts_per_tok;
    m->gate_send = GR_TAKE(arena, (int64_t)m->limits.send_max * K, float);
    if (!m->train)
        return;
    m->dgate = GR_TAKE(arena, (N + (int64_t)m->limits.recv_max) * K, float);
    m->pair_dgate = GR_TAKE(arena, m->limits.pair_max, float);
    m->dlogits = take_act(m, arena, N * E);
}

static void layout_scratch(gr_model *m, gr_arena *arena) {
    const gr_model_config *c = &m->config;
    int64_t N = m->N, D = m->D, F = c->moe_intermediate_size, widest = ffn_width_max(m);
    int64_t send = (int64_t)m->limits.send_max, recv = (int64_t)m->limits.recv_max, pair = (int64_t)m->limits.pair_max;
    m->final = take_act(m, arena, m->final_norm.offset != NONE ? N * D : 0);
    m->rstd_final = GR_TAKE(arena, m->final_norm.offset != NONE ? N : 0, float);
    m->loss_sum = GR_TAKE(arena, 1, double);
    m->token_loss = m->backend->host_memory ? NULL : GR_TAKE(arena, N, double);
    m->ffn_a = take_act(m, arena, N * widest);
    m->ffn_y = take_act(m, arena, widest ? N * D : 0);
    m->send = take_act(m, arena, send * D);
    m->partial = take_act(m, arena, recv * D);
    m->pair_out = take_act(m, arena, pair * D);
    m->pair_a = take_act(m, arena, pair * F);
    if (!trains_body(m))
        return;
    m->ffn_da = take_act(m, arena, N * widest);
    m->pair_da = take_act(m, arena, pair * F);
    m->dres = take_act(m, arena, (N + recv) * m->stream_width);
    m->dn = take_act(m, arena, N * m->stream_width);
    m->dqkv = take_act(m, arena, N * qkv_width(c));
    m->d_o = take_act(m, arena, N * c->num_attention_heads * c->head_dim);
}

void gr_model_layout_step(gr_model *m, gr_arena *arena) {
    size_t mark = arena->used;
    int64_t V = m->config.vocab_size;
    for (int i = 0; i < m->n_x; i++)
        m->x[i] = take_act(m, arena, m->N * m->stream_width);
    layout_saved(m, arena);
    m->memory.activations = taken(arena, &mark);
    if (m->config.head == GR_HEAD_SCORES)
        m->scores = GR_TAKE(arena, m->N * m->config.num_labels, float);
    else if (m->config.head == GR_HEAD_ROUTER)
        m->scores = GR_TAKE(arena, m->N * m->config.num_experts, float);
    else
        m->logits = take_act(m, arena, gr_logits_chunk(m->backend, m->N, V) * V);
    m->memory.logits = taken(arena, &mark);
    for (int i = 0; i < 2; i++)
        layout_batch(m, arena, &m->parcel[i]);
    layout_scratch(m, arena);
    if (gr_model_routers(&m->config))
        layout_router_scratch(m, arena);
    m->memory.scratch = taken(arena, &mark);
}
