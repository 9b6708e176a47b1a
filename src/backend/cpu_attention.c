/* cpu_attention.c: attention over packed windows, a block of query rows against all their keys at a time.
 *
 * Scratch is QUERY_BLOCK x T per thread, and with activations that are no floats T x head_dim for the sums of dk and
 * dv: every output is rounded once. Forward takes one task per (window, head, query block). Backward takes one per
 * (window, key/value head) and adds query heads and blocks in order, so that every dk and dv has one owner. */
#include "cpu_ops.h"

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

typedef enum direction { FORWARD, BACKWARD } direction;

/* Scratch of one thread. What activations in fp32 do in place is NULL then. */
typedef struct attention_scratch {
    float *p, *dp;          /* [QUERY_BLOCK, T]; dp in backward only */
    gr_act *p_act, *dp_act; /* the same as operands of the next product */
    float *row;             /* [QUERY_BLOCK]: 1/sum in forward, delta in backward */
    float *o;               /* [QUERY_BLOCK, head_dim], forward only */
    float *dk, *dv;         /* [T, head_dim], backward only */
} attention_scratch;

/* Places a thread's scratch at `memory` (NULL: only measures); returns its bytes. */
static size_t scratch_place(const gr_attention *a, direction way, void *memory, attention_scratch *s) {
    gr_arena arena = {.base = memory, .size = SIZE_MAX};
    const int64_t n = QUERY_BLOCK * a->T, n_backward = way == BACKWARD ? n : 0;
    s->row = GR_TAKE(&arena, QUERY_BLOCK, float);
    s->p = GR_TAKE(&arena, n, float);
    s->dp = GR_TAKE(&arena, n_backward, float);
    s->p_act = GR_TAKE(&arena, GR_ACT_ROOM * n, gr_act);
    s->dp_act = GR_TAKE(&arena, GR_ACT_ROOM * n_backward, gr_act);
    s->o = GR_TAKE(&arena, way == FORWARD ? GR_ACT_ROOM * QUERY_BLOCK * a->head_dim : 0, float);
    s->dk = GR_TAKE(&arena, way == BACKWARD ? GR_ACT_ROOM * a->T * a->head_dim : 0, float);
    s->dv = GR_TAKE(&arena, way == BACKWARD ? GR_ACT_ROOM * a->T * a->head_dim : 0, float);
    return arena.used;
}

static attention_scratch scratch_of(const gr_attention *a, direction way, void *memory, int thread) {
    attention_scratch s;
    size_t each = scratch_place(a, way, NULL, &s);
    scratch_place(a, way, (char *)memory + (size_t)thread * each, &s);
    return s;
}

static gr_err scratch_open(gr_backend *b, const gr_attention *a, direction way, void **memory) {
    attention_scratch s;
    const gr_cpu *cpu = b->state;
    return gr_cpu_scratch(b, (size_t)cpu->n_thread * scratch_place(a, way, NULL, &s), memory);
}

/* Elements between rows of sums: of the activations themselves, or of a thread's own room. */
static int64_t sums_ld(const gr_attention *a, int64_t ld) {
    return GR_ACT_ROOM ? a->head_dim : ld;
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
static void clear_unseen(keys seen, int64_t n_key, gr_act *row) {
    memset(row, 0, (size_t)seen.first * sizeof *row);
    memset(row + seen.end, 0, (size_t)(n_key - seen.end) * sizeof *row);
}

static float scale_of(const gr_attention *a) {
    return 1.0f / sqrtf((float)a->head_dim);
}

/* ---------------------------------------------------------------- forward */

/* p = exp(scale (s - largest)), unseen keys 0; p may lie where s does. Returns log-sum-exp of the scaled scores. */
static float softmax_row(keys seen, int64_t n_key, float scale, const float *s, gr_act *p, float *inverse_sum) {
    float largest = s[seen.first], sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = seen.first; j < seen.end; j++)
        largest = s[j] > largest ? s[j] : largest;
    const float shift = largest * scale;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = seen.first; j < seen.end; j++) {
        const float e = gr_cpu_exp(s[j] * scale - shift);
        p[j] = gr_act_store(e);
        sum += e;
    }
    clear_unseen(seen, n_key, p);
    *inverse_sum = 1.0f / sum;
    return shift + logf(sum);
}

