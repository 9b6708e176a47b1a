/* Strict JSON in two readings of the same text. The scanner accepts RFC 8259 minus duplicate keys, U+0000 and deep
 * nesting, and records where each value starts, in pre-order. cJSON, which is lenient and keeps no positions, then
 * builds the tree and decodes strings; the n-th value of its tree is the n-th record. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

struct gr_json {
    char *text; /* private: a mapped file may change between the two readings */
    cJSON *tree;
    gr_json_node *node; /* pre-order */
    char *number;       /* texts of the numbers */
};

/* ---------------------------------------------------------------- tree */

static gr_json_kind kind_of(const cJSON *item) {
    if (cJSON_IsObject(item))
        return GR_JSON_OBJECT;
    if (cJSON_IsArray(item))
        return GR_JSON_ARRAY;
    if (cJSON_IsString(item))
        return GR_JSON_STRING;
    if (cJSON_IsNumber(item))
        return GR_JSON_NUMBER;
    return cJSON_IsBool(item) ? GR_JSON_BOOL : GR_JSON_NULL;
}

/* The kind of the value whose first byte is c, in text the scanner accepted. */
static gr_json_kind kind_at(char c) {
    switch (c) {
    case '{':
        return GR_JSON_OBJECT;
    case '[':
        return GR_JSON_ARRAY;
    case '"':
        return GR_JSON_STRING;
    case 't':
    case 'f':
        return GR_JSON_BOOL;
    case 'n':
        return GR_JSON_NULL;
    default:
        return GR_JSON_NUMBER;
    }
}

/* Copies the number at text[n] with a NUL to *pool and moves *pool behind it. */
static const char *take_number(char **pool, const char *text, size_t n) {
    char *number = *pool;
    size_t i = 0;
    for (; i < n && text[i] && strchr("0123456789+-.eE", text[i]); i++)
        number[i] = text[i];
    number[i] = '\0';
    *pool = number + i + 1;
    return number;
}

/* Walks cJSON's tree and the records side by side and links the nodes. */
static void build_nodes(gr_json *doc, const gr_json_scan *s) {
    struct {
        const cJSON *item;
        gr_json_node *node, *last;
    } above[GR_JSON_DEPTH_LIMIT];
    int depth = 0;
    gr_json_place p = {.line = 1};
    char *pool = doc->number;
    const cJSON *item = doc->tree;
    for (size_t i = 0; i < s->n_value; i++) {
        gr_json_node *node = &doc->node[i];
        size_t at = s->list[i].at;
        gr_json_place_advance(&p, s->text, at);
        GR_ASSERT(item && kind_of(item) == kind_at(s->text[at]), "%s:%d:%d: the two readings differ", s->source, p.line,
            p.column);
        *node = (gr_json_node){.kind = kind_of(item),
            .key = item->string,
            .string = cJSON_GetStringValue(item),
            .boolean = cJSON_IsTrue(item),
            .line = p.line,
            .column = p.column};
        if (node->kind == GR_JSON_NUMBER)
            node->number = take_number(&pool, s->text + at, s->n - at);
        if (depth > 0) {
            gr_json_node *parent = above[depth - 1].node, *last = above[depth - 1].last;
            *(last ? &last->next : &parent->child) = node;
            above[depth - 1].last = node;
            parent->n_child++;
        }
        if (item->child) {
            above[depth].item = item;
            above[depth].node = node;
            above[depth++].last = NULL;
            item = item->child;
            continue;
        }
        while (depth > 0 && !item->next)
            item = above[--depth].item;
        item = depth > 0 ? item->next : NULL;
    }
    GR_ASSERT(!item, "%s: cJSON read more values than the scanner's %zu", s->source, s->n_value);
}

/* By key, then by place in the text. */
static int compare_members(const void *a, const void *b) {
    const gr_json_node *x = *(const gr_json_node *const *)a, *y = *(const gr_json_node *const *)b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x > y) - (x < y);
}

/* Fails on the first member (in text order) whose key its object has already; keys are compared decoded. `member` has
 * room for all members. Sorting keeps hostile objects of millions of members at n log n. */
GR_MUST static gr_err check_object(
    const gr_json *doc, const gr_json_scan *s, const gr_json_node *object, const gr_json_node **member) {
    size_t n = 0;
    for (const gr_json_node *c = object->child; c; c = c->next)
        member[n++] = c;
    qsort(member, n, sizeof *member, compare_members);
    const gr_json_node *first = NULL, *repeat = NULL;
    for (size_t i = 1; i < n; i++)
        if (strcmp(member[i - 1]->key, member[i]->key) == 0 && (!repeat || member[i] < repeat)) {
            first = member[i - 1];
            repeat = member[i];
        }
    if (!repeat)
        return GR_OK;
    gr_json_place p = gr_json_place_of(s, s->list[first - doc->node].key);
    return gr_json_scan_fail(s, s->list[repeat - doc->node].key,
        "duplicate key \"%.100s\": also on line %d, column %d; keep one of them", repeat->key, p.line, p.column);
}

