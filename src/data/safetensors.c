/* safetensors.c: reads safetensors files: u64 N, N bytes of JSON header, then the tensors' bytes without hole or
 * overlap. Nothing of a file is used before all of its header has been checked. */
#include "grouter/data.h"
#include "grouter/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_BYTE_MAX 100000000 /* the format's own limit */
#define TENSORS_MAX 1000000
#define DEPTH_MAX 4 /* file, tensor, shape; one to spare for the message to name the member */

struct gr_safetensors {
    gr_map map;
    gr_json *header;         /* owns names and metadata */
    gr_tensor *tensor;       /* [n_tensor] by place in the file */
    const gr_tensor **named; /* [n_tensor] by name */
    const gr_json_node *metadata;
    int n_tensor;
};

/* ---------------------------------------------------------------- one entry of the header */

/* Names reach logs and file lists, so only printable ASCII. */
static gr_err name_check(const char *path, const char *name) {
    size_t n = strlen(name);
    bool printable = true;
    for (size_t i = 0; i < n; i++)
        printable = printable && name[i] >= 0x20 && name[i] < 0x7f;
    if (n == 0 || n >= GR_TENSOR_NAME_MAX || !printable)
        return gr_fail(GR_CHECKPOINT,
            "%s: tensor name: expected 1 to %d printable ASCII characters, got \"%.*s\"%s (%zu bytes)", path,
            GR_TENSOR_NAME_MAX - 1, GR_TENSOR_NAME_MAX, name, n > GR_TENSOR_NAME_MAX ? "..." : "", n);
    return GR_OK;
}

static gr_err dtype_read(const char *path, const gr_json_node *node, gr_tensor *t) {
    for (int d = 0; d < GR_N_DTYPE; d++)
        if (node && node->kind == GR_JSON_STRING && strcmp(node->string, gr_dtype_name((gr_dtype)d)) == 0) {
            t->dtype = (gr_dtype)d;
            return GR_OK;
        }
    return gr_fail(GR_CHECKPOINT,
        "%s: %s: dtype: expected one this program knows (F32, BF16, ...), got %.32s; convert the file", path, t->name,
        !node                          ? "none"
        : node->kind == GR_JSON_STRING ? node->string
                                       : "no string");
}

/* Sets n_dim, dim and n_byte. The product is checked factor by factor: a later 0 does not excuse an overflow. */
static gr_err shape_read(const char *path, const gr_json_node *node, gr_tensor *t) {
    if (!node || node->kind != GR_JSON_ARRAY || node->n_child > GR_TENSOR_DIMS_MAX)
        return gr_fail(GR_CHECKPOINT, "%s: %s: shape: expected an array of at most %d sizes, got %s", path, t->name,
            GR_TENSOR_DIMS_MAX, node && node->kind == GR_JSON_ARRAY ? "a longer one" : "none");
    size_t n_element = 1;
    t->n_dim = 0;
    for (const gr_json_node *c = node->child; c; c = c->next) {
        int64_t *dim = &t->dim[t->n_dim++];
        if (!gr_json_i64(c, dim) || *dim < 0)
            return gr_fail(GR_CHECKPOINT, "%s: %s: shape: expected whole sizes of 0 or more, got %s", path, t->name,
                c->kind == GR_JSON_NUMBER ? c->number : "no number");
        if (!gr_mul_size(n_element, (size_t)*dim, &n_element))
            return gr_fail(GR_CHECKPOINT, "%s: %s: shape: expected a product below 2^64, got more", path, t->name);
    }
    if (!gr_mul_size(n_element, gr_dtype_size(t->dtype), &t->n_byte))
        return gr_fail(GR_CHECKPOINT, "%s: %s: shape: expected a size below 2^64 bytes, got more", path, t->name);
    return GR_OK;
}

