/* placement_read.c: reads a placement. The checksum is looked at first, then every field against its range; sizes are
 * computed from checked fields with checked arithmetic and must give the file's size to the byte. */
#include "placement_format.h"

#include "grouter/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 4 };

typedef struct reader {
    const char *path;
    const gr_json_node *root;
    gr_span rest; /* bytes behind the JSON that are not read yet, without the checksum */
} reader;

/* ---------------------------------------------------------------- single values of the JSON */

static gr_err refuse(const reader *r, const gr_json_node *node, const char *key, const char *expected) {
    char found[GR_JSON_FOUND_MAX];
    return gr_fail(GR_DATA,
        "%s: \"%s\" (line %d of its text): expected %s, got %s; make it again with 'grouter-train "
        "place'",
        r->path, key, node->line, expected, gr_json_found(node, found));
}

static gr_err take(const reader *r, const gr_json_node *object, const char *key, const gr_json_node **node) {
    *node = gr_json_get(object, key);
    if (*node)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: line %d of its text: expected a member \"%s\", got none; make it again with 'grouter-train place'",
        r->path, object->line, key);
}

/* Decimal digits that fit u64: JSON's own integers end at INT64_MAX here. */
static bool parse_u64(const gr_json_node *node, uint64_t *out) {
    if (node->kind != GR_JSON_NUMBER)
        return false;
    uint64_t value = 0;
    for (const char *c = node->number; *c; c++)
        if (*c < '0' || *c > '9' || __builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*c - '0'), &value))
            return false;
    *out = value;
    return true;
}

static gr_err take_u64(
    const reader *r, const gr_json_node *object, const char *key, uint64_t low, uint64_t high, uint64_t *out) {
    const gr_json_node *node;
    char expected[80];
    GR_TRY(take(r, object, key, &node));
    if (parse_u64(node, out) && *out >= low && *out <= high)
        return GR_OK;
    snprintf(expected, sizeof expected, "a whole number from %" PRIu64 " to %" PRIu64, low, high);
    return refuse(r, node, key, expected);
}

static gr_err take_u32(const reader *r, const char *key, uint32_t low, uint32_t high, uint32_t *out) {
    uint64_t value;
    GR_TRY(take_u64(r, r->root, key, low, high, &value));
    *out = (uint32_t)value;
    return GR_OK;
}

/* A figure: finite and not negative. */
static gr_err take_figure(const reader *r, const gr_json_node *object, const char *key, double *out) {
    const gr_json_node *node;
    GR_TRY(take(r, object, key, &node));
    if (gr_json_f64(node, out) && *out >= 0)
        return GR_OK;
    return refuse(r, node, key, "a finite number of 0 or more");
}

static gr_err take_list(const reader *r, const gr_json_node *object, const char *key, uint64_t low, uint64_t high,
    const gr_json_node **out) {
    char expected[80];
    GR_TRY(take(r, object, key, out));
    if ((*out)->kind == GR_JSON_ARRAY && (uint64_t)(*out)->n_child >= low && (uint64_t)(*out)->n_child <= high)
        return GR_OK;
    snprintf(expected, sizeof expected, "an array of %" PRIu64 " to %" PRIu64, low, high);
    return refuse(r, *out, key, expected);
}

/* n_word times 16 lower-case hexadecimal digits. */
static gr_err take_hex(const reader *r, const gr_json_node *object, const char *key, size_t n_word, uint64_t *word) {
    const gr_json_node *node;
    GR_TRY(take(r, object, key, &node));
    const char *text = node->kind == GR_JSON_STRING ? node->string : "";
    bool ok = strlen(text) == 16 * n_word;
    memset(word, 0, n_word * sizeof *word);
    for (size_t i = 0; ok && i < 16 * n_word; i++) {
        ok = gr_hex_value(text[i]) >= 0;
        word[i / 16] = word[i / 16] << 4 | (uint64_t)(ok ? gr_hex_value(text[i]) : 0);
    }
    return ok ? GR_OK : refuse(r, node, key, n_word == 1 ? "16 hexadecimal digits" : "32 hexadecimal digits");
}

/* The index of one of n names. */
static gr_err take_name(const reader *r, const char *key, const char *(*name_of)(int), int n, int *out) {
    const gr_json_node *node;
    char expected[80] = "";
    GR_TRY(take(r, r->root, key, &node));
    for (*out = 0; *out < n; ++*out)
        if (node->kind == GR_JSON_STRING && strcmp(node->string, name_of(*out)) == 0)
            return GR_OK;
    snprintf(expected, sizeof expected, "\"%s\" or \"%s\"", name_of(0), name_of(1));
    return refuse(r, node, key, expected);
}

static const char *method_name(int i) {
    return gr_place_method_name((gr_place_method)i);
}

