/* tokens.c: reads Megatron .bin/.idx pairs and llm.c shards. The .idx is little-endian and its arrays follow a header
 * of 34 bytes unaligned, so everything is loaded byte-wise. Layout: magic[9], u64 version, u8 dtype, u64 S, u64 D, i32
 * length[S] in tokens, i64 offset[S] in bytes, i64 document[D], and for multimodal data i8 mode[S]. A shard is one
 * little-endian file: i32 header[256] = {magic, version, tokens, not used...}, then the tokens. */
#include "grouter/data.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_BYTE 34
#define SHARD_HEADER_BYTE 1024
#define REMAKE "the file is damaged, cut short or of another format; copy or make it again"

struct gr_tokens {
    char *prefix, *bin_path, *idx_path;
    gr_map bin, idx;    /* of a shard, idx stays empty */
    const uint8_t *ids; /* the first token, within bin */
    gr_dtype dtype;
    const char *dtype_text, *format;
    uint64_t n_token, n_sequence, n_document;
};

/* Megatron's codes; a NULL text is a code without a type, a false `integer` a type that holds no token ids. */
static const struct {
    const char *text;
    gr_dtype dtype;
    bool integer;
} codes[] = {
    {NULL, GR_U8, false},
    {"u8", GR_U8, true},
    {"i8", GR_I8, true},
    {"i16", GR_I16, true},
    {"i32", GR_I32, true},
    {"i64", GR_I64, true},
    {"f64", GR_F64, false},
    {"f32", GR_F32, false},
    {"u16", GR_U16, true},
};

static gr_err dtype_find(gr_tokens *t, uint8_t code) {
    if (code >= sizeof codes / sizeof codes[0] || !codes[code].text)
        return gr_fail(GR_DATA, "%s: dtype code: expected 1 to 8, got %u; " REMAKE, t->idx_path, code);
    if (!codes[code].integer)
        return gr_fail(GR_DATA, "%s: dtype: expected an integer type for token ids, got %s (code %u); tokenize again",
            t->idx_path, codes[code].text, code);
    t->dtype = codes[code].dtype;
    t->dtype_text = codes[code].text;
    return GR_OK;
}

/* Checks the fixed fields and leaves *arrays at the first byte after them. */
static gr_err header_check(gr_tokens *t, gr_span *arrays, uint64_t *n_boundary) {
    static const uint8_t magic[9] = "MMIDIDX\0"; /* and the literal's own NUL */
    gr_span s = {t->idx.p, t->idx.n};
    const uint8_t *found;
    uint64_t version;
    uint8_t code;
    if (!gr_take_bytes(&s, sizeof magic, &found) || !gr_take_u64(&s, &version) || !gr_take_u8(&s, &code) ||
        !gr_take_u64(&s, &t->n_sequence) || !gr_take_u64(&s, n_boundary))
        return gr_fail(GR_DATA, "%s: size: expected a header of %d bytes, got a file of %zu bytes; " REMAKE,
            t->idx_path, HEADER_BYTE, t->idx.n);
    if (memcmp(found, magic, sizeof magic) != 0)
        return gr_fail(GR_DATA,
            "%s: magic: expected MMIDIDX (a Megatron token index), got other bytes; give the prefix of a .bin/.idx "
            "pair",
            t->idx_path);
    if (version != 1)
        return gr_fail(GR_DATA, "%s: version: expected 1, got %" PRIu64 "%s; " REMAKE, t->idx_path, version,
            version == UINT64_C(1) << 56 ? " (1 in big-endian order)" : "");
    GR_TRY(dtype_find(t, code));
    *arrays = s;
    return GR_OK;
}

