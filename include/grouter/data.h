/* data.h: token files, windows and their order, safetensors. */
#ifndef GROUTER_DATA_H
#define GROUTER_DATA_H

#include "grouter/base.h"

/* ---------------------------------------------------------------- token files: Megatron .bin/.idx pairs, llm.c shards
 */

/* Built-in byte-level vocabulary: ids 0..255 are bytes, 256 ends a document. */
#define GR_BYTE_VOCAB 257
#define GR_BYTE_EOD 256

typedef struct gr_tokens gr_tokens;

/* Maps prefix.bin and prefix.idx read-only and checks every header field against the files' sizes (T4): 65 naming file,
 * field, expected, found. `prefix` may also end in .bin or .idx. Every integer dtype is read; floats are refused.
 * A prefix.bin without a prefix.idx is an llm.c shard (magic 20240520 with u16 tokens, or 20240801 with u32), checked
 * alike; where both files are, they are a Megatron pair whatever the .bin begins with. A shard is one document. */
GR_MUST gr_err gr_tokens_open(gr_tokens **out, const char *prefix);
void gr_tokens_close(gr_tokens *t); /* accepts NULL */
const char *gr_tokens_prefix(const gr_tokens *t);
const char *gr_tokens_bin_path(const gr_tokens *t);
const char *gr_tokens_idx_path(const gr_tokens *t); /* where it would be, for a shard */
uint64_t gr_tokens_count(const gr_tokens *t);       /* tokens, all documents */
uint64_t gr_tokens_documents(const gr_tokens *t);   /* documents */
gr_dtype gr_tokens_dtype(const gr_tokens *t);
const char *gr_tokens_dtype_text(const gr_tokens *t); /* "u16" ... as Megatron calls them */
const char *gr_tokens_format(const gr_tokens *t);     /* "Megatron pair" or "llm.c shard" */

/* Tokens [first, first+n) as u32; an id >= n_vocab (or negative) is 65 naming file, position and id. */
GR_MUST gr_err gr_tokens_read(const gr_tokens *t, uint64_t first, size_t n, uint32_t n_vocab, uint32_t *ids);

typedef struct gr_tokens_writer gr_tokens_writer;
/* Writes prefix.bin/.idx, u16 if n_vocab < 65500 else i32. Nothing appears unless commit succeeds. */
GR_MUST gr_err gr_tokens_writer_open(gr_tokens_writer **out, const char *prefix, uint32_t n_vocab);
GR_MUST gr_err gr_tokens_writer_document(gr_tokens_writer *w, const uint32_t *ids, size_t n);
/* The same in pieces, for documents larger than memory: append as often as needed, then end. A document of more than
 * 2^31-1 tokens is 65; an id >= n_vocab is a broken invariant. */
GR_MUST gr_err gr_tokens_writer_append(gr_tokens_writer *w, const uint32_t *ids, size_t n);
GR_MUST gr_err gr_tokens_writer_end(gr_tokens_writer *w);
/* Refuses an unfinished document (invariant). */
GR_MUST gr_err gr_tokens_writer_commit(gr_tokens_writer *w);
void gr_tokens_writer_close(gr_tokens_writer *w); /* accepts NULL; removes what was not committed */

/* ---------------------------------------------------------------- windows: T+1 tokens, starting every T */

/* floor((n_token-1)/T); 0 tokens give 0 windows. */
uint64_t gr_window_count(uint64_t n_token, uint32_t T);

/* Window w of the file: ids[T+1]. */
GR_MUST gr_err gr_window_read(const gr_tokens *t, uint64_t window, uint32_t T, uint32_t n_vocab, uint32_t *ids);

/* ---------------------------------------------------------------- order of training windows (design: "Window order")
 * A pure function of (seed, files, weights, index): stream index i belongs to the file with the largest
 * weight_f*max(i,1) - taken_f (weights normalised to sum 1, ties to the lowest file), n_f = taken_f before i,
 * epoch = n_f / n_window_f, window = bijection(seed, file, epoch)(n_f mod n_window_f). */

