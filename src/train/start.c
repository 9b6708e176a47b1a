/* The start of a run: everything that can be wrong is found here, agreed by all ranks, before anything is created. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

static gr_err survey_feeds(gr_trainer *t) {
    gr_feed_options o = {.kind = GR_FEED_TRAIN,
        .config = t->config,
        .comm = t->comm,
        .map = &t->map,
        .placement = t->placed ? &t->placement : NULL,
        .start = {.step = t->found.state.step, .cursor = t->found.state.cursor}}; /* 0 without a checkpoint */
    GR_TRY(gr_feed_survey(&t->feed, &o));
    o = (gr_feed_options){.kind = GR_FEED_VALID, .config = t->config, .comm = t->comm, .map = &t->map, .like = t->feed};
    return t->config->data.n_valid ? gr_feed_survey(&t->valid, &o) : GR_OK;
}

gr_model_options gr_trainer_model_options(const gr_trainer *t, const gr_plan_limits *limits) {
    const gr_config *c = t->config;
    return (gr_model_options){.config = &c->model,
        .backend = t->backend,
        .comm = t->comm,
        .map = &t->map,
        .limits = limits,
        .T = t->config->data.seq_len,
        .train = true,
        .trained = gr_train_part(c),
        .recompute = t->config->train.recompute,
        .shared_weights = c->parallel.zero && t->backend->dtype != GR_F32};
}

static gr_err open_model(gr_trainer *t) {
    gr_plan_limits limits = *gr_feed_limits(t->feed);
    if (t->valid)
        limits = gr_plan_limits_max(&limits, gr_feed_limits(t->valid));
    gr_model_options o = gr_trainer_model_options(t, &limits);
    return gr_model_open(&t->model, &o);
}

/* A decay that follows train.steps keeps the length it had at the first start, so that more steps may be added. */
static int64_t decay_steps(const gr_trainer *t) {
    const gr_config *c = t->config;
    if (c->optimizer.decay_steps)
        return c->optimizer.decay_steps;
    return t->found.found ? t->found.state.decay_steps : c->train.steps;
}

gr_optimizer_options gr_trainer_optimizer_options(const gr_trainer *t, const gr_params *params) {
    const gr_config *c = t->config;
    return (gr_optimizer_options){.backend = t->backend,
        .comm = t->comm,
        .params = params,
        .weights_act = t->model ? gr_model_weights_act(t->model) : NULL,
        .vectors = t->model ? gr_model_vectors(t->model) : NULL,
        .zero = c->parallel.zero ? GR_ZERO_1 : GR_ZERO_OFF,
        .lr = {.schedule = c->optimizer.schedule,
            .lr = c->optimizer.lr,
            .lr_min = c->optimizer.lr_min,
            .warmup_steps = c->optimizer.warmup_steps,
            .decay_steps = t->state.decay_steps},
        .beta1 = c->optimizer.beta1,
        .beta2 = c->optimizer.beta2,
        .eps = c->optimizer.eps,
        .weight_decay = c->optimizer.weight_decay,
        .clip = c->optimizer.clip};
}

static gr_err open_checkpointer(gr_trainer *t) {
    GR_TRY(gr_config_text(t->config, &t->config_text));
    gr_checkpoint_options o = {.io = gr_io_system(),
        .folder = gr_run_path(t->config, "checkpoints", t->checkpoints),
        .comm = t->comm,
        .params = gr_model_params(t->model),
        .weights = gr_model_masters(t->model),
        .optimizer = t->optimizer,
        .config_text = t->config_text,
        .facts = t->facts.list,
        .n_fact = t->facts.n,
        .keep_last = t->config->checkpoint.keep_last,
        .keep_every = t->config->checkpoint.keep_every};
    return gr_checkpointer_open(&t->checkpointer, &o);
}

