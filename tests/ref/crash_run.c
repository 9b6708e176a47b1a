/* crash_run.c: a small model whose every number is a hash of its place and the step. */
#include "crash_run.h"

#include "lying_disk.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH_BYTES = 512, STEPS_MAX = 64 };

struct crash_run {
    gr_backend *backend;
    gr_comm *comm;
    gr_expert_map map;
    gr_params params;
    gr_optimizer *optimizer;
    float *weights, *expected; /* [n_element] */
};

static const gr_model_config config = {
    .vocab_size = 12,
    .hidden_size = 8,
    .num_hidden_layers = 1,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 4,
    .moe_intermediate_size = 4,
    .num_experts = 4,
    .num_experts_per_tok = 2,
    .initializer_range = 0.02,
};

static void must(gr_err err) {
    GR_ASSERT(!err, "%s", gr_error_text());
}

crash_run *crash_run_open(void) {
    crash_run *r = calloc(1, sizeof *r);
    GR_ASSERT(r, "no memory");
    must(gr_backend_open(&r->backend, "cpu", GR_F32));
    must(gr_comm_open(&r->comm, "self"));
    must(gr_expert_map_open(&r->map, (uint32_t)config.num_experts, 1));
    must(gr_params_open(&r->params, &config, &r->map, 0, 1, 1));
    must(gr_optimizer_open(&r->optimizer, &(gr_optimizer_options){.backend = r->backend,
                                              .comm = r->comm,
                                              .params = &r->params,
                                              .lr = {.lr = 1e-3, .warmup_steps = 1, .decay_steps = 100},
                                              .beta1 = 0.9,
                                              .beta2 = 0.95,
                                              .eps = 1e-8}));
    r->weights = calloc((size_t)r->params.n_element, sizeof(float));
    r->expected = calloc((size_t)r->params.n_element, sizeof(float));
    GR_ASSERT(r->weights && r->expected, "no memory");
    return r;
}

void crash_run_close(crash_run *r) {
    gr_optimizer_close(r->optimizer);
    gr_params_close(&r->params);
    gr_expert_map_close(&r->map);
    gr_comm_close(r->comm, GR_OK);
    gr_backend_close(r->backend);
    free(r->weights);
    free(r->expected);
    free(r);
}

size_t crash_run_bytes(const crash_run *r) {
    return (size_t)r->params.n_element * 3 * sizeof(float);
}

/* ---- the state of a step */

typedef enum array { ARRAY_WEIGHTS, ARRAY_M, ARRAY_V } array;

/* The flat range as it is after `step`: what belongs to no parameter stays 0. */
static const float *expected(crash_run *r, int64_t step, array a) {
    for (int i = 0; i < r->params.n; i++) {
        const gr_param *p = &r->params.list[i];
        for (uint32_t k = 0; k < p->n_matrix; k++)
            for (int64_t j = 0; j < gr_param_size(p); j++) {
                int64_t at = p->offset + k * p->stride + j;
                uint64_t bits = gr_random_u64((uint64_t)step, (uint64_t)a, (uint64_t)at);
                r->expected[at] = (float)(bits >> 40) + 0.5f; /* exact */
            }
    }
    return r->expected;
}

static gr_run_state state_of(int64_t step) {
    return (gr_run_state){.step = step,
        .cursor = (uint64_t)step * 16,
        .optimizer = {.n_applied = step - step % 3, .n_skipped = step % 3},
        .decay_steps = 100};
}

static void take_step(crash_run *r, int64_t step) {
    memcpy(r->weights, expected(r, step, ARRAY_WEIGHTS), (size_t)r->params.n_element * sizeof(float));
    gr_moments held[2];
    gr_optimizer_held(r->optimizer, held);
    for (int i = 0; i < 2; i++) {
        memcpy(held[i].m, expected(r, step, ARRAY_M) + held[i].first, (size_t)held[i].n * sizeof(float));
        memcpy(held[i].v, expected(r, step, ARRAY_V) + held[i].first, (size_t)held[i].n * sizeof(float));
    }
    gr_optimizer_counts_set(r->optimizer, state_of(step).optimizer);
}

