/* mapping.c: which source experts become which target expert: the type, its names and its file. */
#include "grouter/fold.h"
#include "grouter/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "grouter-mapping"
enum {
    VERSION = 1,
    TEXT_BYTE_MAX = 1 << 20, /* 4096 ids and as many groups are below 100 KB */
    DEPTH_MAX = 3,
};

/* ---------------------------------------------------------------- names */

static const char *const method_names[GR_N_FOLD_METHOD] = {
    "affinity", "balance", "greedy", "random", "block", "balance-reference", "expand"};
static const char *const kind_names[GR_N_FOLD_KIND] = {"sum", "mean"};

const char *gr_fold_method_name(gr_fold_method method) {
    return method_names[method];
}

const char *gr_fold_kind_name(gr_fold_kind kind) {
    return kind_names[kind];
}

/* n if it is none of the names. */
static int name_index(const char *const *names, int n, const char *name) {
    int i = 0;
    while (i < n && strcmp(names[i], name) != 0)
        i++;
    return i;
}

gr_err gr_fold_method_find(gr_fold_method *method, const char *name) {
    const int i = name_index(method_names, GR_N_FOLD_METHOD, name);
    *method = (gr_fold_method)i;
    if (i < GR_N_FOLD_METHOD)
        return GR_OK;
    gr_nearest nearest = {.to = name};
    for (int k = 0; k < GR_N_FOLD_METHOD; k++)
        gr_nearest_offer(&nearest, method_names[k]);
    return gr_fail(GR_CONFIG,
        "fold method: expected affinity, balance, greedy, random, block, balance-reference or expand, got \"%.60s\"; "
        "did you mean \"%s\"?",
        name, nearest.name ? nearest.name : method_names[GR_FOLD_AFFINITY]);
}

gr_err gr_fold_kind_find(gr_fold_kind *kind, const char *name) {
    const int i = name_index(kind_names, GR_N_FOLD_KIND, name);
    *kind = (gr_fold_kind)i;
    if (i < GR_N_FOLD_KIND)
        return GR_OK;
    return gr_fail(GR_CONFIG, "fold: expected sum or mean, got \"%.60s\"; choose one of the two", name);
}

/* ---------------------------------------------------------------- the type */

static gr_err check_sizes(gr_fold_method method, uint32_t E_S, uint32_t E_T) {
    const char *name = method_names[method];
    if (E_S < 1 || E_S > GR_EXPERTS_MAX || E_T < 1 || E_T > GR_EXPERTS_MAX)
        return gr_fail(GR_CONFIG, "fold: expected 1 to %d source and target experts, got %" PRIu32 " and %" PRIu32,
            GR_EXPERTS_MAX, E_S, E_T);
    if (method == GR_FOLD_EXPAND ? E_T <= E_S : E_T > E_S)
        return gr_fail(GR_CONFIG,
            "fold: method %s: expected %s the %" PRIu32 " source experts as target, got %" PRIu32 "; %s", name,
            method == GR_FOLD_EXPAND ? "more than" : "at most", E_S, E_T,
            method == GR_FOLD_EXPAND ? "use a folding method for fewer" : "use method expand for more");
    if (method == GR_FOLD_BALANCE_REFERENCE && E_S % E_T != 0)
        return gr_fail(GR_CONFIG,
            "fold: method %s: expected a number of target experts that divides the %" PRIu32 " source experts, got "
            "%" PRIu32 "; method balance takes any",
            name, E_S, E_T);
    return GR_OK;
}

gr_err gr_mapping_open(gr_mapping *m, gr_fold_method method, uint32_t E_S, uint32_t E_T) {
    *m = (gr_mapping){0};
    GR_TRY(check_sizes(method, E_S, E_T));
    const uint32_t n_group = E_T < E_S ? E_T : E_S;
    gr_err err = gr_alloc((void **)&m->offset, (size_t)n_group + 1, sizeof *m->offset, "mapping");
    if (!err)
        err = gr_alloc((void **)&m->member, E_S, sizeof *m->member, "mapping");
    if (err) {
        gr_mapping_close(m);
        return err;
    }
    m->method = method;
    m->E_S = E_S;
    m->E_T = E_T;
    m->n_group = n_group;
    for (uint32_t g = 0; g < n_group; g++)
        m->offset[g + 1] = m->offset[g] + E_S / n_group + (g < E_S % n_group);
    return GR_OK;
}