static gr_err open_local(gr_trainer *t) {
    t->state = (gr_run_state){.decay_steps = decay_steps(t)};
    const gr_model_config *c = &t->config->model;
    t->n_load = c->routing.source == GR_SOURCE_LEARNED ? gr_model_routers(c) : 1;
    if (t->config->kind == GR_CONFIG_DISTILL)
        t->n_load = 0; /* its choices are counted in validation alone */
    size_t n_load = (size_t)t->n_load * (size_t)c->num_experts;
    GR_TRY(gr_alloc((void **)&t->load, n_load, sizeof *t->load, "expert loads"));
    if (t->config->routing.source == GR_SOURCE_TABLE && t->comm->size[GR_EP] > 1)
        GR_TRY(gr_alloc((void **)&t->traffic, (size_t)t->comm->size[GR_WORLD], sizeof *t->traffic, "traffic"));
    GR_TRY(open_model(t));
    GR_TRY(gr_objective_of(t->config)->open(t));
    gr_optimizer_options o = gr_trainer_optimizer_options(t, gr_model_params(t->model));
    return gr_optimizer_open(&t->optimizer, &o);
}

/* What stands in the run folder, and the newest checkpoint there. A run that stopped before its first one starts over.
 */
static gr_err find_checkpoint(gr_trainer *t, gr_run_kind *kind) {
    bool first = t->comm->rank[GR_WORLD] == 0;
    *kind = GR_RUN_ABSENT;
    GR_TRY(gr_comm_agree(t->comm, first ? gr_run_folder_look(t->config, t->o->folder, kind) : GR_OK));
    GR_TRY(t->comm->bcast(t->comm, GR_WORLD, kind, sizeof *kind, 0));
    if (*kind == GR_RUN_ABSENT || t->o->folder == GR_RUN_FRESH)
        return gr_comm_agree(t->comm, first ? gr_run_folder_claim(t->config, &t->lock) : GR_OK);
    GR_TRY(gr_comm_agree(t->comm, first ? gr_run_folder_lock(t->config, &t->lock) : GR_OK));
    char folder[GR_PATH_MAX + 32];
    gr_run_path(t->config, "checkpoints", folder);
    GR_TRY(gr_checkpoint_find(gr_io_system(), t->comm, folder, &t->found));
    if (t->found.found)
        gr_info("going on from %s: %lld of %lld steps are done", t->found.path, (long long)t->found.state.step,
            (long long)t->config->train.steps);
    else
        gr_info("%s holds no checkpoint yet: starting over in it", t->config->run.dir);
    return GR_OK;
}

static gr_err load_checkpoint(gr_trainer *t) {
    GR_TRY(open_checkpointer(t));
    GR_TRY(gr_checkpoint_load(t->checkpointer, &t->found));
    GR_TRY(gr_model_weights_changed(t->model));
    t->state.step = t->found.state.step;
    t->state.cursor = t->found.state.cursor;
    gr_stop_remember(t->state.step);
    return GR_OK;
}

/* All ranks measure at the same time, as they will compute: memory bandwidth and turbo clocks are shared. */
gr_err gr_trainer_peak(gr_trainer *t) {
    GR_TRY(t->comm->barrier(t->comm, GR_WORLD));
    GR_TRY(gr_comm_agree(t->comm, t->backend->peak(t->backend, &t->peak_flops)));
    return t->comm->sum(t->comm, GR_WORLD, GR_F64, &t->peak_flops, 1);
}

static gr_err open_metrics(gr_trainer *t) {
    char path[GR_PATH_MAX + 32];
    gr_run_path(t->config, "metrics.jsonl", path);
    gr_metrics_options o = {.path = t->comm->rank[GR_WORLD] == 0 ? path : NULL,
        .steps = t->config->train.steps,
        .log_every = t->config->log.every_steps,
        .resume_step = t->found.found ? t->state.step : -1,
        .tokens_per_step = t->tokens_per_step,
        .flops_per_token = t->flops_per_token,
        .peak_flops = t->peak_flops};
    return gr_metrics_open(&t->metrics, &o);
}

