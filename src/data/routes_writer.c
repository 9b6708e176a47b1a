/* routes_writer.c: writes a route table window by window, in any order, from any number of processes. The header goes
 * last, so a file without every window never gets a name. A window is there when its hashes say so, whoever wrote it
 * and whenever: that is all that going on after a kill needs. */
#include "data/routes_format.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct gr_routes_writer {
    gr_out *file;
    gr_routes_info info;
    gr_routes_layout layout;
    uint8_t *record;      /* ids | gates | histogram while hashing; the hashes then replace the histogram's start */
    uint8_t *token_bytes; /* [4*(T+1)] */
    uint32_t *counts;     /* [E] */
    bool resumes;
};

static gr_err writer_make(gr_routes_writer **out, const gr_routes_info *info, const char *where) {
    gr_routes_layout layout;
    *out = NULL;
    GR_TRY(gr_routes_layout_make(&layout, info, where));
    gr_routes_writer *w = NULL;
    GR_TRY(gr_alloc((void **)&w, 1, sizeof *w, "route table writer"));
    w->info = *info;
    w->layout = layout;
    const size_t record_bytes = layout.record_bytes + layout.histogram_bytes;
    gr_err err = gr_alloc((void **)&w->record, record_bytes, 1, "route table record");
    if (!err)
        err = gr_alloc((void **)&w->token_bytes, (size_t)info->T + 1, 4, "route table tokens");
    if (!err)
        err = gr_alloc((void **)&w->counts, info->E, sizeof *w->counts, "route table histogram");
    if (err) {
        gr_routes_writer_close(w);
        return err;
    }
    *out = w;
    return GR_OK;
}

/* Looks at what is there and heads the file as unfinished, in this order. */
static gr_err begin(gr_routes_writer *w, uint64_t n_byte) {
    uint8_t ours[GR_ROUTES_HEADER], theirs[GR_ROUTES_HEADER];
    gr_routes_header_encode(&w->info, ours);
    gr_routes_header_unfinished(ours);
    GR_TRY(gr_out_pread(w->file, theirs, sizeof theirs, 0));
    gr_routes_header_unfinished(theirs); /* it may have been killed between its header and its name */
    w->resumes = n_byte <= w->layout.file_bytes && memcmp(ours, theirs, sizeof ours) == 0;
    if (!w->resumes && n_byte > 0) {
        gr_warn("%s: of another router, other tokens or another --seq-len: begun anew", gr_out_temporary(w->file));
        GR_TRY(gr_out_restart(w->file));
    }
    return gr_out_pwrite(w->file, ours, sizeof ours, 0);
}

static gr_err open_partial(gr_routes_writer *w, const char *path) {
    char *partial;
    uint64_t n_byte;
    size_t n = strlen(path) + sizeof ".partial";
    GR_TRY(gr_alloc((void **)&partial, n, 1, "name of a route table"));
    snprintf(partial, n, "%s.partial", path);
    gr_err err = gr_out_resume(&w->file, path, partial, &n_byte);
    free(partial);
    return err ? err : begin(w, n_byte);
}

gr_err gr_routes_writer_open(gr_routes_writer **out, const char *path, const gr_routes_info *info) {
    GR_TRY(writer_make(out, info, path));
    gr_err err = open_partial(*out, path);
    if (err) {
        gr_routes_writer_close(*out);
        *out = NULL;
    }
    return err;
}

bool gr_routes_writer_resumes(const gr_routes_writer *w) {
    return w->resumes;
}

gr_err gr_routes_writer_join(gr_routes_writer **out, const char *temporary, const gr_routes_info *info) {
    GR_TRY(writer_make(out, info, temporary));
    gr_err err = gr_out_join(&(*out)->file, temporary);
    if (err) {
        gr_routes_writer_close(*out);
        *out = NULL;
    }
    return err;
}

const char *gr_routes_writer_temporary(const gr_routes_writer *w) {
    return gr_out_temporary(w->file);
}

/* Rows into record's ids and gates. */
static gr_err encode_rows(gr_routes_writer *w, uint64_t window, const uint16_t *ids, const float *gates) {
    uint8_t *packed = w->record + w->layout.gates_at;
    for (size_t i = 0; i < w->layout.n_pair; i++) {
        if (w->layout.id_size == 1)
            w->record[i] = (uint8_t)ids[i];
        else
            gr_store_u16(w->record + 2 * i, ids[i]);
        uint16_t gate = gr_bf16_from_f32(gates[i]);
        if (gr_f32_from_bf16(gate) != gates[i])
            return gr_fail(GR_BUG,
                "window %" PRIu64 ", position %zu, slot %zu: expected a gate rounded to bf16, got %a", window,
                i / w->info.K, i % w->info.K, (double)gates[i]);
        gr_store_u16(packed + 2 * i, gate);
    }
    return GR_OK;
}

