/* json.h: strict JSON. A scanner over the raw text rejects what cJSON would let pass (encoding, depth, number syntax,
 * duplicate keys, trailing bytes) and records positions; cJSON builds the tree. Integers never pass through double. */
#ifndef GROUTER_JSON_H
#define GROUTER_JSON_H

#include "grouter/base.h"

typedef enum gr_json_kind {
    GR_JSON_NULL,
    GR_JSON_BOOL,
    GR_JSON_NUMBER,
    GR_JSON_STRING,
    GR_JSON_ARRAY,
    GR_JSON_OBJECT
} gr_json_kind;

/* One value. Nodes belong to their document and live until gr_json_close. */
typedef struct gr_json_node {
    gr_json_kind kind;
    const char *key;    /* member name, NULL outside objects; UTF-8, no embedded NUL */
    const char *string; /* of a string */
    const char *number; /* of a number: its text as written */
    bool boolean;
    int line, column;                        /* 1-based place of the value's first character (columns count bytes) */
    int n_child;                             /* of arrays and objects */
    const struct gr_json_node *child, *next; /* first child, next sibling; document order */
} gr_json_node;

typedef struct gr_json gr_json;

/* Parses text[n] (need not be NUL-terminated). Every error is one line "<source>:<line>:<column>: ..." with `code`.
 * Refused: more than max_byte bytes, nesting deeper than max_depth, invalid UTF-8, a byte order mark, U+0000,
 * duplicate keys (both lines named), NaN/Infinity, leading zeros, trailing bytes. Explicit stack, no recursion on
 * input. */
GR_MUST gr_err gr_json_parse(
    gr_json **out, const char *text, size_t n, const char *source, size_t max_byte, int max_depth, gr_err code);
const gr_json_node *gr_json_root(const gr_json *doc);
void gr_json_close(gr_json *doc); /* accepts NULL */

/* Member of an object by exact key, NULL if absent or not an object. */
const gr_json_node *gr_json_get(const gr_json_node *object, const char *key);

/* True and *out set if the node is a number with integer syntax that fits (1e3 and 1.0 do not count). */
bool gr_json_i64(const gr_json_node *node, int64_t *out);
/* True and *out set if the node is a finite number. Independent of the locale. */
bool gr_json_f64(const gr_json_node *node, double *out);

/* `text` as the inside of a JSON string literal (no quotes), into out (at least 6 * strlen + 1 bytes); returns out. */
const char *gr_json_escape(const char *text, char *out);

const char *gr_json_library(void); /* "cJSON v1.7.15" */

/* A value in a few words for messages that name what was found: into text[GR_JSON_FOUND_MAX] or constant. */
enum { GR_JSON_FOUND_MAX = 80 };
const char *gr_json_found(const gr_json_node *node, char text[GR_JSON_FOUND_MAX]);

#endif
