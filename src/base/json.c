/* Strict JSON in two readings of the same text. The scanner accepts RFC 8259 minus duplicate keys, U+0000 and deep
 * nesting, and records where each value starts, in pre-order. cJSON, which is lenient and keeps no positions, then
 * builds the tree and decodes strings; the n-th value of its tree is the n-th record. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/json.h"

enum {
    DEPTH_LIMIT = 256,  /* of any caller: far below cJSON's own limit of 1000, whose recursion it bounds */
    NUMBER_LIMIT = 63,  /* bytes of a number: cJSON reads no more */
    MESSAGE_LIMIT = 400 /* bytes of an error after its place */
};

#define NO_KEY SIZE_MAX

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

/* Offsets into the text. */
typedef struct record {
    size_t key, at; /* of the member's name (NO_KEY outside objects) and of the value */
} record;

typedef struct scan {
    const char *text, *source;
    size_t n, at;
    gr_err code;
    int depth, max_depth;
    char open[DEPTH_LIMIT]; /* '{' or '[' of each container we are inside */
    record *list;
    size_t n_value, n_room;
    size_t number_bytes; /* of all numbers, with a NUL each */
} scan;

struct gr_json {
    cJSON *tree;
    gr_json_node *node; /* pre-order */
    char *number;       /* texts of the numbers */
};

/* ---------------------------------------------------------------- places and errors */

typedef struct place {
    int line, column;
    size_t line_start, seen; /* offsets: of the line, and how far newlines have been counted */
} place;

/* Moves p forward to offset `at`. */
static void place_advance(place *p, const char *text, size_t at) {
    const char *newline;
    while ((newline = memchr(text + p->seen, '\n', at - p->seen))) {
        p->line++;
        p->seen = p->line_start = (size_t)(newline - text) + 1;
    }
    p->seen = at;
    p->column = (int)(at - p->line_start) + 1;
}

static place place_of(const scan *s, size_t at) {
    place p = {.line = 1};
    place_advance(&p, s->text, at);
    return p;
}

