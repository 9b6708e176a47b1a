/* tokens_writer.c: writes Megatron .bin/.idx pairs, one sequence per document. Ids stream into the .bin; only the
 * lengths (4 bytes per document) are kept until commit writes the .idx. */
#include "grouter/data.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define U16_VOCAB_END 65500 /* Megatron's own limit for u16 */
#define CHUNK 4096          /* ids converted at a time */

struct gr_tokens_writer {
    gr_out *bin, *idx;
    gr_dtype dtype;
    uint32_t n_vocab;
    uint64_t n_open; /* tokens of the document being written */
    int32_t *length; /* [n_document] */
    size_t n_document, length_max;
};

static gr_err outputs_open(gr_tokens_writer *w, const char *prefix) {
    char *path;
    if (asprintf(&path, "%s.bin", prefix) < 0)
        return gr_fail(GR_RESOURCE, "%s: no memory for its path", prefix);
    gr_err err = gr_out_open(&w->bin, path);
    if (!err) {
        memcpy(path + strlen(path) - 3, "idx", 3);
        err = gr_out_open(&w->idx, path);
    }
    free(path);
    return err;
}

gr_err gr_tokens_writer_open(gr_tokens_writer **out, const char *prefix, uint32_t n_vocab) {
    void *memory = NULL;
    *out = NULL;
    GR_ASSERT(n_vocab >= 1 && n_vocab <= INT32_MAX, "vocabulary %" PRIu32, n_vocab);
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_tokens_writer), "token writer"));
    gr_tokens_writer *w = memory;
    w->n_vocab = n_vocab;
    w->dtype = n_vocab < U16_VOCAB_END ? GR_U16 : GR_I32;
    gr_err err = outputs_open(w, prefix);
    if (err) {
        gr_tokens_writer_close(w);
        return err;
    }
    *out = w;
    return GR_OK;
}

static gr_err chunk_write(gr_tokens_writer *w, const uint32_t *ids, size_t n) {
    uint8_t buffer[CHUNK * 4];
    size_t elem_size = gr_dtype_size(w->dtype);
    for (size_t i = 0; i < n; i++) {
        GR_ASSERT(ids[i] < w->n_vocab, "id %" PRIu32 ", vocabulary %" PRIu32, ids[i], w->n_vocab);
        if (w->dtype == GR_U16)
            gr_store_u16(buffer + 2 * i, (uint16_t)ids[i]);
        else
            gr_store_u32(buffer + 4 * i, ids[i]);
    }
    return gr_out_write(w->bin, buffer, n * elem_size);
}

gr_err gr_tokens_writer_append(gr_tokens_writer *w, const uint32_t *ids, size_t n) {
    if (n > INT32_MAX - w->n_open)
        return gr_fail(GR_DATA,
            "document %zu: expected at most %d tokens, got more; put separators between the documents of the input",
            w->n_document, INT32_MAX);
    for (size_t i = 0; i < n; i += CHUNK)
        GR_TRY(chunk_write(w, ids + i, n - i < CHUNK ? n - i : CHUNK));
    w->n_open += n;
    return GR_OK;
}

gr_err gr_tokens_writer_end(gr_tokens_writer *w) {
    if (w->n_document == w->length_max) {
        size_t more = w->length_max ? w->length_max : 1024, n_byte;
        int32_t *grown = NULL;
        if (gr_add_size(w->length_max, more, &more) && gr_mul_size(more, sizeof *grown, &n_byte))
            grown = realloc(w->length, n_byte);
        if (!grown)
            return gr_fail(GR_RESOURCE, "token writer: no memory for the lengths of %zu documents", more);
        w->length = grown;
        w->length_max = more;
    }
    w->length[w->n_document++] = (int32_t)w->n_open;
    w->n_open = 0;
    return GR_OK;
}

gr_err gr_tokens_writer_document(gr_tokens_writer *w, const uint32_t *ids, size_t n) {
    GR_TRY(gr_tokens_writer_append(w, ids, n));
    return gr_tokens_writer_end(w);
}

static gr_err u64_write(gr_out *o, uint64_t v) {
    uint8_t b[8];
    gr_store_u64(b, v);
    return gr_out_write(o, b, sizeof b);
}

static gr_err header_write(gr_tokens_writer *w) {
    static const uint8_t magic[9] = "MMIDIDX\0";
    uint8_t code = w->dtype == GR_U16 ? 8 : 4;
    GR_TRY(gr_out_write(w->idx, magic, sizeof magic));
    GR_TRY(u64_write(w->idx, 1));
    GR_TRY(gr_out_write(w->idx, &code, 1));
    GR_TRY(u64_write(w->idx, w->n_document));
    return u64_write(w->idx, w->n_document + 1);
}

static gr_err arrays_write(gr_tokens_writer *w) {
    uint64_t offset = 0, elem_size = gr_dtype_size(w->dtype);
    for (size_t i = 0; i < w->n_document; i++) {
        uint8_t b[4];
        gr_store_u32(b, (uint32_t)w->length[i]);
        GR_TRY(gr_out_write(w->idx, b, sizeof b));
    }
    for (size_t i = 0; i < w->n_document; i++) {
        GR_TRY(u64_write(w->idx, offset));
        offset += (uint64_t)w->length[i] * elem_size;
    }
    for (size_t i = 0; i <= w->n_document; i++)
        GR_TRY(u64_write(w->idx, i));
    return GR_OK;
}

gr_err gr_tokens_writer_commit(gr_tokens_writer *w) {
    GR_ASSERT(w->n_open == 0, "%" PRIu64 " tokens of an unfinished document", w->n_open);
    GR_TRY(header_write(w));
    GR_TRY(arrays_write(w));
    /* Both files reach the disk before either name changes: a full disk then leaves an older pair whole. */
    GR_TRY(gr_out_sync(w->bin));
    GR_TRY(gr_out_sync(w->idx));
    GR_TRY(gr_out_commit(w->bin));
    return gr_out_commit(w->idx);
}

void gr_tokens_writer_close(gr_tokens_writer *w) {
    if (!w)
        return;
    gr_out_close(w->idx);
    gr_out_close(w->bin);
    free(w->length);
    free(w);
}
