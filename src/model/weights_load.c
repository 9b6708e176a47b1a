/* Whole tensors by name: from safetensors files into weights of any layout. Nothing is copied before every tensor of
 * every file has been compared with what the model expects. */
#include "internal.h"
#include "weights.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- problems */

gr_err gr_problems_open(gr_problems *p, unsigned dtypes, const char *path) {
    *p = (gr_problems){.dtypes = dtypes};
    p->out = open_memstream(&p->text, &p->size);
    return p->out ? GR_OK : gr_fail(GR_RESOURCE, "%s: no memory to compare tensors", path);
}

/* False: one more problem, but its line is not wanted. */
static bool line_begin(gr_problems *p) {
    if (p->n++ >= GR_PROBLEMS_MAX)
        return false;
    fputs(p->n > 1 ? "\n  " : "  ", p->out);
    return true;
}

void gr_problem_print(gr_problems *p, const char *fmt, ...) {
    if (!line_begin(p))
        return;
    va_list args;
    va_start(args, fmt);
    vfprintf(p->out, fmt, args);
    va_end(args);
}

static void dtypes_print(FILE *out, unsigned dtypes) {
    for (int d = 0, n = 0; d < GR_N_DTYPE; d++)
        if (dtypes >> d & 1)
            fprintf(out, "%s%s", n++ ? (dtypes >> d > 1 ? ", " : " or ") : "", gr_dtype_name((gr_dtype)d));
}

static void shape_print(FILE *out, unsigned dtypes, int n_dim, const int64_t *dim) {
    dtypes_print(out, dtypes);
    fputs(" [", out);
    for (int i = 0; i < n_dim; i++)
        fprintf(out, "%s%lld", i ? ", " : "", (long long)dim[i]);
    fputc(']', out);
}

void gr_problem_add(gr_problems *p, const char *name, const gr_param *expected, const gr_tensor *found) {
    if (!line_begin(p))
        return;
    fprintf(p->out, "%.*s: expected ", GR_TENSOR_NAME_MAX, name);
    if (expected)
        shape_print(p->out, p->dtypes, expected->n_dim, expected->dim);
    else
        fputs("no such tensor", p->out);
    fputs(", got ", p->out);
    if (found)
        shape_print(p->out, 1u << found->dtype, found->n_dim, found->dim);
    else
        fputs("none", p->out);
}

gr_err gr_problems_close(gr_problems *p, const char *path, const char *expected, const char *advice) {
    fclose(p->out);
    gr_err err = GR_OK;
    if (p->n > 0) {
        char head[GR_PATH_MAX + 512], *rest = p->text;
        const char *line[1 + GR_PROBLEMS_MAX] = {head};
        int n = 1;
        snprintf(head, sizeof head, "%.*s: expected %s, got a file that differs in %d tensors%s; %s", GR_PATH_MAX, path,
            expected, p->n, p->n > GR_PROBLEMS_MAX ? " (the first 20 follow)" : "", advice);
        while (rest && n < 1 + GR_PROBLEMS_MAX)
            line[n++] = strsep(&rest, "\n");
        err = gr_fail_lines(GR_CHECKPOINT, line, n);
    }
    free(p->text);
    *p = (gr_problems){0};
    return err;
}

/* ---------------------------------------------------------------- matching and copying */

bool gr_tensor_fits(const gr_tensor *t, const gr_param *p, unsigned dtypes) {
    bool same = (dtypes >> t->dtype & 1) && t->n_dim == p->n_dim;
    for (int i = 0; same && i < p->n_dim; i++)
        same = t->dim[i] == p->dim[i];
    return same;
}

void gr_tensors_match(
    const gr_safetensors *file, const gr_whole *list, int n, const gr_tensor **found, gr_problems *wrong) {
    for (int i = 0; i < gr_safetensors_count(file); i++) {
        const gr_tensor *t = gr_safetensors_at(file, i);
        const gr_whole *w = gr_wholes_find(list, n, t->name);
        bool again = w && found[w - list];
        if (w)
            found[w - list] = t;
        if (!w || again || !gr_tensor_fits(t, w->param, wrong->dtypes))
            gr_problem_add(wrong, t->name, w && !again ? w->param : NULL, t);
    }
}

