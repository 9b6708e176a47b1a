/* Retention: the newest keep_last that verify, multiples of keep_every and the one resumed from stay; damaged ones and
 * names that are not ours are never touched. Hidden first: a folder that is half removed never has a checkpoint's name,
 * not even after a power loss. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"

static struct gr_verified *verified_find(const gr_checkpointer *c, int64_t step) {
    for (int i = 0; i < c->n_verified; i++)
        if (c->verified[i].step == step)
            return &c->verified[i];
    return NULL;
}

gr_err gr_verified_set(gr_checkpointer *c, int64_t step, bool valid) {
    struct gr_verified *known = verified_find(c, step);
    if (known) {
        known->valid = valid;
        return GR_OK;
    }
    if (c->n_verified == c->verified_max) {
        int n_max = 2 * c->verified_max + 16;
        void *grown = realloc(c->verified, (size_t)n_max * sizeof *c->verified);
        if (!grown)
            return gr_fail(GR_RESOURCE, "checkpoint: no memory for a list of %d checkpoints", n_max);
        c->verified = grown;
        c->verified_max = n_max;
    }
    c->verified[c->n_verified++] = (struct gr_verified){.step = step, .valid = valid};
    return GR_OK;
}

/* Reads a checkpoint of an earlier process once. */
static gr_err is_valid(gr_checkpointer *c, int64_t step, bool *valid) {
    const struct gr_verified *known = verified_find(c, step);
    *valid = true;
    if (step == c->resumed_step)
        return GR_OK;
    if (known) {
        *valid = known->valid;
        return GR_OK;
    }
    char path[GR_CHECKPOINT_PATH_MAX];
    gr_manifest m;
    gr_step_path(c->o.folder, step, path);
    gr_err err = gr_checkpoint_verify(c->o.io, path, step, c->buffer, &m, NULL, NULL);
    gr_manifest_close(&m);
    if (err && err != GR_CHECKPOINT)
        return err;
    if (err)
        gr_warn("old checkpoint is damaged and stays: %s", gr_error_text());
    *valid = err == GR_OK;
    return gr_verified_set(c, step, *valid);
}

/* Of step[n], newest first, moves those that may go to the front; *n_doomed says how many. */
static gr_err doomed_choose(gr_checkpointer *c, int64_t *step, int n, int *n_doomed) {
    int64_t n_kept = 0;
    *n_doomed = 0;
    for (int i = 0; i < n; i++) {
        bool valid;
        if (step[i] > c->durable_step)
            continue;
        bool surplus = n_kept >= c->o.keep_last;
        if (surplus && ((c->o.keep_every && step[i] % c->o.keep_every == 0) || step[i] == c->resumed_step))
            continue;
        GR_TRY(is_valid(c, step[i], &valid));
        if (valid && surplus)
            step[(*n_doomed)++] = step[i];
        else
            n_kept += valid;
    }
    return GR_OK;
}

static void trash_path(const gr_checkpointer *c, int64_t step, char *path) {
    snprintf(path, GR_CHECKPOINT_PATH_MAX, "%s/trash-%08lld.%016" PRIx64, c->o.folder, (long long)step, c->run_id);
}

/* A name must not come back once its files begin to go, hence the sync. */
static gr_err doomed_hide(gr_checkpointer *c, const int64_t *step, int n) {
    gr_io *io = c->o.io;
    for (int i = 0; i < n; i++) {
        char path[GR_CHECKPOINT_PATH_MAX], trash[GR_CHECKPOINT_PATH_MAX];
        gr_step_path(c->o.folder, step[i], path);
        trash_path(c, step[i], trash);
        int r = io->rename(io, path, trash);
        if (r < 0)
            return gr_storage_fail(path, "renaming it to be removed", r);
        struct gr_verified *known = verified_find(c, step[i]);
        *known = c->verified[--c->n_verified];
    }
    return n ? gr_saved_folder_sync(io, c->o.folder) : GR_OK;
}

static gr_err retain(gr_checkpointer *c) {
    int64_t *step;
    int n, n_doomed = 0;
    GR_TRY(gr_verified_set(c, c->durable_step, true));
    int r = gr_steps_list(c->o.io, c->o.folder, &step, &n);
    gr_err err = r < 0 ? gr_storage_fail(c->o.folder, "listing", r) : GR_OK;
    if (!err)
        err = doomed_choose(c, step, n, &n_doomed);
    if (!err)
        err = doomed_hide(c, step, n_doomed);
    free(step);
    return err;
}

void gr_checkpoints_retain(gr_checkpointer *c) {
    if (retain(c))
        gr_warn("old checkpoints stay for now: %s", gr_error_text());
    else
        gr_leftovers_remove(c->o.io, c->o.folder);
}
