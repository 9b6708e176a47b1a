/* hash.c: routers that need no network: balanced hash (a fixed table from token id to experts) and random.
 *
 * Router file, little-endian: char[8] "GRROUTER" | u32 version 1 | u32 header bytes 64 | u32 method | u32 V | u32 E |
 * u32 K | f32 scale | u32 0 | u64 seed | u8[16] 0 | table u16[V][K], ids ascending | u64 XXH3-64 of everything before.
 * The router hash is XXH3-128 from `method` to the table's end: settings and tensors, never the data. */
#include "internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "GRROUTER"
#define VERSION 1u
#define HEADER_BYTES 64
#define SETTINGS_AT 16
#define VOCAB_MAX (1u << 24)

/* ---------------------------------------------------------------- making */

static gr_err check_info(const gr_router_info *i, const char *where) {
    if (i->method != GR_ROUTER_HASH && i->method != GR_ROUTER_RANDOM)
        return gr_fail(GR_DATA, "%s: expected method 0 (hash) or 1 (random), got %u", where, (unsigned)i->method);
    if (i->E < 1 || i->E > GR_EXPERTS_MAX)
        return gr_fail(GR_DATA, "%s: expected 1 to %d experts, got %" PRIu32, where, GR_EXPERTS_MAX, i->E);
    if (i->K < 1 || i->K > GR_TOPK_MAX || i->K > i->E)
        return gr_fail(GR_DATA, "%s: expected 1 to min(%d, E = %" PRIu32 ") experts per token, got %" PRIu32, where,
            GR_TOPK_MAX, i->E, i->K);
    if (!(i->scale >= GR_SCALE_MIN && i->scale <= GR_SCALE_MAX))
        return gr_fail(GR_DATA, "%s: expected a scale from %g to %g, got %.9g", where, (double)GR_SCALE_MIN,
            (double)GR_SCALE_MAX, (double)i->scale);
    bool hash = i->method == GR_ROUTER_HASH;
    if (hash ? i->V < 1 || i->V > VOCAB_MAX : i->V != 0)
        return gr_fail(GR_DATA, "%s: expected a vocabulary of %s for method %s, got %" PRIu32, where,
            hash ? "1 to 2^24" : "0", hash ? "hash" : "random", i->V);
    if (hash && i->seed != 0)
        return gr_fail(GR_DATA, "%s: expected seed 0 for method hash, got %" PRIu64, where, i->seed);
    return GR_OK;
}

/* A router with its table allocated and not yet filled. info.hash is ignored. */
static gr_err router_make(gr_router **out, const gr_router_info *info, const char *where) {
    *out = NULL;
    GR_TRY(check_info(info, where));
    gr_router *r = NULL;
    GR_TRY(gr_alloc((void **)&r, 1, sizeof *r, "router"));
    r->info = *info;
    /* bf16 is within 2^-9 of scale/K, so K equal gates are within scale/512 of scale. */
    r->gate = gr_f32_from_bf16(gr_bf16_from_f32(info->scale / (float)info->K));
    r->stream = gr_stream_id("random router");
    if (info->method == GR_ROUTER_HASH) {
        gr_err err = gr_alloc((void **)&r->table, (size_t)info->V * info->K, sizeof *r->table, "hash router table");
        if (err) {
            gr_router_close(r);
            return err;
        }
    }
    *out = r;
    return GR_OK;
}

/* ---------------------------------------------------------------- bytes: file and hash */

static size_t file_bytes(const gr_router_info *i) {
    return HEADER_BYTES + 2 * (size_t)i->V * i->K + 8; /* V <= 2^24, K <= 64: fits */
}

/* The whole file; the caller frees *bytes. */
static gr_err encode(const gr_router *r, uint8_t **bytes) {
    const gr_router_info *i = &r->info;
    const size_t n = file_bytes(i), n_id = (size_t)i->V * i->K;
    GR_TRY(gr_alloc((void **)bytes, n, 1, "router file"));
    uint8_t *p = *bytes;
    uint32_t scale_bits;
    memcpy(&scale_bits, &i->scale, sizeof scale_bits);
    memcpy(p, MAGIC, 8);
    gr_store_u32(p + 8, VERSION);
    gr_store_u32(p + 12, HEADER_BYTES);
    gr_store_u32(p + SETTINGS_AT, (uint32_t)i->method);
    gr_store_u32(p + 20, i->V);
    gr_store_u32(p + 24, i->E);
    gr_store_u32(p + 28, i->K);
    gr_store_u32(p + 32, scale_bits);
    gr_store_u64(p + 40, i->seed);
    for (size_t k = 0; k < n_id; k++)
        gr_store_u16(p + HEADER_BYTES + 2 * k, r->table[k]);
    gr_store_u64(p + n - 8, gr_hash64(p, n - 8));
    return GR_OK;
}

/* Names the finished router by the bytes its file has. */
static gr_err set_hash(gr_router *r) {
    uint8_t *bytes = NULL;
    gr_hasher *hasher = NULL;
    gr_err err = encode(r, &bytes);
    if (!err)
        err = gr_hasher_open(&hasher);
    if (!err) {
        gr_hasher_add(hasher, bytes + SETTINGS_AT, file_bytes(&r->info) - SETTINGS_AT - 8);
        r->info.hash = gr_hasher_128(hasher);
    }
    gr_hasher_close(hasher);
    free(bytes);
    return err;
}