/* Elements [first, first+n) into to[n]. */
static void tensor_copy(const gr_tensor *t, int64_t first, int64_t n, float *to) {
    const uint8_t *from = (const uint8_t *)t->data + (size_t)first * gr_dtype_size(t->dtype);
    switch (t->dtype) {
    case GR_F32:
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    case GR_BF16:
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++)
            to[i] = gr_f32_from_bf16(gr_load_u16(from + 2 * i));
        return;
    case GR_F16:
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++)
            to[i] = gr_f32_from_f16(gr_load_u16(from + 2 * i));
        return;
    default:
        GR_ASSERT(false, "%s: %s", t->name, gr_dtype_name(t->dtype));
    }
}

/* In pieces, so that one that is staged takes no more host memory than that. */
static gr_err tensor_load(gr_staging *s, const gr_tensor *t, int64_t first, int64_t n, float *to) {
    const int64_t most = (int64_t)(GR_STAGING_PIECE / sizeof *to);
    for (int64_t at = 0; at < n; at += most) {
        int64_t n_piece = n - at < most ? n - at : most;
        size_t n_byte = (size_t)n_piece * sizeof *to;
        void *room;
        GR_TRY(gr_staging_room(s, to + at, n_byte, &room));
        tensor_copy(t, first + at, n_piece, room);
        GR_TRY(gr_staging_store(s, to + at, n_byte));
    }
    return GR_OK;
}

static gr_err tensors_copy(gr_staging *s, const gr_params *p, const gr_whole *list, int n,
    const gr_tensor *const *found, const gr_weights *to) {
    GR_TRY(gr_weights_clear(to)); /* the padding between groups */
    for (int i = 0; i < n; i++) {
        int64_t offset = gr_whole_offset(p, &list[i]);
        gr_share whole = {.first = offset, .n = offset < 0 ? 0 : gr_param_size(list[i].param)};
        gr_share common = gr_share_common(to->share[list[i].param->owner == GR_EDP], whole);
        if (common.n)
            GR_TRY(tensor_load(s, found[i], common.first - offset, common.n, gr_weights_at(to, common)));
    }
    return GR_OK;
}

gr_err gr_tensors_copy(
    const gr_params *p, const gr_whole *list, int n, const gr_tensor *const *found, const gr_weights *to) {
    gr_staging s = {.backend = to->backend};
    gr_err err = tensors_copy(&s, p, list, n, found, to);
    gr_staging_close(&s);
    return err;
}

/* ---------------------------------------------------------------- our own files: F32, each tensor once, no other */

static gr_err tensors_load(const gr_params *p, gr_safetensors *const *file, int n_file, const char *path,
    const gr_whole *list, int n, const gr_weights *to) {
    void *memory;
    gr_problems wrong;
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof(gr_tensor *), "tensor table"));
    const gr_tensor **found = memory;
    gr_err err = gr_problems_open(&wrong, 1u << GR_F32, path);
    if (!err) {
        for (int i = 0; i < n_file; i++)
            gr_tensors_match(file[i], list, n, found, &wrong);
        for (int i = 0; i < n; i++)
            if (!found[i])
                gr_problem_add(&wrong, list[i].name, list[i].param, NULL);
        err = gr_problems_close(
            &wrong, path, "the weights of this config's model", "use the config the file was trained with");
    }
    if (!err && to->at[0])
        err = gr_tensors_copy(p, list, n, found, to);
    free(found);
    return err;
}

static gr_err files_load(
    const gr_params *p, const char *const *path, int n_path, gr_safetensors **file, const gr_weights *to) {
    for (int i = 0; i < n_path; i++)
        GR_TRY(gr_safetensors_open(&file[i], path[i]));
    gr_whole *list;
    int n;
    GR_TRY(gr_wholes_make(p, &list, &n));
    gr_wholes_sort(list, n);
    gr_err err = tensors_load(p, file, n_path, path[0], list, n, to);
    free(list);
    return err;
}

gr_err gr_params_load_files(const gr_params *p, const char *const *path, int n_path, gr_weights weights) {
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)n_path, sizeof(gr_safetensors *), "files of weights"));
    gr_safetensors **file = memory;
    gr_err err = files_load(p, path, n_path, file, &weights);
    for (int i = 0; i < n_path; i++)
        gr_safetensors_close(file[i]);
    free(file);
    return err;
}

gr_err gr_params_load(const gr_params *p, const char *path, gr_weights weights) {
    return gr_params_load_files(p, &path, 1, weights);
}
