#include "model_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/optim.h"
#include "model_windows.h"

const gr_model_config model_case_config = {
    .vocab_size = 61,
    .hidden_size = 24,
    .num_hidden_layers = 3,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .intermediate_size = 20,
    .moe_intermediate_size = 10,
    .num_experts = 8,
    .num_experts_per_tok = 3,
    .shared_expert_intermediate_size = 6,
    .first_k_dense_replace = 1,
    .rms_norm_eps = 1e-5,
    .rope_theta = 1000,
    .initializer_range = 0.2,
    .use_qk_norm = true,
};

#define MUST(expr)                                                                                                     \
    do {                                                                                                               \
        if (expr) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, gr_error_text());                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static void *take(size_t n, size_t size) {
    void *p;
    MUST(gr_alloc(&p, n, size, "test"));
    return p;
}

/* What a rank needs to run micro-batches of windows. */
typedef struct runner {
    gr_backend *backend;
    gr_comm *comm;
    const model_case_options *o;
    gr_expert_map map;
    gr_plan_limits limits;
    gr_plan plan;
    gr_plan_builder *builder;
    void *memory;
    float *pair_gate;
    gr_model *model;
} runner;

static void runner_open(runner *r, gr_backend *backend, gr_comm *comm, const model_case_options *o) {
    uint64_t N = (uint64_t)o->n_window * (uint64_t)o->T, K = (uint64_t)o->config->num_experts_per_tok;
    uint64_t R = (uint64_t)comm->size[GR_EP];
    *r = (runner){.backend = backend, .comm = comm, .o = o};
    MUST(gr_expert_map_open(&r->map, (uint32_t)o->config->num_experts, (uint32_t)R));
    r->limits = gr_plan_limits_worst((uint32_t)N, (uint32_t)K, &r->map);
    gr_arena arena = {0};
    gr_plan_layout(&arena, &r->limits, &r->map, &r->plan, &r->builder);
    r->memory = aligned_alloc(GR_ALIGN, arena.peak);
    arena = (gr_arena){.base = r->memory, .size = arena.peak};
    gr_plan_layout(&arena, &r->limits, &r->map, &r->plan, &r->builder);
    r->pair_gate = take(r->limits.pair_max, sizeof *r->pair_gate);
    MUST(gr_model_open(&r->model, &(gr_model_options){.config = o->config,
                                      .backend = backend,
                                      .comm = comm,
                                      .map = &r->map,
                                      .limits = &r->limits,
                                      .T = o->T,
                                      .train = true,
                                      .recompute = o->recompute,
                                      .shared_weights = o->zero == GR_ZERO_1 && backend->dtype != GR_F32}));
    const gr_params *p = gr_model_params(r->model);
    MUST(gr_params_init(p, 3, gr_model_masters(r->model)));
    for (int i = 0; i < p->n; i++)
        if (o->zero_routers && p->list[i].kind == GR_PARAM_ROUTER)
            MUST(backend->fill_zero(backend, GR_LANE_COMPUTE, gr_model_weights(r->model) + p->list[i].offset,
                (size_t)gr_param_size(&p->list[i]) * sizeof(float)));
    MUST(gr_model_weights_changed(r->model));
}

static void runner_close(runner *r) {
    gr_model_close(r->model);
    gr_expert_map_close(&r->map);
    free(r->pair_gate);
    free(r->memory);
}

/* Part `micro * R + rank` of the windows, with the plan of its group. */
static gr_batch runner_batch(runner *r, const windows *w, int micro) {
    size_t N = r->limits.N, K = r->limits.K, R = (size_t)r->comm->size[GR_WORLD];
    size_t own = (size_t)micro * R + (size_t)r->comm->rank[GR_WORLD], first = own - (size_t)r->comm->rank[GR_EP];
    const uint16_t *ids = w->ids + first * N * K;
    const float *gates = w->gates + first * N * K;
    MUST(gr_plan_build(&r->plan, r->builder, &r->limits, &r->map, (uint32_t)r->comm->rank[GR_EP], ids, gates));
    gr_plan_gates(&r->plan, gates, r->pair_gate);
    bool learned = r->o->config->routing.source == GR_SOURCE_LEARNED;
    return (gr_batch){.token = w->token + own * N,
        .target = w->target + own * N,
        .plan = learned ? NULL : &r->plan,
        .pair_gate = learned ? NULL : r->pair_gate,
        .ids = learned ? NULL : w->ids + own * N * K};
}