gr_err gr_router_save(const gr_router *r, const char *path) {
    uint8_t *bytes = NULL;
    gr_out *out = NULL;
    gr_err err = encode(r, &bytes);
    if (!err)
        err = gr_out_open(&out, path);
    if (!err)
        err = gr_out_write(out, bytes, file_bytes(&r->info));
    if (!err)
        err = gr_out_commit(out);
    gr_out_close(out);
    free(bytes);
    return err;
}

/* Magic, version, length and checksum: what must hold before any field means anything. */
static gr_err check_frame(gr_map map, const char *path) {
    if (map.n < HEADER_BYTES + 8 || memcmp(map.p, MAGIC, 8) != 0)
        return gr_fail(GR_DATA,
            "%s: expected a router file (\"%s\" at byte 0, %d bytes or more), got %zu bytes of another kind; make one "
            "with 'grouter-train route --method'",
            path, MAGIC, HEADER_BYTES + 8, map.n);
    uint32_t version = gr_load_u32(map.p + 8), header_bytes = gr_load_u32(map.p + 12);
    if (version != VERSION || header_bytes != HEADER_BYTES)
        return gr_fail(GR_DATA,
            "%s: expected router version %u with %d header bytes (bytes 8..15), got version %" PRIu32 " with %" PRIu32
            "; make it again",
            path, VERSION, HEADER_BYTES, version, header_bytes);
    uint64_t found = gr_hash64(map.p, map.n - 8), stored = gr_load_u64(map.p + map.n - 8);
    if (found != stored)
        return gr_fail(GR_DATA,
            "%s: expected checksum %016" PRIx64 " (its last 8 bytes), got %016" PRIx64 "; the file is damaged or cut",
            path, stored, found);
    return GR_OK;
}

static gr_err decode_info(gr_router_info *info, gr_map map, const char *path) {
    gr_span s = {map.p + SETTINGS_AT, HEADER_BYTES - SETTINGS_AT};
    uint32_t method, reserved;
    uint64_t tail[2];
    bool enough = gr_take_u32(&s, &method) && gr_take_u32(&s, &info->V) && gr_take_u32(&s, &info->E) &&
                  gr_take_u32(&s, &info->K) && gr_take_f32(&s, &info->scale) && gr_take_u32(&s, &reserved) &&
                  gr_take_u64(&s, &info->seed) && gr_take_u64(&s, &tail[0]) && gr_take_u64(&s, &tail[1]);
    GR_ASSERT(enough, "header of %d bytes", HEADER_BYTES);
    if (reserved || tail[0] || tail[1])
        return gr_fail(GR_DATA, "%s: expected 0 at the reserved bytes 36..39 and 48..63, got something else", path);
    if (method > GR_ROUTER_RANDOM)
        return gr_fail(GR_DATA, "%s: expected method 0 or 1 at byte 16, got %" PRIu32, path, method);
    info->method = (gr_router_method)method;
    GR_TRY(check_info(info, path));
    if (map.n != file_bytes(info))
        return gr_fail(GR_DATA, "%s: expected %zu bytes (V = %" PRIu32 ", K = %" PRIu32 "), got %zu", path,
            file_bytes(info), info->V, info->K, map.n);
    return GR_OK;
}

static gr_err decode_table(gr_router *r, gr_map map, const char *path) {
    const uint32_t K = r->info.K;
    for (size_t k = 0; k < (size_t)r->info.V * K; k++) {
        const size_t at = HEADER_BYTES + 2 * k;
        r->table[k] = gr_load_u16(map.p + at);
        bool ascends = k % K == 0 || r->table[k] > r->table[k - 1];
        if (r->table[k] >= r->info.E || !ascends)
            return gr_fail(GR_DATA,
                "%s: token id %zu: expected ascending expert ids below %" PRIu32 ", got %u at byte %zu", path, k / K,
                r->info.E, (unsigned)r->table[k], at);
    }
    return GR_OK;
}

gr_err gr_router_open_table(gr_router **out, gr_map map, const char *path) {
    gr_router_info info = {0};
    GR_TRY(check_frame(map, path));
    GR_TRY(decode_info(&info, map, path));
    GR_TRY(router_make(out, &info, path));
    GR_TRY(decode_table(*out, map, path));
    return set_hash(*out);
}

/* ---------------------------------------------------------------- fitting the balanced hash */

typedef struct ranked_id {
    uint64_t frequency;
    uint32_t id;
} ranked_id;