GR_MUST static gr_err scan_fail(const scan *s, size_t at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static gr_err scan_fail(const scan *s, size_t at, const char *fmt, ...) {
    char message[MESSAGE_LIMIT];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    for (char *c = message; *c; c++) /* of a quoted key; one error is one line */
        if (*c == '\n')
            *c = ' ';
    place p = place_of(s, at);
    return gr_fail(s->code, "%s:%d:%d: %s", s->source, p.line, p.column, message);
}

/* "expected <what>, got <the byte here>". */
GR_MUST static gr_err scan_expected(const scan *s, const char *what) {
    if (s->at >= s->n)
        return scan_fail(s, s->n, "expected %s, got the end of the text", what);
    unsigned char c = (unsigned char)s->text[s->at];
    if (c > 0x20 && c < 0x7f)
        return scan_fail(s, s->at, "expected %s, got '%c'", what, c);
    return scan_fail(s, s->at, "expected %s, got byte 0x%02x", what, c);
}

/* ---------------------------------------------------------------- scanner: scalars */

/* The byte `ahead` of here, 0 past the end (a NUL byte is legal nowhere, so 0 never hides one). */
static unsigned char peek(const scan *s, size_t ahead) {
    return ahead < s->n - s->at ? (unsigned char)s->text[s->at + ahead] : 0;
}

static bool is_digit(unsigned char c) {
    return c >= '0' && c <= '9';
}

static void skip_space(scan *s) {
    while (s->at < s->n) {
        char c = s->text[s->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            return;
        s->at++;
    }
}

/* Bytes of the UTF-8 sequence here, 0 if it is not one (Unicode table 3-7: no overlong forms, no surrogates, nothing
 * above U+10FFFF). */
static size_t utf8_length(const scan *s) {
    unsigned char lead = peek(s, 0), second = peek(s, 1);
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (lead < 0xc2 || lead > 0xf4 || second < low || second > high)
        return 0;
    size_t n = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    for (size_t i = 2; i < n; i++)
        if ((peek(s, i) & 0xc0) != 0x80)
            return 0;
    return n;
}

/* The value of the \uXXXX that starts here; false if none does. */
static bool unicode_escape(const scan *s, unsigned *unit) {
    if (peek(s, 0) != '\\' || peek(s, 1) != 'u')
        return false;
    unsigned v = 0;
    for (size_t i = 2; i < 6; i++) {
        unsigned c = peek(s, i), letter = c | 0x20;
        if (is_digit((unsigned char)c))
            v = v * 16 + (c - '0');
        else if (letter >= 'a' && letter <= 'f')
            v = v * 16 + (letter - 'a' + 10);
        else
            return false;
    }
    *unit = v;
    return true;
}

GR_MUST static gr_err scan_escape(scan *s) {
    size_t start = s->at;
    unsigned char c = peek(s, 1);
    if (c != 'u') {
        if (!c || !strchr("\"\\/bfnrt", c))
            return scan_fail(s, start, "unknown escape in a string; write a backslash as \\\\");
        s->at += 2;
        return GR_OK;
    }
    unsigned unit, low;
    if (!unicode_escape(s, &unit))
        return scan_fail(s, start, "expected \\u and four hexadecimal digits");
    if (unit == 0)
        return scan_fail(s, start, "U+0000 is not allowed in a string");
    s->at += 6;
    if (unit < 0xd800 || unit > 0xdfff)
        return GR_OK;
    if (unit > 0xdbff || !unicode_escape(s, &low) || low < 0xdc00 || low > 0xdfff)
        return scan_fail(s, start, "lone surrogate \\u%04x in a string", unit);
    s->at += 6;
    return GR_OK;
}

GR_MUST static gr_err scan_string(scan *s) {
    size_t start = s->at++;
    while (s->at < s->n) {
        unsigned char c = (unsigned char)s->text[s->at];
        if (c == '"') {
            s->at++;
            return GR_OK;
        }
        if (c == '\\') {
            GR_TRY(scan_escape(s));
        } else if (c < 0x20) {
            return scan_fail(s, s->at, "control character 0x%02x in a string; write it as \\u%04x", c, c);
        } else if (c < 0x80) {
            s->at++;
        } else {
            size_t n = utf8_length(s);
            if (n == 0)
                return scan_fail(s, s->at, "invalid UTF-8: byte 0x%02x; save the text as UTF-8", c);
            s->at += n;
        }
    }
    return scan_fail(s, start, "string without a closing quote");
}

GR_MUST static gr_err scan_digits(scan *s, const char *what) {
    if (!is_digit(peek(s, 0)))
        return scan_expected(s, what);
    while (is_digit(peek(s, 0)))
        s->at++;
    return GR_OK;
}

GR_MUST static gr_err scan_number(scan *s) {
    size_t start = s->at;
    if (peek(s, 0) == '-')
        s->at++;
    if (peek(s, 0) == '0' && is_digit(peek(s, 1)))
        return scan_fail(s, start, "number with a leading zero");
    GR_TRY(scan_digits(s, "a digit"));
    if (peek(s, 0) == '.') {
        s->at++;
        GR_TRY(scan_digits(s, "a digit after the decimal point"));
    }
    if ((peek(s, 0) | 0x20) == 'e') {
        s->at++;
        if (peek(s, 0) == '+' || peek(s, 0) == '-')
            s->at++;
        GR_TRY(scan_digits(s, "a digit of the exponent"));
    }
    if (s->at - start > NUMBER_LIMIT)
        return scan_fail(s, start, "number of %zu characters, expected at most %d", s->at - start, (int)NUMBER_LIMIT);
    s->number_bytes += s->at - start + 1;
    return GR_OK;
}

GR_MUST static gr_err scan_word(scan *s) {
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if (s->n - s->at >= n && memcmp(s->text + s->at, words[i], n) == 0) {
            s->at += n;
            return GR_OK;
        }
    }
    return scan_expected(s, "a JSON value");
}

/* ---------------------------------------------------------------- scanner: structure */

GR_MUST static gr_err scan_record(scan *s, size_t key) {
    if (s->n_value == s->n_room) {
        size_t room = s->n_room ? 2 * s->n_room : 64;
        record *list = reallocarray(s->list, room, sizeof *list);
        if (!list)
            return gr_fail(GR_RESOURCE, "%s: not enough memory for %zu JSON values", s->source, room);
        s->list = list;
        s->n_room = room;
    }
    s->list[s->n_value++] = (record){.key = key, .at = s->at};
    return GR_OK;
}

/* One scalar, or the opening of a container. */
GR_MUST static gr_err scan_value(scan *s, size_t key) {
    skip_space(s);
    GR_TRY(scan_record(s, key));
    unsigned char c = peek(s, 0);
    if (c == '{' || c == '[') {
        if (s->depth == s->max_depth)
            return scan_fail(s, s->at, "nested deeper than %d levels", s->max_depth);
        s->open[s->depth++] = (char)c;
        s->at++;
        return GR_OK;
    }
    if (c == '"')
        return scan_string(s);
    if (c == '-' || is_digit(c))
        return scan_number(s);
    return scan_word(s);
}

/* Inside an object: the name of the next member and its colon. */
GR_MUST static gr_err scan_key(scan *s, size_t *key) {
    *key = NO_KEY;
    if (s->open[s->depth - 1] != '{')
        return GR_OK;
    skip_space(s);
    if (peek(s, 0) != '"')
        return scan_expected(s, "a key in double quotes");
    *key = s->at;
    GR_TRY(scan_string(s));
    skip_space(s);
    if (peek(s, 0) != ':')
        return scan_expected(s, "':' after the key");
    s->at++;
    return GR_OK;
}

/* Leaves the containers that end here. */
static void scan_closings(scan *s) {
    for (skip_space(s); s->depth > 0; skip_space(s)) {
        if (peek(s, 0) != (s->open[s->depth - 1] == '{' ? '}' : ']'))
            return;
        s->depth--;
        s->at++;
    }
}

GR_MUST static gr_err scan_text(scan *s) {
    size_t key = NO_KEY;
    for (;;) {
        int before = s->depth;
        GR_TRY(scan_value(s, key));
        int after = s->depth;
        scan_closings(s);
        if (s->depth == 0)
            return s->at < s->n ? scan_expected(s, "nothing after the JSON value") : GR_OK;
        bool just_opened = after > before && s->depth == after;
        if (!just_opened) {
            if (peek(s, 0) != ',')
                return scan_expected(s, s->open[s->depth - 1] == '{' ? "',' or '}'" : "',' or ']'");
            s->at++;
        }
        GR_TRY(scan_key(s, &key));
    }
}

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
    for (; i < n && (is_digit((unsigned char)text[i]) || (text[i] && strchr("+-.eE", text[i]))); i++)
        number[i] = text[i];
    number[i] = '\0';
    *pool = number + i + 1;
    return number;
}

