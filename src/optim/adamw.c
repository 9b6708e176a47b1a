/* One update: reduce, norm, decide, clip, AdamW (Loshchilov & Hutter 2019). All of it is queued on the backend without
 * looking; the host hears last what became of it. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "grouter/optim.h"

#define SKIPS_MAX 3 /* in a row; the next one ends the run */

/* What a step is decided by, of this rank and then of all, and what is decided. */
typedef struct facts {
    double squares; /* of gradients */
    double loss[GR_LOSSES];
    gr_decision decision;
} facts;

struct gr_optimizer {
    gr_optimizer_options o;
    float *m, *v;       /* first and second moments of held[0], then of held[1]; backend memory */
    gr_moments held[2]; /* dense, experts */
    facts *facts;       /* [1] backend memory */
    facts *facts_read;  /* [1] page-locked host memory: the same once `finish` has waited */
    /* Of held[0], then of held[1], and within it: neighbours in the flat range that decay alike. Padding belongs to the
     * run before it: its weight, gradient and moments are 0, and AdamW with eps > 0 leaves 0 at 0. */
    gr_adamw_range *range;
    int n_range[2];
    gr_optimizer_counts counts;
    int64_t n_reduced; /* gradients whose sums have been asked for by parts */
    int64_t step;      /* of the update in progress */
    gr_update update;  /* what is known of it */
};

/* Adds what held[part] has of the elements [first, end). */
static void range_add(gr_optimizer *o, int part, int64_t first, int64_t end, bool decay) {
    const gr_moments *held = &o->held[part];
    first = first > held->first ? first : held->first;
    end = end < held->first + held->n ? end : held->first + held->n;
    if (first >= end)
        return;
    gr_adamw_range *next = o->range + o->n_range[0] + o->n_range[1], *last = o->n_range[part] ? next - 1 : NULL;
    first -= held->first;
    end -= held->first;
    if (last && last->decay == decay && last->first + last->n == first) {
        last->n += end - first;
        return;
    }
    *next = (gr_adamw_range){.first = first, .n = end - first, .decay = decay};
    o->n_range[part]++;
}

/* The table has all dense parameters before the experts. */
static gr_err ranges_make(gr_optimizer *o) {
    const gr_params *p = o->o.params;
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)p->n, sizeof *o->range, "optimizer ranges"));
    o->range = memory;
    for (int i = 0; i < p->n; i++) {
        const gr_param *at = &p->list[i];
        int64_t end = i + 1 < p->n ? at[1].offset : p->n_element;
        if (!at->frozen)
            range_add(o, at->owner == GR_EDP, at->offset, end, at->decay);
    }
    return GR_OK;
}

/* The ranges whose moments this rank keeps. */
static void held_ranges(const gr_optimizer_options *c, gr_share held[2]) {
    if (c->zero == GR_ZERO_1) {
        gr_share_owned(c->params, c->comm, held);
        return;
    }
    held[0] = (gr_share){.first = 0, .n = c->params->n_dense};
    held[1] = (gr_share){.first = c->params->n_dense, .n = c->params->n_element - c->params->n_dense};
}

/* Bytes of one kind of moments, and of which ranges they are. */
static size_t moment_bytes(const gr_optimizer_options *c, gr_share held[2]) {
    held_ranges(c, held);
    return (size_t)(held[0].n + held[1].n) * sizeof(float);
}

size_t gr_optimizer_memory(const gr_optimizer_options *o) {
    gr_share held[2];
    return 2 * moment_bytes(o, held);
}

/* By reduce-scatter and all-gather, however the comm makes a sum: each rank hands every other one its shard's worth. */
gr_optimizer_traffic gr_optimizer_traffic_get(const gr_optimizer_options *o, bool shared) {
    const gr_params *p = o->params;
    double R = o->comm->size[GR_WORLD], R_edp = o->comm->size[GR_EDP];
    double dense = (double)p->n_dense * (R - 1) / R;
    double elements = dense + (double)(p->n_element - p->n_dense) * (R_edp - 1) / R_edp;
    if (o->zero == GR_ZERO_OFF)
        return (gr_optimizer_traffic){.gradients = 2 * sizeof(float) * elements};
    double vectors = shared ? 2 * sizeof(float) * (double)p->n_vector * (R - 1) / R : 0;
    return (gr_optimizer_traffic){.gradients = sizeof(float) * elements,
        .weights = (double)(shared ? o->backend->elem_size : sizeof(float)) * elements + vectors};
}

static gr_err memory_open(gr_optimizer *o) {
    gr_backend *b = o->o.backend;
    gr_share held[2];
    size_t n_byte = moment_bytes(&o->o, held);
    void *m, *v, *memory;
    GR_TRY(b->alloc(b, n_byte, "first moments of AdamW", &m));
    o->m = m;
    GR_TRY(b->alloc(b, n_byte, "second moments of AdamW", &v));
    o->v = v;
    GR_TRY(b->alloc(b, sizeof *o->facts, "gradient norm", &memory));
    o->facts = memory;
    GR_TRY(b->alloc_host(b, sizeof *o->facts_read, "gradient norm", &memory));
    o->facts_read = memory;
    o->held[0] = (gr_moments){.first = held[0].first, .n = held[0].n, .m = o->m, .v = o->v, .backend = b};
    o->held[1] = (gr_moments){
        .first = held[1].first, .n = held[1].n, .m = o->m + held[0].n, .v = o->v + held[0].n, .backend = b};
    return ranges_make(o);
}

