/* One update: reduce, norm, decide, clip, AdamW (Loshchilov & Hutter 2019). */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "grouter/optim.h"

#define SKIPS_MAX 3 /* in a row; the next one ends the run */

/* Neighbours in the flat range that decay alike, as far as this rank updates them. Padding belongs to the run before
 * it: its weight, gradient and moments are 0, and AdamW with eps > 0 leaves 0 at 0. */
typedef struct span {
    gr_share share; /* within one of the two ranges held */
    bool decay;
    float *m, *v; /* [share.n] */
} span;

struct gr_optimizer {
    gr_optimizer_options o;
    float *m, *v;         /* first and second moments of held[0], then of held[1]; backend memory */
    gr_moments held[2];   /* dense, experts */
    double *squares;      /* [1] of the gradients this rank owns, backend memory */
    double *squares_read; /* [1] the same in page-locked host memory, after a sync */
    double reduce_ms;
    span *spans;
    int n_span;
    gr_optimizer_counts counts;
};

/* Adds what `held` has of the elements [first, end). */
static void span_add(gr_optimizer *o, const gr_moments *held, int64_t first, int64_t end, bool decay) {
    first = first > held->first ? first : held->first;
    end = end < held->first + held->n ? end : held->first + held->n;
    if (first >= end)
        return;
    span *last = o->n_span ? &o->spans[o->n_span - 1] : NULL;
    float *m = held->m + (first - held->first), *v = held->v + (first - held->first);
    if (last && last->decay == decay && last->share.first + last->share.n == first && first > held->first)
        last->share.n += end - first;
    else
        o->spans[o->n_span++] = (span){.share = {.first = first, .n = end - first}, .decay = decay, .m = m, .v = v};
}

