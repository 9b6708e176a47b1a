/* routes.c: route tables: header, places of everything in the file, and the reader.
 *
 * Header, 512 bytes, little-endian:
 *     0  char[8]  magic "GRROUTES"
 *     8  u32      version, 1
 *    12  u32      header bytes, 512
 *    16  u32      E, experts
 *    20  u32      K, experts per token
 *    24  u32      T, tokens per window
 *    28  f32      scale, what the gates of a token sum to
 *    32  u32      variable_k, 0 or 1
 *    36  u32      mask, a gr_mask
 *    40  u32      position, a gr_position
 *    44  u32      reserved, 0
 *    48  u64      n_window
 *    56  u64      n_token of the token file
 *    64  u64 x2   router hash, low word first
 *    80  u64      table hash: XXH3-64 over all records' two hashes in window order
 *    88  char[256] provenance, printable, padded with NUL, at least one
 *   344  u8[160]  reserved, 0
 *   504  u64      XXH3-64 of bytes 0..503
 * The file ends where n_window, E, K and T say, to the byte. While a table is being written its magic is "GRUNDONE",
 * its table hash and provenance are 0.
 *
 * A window is copied out of the mapping before it is checked, so what was checked is what is used even if the file
 * changes meanwhile. */
#include "data/routes_format.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "GRROUTES"
#define MAGIC_UNFINISHED "GRUNDONE"
#define VERSION 1u
#define TABLE_HASH_AT 80 /* then provenance */
#define RESERVED_AT 344
#define CHECKSUM_AT (GR_ROUTES_HEADER - 8)

struct gr_routes {
    gr_map map;
    gr_routes_info info;
    gr_routes_layout layout;
    char *path;
    uint8_t *hashed;      /* ids | gates | histogram of the window being read */
    uint8_t *token_bytes; /* [4*(T+1)] */
    uint32_t *counts;     /* [E] */
};

/* ---------------------------------------------------------------- layout and header */

static gr_err check_provenance(const char *text, const char *where) {
    size_t n = strnlen(text, GR_PROVENANCE_MAX);
    if (n == GR_PROVENANCE_MAX)
        return gr_fail(GR_DATA, "%s: expected provenance of at most %d bytes, got more", where, GR_PROVENANCE_MAX - 1);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f)
            return gr_fail(GR_DATA, "%s: expected printable provenance, got byte %u at its byte %zu", where, c, i);
    }
    return GR_OK;
}

static gr_err check_ranges(const gr_routes_info *info, const char *where) {
    if (info->E < 1 || info->E > GR_EXPERTS_MAX)
        return gr_fail(GR_DATA, "%s: expected E (experts) from 1 to %d, got %" PRIu32, where, GR_EXPERTS_MAX, info->E);
    if (info->K < 1 || info->K > GR_TOPK_MAX || info->K > info->E)
        return gr_fail(GR_DATA, "%s: expected K (experts per token) from 1 to min(%d, E = %" PRIu32 "), got %" PRIu32,
            where, GR_TOPK_MAX, info->E, info->K);
    if (info->T < 1)
        return gr_fail(GR_DATA, "%s: expected T (tokens per window) of at least 1, got 0", where);
    if (!(info->scale >= GR_SCALE_MIN && info->scale <= GR_SCALE_MAX))
        return gr_fail(GR_DATA, "%s: expected a scale from %g to %g, got %.9g", where, (double)GR_SCALE_MIN,
            (double)GR_SCALE_MAX, (double)info->scale);
    if ((unsigned)info->mask >= GR_N_MASK)
        return gr_fail(GR_DATA, "%s: expected a mask mode below %d, got %u", where, GR_N_MASK, (unsigned)info->mask);
    if ((unsigned)info->position >= GR_N_POSITION)
        return gr_fail(
            GR_DATA, "%s: expected a position mode below %d, got %u", where, GR_N_POSITION, (unsigned)info->position);
    uint64_t n_window = gr_window_count(info->n_token, info->T);
    if (n_window == 0)
        return gr_fail(GR_DATA, "%s: expected at least T+1 = %" PRIu64 " tokens, got %" PRIu64 "; use a smaller T",
            where, (uint64_t)info->T + 1, info->n_token);
    if (info->n_window != n_window)
        return gr_fail(GR_DATA, "%s: expected %" PRIu64 " windows (%" PRIu64 " tokens, T = %" PRIu32 "), got %" PRIu64,
            where, n_window, info->n_token, info->T, info->n_window);
    return check_provenance(info->provenance, where);
}

