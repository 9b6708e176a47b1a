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

/* Why the mapped sidecar cannot be used, NULL if it can. */
static const char *find_fault(const touch_file *f, gr_map map) {
    uint8_t header[HEADER_BYTES];
    encode_header(f, header);
    if (map.n != f->file_bytes)
        return "its size differs";
    if (memcmp(map.p, header, HEADER_BYTES) != 0)
        return "it belongs to another table, rank count or version";
    if (gr_hash64(map.p, map.n - 8) != gr_load_u64(map.p + map.n - 8))
        return "its checksum does not match";
    for (size_t i = 0; i < f->n_count; i++)
        if (gr_load_u32(map.p + HEADER_BYTES + 4 * i) > f->info->T)
            return "a count exceeds the tokens of a window";
    return NULL;
}

static bool load(const touch_file *f, uint32_t *count) {
    if (!gr_path_exists(f->path))
        return false;
    gr_map map = {0};
    if (gr_map_open(&map, f->path, GR_DATA)) {
        gr_info("note: %s; counting again", gr_error_text());
        return false;
    }
    const char *fault = find_fault(f, map);
    if (fault)
        gr_info("note: %s: %s; counting again", f->path, fault);
    for (size_t i = 0; !fault && i < f->n_count; i++)
        count[i] = gr_load_u32(map.p + HEADER_BYTES + 4 * i);
    gr_map_close(&map);
    return !fault;
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
    gr_progress_start(&progress, "counting routes per rank", "Mtokens", 1e6, f->info->n_window * f->info->T);
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