typedef struct gr_stream_file {
    uint64_t n_window;
    double weight;
    uint64_t taken;
} gr_stream_file;
typedef struct gr_stream {
    uint64_t seed;
    uint64_t index; /* of the next window */
    int n_file;
    gr_stream_file *file; /* owned by the caller, n_file entries */
} gr_stream;
typedef struct gr_window_ref {
    int file;
    uint64_t epoch, window;
} gr_window_ref;

/* Every file needs n_window >= 1 and weight > 0 (invariants). Weights are normalised in place. */
void gr_stream_open(gr_stream *s, uint64_t seed, gr_stream_file *file, int n_file);
gr_window_ref gr_stream_next(gr_stream *s);
/* Makes `index` the next one, as if all before it had been taken since 0. */
void gr_stream_seek(gr_stream *s, uint64_t index);

/* Stream index of window b of `rank` in micro-batch `micro` of the step that starts at `cursor`. */
static inline uint64_t gr_stream_index(
    uint64_t cursor, uint64_t micro, uint64_t n_rank, uint64_t B, uint64_t rank, uint64_t b) {
    return cursor + micro * (n_rank * B) + rank * B + b;
}

/* ---------------------------------------------------------------- safetensors */

#define GR_TENSOR_DIMS_MAX 8
#define GR_TENSOR_NAME_MAX 128

typedef struct gr_tensor {
    const char *name; /* owned by the reader; by the caller when writing */
    gr_dtype dtype;
    int n_dim;
    int64_t dim[GR_TENSOR_DIMS_MAX];
    const uint8_t *data; /* into the mapping, unaligned; unused when writing */
    size_t n_byte;       /* filled by the reader */
} gr_tensor;

typedef struct gr_safetensors gr_safetensors;
/* Maps the file; header length, JSON, dtypes, shapes, offsets (bounds, contiguity, no overlap, no hole, no duplicate,
 * names) are checked before anything is used (T8): 66. */
GR_MUST gr_err gr_safetensors_open(gr_safetensors **out, const char *path);
void gr_safetensors_close(gr_safetensors *s);
int gr_safetensors_count(const gr_safetensors *s);
const gr_tensor *gr_safetensors_at(const gr_safetensors *s, int i); /* in file order */
const gr_tensor *gr_safetensors_find(const gr_safetensors *s, const char *name);
const char *gr_safetensors_metadata(const gr_safetensors *s, const char *key); /* NULL if absent */
typedef struct gr_metadata {
    const char *key, *value;
} gr_metadata;
/* Copies the first n_max entries of the metadata, their texts owned by the reader; returns how many there are. */
int gr_safetensors_metadata_list(const gr_safetensors *s, gr_metadata *list, int n_max);

/* All bytes of a file before its tensors' data, for the caller to free, and how many bytes of data must follow. */
GR_MUST gr_err gr_safetensors_header(const gr_tensor *list, int n, const gr_metadata *metadata, int n_metadata,
    uint8_t **header, size_t *n_header, size_t *n_data);

typedef struct gr_safetensors_writer gr_safetensors_writer;
/* Header from the list (dtype, shape, name); then the tensors' bytes are appended in list order, in any pieces; commit
 * refuses a wrong total (invariant). Atomic as gr_out. */
GR_MUST gr_err gr_safetensors_writer_open(gr_safetensors_writer **out, const char *path, const gr_tensor *list, int n,
    const gr_metadata *metadata, int n_metadata);
GR_MUST gr_err gr_safetensors_writer_append(gr_safetensors_writer *w, const void *data, size_t n_byte);
GR_MUST gr_err gr_safetensors_writer_commit(gr_safetensors_writer *w);
void gr_safetensors_writer_close(gr_safetensors_writer *w);

#endif