void gr_mapping_close(gr_mapping *m) {
    free(m->member);
    free(m->offset);
    *m = (gr_mapping){0};
}

uint32_t gr_mapping_used(const gr_mapping *m) {
    bool seen[GR_EXPERTS_MAX] = {false};
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->E_S; i++) {
        n += !seen[m->member[i]];
        seen[m->member[i]] = true;
    }
    return n;
}

void gr_mapping_sizes(const gr_mapping *m, uint32_t *least, uint32_t *most) {
    *least = m->E_S;
    *most = 0;
    for (uint32_t g = 0; g < m->n_group; g++) {
        const uint32_t size = m->offset[g + 1] - m->offset[g];
        *least = size < *least ? size : *least;
        *most = size > *most ? size : *most;
    }
}

/* ---------------------------------------------------------------- writing */

static gr_err write_groups(const gr_mapping *m, gr_out *o) {
    GR_TRY(gr_out_printf(o, "  \"groups\": ["));
    for (uint32_t g = 0; g < m->n_group; g++) {
        GR_TRY(gr_out_printf(o, "%s\n    [", g ? "," : ""));
        for (uint32_t at = m->offset[g]; at < m->offset[g + 1]; at++)
            GR_TRY(gr_out_printf(o, "%s%u", at > m->offset[g] ? ", " : "", (unsigned)m->member[at]));
        GR_TRY(gr_out_printf(o, "]"));
    }
    return gr_out_printf(o, "\n  ]\n}\n");
}

gr_err gr_mapping_write(const gr_mapping *m, gr_out *o) {
    char router[33];
    GR_TRY(gr_out_printf(o,
        "{\n  \"format\": \"" FORMAT "\",\n  \"version\": %d,\n  \"method\": \"%s\",\n  \"fold\": \"%s\",\n", VERSION,
        method_names[m->method], kind_names[m->fold]));
    GR_TRY(
        gr_out_printf(o, "  \"source_experts\": %" PRIu32 ",\n  \"target_experts\": %" PRIu32 ",\n", m->E_S, m->E_T));
    if (m->method == GR_FOLD_EXPAND)
        GR_TRY(gr_out_printf(o, "  \"new\": %" PRIu32 ",\n", m->E_T - m->E_S));
    GR_TRY(gr_out_printf(
        o, "  \"router\": \"%s\",\n  \"tokens\": %" PRIu64 ",\n", gr_hash128_text(m->router, router), m->n_token));
    return write_groups(m, o);
}

gr_err gr_mapping_save(const gr_mapping *m, const char *path) {
    gr_out *o = NULL;
    GR_TRY(gr_out_open(&o, path));
    gr_err err = gr_mapping_write(m, o);
    if (!err)
        err = gr_out_commit(o);
    gr_out_close(o);
    return err;
}

/* ---------------------------------------------------------------- reading: single values */

typedef struct reader {
    const char *path;
    const gr_json_node *root;
} reader;

static gr_err refuse(const reader *r, const gr_json_node *node, const char *key, const char *expected) {
    char found[GR_JSON_FOUND_MAX];
    return gr_fail(GR_DATA, "%s:%d: \"%s\": expected %s, got %s; make the mapping again with 'grouter-train fold'",
        r->path, node->line, key, expected, gr_json_found(node, found));
}

static gr_err take(const reader *r, const char *key, const gr_json_node **node) {
    *node = gr_json_get(r->root, key);
    if (*node)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s:%d: expected a member \"%s\", got none; make the mapping again with 'grouter-train fold'", r->path,
        r->root->line, key);
}

static gr_err take_text(const reader *r, const char *key, const char *expected, const gr_json_node **node) {
    GR_TRY(take(r, key, node));
    return (*node)->kind == GR_JSON_STRING ? GR_OK : refuse(r, *node, key, expected);
}

