/* cpu_attention.c: attention over packed windows, a block of query rows against all their keys at a time.
 *
 * Scratch is QUERY_BLOCK x T per thread. Forward takes one task per (window, head, query block). Backward takes one
 * per (window, key/value head) and adds query heads and blocks in order, so that every dk and dv has one owner. */
#include "cpu.h"

#include <math.h>
#include <string.h>

#define QUERY_BLOCK 64

/* One query block of one head. Pointers are to the block's first row, or to the first key that any of its rows sees. */
typedef struct block {
    int64_t first;                                 /* position of the first query row in its window */
    int64_t n_query;                               /* rows */
    int64_t first_key;                             /* position in the window */
    int64_t n_key;                                 /* keys that any of the rows may see, from first_key on */
    const uint32_t *document_first, *document_end; /* of the rows; NULL: one document */
    const gr_act *q, *dout, *o;
    const gr_act *k, *v;
    gr_act *dq, *dk, *dv;
    const float *lse; /* [n_query] */
} block;

/* Scratch of one thread. */
typedef struct attention_scratch {
    float *p, *dp; /* [QUERY_BLOCK, T]; dp in backward only */
    float *row;    /* [QUERY_BLOCK]: 1/sum in forward, delta in backward */
} attention_scratch;

static int64_t scratch_elements(const gr_attention *a, int64_t n_matrix) {
    return QUERY_BLOCK * (n_matrix * a->T + 1);
}

static attention_scratch scratch_of(const gr_attention *a, float *memory, int64_t n_matrix, int thread) {
    float *base = memory + thread * scratch_elements(a, n_matrix);
    return (attention_scratch){
        .row = base, .p = base + QUERY_BLOCK, .dp = n_matrix > 1 ? base + QUERY_BLOCK * (1 + a->T) : NULL};
}

static int64_t query_blocks(const gr_attention *a) {
    return (a->T + QUERY_BLOCK - 1) / QUERY_BLOCK;
}

/* Pointers that the caller does not have (outputs of the other direction) stay NULL. */
static block block_of(const gr_attention *a, int64_t window, int64_t head, int64_t index) {
    const int64_t first = index * QUERY_BLOCK, row = window * a->T + first;
    const int64_t left = a->T - first, n_query = left < QUERY_BLOCK ? left : QUERY_BLOCK;
    const int64_t column = head * a->head_dim, kv_column = head / (a->H / a->H_kv) * a->head_dim;
    const uint32_t *document_first = a->documents.first ? a->documents.first + row : NULL;
    const uint32_t *document_end = a->documents.end ? a->documents.end + row : NULL;
    const int64_t first_key = document_first ? document_first[0] : 0;
    const int64_t end_all = document_end ? document_end[n_query - 1] : a->T;
    const int64_t end_key = a->mask == GR_ATTEND_CAUSAL ? first + n_query : end_all;
    const int64_t key_row = window * a->T + first_key;
    const int64_t k = key_row * a->ldk + kv_column, v = key_row * a->ldv + kv_column;
    return (block){.first = first,
        .n_query = n_query,
        .first_key = first_key,
        .n_key = end_key - first_key,
        .document_first = document_first,
        .document_end = document_end,
        .q = (const gr_act *)a->q + row * a->ldq + column,
        .o = (const gr_act *)a->o + row * a->ldo + column,
        .dout = a->dout ? (const gr_act *)a->dout + row * a->ldo + column : NULL,
        .k = (const gr_act *)a->k + k,
        .v = (const gr_act *)a->v + v,
        .dq = a->dq ? (gr_act *)a->dq + row * a->ldq + column : NULL,
        .dk = a->dk ? (gr_act *)a->dk + k : NULL,
        .dv = a->dv ? (gr_act *)a->dv + v : NULL,
        .lse = a->lse + (window * a->H + head) * a->T + first};
}

/* Keys that row i of the block sees, counted from the block's first. */
typedef struct keys {
    int64_t first, end;
} keys;