static int by_frequency(const void *a, const void *b) {
    const ranked_id *x = a, *y = b;
    if (x->frequency != y->frequency)
        return x->frequency > y->frequency ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Binary heap of experts, the lightest (ties to the lower id) on top. */
typedef struct bucket {
    uint64_t load;
    uint16_t expert;
} bucket;

static bool lighter(bucket a, bucket b) {
    return a.load != b.load ? a.load < b.load : a.expert < b.expert;
}

static bucket heap_pop(bucket *heap, size_t *n) {
    const bucket top = heap[0], moved = heap[--*n];
    size_t hole = 0;
    for (size_t child = 1; child < *n; child = 2 * hole + 1) {
        if (child + 1 < *n && lighter(heap[child + 1], heap[child]))
            child++;
        if (!lighter(heap[child], moved))
            break;
        heap[hole] = heap[child];
        hole = child;
    }
    heap[hole] = moved;
    return top;
}

static void heap_push(bucket *heap, size_t *n, bucket added) {
    size_t hole = (*n)++;
    while (hole > 0 && lighter(added, heap[(hole - 1) / 2])) {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = added;
}

/* Inserts into row[n], which ascends. */
static void insert_ascending(uint16_t *row, size_t n, uint16_t id) {
    size_t at = n;
    for (; at > 0 && row[at - 1] > id; at--)
        row[at] = row[at - 1];
    row[at] = id;
}

static void assign(const ranked_id *ranked, uint32_t V, uint32_t E, uint32_t K, uint16_t *table) {
    bucket heap[GR_EXPERTS_MAX], taken[GR_TOPK_MAX];
    size_t n = 0;
    for (uint32_t e = 0; e < E; e++)
        heap_push(heap, &n, (bucket){.load = 0, .expert = (uint16_t)e});
    for (uint32_t i = 0; i < V; i++) {
        uint16_t *row = table + (size_t)ranked[i].id * K;
        for (uint32_t k = 0; k < K; k++) {
            taken[k] = heap_pop(heap, &n);
            insert_ascending(row, k, taken[k].expert);
        }
        for (uint32_t k = 0; k < K; k++) {
            taken[k].load += ranked[i].frequency;
            heap_push(heap, &n, taken[k]);
        }
    }
}

gr_err gr_router_fit_hash(gr_router **out, const uint64_t *frequency, uint32_t V, uint32_t E, uint32_t K, float scale) {
    const gr_router_info info = {.method = GR_ROUTER_HASH, .V = V, .E = E, .K = K, .scale = scale};
    GR_TRY(router_make(out, &info, "hash router"));
    ranked_id *ranked = NULL;
    uint64_t total = 0;
    gr_err err = gr_alloc((void **)&ranked, V, sizeof *ranked, "token frequencies");
    for (uint32_t id = 0; id < V && !err; id++) {
        ranked[id] = (ranked_id){.frequency = frequency[id] ? frequency[id] : 1, .id = id};
        if (__builtin_add_overflow(total, ranked[id].frequency, &total)) /* bounds every expert's load too */
            err = gr_fail(GR_DATA, "hash router: expected token frequencies that sum below 2^64, got more");
    }
    if (!err) {
        qsort(ranked, V, sizeof *ranked, by_frequency);
        assign(ranked, V, E, K, (*out)->table);
        err = set_hash(*out);
    }
    free(ranked);
    if (err) {
        gr_router_close(*out);
        *out = NULL;
    }
    return err;
}

gr_err gr_router_make_random(gr_router **out, uint64_t seed, uint32_t E, uint32_t K, float scale) {
    const gr_router_info info = {.method = GR_ROUTER_RANDOM, .E = E, .K = K, .scale = scale, .seed = seed};
    GR_TRY(router_make(out, &info, "random router"));
    gr_err err = set_hash(*out);
    if (err) {
        gr_router_close(*out);
        *out = NULL;
    }
    return err;
}

/* ---------------------------------------------------------------- routing */

static bool contains(const uint16_t *row, size_t n, uint32_t id) {
    for (size_t k = 0; k < n; k++)
        if (row[k] == id)
            return true;
    return false;
}

/* K distinct experts, every K-subset equally likely (Floyd's sampling), ascending. */
static void draw(const gr_router *r, uint64_t position, uint16_t *row) {
    const uint32_t E = r->info.E, K = r->info.K;
    for (uint32_t k = 0; k < K; k++) {
        uint32_t last = E - K + k;
        uint32_t id = gr_random_below(r->info.seed, r->stream, position * GR_TOPK_MAX + k, last + 1);
        insert_ascending(row, k, (uint16_t)(contains(row, k, id) ? last : id));
    }
}

gr_err gr_router_route_table(
    const gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates) {
    const uint32_t K = r->info.K;
    for (uint32_t t = 0; t < T; t++) {
        const uint64_t position = window * T + t;
        uint16_t *row = ids + (size_t)t * K;
        if (r->info.method == GR_ROUTER_RANDOM) {
            draw(r, position, row);
        } else if (tokens[t] < r->info.V) {
            memcpy(row, r->table + (size_t)tokens[t] * K, K * sizeof *row);
        } else {
            return gr_fail(GR_DATA,
                "token %" PRIu64 ": expected an id below the router's vocabulary of %" PRIu32 ", got %" PRIu32,
                position, r->info.V, tokens[t]);
        }
    }
    for (size_t pair = 0; pair < (size_t)T * K; pair++)
        gates[pair] = r->gate;
    return GR_OK;
}
