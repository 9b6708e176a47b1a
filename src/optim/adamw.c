/* One update: reduce, norm, decide, clip, AdamW (Loshchilov & Hutter 2019). */
#include "grouter/optim.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define SKIPS_MAX 3 /* in a row; the next one ends the run */

/* Neighbours in the flat range that decay alike. Padding belongs to the run before it: its weight, gradient and moments
 * are 0, and AdamW with eps > 0 leaves 0 at 0. */
typedef struct span {
    int64_t first, n;
    bool decay;
} span;

struct gr_optimizer {
    gr_optimizer_options o;
    float *m, *v;    /* [n_element] moments, backend memory */
    double *squares; /* [2] scratch of the norm, backend memory */
    span *spans;
    int n_span;
    int64_t n_applied; /* updates that were not skipped */
    int n_skipped;     /* in a row */
};

static gr_err spans_make(gr_optimizer *o) {
    const gr_params *p = o->o.params;
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)p->n, sizeof *o->spans, "optimizer spans"));
    o->spans = memory;
    for (int i = 0; i < p->n; i++)
        if (i == 0 || p->list[i].decay != p->list[i - 1].decay)
            o->spans[o->n_span++] = (span){.first = p->list[i].offset, .decay = p->list[i].decay};
    for (int i = 0; i < o->n_span; i++)
        o->spans[i].n = (i + 1 < o->n_span ? o->spans[i + 1].first : p->n_element) - o->spans[i].first;
    return GR_OK;
}

static gr_err memory_open(gr_optimizer *o) {
    gr_backend *b = o->o.backend;
    size_t n_byte = (size_t)o->o.params->n_element * sizeof(float);
    void *m, *v, *squares;
    GR_TRY(b->alloc(b, n_byte, "first moments of AdamW", &m));
    o->m = m;
    GR_TRY(b->alloc(b, n_byte, "second moments of AdamW", &v));
    o->v = v;
    GR_TRY(b->alloc(b, 2 * sizeof *o->squares, "gradient norm", &squares));
    o->squares = squares;
    return spans_make(o);
}

gr_err gr_optimizer_open(gr_optimizer **out, const gr_optimizer_options *options) {
    *out = NULL;
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_optimizer), "optimizer"));
    gr_optimizer *o = memory;
    o->o = *options;
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
    o->o.backend->release(o->o.backend, o->squares);
    o->o.backend->release(o->o.backend, o->v);
    o->o.backend->release(o->o.backend, o->m);
    free(o);
}

static gr_err update_apply(gr_optimizer *o, double lr, double scale, float *weights, const float *gradients) {
    const gr_optimizer_options *c = &o->o;
    gr_backend *b = c->backend;
    o->n_applied++;
    for (int i = 0; i < o->n_span; i++) {
        const span *s = &o->spans[i];
        gr_adamw a = {.n = s->n,
            .step = o->n_applied,
            .lr = (float)lr,
            .beta1 = (float)c->beta1,
            .beta2 = (float)c->beta2,
            .eps = (float)c->eps,
            .weight_decay = s->decay ? (float)c->weight_decay : 0,
            .grad_scale = (float)scale,
            .p = weights + s->first,
            .m = o->m + s->first,
            .v = o->v + s->first,
            .g = gradients + s->first};
        GR_TRY(b->adamw(b, GR_LANE_COMPUTE, &a));
    }
    return b->sync(b);
}

/* All ranks come here together with the same count, so they can agree that one of them reports. */
static gr_err update_skip(gr_optimizer *o, int64_t step, double loss, double norm) {
    if (++o->n_skipped <= SKIPS_MAX)
        return GR_OK;
    gr_err err = gr_fail(GR_NONFINITE,
        "step %lld: expected a finite loss and gradient norm, got loss %g, norm %g, as in the %d steps before; lower "
        "optimizer.lr, lengthen optimizer.warmup_steps or look at the data of these steps",
        (long long)step + 1, loss, norm, SKIPS_MAX);
    return gr_comm_agree(o->o.comm, err);
}

gr_err gr_optimizer_step(gr_optimizer *o, int64_t step, double loss, float *weights, float *gradients, gr_update *out) {
    const gr_optimizer_options *c = &o->o;
    *out = (gr_update){.lr = gr_lr_at(&c->lr, step)};
    GR_TRY(c->backend->sync(c->backend));
    double start_s = gr_time_s();
    GR_TRY(gr_gradients_reduce(c->params, c->comm, gradients));
    GR_TRY(gr_gradients_norm(c->params, c->backend, c->comm, gradients, o->squares, &out->grad_norm));
    double reduced_s = gr_time_s();
    out->reduce_ms = 1e3 * (reduced_s - start_s);
    double scale = c->clip > 0 && out->grad_norm > c->clip ? c->clip / out->grad_norm : 1;
    double applied = scale * out->grad_norm;
    /* NaN fails both. A second moment that left fp32 would hold its weight still for ever. */
    bool proceed = applied * applied <= (double)FLT_MAX && isfinite(loss);
    out->skipped = !proceed;
    if (!proceed)
        return update_skip(o, step, loss, out->grad_norm);
    o->n_skipped = 0;
    gr_err err = update_apply(o, out->lr, scale, weights, gradients);
    out->optimizer_ms = 1e3 * (gr_time_s() - reduced_s);
    return err;
}
