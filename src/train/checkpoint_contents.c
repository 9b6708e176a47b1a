/* Which tensors each rank writes: whole weights by logical expert id, moments in the pieces that it owns. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"

static gr_err contents_alloc(gr_contents *c, size_t n_max) {
    void *memory;
    GR_TRY(gr_alloc(&memory, n_max, sizeof *c->tensor, "tensors of a checkpoint"));
    c->tensor = memory;
    GR_TRY(gr_alloc(&memory, n_max, sizeof *c->data, "tensors of a checkpoint"));
    c->data = memory;
    GR_TRY(gr_alloc(&memory, n_max, sizeof *c->name, "tensor names of a checkpoint"));
    c->name = memory;
    return GR_OK;
}

void gr_contents_close(gr_contents *c) {
    free(c->tensor);
    free(c->data);
    free(c->name);
    free(c->header);
    *c = (gr_contents){0};
}

/* A tensor whose name the caller fills in. */
static char *tensor_add(gr_contents *c, const float *data, int n_dim, const int64_t *dim) {
    gr_tensor *t = &c->tensor[c->n];
    *t = (gr_tensor){.name = c->name[c->n], .dtype = GR_F32, .n_dim = n_dim};
    memcpy(t->dim, dim, (size_t)n_dim * sizeof *dim);
    c->data[c->n] = data;
    return c->name[c->n++];
}

static gr_err header_make(gr_contents *c) {
    gr_metadata metadata = {"format", "pt"};
    return gr_safetensors_header(c->tensor, c->n, &metadata, 1, &c->header, &c->n_header, &c->n_data);
}

bool gr_contents_has(const gr_params *p, const gr_whole *w) {
    return gr_whole_offset(p, w) >= 0 && (w->param->owner == GR_EDP || p->ep_rank == 0);
}

gr_err gr_contents_model(gr_contents *c, const gr_params *p, const gr_whole *list, int n) {
    *c = (gr_contents){0};
    GR_TRY(contents_alloc(c, (size_t)n));
    for (int i = 0; i < n; i++)
        if (gr_contents_has(p, &list[i]))
            strcpy(tensor_add(c, NULL, list[i].param->n_dim, list[i].param->dim), list[i].name);
    return header_make(c);
}

/* Adds what `owned` has of a tensor that lies at `offset`. */
static void pieces_add(gr_contents *c, const gr_moments *owned, const gr_whole *w, int64_t offset) {
    int64_t size = gr_param_size(w->param), first = owned->first - offset, end = first + owned->n;
    first = first > 0 ? first : 0;
    end = end < size ? end : size;
    int64_t n = end - first;
    if (n <= 0)
        return;
    for (int state = 0; state < CHECKPOINT_N_MOMENT; state++) {
        const float *moment = (state ? owned->v : owned->m) + (offset + first - owned->first);
        int length = snprintf(
            tensor_add(c, moment, 1, &n), GR_TENSOR_NAME_MAX, "%s.%s.%" PRId64, w->name, gr_moment_name(state), first);
        GR_ASSERT(length < GR_TENSOR_NAME_MAX, "name of %d bytes", length);
    }
}

gr_err gr_contents_optimizer(gr_contents *c, const gr_params *p, const gr_moments owned[2]) {
    gr_whole *list;
    int n;
    *c = (gr_contents){.backend = owned[0].backend};
    GR_TRY(gr_wholes_make(p, &list, &n));
    gr_err err = contents_alloc(c, (size_t)n * CHECKPOINT_N_MOMENT);
    for (int i = 0; !err && i < n; i++) {
        int64_t offset = gr_whole_offset(p, &list[i]);
        if (offset >= 0)
            pieces_add(c, &owned[list[i].param->owner == GR_EDP], &list[i], offset);
    }
    free(list);
    return err ? err : header_make(c);
}

const char *gr_moment_name(int state) {
    return state ? "exp_avg_sq" : "exp_avg";
}

static void index_print(FILE *f, const gr_params *p, int R_ep, const gr_whole *list, int n) {
    int64_t n_element = 0;
    for (int i = 0; i < n; i++)
        n_element += gr_param_size(list[i].param);
    fprintf(f, "{\n  \"metadata\": {\"total_size\": %" PRId64 "},\n  \"weight_map\": {",
        n_element * (int64_t)sizeof(float));
    for (int i = 0; i < n; i++) {
        char file[CHECKPOINT_NAME_MAX];
        int rank = list[i].param->owner == GR_EDP ? p->map->rank_of[list[i].expert] : 0;
        gr_saved_file_name(0, R_ep, rank, file);
        fprintf(f, "%s\n    \"%s\": \"%s\"", i ? "," : "", list[i].name, file);
    }
    fputs("\n  }\n}\n", f);
}

gr_err gr_contents_index(const gr_params *p, int R_ep, char **text, size_t *n_text) {
    gr_whole *list;
    int n;
    *text = NULL;
    GR_TRY(gr_wholes_make(p, &list, &n));
    FILE *f = open_memstream(text, n_text);
    bool failed = !f;
    if (f) {
        index_print(f, p, R_ep, list, n);
        failed = ferror(f) != 0;
        failed = fclose(f) != 0 || failed;
    }
    free(list);
    return failed ? gr_fail(GR_RESOURCE, "checkpoint: no memory for an index of %d tensors", n) : GR_OK;
}