/* As if the process had just started. */
static void forget(crash_run *r) {
    memset(r->weights, 0, (size_t)r->params.n_element * sizeof(float));
    gr_moments held[2];
    gr_optimizer_held(r->optimizer, held);
    for (int i = 0; i < 2; i++) {
        memset(held[i].m, 0, (size_t)held[i].n * sizeof(float));
        memset(held[i].v, 0, (size_t)held[i].n * sizeof(float));
    }
    gr_optimizer_counts_set(r->optimizer, (gr_optimizer_counts){0});
}

static bool state_is(crash_run *r, const gr_run_state *got) {
    int64_t step = got->step;
    gr_run_state s = state_of(step);
    gr_optimizer_counts counts = gr_optimizer_counts_get(r->optimizer);
    bool same = got->cursor == s.cursor && got->decay_steps == s.decay_steps &&
                counts.n_applied == s.optimizer.n_applied && counts.n_skipped == s.optimizer.n_skipped &&
                !memcmp(r->weights, expected(r, step, ARRAY_WEIGHTS), (size_t)r->params.n_element * sizeof(float));
    gr_moments held[2];
    gr_optimizer_held(r->optimizer, held);
    for (int i = 0; i < 2; i++) {
        size_t n_byte = (size_t)held[i].n * sizeof(float);
        same = same && !memcmp(held[i].m, expected(r, step, ARRAY_M) + held[i].first, n_byte);
        same = same && !memcmp(held[i].v, expected(r, step, ARRAY_V) + held[i].first, n_byte);
    }
    return same;
}

/* ---- a process */

static gr_err checkpointer_open(crash_run *r, gr_io *io, const char *folder, gr_checkpointer **out) {
    static const gr_fact fact = {"data", "0123456789abcdef"};
    return gr_checkpointer_open(out, &(gr_checkpoint_options){.io = io,
                                         .folder = folder,
                                         .comm = r->comm,
                                         .params = &r->params,
                                         .weights = gr_weights_whole(&r->params, r->weights),
                                         .optimizer = r->optimizer,
                                         .config_text = "{}\n",
                                         .facts = &fact,
                                         .n_fact = 1,
                                         .keep_last = CRASH_KEEP_LAST});
}

/* Loads what is found, *step 0 if nothing is. */
static gr_err resume(crash_run *r, gr_checkpointer *c, gr_io *io, const char *folder, int64_t *step) {
    gr_checkpoint_found found = {0};
    *step = 0;
    gr_err err = gr_checkpoint_find(io, r->comm, folder, &found);
    if (!err && found.found) {
        forget(r);
        err = gr_checkpoint_load(c, &found);
        *step = found.state.step;
        if (!err && !state_is(r, &found.state))
            err = gr_fail(GR_BUG, "%s: expected the state of step %lld, got another", found.path, (long long)*step);
    }
    gr_checkpoint_found_close(&found);
    return err;
}

gr_err crash_run_live(crash_run *r, gr_io *io, const char *folder, int64_t last,
    void (*saved)(void *context, int64_t step, gr_err err), void *context) {
    int64_t step;
    gr_checkpointer *c = NULL;
    gr_err err = checkpointer_open(r, io, folder, &c);
    if (!err)
        err = resume(r, c, io, folder, &step);
    while (!err && step < last) {
        take_step(r, ++step);
        gr_run_state state = state_of(step);
        saved(context, step, gr_checkpoint_save(c, &state));
    }
    gr_checkpointer_close(c);
    return err;
}

/* ---- what it left */

static int sync_nothing(gr_io *io, int fd) {
    (void)io, (void)fd;
    return 0;
}

/* The system's, but for syncs: no power is cut from here on, and they would be most of the time. */
static gr_io *system_io(void) {
    static gr_io io;
    io = *gr_io_system();
    io.sync = sync_nothing;
    return &io;
}

/* Whether the checkpoint can be found when it is alone, in a folder that is made for it. */
static bool is_whole(crash_run *r, const char *root, const char *path) {
    char alone[PATH_BYTES], moved[2 * PATH_BYTES];
    snprintf(alone, sizeof alone, "%s/alone", root);
    snprintf(moved, sizeof moved, "%s%s", alone, strrchr(path, '/'));
    GR_ASSERT(mkdir(alone, 0777) == 0 && rename(path, moved) == 0, "%s", moved);
    gr_checkpoint_found found = {0};
    bool whole = !gr_checkpoint_find(system_io(), r->comm, alone, &found) && found.found;
    gr_checkpoint_found_close(&found);
    GR_ASSERT(rename(moved, path) == 0, "%s", moved);
    lying_folder_remove(alone);
    return whole;
}

