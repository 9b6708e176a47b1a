/* placement.c: the type, its names and the writing of its file; placement_read.c reads it. */
#include "placement_format.h"

#include "grouter/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 14 };

/* ---------------------------------------------------------------- names and the type */

static const char *const method_names[GR_N_PLACE_METHOD] = {"balanced", "paper"};
static const char *const grain_names[GR_N_PLACE_GRAIN] = {"rank", "node"};

const char *gr_place_method_name(gr_place_method m) {
    return method_names[m];
}

const char *gr_place_grain_name(gr_place_grain g) {
    return grain_names[g];
}

void gr_placement_close(gr_placement *p) {
    for (int i = 0; p->table && i < p->n_table; i++) {
        free(p->table[i].path);
        free(p->table[i].rank);
        gr_touch_close(&p->table[i].touch);
    }
    free(p->table);
    free(p->together);
    free(p->rank_load);
    free(p->expert_at);
    *p = (gr_placement){0};
}

bool gr_is_placement(const char *path) {
    gr_map map = {0};
    if (gr_map_open(&map, path, GR_DATA))
        return false;
    bool is = map.n >= 8 && memcmp(map.p, GR_PLACEMENT_MAGIC, 8) == 0;
    gr_map_close(&map);
    return is;
}

uint64_t gr_placement_hash(const gr_placement *p) {
    uint8_t bytes[8 + 2 * GR_EXPERTS_MAX];
    gr_store_u32(bytes, p->R);
    gr_store_u32(bytes + 4, p->E);
    for (uint32_t i = 0; i < p->E; i++)
        gr_store_u16(bytes + 8 + 2 * (size_t)i, p->expert_at[i]);
    return gr_hash64(bytes, 8 + 2 * (size_t)p->E);
}

const gr_placed_table *gr_placement_find(const gr_placement *p, uint64_t table_hash) {
    for (int i = 0; i < p->n_table; i++)
        if (p->table[i].table_hash == table_hash)
            return &p->table[i];
    return NULL;
}

/* ---------------------------------------------------------------- the JSON part */

static void print_experts(const gr_placement *p, FILE *f) {
    const uint32_t E_local = p->E / p->R;
    fprintf(f, "  \"experts_by_rank\": [");
    for (uint32_t r = 0; r < p->R; r++) {
        fprintf(f, "%s\n    [", r ? "," : "");
        for (uint32_t i = 0; i < E_local; i++)
            fprintf(f, "%s%u", i ? ", " : "", (unsigned)p->expert_at[(size_t)r * E_local + i]);
        fprintf(f, "]");
    }
    fprintf(f, "\n  ],\n  \"rank_load\": [");
    for (uint32_t r = 0; r < p->R; r++)
        fprintf(f, "%s%.17g", r ? ", " : "", p->rank_load[r]);
    fprintf(f, "],\n");
}

static void print_scores(const gr_placement *p, FILE *f) {
    fprintf(f, "  \"scores\": [");
    for (int i = 0; i < p->n_score; i++) {
        const gr_place_score *s = &p->score[i];
        fprintf(f,
            "%s\n    {\"name\": \"%s\", \"rows\": %.17g, \"pairs\": %.17g, \"node_rows\": %.17g, \"load\": %.17g, "
            "\"windows\": %.17g}",
            i ? "," : "", s->name, s->rows, s->pairs, s->node_rows, s->load, s->windows);
    }
    fprintf(f, "\n  ],\n");
}

/* A path may be any bytes, JSON is UTF-8: what is none becomes '?'. */
static void print_path(const char *path, FILE *f) {
    size_t left = strlen(path);
    while (left) {
        const size_t n = gr_utf8_length((const uint8_t *)path, left), used = n ? n : 1;
        char character[5] = "?", escaped[31];
        if (n)
            memcpy(character, path, n);
        character[used] = '\0';
        fputs(gr_json_escape(character, escaped), f);
        path += used;
        left -= used;
    }
}

static void print_tables(const gr_placement *p, FILE *f) {
    fprintf(f, "  \"tables\": [");
    for (int i = 0; i < p->n_table; i++) {
        const gr_placed_table *t = &p->table[i];
        fprintf(f, "%s\n    {\"path\": \"", i ? "," : "");
        print_path(t->path, f);
        fprintf(f, "\", \"hash\": \"%016" PRIx64 "\", \"windows\": %" PRIu64 "}", t->table_hash, t->n_window);
    }
    fprintf(f, "\n  ]\n}\n");
}

