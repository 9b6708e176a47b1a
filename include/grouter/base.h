/* base.h: what every other part may use: errors, logging, checked sizes, arenas, random numbers, checksums, files.
 *
 * Dimension letters used in shape comments everywhere:
 *   B windows and T tokens per window in a micro-batch of one rank, N = B*T tokens of that micro-batch,
 *   K experts per token, E experts, E_local experts on this rank, F expert width, D model width, H heads,
 *   V vocabulary, L layers, R ranks, R_ep ranks of one expert-parallel group,
 *   M rows received from other ranks, P pairs (token, expert) computed on this rank.
 */
#ifndef GROUTER_BASE_H
#define GROUTER_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---------------------------------------------------------------- errors */

/* Everything that can fail returns gr_err: 0 is success, anything else is the exit code of the process. */
typedef enum gr_err {
    GR_OK = 0,
    GR_USAGE = 2,       /* command line wrong */
    GR_CONFIG = 64,     /* config wrong */
    GR_DATA = 65,       /* token file, route table, router or mapping malformed, absent, changed, not a pair */
    GR_CHECKPOINT = 66, /* weights unusable or not of this config */
    GR_RESOURCE = 69,   /* memory, disk or a device is not there */
    GR_BUG = 70,        /* our own invariant broke */
    GR_NONFINITE = 71,  /* NaN or Inf beyond policy */
    GR_PEER = 73,       /* a peer or communicator was lost */
    GR_STORAGE = 74,    /* storage failed (EIO, ENOSPC, EDQUOT, read-only) */
    GR_PREEMPTED = 85,  /* asked to stop, and a checkpoint holds the run: start it again */
} gr_err;

#define GR_MUST __attribute__((warn_unused_result))

/* Returns from the calling function when `expr` fails. */
#define GR_TRY(expr)                                                                                                   \
    do {                                                                                                               \
        gr_err gr_try_err_ = (expr);                                                                                   \
        if (gr_try_err_)                                                                                               \
            return gr_try_err_;                                                                                        \
    } while (0)

/* Records the error text of this process and returns `code`. The text names what (file, key or place), then
 * "expected X, got Y", then what to do. It is one line: a newline in an argument becomes a space. */
#define gr_fail(code, ...) gr_fail_at((code), __FILE__, __LINE__, __VA_ARGS__)
GR_MUST gr_err gr_fail_at(gr_err code, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Records several errors of the same code, one a line, newlines within one as above. */
GR_MUST gr_err gr_fail_lines(gr_err code, const char *const *line, int n);

/* Marks `code` as an error that another rank has printed already: gr_error_print stays silent. */
GR_MUST gr_err gr_fail_silently(gr_err code);

/* Text for people of at most n bytes, control characters escaped: names in it may have been made to fool a terminal. */
void gr_print_plain(FILE *out, const char *text, size_t n);

/* The last error's text, "" if none. Valid until the next gr_fail. */
const char *gr_error_text(void);

/* One line "grouter-train: error[E<code>] <text>" per line of the last error, once: later calls for it are silent.
 * Control characters are escaped. */
void gr_error_print(FILE *out, gr_err code);

/* For broken invariants of our own only, never for input: prints place and values, ends the process with 70. */
#define GR_ASSERT(cond, ...)                                                                                           \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            gr_assert_fail(__FILE__, __LINE__, #cond, __VA_ARGS__);                                                    \
    } while (0)
void gr_assert_fail(const char *file, int line, const char *cond, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 4, 5)));

/* The nearest of the names offered, for "did you mean": start with {.to = "what was written"}. `name` stays NULL while
 * nothing offered is close enough to be a typing error (distance at most 1 + a quarter of the part after the last '.').
 */
typedef struct gr_nearest {
    const char *to, *name; /* borrowed */
    int distance;
} gr_nearest;
void gr_nearest_offer(gr_nearest *n, const char *name);

/* ---------------------------------------------------------------- logging and progress (stderr) */

typedef enum gr_log_level { GR_LOG_QUIET, GR_LOG_INFO, GR_LOG_DEBUG } gr_log_level;

