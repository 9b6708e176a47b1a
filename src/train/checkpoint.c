/* Saving. At every instant either the old checkpoints or the old ones and the new one are whole on disk:
 * temporary folder -> all files created and their room reserved -> written, synced, closed -> sizes checked by rank 0
 * -> manifest -> folder synced -> renamed -> parent synced -> durable -> read back -> old ones removed. */
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint_parts.h"

/* ---------------------------------------------------------------- open, close */

/* The folder and its entry in the run folder, durable before anything is put in it. */
static gr_err folder_make(const gr_checkpoint_options *o) {
    char parent[GR_CHECKPOINT_PATH_MAX];
    if (strlen(o->folder) >= GR_PATH_MAX)
        return gr_fail(GR_CONFIG, "run.dir: expected fewer than %d bytes, got %s", GR_PATH_MAX - 16, o->folder);
    int r = o->io->make_folder(o->io, o->folder);
    if (r < 0 && r != -EEXIST)
        return gr_storage_fail(o->folder, "creating the folder", r);
    snprintf(parent, sizeof parent, "%s", o->folder);
    return gr_saved_folder_sync(o->io, dirname(parent));
}

/* Distinguishes the temporary folders of runs; nothing else depends on it. */
static uint64_t run_id_make(void) {
    struct {
        struct timespec time;
        int64_t process;
        char host[64];
    } id;
    memset(&id, 0, sizeof id);
    clock_gettime(CLOCK_REALTIME, &id.time);
    id.process = getpid();
    gethostname(id.host, sizeof id.host - 1);
    return gr_hash64(&id, sizeof id);
}

static gr_err checkpointer_open(gr_checkpointer *c) {
    gr_comm *comm = c->o.comm;
    void *memory = NULL;
    gr_err err = gr_alloc(&memory, CHECKPOINT_BUFFER_BYTE, 1, "buffer of checkpoints");
    c->buffer = memory;
    if (!err && comm->rank[GR_WORLD] == 0)
        err = folder_make(&c->o);
    GR_TRY(gr_comm_agree(comm, err));
    c->run_id = run_id_make();
    return comm->bcast(comm, GR_WORLD, &c->run_id, sizeof c->run_id, 0);
}

gr_err gr_checkpointer_open(gr_checkpointer **out, const gr_checkpoint_options *o) {
    void *memory;
    *out = NULL;
    GR_ASSERT(o->keep_last >= 2 && o->keep_every >= 0, "keep_last %" PRId64 ", keep_every %" PRId64, o->keep_last,
        o->keep_every);
    GR_TRY(gr_comm_agree(o->comm, gr_alloc(&memory, 1, sizeof(gr_checkpointer), "checkpointer")));
    gr_checkpointer *c = memory;
    c->o = *o;
    c->durable_step = c->resumed_step = -1;
    gr_err err = checkpointer_open(c);
    if (err) {
        gr_checkpointer_close(c);
        return err;
    }
    *out = c;
    return GR_OK;
}

void gr_checkpointer_close(gr_checkpointer *c) {
    if (!c)
        return;
    free(c->verified);
    free(c->buffer);
    free(c);
}

/* ---------------------------------------------------------------- one save */

enum { MODEL, INDEX, OPTIM, N_KIND }; /* files of one rank */
enum { RECORD_WORDS = 3 };            /* of one file, as it travels to rank 0: size, hash */

typedef struct save {
    gr_checkpointer *c;
    const gr_run_state *state;
    char temporary[GR_CHECKPOINT_PATH_MAX], final[GR_CHECKPOINT_PATH_MAX];
    bool renamed;
    gr_contents contents[N_KIND]; /* of model and optimizer */
    gr_whole *list;               /* [n_whole] tensors of the model */
    int n_whole;
    gr_weights_reader reader;
    char *index;
    size_t n_index;
    gr_new_file file[N_KIND];
    int place[N_KIND];         /* in the manifest's list; -1: not this rank's to write */
    gr_saved_file own[N_KIND]; /* what this rank wrote */
    uint64_t *record;          /* [R][N_KIND][RECORD_WORDS] */
    gr_saved_file *saved;      /* on rank 0: by place in the manifest's list */
    gr_saved_file manifest;    /* on rank 0 */
} save;

static void place_set(save *s) {
    const gr_comm *comm = s->c->o.comm;
    int rank = comm->rank[GR_WORLD], R_ep = comm->size[GR_EP];
    s->place[MODEL] = rank < R_ep ? rank : -1;
    s->place[INDEX] = rank == 0 ? R_ep : -1;
    s->place[OPTIM] = R_ep + 1 + rank;
}

static void file_name(const save *s, int kind, char name[CHECKPOINT_NAME_MAX]) {
    const gr_comm *comm = s->c->o.comm;
    gr_saved_file_name(comm->size[GR_WORLD], comm->size[GR_EP], s->place[kind], name);
}