/* The names in `folder`: none if it is not there. */
static int names_in(const char *folder, char name[STEPS_MAX][256]) {
    DIR *dir = opendir(folder);
    int n = 0;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.') {
            GR_ASSERT(n < STEPS_MAX, "%s", folder);
            snprintf(name[n++], sizeof name[0], "%s", e->d_name);
        }
    if (dir)
        closedir(dir);
    return n;
}

static bool enough_are_whole(
    crash_run *r, const char *root, const char *folder, const crash_expected *e, char why[512]) {
    char name[STEPS_MAX][256], path[2 * PATH_BYTES];
    int n = names_in(folder, name), n_whole = 0;
    for (int i = 0; i < n; i++) {
        if (strncmp(name[i], "step-", 5))
            continue;
        snprintf(path, sizeof path, "%s/%.255s", folder, name[i]);
        bool whole = is_whole(r, root, path);
        n_whole += whole;
        if (!whole && e->all_whole) {
            snprintf(why, 512, "%.200s is not whole: %.250s", name[i], gr_error_text());
            return false;
        }
    }
    if (n_whole < e->n_least)
        snprintf(why, 512, "%d whole checkpoints, expected at least %d", n_whole, e->n_least);
    return n_whole >= e->n_least;
}

/* A damaged checkpoint whose step is saved again is kept under another name. */
static bool only_checkpoints_are_left(const char *folder, char why[512]) {
    char name[STEPS_MAX][256];
    int n = names_in(folder, name);
    for (int i = 0; i < n; i++)
        if (strncmp(name[i], "step-", 5) && strncmp(name[i], "replaced-", 9)) {
            snprintf(why, 512, "%.200s was left behind", name[i]);
            return false;
        }
    return true;
}

typedef struct judged {
    char *why;
    bool all_saved;
} judged;

static void judge_save(void *context, int64_t step, gr_err err) {
    judged *j = context;
    if (err && j->all_saved) {
        snprintf(j->why, 512, "saving step %lld after the restart: %.400s", (long long)step, gr_error_text());
        j->all_saved = false;
    }
}

static bool is_refused(crash_run *r, const char *folder, char why[512]) {
    gr_checkpoint_found found = {0};
    gr_err err = gr_checkpoint_find(system_io(), r->comm, folder, &found);
    gr_checkpoint_found_close(&found);
    if (err != GR_CHECKPOINT)
        snprintf(why, 512, "starting from damage alone: expected error 66, got %d", (int)err);
    return err == GR_CHECKPOINT;
}

static bool resumes_at(crash_run *r, const char *folder, int64_t least, char why[512]) {
    int64_t step = 0;
    gr_checkpointer *c = NULL;
    gr_err err = checkpointer_open(r, system_io(), folder, &c);
    if (!err)
        err = resume(r, c, system_io(), folder, &step);
    gr_checkpointer_close(c);
    if (err)
        snprintf(why, 512, "resuming: error %d: %.400s", (int)err, gr_error_text());
    else if (step < least)
        snprintf(why, 512, "resumed at step %lld, expected %lld or later", (long long)step, (long long)least);
    return !err && step >= least;
}

bool crash_run_recovers(crash_run *r, const char *root, const char *folder, const crash_expected *e, char why[512]) {
    if (e->refused)
        return is_refused(r, folder, why);
    if (!resumes_at(r, folder, e->acknowledged, why) || !enough_are_whole(r, root, folder, e, why))
        return false;
    judged j = {.why = why, .all_saved = true};
    gr_err err = crash_run_live(r, system_io(), folder, CRASH_STEPS + 1, judge_save, &j);
    if (err)
        snprintf(why, 512, "resuming again: error %d: %.400s", (int)err, gr_error_text());
    return !err && j.all_saved && resumes_at(r, folder, CRASH_STEPS + 1, why) && only_checkpoints_are_left(folder, why);
}