/* What an online Grouter adds to a step. */
static void describe_online(const gr_trainer *t) {
    gr_router_cost cost;
    char hash[33];
    if (t->config->routing.source == GR_SOURCE_ONLINE && !gr_forecast_grouter(&cost, t->config))
        gr_info("routing: online by %s, router hash %s, %.4g FLOP per token: %.2f %% more than training alone",
            t->config->online.grouter, gr_hash128_text(gr_feed_routes(t->feed)->router, hash), cost.flops_per_token,
            100 * cost.flops_per_token / t->flops_per_token);
}

static void describe_routing(const gr_config *c) {
    const gr_routing *r = &c->routing;
    if (r->gates == GR_GATES_FIXED)
        return;
    gr_info("routing: %s %d of %d experts, learned gates of scale %g%s, aux loss %g, z loss %g",
        r->source == GR_SOURCE_LEARNED ? "learned, top"
        : r->source == GR_SOURCE_TABLE ? "from tables,"
                                       : "online,",
        c->model.num_experts_per_tok, c->model.num_experts, r->scale,
        c->model.norm_topk_prob ? "" : " over all experts", r->aux_loss_coef, r->z_loss_coef);
}

static void describe_placement(const gr_trainer *t) {
    const gr_placement *p = &t->placement;
    const gr_feed_bias *b = &t->bias;
    if (!t->placed)
        return;
    gr_info("placement: %s: %s by %s, %u nodes x %u ranks; %s", t->config->parallel.placement,
        gr_place_method_name(p->method), gr_place_grain_name(p->grain), p->n_node, p->node_ranks,
        t->config->data.windows == GR_WINDOWS_CORPUS   ? "each rank reads the windows of its group"
        : t->config->routing.source == GR_SOURCE_TABLE ? "the windows of a global batch go where their experts are"
                                                       : "experts move, windows stay");
    if (b->n_batch == 0)
        return;
    gr_info("bias of reading by group: total variation %.4f, importance weights %.4f to %.4f", b->total_variation,
        b->importance_min, b->importance_max);
    gr_info("first %lld global batches against the corpus, by group (with data.windows batch): KL of tokens %.4f "
            "(%.4f) nats, chi^2 per degree of freedom of expert loads %.2f (%.2f)",
        (long long)b->n_batch, b->unigram[0], b->unigram[1], b->expert[0], b->expert[1]);
}

gr_mask gr_trainer_mask(const gr_trainer *t) {
    return t->config->kind == GR_CONFIG_TRAIN ? gr_feed_mask(t->feed) : t->config->model.mask;
}

static void describe(const gr_trainer *t) {
    const gr_config *c = t->config;
    gr_model_count n;
    gr_model_count_config(&c->model, c->data.seq_len, &n);
    gr_info("backend %s, %s, comm %s, %d ranks x %d threads, expert parallel %d, data parallel %d", t->backend->name,
        gr_dtype_name(t->backend->dtype), t->comm->name, t->comm->size[GR_WORLD], gr_thread_count(),
        t->comm->size[GR_EP], t->comm->size[GR_EDP]);
    gr_info("model: %lld parameters, %lld active per token, %lld in experts, %.4g FLOP per token",
        (long long)(n.matrices + n.norms), (long long)n.active, (long long)n.experts, t->flops_per_token);
    describe_routing(c);
    describe_online(t);
    if (gr_mask_sees_ahead(gr_trainer_mask(t)))
        gr_warn("%s", gr_mask_warning(gr_trainer_mask(t)));
    gr_info("data: %llu windows of %d tokens, %.0f tokens per step, %lld steps (%.2f epochs)",
        (unsigned long long)gr_feed_windows(t->feed), c->data.seq_len, t->tokens_per_step, (long long)c->train.steps,
        (double)c->train.steps * c->train.global_batch_windows / (double)gr_feed_windows(t->feed));
    describe_placement(t);
    gr_info("best GEMM rate of all ranks together: %.1f GFLOP/s", t->peak_flops * 1e-9);
}