/* Accumulates its gradients. */
static void runner_step(runner *r, const windows *w, int micro, double *loss) {
    gr_batch batch = runner_batch(r, w, micro);
    gr_phases phases = {0};
    MUST(gr_model_step(r->model, &batch, 1.0f / (float)w->n, loss, &phases));
}

/* A host copy of memory of the runner's backend; NULL of NULL. */
static void *copy_of(runner *r, const void *from, int64_t n, size_t size) {
    if (!from)
        return NULL;
    void *to = take((size_t)n, size);
    MUST(r->backend->download(r->backend, GR_LANE_COMPUTE, to, from, (size_t)n * size));
    MUST(r->backend->sync(r->backend));
    return to;
}

/* Those of all owners. */
static float *whole_weights(runner *r) {
    const gr_params *p = gr_model_params(r->model);
    gr_weights own = gr_model_masters(r->model);
    float *whole = take((size_t)p->n_element, sizeof *whole);
    for (int part = 0; part < 2; part++) {
        float *values = copy_of(r, own.at[part], own.share[part].n, sizeof *values);
        if (values)
            memcpy(whole + own.share[part].first, values, (size_t)own.share[part].n * sizeof *whole);
        free(values);
    }
    if (!gr_model_weights(r->model)) {
        MUST(r->comm->all_gather(r->comm, GR_WORLD, GR_F32, whole, (size_t)own.share[0].n));
        MUST(r->comm->all_gather(r->comm, GR_EDP, GR_F32, whole + p->n_dense, (size_t)own.share[1].n));
    }
    return whole;
}

/* What the ops read is the rounding of the weights, all of them, whoever updated them; of vectors their very bits. */
static void check_rounded_weights(runner *r, const float *w) {
    const gr_params *p = gr_model_params(r->model);
    uint16_t *act = copy_of(r, gr_model_weights_act(r->model), p->n_element, sizeof *act);
    float *vectors = copy_of(r, gr_model_vectors(r->model), p->n_vector, sizeof *vectors);
    for (int i = 0; vectors && i < p->n; i++) {
        const gr_param *v = &p->list[i];
        if (v->n_dim == 1 && memcmp(vectors + v->vector, w + v->offset, (size_t)v->dim[0] * sizeof *w)) {
            fprintf(stderr, "%s: expected the bits of its owners\n", v->name);
            exit(1);
        }
    }
    for (int64_t i = 0; act && i < p->n_element; i++)
        if (act[i] != gr_bf16_from_f32(w[i])) {
            fprintf(stderr, "weight %lld: expected the rounding of %a, got %a\n", (long long)i, (double)w[i],
                (double)gr_f32_from_bf16(act[i]));
            exit(1);
        }
    free(vectors);
    free(act);
}

static void state_from(runner *r, model_case_state *out) {
    *out = (model_case_state){0};
    int64_t n = gr_model_params(r->model)->n_element;
    out->weights = whole_weights(r);
    check_rounded_weights(r, out->weights);
    out->gradients = copy_of(r, gr_model_gradients(r->model), n, sizeof *out->gradients);
    MUST(gr_expert_map_open(&out->map, r->map.E, r->map.n_rank));
    MUST(gr_params_open(&out->params, r->o->config, &out->map, (uint32_t)r->comm->rank[GR_EP], r->comm->size[GR_WORLD],
        r->comm->size[GR_EDP]));
}

void model_case_state_close(model_case_state *s) {
    gr_params_close(&s->params);
    gr_expert_map_close(&s->map);
    free(s->gradients);
    free(s->weights);
}

static gr_optimizer_options optimizer_options(const runner *r, int steps) {
    return (gr_optimizer_options){.backend = r->backend,
        .comm = r->comm,
        .params = gr_model_params(r->model),
        .weights_act = gr_model_weights_act(r->model),
        .vectors = gr_model_vectors(r->model),
        .zero = r->o->zero,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .clip = 0.5,
        .lr = {.schedule = GR_SCHEDULE_COSINE, .lr = 1e-3, .lr_min = 1e-4, .warmup_steps = 4, .decay_steps = steps}};
}

typedef struct exchanger {
    runner *r;
    gr_optimizer *optimizer;
} exchanger;