/* Ranks other than 0 set GR_LOG_QUIET; errors are printed all the same. */
void gr_log_set(gr_log_level level);
void gr_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void gr_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* "warning: ..." */
void gr_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Progress of long work: rewrites one line on a terminal, prints a plain line every 10 s elsewhere. Amounts and rates
 * of a thousand and more are in thousands or millions of the unit: "12.5 ktokens/s". */
typedef struct gr_progress {
    const char *label;
    const char *unit; /* "tokens", "B" */
    uint64_t total;
    double start_s, shown_s;
    bool tty, shown;
} gr_progress;

void gr_progress_start(gr_progress *p, const char *label, const char *unit, uint64_t total);
void gr_progress_update(gr_progress *p, uint64_t done);
void gr_progress_finish(gr_progress *p, uint64_t done); /* always prints one summary line */

/* Seconds of the monotonic clock. */
double gr_time_s(void);

/* "3h18m", "4m05s" or "12s" into `text` (at least 16 bytes); returns text. */
const char *gr_duration_text(double seconds, char *text);

/* ---------------------------------------------------------------- this machine */

/* What may still be allocated. A successful malloc proves nothing: memory is given when it is touched. */
typedef struct gr_memory_room {
    uint64_t host;     /* bytes that all processes of this host together can still get */
    const char *limit; /* what bounds them: "MemAvailable" or "cgroup limit" */
    uint64_t process;  /* bytes this process may still map (RLIMIT_AS); UINT64_MAX: unlimited */
} gr_memory_room;
/* From <root>/proc and <root>/sys/fs/cgroup, root "" but in tests. What the system does not say bounds nothing. */
gr_memory_room gr_memory_room_get(const char *root);

/* Bytes of this process that no file backs: RssAnon + RssShmem; 0 if unknown. */
uint64_t gr_memory_resident(void);

/* Bytes free for us in the file system that `path`, which need not exist yet, is or would be in; UINT64_MAX if unknown.
 */
uint64_t gr_disk_room(const char *path);

/* Equal for processes on one host, different otherwise: a hash of boot id and host name. */
uint64_t gr_host_id(void);

/* ---------------------------------------------------------------- this program */

const char *gr_version_text(void); /* "0.1.0 (git hash)" */
int gr_thread_count(void);         /* OpenMP threads of this process; 1 without OpenMP */
/* From now on each parallel region gets as many threads as it counts on, and that is how many there are; returned.
 * OpenMP may give fewer than omp_get_max_threads says (OMP_THREAD_LIMIT, OMP_DYNAMIC), and oneDNN's products are then
 * wrong without a word: it shares work out by the one number and is called with the other. */
int gr_threads_settle(void);

/* ---------------------------------------------------------------- types of stored numbers */

typedef enum gr_dtype {
    GR_F32,
    GR_BF16,
    GR_F16,
    GR_F64,
    GR_U8,
    GR_I8,
    GR_U16,
    GR_I16,
    GR_U32,
    GR_I32,
    GR_U64,
    GR_I64,
    GR_BOOL,
    GR_F8_E4M3,
    GR_F8_E5M2,
    GR_N_DTYPE
} gr_dtype;

size_t gr_dtype_size(gr_dtype dtype);
const char *gr_dtype_name(gr_dtype dtype); /* safetensors spelling: "F32", "BF16", ... */

/* bf16 rounding to nearest even; NaN stays NaN. */
uint16_t gr_bf16_from_f32(float x);
float gr_f32_from_bf16(uint16_t x);
float gr_f32_from_f16(uint16_t x); /* IEEE 754 binary16: exact; NaN stays NaN */

/* ---------------------------------------------------------------- what a network sees of a window */

/* What part of the window is seen from position t. The DOC masks end at the borders of t's document; the token that
 * ends a document belongs to it. */
typedef enum gr_mask {
    GR_MASK_NONE, /* the token or position alone */
    GR_MASK_CAUSAL,
    GR_MASK_BIDIRECTIONAL,
    GR_MASK_CAUSAL_DOC,
    GR_MASK_BIDIRECTIONAL_DOC,
    GR_N_MASK
} gr_mask;
typedef enum gr_position {
    GR_POSITION_NONE,
    GR_POSITION_WINDOW, /* 0..T-1 over the window */
    GR_N_POSITION
} gr_position;

