/* checkpoint_fixture.h: a small model with an optimizer and a checkpointer, its weights and moments known functions of
 * tensor name and element, so that any layout can tell whether it got back what another one saved. With ZeRO-1 the
 * weights are in shares, as the moments are. */
#ifndef GROUTER_CHECKPOINT_FIXTURE_H
#define GROUTER_CHECKPOINT_FIXTURE_H

#include <ftw.h>
#include <unistd.h>

#include "grouter/checkpoint.h"
#include "weights_fixture.h"

typedef struct checkpoint_fixture {
    weights_fixture f;
    gr_weights weights; /* in f.flat */
    gr_backend *backend;
    gr_optimizer *optimizer;
    gr_checkpointer *checkpointer;
    gr_comm *comm;
} checkpoint_fixture;

static const gr_fact fixture_facts[] = {{"data.train[0].tokens", "0123456789abcdef"}, {"cpu", "a \"quoted\" name"}};

static inline void checkpoint_fixture_open(
    checkpoint_fixture *x, gr_comm *comm, gr_io *io, const char *folder, gr_zero zero, int64_t keep_every) {
    *x = (checkpoint_fixture){.comm = comm};
    fixture_open_sharded(
        &x->f, (uint32_t)comm->size[GR_EP], (uint32_t)comm->rank[GR_EP], comm->size[GR_WORLD], comm->size[GR_EDP]);
    gr_err err = gr_backend_open(&x->backend, "cpu", GR_F32);
    gr_optimizer_options o = {.backend = x->backend,
        .comm = comm,
        .params = &x->f.params,
        .zero = zero,
        .lr = {.schedule = GR_SCHEDULE_CONSTANT, .lr = 1e-3},
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8};
    if (!err)
        err = gr_optimizer_open(&x->optimizer, &o);
    x->weights = zero == GR_ZERO_1 ? gr_weights_shared(&x->f.params, comm, x->f.flat)
                                   : gr_weights_whole(&x->f.params, x->f.flat);
    gr_checkpoint_options c = {.io = io,
        .folder = folder,
        .comm = comm,
        .params = &x->f.params,
        .weights = x->weights,
        .optimizer = x->optimizer,
        .config_text = "{\n  \"train\": {}\n}\n",
        .facts = fixture_facts,
        .n_fact = 2,
        .keep_last = 2,
        .keep_every = keep_every};
    if (!err)
        err = gr_checkpointer_open(&x->checkpointer, &c);
    GR_ASSERT(!err, "%s", gr_error_text());
}

static inline void checkpoint_fixture_close(checkpoint_fixture *x) {
    gr_checkpointer_close(x->checkpointer);
    gr_optimizer_close(x->optimizer);
    gr_backend_close(x->backend);
    fixture_close(&x->f);
}

enum { FIXTURE_WEIGHT, FIXTURE_M, FIXTURE_V };

/* What element j of a tensor holds at `step`. */
static inline float fixture_value(const char *name, int what, int64_t step, int64_t j) {
    return gr_random_normal((uint64_t)(10 * step + what), gr_stream_id(name), (uint64_t)j);
}

typedef void fixture_visit(float *at, float value, void *context);

static inline void fixture_moments_visit(
    const gr_moments *held, int64_t at, const char *name, int64_t step, int64_t j, fixture_visit *call, void *context) {
    for (int i = 0; i < 2; i++)
        if (at >= held[i].first && at < held[i].first + held[i].n) {
            call(&held[i].m[at - held[i].first], fixture_value(name, FIXTURE_M, step, j), context);
            call(&held[i].v[at - held[i].first], fixture_value(name, FIXTURE_V, step, j), context);
        }
}

/* Every weight and moment of this rank with what it should be at `step`. */
static inline void checkpoint_fixture_visit(checkpoint_fixture *x, int64_t step, fixture_visit *call, void *context) {
    gr_moments held[2];
    gr_optimizer_held(x->optimizer, held);
    for (int i = 0; i < x->f.params.n; i++)
        for (uint32_t k = 0; k < x->f.params.list[i].n_matrix; k++) {
            const gr_param *p = &x->f.params.list[i];
            char name[128];
            gr_param_name(&x->f.params, p, k, name);
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                for (int part = 0; part < 2; part++)
                    if (at >= x->weights.share[part].first &&
                        at < x->weights.share[part].first + x->weights.share[part].n)
                        call(gr_weights_at(&x->weights, (gr_share){.first = at, .n = 1}),
                            fixture_value(name, FIXTURE_WEIGHT, step, j), context);
                fixture_moments_visit(held, at, name, step, j, call, context);
            }
        }
}

static inline void fixture_set(float *at, float value, void *context) {
    (void)context;
    *at = value;
}

static inline void fixture_compare(float *at, float value, void *context) {
    *(int64_t *)context += memcmp(at, &value, sizeof value) != 0;
}

static inline void fixture_scramble(float *at, float value, void *context) {
    (void)value, (void)context;
    *at = -7;
}

static inline gr_run_state fixture_state(int64_t step) {
    return (gr_run_state){.step = step, .cursor = (uint64_t)step * 8, .decay_steps = 300};
}

/* Saves the model as it is at `step`. */
static inline gr_err checkpoint_fixture_save(checkpoint_fixture *x, int64_t step) {
    gr_run_state state = fixture_state(step);
    checkpoint_fixture_visit(x, step, fixture_set, NULL);
    gr_optimizer_counts_set(x->optimizer, (gr_optimizer_counts){.n_applied = step, .n_skipped = 1});
    return gr_checkpoint_save(x->checkpointer, &state);
}

/* Elements of this rank that are not what they were at `step`. */
static inline int64_t checkpoint_fixture_differences(checkpoint_fixture *x, int64_t step) {
    int64_t n = 0;
    checkpoint_fixture_visit(x, step, fixture_compare, &n);
    return n;
}

static inline int fixture_entry_remove(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

/* Removes a folder of this test's own making in the current directory, and what is in it. */
static inline void fixture_folder_remove(const char *name) {
    GR_ASSERT(!strchr(name, '/') && name[0] != '.', "%s", name);
    nftw(name, fixture_entry_remove, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