static int forward_block(
    const gr_cpu *cpu, const gr_attention *a, const block *t, const attention_scratch *s, gr_act *o, float *lse) {
    gr_act *p = gr_act_operand(s->p, s->p_act);
    float *sums = gr_act_floats(o, s->o);
    const int64_t ld = sums_ld(a, a->ldo);
    const gr_gemm scores = {.layout = GR_NT,
        .m = t->n_query,
        .n = t->n_key,
        .k = a->head_dim,
        .a = t->q,
        .lda = a->ldq,
        .b = t->k,
        .ldb = a->ldk,
        .c = s->p,
        .ldc = t->n_key,
        .c_dtype = GR_F32};
    int status = GR_CPU(gemm)(cpu, &scores);
    for (int64_t i = 0; i < t->n_query; i++)
        lse[i] =
            softmax_row(keys_seen(a, t, i), t->n_key, scale_of(a), s->p + i * t->n_key, p + i * t->n_key, &s->row[i]);
    const gr_gemm mix = {.layout = GR_NN,
        .m = t->n_query,
        .n = a->head_dim,
        .k = t->n_key,
        .a = p,
        .lda = t->n_key,
        .b = t->v,
        .ldb = a->ldv,
        .c = sums,
        .ldc = ld,
        .c_dtype = GR_F32};
    status |= GR_CPU(gemm)(cpu, &mix);
    for (int64_t i = 0; i < t->n_query; i++) {
#pragma omp simd
        for (int64_t c = 0; c < a->head_dim; c++)
            o[i * a->ldo + c] = gr_act_store(sums[i * ld + c] * s->row[i]);
    }
    return status;
}

gr_err GR_CPU(attention_forward)(gr_backend *b, gr_lane lane, const gr_attention *a) {
    (void)lane;
    const gr_cpu *cpu = b->state;
    const int64_t n_block = query_blocks(a), n_task = a->n_window * a->H * n_block;
    void *memory = NULL;
    GR_TRY(scratch_open(b, a, FORWARD, &memory));
    int next_thread = 0, failed = 0;
#pragma omp parallel num_threads(cpu->n_thread) reduction(| : failed)
    {
        int thread;
#pragma omp atomic capture
        thread = next_thread++;
        attention_scratch s = scratch_of(a, FORWARD, memory, thread);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_task; task++) {
            /* The longest blocks of a causal window come first: the threads finish together. */
            int64_t index = n_block - 1 - task / (a->n_window * a->H), head = task % a->H;
            int64_t window = task / a->H % a->n_window;
            block t = block_of(a, window, head, index);
            gr_act *o = (gr_act *)a->o + (window * a->T + t.first) * a->ldo + head * a->head_dim;
            failed |= forward_block(cpu, a, &t, &s, o, a->lse + (window * a->H + head) * a->T + t.first);
        }
    }
    return gr_cpu_gemm_check(failed);
}

/* ---------------------------------------------------------------- backward */

/* The sum over keys of p times dp for each row: <dout, o>, unless o is rounded: its error would stay in dp - delta when
 * both are nearly equal, as they are for the first tokens of a window. */
static void deltas(const gr_attention *a, const block *t, const attention_scratch *s) {
    for (int64_t i = 0; i < t->n_query && !GR_ACT_ROOM; i++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a->head_dim; c++)
            sum += gr_act_load(t->dout[i * a->ldo + c]) * gr_act_load(t->o[i * a->ldo + c]);
        s->row[i] = sum;
    }
    for (int64_t i = 0; i < t->n_query && GR_ACT_ROOM; i++) {
        const float *p = s->p + i * t->n_key, *dp = s->dp + i * t->n_key, scale = scale_of(a), lse = t->lse[i];
        const keys seen = keys_seen(a, t, i);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = seen.first; j < seen.end; j++)
            sum += gr_cpu_exp(p[j] * scale - lse) * dp[j];
        s->row[i] = sum;
    }
}

/* Row i of the block: scores to probabilities p; dout v^T to scale * p * (dp - delta), the gradient of q k^T. */
static void gradient_row(
    keys seen, int64_t n_key, float scale, float lse, const attention_scratch *scratch, int64_t i) {
    const float *s = scratch->p + i * n_key, *d = scratch->dp + i * n_key, delta = scratch->row[i];
    gr_act *p = gr_act_operand(scratch->p, scratch->p_act) + i * n_key;
    gr_act *dp = gr_act_operand(scratch->dp, scratch->dp_act) + i * n_key;
#pragma omp simd
    for (int64_t j = seen.first; j < seen.end; j++) {
        const float e = gr_cpu_exp(s[j] * scale - lse);
        p[j] = gr_act_store(e);
        dp[j] = gr_act_store(scale * e * (d[j] - delta));
    }
    clear_unseen(seen, n_key, p);
    clear_unseen(seen, n_key, dp);
}

/* Scores and dout v^T of the block. */
static int products_before(const gr_cpu *cpu, const gr_attention *a, const block *t, const attention_scratch *s) {
    const gr_gemm scores = {.layout = GR_NT,
        .m = t->n_query,
        .n = t->n_key,
        .k = a->head_dim,
        .a = t->q,
        .lda = a->ldq,
        .b = t->k,
        .ldb = a->ldk,
        .c = s->p,
        .ldc = t->n_key,
        .c_dtype = GR_F32};
    const gr_gemm mixed = {.layout = GR_NT,
        .m = t->n_query,
        .n = t->n_key,
        .k = a->head_dim,
        .a = t->dout,
        .lda = a->ldo,
        .b = t->v,
        .ldb = a->ldv,
        .c = s->dp,
        .ldc = t->n_key,
        .c_dtype = GR_F32};
    return GR_CPU(gemm)(cpu, &scores) | GR_CPU(gemm)(cpu, &mixed);
}