static gr_err take_number(const reader *r, const char *key, int64_t low, int64_t high, int64_t *value) {
    const gr_json_node *node;
    char expected[80];
    GR_TRY(take(r, key, &node));
    if (gr_json_i64(node, value) && *value >= low && *value <= high)
        return GR_OK;
    snprintf(expected, sizeof expected, "a whole number from %" PRId64 " to %" PRId64, low, high);
    return refuse(r, node, key, expected);
}

static gr_err take_router(const reader *r, gr_hash128 *hash) {
    const char *expected = "32 hexadecimal digits";
    const gr_json_node *node;
    GR_TRY(take_text(r, "router", expected, &node));
    uint64_t half[2] = {0, 0};
    size_t n = 0;
    for (; node->string[n]; n++) {
        const int digit = gr_hex_value(node->string[n]);
        if (digit < 0 || n == 32)
            return refuse(r, node, "router", expected);
        half[n / 16] = half[n / 16] << 4 | (uint64_t)digit;
    }
    if (n != 32)
        return refuse(r, node, "router", expected);
    *hash = (gr_hash128){.hi = half[0], .lo = half[1]};
    return GR_OK;
}

/* ---------------------------------------------------------------- reading: groups */

static gr_err take_member(const reader *r, const gr_json_node *node, const gr_mapping *m, int64_t after, int64_t *id) {
    char expected[80];
    if (gr_json_i64(node, id) && *id > after && *id < (int64_t)m->E_S)
        return GR_OK;
    snprintf(expected, sizeof expected, "ascending expert ids below %" PRIu32 " in a group", m->E_S);
    return refuse(r, node, "groups", expected);
}

/* Appends group g. `seen` marks experts of this and earlier groups. */
static gr_err take_group(const reader *r, const gr_json_node *group, gr_mapping *m, uint32_t g, bool *seen) {
    if (group->kind != GR_JSON_ARRAY || group->n_child < 1)
        return refuse(r, group, "groups", "arrays of one or more expert ids");
    int64_t id = -1;
    uint32_t at = m->offset[g];
    for (const gr_json_node *c = group->child; c; c = c->next) {
        GR_TRY(take_member(r, c, m, id, &id));
        if (at == m->E_S)
            return refuse(r, c, "groups", "as many ids in all groups together as there are source experts");
        if (seen[id] && m->method != GR_FOLD_BALANCE_REFERENCE)
            return refuse(r, c, "groups", "each source expert in one group");
        if (m->method == GR_FOLD_EXPAND && (group->n_child != 1 || id != (int64_t)g))
            return refuse(r, c, "groups", "every source expert alone and in order, since nothing is folded");
        seen[id] = true;
        m->member[at++] = (uint16_t)id;
    }
    m->offset[g + 1] = at;
    return GR_OK;
}

static gr_err take_groups(const reader *r, gr_mapping *m) {
    bool seen[GR_EXPERTS_MAX] = {false};
    char expected[80];
    const gr_json_node *groups;
    GR_TRY(take(r, "groups", &groups));
    snprintf(expected, sizeof expected, "an array of %" PRIu32 " groups", m->n_group);
    if (groups->kind != GR_JSON_ARRAY || groups->n_child != (int)m->n_group)
        return refuse(r, groups, "groups", expected);
    uint32_t g = 0;
    for (const gr_json_node *c = groups->child; c; c = c->next)
        GR_TRY(take_group(r, c, m, g++, seen));
    if (m->offset[g] != m->E_S)
        return gr_fail(GR_DATA, "%s:%d: \"groups\": expected %" PRIu32 " ids in all groups together, got %" PRIu32,
            r->path, groups->line, m->E_S, m->offset[g]);
    return GR_OK;
}

/* ---------------------------------------------------------------- reading: the file */

static gr_err check_keys(const reader *r, bool expands) {
    static const char *const keys[] = {
        "format", "version", "method", "fold", "source_experts", "target_experts", "router", "tokens", "groups", "new"};
    const int n_key = (int)(sizeof keys / sizeof *keys) - !expands;
    for (const gr_json_node *c = r->root->child; c; c = c->next)
        if (name_index(keys, n_key, c->key) == n_key)
            return gr_fail(GR_DATA, "%s:%d: expected only members of a mapping, got \"%.60s\"; make the mapping again",
                r->path, c->line, c->key);
    return GR_OK;
}