gr_err gr_routes_layout_make(gr_routes_layout *l, const gr_routes_info *info, const char *where) {
    GR_TRY(check_ranges(info, where));
    const size_t id_size = info->E <= 256 ? 1 : 2;
    size_t n_pair, gates_at, gates_bytes, hashes_at, record_bytes, histograms, records_at, records, file_bytes;
    bool fits = gr_mul_size(info->T, info->K, &n_pair) && gr_mul_size(n_pair, id_size, &gates_at) &&
                gr_mul_size(n_pair, 2, &gates_bytes) && gr_add_size(gates_at, gates_bytes, &hashes_at) &&
                gr_add_size(hashes_at, 16, &record_bytes) &&
                gr_mul_size(info->n_window, 4 * (size_t)info->E, &histograms) &&
                gr_add_size(GR_ROUTES_HEADER, histograms, &records_at) &&
                gr_mul_size(info->n_window, record_bytes, &records) && gr_add_size(records_at, records, &file_bytes);
    if (!fits)
        return gr_fail(GR_DATA,
            "%s: expected a table below 2^64 bytes, got more (%" PRIu64 " windows, E = %" PRIu32 ", K = %" PRIu32
            ", T = %" PRIu32 ")",
            where, info->n_window, info->E, info->K, info->T);
    *l = (gr_routes_layout){.n_pair = n_pair,
        .id_size = id_size,
        .gates_at = gates_at,
        .hashes_at = hashes_at,
        .record_bytes = record_bytes,
        .histogram_bytes = 4 * (size_t)info->E,
        .records_at = records_at,
        .file_bytes = file_bytes};
    return GR_OK;
}

gr_err gr_routes_size(const gr_routes_info *info, uint64_t *n_byte) {
    gr_routes_layout l;
    GR_TRY(gr_routes_layout_make(&l, info, "route table"));
    *n_byte = l.file_bytes;
    return GR_OK;
}

size_t gr_routes_histogram_at(const gr_routes_layout *l, uint64_t window) {
    return GR_ROUTES_HEADER + window * l->histogram_bytes;
}

size_t gr_routes_record_at(const gr_routes_layout *l, uint64_t window) {
    return l->records_at + window * l->record_bytes;
}

void gr_routes_header_encode(const gr_routes_info *info, uint8_t header[GR_ROUTES_HEADER]) {
    uint32_t scale_bits;
    memcpy(&scale_bits, &info->scale, sizeof scale_bits);
    memset(header, 0, GR_ROUTES_HEADER);
    memcpy(header, MAGIC, 8);
    gr_store_u32(header + 8, VERSION);
    gr_store_u32(header + 12, GR_ROUTES_HEADER);
    gr_store_u32(header + 16, info->E);
    gr_store_u32(header + 20, info->K);
    gr_store_u32(header + 24, info->T);
    gr_store_u32(header + 28, scale_bits);
    gr_store_u32(header + 32, info->variable_k);
    gr_store_u32(header + 36, (uint32_t)info->mask);
    gr_store_u32(header + 40, (uint32_t)info->position);
    gr_store_u64(header + 48, info->n_window);
    gr_store_u64(header + 56, info->n_token);
    gr_store_u64(header + 64, info->router.lo);
    gr_store_u64(header + 72, info->router.hi);
    gr_store_u64(header + TABLE_HASH_AT, info->table_hash);
    memcpy(header + 88, info->provenance, strnlen(info->provenance, GR_PROVENANCE_MAX - 1));
    gr_store_u64(header + CHECKSUM_AT, gr_hash64(header, CHECKSUM_AT));
}

