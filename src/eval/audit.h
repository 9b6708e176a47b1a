/* audit.h: what the files of the leak audit share. */
#ifndef GROUTER_EVAL_AUDIT_H
#define GROUTER_EVAL_AUDIT_H

#include "grouter/leak.h"

/* ---------------------------------------------------------------- audit_text.c: the windows of data.valid */

typedef struct gr_audit_text {
    gr_tokens *tokens[GR_DATA_FILES_MAX];
    uint64_t n_window[GR_DATA_FILES_MAX]; /* of each file */
    int n_file;
    uint64_t n_all; /* windows of all files */
    uint32_t T, V;
} gr_audit_text;

/* Opens the files; those of their tables that are there must have been made with `router`. 65. */
GR_MUST gr_err gr_audit_text_open(gr_audit_text *text, const gr_config *config, const gr_router_info *router);
void gr_audit_text_close(gr_audit_text *text); /* accepts a zeroed one */

/* A window of all files, and its number in its own. */
GR_MUST gr_err gr_audit_text_read(const gr_audit_text *text, uint64_t window, uint32_t *tokens);
uint64_t gr_audit_text_place(const gr_audit_text *text, uint64_t window, int *file);

/* ---------------------------------------------------------------- audit_routes.c: two routes of one position */

typedef struct gr_route {
    const uint16_t *ids; /* [K] ascending */
    const float *gates;  /* [K] */
    const float *scores; /* [E]; NULL unless a Grouter's */
} gr_route;

typedef struct gr_route_change {
    double n, set_changed, gate_change, divergence; /* sums over positions */
} gr_route_change;

/* Adds one position. True if any bit of it has changed. */
bool gr_route_change_add(gr_route_change *c, uint32_t E, uint32_t K, const gr_route *before, const gr_route *after);

/* 0, 1, 2, 3-4, 5-8, ... */
int gr_leak_bucket_of(uint32_t distance);
void gr_leak_bucket_range(int bucket, uint32_t *first, uint32_t *last);

#endif