static keys keys_seen(const gr_attention *a, const block *t, int64_t i) {
    const int64_t first = t->document_first ? t->document_first[i] : 0;
    const int64_t end = t->document_end ? t->document_end[i] : a->T;
    return (keys){
        .first = first - t->first_key, .end = (a->mask == GR_ATTEND_CAUSAL ? t->first + i + 1 : end) - t->first_key};
}

/* Zeros for the keys that a row does not see. */
static void clear_unseen(keys seen, int64_t n_key, float *row) {
    memset(row, 0, (size_t)seen.first * sizeof *row);
    memset(row + seen.end, 0, (size_t)(n_key - seen.end) * sizeof *row);
}

static float scale_of(const gr_attention *a) {
    return 1.0f / sqrtf((float)a->head_dim);
}

/* ---------------------------------------------------------------- forward */

/* Scores to exp(scale (s - largest)), unseen keys to 0. Returns log-sum-exp of the scaled scores. */
static float softmax_row(keys seen, int64_t n_key, float scale, float *s, float *inverse_sum) {
    float largest = s[seen.first], sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = seen.first; j < seen.end; j++)
        largest = s[j] > largest ? s[j] : largest;
    const float shift = largest * scale;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = seen.first; j < seen.end; j++) {
        s[j] = gr_cpu_exp(s[j] * scale - shift);
        sum += s[j];
    }
    clear_unseen(seen, n_key, s);
    *inverse_sum = 1.0f / sum;
    return shift + logf(sum);
}

static int forward_block(const gr_attention *a, const block *t, attention_scratch s, gr_act *o, float *lse) {
    gr_gemm scores = {.layout = GR_NT,
        .m = t->n_query,
        .n = t->n_key,
        .k = a->head_dim,
        .a = t->q,
        .lda = a->ldq,
        .b = t->k,
        .ldb = a->ldk,
        .c = s.p,
        .ldc = t->n_key};
    int status = gr_cpu_gemm(&scores);
    for (int64_t i = 0; i < t->n_query; i++)
        lse[i] = softmax_row(keys_seen(a, t, i), t->n_key, scale_of(a), s.p + i * t->n_key, &s.row[i]);
    gr_gemm mix = {.layout = GR_NN,
        .m = t->n_query,
        .n = a->head_dim,
        .k = t->n_key,
        .a = s.p,
        .lda = t->n_key,
        .b = t->v,
        .ldb = a->ldv,
        .c = o,
        .ldc = a->ldo};
    status |= gr_cpu_gemm(&mix);
    for (int64_t i = 0; i < t->n_query; i++) {
#pragma omp simd
        for (int64_t c = 0; c < a->head_dim; c++)
            o[i * a->ldo + c] *= s.row[i];
    }
    return status;
}

gr_err gr_cpu_attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    (void)lane;
    const int n_thread = ((const gr_cpu *)b->state)->n_thread;
    const int64_t n_block = query_blocks(a), n_task = a->n_window * a->H * n_block;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)(n_thread * scratch_elements(a, 1)) * sizeof(float), &memory));
    int next_thread = 0, failed = 0;
#pragma omp parallel num_threads(n_thread) reduction(| : failed)
    {
        int thread;
#pragma omp atomic capture
        thread = next_thread++;
        attention_scratch s = scratch_of(a, memory, 1, thread);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_task; task++) {
            /* The longest blocks of a causal window come first: the threads finish together. */
            int64_t index = n_block - 1 - task / (a->n_window * a->H), head = task % a->H;
            int64_t window = task / a->H % a->n_window;
            block t = block_of(a, window, head, index);
            gr_act *o = (gr_act *)a->o + (window * a->T + t.first) * a->ldo + head * a->head_dim;
            failed |= forward_block(a, &t, s, o, a->lse + (window * a->H + head) * a->T + t.first);
        }
    }
    return gr_cpu_gemm_check(failed);
}

/* ---------------------------------------------------------------- backward */

/* s: scores to probabilities; d: dout v^T to scale * p * (d - delta), the gradient of q k^T. */
static void gradient_row(keys seen, int64_t n_key, float scale, float lse, float delta, float *s, float *d) {
#pragma omp simd
    for (int64_t j = seen.first; j < seen.end; j++) {
        const float p = gr_cpu_exp(s[j] * scale - lse);
        s[j] = p;
        d[j] = scale * p * (d[j] - delta);
    }
    clear_unseen(seen, n_key, s);
    clear_unseen(seen, n_key, d);
}