void gr_routes_header_unfinished(uint8_t header[GR_ROUTES_HEADER]) {
    memcpy(header, MAGIC_UNFINISHED, 8);
    memset(header + TABLE_HASH_AT, 0, RESERVED_AT - TABLE_HASH_AT);
    gr_store_u64(header + CHECKSUM_AT, gr_hash64(header, CHECKSUM_AT));
}

/* Magic, version, length and checksum: what must hold before any field means anything. */
static gr_err check_frame(gr_map map, const char *path) {
    if (map.n < GR_ROUTES_HEADER)
        return gr_fail(GR_DATA, "%s: expected a route table of at least %d bytes, got %zu; make it with '%s'", path,
            GR_ROUTES_HEADER, map.n, "grouter-train route");
    if (memcmp(map.p, MAGIC_UNFINISHED, 8) == 0)
        return gr_fail(GR_DATA,
            "%s: expected a finished route table, got one that is being written or whose writing was "
            "stopped; run the same 'route' command again to go on with it",
            path);
    if (memcmp(map.p, MAGIC, 8) != 0)
        return gr_fail(GR_DATA, "%s: expected a route table (\"%s\" at byte 0), got another kind of file; %s", path,
            MAGIC, "make one with 'grouter-train route'");
    uint32_t version = gr_load_u32(map.p + 8), header_bytes = gr_load_u32(map.p + 12);
    if (version != VERSION)
        return gr_fail(GR_DATA, "%s: expected route table version %u at byte 8, got %" PRIu32 "; %s", path, VERSION,
            version, "make it again with this program's 'route'");
    if (header_bytes != GR_ROUTES_HEADER)
        return gr_fail(
            GR_DATA, "%s: expected %d header bytes at byte 12, got %" PRIu32, path, GR_ROUTES_HEADER, header_bytes);
    uint64_t found = gr_hash64(map.p, CHECKSUM_AT), stored = gr_load_u64(map.p + CHECKSUM_AT);
    if (found != stored)
        return gr_fail(GR_DATA,
            "%s: expected header checksum %016" PRIx64 " (bytes 0..%d), got %016" PRIx64 "; the header is damaged",
            path, stored, CHECKSUM_AT - 1, found);
    return GR_OK;
}

static gr_err check_reserved(const uint8_t *header, const char *path) {
    for (size_t i = 0; i < CHECKSUM_AT; i++) {
        bool reserved = (i >= 44 && i < 48) || i >= RESERVED_AT;
        if (reserved && header[i] != 0)
            return gr_fail(GR_DATA, "%s: expected 0 at reserved byte %zu, got %u", path, i, (unsigned)header[i]);
    }
    return GR_OK;
}

static gr_err decode_header(gr_routes_info *info, gr_map map, const char *path) {
    GR_TRY(check_frame(map, path));
    GR_TRY(check_reserved(map.p, path));
    gr_span s = {map.p + 16, GR_ROUTES_HEADER - 16};
    uint32_t variable_k, mask, position, reserved;
    const uint8_t *provenance;
    bool enough = gr_take_u32(&s, &info->E) && gr_take_u32(&s, &info->K) && gr_take_u32(&s, &info->T) &&
                  gr_take_f32(&s, &info->scale) && gr_take_u32(&s, &variable_k) && gr_take_u32(&s, &mask) &&
                  gr_take_u32(&s, &position) && gr_take_u32(&s, &reserved) && gr_take_u64(&s, &info->n_window) &&
                  gr_take_u64(&s, &info->n_token) && gr_take_u64(&s, &info->router.lo) &&
                  gr_take_u64(&s, &info->router.hi) && gr_take_u64(&s, &info->table_hash) &&
                  gr_take_bytes(&s, GR_PROVENANCE_MAX, &provenance);
    GR_ASSERT(enough, "header of %d bytes", GR_ROUTES_HEADER);
    if (variable_k > 1)
        return gr_fail(GR_DATA, "%s: expected variable_k 0 or 1 at byte 32, got %" PRIu32, path, variable_k);
    if (mask >= GR_N_MASK || position >= GR_N_POSITION)
        return gr_fail(GR_DATA,
            "%s: expected a mask below %d and a position mode below %d at bytes 36 and 40, got %" PRIu32
            " and %" PRIu32,
            path, GR_N_MASK, GR_N_POSITION, mask, position);
    info->variable_k = variable_k == 1;
    info->mask = (gr_mask)mask;
    info->position = (gr_position)position;
    memcpy(info->provenance, provenance, GR_PROVENANCE_MAX);
    return GR_OK;
}