gr_err gr_routes_writer_window(
    gr_routes_writer *w, uint64_t window, const uint32_t *tokens, const uint16_t *ids, const float *gates) {
    GR_ASSERT(window < w->info.n_window, "window %" PRIu64 " of %" PRIu64, window, w->info.n_window);
    char where[64];
    snprintf(where, sizeof where, "route table being written: window %" PRIu64, window);
    GR_TRY(gr_routes_check_rows(&w->info, where, ids, gates, w->counts));
    GR_TRY(encode_rows(w, window, ids, gates));

    uint8_t *tail = w->record + w->layout.hashes_at;
    for (size_t e = 0; e < w->info.E; e++)
        gr_store_u32(tail + 4 * e, w->counts[e]);
    GR_TRY(gr_out_pwrite(w->file, tail, w->layout.histogram_bytes, gr_routes_histogram_at(&w->layout, window)));

    uint64_t record_hash = gr_hash64(w->record, w->layout.hashes_at + w->layout.histogram_bytes);
    gr_store_u64(tail, record_hash);
    gr_store_u64(tail + 8, gr_routes_token_hash(tokens, (size_t)w->info.T + 1, w->token_bytes));
    return gr_out_pwrite(w->file, w->record, w->layout.record_bytes, gr_routes_record_at(&w->layout, window));
}

static void decode_rows(const gr_routes_writer *w, uint16_t *ids, float *gates) {
    const uint8_t *packed = w->record + w->layout.gates_at;
    for (size_t i = 0; i < w->layout.n_pair; i++) {
        ids[i] = w->layout.id_size == 1 ? w->record[i] : gr_load_u16(w->record + 2 * i);
        gates[i] = gr_f32_from_bf16(gr_load_u16(packed + 2 * i));
    }
}

static bool histogram_equals(const uint8_t *stored, const uint32_t *counts, uint32_t E) {
    for (uint32_t e = 0; e < E; e++)
        if (gr_load_u32(stored + 4 * (size_t)e) != counts[e])
            return false;
    return true;
}

gr_err gr_routes_writer_find(
    gr_routes_writer *w, uint64_t window, const uint32_t *tokens, uint16_t *ids, float *gates, bool *found) {
    GR_ASSERT(window < w->info.n_window, "window %" PRIu64 " of %" PRIu64, window, w->info.n_window);
    uint8_t *tail = w->record + w->layout.hashes_at;
    gr_row_fault fault;
    *found = false;
    GR_TRY(gr_out_pread(w->file, w->record, w->layout.record_bytes, gr_routes_record_at(&w->layout, window)));
    uint64_t record_hash = gr_load_u64(tail), token_hash = gr_load_u64(tail + 8);
    GR_TRY(gr_out_pread(w->file, tail, w->layout.histogram_bytes, gr_routes_histogram_at(&w->layout, window)));
    if (record_hash != gr_hash64(w->record, w->layout.hashes_at + w->layout.histogram_bytes) ||
        token_hash != gr_routes_token_hash(tokens, (size_t)w->info.T + 1, w->token_bytes))
        return GR_OK;
    decode_rows(w, ids, gates);
    *found = gr_rows_check(&w->info, ids, gates, w->counts, &fault) && histogram_equals(tail, w->counts, w->info.E);
    return GR_OK;
}

gr_err gr_routes_writer_sync(gr_routes_writer *w) {
    return gr_out_sync(w->file);
}

gr_err gr_routes_writer_commit(gr_routes_writer *w) {
    const char *temporary = gr_out_temporary(w->file);
    gr_map map = {0};
    GR_TRY(gr_map_open(&map, temporary, GR_STORAGE));
    gr_err err = GR_OK;
    if (map.n != w->layout.file_bytes)
        err = gr_fail(GR_BUG, "%s: expected %zu bytes once every window is written, got %zu", temporary,
            w->layout.file_bytes, map.n);
    if (!err)
        err = gr_routes_table_hash(map.p, &w->layout, w->info.n_window, temporary, &w->info.table_hash);
    gr_map_close(&map);
    GR_TRY(err);

    uint8_t header[GR_ROUTES_HEADER];
    gr_routes_header_encode(&w->info, header);
    GR_TRY(gr_out_pwrite(w->file, header, sizeof header, 0));
    return gr_out_commit(w->file);
}

void gr_routes_writer_keep(gr_routes_writer *w) {
    gr_out_keep(w->file);
}

void gr_routes_writer_close(gr_routes_writer *w) {
    if (!w)
        return;
    gr_out_close(w->file);
    free(w->counts);
    free(w->token_bytes);
    free(w->record);
    free(w);
}
