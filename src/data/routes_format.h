/* routes_format.h: what the reader and the writer of route tables share. Internal to src/data. */
#ifndef GROUTER_ROUTES_FORMAT_H
#define GROUTER_ROUTES_FORMAT_H

#include "grouter/routes.h"

/* Byte counts and places that follow from E, K, T and n_window. */
typedef struct gr_routes_layout {
    size_t n_pair;          /* T*K */
    size_t id_size;         /* 1 or 2 */
    size_t gates_at;        /* within a record; ids are at 0 */
    size_t hashes_at;       /* within a record: record hash, then token hash */
    size_t record_bytes;    /* of one record */
    size_t histogram_bytes; /* of one window: 4*E */
    size_t records_at;      /* in the file */
    size_t file_bytes;
} gr_routes_layout;

/* Checks every field of info against its range and n_window against n_token and T, then computes the layout with
 * checked arithmetic: 65, the message headed by `where`. */
GR_MUST gr_err gr_routes_layout_make(gr_routes_layout *l, const gr_routes_info *info, const char *where);
size_t gr_routes_histogram_at(const gr_routes_layout *l, uint64_t window);
size_t gr_routes_record_at(const gr_routes_layout *l, uint64_t window);

void gr_routes_header_encode(const gr_routes_info *info, uint8_t header[GR_ROUTES_HEADER]);
/* Turns a table's header, or such a one, into that of a table that is being written: readers refuse it, and it is equal
 * for equal router, sizes and token count. */
void gr_routes_header_unfinished(uint8_t header[GR_ROUTES_HEADER]);

/* XXH3-64 of tokens[n] as little-endian u32; scratch has 4*n bytes. */
uint64_t gr_routes_token_hash(const uint32_t *tokens, size_t n, uint8_t *scratch);

/* XXH3-64 over all records' two hashes in window order; file is the whole table. A record that was never written (both
 * hashes 0) is a broken invariant of its writer: 70. */
GR_MUST gr_err gr_routes_table_hash(
    const uint8_t *file, const gr_routes_layout *l, uint64_t n_window, const char *where, uint64_t *out);

/* The first row that breaks a rule. */
typedef struct gr_row_fault {
    size_t pair;    /* index into [T*K] */
    bool in_gates;  /* the gate is at fault, not the id */
    char text[128]; /* "expected ..., got ..." */
} gr_row_fault;

/* Rules of gr_routes_check_rows; fills counts[E]. False and *fault at the first fault. */
bool gr_rows_check(
    const gr_routes_info *info, const uint16_t *ids, const float *gates, uint32_t *counts, gr_row_fault *fault);

#endif