/* ---------------------------------------------------------------- hashes */

uint64_t gr_routes_token_hash(const uint32_t *tokens, size_t n, uint8_t *scratch) {
    for (size_t i = 0; i < n; i++)
        gr_store_u32(scratch + 4 * i, tokens[i]);
    return gr_hash64(scratch, 4 * n);
}

gr_err gr_routes_table_hash(
    const uint8_t *file, const gr_routes_layout *l, uint64_t n_window, const char *where, uint64_t *out) {
    static const uint8_t unwritten[16];
    gr_hasher *hasher = NULL;
    GR_TRY(gr_hasher_open(&hasher));
    gr_err err = GR_OK;
    for (uint64_t w = 0; w < n_window && !err; w++) {
        const uint8_t *hashes = file + gr_routes_record_at(l, w) + l->hashes_at;
        if (memcmp(hashes, unwritten, sizeof unwritten) == 0)
            err = gr_fail(GR_BUG, "%s: expected every window to be written, got nothing for window %" PRIu64, where, w);
        gr_hasher_add(hasher, hashes, 16);
    }
    *out = gr_hasher_64(hasher);
    gr_hasher_close(hasher);
    return err;
}

gr_err gr_routes_check_hash(const gr_routes *r) {
    uint64_t found;
    GR_TRY(gr_routes_table_hash(r->map.p, &r->layout, r->info.n_window, r->path, &found));
    if (found != r->info.table_hash)
        return gr_fail(GR_DATA,
            "%s: expected table hash %016" PRIx64 " (byte 80), got %016" PRIx64
            " from its records; they are not the ones written, route again",
            r->path, r->info.table_hash, found);
    return GR_OK;
}

/* ---------------------------------------------------------------- reader */

static gr_err open_mapped(gr_routes *r) {
    GR_TRY(decode_header(&r->info, r->map, r->path));
    GR_TRY(gr_routes_layout_make(&r->layout, &r->info, r->path));
    if (r->map.n != r->layout.file_bytes)
        return gr_fail(GR_DATA,
            "%s: expected %zu bytes (%" PRIu64 " windows, E = %" PRIu32 ", K = %" PRIu32 ", T = %" PRIu32
            "), got %zu; the file is %s, copy or route it again",
            r->path, r->layout.file_bytes, r->info.n_window, r->info.E, r->info.K, r->info.T, r->map.n,
            r->map.n < r->layout.file_bytes ? "cut short" : "too long");
    const size_t hashed_bytes = r->layout.hashes_at + r->layout.histogram_bytes;
    GR_TRY(gr_alloc((void **)&r->hashed, hashed_bytes, 1, "route table window"));
    GR_TRY(gr_alloc((void **)&r->token_bytes, (size_t)r->info.T + 1, 4, "route table tokens"));
    return gr_alloc((void **)&r->counts, r->info.E, sizeof *r->counts, "route table histogram");
}

gr_err gr_routes_open(gr_routes **out, const char *path) {
    gr_routes *r = NULL;
    *out = NULL;
    GR_TRY(gr_alloc((void **)&r, 1, sizeof *r, "route table"));
    const size_t path_bytes = strlen(path) + 1;
    gr_err err = gr_alloc((void **)&r->path, path_bytes, 1, "route table path");
    if (!err) {
        memcpy(r->path, path, path_bytes);
        err = gr_map_open(&r->map, path, GR_DATA);
    }
    if (!err)
        err = open_mapped(r);
    if (err) {
        gr_routes_close(r);
        return err;
    }
    *out = r;
    return GR_OK;
}

