/* touch.c: how many tokens of each window touch each rank: capacities without scanning the table at every start.
 *
 * Sidecar `<table>.touch<R_ep>`, little-endian: char[8] "GRTOUCH" and NUL | u32 version 1 | u32 R_ep | u64 n_window |
 * u64 table hash | u32 count[n_window][R_ep] | u64 XXH3-64 of everything before. It is a cache: one that cannot be used
 * is made again, never an error. */
#include "grouter/routes.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "GRTOUCH"
#define VERSION 1u
#define HEADER_BYTES 32

typedef struct touch_file {
    char *path;
    const gr_routes_info *info;
    uint32_t n_rank;
    size_t n_count;    /* n_window * n_rank */
    size_t file_bytes; /* header, counts, checksum */
} touch_file;

static gr_err file_describe(touch_file *f, const gr_routes *r, uint32_t n_rank) {
    *f = (touch_file){.info = gr_routes_get(r), .n_rank = n_rank};
    size_t count_bytes;
    if (!gr_mul_size(f->info->n_window, n_rank, &f->n_count) || !gr_mul_size(f->n_count, 4, &count_bytes) ||
        !gr_add_size(count_bytes, HEADER_BYTES + 8, &f->file_bytes))
        return gr_fail(GR_DATA,
            "%s: expected touch counts below 2^64 bytes, got %" PRIu64 " windows on %" PRIu32 " ranks",
            gr_routes_path(r), f->info->n_window, n_rank);
    const size_t path_bytes = strlen(gr_routes_path(r)) + 24;
    GR_TRY(gr_alloc((void **)&f->path, path_bytes, 1, "touch counts path"));
    snprintf(f->path, path_bytes, "%s.touch%" PRIu32, gr_routes_path(r), n_rank);
    return GR_OK;
}

static void encode_header(const touch_file *f, uint8_t header[HEADER_BYTES]) {
    memcpy(header, MAGIC, 8);
    gr_store_u32(header + 8, VERSION);
    gr_store_u32(header + 12, f->n_rank);
    gr_store_u64(header + 16, f->info->n_window);
    gr_store_u64(header + 24, f->info->table_hash);
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
    if (touch->n_rank != f->n_rank || touch->n_window != f->info->n_window || table_hash != f->info->table_hash)
        return gr_fail(GR_DATA, "%s: it belongs to another table or rank count", f->path);
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

/* Adds one window's rows: each token counts once per rank it has an expert on. Ids ascend, so equal ranks are
 * neighbours; unused slots (gate 0) may lie between them. */
static void count_window(
    const gr_routes_info *info, uint32_t n_rank, const uint16_t *ids, const float *gates, uint32_t *count) {
    const uint32_t E_local = info->E / n_rank;
    for (size_t t = 0; t < info->T; t++) {
        uint32_t last = UINT32_MAX;
        for (size_t pair = t * info->K; pair < (t + 1) * info->K; pair++) {
            uint32_t rank = ids[pair] / E_local;
            if (gates[pair] > 0.0f && rank != last) {
                count[rank]++;
                last = rank;
            }
        }
    }
}

typedef struct scan_buffers {
    uint32_t *tokens; /* [T+1] */
    uint16_t *ids;    /* [T*K] */
    float *gates;     /* [T*K] */
} scan_buffers;

static gr_err scan_windows(
    const touch_file *f, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, scan_buffers *b, uint32_t *count) {
    gr_progress progress;
    gr_progress_start(&progress, "counting routes per rank", "tokens", f->info->n_window * f->info->T);
    for (uint64_t w = 0; w < f->info->n_window; w++) {
        GR_TRY(gr_window_read(t, w, f->info->T, n_vocab, b->tokens));
        GR_TRY(gr_routes_read(r, w, b->tokens, b->ids, b->gates));
        count_window(f->info, f->n_rank, b->ids, b->gates, count + w * f->n_rank);
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
        err = scan_windows(f, r, t, n_vocab, &b, count);
    if (!err)
        err = gr_routes_check_hash(r);
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

gr_err gr_touch_open(
    gr_touch *out, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, uint32_t n_rank, bool may_save) {
    *out = (gr_touch){0};
    GR_ASSERT(
        n_rank >= 1 && gr_routes_get(r)->E % n_rank == 0, "E %" PRIu32 ", ranks %" PRIu32, gr_routes_get(r)->E, n_rank);
    touch_file f;
    uint32_t *count = NULL;
    gr_err err = file_describe(&f, r, n_rank);
    if (!err)
        err = gr_alloc((void **)&count, f.n_count, sizeof *count, "touch counts");
    if (!err)
        err = load_or_scan(&f, r, t, n_vocab, may_save, count);
    free(f.path);
    if (err) {
        free(count);
        return err;
    }
    *out = (gr_touch){.n_rank = n_rank, .n_window = gr_routes_get(r)->n_window, .count = count};
    return GR_OK;
}

void gr_touch_close(gr_touch *touch) {
    free(touch->count);
    *touch = (gr_touch){0};
}