static gr_err contents_make(save *s) {
    const gr_checkpoint_options *o = &s->c->o;
    gr_moments owned[2];
    gr_optimizer_owned(o->optimizer, owned);
    GR_TRY(gr_contents_optimizer(&s->contents[OPTIM], o->params, owned));
    GR_TRY(gr_wholes_make(o->params, &s->list, &s->n_whole));
    GR_TRY(gr_weights_reader_open(&s->reader, o->params, o->comm, &o->weights));
    if (s->place[MODEL] >= 0)
        GR_TRY(gr_contents_model(&s->contents[MODEL], o->params, s->list, s->n_whole));
    if (s->place[INDEX] >= 0)
        GR_TRY(gr_contents_index(o->params, o->comm->size[GR_EP], &s->index, &s->n_index));
    size_t n_rank = (size_t)o->comm->size[GR_WORLD];
    void *memory;
    GR_TRY(gr_alloc(&memory, n_rank, sizeof(uint64_t[N_KIND][RECORD_WORDS]), "checksums of a checkpoint"));
    s->record = memory;
    GR_TRY(gr_alloc(&memory, (size_t)gr_saved_file_count((int)n_rank, o->comm->size[GR_EP]), sizeof *s->saved,
        "files of a checkpoint"));
    s->saved = memory;
    return GR_OK;
}

static gr_err files_create(save *s) {
    for (int k = 0; k < N_KIND; k++) {
        char name[CHECKPOINT_NAME_MAX];
        uint64_t n_byte = k == INDEX ? s->n_index : s->contents[k].n_header + s->contents[k].n_data;
        if (s->place[k] < 0)
            continue;
        file_name(s, k, name);
        GR_TRY(gr_new_file_open(&s->file[k], s->c->o.io, s->temporary, name, n_byte, s->c->buffer));
    }
    return GR_OK;
}

/* Every rank's part of all model files: with weights in shares a tensor comes from several ranks. A failure of the own
 * file is kept until every piece has been sent, so that nobody waits. */
static gr_err model_write(save *s) {
    const gr_params *p = s->c->o.params;
    bool writes = s->place[MODEL] >= 0;
    gr_new_file *f = &s->file[MODEL];
    gr_err err = writes ? gr_new_file_write(f, s->contents[MODEL].header, s->contents[MODEL].n_header) : GR_OK;
    for (int i = 0; i < s->n_whole; i++) {
        int64_t size = gr_param_size(s->list[i].param);
        bool has = writes && gr_contents_has(p, &s->list[i]);
        for (int64_t first = 0; first < size; first += GR_WEIGHTS_PIECE) {
            int64_t n = size - first < GR_WEIGHTS_PIECE ? size - first : GR_WEIGHTS_PIECE;
            const float *data;
            GR_TRY(gr_weights_read(&s->reader, &s->list[i], first, n, &data));
            if (has && !err)
                err = gr_new_file_write(f, data, (size_t)n * sizeof *data);
        }
    }
    if (writes && !err)
        err = gr_new_file_commit(f, &s->own[MODEL]);
    return err;
}

/* n_byte of backend memory, a piece at a time. */
static gr_err moment_write(gr_new_file *f, gr_staging *staging, const float *data, size_t n_byte) {
    const uint8_t *from = (const uint8_t *)data;
    for (size_t at = 0, n; at < n_byte; at += n) {
        const void *host;
        n = n_byte - at < GR_STAGING_PIECE ? n_byte - at : GR_STAGING_PIECE;
        GR_TRY(gr_staging_fetch(staging, from + at, n, &host));
        GR_TRY(gr_new_file_write(f, host, n));
    }
    return GR_OK;
}

static gr_err moments_write(save *s, gr_staging *staging) {
    const gr_contents *c = &s->contents[OPTIM];
    gr_new_file *f = &s->file[OPTIM];
    GR_TRY(gr_new_file_write(f, c->header, c->n_header));
    for (int i = 0; i < c->n; i++) {
        size_t n = sizeof(float);
        for (int d = 0; d < c->tensor[i].n_dim; d++)
            n *= (size_t)c->tensor[i].dim[d];
        GR_TRY(moment_write(f, staging, c->data[i], n));
    }
    return gr_new_file_commit(f, &s->own[OPTIM]);
}

static gr_err optim_write(save *s) {
    gr_staging staging = {.backend = s->contents[OPTIM].backend};
    gr_err err = moments_write(s, &staging);
    gr_staging_close(&staging);
    return err;
}

static gr_err files_write(save *s) {
    GR_TRY(model_write(s));
    if (s->place[INDEX] >= 0) {
        GR_TRY(gr_new_file_write(&s->file[INDEX], s->index, s->n_index));
        GR_TRY(gr_new_file_commit(&s->file[INDEX], &s->own[INDEX]));
    }
    return optim_write(s);
}

