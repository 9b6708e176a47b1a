/* What a run will need in memory, and whether it is there: known before anything is allocated, since routes are. */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

/* ---------------------------------------------------------------- rows and pairs without route tables */

static gr_plan_limits empty_limits(const gr_config *c, const gr_expert_map *map) {
    return (gr_plan_limits){.N = (uint32_t)c->train.micro_batch_windows * (uint32_t)c->data.seq_len,
        .K = (uint32_t)c->model.num_experts_per_tok,
        .n_rank = map->n_rank,
        .E_local = map->E_local};
}

/* Chance that a token's K distinct experts, drawn uniformly, include one of a given rank's. */
static double touch_chance(const gr_config *c, const gr_expert_map *map) {
    double none = 1;
    for (int i = 0; i < c->model.num_experts_per_tok; i++) {
        double left = (double)map->E - map->E_local - i;
        none *= left > 0 ? left / ((double)map->E - i) : 0;
    }
    return 1 - none;
}

double gr_forecast_rows(const gr_config *c, const gr_expert_map *map) {
    return (double)empty_limits(c, map).N * (map->n_rank - 1) * touch_chance(c, map);
}

gr_plan_limits gr_forecast_limits_worst(const gr_config *c, const gr_expert_map *map) {
    gr_plan_limits l = empty_limits(c, map);
    return gr_plan_limits_worst(l.N, l.K, map);
}

static uint64_t at_most(double n, uint64_t most) {
    return n < (double)most ? (uint64_t)ceil(n) : most;
}

gr_plan_limits gr_forecast_limits(const gr_config *c, const gr_expert_map *map, double spare) {
    gr_plan_limits worst = gr_forecast_limits_worst(c, map), l = worst;
    double rows = gr_forecast_rows(c, map);
    l.send_max = at_most(rows * spare, worst.send_max);
    l.recv_max = at_most(rows * spare, worst.recv_max);
    l.pair_max = at_most((double)l.N * l.K * (l.n_rank > 1 ? spare : 1), worst.pair_max);
    return l;
}

/* ---------------------------------------------------------------- the table */

/* What makes an item smaller. */
enum { MICRO_BATCH = 1, RECOMPUTE = 2, SHARD = 4, EXPERT_PARALLEL = 8, SMALLER_MODEL = 16, FLASH = 32 };
static const char *const remedy_text[] = {
    "lower train.micro_batch_windows",
    "set train.recompute to experts or block",
    "set parallel.zero to 1",
    "raise parallel.expert_parallel_size with more ranks on more machines",
    "make the model smaller",
    "set parallel.attention_kernels to flash",
};
enum { N_REMEDY = sizeof remedy_text / sizeof *remedy_text };

static int by_size(const void *a, const void *b) {
    uint64_t x = ((const gr_memory_item *)a)->n_byte, y = ((const gr_memory_item *)b)->n_byte;
    return (x < y) - (x > y);
}

gr_err gr_forecast_grouter(gr_router_cost *out, const gr_config *c) {
    gr_backend *backend;
    *out = (gr_router_cost){0};
    if (c->routing.source != GR_SOURCE_ONLINE || !gr_path_exists(c->online.grouter))
        return GR_OK;
    GR_TRY(gr_backend_describe(&backend, gr_config_backend_name(c), GR_F32));
    gr_err e = gr_router_cost_get(out, c->online.grouter, backend, (uint32_t)c->data.seq_len);
    gr_backend_close(backend);
    return e;
}