static gr_err reduce_part(void *of, gr_share part) {
    exchanger *to = of;
    return gr_optimizer_reduce_part(to->optimizer, gr_model_gradients(to->r->model), part);
}

static gr_err gather_part(void *of, gr_share part) {
    exchanger *to = of;
    return gr_optimizer_gather_part(to->optimizer, gr_model_masters(to->r->model), part);
}

/* As gr_optimizer_step, but that the weights come in the next forward. */
static void update_beside(exchanger *to, int step, double loss, gr_update *update) {
    gr_backend *b = to->r->backend;
    gr_model *m = to->r->model;
    const double mine[GR_LOSSES] = {to->r->comm->rank[GR_WORLD] == 0 ? loss : 0};
    MUST(b->upload(b, GR_LANE_COMPUTE, gr_optimizer_losses(to->optimizer), mine, sizeof mine));
    MUST(gr_optimizer_reduce(to->optimizer, gr_model_gradients(m)));
    MUST(gr_optimizer_apply(to->optimizer, step, gr_model_masters(m), gr_model_gradients(m)));
    MUST(gr_optimizer_gather_vectors(to->optimizer, gr_model_masters(m)));
    MUST(gr_model_weights_await(m, gather_part, to));
    MUST(gr_optimizer_finish(to->optimizer, 1, update));
}

void model_case_train(
    gr_backend *backend, gr_comm *comm, const model_case_options *o, int n_part, int steps, model_case_state *out) {
    runner r;
    runner_open(&r, backend, comm, o);
    gr_optimizer_options options = optimizer_options(&r, steps);
    gr_optimizer *optimizer;
    MUST(gr_optimizer_open(&optimizer, &options));
    exchanger to = {.r = &r, .optimizer = optimizer};
    for (int step = 0; step < steps; step++) {
        windows w = windows_make(o, n_part, step);
        double loss = 0;
        MUST(gr_model_zero_gradients(r.model));
        for (int micro = 0, n = n_part / comm->size[GR_WORLD]; micro < n; micro++) {
            gr_model_gradients_watch(r.model, o->beside && micro + 1 == n ? reduce_part : NULL, &to);
            runner_step(&r, &w, micro, &loss);
        }
        MUST(comm->sum(comm, GR_WORLD, GR_F64, &loss, 1));
        gr_update update;
        loss = step + 1 == o->bad_step ? (double)NAN : loss / (double)w.n;
        if (o->beside)
            update_beside(&to, step, loss, &update);
        else
            MUST(gr_optimizer_step(
                optimizer, step, loss, gr_model_masters(r.model), gr_model_gradients(r.model), &update));
        windows_free(&w);
    }
    MUST(gr_model_weights_settle(r.model));
    state_from(&r, out);
    out->counts = gr_optimizer_counts_get(optimizer);
    gr_optimizer_close(optimizer);
    runner_close(&r);
}

/* What the comm has counted since `before`, which is set to now. */
static void counted_since(const gr_comm *comm, uint64_t before[GR_N_TRAFFIC], uint64_t out[GR_N_TRAFFIC]) {
    for (int t = 0; t < GR_N_TRAFFIC; t++) {
        out[t] = comm->sent[t] - before[t];
        before[t] = comm->sent[t];
    }
}

model_case_bytes model_case_count_bytes(gr_backend *backend, gr_comm *comm, const model_case_options *o) {
    runner r;
    model_case_bytes out;
    runner_open(&r, backend, comm, o);
    gr_optimizer_options options = optimizer_options(&r, 1);
    gr_optimizer *optimizer;
    MUST(gr_optimizer_open(&optimizer, &options));
    windows w = windows_make(o, comm->size[GR_WORLD], 0);
    gr_batch batch = runner_batch(&r, &w, 0);
    gr_phases phases = {0};
    gr_update update;
    double loss = 0;
    uint64_t before[GR_N_TRAFFIC];
    MUST(gr_model_zero_gradients(r.model));
    memcpy(before, comm->sent, sizeof before);
    MUST(gr_model_loss(r.model, &batch, &loss, &phases));
    counted_since(comm, before, out.forward);
    MUST(gr_model_step(r.model, &batch, 1.0f / (float)w.n, &loss, &phases));
    counted_since(comm, before, out.micro);
    MUST(gr_optimizer_step(optimizer, 0, 1, gr_model_masters(r.model), gr_model_gradients(r.model), &update));
    counted_since(comm, before, out.update);
    out.n_send = r.plan.n_send;
    out.n_recv = r.plan.n_recv;
    out.forecast = gr_optimizer_traffic_get(&options, gr_model_vectors(r.model) != NULL);
    windows_free(&w);
    gr_optimizer_close(optimizer);
    runner_close(&r);
    return out;
}