gr_err gr_optimizer_open(gr_optimizer **out, const gr_optimizer_options *options) {
    *out = NULL;
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_optimizer), "optimizer"));
    gr_optimizer *o = memory;
    o->o = *options;
    GR_ASSERT(options->zero == GR_ZERO_OFF || !options->weights_act == !options->vectors,
        "with ZeRO-1 the fp32 weights beside a rounded copy are in shares");
    gr_err err = memory_open(o);
    if (err) {
        gr_optimizer_close(o);
        return err;
    }
    *out = o;
    return GR_OK;
}

void gr_optimizer_close(gr_optimizer *o) {
    if (!o)
        return;
    free(o->range);
    o->o.backend->release_host(o->o.backend, o->facts_read);
    o->o.backend->release(o->o.backend, o->facts);
    o->o.backend->release(o->o.backend, o->v);
    o->o.backend->release(o->o.backend, o->m);
    free(o);
}

void gr_optimizer_held(gr_optimizer *o, gr_moments held[2]) {
    held[0] = o->held[0];
    held[1] = o->held[1];
}

void gr_optimizer_owned(gr_optimizer *o, gr_moments owned[2]) {
    gr_share share[2];
    gr_share_owned(o->o.params, o->o.comm, share);
    for (int i = 0; i < 2; i++) {
        int64_t skip = share[i].first - o->held[i].first;
        owned[i] = (gr_moments){.first = share[i].first,
            .n = share[i].n,
            .m = o->held[i].m + skip,
            .v = o->held[i].v + skip,
            .backend = o->o.backend};
    }
}

gr_optimizer_counts gr_optimizer_counts_get(const gr_optimizer *o) {
    return o->counts;
}

void gr_optimizer_counts_set(gr_optimizer *o, gr_optimizer_counts counts) {
    o->counts = counts;
}

double *gr_optimizer_losses(gr_optimizer *o) {
    return o->facts->loss;
}

gr_err gr_optimizer_reduce_part(gr_optimizer *o, float *gradients, gr_share part) {
    gr_comm *comm = o->o.comm;
    GR_ASSERT(o->o.zero == GR_ZERO_1, "without ZeRO-1 gradients are summed whole");
    comm->beside = true;
    gr_err err = gr_gradients_scatter_part(o->o.params, comm, gradients, part);
    comm->beside = false;
    o->n_reduced += part.n;
    return err;
}

static gr_err reduce(gr_optimizer *o, float *gradients) {
    const gr_optimizer_options *c = &o->o;
    if (c->zero == GR_ZERO_OFF)
        return gr_gradients_reduce(c->params, c->comm, gradients);
    if (o->n_reduced == 0)
        return gr_gradients_scatter(c->params, c->comm, gradients);
    GR_ASSERT(o->n_reduced == c->params->n_element, "%lld of %lld gradients have been reduced by parts",
        (long long)o->n_reduced, (long long)c->params->n_element);
    o->n_reduced = 0;
    return c->comm->join(c->comm);
}