/* Sets data; the bytes must lie in `data` and be as many as dtype and shape say. */
static gr_err offsets_read(const char *path, const gr_json_node *node, gr_span data, gr_tensor *t) {
    int64_t begin, end;
    if (!node || node->kind != GR_JSON_ARRAY || node->n_child != 2 || !gr_json_i64(node->child, &begin) ||
        !gr_json_i64(node->child->next, &end))
        return gr_fail(
            GR_CHECKPOINT, "%s: %s: data_offsets: expected two whole numbers, got something else", path, t->name);
    if (begin < 0 || end < begin || (uint64_t)end > data.n)
        return gr_fail(GR_CHECKPOINT,
            "%s: %s: data_offsets: expected a range within the file's %zu bytes of data, got %" PRId64 " to %" PRId64
            "; the file is cut short or damaged: copy it again",
            path, t->name, data.n, begin, end);
    if ((uint64_t)(end - begin) != t->n_byte)
        return gr_fail(GR_CHECKPOINT, "%s: %s: data_offsets: expected %zu bytes (shape x %s), got %" PRId64, path,
            t->name, t->n_byte, gr_dtype_name(t->dtype), end - begin);
    t->data = data.p + begin;
    return GR_OK;
}

static gr_err entry_read(const char *path, const gr_json_node *entry, gr_span data, gr_tensor *t) {
    GR_TRY(name_check(path, entry->key));
    t->name = entry->key;
    if (entry->kind != GR_JSON_OBJECT || entry->n_child > 3)
        return gr_fail(GR_CHECKPOINT,
            "%s: %s: expected an object of dtype, shape and data_offsets only, got something else", path, t->name);
    GR_TRY(dtype_read(path, gr_json_get(entry, "dtype"), t));
    GR_TRY(shape_read(path, gr_json_get(entry, "shape"), t));
    return offsets_read(path, gr_json_get(entry, "data_offsets"), data, t);
}

/* ---------------------------------------------------------------- the file */

static gr_err metadata_check(const char *path, const gr_json_node *metadata) {
    if (metadata->kind != GR_JSON_OBJECT)
        return gr_fail(GR_CHECKPOINT, "%s: __metadata__: expected an object of strings, got something else", path);
    for (const gr_json_node *c = metadata->child; c; c = c->next)
        if (c->kind != GR_JSON_STRING)
            return gr_fail(
                GR_CHECKPOINT, "%s: __metadata__: expected only strings, got another type for \"%.64s\"", path, c->key);
    return GR_OK;
}

static gr_err header_parse(gr_safetensors *s, const char *path, gr_span *data) {
    gr_span file = {s->map.p, s->map.n};
    const uint8_t *text;
    uint64_t n_header;
    if (!gr_take_u64(&file, &n_header))
        return gr_fail(GR_CHECKPOINT, "%s: expected at least 8 bytes, got %zu; the file is cut short: copy it again",
            path, s->map.n);
    if (n_header > HEADER_BYTE_MAX || !gr_take_bytes(&file, n_header, &text))
        return gr_fail(GR_CHECKPOINT,
            "%s: header length: expected at most %d and the %zu bytes behind it, got %" PRIu64
            "; the file is cut short or no safetensors file",
            path, HEADER_BYTE_MAX, file.n, n_header);
    if (n_header < 2 || text[0] != '{')
        return gr_fail(
            GR_CHECKPOINT, "%s: header: expected a JSON object, got something else; give a safetensors file", path);
    *data = file;
    return gr_json_parse(&s->header, (const char *)text, n_header, path, HEADER_BYTE_MAX, DEPTH_MAX, GR_CHECKPOINT);
}