/* ---------------------------------------------------------------- UTF-8 (RFC 3629) */

/* Bytes of the sequence at the beginning of p[n], n >= 1; 0 if it is cut short, overlong, a surrogate or above
 * U+10FFFF.
 */
size_t gr_utf8_length(const uint8_t *p, size_t n);
/* Length of the valid UTF-8 at the beginning of p[n]: n if all of it is. */
size_t gr_utf8_valid(const uint8_t *p, size_t n);

/* ---------------------------------------------------------------- sizes: false on overflow, *r untouched */

static inline bool gr_mul_size(size_t a, size_t b, size_t *r) {
    size_t v;
    if (__builtin_mul_overflow(a, b, &v))
        return false;
    *r = v;
    return true;
}

static inline bool gr_add_size(size_t a, size_t b, size_t *r) {
    size_t v;
    if (__builtin_add_overflow(a, b, &v))
        return false;
    *r = v;
    return true;
}

/* ---------------------------------------------------------------- arenas */

/* Memory measured once, placed once, freed together. A layout function runs twice with the same arguments: first with
 * base NULL (gr_arena_take then returns NULL and only counts), then over memory of `peak` bytes. Marks let scratch of
 * one phase share bytes with another: m = a->used; ...take...; a->used = m. */
typedef struct gr_arena {
    uint8_t *base; /* NULL while measuring */
    size_t size;   /* bytes at base */
    size_t used;   /* bytes handed out so far */
    size_t peak;   /* largest `used` ever */
    bool overflow; /* a size did not fit size_t: the measurement is void */
} gr_arena;

#define GR_ALIGN 64

/* Next `count` elements of `elem_size` bytes, 64-byte aligned; NULL while measuring or when count is 0. Placing more
 * than was measured is a broken invariant. */
void *gr_arena_take(gr_arena *a, size_t count, size_t elem_size);
#define GR_TAKE(arena, count, type) ((type *)gr_arena_take((arena), (size_t)(count), sizeof(type)))

/* Zeroed host memory that aborts nothing: 69 naming `what` and the size when it is not there. */
GR_MUST gr_err gr_alloc(void **out, size_t count, size_t elem_size, const char *what);

/* ---------------------------------------------------------------- random numbers: counter-based, no state */

/* Philox4x32-10 (Salmon et al. 2011): four words from a 64-bit key and a 128-bit counter. */
void gr_philox(uint64_t key, uint64_t counter_lo, uint64_t counter_hi, uint32_t out[4]);

/* Element i of the stream (seed, stream); a stream is usually gr_stream_id of a name. */
uint64_t gr_random_u64(uint64_t seed, uint64_t stream, uint64_t i);
uint32_t gr_random_below(uint64_t seed, uint64_t stream, uint64_t i, uint32_t n); /* uniform in [0,n), n >= 1 */
float gr_random_normal(uint64_t seed, uint64_t stream, uint64_t i);               /* N(0,1), Box-Muller */
uint64_t gr_stream_id(const char *name);                                          /* XXH3-64 of the name */

/* Keyed bijection of [0,n): Feistel network with cycle walking. index < n. */
uint64_t gr_bijection(uint64_t key, uint64_t n, uint64_t index);

/* ---------------------------------------------------------------- checksums (xxHash) */

typedef struct gr_hash128 {
    uint64_t lo, hi;
} gr_hash128;

uint64_t gr_hash64(const void *data, size_t n_byte); /* XXH3-64, seed 0 */
const char *gr_hash_library(void);                   /* "xxHash v0.8.1" */

/* Streaming XXH3; `gr_hasher_open` never fails but for memory (69). */
typedef struct gr_hasher gr_hasher;
GR_MUST gr_err gr_hasher_open(gr_hasher **out);
void gr_hasher_add(gr_hasher *h, const void *data, size_t n_byte);
uint64_t gr_hasher_64(const gr_hasher *h);
gr_hash128 gr_hasher_128(const gr_hasher *h);
void gr_hasher_close(gr_hasher *h);