static gr_err fill_table(const gr_trainer *t, const gr_model *model, size_t plans, gr_memory_table *out) {
    size_t objective = 0;
    gr_router_cost grouter;
    if (gr_objective_of(t->config)->measure)
        GR_TRY(gr_objective_of(t->config)->measure(t, &objective));
    GR_TRY(gr_forecast_grouter(&grouter, t->config));
    gr_optimizer_options optimizer = gr_trainer_optimizer_options(t, gr_model_params(model));
    gr_model_memory m = gr_model_memory_get(model);
    if (!gr_add_size(plans, m.plans, &plans))
        return gr_fail(GR_RESOURCE, "plans: expected a size that fits the address space; use a smaller micro-batch");
    unsigned recompute = t->config->train.recompute == GR_RECOMPUTE_BLOCK ? 0 : RECOMPUTE;
    unsigned shard = optimizer.zero == GR_ZERO_1 ? 0 : SHARD;
    bool rounded = t->backend->dtype != GR_F32;
    const gr_attention_kernels way = t->backend->attention;
    unsigned flash = rounded && (way == GR_ATTENTION_AUTO || way == GR_ATTENTION_CUDNN) ? FLASH : 0;
    size_t saving = gr_weights_save_memory(gr_model_params(model), t->comm, rounded && !shard);
    *out = (gr_memory_table){
        .item = {
            {"weights", m.weights, (rounded ? shard : 0) | EXPERT_PARALLEL | SMALLER_MODEL},
            {"bf16 weights", m.weights_act, EXPERT_PARALLEL | SMALLER_MODEL},
            {"norms in fp32", m.vectors, SMALLER_MODEL},
            {"gradients", m.gradients, EXPERT_PARALLEL | SMALLER_MODEL},
            {"AdamW moments", gr_optimizer_memory(&optimizer), shard | EXPERT_PARALLEL | SMALLER_MODEL},
            {"activations", m.activations, MICRO_BATCH | recompute},
            {"scratch of the layers", m.scratch, MICRO_BATCH},
            {"scratch of attention", m.attention, MICRO_BATCH | flash},
            {"plans and routes", plans, MICRO_BATCH, .host = true},
            {"logits chunk", m.logits, SMALLER_MODEL},
            {"tables", m.tables, MICRO_BATCH},
            {"teacher and balance", objective, MICRO_BATCH},
            {"Grouter", grouter.n_byte, 0},
            {"sums over ranks", gr_comm_memory(t->comm), 0, .host = true},
            {"weights being saved", saving, 0, .host = true},
        }};
    if (rounded)
        snprintf(out->item[0].name, sizeof out->item[0].name, "fp32 master weights");
    for (int i = 0; i < GR_MEMORY_ITEMS; i++) {
        if (__builtin_add_overflow(out->total, out->item[i].n_byte, &out->total))
            return gr_fail(GR_RESOURCE, "memory: expected a total below 2^64 bytes, got more; use a smaller model");
        out->device += t->backend->host_memory || out->item[i].host ? 0 : out->item[i].n_byte;
    }
    qsort(out->item, GR_MEMORY_ITEMS, sizeof *out->item, by_size);
    return GR_OK;
}

gr_err gr_forecast_memory(
    const gr_trainer *t, const gr_plan_limits *train, const gr_plan_limits *valid, gr_memory_table *out) {
    gr_plan_limits limits = valid ? gr_plan_limits_max(train, valid) : *train;
    size_t train_plans, valid_plans = 0, plans;
    GR_TRY(gr_feed_measure(t->config, &t->map, train, &train_plans));
    if (valid)
        GR_TRY(gr_feed_measure(t->config, &t->map, valid, &valid_plans));
    if (!gr_add_size(train_plans, valid_plans, &plans))
        return gr_fail(GR_RESOURCE, "plans: expected a size that fits the address space; use a smaller micro-batch");
    gr_model_options o = gr_trainer_model_options(t, &limits);
    gr_model *model;
    GR_TRY(gr_model_measure(&model, &o));
    gr_err e = fill_table(t, model, plans, out);
    gr_model_close(model);
    return e;
}

/* ---------------------------------------------------------------- does it fit */