static int place_compare(const void *a, const void *b) {
    const gr_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    if (x->n_byte != y->n_byte) /* empty tensors come before the one that begins where they are */
        return x->n_byte < y->n_byte ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int name_compare(const void *a, const void *b) {
    return strcmp((*(const gr_tensor *const *)a)->name, (*(const gr_tensor *const *)b)->name);
}

/* In order of place each tensor begins where the one before ended, and the last ends with the file. */
static gr_err contiguity_check(const gr_safetensors *s, const char *path, gr_span data) {
    size_t end = 0;
    for (int i = 0; i < s->n_tensor; i++) {
        const gr_tensor *t = &s->tensor[i];
        size_t begin = (size_t)(t->data - data.p);
        if (begin != end)
            return gr_fail(GR_CHECKPOINT,
                "%s: %s: data_offsets: expected to begin at %zu where the tensor before it ends, got %zu (%s); the "
                "file is "
                "damaged: copy or write it again",
                path, t->name, end, begin, begin < end ? "an overlap" : "a hole");
        end = begin + t->n_byte;
    }
    if (end != data.n)
        return gr_fail(GR_CHECKPOINT,
            "%s: size: expected %zu bytes of data, got %zu; the file is damaged: copy or write it again", path, end,
            data.n);
    return GR_OK;
}

static gr_err tensors_read(gr_safetensors *s, const char *path, const gr_json_node *root, gr_span data) {
    void *memory = NULL;
    int n = root->n_child - (s->metadata != NULL);
    if (n > TENSORS_MAX)
        return gr_fail(GR_CHECKPOINT, "%s: expected at most %d tensors, got %d", path, TENSORS_MAX, n);
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof *s->tensor, "list of tensors"));
    s->tensor = memory;
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof *s->named, "index of tensors"));
    s->named = memory;
    for (const gr_json_node *c = root->child; c; c = c->next) {
        if (c == s->metadata)
            continue;
        GR_TRY(entry_read(path, c, data, &s->tensor[s->n_tensor]));
        s->n_tensor++;
    }
    qsort(s->tensor, (size_t)n, sizeof *s->tensor, place_compare);
    for (int i = 0; i < n; i++)
        s->named[i] = &s->tensor[i];
    qsort(s->named, (size_t)n, sizeof *s->named, name_compare);
    return contiguity_check(s, path, data);
}

static gr_err file_open(gr_safetensors *s, const char *path) {
    gr_span data = {NULL, 0};
    GR_TRY(gr_map_open(&s->map, path, GR_CHECKPOINT));
    GR_TRY(header_parse(s, path, &data));
    const gr_json_node *root = gr_json_root(s->header);
    s->metadata = gr_json_get(root, "__metadata__");
    if (s->metadata)
        GR_TRY(metadata_check(path, s->metadata));
    return tensors_read(s, path, root, data);
}

gr_err gr_safetensors_open(gr_safetensors **out, const char *path) {
    void *memory = NULL;
    *out = NULL;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_safetensors), "safetensors file"));
    gr_safetensors *s = memory;
    gr_err err = file_open(s, path);
    if (err) {
        gr_safetensors_close(s);
        return err;
    }
    *out = s;
    return GR_OK;
}

void gr_safetensors_close(gr_safetensors *s) {
    if (!s)
        return;
    free(s->named);
    free(s->tensor);
    gr_json_close(s->header);
    gr_map_close(&s->map);
    free(s);
}

int gr_safetensors_count(const gr_safetensors *s) {
    return s->n_tensor;
}

const gr_tensor *gr_safetensors_at(const gr_safetensors *s, int i) {
    GR_ASSERT(i >= 0 && i < s->n_tensor, "tensor %d of %d", i, s->n_tensor);
    return &s->tensor[i];
}

const gr_tensor *gr_safetensors_find(const gr_safetensors *s, const char *name) {
    gr_tensor wanted = {.name = name};
    const gr_tensor *key = &wanted;
    const gr_tensor **found = bsearch(&key, s->named, (size_t)s->n_tensor, sizeof *s->named, name_compare);
    return found ? *found : NULL;
}

const char *gr_safetensors_metadata(const gr_safetensors *s, const char *key) {
    const gr_json_node *node = gr_json_get(s->metadata, key);
    return node ? node->string : NULL;
}

int gr_safetensors_metadata_list(const gr_safetensors *s, gr_metadata *list, int n_max) {
    const gr_json_node *node = s->metadata ? s->metadata->child : NULL;
    for (int i = 0; i < n_max && node; i++, node = node->next)
        list[i] = (gr_metadata){.key = node->key, .value = node->string};
    return s->metadata ? s->metadata->n_child : 0;
}