/* Where the sums of the block's first key are: t's pointers are there already, a thread's room begins with the window.
 */
static float *sums_of(const gr_attention *a, const block *t, gr_act *array, float *room) {
    float *sums = gr_act_floats(array, room);
    return GR_ACT_ROOM ? sums + t->first_key * a->head_dim : sums;
}

/* Adds this block to the sums dk and dv, sets dq. */
static int products_after(const gr_cpu *cpu, const gr_attention *a, const block *t, const attention_scratch *s) {
    const gr_act *p = gr_act_operand(s->p, s->p_act), *dp = gr_act_operand(s->dp, s->dp_act);
    const gr_gemm to_v = {.layout = GR_TN,
        .write = GR_ACCUMULATE,
        .m = t->n_key,
        .n = a->head_dim,
        .k = t->n_query,
        .a = p,
        .lda = t->n_key,
        .b = t->dout,
        .ldb = a->ldo,
        .c = sums_of(a, t, t->dv, s->dv),
        .ldc = sums_ld(a, a->ldv),
        .c_dtype = GR_F32};
    const gr_gemm to_k = {.layout = GR_TN,
        .write = GR_ACCUMULATE,
        .m = t->n_key,
        .n = a->head_dim,
        .k = t->n_query,
        .a = dp,
        .lda = t->n_key,
        .b = t->q,
        .ldb = a->ldq,
        .c = sums_of(a, t, t->dk, s->dk),
        .ldc = sums_ld(a, a->ldk),
        .c_dtype = GR_F32};
    const gr_gemm to_q = {.layout = GR_NN,
        .m = t->n_query,
        .n = a->head_dim,
        .k = t->n_key,
        .a = dp,
        .lda = t->n_key,
        .b = t->k,
        .ldb = a->ldk,
        .c = t->dq,
        .ldc = a->ldq,
        .c_dtype = GR_ACT_DTYPE};
    return GR_CPU(gemm)(cpu, &to_v) | GR_CPU(gemm)(cpu, &to_k) | GR_CPU(gemm)(cpu, &to_q);
}

static int backward_block(const gr_cpu *cpu, const gr_attention *a, const block *t, const attention_scratch *s) {
    int status = products_before(cpu, a, t, s);
    deltas(a, t, s);
    for (int64_t i = 0; i < t->n_query; i++)
        gradient_row(keys_seen(a, t, i), t->n_key, scale_of(a), t->lse[i], s, i);
    return status | products_after(cpu, a, t, s);
}

static void zero_sums(const gr_attention *a, float *sums, int64_t ld) {
    for (int64_t i = 0; i < a->T; i++)
        memset(sums + i * ld, 0, (size_t)a->head_dim * sizeof *sums);
}

static void round_sums(const gr_attention *a, const float *sums, gr_act *to, int64_t ld) {
    for (int64_t i = 0; i < a->T; i++)
        gr_act_round(a->head_dim, sums + i * sums_ld(a, ld), to + i * ld);
}

/* All query heads of one key/value head of one window, in order. */
static int backward_task(
    const gr_cpu *cpu, const gr_attention *a, int64_t window, int64_t kv_head, const attention_scratch *s) {
    const int64_t group = a->H / a->H_kv;
    const block first = block_of(a, window, kv_head * group, 0); /* its dk and dv are those of the whole task */
    float *dk = gr_act_floats(first.dk, s->dk), *dv = gr_act_floats(first.dv, s->dv);
    int status = 0;
    zero_sums(a, dk, sums_ld(a, a->ldk));
    zero_sums(a, dv, sums_ld(a, a->ldv));
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (int64_t index = 0; index < query_blocks(a); index++) {
            block t = block_of(a, window, head, index);
            status |= backward_block(cpu, a, &t, s);
        }
    }
    round_sums(a, dk, first.dk, a->ldk);
    round_sums(a, dv, first.dv, a->ldv);
    return status;
}

gr_err GR_CPU(attention_backward)(gr_backend *b, gr_lane lane, const gr_attention *a) {
    (void)lane;
    const gr_cpu *cpu = b->state;
    const int64_t n_task = a->n_window * a->H_kv;
    void *memory = NULL;
    GR_TRY(scratch_open(b, a, BACKWARD, &memory));
    int next_thread = 0, failed = 0;
#pragma omp parallel num_threads(cpu->n_thread) reduction(| : failed)
    {
        int thread;
#pragma omp atomic capture
        thread = next_thread++;
        attention_scratch s = scratch_of(a, BACKWARD, memory, thread);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_task; task++)
            failed |= backward_task(cpu, a, task / a->H_kv, task % a->H_kv, &s);
    }
    return gr_cpu_gemm_check(failed);
}
