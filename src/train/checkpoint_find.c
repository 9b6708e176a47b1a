/* Which checkpoint to resume from. Rank 0 reads, all ranks parse the same text. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"

/* What rank 0 has found and all must know. */
typedef struct verdict {
    bool found;
    int64_t step;
    size_t n_text; /* of the manifest */
} verdict;

/* Another version is no damage: an older checkpoint instead of it would silently undo a newer program's work. */
static gr_err candidate_try(gr_io *io, const char *folder, int64_t step, uint8_t *buffer, verdict *v, char **text) {
    char path[GR_CHECKPOINT_PATH_MAX];
    gr_manifest m;
    gr_step_path(folder, step, path);
    gr_err err = gr_checkpoint_verify(io, path, step, buffer, &m, text, &v->n_text);
    bool other_version = m.version != 0 && m.version != CHECKPOINT_MANIFEST_VERSION;
    gr_manifest_close(&m);
    v->found = err == GR_OK;
    v->step = step;
    if (err != GR_CHECKPOINT || other_version)
        return err;
    gr_warn(
        "checkpoint step %lld is damaged and passed over (nothing is deleted): %s", (long long)step, gr_error_text());
    return GR_OK;
}

static gr_err newest_find(gr_io *io, const char *folder, uint8_t *buffer, verdict *v, char **text) {
    int64_t *step;
    int n;
    int r = gr_steps_list(io, folder, &step, &n);
    gr_err err = GR_OK;
    if (r < 0 && r != -ENOENT)
        err = gr_storage_fail(folder, "listing", r);
    for (int i = 0; !err && !v->found && i < n; i++)
        err = candidate_try(io, folder, step[i], buffer, v, text);
    if (!err && !v->found && n > 0)
        err = gr_fail(GR_CHECKPOINT,
            "%s: expected a whole checkpoint, got %d damaged ones; restore one from a backup, or start over with "
            "--fresh",
            folder, n);
    free(step);
    return err;
}

/* Rank 0's part. */
static gr_err folder_search(gr_io *io, const char *folder, verdict *v, char **text) {
    void *buffer;
    if (strlen(folder) >= GR_PATH_MAX)
        return gr_fail(GR_CONFIG, "run.dir: expected fewer than %d bytes, got %s", GR_PATH_MAX - 16, folder);
    GR_TRY(gr_alloc(&buffer, CHECKPOINT_BUFFER_BYTE, 1, "buffer of checkpoints"));
    gr_leftovers_remove(io, folder);
    gr_err err = newest_find(io, folder, buffer, v, text);
    free(buffer);
    return err;
}

static gr_err found_fill(gr_checkpoint_found *out, const char *folder, const verdict *v, const char *text) {
    gr_manifest m;
    gr_step_path(folder, v->step, out->path);
    gr_err err = gr_manifest_parse(&m, text, v->n_text, out->path);
    if (!err) {
        out->found = true;
        out->state = m.state;
        out->n_rank = m.n_rank;
        out->R_ep = m.R_ep;
        out->config_text = m.config_text;
        out->facts = m.facts;
        out->n_fact = m.n_fact;
        m.config_text = NULL; /* moved */
        m.facts = NULL;
        m.n_fact = 0;
    }
    gr_manifest_close(&m);
    return err;
}

/* Every rank's part once rank 0 knows; *text is rank 0's manifest, elsewhere NULL. */
static gr_err verdict_share(gr_comm *comm, const char *folder, verdict *v, char **text, gr_checkpoint_found *out) {
    GR_TRY(comm->bcast(comm, GR_WORLD, v, sizeof *v, 0));
    if (!v->found)
        return GR_OK;
    gr_err err = GR_OK;
    if (!*text) {
        void *memory;
        err = gr_alloc(&memory, v->n_text, 1, "manifest of a checkpoint");
        *text = memory;
    }
    GR_TRY(gr_comm_agree(comm, err));
    GR_TRY(comm->bcast(comm, GR_WORLD, *text, v->n_text, 0));
    return gr_comm_agree(comm, found_fill(out, folder, v, *text));
}

gr_err gr_checkpoint_find(gr_io *io, gr_comm *comm, const char *folder, gr_checkpoint_found *out) {
    verdict v = {0};
    char *text = NULL;
    *out = (gr_checkpoint_found){0};
    gr_err err = gr_comm_agree(comm, comm->rank[GR_WORLD] == 0 ? folder_search(io, folder, &v, &text) : GR_OK);
    if (!err)
        err = verdict_share(comm, folder, &v, &text, out);
    if (err)
        gr_checkpoint_found_close(out);
    free(text);
    return err;
}

void gr_checkpoint_found_close(gr_checkpoint_found *f) {
    gr_manifest m = {.config_text = f->config_text, .facts = f->facts, .n_fact = f->n_fact};
    gr_manifest_close(&m);
    *f = (gr_checkpoint_found){0};
}
