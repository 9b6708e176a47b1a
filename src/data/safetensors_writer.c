/* safetensors_writer.c: writes safetensors files; the tensors' bytes follow in the order of the list. */
#include "grouter/data.h"
#include "grouter/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct gr_safetensors_writer {
    gr_out *out;
    size_t n_expected, n_written; /* bytes of data */
};

static size_t tensor_byte(const gr_tensor *t) {
    size_t n = gr_dtype_size(t->dtype);
    GR_ASSERT(t->n_dim >= 0 && t->n_dim <= GR_TENSOR_DIMS_MAX, "%s has %d dimensions", t->name, t->n_dim);
    for (int i = 0; i < t->n_dim; i++)
        GR_ASSERT(
            t->dim[i] >= 0 && gr_mul_size(n, (size_t)t->dim[i], &n), "%s: size %d is %" PRId64, t->name, i, t->dim[i]);
    return n;
}

static gr_err string_print(FILE *f, const char *text) {
    void *escaped;
    GR_TRY(gr_alloc(&escaped, strlen(text) + 1, 6, "escaped text"));
    fprintf(f, "\"%s\"", gr_json_escape(text, escaped));
    free(escaped);
    return GR_OK;
}

static gr_err metadata_print(FILE *f, const gr_metadata *metadata, int n) {
    fputs("\"__metadata__\":{", f);
    for (int i = 0; i < n; i++) {
        fputs(i ? "," : "", f);
        GR_TRY(string_print(f, metadata[i].key));
        fputc(':', f);
        GR_TRY(string_print(f, metadata[i].value));
    }
    fputc('}', f);
    return GR_OK;
}

/* Prints the entry of a tensor whose bytes begin at *end and moves *end behind them. */
static gr_err entry_print(FILE *f, const gr_tensor *t, size_t *end) {
    size_t begin = *end, n_name = strlen(t->name);
    GR_ASSERT(n_name >= 1 && n_name < GR_TENSOR_NAME_MAX, "name of %zu bytes", n_name);
    GR_ASSERT(gr_add_size(begin, tensor_byte(t), end), "%s ends beyond 2^64 bytes", t->name);
    GR_TRY(string_print(f, t->name));
    fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", gr_dtype_name(t->dtype));
    for (int i = 0; i < t->n_dim; i++)
        fprintf(f, "%s%" PRId64, i ? "," : "", t->dim[i]);
    fprintf(f, "],\"data_offsets\":[%zu,%zu]}", begin, *end);
    return GR_OK;
}

static gr_err header_print(
    FILE *f, const gr_tensor *list, int n, const gr_metadata *metadata, int n_metadata, size_t *n_data) {
    *n_data = 0;
    fputc('{', f);
    if (n_metadata)
        GR_TRY(metadata_print(f, metadata, n_metadata));
    for (int i = 0; i < n; i++) {
        fputs(i || n_metadata ? "," : "", f);
        GR_TRY(entry_print(f, &list[i], n_data));
    }
    fputc('}', f);
    return GR_OK;
}

/* Length, JSON, and spaces that make the data begin on 8 bytes. */
static gr_err header_finish(const char *text, size_t n_text, uint8_t **header, size_t *n_header) {
    enum { LENGTH = 8 };
    size_t n_space = (8 - n_text % 8) % 8;
    void *memory;
    GR_TRY(gr_alloc(&memory, LENGTH + n_text + n_space, 1, "safetensors header"));
    *header = memory;
    *n_header = LENGTH + n_text + n_space;
    gr_store_u64(*header, n_text + n_space);
    memcpy(*header + LENGTH, text, n_text);
    memset(*header + LENGTH + n_text, ' ', n_space);
    return GR_OK;
}

gr_err gr_safetensors_header(const gr_tensor *list, int n, const gr_metadata *metadata, int n_metadata,
    uint8_t **header, size_t *n_header, size_t *n_data) {
    char *text = NULL;
    size_t n_text = 0;
    *header = NULL;
    FILE *f = open_memstream(&text, &n_text);
    if (!f)
        return gr_fail(GR_RESOURCE, "safetensors: no memory for a header of %d tensors", n);
    gr_err err = header_print(f, list, n, metadata, n_metadata, n_data);
    bool failed = ferror(f) != 0;
    failed = fclose(f) != 0 || failed;
    if (!err && failed)
        err = gr_fail(GR_RESOURCE, "safetensors: no memory for a header of %d tensors", n);
    if (!err)
        err = header_finish(text, n_text, header, n_header);
    free(text);
    return err;
}

static gr_err header_write(
    gr_safetensors_writer *w, const gr_tensor *list, int n, const gr_metadata *metadata, int n_metadata) {
    uint8_t *header;
    size_t n_header;
    GR_TRY(gr_safetensors_header(list, n, metadata, n_metadata, &header, &n_header, &w->n_expected));
    gr_err err = gr_out_write(w->out, header, n_header);
    free(header);
    return err;
}

gr_err gr_safetensors_writer_open(gr_safetensors_writer **out, const char *path, const gr_tensor *list, int n,
    const gr_metadata *metadata, int n_metadata) {
    void *memory = NULL;
    *out = NULL;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_safetensors_writer), "safetensors writer"));
    gr_safetensors_writer *w = memory;
    gr_err err = gr_out_open(&w->out, path);
    if (!err)
        err = header_write(w, list, n, metadata, n_metadata);
    if (err) {
        gr_safetensors_writer_close(w);
        return err;
    }
    *out = w;
    return GR_OK;
}

gr_err gr_safetensors_writer_append(gr_safetensors_writer *w, const void *data, size_t n_byte) {
    GR_ASSERT(
        n_byte <= w->n_expected - w->n_written, "%zu bytes more after %zu of %zu", n_byte, w->n_written, w->n_expected);
    w->n_written += n_byte;
    return gr_out_write(w->out, data, n_byte);
}

gr_err gr_safetensors_writer_commit(gr_safetensors_writer *w) {
    GR_ASSERT(w->n_written == w->n_expected, "%zu bytes written of %zu", w->n_written, w->n_expected);
    return gr_out_commit(w->out);
}

void gr_safetensors_writer_close(gr_safetensors_writer *w) {
    if (!w)
        return;
    gr_out_close(w->out);
    free(w);
}