gr_err gr_optimizer_reduce(gr_optimizer *o, float *gradients) {
    const gr_optimizer_options *c = &o->o;
    double start_s = gr_time_s();
    GR_TRY(reduce(o, gradients));
    GR_TRY(gr_gradients_squares(c->params, c->backend, c->comm, gradients, &o->facts->squares));
    o->update.reduce_ms = 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

/* The facts of all ranks and the decision. It goes to the host on a lane of its own: whoever waits for it does not wait
 * for the update. */
static gr_err decide(gr_optimizer *o) {
    gr_backend *b = o->o.backend;
    gr_comm *comm = o->o.comm;
    double start_s = gr_time_s();
    GR_TRY(comm->sum(comm, GR_WORLD, GR_F64, &o->facts->squares, 1 + GR_LOSSES));
    const gr_decide d = {
        .clip = o->o.clip, .squares = &o->facts->squares, .loss = o->facts->loss, .out = &o->facts->decision};
    GR_TRY(b->decide(b, GR_LANE_COMPUTE, &d));
    GR_TRY(b->wait(b, GR_LANE_SIDE, GR_LANE_COMPUTE));
    GR_TRY(b->download(b, GR_LANE_SIDE, o->facts_read, o->facts, sizeof *o->facts_read));
    o->update.reduce_ms += 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

/* Of the dense part or of the experts. */
static gr_err update_part(gr_optimizer *o, int part, const gr_weights *w, const float *gradients) {
    const gr_optimizer_options *c = &o->o;
    gr_backend *b = c->backend;
    const gr_moments *held = &o->held[part];
    if (o->n_range[part] == 0)
        return GR_OK;
    gr_adamw a = {.n = held->n,
        .step = o->counts.n_applied + 1,
        .lr = (float)o->update.lr,
        .beta1 = (float)c->beta1,
        .beta2 = (float)c->beta2,
        .eps = (float)c->eps,
        .weight_decay = (float)c->weight_decay,
        .decision = &o->facts->decision,
        .range = o->range + (part ? o->n_range[0] : 0),
        .n_range = o->n_range[part],
        .p = gr_weights_at(w, (gr_share){.first = held->first, .n = held->n}),
        .m = held->m,
        .v = held->v,
        .g = gradients + held->first,
        .p_act = c->weights_act ? (uint8_t *)c->weights_act + (size_t)held->first * b->elem_size : NULL};
    return b->adamw(b, GR_LANE_COMPUTE, &a);
}

gr_err gr_optimizer_apply(gr_optimizer *o, int64_t step, gr_weights weights, const float *gradients) {
    o->step = step;
    o->update.lr = gr_lr_at(&o->o.lr, step);
    GR_TRY(decide(o));
    double start_s = gr_time_s();
    for (int part = 0; part < 2; part++)
        GR_TRY(update_part(o, part, &weights, gradients));
    o->update.optimizer_ms = 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

/* After a step that is skipped as well: all get back what they had. */
gr_err gr_optimizer_gather(gr_optimizer *o, gr_weights weights) {
    const gr_optimizer_options *c = &o->o;
    gr_comm *comm = c->comm;
    double start_s = gr_time_s();
    if (c->zero == GR_ZERO_OFF)
        return GR_OK;
    if (c->weights_act) {
        GR_TRY(gr_weights_gather(c->params, comm, &weights, c->weights_act, c->backend->dtype, c->vectors));
    } else {
        comm->traffic = GR_TRAFFIC_WEIGHTS;
        GR_TRY(comm->all_gather(comm, GR_WORLD, GR_F32, weights.at[0], (size_t)o->held[0].n));
        comm->traffic = GR_TRAFFIC_WEIGHTS;
        GR_TRY(comm->all_gather(comm, GR_EDP, GR_F32, weights.at[1], (size_t)o->held[1].n));
    }
    o->update.optimizer_ms += 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

gr_err gr_optimizer_gather_vectors(gr_optimizer *o, gr_weights weights) {
    const gr_optimizer_options *c = &o->o;
    return c->vectors ? gr_weights_gather_vectors(c->params, c->comm, &weights, c->vectors) : GR_OK;
}

gr_err gr_optimizer_gather_part(gr_optimizer *o, gr_weights weights, gr_share part) {
    const gr_optimizer_options *c = &o->o;
    const gr_dtype dtype = c->weights_act ? c->backend->dtype : GR_F32;
    GR_ASSERT(c->zero == GR_ZERO_1, "without ZeRO-1 every rank has updated all weights");
    void *data = c->weights_act ? (uint8_t *)c->weights_act + (size_t)part.first * c->backend->elem_size
                                : (void *)gr_weights_at(&weights, part);
    c->comm->beside = true;
    gr_err err = gr_weights_gather_part(c->params, c->comm, part, dtype, data);
    c->comm->beside = false;
    return err;
}

/* All ranks come here together with the same count, so they can agree that one of them reports. */
static gr_err skip(gr_optimizer *o, double loss, double norm) {
    if (++o->counts.n_skipped <= SKIPS_MAX)
        return GR_OK;
    gr_err err = gr_fail(GR_NONFINITE,
        "step %lld: expected a finite loss and gradient norm, got loss %g, norm %g, as in the %d steps before; lower "
        "optimizer.lr, lengthen optimizer.warmup_steps or look at the data of these steps",
        (long long)o->step + 1, loss, norm, SKIPS_MAX);
    return gr_comm_agree(o->o.comm, err);
}

gr_err gr_optimizer_finish(gr_optimizer *o, double n_token, gr_update *out) {
    gr_backend *b = o->o.backend;
    GR_TRY(b->sync_lane(b, GR_LANE_SIDE));
    const facts *f = o->facts_read;
    *out = o->update;
    out->grad_norm = f->decision.norm;
    out->skipped = f->decision.skipped;
    out->loss[0] = f->loss[0] / n_token;
    for (int i = 1; i < GR_LOSSES; i++)
        out->loss[i] = f->loss[i];
    if (out->skipped)
        return skip(o, out->loss[0], out->grad_norm);
    o->counts.n_applied++;
    o->counts.n_skipped = 0;
    return GR_OK;
}

/* Of all ranks rank 0 adds the loss. */
gr_err gr_optimizer_step(
    gr_optimizer *o, int64_t step, double loss, gr_weights weights, float *gradients, gr_update *out) {
    gr_backend *b = o->o.backend;
    const double mine[GR_LOSSES] = {o->o.comm->rank[GR_WORLD] == 0 ? loss : 0};
    GR_TRY(b->upload(b, GR_LANE_COMPUTE, o->facts->loss, mine, sizeof mine));
    GR_TRY(gr_optimizer_reduce(o, gradients));
    GR_TRY(gr_optimizer_apply(o, step, weights, gradients));
    GR_TRY(gr_optimizer_gather(o, weights));
    return gr_optimizer_finish(o, 1, out);
}