/* Ranks and experts of a placement against the config's. Absent where only sizes are asked for, it is left out. */
static gr_err open_placement(gr_trainer *t) {
    const gr_config *c = t->config;
    const char *path = c->parallel.placement;
    const gr_placement *p = &t->placement;
    int R_ep = gr_config_expert_parallel(c);
    if (!*path || (t->elsewhere && !gr_path_exists(path)))
        return GR_OK;
    GR_TRY(gr_placement_read(&t->placement, path));
    if (p->R != (uint32_t)R_ep)
        return gr_fail(GR_CONFIG,
            "parallel.placement: %s: expected a placement for parallel.expert_parallel_size = %d ranks%s, got one for "
            "%u (%u nodes x %u); set parallel.expert_parallel_size to %u, or place again",
            path, R_ep, c->parallel.expert_parallel_size ? "" : " (what 0 stands for)", p->R, p->n_node, p->node_ranks,
            p->R);
    if (p->E != (uint32_t)c->model.num_experts || p->T != (uint32_t)c->data.seq_len)
        return gr_fail(GR_DATA,
            "parallel.placement: %s: expected a placement of model.num_experts = %d experts and windows of "
            "data.seq_len = %d tokens, got %u and %u; place the route tables of this model",
            path, c->model.num_experts, c->data.seq_len, p->E, p->T);
    t->placed = true;
    return GR_OK;
}

static gr_err open_map(gr_trainer *t) {
    uint32_t E = (uint32_t)t->config->model.num_experts, R_ep = (uint32_t)gr_config_expert_parallel(t->config);
    GR_TRY(open_placement(t));
    if (!t->placed)
        return gr_expert_map_open(&t->map, E, R_ep);
    GR_TRY(gr_expert_map_open_placed(&t->map, E, R_ep, t->placement.expert_at));
    t->map.node_ranks = t->placement.node_ranks;
    return GR_OK;
}

gr_err gr_trainer_shape(gr_trainer *t) {
    const gr_config *c = t->config;
    gr_train_flops flops;
    t->tokens_per_step = (double)c->train.global_batch_windows * c->data.seq_len;
    GR_TRY(gr_comm_agree(t->comm, gr_config_check_ranks(c, t->comm->size[GR_WORLD])));
    GR_TRY(gr_comm_agree(t->comm, gr_train_flops_get(c, &flops)));
    t->flops_per_token = flops.model + flops.teacher;
    int R_ep = gr_config_expert_parallel(c);
    GR_TRY(gr_comm_agree(t->comm, gr_comm_group(t->comm, R_ep)));
    GR_TRY(gr_comm_agree(t->comm, open_map(t)));
    GR_TRY(gr_comm_agree(t->comm, (t->elsewhere ? gr_backend_describe : gr_backend_open)(
                                      &t->backend, gr_config_backend_name(c), gr_config_dtype(c))));
    t->staging.backend = t->backend;
    GR_TRY(gr_comm_agree(t->comm, gr_backend_set_experts(t->backend, gr_config_expert_kernels_name(c))));
    GR_TRY(gr_comm_agree(t->comm, gr_backend_set_attention(t->backend, gr_config_attention_kernels_name(c))));
    if (!t->elsewhere || gr_path_exists(c->parallel.product_plans))
        GR_TRY(gr_comm_agree(t->comm, gr_backend_set_plans(t->backend, c->parallel.product_plans)));
    return t->elsewhere ? GR_OK : gr_comm_attach(t->comm, t->backend);
}

gr_err gr_trainer_survey(gr_trainer *t) {
    GR_TRY(survey_feeds(t));
    const gr_plan_limits *valid = t->valid ? gr_feed_limits(t->valid) : NULL;
    return gr_comm_agree(t->comm, gr_forecast_memory(t, gr_feed_limits(t->feed), valid, &t->memory));
}

uint64_t gr_trainer_room(const gr_trainer *t) {
    const gr_backend *b = t->backend;
    return b->host_memory || !b->room ? UINT64_MAX - gr_memory_resident() : b->room(t->backend);
}

gr_err gr_trainer_allocate(gr_trainer *t) {
    t->room_before = gr_trainer_room(t);
    GR_TRY(gr_feed_allocate(t->feed));
    if (t->valid)
        GR_TRY(gr_feed_allocate(t->valid));
    GR_TRY(gr_comm_agree(t->comm, open_local(t)));
    return gr_model_weights_changed(t->model);
}