void model_case_losses(
    gr_backend *backend, gr_comm *comm, const model_case_options *o, double *token_loss, double *loss_sum) {
    runner r;
    gr_phases phases = {0};
    runner_open(&r, backend, comm, o);
    windows w = windows_make(o, comm->size[GR_WORLD], 0);
    gr_batch batch = runner_batch(&r, &w, 0);
    *loss_sum = 0;
    MUST(gr_model_token_losses(r.model, &batch, loss_sum, token_loss, &phases));
    windows_free(&w);
    runner_close(&r);
}

/* Step `step` as the trainer makes it. */
static void trainer_step(runner *r, gr_optimizer *optimizer, int step) {
    const int n_part = 2 * r->comm->size[GR_WORLD];
    gr_phases phases = {0};
    gr_update update;
    float *gradients = gr_model_gradients(r->model);
    windows w = windows_make(r->o, n_part, step);
    MUST(gr_model_zero_gradients(r->model));
    for (int micro = 0; micro < 2; micro++) {
        gr_batch batch = runner_batch(r, &w, micro);
        MUST(gr_model_step(r->model, &batch, 1.0f / (float)w.n, NULL, &phases));
    }
    MUST(gr_model_sums_copy(r->model, gr_optimizer_losses(optimizer)));
    MUST(gr_optimizer_reduce(optimizer, gradients));
    MUST(gr_optimizer_apply(optimizer, step, gr_model_masters(r->model), gradients));
    MUST(gr_optimizer_gather(optimizer, gr_model_masters(r->model)));
    MUST(gr_optimizer_finish(optimizer, (double)w.n, &update));
    GR_ASSERT(update.loss[0] > 0 && update.loss[0] < 100, "loss %g", update.loss[0]);
    GR_ASSERT(!update.skipped && update.grad_norm > 0, "norm %g", update.grad_norm);
    windows_free(&w);
}

model_case_waits model_case_count_waits(gr_backend *backend, gr_comm *comm, const model_case_options *o) {
    runner r;
    runner_open(&r, backend, comm, o);
    gr_optimizer_options options = optimizer_options(&r, 2);
    gr_optimizer *optimizer;
    MUST(gr_optimizer_open(&optimizer, &options));
    trainer_step(&r, optimizer, 0);
    model_case_waits before = {backend->n_download, backend->n_sync};
    trainer_step(&r, optimizer, 1);
    model_case_waits out = {backend->n_download - before.n_download, backend->n_sync - before.n_sync};
    gr_optimizer_close(optimizer);
    runner_close(&r);
    return out;
}

bool model_case_same_bits(const model_case_state *a, const model_case_state *b) {
    size_t n = (size_t)a->params.n_element * sizeof(float);
    return memcmp(a->weights, b->weights, n) == 0 && memcmp(a->gradients, b->gradients, n) == 0;
}

bool model_case_recompute_is_exact(gr_backend *backend, gr_comm *comm, const model_case_options *o, int n_part) {
    static const gr_recompute other[] = {GR_RECOMPUTE_EXPERTS, GR_RECOMPUTE_BLOCK};
    model_case_options changed = *o;
    model_case_state kept, again;
    changed.recompute = GR_RECOMPUTE_NONE;
    model_case_train(backend, comm, &changed, n_part, 2, &kept);
    bool exact = true;
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        changed.recompute = other[i];
        model_case_train(backend, comm, &changed, n_part, 2, &again);
        exact &= model_case_same_bits(&kept, &again);
        model_case_state_close(&again);
    }
    model_case_state_close(&kept);
    return exact;
}