void gr_routes_close(gr_routes *r) {
    if (!r)
        return;
    free(r->counts);
    free(r->token_bytes);
    free(r->hashed);
    gr_map_close(&r->map);
    free(r->path);
    free(r);
}

const gr_routes_info *gr_routes_get(const gr_routes *r) {
    return &r->info;
}

const char *gr_routes_path(const gr_routes *r) {
    return r->path;
}

static gr_err check_record_hash(const gr_routes *r, uint64_t window, const uint8_t *record) {
    uint64_t found = gr_hash64(r->hashed, r->layout.hashes_at + r->layout.histogram_bytes);
    uint64_t stored = gr_load_u64(record + r->layout.hashes_at);
    if (found == stored)
        return GR_OK;
    size_t at = gr_routes_record_at(&r->layout, window), histogram_at = gr_routes_histogram_at(&r->layout, window);
    return gr_fail(GR_DATA,
        "%s: window %" PRIu64 ": expected record hash %016" PRIx64 ", got %016" PRIx64
        " (record at byte %zu, histogram at byte %zu); the file is damaged, copy or route it again",
        r->path, window, stored, found, at, histogram_at);
}

static gr_err check_token_hash(
    const gr_routes *r, uint64_t window, const uint8_t *record, const uint32_t *tokens, const char *tokens_name) {
    uint64_t found = gr_routes_token_hash(tokens, (size_t)r->info.T + 1, r->token_bytes);
    uint64_t stored = gr_load_u64(record + r->layout.hashes_at + 8);
    if (found == stored)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: window %" PRIu64 ": expected the tokens it was routed from (hash %016" PRIx64
        " at byte %zu), got %016" PRIx64 " from %s; table and token file are not a pair, route this token file",
        r->path, window, stored, gr_routes_record_at(&r->layout, window) + r->layout.hashes_at + 8, found, tokens_name);
}

/* bf16 at p; here rather than a call of base, so that the loop below is vectorised. */
static inline float load_gate(const uint8_t *p) {
    uint32_t bits = (uint32_t)p[1] << 24 | (uint32_t)p[0] << 16;
    float gate;
    memcpy(&gate, &bits, sizeof gate);
    return gate;
}

/* ids[n_pair], gates[n_pair] from the private copy. */
static void decode_rows(const gr_routes *r, uint16_t *restrict ids, float *restrict gates) {
    const size_t n = r->layout.n_pair;
    const uint8_t *packed_ids = r->hashed, *packed_gates = r->hashed + r->layout.gates_at;
    if (r->layout.id_size == 1) {
        for (size_t i = 0; i < n; i++)
            ids[i] = packed_ids[i];
    } else {
        for (size_t i = 0; i < n; i++)
            ids[i] = (uint16_t)(packed_ids[2 * i] | packed_ids[2 * i + 1] << 8);
    }
    for (size_t i = 0; i < n; i++)
        gates[i] = load_gate(packed_gates + 2 * i);
}

static gr_err row_error(const gr_routes *r, uint64_t window, const gr_row_fault *fault) {
    size_t in_record = fault->in_gates ? r->layout.gates_at + 2 * fault->pair : r->layout.id_size * fault->pair;
    return gr_fail(GR_DATA,
        "%s: window %" PRIu64 ", position %zu, slot %zu: %s (byte %zu); rows are never repaired, route again", r->path,
        window, fault->pair / r->info.K, fault->pair % r->info.K, fault->text,
        gr_routes_record_at(&r->layout, window) + in_record);
}

static gr_err check_histogram(const gr_routes *r, uint64_t window) {
    const uint8_t *stored = r->hashed + r->layout.hashes_at;
    for (uint32_t e = 0; e < r->info.E; e++) {
        uint32_t count = gr_load_u32(stored + 4 * (size_t)e);
        if (count != r->counts[e])
            return gr_fail(GR_DATA,
                "%s: window %" PRIu64 ", expert %" PRIu32 ": expected a histogram of %" PRIu32
                " as its rows have, got %" PRIu32 " (byte %zu); route again",
                r->path, window, e, r->counts[e], count, gr_routes_histogram_at(&r->layout, window) + 4 * (size_t)e);
    }
    return GR_OK;
}

