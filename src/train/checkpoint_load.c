/* Loading: any layout reads what any layout wrote, since weights are whole tensors and moments are pieces of logical
 * tensors. Every rank checks the pieces of the whole model, so all come to the same verdict, and only then copies. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"

enum { PROBLEMS_MAX = 20, PROBLEM_BYTE = 2 * GR_TENSOR_NAME_MAX + 128 };

/* A stored range of one moment of one tensor. */
typedef struct piece {
    int whole, state;
    int64_t first, n;
    const uint8_t *data;
} piece;

typedef struct moments {
    const gr_params *params;
    gr_whole *list; /* [n_whole] sorted by name */
    gr_safetensors **file;
    piece *pieces;
    int n_whole, n_file, n_piece;
    int n_problem;
    char problem[PROBLEMS_MAX][PROBLEM_BYTE];
} moments;

__attribute__((format(printf, 2, 3))) static void problem_add(moments *m, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    if (m->n_problem++ < PROBLEMS_MAX)
        vsnprintf(m->problem[m->n_problem - 1], PROBLEM_BYTE, fmt, args);
    va_end(args);
}

static gr_err problems_report(const moments *m, const char *path) {
    char head[GR_CHECKPOINT_PATH_MAX + 256];
    const char *line[1 + PROBLEMS_MAX] = {head};
    int n = m->n_problem < PROBLEMS_MAX ? m->n_problem : PROBLEMS_MAX;
    if (n == 0)
        return GR_OK;
    snprintf(head, sizeof head,
        "%s: expected every element of both moments of this config's model exactly once, got %d places that differ%s; "
        "use the config the checkpoint was trained with",
        path, m->n_problem, m->n_problem > n ? " (the first 20 follow)" : "");
    for (int i = 0; i < n; i++)
        line[1 + i] = m->problem[i];
    return gr_fail_lines(GR_CHECKPOINT, line, 1 + n);
}

/* ---------------------------------------------------------------- names: <logical tensor>.<state>.<first element> */

static bool first_read(const char *digits, int64_t *first) {
    *first = 0;
    if (!*digits || (digits[0] == '0' && digits[1]))
        return false;
    for (; *digits; digits++)
        if (*digits < '0' || *digits > '9' || __builtin_mul_overflow(*first, 10, first) ||
            __builtin_add_overflow(*first, *digits - '0', first))
            return false;
    return true;
}

/* Splits the name; false if there is no such tensor or state. */
static bool piece_name_read(const moments *m, const char *stored, piece *p) {
    char name[GR_TENSOR_NAME_MAX];
    snprintf(name, sizeof name, "%s", stored);
    char *first = strrchr(name, '.');
    if (!first || !first_read(first + 1, &p->first))
        return false;
    *first = '\0';
    char *state = strrchr(name, '.');
    if (!state)
        return false;
    *state = '\0';
    for (p->state = 0; p->state < CHECKPOINT_N_MOMENT; p->state++)
        if (strcmp(state + 1, gr_moment_name(p->state)) == 0)
            break;
    const gr_whole *w = gr_wholes_find(m->list, m->n_whole, name);
    if (!w || p->state == CHECKPOINT_N_MOMENT)
        return false;
    p->whole = (int)(w - m->list);
    return true;
}

static void piece_read(moments *m, const gr_tensor *t) {
    piece p = {.data = t->data};
    if (!piece_name_read(m, t->name, &p)) {
        problem_add(m, "  %s: expected no such tensor", t->name);
        return;
    }
    int64_t size = gr_param_size(m->list[p.whole].param);
    if (t->dtype != GR_F32 || t->n_dim != 1 || t->dim[0] < 1 || p.first >= size || t->dim[0] > size - p.first) {
        problem_add(m, "  %s: expected F32 [1 to %" PRId64 "], got %s [%" PRId64 "] of %d dimensions", t->name,
            p.first < size ? size - p.first : 0, gr_dtype_name(t->dtype), t->n_dim ? t->dim[0] : 1, t->n_dim);
        return;
    }
    p.n = t->dim[0];
    m->pieces[m->n_piece++] = p;
}

/* ---------------------------------------------------------------- coverage */

static int piece_compare(const void *a, const void *b) {
    const piece *x = a, *y = b;
    if (x->whole != y->whole)
        return x->whole < y->whole ? -1 : 1;
    if (x->state != y->state)
        return x->state < y->state ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

static void range_problem(moments *m, int whole, int state, int64_t first, int64_t end, const char *got) {
    problem_add(m, "  %s.%s: elements %" PRId64 " to %" PRId64 ": expected once, got %s", m->list[whole].name,
        gr_moment_name(state), first, end - 1, got);
}

/* The pieces of one moment, from pieces[at] on: each begins where the one before ended. Returns where they end. */
static int moment_check(moments *m, int at, int whole, int state) {
    int64_t covered = 0, size = gr_param_size(m->list[whole].param);
    for (; at < m->n_piece && m->pieces[at].whole == whole && m->pieces[at].state == state; at++) {
        const piece *p = &m->pieces[at];
        int64_t end = p->first + p->n;
        if (p->first > covered)
            range_problem(m, whole, state, covered, p->first, "none");
        if (p->first < covered)
            range_problem(m, whole, state, p->first, end < covered ? end : covered, "more than one");
        covered = end > covered ? end : covered;
    }
    if (covered < size)
        range_problem(m, whole, state, covered, size, "none");
    return at;
}

static gr_err pieces_check(moments *m, const char *path) {
    int n_max = 0;
    for (int i = 0; i < m->n_file; i++)
        n_max += gr_safetensors_count(m->file[i]);
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)n_max, sizeof *m->pieces, "pieces of moments"));
    m->pieces = memory;
    for (int i = 0; i < m->n_file; i++)
        for (int t = 0; t < gr_safetensors_count(m->file[i]); t++)
            piece_read(m, gr_safetensors_at(m->file[i], t));
    qsort(m->pieces, (size_t)m->n_piece, sizeof *m->pieces, piece_compare);
    int at = 0;
    for (int whole = 0; whole < m->n_whole; whole++)
        for (int state = 0; state < CHECKPOINT_N_MOMENT; state++)
            at = moment_check(m, at, whole, state);
    return problems_report(m, path);
}

