/* The router of a MoE layer: logits = n2 Wr^T choose the experts of a token (or the route table has), and their softmax
 * is its gates. With chosen experts the layer's plan is built here, from the choices of the whole expert-parallel
 * group: the one exchange and the one wait for the device that fixed routes do without. */
#include "internal.h"

static gr_router_op router_args(gr_model *m, int l) {
    const gr_model_config *c = &m->config;
    const gr_routing *r = &c->routing;
    router_saved *s = router_of(m, l);
    return (gr_router_op){.choice = r->source == GR_SOURCE_LEARNED ? GR_CHOICE_TOP_K : GR_CHOICE_GIVEN,
        .normalise = c->norm_topk_prob,
        .n = m->N,
        .T = m->T,
        .E = c->num_experts,
        .K = c->num_experts_per_tok,
        .scale = (float)r->scale,
        /* coef E/(K T^2) / windows of the global batch, and loss_scale is 1 / (windows * T) */
        .aux_scale =
            r->aux_loss_coef * c->num_experts / ((double)c->num_experts_per_tok * (double)m->T) * m->loss_scale,
        .z_scale = r->z_loss_coef * m->loss_scale,
        .p = s->p,
        .lse = s->lse,
        .ids = s->ids,
        .gate = s->gate,
        .count = s->count};
}

gr_err gr_model_gate_logits(gr_model *m, int l, float *logits) {
    return m->backend->gemm(m->backend, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NT,
            .m = m->N,
            .n = m->config.num_experts,
            .k = m->D,
            .a = ffn_of(m, l)->n2,
            .lda = m->D,
            .b = weight_at(m, m->layer[l].router),
            .ldb = m->D,
            .c = logits,
            .ldc = m->config.num_experts,
            .c_dtype = GR_F32});
}

static gr_err make_plan(gr_model *m, int l) {
    gr_backend *b = m->backend;
    router_saved *s = router_of(m, l);
    uint32_t rank = (uint32_t)m->comm->rank[GR_EP];
    size_t n = (size_t)m->N * m->limits.K;
    GR_TRY(b->download(b, GR_LANE_COMPUTE, m->group_ids + rank * n, s->ids, n * sizeof *s->ids));
    GR_TRY(b->sync(b));
    double start_s = gr_time_s();
    m->comm->traffic = GR_TRAFFIC_ROUTES;
    GR_TRY(m->comm->all_gather(m->comm, GR_EP, GR_U16, m->group_ids, n));
    m->moe.exchange_ms += (gr_time_s() - start_s) * 1e3;
    GR_TRY(gr_plan_build(&s->plan, s->builder, &m->limits, m->params.map, rank, m->group_ids, m->group_used));
    return gr_model_plan_send(m, s);
}

void gr_model_gate_select(gr_model *m, int l) {
    if (m->layer[l].router == NONE)
        return;
    router_saved *s = router_of(m, l);
    bool learned = m->config.routing.source == GR_SOURCE_LEARNED;
    m->moe.plan = learned ? &s->plan : m->batch->plan;
    m->moe.device = learned ? s->device : m->now.plan;
    m->moe.pair_gate = s->pair_gate;
}

gr_err gr_model_gate_forward(gr_model *m, int l) {
    if (m->layer[l].router == NONE)
        return GR_OK;
    gr_backend *b = m->backend;
    router_saved *s = router_of(m, l);
    gr_router_op op = router_args(m, l);
    if (m->loss_scale > 0) {
        op.loss = m->sums + SUM_ROUTERS;
        op.load = m->load + (l - m->config.first_k_dense_replace) * op.E;
    }
    GR_TRY(gr_model_gate_logits(m, l, s->p));
    if (op.choice == GR_CHOICE_GIVEN)
        GR_TRY(b->copy(b, GR_LANE_COMPUTE, s->ids, m->now.ids, (size_t)(op.n * op.K) * sizeof *s->ids));
    GR_TRY(b->router_forward(b, GR_LANE_COMPUTE, &op));
    if (op.choice == GR_CHOICE_TOP_K)
        GR_TRY(make_plan(m, l));
    gr_model_gate_select(m, l);
    return gr_moe_gates_dispatch(&m->moe, s->gate, s->pair_gate);
}

/* dn += dlogits Wr, dWr += dlogits^T n2. */
gr_err gr_model_gate_backward(gr_model *m, int l) {
    if (m->layer[l].router == NONE)
        return GR_OK;
    gr_backend *b = m->backend;
    int64_t E = m->config.num_experts, D = m->D;
    GR_TRY(gr_moe_gates_combine(&m->moe, m->dgate));
    gr_router_op op = router_args(m, l);
    op.dgate = m->dgate;
    op.dlogits = m->dlogits;
    GR_TRY(b->router_backward(b, GR_LANE_COMPUTE, &op));
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NN,
            .write = GR_ACCUMULATE,
            .m = m->N,
            .n = D,
            .k = E,
            .a = m->dlogits,
            .lda = E,
            .b = weight_at(m, m->layer[l].router),
            .ldb = D,
            .c = m->dn,
            .ldc = D,
            .c_dtype = b->dtype}));
    return b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_TN,
            .write = GR_ACCUMULATE,
            .m = E,
            .n = D,
            .k = m->N,
            .a = m->dlogits,
            .lda = E,
            .b = ffn_of(m, l)->n2,
            .ldb = D,
            .c = gradient_at(m, m->layer[l].router),
            .ldc = D,
            .c_dtype = GR_F32});
}
