/* geometry.h: the arithmetic that kernels share with host code: where rows lie, how much work a block takes, what a row
 * of attention sees, how much scratch an op needs. Plain C that nvcc compiles too, so that it is tested without a GPU.
 *
 * Nothing here depends on the device: equal shapes give equal orders of summation on every GPU. */
#ifndef GROUTER_KERNELS_GEOMETRY_H
#define GROUTER_KERNELS_GEOMETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define GR_EVERYWHERE static inline __host__ __device__
#else
#define GR_EVERYWHERE static inline
#endif

/* Rounded up; b > 0. */
GR_EVERYWHERE int64_t gr_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

GR_EVERYWHERE int64_t gr_round_up(int64_t a, int64_t b) {
    return gr_ceil_div(a, b) * b;
}

GR_EVERYWHERE int64_t gr_at_most(int64_t a, int64_t limit) {
    return a < limit ? a : limit;
}

/* ---------------------------------------------------------------- sums over rows (gradients of norm weights)
 *
 * Rows are cut into partials of equal length, one block each; a block's warps take its rows in turn and keep sums of
 * their own, which are added by warp; the partials are added in GR_PARTIAL_PARTS runs of neighbours, then these. */

enum { GR_PARTIAL_MAX = 1024, GR_PARTIAL_PARTS = 32, GR_WARPS_MAX = 8 };

/* Of n in all, so many for one partial that there are at most GR_PARTIAL_MAX partials: a multiple of `unit`. */
GR_EVERYWHERE int64_t gr_partial_each(int64_t n, int64_t unit) {
    const int64_t least = gr_ceil_div(n, GR_PARTIAL_MAX);
    return gr_round_up(least < 1 ? 1 : least, unit);
}

/* Rows of one partial: a multiple of the warps. */
GR_EVERYWHERE int64_t gr_partial_rows(int64_t n_row) {
    return gr_partial_each(n_row, GR_WARPS_MAX);
}

GR_EVERYWHERE int64_t gr_partial_count(int64_t n_row) {
    return gr_ceil_div(n_row, gr_partial_rows(n_row));
}

/* Floats of shared memory for the sums of a block's warps: little for narrow rows, so that more blocks run at once. */
enum { GR_SUMS_FEW = 2048, GR_SUMS_MANY = 12288 };

/* Warps of a block whose sums of `width` floats each fit; 1 where not even one does: it sums in its partial. */
GR_EVERYWHERE int gr_partial_warps(int64_t width) {
    const int64_t fit = GR_SUMS_MANY / width;
    return fit >= GR_WARPS_MAX ? GR_WARPS_MAX : fit >= 1 ? (int)fit : 1;
}

/* Bytes for the partials of n_row rows with `width` sums each. */
GR_EVERYWHERE size_t gr_partial_bytes(int64_t n_row, int64_t width) {
    return (size_t)gr_partial_count(n_row) * (size_t)width * sizeof(float);
}

/* ---------------------------------------------------------------- heads of q and k (head_norm.cu)
 *
 * All heads of q in the order of their rows, then all of k, each kind cut into parts of equal length, the last one
 * shorter: one block each, whose heads have the same weights. In backward its sum of their gradients is a partial. */

typedef struct gr_heads {
    int64_t n_row, n_q, n_k;
    int64_t T; /* position of a row: row % T; 0: there are none */
} gr_heads;

typedef struct gr_head_parts {
    int64_t n_q, n_k;       /* parts */
    int64_t each_q, each_k; /* heads of a part: a multiple of GR_HEAD_UNIT, so that no warp starts without one */
} gr_head_parts;

enum { GR_HEAD_UNIT = 64, GR_HEAD_EACH = 128 };

GR_EVERYWHERE gr_head_parts gr_head_parts_of(gr_heads h, int64_t each_q, int64_t each_k) {
    gr_head_parts p;
    p.each_q = each_q;
    p.each_k = each_k;
    p.n_q = gr_ceil_div(h.n_row * h.n_q, each_q);
    p.n_k = gr_ceil_div(h.n_row * h.n_k, each_k);
    return p;
}

GR_EVERYWHERE gr_head_parts gr_head_parts_forward(gr_heads h) {
    return gr_head_parts_of(h, GR_HEAD_EACH, GR_HEAD_EACH);
}

