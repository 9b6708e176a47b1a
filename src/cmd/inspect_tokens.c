/* inspect_tokens.c: reads a whole token file and measures it. */
#include "cmd/inspect.h"
#include "grouter/data.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 16, COUNTED_MAX = 1 << 24 };

/* How often each id occurs. Ids from COUNTED_MAX on are not counted: a damaged file must not take all memory. */
typedef struct unigram {
    uint64_t *count; /* [n_id] */
    size_t n_id;
    uint32_t largest;
    bool complete; /* every id was counted */
} unigram;

static gr_err unigram_grow(unigram *u, uint32_t id) {
    size_t n_id = u->n_id ? u->n_id : 512;
    while (n_id <= id)
        n_id *= 2;
    uint64_t *count = NULL;
    GR_TRY(gr_alloc((void **)&count, n_id, sizeof *count, "token counts"));
    if (u->n_id)
        memcpy(count, u->count, u->n_id * sizeof *count);
    free(u->count);
    u->count = count;
    u->n_id = n_id;
    return GR_OK;
}

static gr_err unigram_add(unigram *u, const uint32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        u->largest = ids[i] > u->largest ? ids[i] : u->largest;
        if (ids[i] >= COUNTED_MAX) {
            u->complete = false;
            continue;
        }
        if (ids[i] >= u->n_id)
            GR_TRY(unigram_grow(u, ids[i]));
        u->count[ids[i]]++;
    }
    return GR_OK;
}

static gr_err count_tokens(const gr_tokens *t, unigram *u) {
    uint32_t *ids = NULL;
    const uint64_t n_token = gr_tokens_count(t);
    GR_TRY(gr_alloc((void **)&ids, CHUNK, sizeof *ids, "tokens being counted"));
    gr_progress progress;
    gr_progress_start(&progress, "reading", "tokens", n_token);
    gr_err err = GR_OK;
    for (uint64_t first = 0; first < n_token && !err; first += CHUNK) {
        size_t n = n_token - first < CHUNK ? (size_t)(n_token - first) : CHUNK;
        err = gr_tokens_read(t, first, n, UINT32_MAX, ids);
        if (!err)
            err = unigram_add(u, ids, n);
        gr_progress_update(&progress, first + n);
    }
    if (!err)
        gr_progress_finish(&progress, n_token);
    free(ids);
    return err;
}

typedef struct unigram_figures {
    uint64_t n_distinct, n_byte;
    double nats_per_token, nats_per_byte; /* NaN where they mean nothing */
} unigram_figures;

static unigram_figures measure(const unigram *u, uint64_t n_token) {
    unigram_figures f = {.nats_per_token = NAN, .nats_per_byte = NAN};
    double nats = 0;
    for (size_t id = 0; id < u->n_id; id++) {
        if (u->count[id] == 0)
            continue;
        f.n_distinct++;
        nats -= (double)u->count[id] * log((double)u->count[id] / (double)n_token);
    }
    if (!u->complete || n_token == 0)
        return f;
    f.nats_per_token = nats / (double)n_token;
    /* Byte-level files end every document with this id and have none above it. */
    if (u->largest == GR_BYTE_EOD && n_token > u->count[GR_BYTE_EOD]) {
        f.n_byte = n_token - u->count[GR_BYTE_EOD];
        f.nats_per_byte = nats / (double)f.n_byte;
    }
    return f;
}

static void print_tokens(const gr_tokens *t, const unigram *u, bool json) {
    const uint64_t n_token = gr_tokens_count(t);
    const unigram_figures f = measure(u, n_token);
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "tokens");
    gr_report_text(&r, "file", "token file", gr_tokens_prefix(t));
    gr_report_text(&r, "format", "format", gr_tokens_format(t));
    gr_report_count(&r, "documents", "documents", gr_tokens_documents(t));
    gr_report_count(&r, "tokens", "tokens", n_token);
    gr_report_text(&r, "dtype", "dtype", gr_tokens_dtype_text(t));
    gr_report_count(&r, "largest_id", "largest id", u->largest);
    gr_report_count(&r, "distinct_ids", "distinct ids", f.n_distinct);
    gr_report_number(&r, "unigram_nats_per_token", NULL, f.nats_per_token);
    gr_report_number(&r, "unigram_nats_per_byte", NULL, f.nats_per_byte);
    if (f.n_byte)
        gr_report_count(&r, "bytes", "bytes", f.n_byte);
    if (!json && f.n_byte)
        printf("unigram entropy: %.4f nats per token, %.4f nats per byte\n", f.nats_per_token, f.nats_per_byte);
    else if (!json && u->complete)
        printf("unigram entropy: %.4f nats per token\n", f.nats_per_token);
    else if (!json)
        printf("unigram entropy: not measured, ids reach %" PRIu32 "\n", u->largest);
    gr_report_end(&r);
}

gr_err gr_inspect_tokens(const char *prefix, bool json) {
    gr_tokens *t = NULL;
    unigram u = {.complete = true};
    gr_err err = gr_tokens_open(&t, prefix);
    if (!err)
        err = count_tokens(t, &u);
    if (!err)
        print_tokens(t, &u, json);
    free(u.count);
    gr_tokens_close(t);
    return err;
}