static const char *grain_name(int i) {
    return gr_place_grain_name((gr_place_grain)i);
}

/* ---------------------------------------------------------------- parts of the JSON */

/* Format and version first: without them no other field means anything. */
static gr_err read_shape(const reader *r, gr_placement *p) {
    const gr_json_node *node;
    uint32_t version;
    uint64_t hash[2];
    int method, grain;
    if (r->root->kind != GR_JSON_OBJECT)
        return refuse(r, r->root, "format", "an object");
    GR_TRY(take(r, r->root, "format", &node));
    if (node->kind != GR_JSON_STRING || strcmp(node->string, GR_PLACEMENT_FORMAT) != 0)
        return refuse(r, node, "format", "\"" GR_PLACEMENT_FORMAT "\"");
    GR_TRY(take_u32(r, "version", GR_PLACEMENT_VERSION, GR_PLACEMENT_VERSION, &version));
    GR_TRY(take_u32(r, "nodes", 1, GR_PLACEMENT_RANKS_MAX, &p->n_node));
    GR_TRY(take_u32(r, "ranks_per_node", 1, GR_PLACEMENT_RANKS_MAX / p->n_node, &p->node_ranks));
    p->R = p->n_node * p->node_ranks;
    GR_TRY(take_u32(r, "experts", 1, GR_EXPERTS_MAX, &p->E));
    GR_TRY(take_u32(r, "experts_per_token", 1, p->E < GR_TOPK_MAX ? p->E : GR_TOPK_MAX, &p->K));
    GR_TRY(take_u32(r, "tokens_per_window", 1, UINT32_MAX, &p->T));
    if (p->E % p->R != 0)
        return refuse(r, gr_json_get(r->root, "experts"), "experts", "a multiple of the ranks of all nodes");
    GR_TRY(take_hex(r, r->root, "router", 2, hash));
    p->router = (gr_hash128){.hi = hash[0], .lo = hash[1]};
    GR_TRY(take_name(r, "method", method_name, GR_N_PLACE_METHOD, &method));
    GR_TRY(take_name(r, "granularity", grain_name, GR_N_PLACE_GRAIN, &grain));
    p->method = (gr_place_method)method;
    p->grain = (gr_place_grain)grain;
    GR_TRY(take_u64(r, r->root, "seed", 0, UINT64_MAX, &p->seed));
    GR_TRY(take_u64(r, r->root, "sampled_tokens", 0, UINT32_MAX, &p->n_sampled));
    GR_TRY(take_figure(r, r->root, "load_max", &p->load_max));
    return take_figure(r, r->root, "load_bound", &p->load_bound);
}

static gr_err read_rank_experts(const reader *r, const gr_json_node *list, gr_placement *p, uint32_t rank, bool *seen) {
    const uint32_t E_local = p->E / p->R;
    if (list->kind != GR_JSON_ARRAY || (uint32_t)list->n_child != E_local)
        return refuse(r, list, "experts_by_rank", "an array of the experts of each rank, equally many");
    uint32_t i = rank * E_local;
    int64_t before = -1;
    for (const gr_json_node *c = list->child; c; c = c->next, i++) {
        uint64_t id;
        if (!parse_u64(c, &id) || id >= p->E || (int64_t)id <= before || seen[id])
            return refuse(r, c, "experts_by_rank", "every expert once, ascending within a rank");
        seen[id] = true;
        before = (int64_t)id;
        p->expert_at[i] = (uint16_t)id;
    }
    return GR_OK;
}

static gr_err read_experts(const reader *r, gr_placement *p) {
    bool seen[GR_EXPERTS_MAX] = {false};
    const gr_json_node *list, *load;
    GR_TRY(take_list(r, r->root, "experts_by_rank", p->R, p->R, &list));
    GR_TRY(take_list(r, r->root, "rank_load", p->R, p->R, &load));
    GR_TRY(gr_alloc((void **)&p->expert_at, p->E, sizeof *p->expert_at, "placement"));
    GR_TRY(gr_alloc((void **)&p->rank_load, p->R, sizeof *p->rank_load, "placement"));
    uint32_t rank = 0;
    for (const gr_json_node *c = list->child; c; c = c->next)
        GR_TRY(read_rank_experts(r, c, p, rank++, seen));
    rank = 0;
    for (const gr_json_node *c = load->child; c; c = c->next)
        if (!gr_json_f64(c, &p->rank_load[rank++]) || p->rank_load[rank - 1] < 0)
            return refuse(r, c, "rank_load", "finite numbers of 0 or more");
    return GR_OK;
}