/* At most GR_PARTIAL_MAX parts of each kind. */
GR_EVERYWHERE gr_head_parts gr_head_parts_backward(gr_heads h) {
    return gr_head_parts_of(
        h, gr_partial_each(h.n_row * h.n_q, GR_HEAD_UNIT), gr_partial_each(h.n_row * h.n_k, GR_HEAD_UNIT));
}

/* n heads from the one at `head` of those of their kind in `row` on. */
typedef struct gr_head_part {
    int64_t row;
    int n;
    uint32_t head, n_head; /* n_head: of this kind in a row */
    uint32_t column;       /* of the kind's first head in a row */
    uint32_t position, T;  /* of `row` */
    bool is_key;
} gr_head_part;

GR_EVERYWHERE gr_head_part gr_head_part_of(gr_heads h, gr_head_parts parts, int64_t part) {
    gr_head_part p;
    p.is_key = part >= parts.n_q;
    const int64_t n_head = p.is_key ? h.n_k : h.n_q, each = p.is_key ? parts.each_k : parts.each_q;
    const int64_t first = (p.is_key ? part - parts.n_q : part) * each;
    p.row = first / n_head;
    p.n = (int)gr_at_most(each, h.n_row * n_head - first);
    p.head = (uint32_t)(first % n_head);
    p.n_head = (uint32_t)n_head;
    p.column = (uint32_t)(p.is_key ? h.n_q : 0);
    p.T = (uint32_t)h.T;
    p.position = h.T ? (uint32_t)(p.row % h.T) : 0;
    return p;
}

typedef struct gr_head_place {
    int64_t row;
    uint32_t column, position; /* which of all heads of the row; 0 where there are no positions */
} gr_head_place;

/* Of the part's head i. 32 bits do: parts are shorter than 2^31 heads, and so are rows and windows. */
GR_EVERYWHERE gr_head_place gr_head_place_of(const gr_head_part *p, int i) {
    const uint32_t from_row = p->head + (uint32_t)i, rows = from_row / p->n_head;
    gr_head_place at;
    at.row = p->row + rows;
    at.column = p->column + from_row % p->n_head;
    at.position = p->T ? (p->position + rows) % p->T : 0;
    return at;
}

enum { GR_HEAD_LANES_MAX = 32 };

/* Lanes that share a head of n_group groups of pairs, at most one each: a power of two, so that warps hold whole heads.
 * 0: the head is too wide for a warp. */
GR_EVERYWHERE int gr_head_lanes(int64_t n_group) {
    int lanes = 1;
    while (lanes < n_group && lanes < GR_HEAD_LANES_MAX)
        lanes *= 2;
    return lanes < n_group ? 0 : lanes;
}

/* ---------------------------------------------------------------- rows of one id (gradient of the embedding) */

/* Scratch of embed_backward as arrays of 32-bit words: places of its parts, all counted in words. */
typedef struct gr_embed_lists {
    int64_t cursor; /* [1]: rows that have a list so far */
    int64_t count;  /* [n_vocab]: rows of an id */
    int64_t start;  /* [n_vocab]: where an id's list begins */
    int64_t slot;   /* [n]: a row's place in its list before the lists are in order; 0: it speaks for its id */
    int64_t rough;  /* [n]: the lists, their rows in any order */
    int64_t list;   /* [n]: the lists, rows ascending */
    int64_t n_word;
    int64_t n_zero; /* words, from the first on, that must be 0 at the start */
} gr_embed_lists;

GR_EVERYWHERE gr_embed_lists gr_embed_lists_of(int64_t n, int64_t n_vocab) {
    gr_embed_lists l;
    l.cursor = 0;
    l.count = 1;
    l.n_zero = 1 + n_vocab;
    l.start = l.n_zero;
    l.slot = l.start + n_vocab;
    l.rough = l.slot + n;
    l.list = l.rough + n;
    l.n_word = l.list + n;
    return l;
}

/* ---------------------------------------------------------------- attention
 *
 * Scores of a block of query rows against all keys they may see, for several key/value heads at once. */

enum { GR_ATTEND_BLOCK_MIN = 16 };

/* What a block may take. */
typedef struct gr_attend_limits {
    int64_t n_query; /* rows: a power of two, at least GR_ATTEND_BLOCK_MIN */
    int64_t n_score; /* floats of one array of scores; more only for the smallest block */
} gr_attend_limits;