/* Splits the rest of the .idx into its arrays; the counts must explain the file's size exactly. */
static gr_err arrays_split(gr_tokens *t, gr_span s, uint64_t n_boundary, const uint8_t **length, const uint8_t **offset,
    const uint8_t **boundary) {
    size_t length_byte, offset_byte, boundary_byte;
    bool fits = gr_mul_size(t->n_sequence, 4, &length_byte) && gr_mul_size(t->n_sequence, 8, &offset_byte) &&
                gr_mul_size(n_boundary, 8, &boundary_byte) && gr_take_bytes(&s, length_byte, length) &&
                gr_take_bytes(&s, offset_byte, offset) && gr_take_bytes(&s, boundary_byte, boundary);
    if (!fits || (s.n != 0 && s.n != t->n_sequence))
        return gr_fail(GR_DATA,
            "%s: size: expected %d + 12 x %" PRIu64 " sequences + 8 x %" PRIu64 " document boundaries (and at most one "
            "mode byte per sequence), got %zu bytes; " REMAKE,
            t->idx_path, HEADER_BYTE, t->n_sequence, n_boundary, t->idx.n);
    return GR_OK;
}

/* Lengths and byte offsets agree with each other and with the size of the .bin. */
static gr_err sequences_check(gr_tokens *t, const uint8_t *length, const uint8_t *offset) {
    size_t elem_size = gr_dtype_size(t->dtype), sum = 0;
    for (uint64_t i = 0; i < t->n_sequence; i++) {
        int32_t n = (int32_t)gr_load_u32(length + 4 * i);
        int64_t at = (int64_t)gr_load_u64(offset + 8 * i);
        size_t n_byte;
        if (n < 0)
            return gr_fail(GR_DATA, "%s: length of sequence %" PRIu64 ": expected 0 or more, got %" PRId32 "; " REMAKE,
                t->idx_path, i, n);
        if (at < 0 || (uint64_t)at != sum)
            return gr_fail(GR_DATA,
                "%s: offset of sequence %" PRIu64 ": expected %zu (the bytes before it), got %" PRId64 "; " REMAKE,
                t->idx_path, i, sum, at);
        if (!gr_mul_size((size_t)n, elem_size, &n_byte) || !gr_add_size(sum, n_byte, &sum) || sum > t->bin.n)
            return gr_fail(GR_DATA,
                "%s: size: expected at least the bytes of sequences 0 to %" PRIu64
                ", got %zu bytes; the .bin is cut short or not of this .idx: copy or make the pair again",
                t->bin_path, i, t->bin.n);
    }
    if (sum != t->bin.n)
        return gr_fail(GR_DATA,
            "%s: size: expected %zu bytes (the sum of the .idx), got %zu; the .bin is not of this .idx: copy or make "
            "the pair again",
            t->bin_path, sum, t->bin.n);
    if (sum == 0)
        return gr_fail(GR_DATA,
            "%s: expected at least one token, got none; make the token file from data that has text", t->bin_path);
    t->n_token = sum / elem_size;
    return GR_OK;
}

static gr_err documents_check(gr_tokens *t, const uint8_t *boundary, uint64_t n_boundary) {
    uint64_t before = 0;
    for (uint64_t i = 0; i < n_boundary; i++) {
        uint64_t at = gr_load_u64(boundary + 8 * i);
        bool first_wrong = i == 0 && at != 0;
        if (first_wrong || at < before || at > t->n_sequence)
            return gr_fail(GR_DATA,
                "%s: document boundary %" PRIu64 ": expected %s%" PRIu64 " to %" PRIu64 ", got %" PRId64 "; " REMAKE,
                t->idx_path, i, first_wrong ? "0, then " : "", before, t->n_sequence, (int64_t)at);
        before = at;
    }
    if (n_boundary == 0 || before != t->n_sequence)
        return gr_fail(GR_DATA,
            "%s: last document boundary: expected the number of sequences %" PRIu64 ", got %s%" PRIu64 "; " REMAKE,
            t->idx_path, t->n_sequence, n_boundary == 0 ? "no boundary, " : "", before);
    t->n_document = n_boundary - 1;
    return GR_OK;
}

static gr_err pair_check(gr_tokens *t) {
    gr_span arrays = {NULL, 0};
    uint64_t n_boundary = 0;
    const uint8_t *length, *offset, *boundary;
    GR_TRY(header_check(t, &arrays, &n_boundary));
    GR_TRY(arrays_split(t, arrays, n_boundary, &length, &offset, &boundary));
    GR_TRY(sequences_check(t, length, offset));
    return documents_check(t, boundary, n_boundary);
}