static gr_err spans_make(gr_optimizer *o) {
    const gr_params *p = o->o.params;
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)p->n, sizeof *o->spans, "optimizer spans"));
    o->spans = memory;
    for (int i = 0; i < p->n; i++) {
        const gr_param *at = &p->list[i];
        int64_t end = i + 1 < p->n ? at[1].offset : p->n_element;
        if (at->frozen)
            continue;
        span_add(o, &o->held[at->owner == GR_EDP], at->offset, end, at->decay);
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
    void *m, *v, *squares;
    GR_TRY(b->alloc(b, n_byte, "first moments of AdamW", &m));
    o->m = m;
    GR_TRY(b->alloc(b, n_byte, "second moments of AdamW", &v));
    o->v = v;
    GR_TRY(b->alloc(b, sizeof *o->squares, "gradient norm", &squares));
    o->squares = squares;
    GR_TRY(b->alloc_host(b, sizeof *o->squares_read, "gradient norm", &squares));
    o->squares_read = squares;
    o->held[0] = (gr_moments){.first = held[0].first, .n = held[0].n, .m = o->m, .v = o->v, .backend = b};
    o->held[1] = (gr_moments){
        .first = held[1].first, .n = held[1].n, .m = o->m + held[0].n, .v = o->v + held[0].n, .backend = b};
    return spans_make(o);
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
    free(o->spans);
    o->o.backend->release_host(o->o.backend, o->squares_read);
    o->o.backend->release(o->o.backend, o->squares);
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

static gr_err update_spans(gr_optimizer *o, double lr, double scale, const gr_weights *w, const float *gradients) {
    const gr_optimizer_options *c = &o->o;
    gr_backend *b = c->backend;
    for (int i = 0; i < o->n_span; i++) {
        const span *s = &o->spans[i];
        gr_adamw a = {.n = s->share.n,
            .step = o->counts.n_applied,
            .lr = (float)lr,
            .beta1 = (float)c->beta1,
            .beta2 = (float)c->beta2,
            .eps = (float)c->eps,
            .weight_decay = s->decay ? (float)c->weight_decay : 0,
            .grad_scale = (float)scale,
            .p = gr_weights_at(w, s->share),
            .m = s->m,
            .v = s->v,
            .g = gradients + s->share.first,
            .p_act = c->weights_act ? (uint8_t *)c->weights_act + (size_t)s->share.first * b->elem_size : NULL};
        GR_TRY(b->adamw(b, GR_LANE_COMPUTE, &a));
    }
    return GR_OK;
}

static gr_err update_apply(gr_optimizer *o, double lr, double scale, const gr_weights *w, const float *gradients) {
    const gr_optimizer_options *c = &o->o;
    gr_comm *comm = c->comm;
    o->counts.n_applied++;
    o->counts.n_skipped = 0;
    GR_TRY(update_spans(o, lr, scale, w, gradients));
    if (c->zero == GR_ZERO_OFF)
        return GR_OK;
    if (c->weights_act)
        return gr_weights_gather(c->params, comm, w, c->weights_act, c->backend->dtype, c->vectors);
    comm->traffic = GR_TRAFFIC_WEIGHTS;
    GR_TRY(comm->all_gather(comm, GR_WORLD, GR_F32, w->at[0], (size_t)o->held[0].n));
    comm->traffic = GR_TRAFFIC_WEIGHTS;
    return comm->all_gather(comm, GR_EDP, GR_F32, w->at[1], (size_t)o->held[1].n);
}

/* All ranks come here together with the same count, so they can agree that one of them reports. */
static gr_err update_skip(gr_optimizer *o, int64_t step, double loss, double norm) {
    if (++o->counts.n_skipped <= SKIPS_MAX)
        return GR_OK;
    gr_err err = gr_fail(GR_NONFINITE,
        "step %lld: expected a finite loss and gradient norm, got loss %g, norm %g, as in the %d steps before; lower "
        "optimizer.lr, lengthen optimizer.warmup_steps or look at the data of these steps",
        (long long)step + 1, loss, norm, SKIPS_MAX);
    return gr_comm_agree(o->o.comm, err);
}

gr_err gr_optimizer_reduce(gr_optimizer *o, float *gradients) {
    const gr_optimizer_options *c = &o->o;
    gr_backend *b = c->backend;
    double start_s = gr_time_s();
    if (c->zero == GR_ZERO_1)
        GR_TRY(gr_gradients_scatter(c->params, c->comm, gradients));
    else
        GR_TRY(gr_gradients_reduce(c->params, c->comm, gradients));
    GR_TRY(gr_gradients_squares(c->params, b, c->comm, gradients, o->squares));
    GR_TRY(b->download(b, GR_LANE_COMPUTE, o->squares_read, o->squares, sizeof *o->squares_read));
    o->reduce_ms = 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

gr_err gr_optimizer_apply(
    gr_optimizer *o, int64_t step, double loss, gr_weights weights, const float *gradients, gr_update *out) {
    const gr_optimizer_options *c = &o->o;
    double start_s = gr_time_s(), squares = *o->squares_read;
    GR_TRY(c->comm->sum(c->comm, GR_WORLD, GR_F64, &squares, 1));
    double summed_s = gr_time_s(), norm = sqrt(squares);
    *out = (gr_update){
        .lr = gr_lr_at(&c->lr, step), .grad_norm = norm, .reduce_ms = o->reduce_ms + 1e3 * (summed_s - start_s)};
    double scale = c->clip > 0 && norm > c->clip ? c->clip / norm : 1;
    double applied = scale * norm;
    /* NaN fails both. A second moment that left fp32 would hold its weight still for ever. */
    bool proceed = applied * applied <= (double)FLT_MAX && isfinite(loss);
    out->skipped = !proceed;
    if (!proceed)
        return update_skip(o, step, loss, norm);
    gr_err err = update_apply(o, out->lr, scale, &weights, gradients);
    out->optimizer_ms = 1e3 * (gr_time_s() - summed_s);
    return err;
}

gr_err gr_optimizer_step(
    gr_optimizer *o, int64_t step, double loss, gr_weights weights, float *gradients, gr_update *out) {
    GR_TRY(gr_optimizer_reduce(o, gradients));
    GR_TRY(o->o.backend->sync(o->o.backend));
    return gr_optimizer_apply(o, step, loss, weights, gradients, out);
}