/* Format and version first: without them no other field means anything. */
static gr_err check_format(const reader *r) {
    const gr_json_node *node;
    int64_t version;
    if (r->root->kind != GR_JSON_OBJECT)
        return refuse(r, r->root, "", "an object, as a mapping file has");
    GR_TRY(take_text(r, "format", "\"" FORMAT "\"", &node));
    if (strcmp(node->string, FORMAT) != 0)
        return refuse(r, node, "format", "\"" FORMAT "\"");
    return take_number(r, "version", VERSION, VERSION, &version);
}

static gr_err take_method(const reader *r, gr_fold_method *method, gr_fold_kind *kind) {
    const char *expected = "the name of a fold method";
    const gr_json_node *node;
    GR_TRY(take_text(r, "method", expected, &node));
    *method = (gr_fold_method)name_index(method_names, GR_N_FOLD_METHOD, node->string);
    if (*method == GR_N_FOLD_METHOD)
        return refuse(r, node, "method", expected);
    expected = *method == GR_FOLD_EXPAND ? "\"sum\"" : "\"sum\" or \"mean\"";
    GR_TRY(take_text(r, "fold", expected, &node));
    *kind = (gr_fold_kind)name_index(kind_names, GR_N_FOLD_KIND, node->string);
    if (*kind == GR_N_FOLD_KIND || (*method == GR_FOLD_EXPAND && *kind != GR_FOLD_SUM))
        return refuse(r, node, "fold", expected);
    return GR_OK;
}

/* The range in which `method` has a number of target experts. */
static gr_err take_sizes(const reader *r, gr_fold_method method, int64_t *E_S, int64_t *E_T) {
    const bool expands = method == GR_FOLD_EXPAND;
    int64_t added;
    GR_TRY(take_number(r, "source_experts", 1, GR_EXPERTS_MAX - expands, E_S));
    GR_TRY(take_number(r, "target_experts", expands ? *E_S + 1 : 1, expands ? GR_EXPERTS_MAX : *E_S, E_T));
    if (expands)
        return take_number(r, "new", *E_T - *E_S, *E_T - *E_S, &added);
    if (method == GR_FOLD_BALANCE_REFERENCE && *E_S % *E_T != 0)
        return refuse(r, gr_json_get(r->root, "target_experts"), "target_experts", "a divisor of \"source_experts\"");
    return GR_OK;
}

static gr_err read_mapping(const reader *r, gr_mapping *m) {
    gr_fold_method method;
    gr_fold_kind kind = GR_FOLD_SUM;
    gr_hash128 router;
    int64_t E_S, E_T, n_token;
    GR_TRY(check_format(r));
    GR_TRY(take_method(r, &method, &kind));
    GR_TRY(check_keys(r, method == GR_FOLD_EXPAND));
    GR_TRY(take_sizes(r, method, &E_S, &E_T));
    GR_TRY(take_router(r, &router));
    GR_TRY(take_number(r, "tokens", 0, INT64_MAX, &n_token));
    GR_TRY(gr_mapping_open(m, method, (uint32_t)E_S, (uint32_t)E_T));
    m->fold = kind;
    m->router = router;
    m->n_token = (uint64_t)n_token;
    return take_groups(r, m);
}

gr_err gr_mapping_load(gr_mapping *m, const char *path) {
    char *text = NULL;
    size_t n;
    gr_json *doc = NULL;
    *m = (gr_mapping){0};
    GR_TRY(gr_file_read(path, TEXT_BYTE_MAX, GR_DATA, &text, &n));
    gr_err err = gr_json_parse(&doc, text, n, path, TEXT_BYTE_MAX, DEPTH_MAX, GR_DATA);
    free(text);
    if (!err) {
        const reader r = {.path = path, .root = gr_json_root(doc)};
        err = read_mapping(&r, m);
    }
    gr_json_close(doc);
    if (err)
        gr_mapping_close(m);
    return err;
}