static gr_err paths_make(gr_tokens *t, const char *prefix) {
    size_t n = strlen(prefix);
    if (n > 4 && (strcmp(prefix + n - 4, ".bin") == 0 || strcmp(prefix + n - 4, ".idx") == 0))
        n -= 4;
    t->prefix = strndup(prefix, n);
    if (!t->prefix || asprintf(&t->bin_path, "%s.bin", t->prefix) < 0) {
        t->bin_path = NULL; /* asprintf leaves it undefined */
        return gr_fail(GR_RESOURCE, "%s: no memory for its path", prefix);
    }
    if (asprintf(&t->idx_path, "%s.idx", t->prefix) < 0) {
        t->idx_path = NULL;
        return gr_fail(GR_RESOURCE, "%s: no memory for its path", prefix);
    }
    return GR_OK;
}

static gr_err pair_open(gr_tokens *t) {
    GR_TRY(gr_map_open(&t->idx, t->idx_path, GR_DATA));
    GR_TRY(gr_map_open(&t->bin, t->bin_path, GR_DATA));
    t->ids = t->bin.p;
    t->format = "Megatron pair";
    return pair_check(t);
}

/* ---------------------------------------------------------------- llm.c shards */

static const struct {
    uint32_t magic, version;
    gr_dtype dtype;
    const char *text;
} shards[] = {{20240520, 1, GR_U16, "u16"}, {20240801, 7, GR_U32, "u32"}};

static gr_err shard_magic_fail(const gr_tokens *t, uint32_t magic) {
    bool swapped = false;
    for (size_t i = 0; i < sizeof shards / sizeof shards[0]; i++)
        swapped = swapped || __builtin_bswap32(magic) == shards[i].magic;
    if (swapped)
        return gr_fail(GR_DATA,
            "%s: magic: expected %" PRIu32 " or %" PRIu32 " in little-endian order, got %" PRIu32
            " in big-endian order; make the shard again on a little-endian machine",
            t->bin_path, shards[0].magic, shards[1].magic, __builtin_bswap32(magic));
    return gr_fail(GR_DATA,
        "%s: magic: without a %s beside it, expected %" PRIu32 " or %" PRIu32 " (an llm.c shard), got %" PRIu32
        "; copy the .idx too if this is half of a Megatron pair",
        t->bin_path, t->idx_path, shards[0].magic, shards[1].magic, magic);
}

/* The kind of shard follows from its magic; t->n_token is what the header promises. */
static gr_err shard_header_check(gr_tokens *t) {
    gr_span s = {t->bin.p, t->bin.n};
    const uint8_t *header;
    if (!gr_take_bytes(&s, SHARD_HEADER_BYTE, &header))
        return gr_fail(GR_DATA,
            "%s: size: without a %s beside it, expected an llm.c shard with a header of %d bytes, got a file of %zu "
            "bytes; " REMAKE,
            t->bin_path, t->idx_path, SHARD_HEADER_BYTE, t->bin.n);
    uint32_t magic = gr_load_u32(header), version = gr_load_u32(header + 4), n_token = gr_load_u32(header + 8);
    size_t kind = 0;
    while (kind < sizeof shards / sizeof shards[0] && shards[kind].magic != magic)
        kind++;
    if (kind == sizeof shards / sizeof shards[0])
        return shard_magic_fail(t, magic);
    if (version != shards[kind].version)
        return gr_fail(GR_DATA, "%s: version: expected %" PRIu32 " with magic %" PRIu32 ", got %" PRIu32 "; " REMAKE,
            t->bin_path, shards[kind].version, magic, version);
    if (n_token == 0 || n_token > INT32_MAX)
        return gr_fail(GR_DATA, "%s: token count: expected 1 to %d, got %" PRId32 "; " REMAKE, t->bin_path, INT32_MAX,
            (int32_t)n_token);
    t->dtype = shards[kind].dtype;
    t->dtype_text = shards[kind].text;
    t->n_token = n_token;
    return GR_OK;
}