/* Sizes and hashes of all files to all ranks; rank 0 uses them. */
static gr_err records_gather(save *s) {
    gr_comm *comm = s->c->o.comm;
    enum { OWN_WORDS = N_KIND * RECORD_WORDS };
    uint64_t *own = s->record + (size_t)comm->rank[GR_WORLD] * OWN_WORDS;
    for (int k = 0; k < N_KIND; k++) {
        own[k * RECORD_WORDS] = s->own[k].n_byte;
        own[k * RECORD_WORDS + 1] = s->own[k].hash.lo;
        own[k * RECORD_WORDS + 2] = s->own[k].hash.hi;
    }
    GR_TRY(comm->all_gather(comm, GR_WORLD, GR_U64, s->record, OWN_WORDS));
    int n_rank = comm->size[GR_WORLD], R_ep = comm->size[GR_EP];
    for (int i = 0; i < gr_saved_file_count(n_rank, R_ep); i++) {
        int kind = i < R_ep ? MODEL : i == R_ep ? INDEX : OPTIM;
        int rank = kind == MODEL ? i : kind == INDEX ? 0 : i - R_ep - 1;
        const uint64_t *r = s->record + rank * OWN_WORDS + kind * RECORD_WORDS;
        s->saved[i] = (gr_saved_file){.n_byte = r[0], .hash = {.lo = r[1], .hi = r[2]}};
    }
    return GR_OK;
}

static gr_err manifest_write(save *s) {
    const gr_checkpoint_options *o = &s->c->o;
    gr_manifest m = {.state = *s->state,
        .n_rank = o->comm->size[GR_WORLD],
        .R_ep = o->comm->size[GR_EP],
        .config_text = (char *)(uintptr_t)o->config_text,
        .facts = (gr_fact *)(uintptr_t)o->facts,
        .n_fact = o->n_fact,
        .file = s->saved};
    m.state.optimizer = gr_optimizer_counts_get(o->optimizer);
    char *text;
    size_t n;
    gr_new_file f = {0};
    gr_err err = gr_manifest_print(&m, &text, &n);
    if (!err)
        err = gr_new_file_open(&f, o->io, s->temporary, CHECKPOINT_MANIFEST, n, s->c->buffer);
    if (!err)
        err = gr_new_file_write(&f, text, n);
    if (!err)
        err = gr_new_file_commit(&f, &s->manifest);
    gr_new_file_close(&f);
    free(text);
    return err;
}

/* Whatever has the name already was passed over at the start, or is of a save that never became durable: it makes way,
 * but nothing that might be of use to someone is deleted. */
static gr_err rename_into_place(save *s) {
    gr_io *io = s->c->o.io;
    int r = io->rename(io, s->temporary, s->final);
    if (r == -ENOTEMPTY || r == -EEXIST || r == -ENOTDIR) {
        char aside[GR_CHECKPOINT_PATH_MAX];
        snprintf(aside, sizeof aside, "%s/replaced-%08lld.%016" PRIx64, s->c->o.folder, (long long)s->state->step,
            s->c->run_id);
        r = io->rename(io, s->final, aside);
        if (r == 0) {
            gr_warn("%s was there and is now %s", s->final, aside);
            r = io->rename(io, s->temporary, s->final);
        }
    }
    if (r < 0)
        return gr_storage_fail(s->final, "renaming into place", r);
    s->renamed = true;
    return GR_OK;
}

/* Rank 0's part once all files are closed. */
static gr_err publish(save *s) {
    const gr_checkpoint_options *o = &s->c->o;
    int n_rank = o->comm->size[GR_WORLD], R_ep = o->comm->size[GR_EP];
    for (int i = 0; i < gr_saved_file_count(n_rank, R_ep); i++) {
        char name[CHECKPOINT_NAME_MAX];
        gr_saved_file_name(n_rank, R_ep, i, name);
        if (gr_saved_file_check_size(o->io, s->temporary, name, &s->saved[i]))
            return GR_STORAGE; /* with the text of what differs */
    }
    GR_TRY(manifest_write(s));
    GR_TRY(gr_saved_folder_sync(o->io, s->temporary));
    GR_TRY(rename_into_place(s));
    return gr_saved_folder_sync(o->io, o->folder);
}

static gr_err temporary_make(save *s) {
    gr_io *io = s->c->o.io;
    int r = io->make_folder(io, s->temporary);
    return r < 0 ? gr_storage_fail(s->temporary, "creating the folder", r) : GR_OK;
}

