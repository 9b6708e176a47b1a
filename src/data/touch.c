/* touch.c: how many tokens of each window touch each rank: capacities without scanning the table at every start.
 *
 * Sidecar, little-endian: char[8] "GRTOUCH" and NUL | u32 version 2 | u32 R_ep | u64 n_window | u64 table hash |
 * u64 hash of where the experts are | u32 count[n_window][R_ep] | u64 XXH3-64 of everything before. It is a cache: one
 * that cannot be used is made again, never an error. */
#include "grouter/routes.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "GRTOUCH"
#define VERSION 2u
#define HEADER_BYTES 40

typedef struct touch_file {
    char *path;
    const gr_routes_info *info;
    uint32_t n_rank;
    const uint16_t *rank_of; /* [E]; NULL: consecutive blocks */
    uint64_t map;            /* hash of rank_of, 0 for consecutive blocks */
    size_t n_count;          /* n_window * n_rank */
    size_t file_bytes;       /* header, counts, checksum */
} touch_file;

static bool is_blocks(const uint16_t *rank_of, uint32_t E, uint32_t n_rank) {
    for (uint32_t e = 0; rank_of && e < E; e++)
        if (rank_of[e] != e / (E / n_rank))
            return false;
    return true;
}

static gr_err hash_map(touch_file *f) {
    const uint32_t E = f->info->E;
    uint8_t *bytes;
    if (!f->rank_of)
        return GR_OK;
    GR_TRY(gr_alloc((void **)&bytes, E, 2, "places of experts"));
    for (uint32_t e = 0; e < E; e++)
        gr_store_u16(bytes + 2 * (size_t)e, f->rank_of[e]);
    f->map = gr_hash64(bytes, 2 * (size_t)E);
    free(bytes);
    return GR_OK;
}

static gr_err file_describe(touch_file *f, const gr_routes *r, uint32_t n_rank, const uint16_t *rank_of) {
    *f = (touch_file){.info = gr_routes_get(r), .n_rank = n_rank};
    f->rank_of = is_blocks(rank_of, f->info->E, n_rank) ? NULL : rank_of;
    GR_TRY(hash_map(f));
    size_t count_bytes;
    if (!gr_mul_size(f->info->n_window, n_rank, &f->n_count) || !gr_mul_size(f->n_count, 4, &count_bytes) ||
        !gr_add_size(count_bytes, HEADER_BYTES + 8, &f->file_bytes))
        return gr_fail(GR_DATA,
            "%s: expected touch counts below 2^64 bytes, got %" PRIu64 " windows on %" PRIu32 " ranks",
            gr_routes_path(r), f->info->n_window, n_rank);
    const size_t path_bytes = strlen(gr_routes_path(r)) + 48;
    GR_TRY(gr_alloc((void **)&f->path, path_bytes, 1, "touch counts path"));
    int n = snprintf(f->path, path_bytes, "%s.touch%" PRIu32, gr_routes_path(r), n_rank);
    if (f->rank_of)
        snprintf(f->path + n, path_bytes - (size_t)n, ".%016" PRIx64, f->map);
    return GR_OK;
}

static void encode_header(const touch_file *f, uint8_t header[HEADER_BYTES]) {
    memcpy(header, MAGIC, 8);
    gr_store_u32(header + 8, VERSION);
    gr_store_u32(header + 12, f->n_rank);
    gr_store_u64(header + 16, f->info->n_window);
    gr_store_u64(header + 24, f->info->table_hash);
    gr_store_u64(header + 32, f->map);
}