gr_err gr_routes_read(gr_routes *r, uint64_t window, const uint32_t *tokens, uint16_t *ids, float *gates) {
    GR_ASSERT(window < r->info.n_window, "window %" PRIu64 " of %" PRIu64, window, r->info.n_window);
    const uint8_t *record = r->map.p + gr_routes_record_at(&r->layout, window);
    memcpy(r->hashed, record, r->layout.hashes_at);
    memcpy(r->hashed + r->layout.hashes_at, r->map.p + gr_routes_histogram_at(&r->layout, window),
        r->layout.histogram_bytes);
    GR_TRY(check_record_hash(r, window, record));
    if (tokens)
        GR_TRY(check_token_hash(r, window, record, tokens, "the token file"));
    decode_rows(r, ids, gates);
    gr_row_fault fault;
    if (!gr_rows_check(&r->info, ids, gates, r->counts, &fault))
        return row_error(r, window, &fault);
    return check_histogram(r, window);
}

void gr_routes_histogram(const gr_routes *r, uint64_t window, uint32_t *counts) {
    GR_ASSERT(window < r->info.n_window, "window %" PRIu64 " of %" PRIu64, window, r->info.n_window);
    const uint8_t *p = r->map.p + gr_routes_histogram_at(&r->layout, window);
    for (size_t e = 0; e < r->info.E; e++)
        counts[e] = gr_load_u32(p + 4 * e);
}

void gr_routes_load(const gr_routes *r, uint64_t *load) {
    memset(load, 0, r->info.E * sizeof *load);
    for (uint64_t w = 0; w < r->info.n_window; w++) {
        const uint8_t *p = r->map.p + gr_routes_histogram_at(&r->layout, w);
        for (size_t e = 0; e < r->info.E; e++)
            load[e] += gr_load_u32(p + 4 * e);
    }
}

double gr_load_violation(const uint64_t *load, uint32_t E) {
    uint64_t most = 0;
    double total = 0;
    for (uint32_t e = 0; e < E; e++) {
        most = load[e] > most ? load[e] : most;
        total += (double)load[e];
    }
    return total > 0 ? (double)most * E / total - 1.0 : 0.0;
}

static gr_err match_sizes(const gr_routes *r, const gr_tokens *t, uint32_t T, uint32_t E, uint32_t K) {
    const gr_routes_info *i = &r->info;
    if (i->n_token != gr_tokens_count(t))
        return gr_fail(GR_DATA, "%s: expected a token file of %" PRIu64 " tokens, got %" PRIu64 " in %s; %s", r->path,
            i->n_token, gr_tokens_count(t), gr_tokens_prefix(t), "route this token file");
    if (i->T != T || i->E != E || i->K != K)
        return gr_fail(GR_DATA,
            "%s: expected a route table with T = %" PRIu32 ", E = %" PRIu32 ", K = %" PRIu32 " for %s, got T = %" PRIu32
            ", E = %" PRIu32 ", K = %" PRIu32 "; route again or change the config",
            r->path, T, E, K, gr_tokens_prefix(t), i->T, i->E, i->K);
    return GR_OK;
}

gr_err gr_routes_match(const gr_routes *r, const gr_tokens *t, uint32_t T, uint32_t E, uint32_t K) {
    GR_TRY(match_sizes(r, t, T, E, K));
    uint32_t *tokens = NULL;
    GR_TRY(gr_alloc((void **)&tokens, (size_t)T + 1, sizeof *tokens, "first window"));
    gr_err err = gr_window_read(t, 0, T, UINT32_MAX, tokens);
    if (!err)
        err = check_token_hash(r, 0, r->map.p + gr_routes_record_at(&r->layout, 0), tokens, gr_tokens_prefix(t));
    free(tokens);
    return err;
}