/* Every stage ends with the word of all ranks, so that they leave together. */
static gr_err stages_run(save *s) {
    gr_comm *comm = s->c->o.comm;
    bool root = comm->rank[GR_WORLD] == 0;
    gr_err err = contents_make(s);
    if (!err && root)
        err = temporary_make(s);
    GR_TRY(gr_comm_agree(comm, err));
    GR_TRY(gr_comm_agree(comm, files_create(s)));
    GR_TRY(gr_comm_agree(comm, files_write(s)));
    GR_TRY(records_gather(s));
    return gr_comm_agree(comm, root ? publish(s) : GR_OK);
}

/* What this rank wrote, from the disk. */
static gr_err files_read_back(save *s) {
    gr_io *io = s->c->o.io;
    if (s->c->o.comm->rank[GR_WORLD] == 0 &&
        gr_saved_file_verify(io, s->final, CHECKPOINT_MANIFEST, &s->manifest, s->c->buffer))
        return GR_STORAGE; /* with the text of what differs */
    for (int k = 0; k < N_KIND; k++) {
        char name[CHECKPOINT_NAME_MAX];
        if (s->place[k] < 0)
            continue;
        file_name(s, k, name);
        if (gr_saved_file_verify(io, s->final, name, &s->own[k], s->c->buffer))
            return GR_STORAGE;
    }
    return GR_OK;
}

static void durable_print(const save *s, double start_s) {
    const gr_comm *comm = s->c->o.comm;
    double n_byte = 0;
    for (int i = 0; i < gr_saved_file_count(comm->size[GR_WORLD], comm->size[GR_EP]); i++)
        n_byte += (double)s->saved[i].n_byte;
    gr_info("checkpoint step %lld durable: %s (%.1f MiB, %.1f s)", (long long)s->state->step, s->final,
        n_byte / 1048576.0, gr_time_s() - start_s);
}

static void save_close(save *s) {
    for (int k = 0; k < N_KIND; k++) {
        gr_new_file_close(&s->file[k]);
        gr_contents_close(&s->contents[k]);
    }
    gr_weights_reader_close(&s->reader);
    free(s->list);
    free(s->index);
    free(s->record);
    free(s->saved);
}

/* After a failure that all ranks know of: every file is closed before rank 0 removes it. The first error stays the one
 * that is told. */
static void temporary_remove(save *s, gr_err err) {
    gr_comm *comm = s->c->o.comm;
    for (int k = 0; k < N_KIND; k++)
        gr_new_file_close(&s->file[k]);
    if (err == GR_PEER || comm->barrier(comm, GR_WORLD) || comm->rank[GR_WORLD] != 0 || s->renamed)
        return;
    int r = gr_saved_folder_remove(s->c->o.io, s->temporary);
    if (r < 0 && r != -ENOENT)
        gr_warn("leftover of a save stays: %s: %s", s->temporary, strerror(-r));
}

/* The caller may go on after an agreed error, and rank 0 alone talks: it must know the reason too. */
static gr_err reason_share(gr_comm *comm, gr_err err) {
    char text[2048] = "";
    int rank = comm->agreed_rank;
    if (!err || err != comm->agreed)
        return err;
    if (comm->rank[GR_WORLD] == rank)
        snprintf(text, sizeof text, "%s", gr_error_text());
    GR_TRY(comm->bcast(comm, GR_WORLD, text, sizeof text, rank));
    if (comm->rank[GR_WORLD] != rank)
        err = gr_fail_silently(gr_fail(err, "rank %d: %s", rank, text));
    return err;
}

static gr_err save_run(save *s) {
    gr_checkpointer *c = s->c;
    double start_s = gr_time_s();
    gr_err err = reason_share(c->o.comm, stages_run(s));
    if (err) {
        temporary_remove(s, err);
        return err;
    }
    durable_print(s, start_s);
    GR_TRY(reason_share(c->o.comm, gr_comm_agree(c->o.comm, files_read_back(s))));
    c->durable_step = s->state->step;
    if (c->o.comm->rank[GR_WORLD] == 0)
        gr_checkpoints_retain(c);
    return GR_OK;
}

/* A save that failed may have left its final name, even with the right bytes under it: but what a failed sync left
 * unwritten may never get to the disk, so no older checkpoint may go because of it. */
static void distrust(const save *s) {
    if (s->renamed && gr_verified_set(s->c, s->state->step, false))
        gr_warn("%s", gr_error_text());
}

gr_err gr_checkpoint_save(gr_checkpointer *c, const gr_run_state *state) {
    if (state->step == c->durable_step)
        return GR_OK;
    c->run_id++; /* a second try must not meet what the first could not remove */
    save s = {.c = c, .state = state};
    snprintf(
        s.temporary, sizeof s.temporary, "%s/tmp-%08lld.%016" PRIx64, c->o.folder, (long long)state->step, c->run_id);
    gr_step_path(c->o.folder, state->step, s.final);
    place_set(&s);
    gr_err err = save_run(&s);
    if (err)
        distrust(&s);
    save_close(&s);
    return err;
}