static gr_err read_score(const reader *r, const gr_json_node *object, gr_place_score *s) {
    const gr_json_node *name;
    GR_TRY(take(r, object, "name", &name));
    const size_t n = name->kind == GR_JSON_STRING ? strlen(name->string) : 0;
    bool ok = n >= 1 && n < sizeof s->name;
    for (size_t i = 0; ok && i < n; i++)
        ok = strchr("abcdefghijklmnopqrstuvwxyz, -", name->string[i]) != NULL;
    if (!ok)
        return refuse(r, name, "name", "1 to 31 lower-case letters, commas, spaces and hyphens");
    memcpy(s->name, name->string, n + 1);
    GR_TRY(take_figure(r, object, "rows", &s->rows));
    GR_TRY(take_figure(r, object, "pairs", &s->pairs));
    GR_TRY(take_figure(r, object, "node_rows", &s->node_rows));
    GR_TRY(take_figure(r, object, "load", &s->load));
    return take_figure(r, object, "windows", &s->windows);
}

static gr_err read_scores(const reader *r, gr_placement *p) {
    const gr_json_node *list;
    GR_TRY(take_list(r, r->root, "scores", 1, GR_PLACE_SCORES_MAX, &list));
    for (const gr_json_node *c = list->child; c; c = c->next)
        GR_TRY(read_score(r, c, &p->score[p->n_score++]));
    return GR_OK;
}

/* ---------------------------------------------------------------- what is behind the JSON */

/* The next `count` numbers of `width` bytes, filled up to a multiple of 4. */
static gr_err take_numbers(reader *r, const char *what, size_t count, size_t width, const uint8_t **bytes) {
    size_t n;
    if (gr_mul_size(count, width, &n) && gr_add_size(n, (4 - n % 4) % 4, &n) && gr_take_bytes(&r->rest, n, bytes))
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: %s: expected %zu numbers of %zu bytes, got %zu bytes up to the checksum; the file is "
        "cut short or lies",
        r->path, what, count, width, r->rest.n);
}

static gr_err read_together(reader *r, gr_placement *p) {
    const size_t n = (size_t)p->E * p->E;
    const uint8_t *bytes;
    GR_TRY(take_numbers(r, "experts chosen together", n, 4, &bytes));
    GR_TRY(gr_alloc((void **)&p->together, n, sizeof *p->together, "placement"));
    for (size_t i = 0; i < n; i++)
        p->together[i] = gr_load_u32(bytes + 4 * i);
    for (uint32_t a = 0; a < p->E; a++)
        for (uint32_t b = 0; b < p->E; b++) {
            const uint32_t v = p->together[(size_t)a * p->E + b];
            if (v > p->n_sampled || v != p->together[(size_t)b * p->E + a])
                return gr_fail(GR_DATA,
                    "%s: experts %" PRIu32 " and %" PRIu32 " together: expected one count either way, at most the "
                    "%" PRIu64 " sampled tokens, got %" PRIu32 "; make it again with 'grouter-train place'",
                    r->path, a, b, p->n_sampled, v);
        }
    return GR_OK;
}

static gr_err read_ranks(reader *r, const gr_placement *p, gr_placed_table *t, int table) {
    const uint8_t *bytes;
    GR_TRY(take_numbers(r, "ranks of windows", t->n_window, 2, &bytes));
    GR_TRY(gr_alloc((void **)&t->rank, t->n_window, sizeof *t->rank, "ranks of windows"));
    for (uint64_t w = 0; w < t->n_window; w++) {
        t->rank[w] = gr_load_u16(bytes + 2 * w);
        if (t->rank[w] >= p->R)
            return gr_fail(GR_DATA,
                "%s: table %d, window %" PRIu64 ": expected a rank below %" PRIu32 ", got %u; make it again with "
                "'grouter-train place'",
                r->path, table, w, p->R, (unsigned)t->rank[w]);
    }
    return GR_OK;
}

static gr_err read_touch(reader *r, const gr_placement *p, gr_placed_table *t, int table) {
    const uint8_t *bytes;
    size_t n;
    if (!gr_mul_size(t->n_window, p->R, &n))
        n = SIZE_MAX; /* refused next: no file has as many */
    GR_TRY(take_numbers(r, "touch counts", n, 4, &bytes));
    GR_TRY(gr_alloc((void **)&t->touch.count, n, sizeof *t->touch.count, "touch counts"));
    t->touch.n_rank = p->R;
    t->touch.n_window = t->n_window;
    for (size_t i = 0; i < n; i++) {
        t->touch.count[i] = gr_load_u32(bytes + 4 * i);
        if (t->touch.count[i] > p->T)
            return gr_fail(GR_DATA,
                "%s: table %d, window %zu: expected at most the window's %" PRIu32 " tokens on a rank, got %" PRIu32
                "; make it again with 'grouter-train place'",
                r->path, table, i / p->R, p->T, t->touch.count[i]);
    }
    return GR_OK;
}