/* Losses of all ranks against the reference's, and every layer's loads: K of each token. */
static void compare_routers(runner *r, const windows *w, const double expected[2], model_case_result *out) {
    const gr_model_config *c = r->o->config;
    size_t n_router = (size_t)gr_model_routers(c), E = (size_t)c->num_experts;
    if (!n_router)
        return;
    gr_model_sums sums;
    uint64_t *load = take(n_router * E, sizeof *load);
    MUST(gr_model_sums_get(r->model, &sums, load));
    double loss[2] = {sums.aux_loss, sums.z_loss};
    MUST(r->comm->sum(r->comm, GR_WORLD, GR_F64, loss, 2));
    MUST(r->comm->sum(r->comm, GR_WORLD, GR_U64, load, n_router * E));
    for (int i = 0; i < 2; i++)
        if (expected[i] != 0 || loss[i] != 0)
            out->router_error = fmax(out->router_error, fabs(loss[i] * (double)w->n / expected[i] - 1));
    for (size_t l = 0; l < n_router; l++) {
        uint64_t all = 0;
        for (size_t e = 0; e < E; e++) {
            all += load[l * E + e];
            out->load_wrong |= load[l * E + e] > (uint64_t)w->n;
        }
        out->load_wrong |= all != (uint64_t)(w->n * c->num_experts_per_tok);
    }
    free(load);
}

static void compare(const gr_params *params, const float *ours, const double *theirs, model_case_result *r) {
    for (int i = 0; i < params->n; i++) {
        const gr_param *p = &params->list[i];
        double difference = 0, norm = 0;
        for (uint32_t e = 0; e < p->n_matrix; e++)
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t k = p->offset + (int64_t)e * p->stride + j;
                difference += (ours[k] - theirs[k]) * (ours[k] - theirs[k]);
                norm += theirs[k] * theirs[k];
            }
        double error = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
        if (!(error <= r->gradient_error)) {
            r->gradient_error = error;
            snprintf(r->worst, sizeof r->worst, "%s", p->name);
        }
    }
}

double model_case_difference(const model_case_options *o, const model_case_state *part, const float *part_flat,
    const float *whole_flat, char *worst) {
    ref_model ref;
    ref_model_open(&ref, o->config);
    double *whole = ref_alloc(ref.params.n_element), *share = ref_alloc(part->params.n_element);
    for (int64_t i = 0; i < ref.params.n_element; i++)
        whole[i] = whole_flat[i];
    ref_model_share(&ref, whole, &part->params, share);
    model_case_result r = {0};
    compare(&part->params, part_flat, share, &r);
    snprintf(worst, sizeof r.worst, "%s", r.worst);
    free(share);
    free(whole);
    ref_model_close(&ref);
    return r.gradient_error;
}

model_case_result model_case_run(gr_backend *backend, gr_comm *comm, const model_case_options *o) {
    model_case_result r = {0};
    windows w = windows_make(o, comm->size[GR_WORLD], 0);
    double loss = 0;
    runner run;
    runner_open(&run, backend, comm, o);
    MUST(gr_model_zero_gradients(run.model));
    runner_step(&run, &w, 0, &loss);
    MUST(gr_gradients_reduce(gr_model_params(run.model), comm, gr_model_gradients(run.model)));
    MUST(comm->sum(comm, GR_WORLD, GR_F64, &loss, 1));
    model_case_state ours;
    state_from(&run, &ours);

    ref_model ref;
    ref_model_open(&ref, o->config);
    double *weights = ref_alloc(ref.params.n_element), *gradient = ref_alloc(ref.params.n_element);
    ref_model_init(&ref, 3, weights);
    for (int i = 0; i < ref.params.n; i++) {
        const gr_param *p = &ref.params.list[i];
        for (int64_t k = 0; o->zero_routers && p->kind == GR_PARAM_ROUTER && k < gr_param_size(p); k++)
            weights[p->offset + k] = 0;
    }
    double router_loss[2] = {0, 0};
    ref_batch batch = {.n_window = w.n / o->T,
        .T = o->T,
        .token = w.token,
        .target = w.target,
        .ids = w.ids,
        .gates = w.gates,
        .router_loss = router_loss};
    double expected = ref_model_loss(&ref, weights, &batch, 1.0 / (double)w.n, gradient);
    double *share = ref_alloc(ours.params.n_element);
    ref_model_share(&ref, gradient, &ours.params, share);
    r.loss_error = fabs(loss - expected) / fabs(expected);
    compare(&ours.params, ours.gradients, share, &r);
    compare_routers(&run, &w, router_loss, &r);

    free(share), free(gradient), free(weights);
    ref_model_close(&ref);
    model_case_state_close(&ours);
    runner_close(&run);
    windows_free(&w);
    return r;
}
