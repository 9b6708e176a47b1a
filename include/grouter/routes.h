/* routes.h: route tables: for every token of a token file's windows K ascending expert ids and K gates.
 *
 * File, little-endian: header (GR_ROUTES_HEADER bytes) | histograms u32[n_window][E] | records, one per window:
 *   ids [T][K] (u8 if E <= 256, else u16) | gates [T][K] bf16 |
 *   u64 XXH3-64 of (ids, gates, histogram) | u64 XXH3-64 of the window's T+1 tokens as little-endian u32
 * Records have one size, unpadded. Header layout: see src/data/routes.c.
 */
#ifndef GROUTER_ROUTES_H
#define GROUTER_ROUTES_H

#include "grouter/data.h"

#define GR_ROUTES_HEADER 512
#define GR_EXPERTS_MAX 4096
#define GR_TOPK_MAX 64
#define GR_PROVENANCE_MAX 256
#define GR_SCALE_MIN 1e-6f /* scale/K stays far above where bf16 loses relative precision */
#define GR_SCALE_MAX 1e6f

typedef struct gr_routes_info {
    uint32_t E, K, T;
    float scale;     /* the gates of a token sum to this */
    bool variable_k; /* slots with gate exactly 0 are legal */
    gr_mask mask;
    gr_position position;
    uint64_t n_window, n_token;         /* n_token: of the whole token file */
    gr_hash128 router;                  /* XXH3-128 of the router's tensors and settings */
    char provenance[GR_PROVENANCE_MAX]; /* how it was made: text for people */
    uint64_t table_hash; /* XXH3-64 over all records' two hashes in window order: names this table's content */
} gr_routes_info;

/* Bytes of a table with this E, K, T, n_window and n_token: 65 if one of them is out of range. */
GR_MUST gr_err gr_routes_size(const gr_routes_info *info, uint64_t *n_byte);

typedef struct gr_routes gr_routes;

/* Maps and checks the header and the file's size: 65 (T5). Rows are checked when read. */
GR_MUST gr_err gr_routes_open(gr_routes **out, const char *path);
void gr_routes_close(gr_routes *r); /* accepts NULL */
const gr_routes_info *gr_routes_get(const gr_routes *r);
const char *gr_routes_path(const gr_routes *r);

/* The table belongs to this token file and model: n_token, T, E, K, and the first window's token hash: 65 naming both.
 */
GR_MUST gr_err gr_routes_match(const gr_routes *r, const gr_tokens *t, uint32_t T, uint32_t E, uint32_t K);

/* Window w: ids[T*K], gates[T*K] fp32 (exact bf16 values). tokens[T+1] is the same window of the token file; NULL
 * leaves out the token hash, for looking at a table without its tokens. One reader per handle at a time; on error ids
 * and gates hold nothing usable.
 * Before anything is returned: record hash, token hash, every row (ids ascending, distinct, < E; gates finite, >= 0;
 * |sum - scale| <= scale/256, or 0 < sum <= scale*(1+1/256) with variable_k; zeros only with variable_k) and the
 * histogram (recounted over slots with gate > 0): 65 naming file, window, position, value, byte offset (T5, T6). */
GR_MUST gr_err gr_routes_read(gr_routes *r, uint64_t window, const uint32_t *tokens, uint16_t *ids, float *gates);

/* The header's table_hash is that of the records' hashes: 65. Touches every record's last page; reading every window
 * as well verifies the whole table. */
GR_MUST gr_err gr_routes_check_hash(const gr_routes *r);

/* Histogram of window w: counts[E]. A hint: trusted only after gr_routes_read of that window. */
void gr_routes_histogram(const gr_routes *r, uint64_t window, uint32_t *counts);

/* load[E] := pairs per expert over the whole table, from the histograms (a hint as they are). */
void gr_routes_load(const gr_routes *r, uint64_t *load);