static gr_err read_table(reader *r, const gr_json_node *object, gr_placement *p, int table) {
    gr_placed_table *t = &p->table[table];
    const gr_json_node *path;
    GR_TRY(take(r, object, "path", &path));
    if (path->kind != GR_JSON_STRING)
        return refuse(r, path, "path", "a text");
    GR_TRY(take_hex(r, object, "hash", 1, &t->table_hash));
    GR_TRY(take_u64(r, object, "windows", 1, UINT64_MAX, &t->n_window));
    for (int i = 0; i < table; i++)
        if (p->table[i].table_hash == t->table_hash)
            return refuse(r, gr_json_get(object, "hash"), "hash", "each table once");
    const size_t n = strlen(path->string) + 1;
    GR_TRY(gr_alloc((void **)&t->path, n, 1, "path of a table"));
    memcpy(t->path, path->string, n);
    GR_TRY(read_ranks(r, p, t, table));
    return read_touch(r, p, t, table);
}

static gr_err read_tables(reader *r, gr_placement *p) {
    const gr_json_node *list;
    GR_TRY(take_list(r, r->root, "tables", 1, INT32_MAX, &list));
    GR_TRY(gr_alloc((void **)&p->table, (size_t)list->n_child, sizeof *p->table, "tables of a placement"));
    p->n_table = list->n_child;
    int table = 0;
    for (const gr_json_node *c = list->child; c; c = c->next)
        GR_TRY(read_table(r, c, p, table++));
    return GR_OK;
}

/* ---------------------------------------------------------------- the file */

static gr_err read_parts(reader *r, gr_placement *p) {
    GR_TRY(read_shape(r, p));
    GR_TRY(read_experts(r, p));
    GR_TRY(read_scores(r, p));
    GR_TRY(read_together(r, p));
    GR_TRY(read_tables(r, p));
    if (r->rest.n)
        return gr_fail(GR_DATA,
            "%s: expected its checksum behind the last table, got %zu bytes more; make it again "
            "with 'grouter-train place'",
            r->path, r->rest.n);
    return GR_OK;
}

/* Magic, version, the size of the JSON and the checksum. */
static gr_err check_frame(gr_map map, const char *path, size_t *n_json) {
    const size_t least = GR_PLACEMENT_HEAD + 8;
    if (map.n < least || memcmp(map.p, GR_PLACEMENT_MAGIC, 8) != 0)
        return gr_fail(GR_DATA, "%s: expected a placement (\"%s\" at byte 0, %zu bytes or more), got %zu other bytes",
            path, GR_PLACEMENT_MAGIC, least, map.n);
    const uint32_t version = gr_load_u32(map.p + 8);
    if (version != GR_PLACEMENT_VERSION)
        return gr_fail(GR_DATA, "%s: expected version %u at byte 8, got %" PRIu32, path, GR_PLACEMENT_VERSION, version);
    *n_json = gr_load_u32(map.p + 12);
    if (*n_json > GR_PLACEMENT_JSON_MAX || *n_json % 8 || *n_json > map.n - least)
        return gr_fail(GR_DATA,
            "%s: expected a text of at most %zu bytes, a multiple of 8, at byte 16, got %zu (byte 12); the file is cut "
            "short or lies",
            path, map.n - least, *n_json);
    if (gr_hash64(map.p, map.n - 8) != gr_load_u64(map.p + map.n - 8))
        return gr_fail(GR_DATA,
            "%s: its checksum does not match; the file is damaged, copy it or make it again with 'grouter-train place'",
            path);
    return GR_OK;
}

static gr_err read_mapped(gr_placement *out, gr_map map, const char *path) {
    size_t n_json = 0;
    gr_json *doc = NULL;
    GR_TRY(check_frame(map, path, &n_json));
    const char *text = (const char *)map.p + GR_PLACEMENT_HEAD;
    GR_TRY(gr_json_parse(&doc, text, n_json, path, GR_PLACEMENT_JSON_MAX, DEPTH_MAX, GR_DATA));
    reader r = {.path = path,
        .root = gr_json_root(doc),
        .rest = {.p = map.p + GR_PLACEMENT_HEAD + n_json, .n = map.n - GR_PLACEMENT_HEAD - n_json - 8}};
    gr_err e = read_parts(&r, out);
    gr_json_close(doc);
    return e;
}

gr_err gr_placement_read(gr_placement *out, const char *path) {
    gr_map map = {0};
    *out = (gr_placement){0};
    GR_TRY(gr_map_open(&map, path, GR_DATA));
    gr_err e = read_mapped(out, map, path);
    gr_map_close(&map);
    if (e)
        gr_placement_close(out);
    return e;
}