/* Counts of a mapped sidecar whatever table it belongs to. */
static gr_err decode(gr_touch *out, uint64_t *table_hash, gr_map map, const char *path) {
    if (map.n < HEADER_BYTES + 8 || memcmp(map.p, MAGIC, 8) != 0)
        return gr_fail(GR_DATA, "%s: expected touch counts (\"%s\" at byte 0, %d bytes or more), got %zu other bytes",
            path, MAGIC, HEADER_BYTES + 8, map.n);
    const uint32_t version = gr_load_u32(map.p + 8), n_rank = gr_load_u32(map.p + 12);
    const uint64_t n_window = gr_load_u64(map.p + 16);
    size_t n_count, count_bytes, file_bytes;
    if (version != VERSION)
        return gr_fail(GR_DATA, "%s: expected version %u at byte 8, got %" PRIu32, path, VERSION, version);
    if (n_rank < 1 || !gr_mul_size(n_window, n_rank, &n_count) || !gr_mul_size(n_count, 4, &count_bytes) ||
        !gr_add_size(count_bytes, HEADER_BYTES + 8, &file_bytes) || file_bytes != map.n)
        return gr_fail(GR_DATA,
            "%s: expected the bytes of %" PRIu64 " windows on %" PRIu32 " ranks, got %zu; the file is damaged", path,
            n_window, n_rank, map.n);
    if (gr_hash64(map.p, map.n - 8) != gr_load_u64(map.p + map.n - 8))
        return gr_fail(GR_DATA, "%s: its checksum does not match; the file is damaged", path);
    GR_TRY(gr_alloc((void **)&out->count, n_count, sizeof *out->count, "touch counts"));
    out->n_rank = n_rank;
    out->n_window = n_window;
    *table_hash = gr_load_u64(map.p + 24);
    out->map = gr_load_u64(map.p + 32);
    for (size_t i = 0; i < n_count; i++)
        out->count[i] = gr_load_u32(map.p + HEADER_BYTES + 4 * i);
    return GR_OK;
}

gr_err gr_touch_read(gr_touch *out, const char *path, uint64_t *table_hash) {
    gr_map map = {0};
    *out = (gr_touch){0};
    GR_TRY(gr_map_open(&map, path, GR_DATA));
    gr_err err = decode(out, table_hash, map, path);
    gr_map_close(&map);
    return err;
}

static gr_err check_fit(const touch_file *f, const gr_touch *touch, uint64_t table_hash) {
    if (touch->n_rank != f->n_rank || touch->n_window != f->info->n_window || table_hash != f->info->table_hash ||
        touch->map != f->map)
        return gr_fail(GR_DATA, "%s: it belongs to another table, rank count or placement", f->path);
    for (size_t i = 0; i < f->n_count; i++)
        if (touch->count[i] > f->info->T)
            return gr_fail(GR_DATA, "%s: a count exceeds the tokens of a window", f->path);
    return GR_OK;
}

/* False if there is no sidecar that can be used. */
static bool load(const touch_file *f, uint32_t *count) {
    gr_touch touch;
    uint64_t table_hash = 0;
    if (!gr_path_exists(f->path))
        return false;
    gr_err err = gr_touch_read(&touch, f->path, &table_hash);
    if (!err)
        err = check_fit(f, &touch, table_hash);
    if (err)
        gr_info("note: %s; counting again", gr_error_text());
    else
        memcpy(count, touch.count, f->n_count * sizeof *count);
    gr_touch_close(&touch);
    return !err;
}

static gr_err write_file(const touch_file *f, const uint32_t *count, uint8_t *bytes, gr_out *out) {
    encode_header(f, bytes);
    for (size_t i = 0; i < f->n_count; i++)
        gr_store_u32(bytes + HEADER_BYTES + 4 * i, count[i]);
    gr_store_u64(bytes + f->file_bytes - 8, gr_hash64(bytes, f->file_bytes - 8));
    GR_TRY(gr_out_write(out, bytes, f->file_bytes));
    return gr_out_commit(out);
}

static gr_err save(const touch_file *f, const uint32_t *count) {
    uint8_t *bytes = NULL;
    gr_out *out = NULL;
    GR_TRY(gr_alloc((void **)&bytes, f->file_bytes, 1, "touch counts file"));
    gr_err err = gr_out_open(&out, f->path);
    if (!err)
        err = write_file(f, count, bytes, out);
    gr_out_close(out);
    free(bytes);
    return err;
}

typedef struct scan_buffers {
    uint32_t *tokens; /* [T+1] */
    uint16_t *ids;    /* [T*K] */
    float *gates;     /* [T*K] */
    uint32_t *seen;   /* [n_rank] 1 + the last token that was counted for a rank */
} scan_buffers;