/* ---------------------------------------------------------------- copying */

/* Loads what `held` has of a piece whose first element lies at `offset` of the flat range, a part at a time. */
static gr_err piece_load(gr_staging *s, const piece *p, int64_t offset, const gr_moments *held) {
    int64_t first = offset > held->first ? offset : held->first, end = offset + p->n;
    if (end > held->first + held->n)
        end = held->first + held->n;
    if (first >= end)
        return GR_OK;
    uint8_t *to = (uint8_t *)((p->state ? held->v : held->m) + (first - held->first));
    const uint8_t *from = p->data + (size_t)(first - offset) * sizeof(float);
    size_t n_byte = (size_t)(end - first) * sizeof(float);
    for (size_t at = 0, n; at < n_byte; at += n) {
        void *room;
        n = n_byte - at < GR_STAGING_PIECE ? n_byte - at : GR_STAGING_PIECE;
        GR_TRY(gr_staging_room(s, to + at, n, &room));
        memcpy(room, from + at, n);
        GR_TRY(gr_staging_store(s, to + at, n));
    }
    return GR_OK;
}

/* Padding is in no piece. */
static gr_err moments_clear(const gr_moments *held) {
    gr_backend *b = held->backend;
    size_t n_byte = (size_t)held->n * sizeof *held->m;
    if (n_byte == 0)
        return GR_OK;
    GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, held->m, n_byte));
    return b->fill_zero(b, GR_LANE_COMPUTE, held->v, n_byte);
}

static gr_err moments_load(gr_staging *s, const moments *m, const gr_moments held[2]) {
    for (int i = 0; i < 2; i++)
        GR_TRY(moments_clear(&held[i]));
    for (int i = 0; i < m->n_piece; i++) {
        const gr_whole *w = &m->list[m->pieces[i].whole];
        int64_t offset = gr_whole_offset(m->params, w);
        if (offset >= 0)
            GR_TRY(piece_load(s, &m->pieces[i], offset + m->pieces[i].first, &held[w->param->owner == GR_EDP]));
    }
    return GR_OK;
}

static gr_err moments_fill(const moments *m, gr_optimizer *optimizer) {
    gr_moments held[2];
    gr_optimizer_held(optimizer, held);
    gr_staging s = {.backend = held[0].backend};
    gr_err err = moments_load(&s, m, held);
    gr_staging_close(&s);
    return err;
}

/* ---------------------------------------------------------------- a checkpoint */

static void file_path(const gr_checkpoint_found *f, int i, char path[CHECKPOINT_FILE_PATH_MAX]) {
    char name[CHECKPOINT_NAME_MAX];
    gr_saved_file_name(f->n_rank, f->R_ep, i, name);
    snprintf(path, CHECKPOINT_FILE_PATH_MAX, "%s/%s", f->path, name);
}

static gr_err weights_load(const gr_params *p, const gr_checkpoint_found *f, gr_weights weights) {
    void *text, *list;
    GR_TRY(gr_alloc(&text, (size_t)f->R_ep, CHECKPOINT_FILE_PATH_MAX, "paths of a checkpoint"));
    gr_err err = gr_alloc(&list, (size_t)f->R_ep, sizeof(char *), "paths of a checkpoint");
    const char **path = list;
    for (int i = 0; !err && i < f->R_ep; i++) {
        char *to = (char *)text + (size_t)i * CHECKPOINT_FILE_PATH_MAX;
        file_path(f, i, to);
        path[i] = to;
    }
    if (!err)
        err = gr_params_load_files(p, path, f->R_ep, weights);
    free(list);
    free(text);
    return err;
}

/* After an error moments_close is still due. */
static gr_err moments_open(moments *m, const gr_checkpoint_found *f) {
    void *memory;
    GR_TRY(gr_wholes_make(m->params, &m->list, &m->n_whole));
    gr_wholes_sort(m->list, m->n_whole);
    GR_TRY(gr_alloc(&memory, (size_t)f->n_rank, sizeof *m->file, "files of moments"));
    m->file = memory;
    for (; m->n_file < f->n_rank; m->n_file++) {
        char path[CHECKPOINT_FILE_PATH_MAX];
        file_path(f, f->R_ep + 1 + m->n_file, path);
        GR_TRY(gr_safetensors_open(&m->file[m->n_file], path));
    }
    return pieces_check(m, f->path);
}

static void moments_close(moments *m) {
    for (int i = 0; i < m->n_file; i++)
        gr_safetensors_close(m->file[i]);
    free(m->file);
    free(m->pieces);
    free(m->list);
}

gr_err gr_checkpoint_load(gr_checkpointer *c, const gr_checkpoint_found *found) {
    GR_ASSERT(found->found, "no checkpoint to load");
    moments m = {.params = c->o.params};
    gr_err err = moments_open(&m, found);
    if (!err)
        err = weights_load(c->o.params, found, c->o.weights);
    if (!err)
        err = moments_fill(&m, c->o.optimizer);
    moments_close(&m);
    GR_TRY(gr_comm_agree(c->o.comm, err));
    gr_optimizer_counts_set(c->o.optimizer, found->state.optimizer);
    c->durable_step = c->resumed_step = found->state.step;
    return GR_OK;
}