/* 32 hexadecimal digits (high word first) and NUL into `text`; returns text. */
const char *gr_hash128_text(gr_hash128 h, char text[33]);
/* 0 to 15 for a digit in lower case, else -1. */
int gr_hex_value(char c);

/* ---------------------------------------------------------------- files */

/* Bytes still to be parsed. The take functions read little-endian, advance, and are false when too few bytes remain. */
typedef struct gr_span {
    const uint8_t *p;
    size_t n;
} gr_span;
bool gr_take_bytes(gr_span *s, size_t n_byte, const uint8_t **out);
bool gr_take_u8(gr_span *s, uint8_t *out);
bool gr_take_u32(gr_span *s, uint32_t *out);
bool gr_take_u64(gr_span *s, uint64_t *out);
bool gr_take_f32(gr_span *s, float *out);

/* Unaligned little-endian loads from trusted offsets. */
uint16_t gr_load_u16(const uint8_t *p);
uint32_t gr_load_u32(const uint8_t *p);
uint64_t gr_load_u64(const uint8_t *p);

/* Little-endian stores. */
void gr_store_u16(uint8_t *p, uint16_t v);
void gr_store_u32(uint8_t *p, uint32_t v);
void gr_store_u64(uint8_t *p, uint64_t v);

/* A regular file mapped read-only. Errors (absent, not regular, unreadable) carry `code` and the path. An empty file
 * gives n 0 and p non-NULL. */
typedef struct gr_map {
    const uint8_t *p;
    size_t n;
} gr_map;
GR_MUST gr_err gr_map_open(gr_map *m, const char *path, gr_err code);
void gr_map_close(gr_map *m); /* accepts a zeroed map */

/* Whole file of at most `max` bytes into memory the caller frees; a NUL is added after the n bytes. */
GR_MUST gr_err gr_file_read(const char *path, size_t max, gr_err code, char **text, size_t *n);

/* New file `path`, written under a temporary name beside it: nothing appears (and nothing stays) unless commit
 * succeeds, which fsyncs the file, renames it over `path` and fsyncs the folder. Storage errors are 74, and so is a
 * `path` that is a folder or device. */
typedef struct gr_out gr_out;
GR_MUST gr_err gr_out_open(gr_out **out, const char *path);
GR_MUST gr_err gr_out_write(gr_out *o, const void *data, size_t n_byte); /* appended, buffered */
GR_MUST gr_err gr_out_printf(gr_out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
GR_MUST gr_err gr_out_pwrite(gr_out *o, const void *data, size_t n_byte, uint64_t offset); /* unbuffered */
GR_MUST gr_err gr_out_commit(gr_out *o);
void gr_out_close(gr_out *o); /* accepts NULL; removes the temporary file unless committed */

/* The same under a temporary name that stays, so that a later process goes on with what one that was killed has
 * written. Its *n_byte bytes may be anything, another run's too: the caller looks with gr_out_pread. Locked for this
 * process: 64 if another has it. `close` removes it unless committed or kept. */
GR_MUST gr_err gr_out_resume(gr_out **out, const char *path, const char *temporary, uint64_t *n_byte);
/* A new empty file under the same name; processes that still write the old one no longer reach it. */
GR_MUST gr_err gr_out_restart(gr_out *o);
void gr_out_keep(gr_out *o); /* close leaves the temporary file for a later gr_out_resume */
/* What is beyond the end reads as zeros. */
GR_MUST gr_err gr_out_pread(gr_out *o, void *data, size_t n_byte, uint64_t offset);

/* Several ranks write one file with gr_out_pwrite: `gr_out_open` on one rank, then `gr_out_join` on the others with
 * the path that gr_out_temporary gave; they call gr_out_sync, then close, and the opener commits. */
const char *gr_out_temporary(const gr_out *o);
GR_MUST gr_err gr_out_join(gr_out **out, const char *temporary);
GR_MUST gr_err gr_out_sync(gr_out *o);

/* mkdir -p; 74 naming the path. */
GR_MUST gr_err gr_folder_make(const char *path);
bool gr_path_exists(const char *path);
bool gr_path_same(const char *a, const char *b); /* both exist and are one file, links followed */

#endif