const char *gr_bytes_text(uint64_t n_byte, char text[32]) {
    static const char *const unit[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double n = (double)n_byte / 1024;
    int u = 0;
    for (; n >= 1000 && u < 5; u++)
        n /= 1024;
    snprintf(text, 32, "%.2f %s", n, unit[u]);
    return text;
}

uint64_t gr_forecast_margin(uint64_t n_byte) {
    uint64_t more = n_byte / 50 + ((uint64_t)32 << 20);
    return n_byte < UINT64_MAX - more ? n_byte + more : UINT64_MAX;
}

GR_MUST static gr_err fail_fit(const gr_memory_table *m, uint64_t room, const char *limit, uint64_t need, int n_rank) {
    char largest[3][32], have[32], want[32], change[256] = "";
    unsigned remedies = 0;
    for (int i = 0; i < 3; i++) {
        gr_bytes_text(m->item[i].n_byte, largest[i]);
        remedies |= m->item[i].remedies;
    }
    for (int i = 0, n = 0; i < N_REMEDY; i++)
        if (remedies & 1u << i)
            n += snprintf(change + n, sizeof change - (size_t)n, "%s, ", remedy_text[i]);
    return gr_fail(GR_RESOURCE,
        "memory: expected at most %s (%s), got a need of %s for %d rank%s; the largest of a rank are %s %s, %s %s, %s "
        "%s; %sor use more memory",
        gr_bytes_text(room, have), limit, gr_bytes_text(need, want), n_rank, n_rank == 1 ? "" : "s", m->item[0].name,
        largest[0], m->item[1].name, largest[1], m->item[2].name, largest[2], change);
}

gr_err gr_forecast_fit(const gr_memory_table *memory, uint64_t n_byte) {
    uint64_t need = gr_forecast_margin(memory->total);
    return need <= n_byte ? GR_OK : fail_fit(memory, n_byte, "--memory", need, 1);
}

gr_err gr_forecast_fit_device(const gr_memory_table *memory, gr_backend *backend) {
    uint64_t need = gr_forecast_margin(memory->device), room = backend->room ? backend->room(backend) : UINT64_MAX;
    if (memory->device == 0 || need <= room)
        return GR_OK;
    return fail_fit(memory, room, "free on its device", need, 1);
}

/* Adds up the ranks that share this rank's host, from all[R][2] of host and bytes. */
static gr_err check_host(const gr_memory_table *memory, const gr_comm *comm, const uint64_t *all) {
    const uint64_t *mine = all + 2 * comm->rank[GR_WORLD];
    uint64_t need = 0;
    int n_rank = 0;
    for (int r = 0; r < comm->size[GR_WORLD]; r++)
        if (all[2 * r] == mine[0]) {
            n_rank++;
            if (__builtin_add_overflow(need, all[2 * r + 1], &need))
                need = UINT64_MAX;
        }
    gr_memory_room room = gr_memory_room_get("");
    if (need > room.host)
        return fail_fit(memory, room.host, room.limit, need, n_rank);
    if (mine[1] > room.process)
        return fail_fit(memory, room.process, "RLIMIT_AS, see ulimit -v", mine[1], 1);
    return GR_OK;
}

gr_err gr_forecast_fit_host(const gr_memory_table *memory, gr_comm *comm) {
    size_t n_rank = (size_t)comm->size[GR_WORLD], me = (size_t)comm->rank[GR_WORLD];
    void *block;
    GR_TRY(gr_comm_agree(comm, gr_alloc(&block, 2 * n_rank, sizeof(uint64_t), "memory of all ranks")));
    uint64_t *all = block;
    all[2 * me] = gr_host_id();
    all[2 * me + 1] = gr_forecast_margin(memory->total - memory->device);
    gr_err e = comm->sum(comm, GR_WORLD, GR_U64, all, 2 * n_rank);
    if (!e)
        e = gr_comm_agree(comm, check_host(memory, comm, all));
    free(all);
    return e;
}

/* ---------------------------------------------------------------- disk */

int64_t gr_forecast_checkpoints(const gr_config *c) {
    int64_t every = c->checkpoint.every_steps, n = c->checkpoint.keep_last + 1;
    int64_t n_save = every ? c->train.steps / every + 1 : n; /* without `every`: one per stop, and the last */
    n = n_save < n ? n_save : n;
    return n + (c->checkpoint.keep_every ? c->train.steps / c->checkpoint.keep_every : 0);
}

double gr_forecast_disk(const gr_config *c, int64_t n_checkpoint) {
    gr_model_count n;
    gr_model_count_config(&c->model, c->data.seq_len, &n);
    double weights_and_moments = 3.0 * sizeof(float) * (double)(n.matrices + n.norms);
    return 1.05 * weights_and_moments * (double)n_checkpoint;
}

gr_err gr_forecast_fit_disk(const gr_config *c) {
    char path[GR_PATH_MAX + 32], have[32], want[32];
    int64_t n = gr_path_exists(gr_run_path(c, "checkpoints", path)) ? 1 : gr_forecast_checkpoints(c);
    double need = gr_forecast_disk(c, n);
    uint64_t room = gr_disk_room(c->run.dir);
    if (need <= (double)room)
        return GR_OK;
    return gr_fail(GR_RESOURCE,
        "run.dir: %s: expected %s of free disk for %lld checkpoints, got %s; make room, lower checkpoint.keep_last, "
        "raise checkpoint.keep_every or use another disk",
        c->run.dir, gr_bytes_text((uint64_t)fmin(need, 0x1p63), want), (long long)n, gr_bytes_text(room, have));
}