static gr_err shard_open(gr_tokens *t) {
    GR_TRY(gr_map_open(&t->bin, t->bin_path, GR_DATA));
    GR_TRY(shard_header_check(t));
    size_t elem_size = gr_dtype_size(t->dtype), n_byte = SHARD_HEADER_BYTE + (size_t)t->n_token * elem_size;
    if (t->bin.n != n_byte)
        return gr_fail(GR_DATA,
            "%s: size: expected %zu bytes (%d of header, %" PRIu64 " tokens of %zu), got %zu; " REMAKE, t->bin_path,
            n_byte, SHARD_HEADER_BYTE, t->n_token, elem_size, t->bin.n);
    t->ids = t->bin.p + SHARD_HEADER_BYTE;
    t->format = "llm.c shard";
    t->n_document = 1;
    return GR_OK;
}

/* ---------------------------------------------------------------- either */

/* A .bin alone can only be a shard; a name that ends in .idx asks for a pair. */
static gr_err files_open(gr_tokens *t, const char *prefix) {
    GR_TRY(paths_make(t, prefix));
    if (strcmp(prefix, t->idx_path) != 0 && !gr_path_exists(t->idx_path) && gr_path_exists(t->bin_path))
        return shard_open(t);
    return pair_open(t);
}

gr_err gr_tokens_open(gr_tokens **out, const char *prefix) {
    void *memory = NULL;
    *out = NULL;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_tokens), "token file"));
    gr_tokens *t = memory;
    gr_err err = files_open(t, prefix);
    if (err) {
        gr_tokens_close(t);
        return err;
    }
    *out = t;
    return GR_OK;
}

void gr_tokens_close(gr_tokens *t) {
    if (!t)
        return;
    gr_map_close(&t->bin);
    gr_map_close(&t->idx);
    free(t->idx_path);
    free(t->bin_path);
    free(t->prefix);
    free(t);
}

const char *gr_tokens_prefix(const gr_tokens *t) {
    return t->prefix;
}

const char *gr_tokens_bin_path(const gr_tokens *t) {
    return t->bin_path;
}

const char *gr_tokens_idx_path(const gr_tokens *t) {
    return t->idx_path;
}

uint64_t gr_tokens_count(const gr_tokens *t) {
    return t->n_token;
}

uint64_t gr_tokens_documents(const gr_tokens *t) {
    return t->n_document;
}

gr_dtype gr_tokens_dtype(const gr_tokens *t) {
    return t->dtype;
}

const char *gr_tokens_dtype_text(const gr_tokens *t) {
    return t->dtype_text;
}

const char *gr_tokens_format(const gr_tokens *t) {
    return t->format;
}

static inline int64_t element_load(const uint8_t *ids, uint64_t i, gr_dtype dtype) {
    switch (dtype) {
    case GR_U8:
        return ids[i];
    case GR_I8:
        return (int8_t)ids[i];
    case GR_U16:
        return gr_load_u16(ids + 2 * i);
    case GR_I16:
        return (int16_t)gr_load_u16(ids + 2 * i);
    case GR_I32:
        return (int32_t)gr_load_u32(ids + 4 * i);
    case GR_U32:
        return gr_load_u32(ids + 4 * i);
    default: /* dtype_find lets only one more through */
        return (int64_t)gr_load_u64(ids + 8 * i);
    }
}

gr_err gr_tokens_read(const gr_tokens *t, uint64_t first, size_t n, uint32_t n_vocab, uint32_t *ids) {
    GR_ASSERT(
        first <= t->n_token && n <= t->n_token - first, "tokens %" PRIu64 " + %zu of %" PRIu64, first, n, t->n_token);
    for (size_t i = 0; i < n; i++) {
        int64_t id = element_load(t->ids, first + i, t->dtype);
        if ((uint64_t)id >= n_vocab) /* a negative id is huge here */
            return gr_fail(GR_DATA,
                "%s: token %" PRIu64 ": expected an id from 0 to %" PRIu32 " (the vocabulary's last), got %" PRId64
                "; use the vocabulary size the file was made with",
                t->bin_path, first + i, n_vocab - 1, id);
        ids[i] = (uint32_t)id;
    }
    return GR_OK;
}
