/* inspect.h: what the parts of `inspect` share: figures printed as text lines or as one JSON object. */
#ifndef GROUTER_CMD_INSPECT_H
#define GROUTER_CMD_INSPECT_H

#include "grouter/base.h"

typedef struct gr_report {
    bool json;
    int n_figure; /* printed so far */
} gr_report;

/* One figure: "label: value" or "key": value. A NULL label is left out of the text, NaN is null in JSON. */
void gr_report_begin(gr_report *r, bool json);
void gr_report_text(gr_report *r, const char *key, const char *label, const char *value);
void gr_report_count(gr_report *r, const char *key, const char *label, uint64_t value);
void gr_report_number(gr_report *r, const char *key, const char *label, double value);
void gr_report_bool(gr_report *r, const char *key, const char *label, bool value);
/* JSON only: the key and what separates it; the caller prints the value. */
void gr_report_key(gr_report *r, const char *key);
void gr_report_end(gr_report *r);
/* Text as a JSON string literal with its quotes. */
void gr_report_literal(const char *text);
/* Text of a file for people: control characters are escaped, since it may have been made to fool a terminal. */
void gr_report_plain(const char *text);

/* Verifies and prints one file; nothing is printed on stdout before it is verified. */
GR_MUST gr_err gr_inspect_routes(const char *path, const char *tokens, bool json); /* tokens may be NULL */
GR_MUST gr_err gr_inspect_router(const char *path, bool json);
GR_MUST gr_err gr_inspect_touch(const char *path, bool json);
GR_MUST gr_err gr_inspect_tokens(const char *prefix, bool json);
GR_MUST gr_err gr_inspect_safetensors(const char *path, bool json);
GR_MUST gr_err gr_inspect_grouter(const char *path, bool json);
GR_MUST gr_err gr_inspect_mapping(const char *path, bool json);
/* svg may be NULL: no picture. */
GR_MUST gr_err gr_inspect_placement(const char *path, const char *svg, bool json);
GR_MUST gr_err gr_inspect_hf(const char *path, bool json);

#endif