/* <dout, o> of each row: the sum over keys of p times dp. */
static void deltas(const gr_attention *a, const block *t, float *delta) {
    for (int64_t i = 0; i < t->n_query; i++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a->head_dim; c++)
            sum += t->dout[i * a->ldo + c] * t->o[i * a->ldo + c];
        delta[i] = sum;
    }
}

/* Adds this block to dk and dv, sets dq. */
static int backward_block(const gr_attention *a, const block *t, attention_scratch s) {
    const int64_t m = t->n_query, n = t->n_key, hd = a->head_dim;
    const gr_gemm before[] = {
        {.layout = GR_NT,
            .m = m,
            .n = n,
            .k = hd,
            .a = t->q,
            .lda = a->ldq,
            .b = t->k,
            .ldb = a->ldk,
            .c = s.p,
            .ldc = n},
        {.layout = GR_NT,
            .m = m,
            .n = n,
            .k = hd,
            .a = t->dout,
            .lda = a->ldo,
            .b = t->v,
            .ldb = a->ldv,
            .c = s.dp,
            .ldc = n},
    };
    const gr_gemm after[] = {
        {.layout = GR_TN,
            .write = GR_ACCUMULATE,
            .m = n,
            .n = hd,
            .k = m,
            .a = s.p,
            .lda = n,
            .b = t->dout,
            .ldb = a->ldo,
            .c = t->dv,
            .ldc = a->ldv},
        {.layout = GR_TN,
            .write = GR_ACCUMULATE,
            .m = n,
            .n = hd,
            .k = m,
            .a = s.dp,
            .lda = n,
            .b = t->q,
            .ldb = a->ldq,
            .c = t->dk,
            .ldc = a->ldk},
        {.layout = GR_NN,
            .m = m,
            .n = hd,
            .k = n,
            .a = s.dp,
            .lda = n,
            .b = t->k,
            .ldb = a->ldk,
            .c = t->dq,
            .ldc = a->ldq},
    };
    int status = gr_cpu_gemm(&before[0]) | gr_cpu_gemm(&before[1]);
    deltas(a, t, s.row);
    for (int64_t i = 0; i < m; i++)
        gradient_row(keys_seen(a, t, i), n, scale_of(a), t->lse[i], s.row[i], s.p + i * n, s.dp + i * n);
    for (size_t i = 0; i < sizeof after / sizeof *after; i++)
        status |= gr_cpu_gemm(&after[i]);
    return status;
}

/* All query heads of one key/value head of one window, in order. */
static int backward_task(const gr_attention *a, int64_t window, int64_t kv_head, attention_scratch s) {
    const int64_t group = a->H / a->H_kv;
    int status = 0;
    for (int64_t i = 0; i < a->T; i++) {
        const int64_t row = window * a->T + i, column = kv_head * a->head_dim;
        memset((gr_act *)a->dk + row * a->ldk + column, 0, (size_t)a->head_dim * sizeof(gr_act));
        memset((gr_act *)a->dv + row * a->ldv + column, 0, (size_t)a->head_dim * sizeof(gr_act));
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (int64_t index = 0; index < query_blocks(a); index++) {
            block t = block_of(a, window, head, index);
            status |= backward_block(a, &t, s);
        }
    }
    return status;
}

gr_err gr_cpu_attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    (void)lane;
    const int n_thread = ((const gr_cpu *)b->state)->n_thread;
    const int64_t n_task = a->n_window * a->H_kv;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)(n_thread * scratch_elements(a, 2)) * sizeof(float), &memory));
    int next_thread = 0, failed = 0;
#pragma omp parallel num_threads(n_thread) reduction(| : failed)
    {
        int thread;
#pragma omp atomic capture
        thread = next_thread++;
        attention_scratch s = scratch_of(a, memory, 2, thread);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_task; task++)
            failed |= backward_task(a, task / a->H_kv, task % a->H_kv, s);
    }
    return gr_cpu_gemm_check(failed);
}