/* Adds one window's rows: each token counts once per rank it has an expert on; an unused slot (gate 0) has none. */
static void count_window(const touch_file *f, scan_buffers *b, uint32_t *count) {
    const gr_routes_info *info = f->info;
    const uint32_t E_local = info->E / f->n_rank;
    memset(b->seen, 0, f->n_rank * sizeof *b->seen);
    for (uint32_t t = 0; t < info->T; t++)
        for (size_t pair = (size_t)t * info->K; pair < ((size_t)t + 1) * info->K; pair++) {
            uint32_t expert = b->ids[pair], rank = f->rank_of ? f->rank_of[expert] : expert / E_local;
            if (b->gates[pair] > 0.0f && b->seen[rank] != t + 1) {
                count[rank]++;
                b->seen[rank] = t + 1;
            }
        }
}

static gr_err scan_windows(
    const touch_file *f, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, scan_buffers *b, uint32_t *count) {
    gr_progress progress;
    gr_progress_start(&progress, "counting routes per rank", "tokens", f->info->n_window * f->info->T);
    for (uint64_t w = 0; w < f->info->n_window; w++) {
        GR_TRY(gr_window_read(t, w, f->info->T, n_vocab, b->tokens));
        GR_TRY(gr_routes_read(r, w, b->tokens, b->ids, b->gates));
        count_window(f, b, count + w * f->n_rank);
        gr_progress_update(&progress, (w + 1) * f->info->T);
    }
    gr_progress_finish(&progress, f->info->n_window * f->info->T);
    return GR_OK;
}

static gr_err scan(const touch_file *f, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, uint32_t *count) {
    scan_buffers b = {0};
    const size_t n_pair = (size_t)f->info->T * f->info->K;
    gr_err err = gr_alloc((void **)&b.tokens, (size_t)f->info->T + 1, sizeof *b.tokens, "window tokens");
    if (!err)
        err = gr_alloc((void **)&b.ids, n_pair, sizeof *b.ids, "window expert ids");
    if (!err)
        err = gr_alloc((void **)&b.gates, n_pair, sizeof *b.gates, "window gates");
    if (!err)
        err = gr_alloc((void **)&b.seen, f->n_rank, sizeof *b.seen, "ranks of a window");
    if (!err)
        err = scan_windows(f, r, t, n_vocab, &b, count);
    if (!err)
        err = gr_routes_check_hash(r);
    free(b.seen);
    free(b.gates);
    free(b.ids);
    free(b.tokens);
    return err;
}

static gr_err load_or_scan(
    const touch_file *f, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, bool may_save, uint32_t *count) {
    if (f->n_rank == 1) {
        for (size_t w = 0; w < f->n_count; w++)
            count[w] = f->info->T;
        return GR_OK;
    }
    if (load(f, count))
        return GR_OK;
    memset(count, 0, f->n_count * sizeof *count);
    GR_TRY(scan(f, r, t, n_vocab, count));
    if (may_save && save(f, count))
        gr_warn("touch counts are not kept, the next start counts again: %s", gr_error_text());
    return GR_OK;
}

gr_err gr_touch_open(gr_touch *out, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, uint32_t n_rank,
    const uint16_t *rank_of, bool may_save) {
    *out = (gr_touch){0};
    GR_ASSERT(
        n_rank >= 1 && gr_routes_get(r)->E % n_rank == 0, "E %" PRIu32 ", ranks %" PRIu32, gr_routes_get(r)->E, n_rank);
    touch_file f;
    uint32_t *count = NULL;
    gr_err err = file_describe(&f, r, n_rank, rank_of);
    if (!err)
        err = gr_alloc((void **)&count, f.n_count, sizeof *count, "touch counts");
    if (!err)
        err = load_or_scan(&f, r, t, n_vocab, may_save, count);
    free(f.path);
    if (err) {
        free(count);
        return err;
    }
    *out = (gr_touch){.n_rank = n_rank, .n_window = gr_routes_get(r)->n_window, .count = count, .map = f.map};
    return GR_OK;
}

void gr_touch_close(gr_touch *touch) {
    free(touch->count);
    *touch = (gr_touch){0};
}