/* Walks cJSON's tree and the records side by side and links the nodes. */
static void build_nodes(gr_json *doc, const scan *s) {
    struct {
        const cJSON *item;
        gr_json_node *node, *last;
    } above[DEPTH_LIMIT];
    int depth = 0;
    place p = {.line = 1};
    char *pool = doc->number;
    const cJSON *item = doc->tree;
    for (size_t i = 0; i < s->n_value; i++) {
        gr_json_node *node = &doc->node[i];
        size_t at = s->list[i].at;
        place_advance(&p, s->text, at);
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
    const gr_json *doc, const scan *s, const gr_json_node *object, const gr_json_node **member) {
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
    place p = place_of(s, s->list[first - doc->node].key);
    return scan_fail(s, s->list[repeat - doc->node].key,
        "duplicate key \"%.100s\": also on line %d, column %d; keep one of them", repeat->key, p.line, p.column);
}

GR_MUST static gr_err check_duplicates(const gr_json *doc, const scan *s) {
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

GR_MUST static gr_err build_document(gr_json *doc, const scan *s) {
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
    GR_ASSERT(max_depth >= 1 && max_depth <= DEPTH_LIMIT, "depth %d, limit %d", max_depth, (int)DEPTH_LIMIT);
    scan s = {.text = text, .source = source, .n = n, .code = code, .max_depth = max_depth};
    if (n > max_byte)
        return gr_fail(code, "%s:1:1: expected at most %zu bytes of JSON, got %zu", source, max_byte, n);
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        return scan_fail(&s, 0, "byte order mark; save the text as UTF-8 without one");
    void *doc = NULL;
    gr_err err = scan_text(&s);
    if (!err)
        err = gr_alloc(&doc, 1, sizeof(gr_json), "a JSON document");
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
