/* device.h: what a backend of a device computes on the host: which device, which bytes of a staging ring, how a
 * column-major library is asked for a row-major product, which products share a plan. No device is needed for any of
 * it, so it is compiled and tested everywhere. */
#ifndef GROUTER_BACKEND_DEVICE_H
#define GROUTER_BACKEND_DEVICE_H

#include "kernels/geometry.h"

#include "grouter/backend.h"

/* Logits of a chunk: enough tokens (3539 of a vocabulary of 151,680) that reading the head's weights once more for each
 * chunk does not show. */
#define GR_DEVICE_LOGITS_ROOM ((size_t)2 << 30)
/* Scores of a part of attention by cuDNN, backward: two windows of 4096 tokens with 16 heads, 4096 tiles of 128 x 128
 * scores a head. */
#define GR_DEVICE_ATTEND_ROOM ((size_t)1 << 30)
/* Of a block of attention by cuBLAS 64 MiB of scores: 512 rows of a window of 4096 for 8 heads, which keeps the GPU
 * busy and stays near the second-level cache. */
#define GR_DEVICE_ATTEND_LIMITS ((gr_attend_limits){.n_query = 512, .n_score = 1 << 24})

/* ---------------------------------------------------------------- which device (device_choice.c) */

/* This process among those of its machine, as its launcher counts them; 0 where none says. */
int gr_device_local_rank(void);
/* Processes beyond the number of devices share them in turn. n_device > 0. */
int gr_device_choose(int local_rank, int n_device);

/* ---------------------------------------------------------------- staging ring (device_ring.c)
 * Bytes that the host fills and the device reads, in one order. A part is taken by the host, handed to a copy, and
 * dropped when the copy is done; parts are dropped in the order they were taken. */
#define GR_RING_PARTS 256
typedef struct gr_ring {
    size_t size;
    int oldest, n; /* parts in use: part[(oldest + i) % GR_RING_PARTS], i < n */
    struct {
        size_t begin, end;
    } part[GR_RING_PARTS];
} gr_ring;

/* The newest part: n_byte bytes, at most `size`, from *at on, 64-byte aligned; false while older parts are in the way.
 * An empty ring has room for any of them. */
bool gr_ring_take(gr_ring *r, size_t n_byte, size_t *at);
int gr_ring_newest(const gr_ring *r); /* its index in `part`, for an event of its own; a part was taken */
void gr_ring_drop(gr_ring *r);        /* the oldest; there is one */

/* ---------------------------------------------------------------- products (device_product.c) */

/* A row-major [m,n] matrix is the column-major [n,m] one of the same bytes, and c = op(a) op(b) is c' = op(b)' op(a)':
 * so a column-major library is given b as its left and a as its right operand, each as it lies in memory (rows x
 * columns, column-major, leading dimension ldb or lda) and turned (transposed) or not. The result is [n,m] with ldc. */
typedef struct gr_product_view {
    bool turn_left, turn_right;
    int64_t left_rows, left_columns;   /* of b */
    int64_t right_rows, right_columns; /* of a */
} gr_product_view;
gr_product_view gr_product_view_of(const gr_gemm *g);

/* Do the rows of a product change from call to call (an expert's pairs), or is its shape one of the model? Products
 * whose rows change share plans: their rows are rounded up to a quarter of their power of two, at least 16. */
typedef enum gr_rows { GR_ROWS_FIXED, GR_ROWS_CHANGE } gr_rows;

/* The product whose plan g uses: g itself, or with its rows (the inner dimension of a TN product) rounded up. The plan
 * follows from this and not from the product that came first, so that a run that goes on uses the same. */
gr_gemm gr_product_canonical(const gr_gemm *g, gr_rows rows);

/* What a plan depends on: shape, leading dimensions, layout, write, type of c, and the alignment of the addresses. */
typedef struct gr_product_key {
    int64_t m, n, k, lda, ldb, ldc;
    uint64_t kind;
} gr_product_key;
gr_product_key gr_product_key_of(const gr_gemm *canonical);
/* The same by the alignments, where there are no addresses; and back: a product without arrays. */
typedef struct gr_alignments {
    uint32_t a, b, c; /* powers of two up to 16, in bytes */
} gr_alignments;
gr_product_key gr_product_key_with(const gr_gemm *canonical, gr_alignments at);
gr_gemm gr_product_of_key(const gr_product_key *key);
gr_alignments gr_product_alignments(const gr_product_key *key);
/* The largest power of two up to 16 that divides the address: what the library's widest loads ask for. */
uint32_t gr_product_alignment(const void *p);

/* Keys and their numbers: the n-th distinct key is n. */
#define GR_PRODUCTS_MAX 4096
typedef struct gr_product_table {
    int n;
    gr_product_key key[GR_PRODUCTS_MAX];
    uint16_t slot[2 * GR_PRODUCTS_MAX]; /* 1 + number, by hash, then the next free one; 0: empty */
} gr_product_table;
/* The key's number, given to it now where it has none; -1 when the table is full. */
int gr_product_number(gr_product_table *t, const gr_product_key *key);

/* ---------------------------------------------------------------- attention by a library (device_attention.c) */

/* Whether cuDNN may be asked: bf16, heads of up to 256 whose rows begin at 16 bytes, windows of one document and of 64
 * tokens at least, since a plan takes seconds to make. */
bool gr_library_attends(gr_dtype dtype, const gr_attention *a);

/* Backward without atomics keeps a gradient of bf16 for each score of the windows and heads that it is called for: so
 * it is called for parts of the op, all of one size, after each other. */
typedef struct gr_attend_part {
    int64_t n_window; /* of a part; divides those of the op */
    int64_t H_kv;     /* likewise; all of them where a part has more windows than one */
} gr_attend_part;
/* The largest parts whose scores take at most n_byte; no windows where one key/value head takes more. The op has
 * windows. */
gr_attend_part gr_attend_part_of(const gr_attention *a, size_t n_byte);
/* In what parts cuDNN is asked: forward at once, backward with scores of at most n_byte; no windows where it is not
 * asked at all. */
gr_attend_part gr_library_part_of(gr_dtype dtype, const gr_attention *a, bool backward, size_t n_byte);
/* Bytes of one float for each row of each head of a part: what backward keeps beside the scores. */
size_t gr_library_sums(int64_t n_row);

/* ---------------------------------------------------------------- scratch of attention (device_attention.c) */

/* What a backend may do attention with. */
typedef struct gr_attend_means {
    gr_attention_kernels way; /* the last one that may be taken; AUTO: of all */
    size_t shared_max;        /* bytes of shared memory that a block may ask for */
    gr_attend_limits limits;  /* of blocks by cuBLAS */
    size_t room;              /* of scores of a part by cuDNN */
} gr_attend_means;
/* May this way be taken, as far as the choice goes? */
bool gr_attend_may(gr_attention_kernels chosen, gr_attention_kernels way);
bool gr_attend_may_flash(const gr_attend_means *m, gr_dtype dtype, const gr_attention *a);
/* The most bytes of scratch that any way takes which the op may go: those of cuDNN where it is asked, whether it has an
 * engine or not, and of the way after it. */
size_t gr_attend_scratch(const gr_attend_means *m, gr_dtype dtype, const gr_attention *a, bool backward);

#endif