/* MaxVio (Wang et al. 2024): (max - mean) / mean of load[E]; over a whole table MaxVioGlobal. 0 if all are 0. */
double gr_load_violation(const uint64_t *load, uint32_t E);

/* The per-window row checks of gr_routes_read, shared with writers and routers: ids[T*K], gates[T*K]; counts[E] is
 * filled with the histogram. `where` heads the message ("file: window 3"). */
GR_MUST gr_err gr_routes_check_rows(
    const gr_routes_info *info, const char *where, const uint16_t *ids, const float *gates, uint32_t *counts);

/* ---------------------------------------------------------------- touch counts: capacities without scanning the table
 * touch[w][r]: tokens of window w with at least one expert on rank r of R_ep. Kept in a checksummed sidecar beside the
 * table, keyed by table_hash, R_ep and where the experts are; made once, remade when it does not fit:
 * `<table>.touch<R_ep>` for consecutive blocks of E/R_ep experts, `<table>.touch<R_ep>.<hash of rank_of>` for others,
 * so that placements do not take each other's. R_ep = 1 needs neither scan nor file: every token of a checked row
 * touches the only rank. */
typedef struct gr_touch {
    uint32_t n_rank;
    uint64_t n_window;
    uint32_t *count; /* [n_window][n_rank] */
    uint64_t map;    /* XXH3-64 of rank_of[E] as little-endian u16; 0 for consecutive blocks */
} gr_touch;
/* Loads the sidecar or makes it with one scan (progress shown) and tries to save it (a read-only folder only warns).
 * rank_of[E] is below n_rank, E/n_rank experts each; NULL: consecutive blocks. May run on one rank alone; with `save`
 * false nothing is written. */
GR_MUST gr_err gr_touch_open(gr_touch *out, gr_routes *r, const gr_tokens *t, uint32_t n_vocab, uint32_t n_rank,
    const uint16_t *rank_of, bool save);
/* A sidecar by itself, whatever table it belongs to (*table_hash): magic, version, size and checksum are checked: 65.
 */
GR_MUST gr_err gr_touch_read(gr_touch *out, const char *path, uint64_t *table_hash);
void gr_touch_close(gr_touch *touch);

/* ---------------------------------------------------------------- writing: any number of ranks, one file */
typedef struct gr_routes_writer gr_routes_writer;
/* One process creates `path`.partial (info.table_hash is ignored), or takes the one that a killed process left: if it
 * is of the same router, sizes and number of tokens, what is in it can be kept (`resumes`); another's is begun anew,
 * said so. 64 while another process has it. */
GR_MUST gr_err gr_routes_writer_open(gr_routes_writer **out, const char *path, const gr_routes_info *info);
bool gr_routes_writer_resumes(const gr_routes_writer *w);
const char *gr_routes_writer_temporary(const gr_routes_writer *w);
/* ...others join it with the temporary's name and write their windows, then sync and close. */
GR_MUST gr_err gr_routes_writer_join(gr_routes_writer **out, const char *temporary, const gr_routes_info *info);
/* Whether this window is there already, whole and of these tokens: record hash, token hash, rows and histogram.
 * ids[T*K] and gates[T*K] are then its rows, else undefined. */
GR_MUST gr_err gr_routes_writer_find(
    gr_routes_writer *w, uint64_t window, const uint32_t *tokens, uint16_t *ids, float *gates, bool *found);
GR_MUST gr_err gr_routes_writer_window(
    gr_routes_writer *w, uint64_t window, const uint32_t *tokens, const uint16_t *ids, const float *gates);
GR_MUST gr_err gr_routes_writer_sync(gr_routes_writer *w);
/* By the creator, after all others synced: reads back every record's hashes, writes the header, renames. */
GR_MUST gr_err gr_routes_writer_commit(gr_routes_writer *w);
/* Uncommitted, the partial file goes with its creator, unless it is kept for a later one. */
void gr_routes_writer_keep(gr_routes_writer *w);
void gr_routes_writer_close(gr_routes_writer *w);

#endif