/* All ranks must run one program on one config: what they compute is never compared later. */
static gr_err check_alike(gr_trainer *t) {
    char *text;
    GR_TRY(gr_comm_agree(t->comm, gr_config_text(t->config, &text)));
    uint64_t mine[2] = {gr_hash64(text, strlen(text)), gr_hash64(gr_version_text(), strlen(gr_version_text()))};
    free(text);
    uint64_t first[2] = {mine[0], mine[1]};
    GR_TRY(t->comm->bcast(t->comm, GR_WORLD, first, sizeof first, 0));
    gr_err e = GR_OK;
    if (memcmp(mine, first, sizeof mine) != 0)
        e = gr_fail(GR_CONFIG, "rank %d: expected the %s of rank 0, got another; start all ranks alike",
            t->comm->rank[GR_WORLD], mine[0] != first[0] ? "config" : "program");
    return gr_comm_agree(t->comm, e);
}

/* By rank 0, which prints it. */
static gr_err measure_bias(gr_trainer *t) {
    bool grouped = t->placed && t->placement.R > 1 && t->config->data.windows == GR_WINDOWS_CORPUS;
    bool first = t->comm->rank[GR_WORLD] == 0;
    return gr_comm_agree(t->comm, grouped && first ? gr_feed_bias_get(t->feed, &t->bias) : GR_OK);
}

/* The checkpoint against this run, before any memory is taken. */
static gr_err check_resume(gr_trainer *t) {
    bool first = t->comm->rank[GR_WORLD] == 0;
    GR_TRY(gr_comm_agree(t->comm, gr_facts_make(&t->facts, t->config, t->feed, t->comm)));
    return gr_comm_agree(t->comm, first && t->found.found ? gr_resume_check(t->o, &t->found, &t->facts) : GR_OK);
}

gr_err gr_trainer_open(gr_trainer *t) {
    bool first = t->comm->rank[GR_WORLD] == 0;
    gr_run_kind kind;
    GR_TRY(check_alike(t));
    GR_TRY(find_checkpoint(t, &kind));
    GR_TRY(gr_trainer_shape(t));
    GR_TRY(gr_trainer_survey(t));
    GR_TRY(check_resume(t));
    GR_TRY(measure_bias(t));
    GR_TRY(gr_forecast_fit_host(&t->memory, t->comm));
    GR_TRY(gr_comm_agree(t->comm, gr_forecast_fit_device(&t->memory, t->backend)));
    GR_TRY(gr_comm_agree(t->comm, first ? gr_forecast_fit_disk(t->config) : GR_OK));
    GR_TRY(gr_trainer_allocate(t));
    if (t->found.found)
        GR_TRY(load_checkpoint(t));
    GR_TRY(gr_trainer_peak(t));
    bool goes_on = kind == GR_RUN_OURS && t->o->folder == GR_RUN_RESUME;
    GR_TRY(gr_comm_agree(t->comm, first ? gr_run_folder_make(t->o, goes_on, t->backend, &t->lock) : GR_OK));
    if (!t->found.found) /* it makes its folder in the run folder */
        GR_TRY(open_checkpointer(t));
    GR_TRY(gr_comm_agree(t->comm, open_metrics(t)));
    describe(t);
    return GR_OK;
}

void gr_trainer_close(gr_trainer *t) {
    gr_objective_of(t->config)->close(t);
    gr_metrics_close(t->metrics);
    gr_checkpointer_close(t->checkpointer);
    gr_checkpoint_found_close(&t->found);
    gr_optimizer_close(t->optimizer);
    gr_model_close(t->model);
    gr_feed_close(t->valid);
    gr_feed_close(t->feed);
    gr_staging_close(&t->staging);
    gr_backend_close(t->backend);
    gr_expert_map_close(&t->map);
    gr_placement_close(&t->placement);
    free(t->config_text);
    free(t->traffic);
    free(t->load);
    if (t->lock >= 0)
        close(t->lock);
}