GR_MUST static gr_err check_duplicates(const gr_json *doc, const gr_json_scan *s) {
    int n_max = 0;
    for (size_t i = 0; i < s->n_value; i++)
        if (doc->node[i].kind == GR_JSON_OBJECT && doc->node[i].n_child > n_max)
            n_max = doc->node[i].n_child;
    if (n_max < 2)
        return GR_OK;
    void *member;
    GR_TRY(gr_alloc(&member, (size_t)n_max, sizeof(gr_json_node *), "members of a JSON object"));
    gr_err err = GR_OK;
    for (size_t i = 0; !err && i < s->n_value; i++)
        if (doc->node[i].kind == GR_JSON_OBJECT && doc->node[i].n_child > 1)
            err = check_object(doc, s, &doc->node[i], member);
    free(member);
    return err;
}

GR_MUST static gr_err build_document(gr_json *doc, const gr_json_scan *s) {
    doc->tree = cJSON_ParseWithLength(s->text, s->n);
    if (!doc->tree) /* the scanner accepted the text, so what is missing is memory */
        return gr_fail(GR_RESOURCE, "%s: not enough memory for a tree of %zu JSON values", s->source, s->n_value);
    void *memory;
    GR_TRY(gr_alloc(&memory, s->n_value, sizeof *doc->node, "JSON values"));
    doc->node = memory;
    GR_TRY(gr_alloc(&memory, s->number_bytes, 1, "JSON numbers"));
    doc->number = memory;
    build_nodes(doc, s);
    return check_duplicates(doc, s);
}

/* ---------------------------------------------------------------- interface */

gr_err gr_json_parse(
    gr_json **out, const char *text, size_t n, const char *source, size_t max_byte, int max_depth, gr_err code) {
    *out = NULL;
    GR_ASSERT(max_byte < INT_MAX, "%zu bytes, but lines and columns are int", max_byte);
    GR_ASSERT(
        max_depth >= 1 && max_depth <= GR_JSON_DEPTH_LIMIT, "depth %d, limit %d", max_depth, (int)GR_JSON_DEPTH_LIMIT);
    if (n > max_byte)
        return gr_fail(code, "%s:1:1: expected at most %zu bytes of JSON, got %zu", source, max_byte, n);
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_json), "a JSON document"));
    gr_json *doc = memory;
    gr_err err = gr_alloc(&memory, n, 1, "JSON text");
    gr_json_scan s = {.text = memory, .source = source, .n = n, .code = code, .max_depth = max_depth};
    if (!err) {
        doc->text = memory;
        memcpy(doc->text, text, n);
        err = gr_json_scan_text(&s);
    }
    if (!err)
        err = build_document(doc, &s);
    free(s.list);
    if (err) {
        gr_json_close(doc);
        return err;
    }
    *out = doc;
    return GR_OK;
}

const gr_json_node *gr_json_root(const gr_json *doc) {
    return doc->node;
}

void gr_json_close(gr_json *doc) {
    if (!doc)
        return;
    free(doc->number);
    free(doc->node);
    cJSON_Delete(doc->tree);
    free(doc->text);
    free(doc);
}

const gr_json_node *gr_json_get(const gr_json_node *object, const char *key) {
    if (!object || object->kind != GR_JSON_OBJECT)
        return NULL;
    for (const gr_json_node *c = object->child; c; c = c->next)
        if (strcmp(c->key, key) == 0)
            return c;
    return NULL;
}

bool gr_json_i64(const gr_json_node *node, int64_t *out) {
    if (!node || node->kind != GR_JSON_NUMBER || strpbrk(node->number, ".eE"))
        return false;
    errno = 0;
    long long v = strtoll(node->number, NULL, 10);
    if (errno)
        return false;
    *out = v;
    return true;
}

bool gr_json_f64(const gr_json_node *node, double *out) {
    if (!node || node->kind != GR_JSON_NUMBER)
        return false;
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!c_locale)
        return false;
    double v = strtod_l(node->number, NULL, c_locale);
    freelocale(c_locale);
    if (!isfinite(v))
        return false;
    *out = v;
    return true;
}

const char *gr_json_escape(const char *text, char *out) {
    char *o = out;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20) {
            o += snprintf(o, 7, "\\u%04x", c);
            continue;
        }
        if (c == '"' || c == '\\')
            *o++ = '\\';
        *o++ = (char)c;
    }
    *o = '\0';
    return out;
}

const char *gr_json_library(void) {
    return "cJSON v" TEXT(CJSON_VERSION_MAJOR) "." TEXT(CJSON_VERSION_MINOR) "." TEXT(CJSON_VERSION_PATCH);
}

const char *gr_json_found(const gr_json_node *node, char text[GR_JSON_FOUND_MAX]) {
    switch (node->kind) {
    case GR_JSON_NUMBER:
        snprintf(text, GR_JSON_FOUND_MAX, "%.60s", node->number);
        return text;
    case GR_JSON_STRING:
        snprintf(text, GR_JSON_FOUND_MAX, "\"%.60s\"", node->string);
        return text;
    case GR_JSON_BOOL:
        return node->boolean ? "true" : "false";
    case GR_JSON_ARRAY:
        snprintf(text, GR_JSON_FOUND_MAX, "an array of %d", node->n_child);
        return text;
    default:
        return node->kind == GR_JSON_NULL ? "null" : "an object";
    }
}