typedef struct gr_attend_tiles {
    int64_t n_query; /* query rows of a block */
    int64_t n_head;  /* key/value heads of a batch */
    int64_t ld;      /* elements between rows of scores: T up to the next multiple of 16 bytes of bf16 */
    int64_t n_score; /* elements of one array of scores: n_head * n_query * ld */
} gr_attend_tiles;

/* All heads and as many rows as the limit says; then fewer rows, then fewer heads, until the scores fit. */
GR_EVERYWHERE gr_attend_tiles gr_attend_tiles_of(gr_attend_limits most, int64_t T, int64_t H_kv) {
    gr_attend_tiles t;
    t.ld = gr_round_up(T, 8);
    t.n_head = H_kv;
    t.n_query = most.n_query;
    while (t.n_query > GR_ATTEND_BLOCK_MIN && (t.n_query >= 2 * T || t.n_head * t.n_query * t.ld > most.n_score))
        t.n_query /= 2;
    while (t.n_head > 1 && t.n_head * t.n_query * t.ld > most.n_score)
        t.n_head = gr_ceil_div(t.n_head, 2);
    t.n_score = t.n_head * t.n_query * t.ld;
    return t;
}

/* Keys [0, n) of the window that rows [first, first + n_query) may see. Documents lie on the device: they do not count
 * here. */
GR_EVERYWHERE int64_t gr_attend_keys(bool causal, int64_t T, int64_t first, int64_t n_query) {
    return causal ? first + n_query : T;
}

typedef struct gr_attend_seen {
    int64_t first, end; /* positions of keys in the window */
} gr_attend_seen;

/* What the row at `position` of its window sees; document_first and document_end are its own, NULL for one document. */
GR_EVERYWHERE gr_attend_seen gr_attend_seen_by(
    bool causal, int64_t T, int64_t position, const uint32_t *document_first, const uint32_t *document_end) {
    gr_attend_seen s;
    s.first = document_first ? (int64_t)*document_first : 0;
    s.end = causal ? position + 1 : document_end ? (int64_t)*document_end : T;
    return s;
}

/* Rows of a head in flash_backward.cu's scratch: whole blocks of queries, so that each is written, and whole stages. */
enum { GR_FLASH_PAD = 128 };
GR_EVERYWHERE int64_t gr_flash_padded(int64_t T) {
    return gr_round_up(T, GR_FLASH_PAD);
}

/* Arrays in an op's scratch: bytes from its start. Probabilities lie on the scores where both are fp32. */
typedef struct gr_attend_room {
    size_t scores, dscores; /* fp32 [n_score]; dscores in backward only */
    size_t p, ds;           /* act [n_score]; ds in backward only */
    size_t dk, dv;          /* fp32 [n_head, T, head_dim], backward only */
    size_t n_byte;
} gr_attend_room;

GR_EVERYWHERE size_t gr_room_take(size_t *used, int64_t n, size_t elem_size) {
    const size_t at = *used;
    *used = at + (size_t)gr_round_up((int64_t)((size_t)n * elem_size), 256);
    return at;
}

GR_EVERYWHERE gr_attend_room gr_attend_room_of(
    const gr_attend_tiles *t, int64_t T, int64_t head_dim, size_t elem_size, bool backward) {
    gr_attend_room r;
    size_t used = 0;
    r.scores = gr_room_take(&used, t->n_score, sizeof(float));
    r.dscores = gr_room_take(&used, backward ? t->n_score : 0, sizeof(float));
    r.p = elem_size == sizeof(float) ? r.scores : gr_room_take(&used, t->n_score, elem_size);
    r.ds = elem_size == sizeof(float) ? r.dscores : gr_room_take(&used, backward ? t->n_score : 0, elem_size);
    r.dk = gr_room_take(&used, backward ? t->n_head * T * head_dim : 0, sizeof(float));
    r.dv = gr_room_take(&used, backward ? t->n_head * T * head_dim : 0, sizeof(float));
    r.n_byte = used;
    return r;
}

/* ---------------------------------------------------------------- sums of doubles by token */

enum { GR_SUM_PARTS = 1024 };

/* Part p of GR_SUM_PARTS takes [p * each, (p + 1) * each) of n terms. */
GR_EVERYWHERE int64_t gr_sum_each(int64_t n) {
    return gr_ceil_div(n, GR_SUM_PARTS);
}

#endif