static void print_json(const gr_placement *p, FILE *f) {
    char router[33];
    fprintf(f,
        "{\n  \"format\": \"" GR_PLACEMENT_FORMAT "\",\n  \"version\": %u,\n  \"nodes\": %" PRIu32
        ",\n  \"ranks_per_node\": %" PRIu32 ",\n",
        GR_PLACEMENT_VERSION, p->n_node, p->node_ranks);
    fprintf(f,
        "  \"experts\": %" PRIu32 ",\n  \"experts_per_token\": %" PRIu32 ",\n  \"tokens_per_window\": %" PRIu32
        ",\n  \"router\": \"%s\",\n",
        p->E, p->K, p->T, gr_hash128_text(p->router, router));
    fprintf(f, "  \"method\": \"%s\",\n  \"granularity\": \"%s\",\n  \"seed\": %" PRIu64 ",\n", method_names[p->method],
        grain_names[p->grain], p->seed);
    fprintf(f, "  \"sampled_tokens\": %" PRIu64 ",\n  \"load_max\": %.17g,\n  \"load_bound\": %.17g,\n", p->n_sampled,
        p->load_max, p->load_bound);
    print_experts(p, f);
    print_scores(p, f);
    print_tables(p, f);
}

/* *text is filled up with spaces to a multiple of 8; the caller frees it. */
static gr_err make_json(const gr_placement *p, const char *path, char **text, size_t *n) {
    *text = NULL;
    FILE *f = open_memstream(text, n);
    bool ok = f != NULL;
    if (f) {
        print_json(p, f);
        ok = fflush(f) == 0;
        for (size_t rest = *n % 8; ok && rest && rest < 8; rest++)
            fputc(' ', f);
        ok = !ferror(f) && ok;
        ok = fclose(f) == 0 && ok;
    }
    if (!ok)
        return gr_fail(GR_RESOURCE, "%s: no memory for the placement's description", path);
    if (*n > GR_PLACEMENT_JSON_MAX)
        return gr_fail(GR_DATA, "%s: expected a description of at most %d bytes, got %zu; place fewer tables at once",
            path, GR_PLACEMENT_JSON_MAX, *n);
    return GR_OK;
}

/* ---------------------------------------------------------------- the file */

typedef struct sink {
    gr_out *out;
    gr_hasher *hasher;
    size_t n;
    uint8_t bytes[BLOCK];
} sink;

static gr_err flush(sink *s) {
    const size_t n = s->n;
    s->n = 0;
    gr_hasher_add(s->hasher, s->bytes, n);
    return gr_out_write(s->out, s->bytes, n);
}

/* Room for n bytes, at most 8, at the end of the block. */
static gr_err take(sink *s, size_t n, uint8_t **p) {
    if (s->n + n > BLOCK)
        GR_TRY(flush(s));
    *p = s->bytes + s->n;
    s->n += n;
    return GR_OK;
}

static gr_err put_text(sink *s, const char *text, size_t n) {
    uint8_t *p;
    for (size_t i = 0; i < n; i++) {
        GR_TRY(take(s, 1, &p));
        *p = (uint8_t)text[i];
    }
    return GR_OK;
}

static gr_err put_u32(sink *s, const uint32_t *v, size_t n) {
    uint8_t *p;
    for (size_t i = 0; i < n; i++) {
        GR_TRY(take(s, 4, &p));
        gr_store_u32(p, v[i]);
    }
    return GR_OK;
}

/* Filled up to a multiple of 4 bytes. */
static gr_err put_u16(sink *s, const uint16_t *v, size_t n) {
    uint8_t *p;
    for (size_t i = 0; i < n + n % 2; i++) {
        GR_TRY(take(s, 2, &p));
        gr_store_u16(p, i < n ? v[i] : 0);
    }
    return GR_OK;
}

static gr_err write_parts(const gr_placement *p, sink *s, const char *json, size_t n_json) {
    const uint32_t head[2] = {GR_PLACEMENT_VERSION, (uint32_t)n_json};
    GR_TRY(put_text(s, GR_PLACEMENT_MAGIC, 8)); /* with its NUL */
    GR_TRY(put_u32(s, head, 2));
    GR_TRY(put_text(s, json, n_json));
    GR_TRY(put_u32(s, p->together, (size_t)p->E * p->E));
    for (int i = 0; i < p->n_table; i++) {
        const gr_placed_table *t = &p->table[i];
        GR_TRY(put_u16(s, t->rank, t->n_window));
        GR_TRY(put_u32(s, t->touch.count, (size_t)t->n_window * p->R));
    }
    GR_TRY(flush(s));
    uint8_t hash[8];
    gr_store_u64(hash, gr_hasher_64(s->hasher));
    return gr_out_write(s->out, hash, sizeof hash);
}

gr_err gr_placement_write(const gr_placement *p, const char *path) {
    char *json = NULL;
    size_t n_json = 0;
    sink *s = NULL;
    gr_err e = make_json(p, path, &json, &n_json);
    if (!e)
        e = gr_alloc((void **)&s, 1, sizeof *s, "placement file");
    if (!e)
        e = gr_hasher_open(&s->hasher);
    if (!e)
        e = gr_out_open(&s->out, path);
    if (!e)
        e = write_parts(p, s, json, n_json);
    if (!e)
        e = gr_out_commit(s->out);
    if (s) {
        gr_out_close(s->out);
        gr_hasher_close(s->hasher);
    }
    free(s);
    free(json);
    return e;
}
