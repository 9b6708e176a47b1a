/* json_scan.h: the strict reading of JSON text, before cJSON builds the tree. Internal to src/base. */
#ifndef GROUTER_BASE_JSON_SCAN_H
#define GROUTER_BASE_JSON_SCAN_H

#include "grouter/json.h"

enum { GR_JSON_DEPTH_LIMIT = 256 }; /* of any caller: far below cJSON's own limit of 1000, whose recursion it bounds */

#define GR_JSON_NO_KEY SIZE_MAX

/* Offsets into the text. */
typedef struct gr_json_record {
    size_t key, at; /* of the member's name (GR_JSON_NO_KEY outside objects) and of the value */
} gr_json_record;

typedef struct gr_json_scan {
    const char *text, *source;
    size_t n, at;
    gr_err code;
    int depth, max_depth;
    char open[GR_JSON_DEPTH_LIMIT]; /* '{' or '[' of each container we are inside */
    gr_json_record *list;           /* one for each value, in pre-order; the caller frees it */
    size_t n_value, n_room;
    size_t number_bytes; /* of all numbers, with a NUL each */
} gr_json_scan;

/* Reads the whole text. `text`, `source`, `n`, `code` and `max_depth` are set, the rest is zero. */
GR_MUST gr_err gr_json_scan_text(gr_json_scan *s);

typedef struct gr_json_place {
    int line, column;
    size_t line_start, seen; /* offsets: of the line, and how far newlines have been counted */
} gr_json_place;

/* Moves p forward to offset `at`; start with {.line = 1}. */
void gr_json_place_advance(gr_json_place *p, const char *text, size_t at);
gr_json_place gr_json_place_of(const gr_json_scan *s, size_t at);

/* "<source>:<line>:<column>: ..." about the byte at offset `at`, on one line. */
GR_MUST gr_err gr_json_scan_fail(const gr_json_scan *s, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
