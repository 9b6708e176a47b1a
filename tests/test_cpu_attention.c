/* Attention of the CPU backend: masks, documents, grouped heads, strides, window lengths around the block size. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static gr_backend *backend;

static int open_backend(void **state) {
    (void)state;
    return check_backend_open(&backend, CHECK_DTYPE);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

/* q, k and v share one row of H + 2 H_kv heads, as a fused projection leaves them; o has rows of its own. */
typedef struct attention_case {
    gr_attention a;
    int64_t n_row, n_q, n_kv, ld, ldo; /* n_q, n_kv: elements of a row */
    float *qkv, *o, *lse, *dout, *dqkv;
} attention_case;

/* gap: elements behind a row of o and dout. */
static attention_case open_attention_with(int64_t gap, gr_attention shape) {
    attention_case c = {.a = shape,
        .n_row = shape.n_window * shape.T,
        .n_q = shape.H * shape.head_dim,
        .n_kv = shape.H_kv * shape.head_dim};
    c.ld = c.n_q + 2 * c.n_kv;
    c.ldo = c.n_q + gap;
    c.qkv = check_random(1, c.n_row * c.ld);
    c.dqkv = check_poisoned(c.n_row * c.ld);
    c.o = check_poisoned(c.n_row * c.ldo);
    c.dout = check_random(2, c.n_row * c.ldo);
    c.lse = check_poisoned(shape.n_window * shape.H * shape.T);
    for (int64_t i = 0; i < c.n_row * c.ld; i++)
        c.qkv[i] *= 2; /* scores far enough from equal */
    c.a.ldq = c.a.ldk = c.a.ldv = c.ld;
    c.a.ldo = c.ldo;
    c.a.q = c.qkv;
    c.a.k = c.qkv + c.n_q;
    c.a.v = c.qkv + c.n_q + c.n_kv;
    c.a.o = c.o;
    c.a.lse = c.lse;
    return c;
}

/* Rows begin where vectors may, if heads do. */
static attention_case open_attention(gr_attention shape) {
    return open_attention_with(shape.head_dim % 8 == 0 ? 8 : 3, shape);
}

/* Backward's arguments, set apart: forward must not need them. */
static void add_backward(attention_case *c) {
    c->a.dout = c->dout;
    c->a.dq = c->dqkv;
    c->a.dk = c->dqkv + c->n_q;
    c->a.dv = c->dqkv + c->n_q + c->n_kv;
}

static void close_attention(attention_case *c) {
    free(c->qkv);
    free(c->dqkv);
    free(c->o);
    free(c->dout);
    free(c->lse);
}

/* `width` columns of a row of the fused array, from `first` on: packed floats, then their distance to the reference. */
static double column_error(const attention_case *c, int64_t first, int64_t width, const double *expected) {
    float *packed = check_poisoned(c->n_row * width);
    for (int64_t i = 0; i < c->n_row; i++)
        memcpy(packed + i * width, c->dqkv + i * c->ld + first, (size_t)width * sizeof *packed);
    double error = check_error(c->n_row * width, packed, expected);
    free(packed);
    return error;
}

static void check_backward(attention_case *c, const ref_attention *s) {
    double *dout = check_packed(c->n_row, c->n_q, c->ldo, c->dout), *dq = ref_alloc(c->n_row * c->n_q);
    double *dk = ref_alloc(c->n_row * c->n_kv), *dv = ref_alloc(c->n_row * c->n_kv);
    ref_attention_backward(s, dout, dq, dk, dv);
    add_backward(c);
    assert_int_equal(backend->attention_backward(backend, GR_LANE_COMPUTE, &c->a), 0);
    if (c->a.T > 1) { /* one key: the probability is 1 and neither q nor k matters; see below */
        assert_true(column_error(c, 0, c->n_q, dq) <= check_bound());
        assert_true(column_error(c, c->n_q, c->n_kv, dk) <= check_bound());
    }
    assert_true(column_error(c, c->n_q + c->n_kv, c->n_kv, dv) <= check_bound());
    free(dout);
    free(dq);
    free(dk);
    free(dv);
}

/* Forward, and backward if so, against the reference. */
static void check_case(attention_case *c, bool backward) {
    const gr_attention *a = &c->a;
    double *q = check_packed(c->n_row, c->n_q, c->ld, a->q), *k = check_packed(c->n_row, c->n_kv, c->ld, a->k);
    double *v = check_packed(c->n_row, c->n_kv, c->ld, a->v), *o = ref_alloc(c->n_row * c->n_q),
           *lse = ref_alloc(c->n_row * a->H);
    ref_attention s = {.causal = a->mask == GR_ATTEND_CAUSAL,
        .first = a->documents.first,
        .end = a->documents.end,
        .n_window = a->n_window,
        .T = a->T,
        .H = a->H,
        .H_kv = a->H_kv,
        .head_dim = a->head_dim,
        .q = q,
        .k = k,
        .v = v};
    ref_attention_forward(&s, o, lse);
    assert_int_equal(backend->attention_forward(backend, GR_LANE_COMPUTE, &c->a), 0);
    assert_true(check_rows_error(c->n_row, c->n_q, c->ldo, c->o, o) <= check_bound());
    assert_true(check_error(c->n_row * a->H, c->lse, lse) <= CHECK_F32);
    if (backward)
        check_backward(c, &s);
    free(q);
    free(k);
    free(v);
    free(o);
    free(lse);
}

static void check_shape(gr_attention shape) {
    attention_case c = open_attention(shape);
    check_case(&c, true);
    close_attention(&c);
}

static void check_attention(gr_attend mask, int64_t n_window, int64_t T, int64_t H, int64_t H_kv, int64_t head_dim) {
    check_shape((gr_attention){.mask = mask, .n_window = n_window, .T = T, .H = H, .H_kv = H_kv, .head_dim = head_dim});
}

static void attention_matches_the_reference_at_every_window_length(void **state) {
    (void)state;
    static const int64_t T[] = {1, 2, 63, 64, 65, 130, 257};
    for (size_t i = 0; i < sizeof T / sizeof *T; i++) {
        check_attention(GR_ATTEND_CAUSAL, 2, T[i], 2, 1, 20);
        check_attention(GR_ATTEND_BIDIRECTIONAL, 1, T[i], 2, 2, 6);
        check_attention(GR_ATTEND_CAUSAL, 2, T[i], 2, 1, 16);
        check_attention(GR_ATTEND_BIDIRECTIONAL, 1, T[i], 2, 2, 40);
    }
}

static void attention_matches_the_reference_for_every_grouping_of_heads(void **state) {
    (void)state;
    check_attention(GR_ATTEND_CAUSAL, 3, 33, 1, 1, 48);
    check_attention(GR_ATTEND_CAUSAL, 1, 70, 6, 6, 6);
    check_attention(GR_ATTEND_CAUSAL, 2, 70, 6, 3, 32);
    check_attention(GR_ATTEND_CAUSAL, 1, 150, 6, 2, 64);
    check_attention(GR_ATTEND_BIDIRECTIONAL, 1, 150, 4, 1, 128);
    check_attention(GR_ATTEND_CAUSAL, 0, 70, 6, 1, 16);
}

/* Documents that begin at position 0 and at each of begin[n_begin], ascending, of both windows; the second window has
 * them from the back: a border at i there is one at T - i. */
enum { N_DOCUMENT_WINDOW = 2, DOCUMENT_T_MAX = 200 };
typedef struct document_rows {
    uint32_t first[N_DOCUMENT_WINDOW * DOCUMENT_T_MAX], end[N_DOCUMENT_WINDOW * DOCUMENT_T_MAX];
} document_rows;

static void divide(uint32_t T, int n_begin, const uint32_t *begin, document_rows *rows) {
    for (uint32_t window = 0; window < N_DOCUMENT_WINDOW; window++) {
        uint32_t first = 0;
        for (int d = 0; d <= n_begin; d++) {
            uint32_t end = d == n_begin ? T : window == 0 ? begin[d] : T - begin[n_begin - 1 - d];
            for (uint32_t i = window * T + first; i < window * T + end; i++) {
                rows->first[i] = first;
                rows->end[i] = end;
            }
            first = end;
        }
    }
}

static gr_attention divided_shape(gr_attend mask, int64_t T, int64_t head_dim, const document_rows *rows) {
    return (gr_attention){.mask = mask,
        .documents = {rows->first, rows->end},
        .n_window = N_DOCUMENT_WINDOW,
        .T = T,
        .H = 4,
        .H_kv = 2,
        .head_dim = head_dim};
}

static void check_documents_with(int64_t head_dim, uint32_t T, int n_begin, const uint32_t *begin) {
    document_rows rows;
    divide(T, n_begin, begin, &rows);
    check_shape(divided_shape(GR_ATTEND_CAUSAL, T, head_dim, &rows));
    check_shape(divided_shape(GR_ATTEND_BIDIRECTIONAL, T, head_dim, &rows));
}

/* Heads that the kernels for bf16 take; in fp32 vectors may not read them. */
static const int64_t document_head = CHECK_DTYPE == GR_BF16 ? 24 : 12;

static void check_documents(uint32_t T, int n_begin, const uint32_t *begin) {
    check_documents_with(document_head, T, n_begin, begin);
}

static void documents_match_the_reference_wherever_they_begin(void **state) {
    (void)state;
    static const uint32_t border[] = {1, 2, 63, 64, 65, 127, 128, 129, 191, 199};
    const size_t step = CHECK_DTYPE == GR_BF16 ? 2 : 1; /* those between them are in the window of all */
    for (size_t i = 0; i < sizeof border / sizeof *border; i += step)
        check_documents(200, 1, &border[i]);
    check_documents(200, 10, border);
    check_documents(64, 1, (uint32_t[]){31});
    check_documents(65, 1, (uint32_t[]){64});
    check_documents(129, 3, (uint32_t[]){10, 70, 100});
    check_documents_with(36 - document_head, 200, 1, (uint32_t[]){65}); /* the other heads */
    check_documents_with(36 - document_head, 200, 10, border);
}

/* Rows that see one key: probability 1, nothing for q and k, so what flows must be exactly the value and its gradient.
 */
static void a_document_of_one_token_sees_itself(void **state) {
    (void)state;
    check_documents(200, 3, (uint32_t[]){63, 64, 65});
    document_rows rows;
    uint32_t every[69];
    for (uint32_t i = 0; i < 69; i++)
        every[i] = i + 1;
    divide(70, 69, every, &rows);
    for (int mask = 0; mask < 2; mask++) {
        attention_case c =
            open_attention(divided_shape(mask ? GR_ATTEND_BIDIRECTIONAL : GR_ATTEND_CAUSAL, 70, document_head, &rows));
        add_backward(&c);
        assert_int_equal(backend->attention_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
        assert_int_equal(backend->attention_backward(backend, GR_LANE_COMPUTE, &c.a), 0);
        for (int64_t i = 0; i < c.n_row; i++) {
            for (int64_t j = 0; j < c.n_q; j++) {
                int64_t v = c.n_q + c.n_kv + j / (2 * document_head) * document_head +
                            j % document_head; /* two query heads read one value head */
                assert_true(fabsf(c.o[i * c.ldo + j] - c.qkv[i * c.ld + v]) < 1e-5f);
            }
            for (int64_t j = 0; j < c.n_q + c.n_kv; j++)
                assert_true(fabsf(c.dqkv[i * c.ld + j]) < 1e-5f);
        }
        close_attention(&c);
    }
}

static void one_document_is_the_whole_window_bit_for_bit(void **state) {
    (void)state;
    document_rows rows;
    divide(130, 0, NULL, &rows);
    const gr_attention_kernels wanted = backend->attention;
    if (backend->attention_best ==
        GR_ATTENTION_CUDNN) /* which takes no documents, so others would compute one of both */
        backend->attention = GR_ATTENTION_FLASH;
    for (int mask = 0; mask < 2; mask++) {
        gr_attention shape =
            divided_shape(mask ? GR_ATTEND_BIDIRECTIONAL : GR_ATTEND_CAUSAL, 130, document_head, &rows);
        attention_case divided = open_attention(shape);
        shape.documents = (gr_documents){0};
        attention_case whole = open_attention(shape);
        attention_case *both[] = {&divided, &whole};
        for (int i = 0; i < 2; i++) {
            add_backward(both[i]);
            assert_int_equal(backend->attention_forward(backend, GR_LANE_COMPUTE, &both[i]->a), 0);
            assert_int_equal(backend->attention_backward(backend, GR_LANE_COMPUTE, &both[i]->a), 0);
        }
        assert_memory_equal(divided.o, whole.o, (size_t)(whole.n_row * whole.ldo) * sizeof *whole.o);
        assert_memory_equal(divided.dqkv, whole.dqkv, (size_t)(whole.n_row * whole.ld) * sizeof *whole.o);
        close_attention(&divided);
        close_attention(&whole);
    }
    backend->attention = wanted;
}

static void one_key_gives_its_value_and_no_gradient_to_scores(void **state) {
    (void)state;
    attention_case c = open_attention(
        (gr_attention){.mask = GR_ATTEND_CAUSAL, .n_window = 4, .T = 1, .H = 2, .H_kv = 2, .head_dim = 8});
    add_backward(&c);
    assert_int_equal(backend->attention_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_int_equal(backend->attention_backward(backend, GR_LANE_COMPUTE, &c.a), 0);
    for (int row = 0; row < 4; row++) {
        for (int64_t j = 0; j < c.n_q; j++) {
            float dq = c.dqkv[row * c.ld + j], dk = c.dqkv[row * c.ld + c.n_q + j];
            assert_true(dq < 1e-6f && dq > -1e-6f && dk < 1e-6f && dk > -1e-6f);
        }
    }
    close_attention(&c);
}

/* Scores of several hundred: the largest is taken out before any exponential. */
static void large_scores_do_not_overflow(void **state) {
    (void)state;
    attention_case c = open_attention(
        (gr_attention){.mask = GR_ATTEND_CAUSAL, .n_window = 1, .T = 9, .H = 1, .H_kv = 1, .head_dim = 4});
    for (int64_t i = 0; i < c.n_row * c.ld; i++)
        c.qkv[i] *= 100;
    assert_int_equal(backend->attention_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
    for (int64_t i = 0; i < c.n_row; i++)
        for (int64_t j = 0; j < c.n_q; j++)
            assert_true(c.o[i * c.ldo + j] >= -200 && c.o[i * c.ldo + j] <= 200);
    close_attention(&c);
}

/* Keys that grow along the window: a row's largest score so far is in ever another tile, far above the one before. */
static void scores_that_grow_along_the_window_match_the_reference(void **state) {
    (void)state;
    attention_case c = open_attention(
        (gr_attention){.mask = GR_ATTEND_CAUSAL, .n_window = 1, .T = 200, .H = 2, .H_kv = 1, .head_dim = 16});
    for (int64_t i = 0; i < c.n_row; i++)
        for (int64_t j = 0; j < c.n_kv; j++)
            c.qkv[i * c.ld + c.n_q + j] *= (float)(1 << i / 40);
    check_case(&c, false); /* rows see one key all but alone: what reaches q and k is rounding of o in bf16 */
    close_attention(&c);
}

static void a_nan_reaches_every_row_that_sees_it_and_no_other(void **state) {
    (void)state;
    attention_case c = open_attention(
        (gr_attention){.mask = GR_ATTEND_CAUSAL, .n_window = 1, .T = 100, .H = 1, .H_kv = 1, .head_dim = 16});
    c.qkv[70 * c.ld + c.n_q] = c.lse[0]; /* a key of position 70 becomes poison */
    assert_int_equal(backend->attention_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
    for (int64_t i = 0; i < 100; i++) {
        bool is_nan = c.o[i * c.ldo] != c.o[i * c.ldo];
        assert_int_equal(is_nan, i >= 70);
    }
    close_attention(&c);
}

static void results_do_not_depend_on_the_threads(void **state) {
    (void)state;
    float *o = NULL, *dqkv = NULL;
    for (int n_thread = 1; n_thread <= 3; n_thread++) {
        gr_backend *b;
        check_set_threads(n_thread);
        assert_int_equal(check_backend_open(&b, CHECK_DTYPE), 0);
        attention_case c = open_attention(
            (gr_attention){.mask = GR_ATTEND_CAUSAL, .n_window = 3, .T = 130, .H = 4, .H_kv = 2, .head_dim = 24});
        add_backward(&c);
        assert_int_equal(b->attention_forward(b, GR_LANE_COMPUTE, &c.a), 0);
        assert_int_equal(b->attention_backward(b, GR_LANE_COMPUTE, &c.a), 0);
        gr_backend_close(b);
        if (!o) {
            o = check_copy(c.n_row * c.ldo, c.o);
            dqkv = check_copy(c.n_row * c.ld, c.dqkv);
        }
        assert_memory_equal(c.o, o, (size_t)(c.n_row * c.ldo) * sizeof *o);
        assert_memory_equal(c.dqkv, dqkv, (size_t)(c.n_row * c.ld) * sizeof *o);
        close_attention(&c);
    }
    free(o);
    free(dqkv);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_matches_the_reference_at_every_window_length),
        cmocka_unit_test(attention_matches_the_reference_for_every_grouping_of_heads),
        cmocka_unit_test(documents_match_the_reference_wherever_they_begin),
        cmocka_unit_test(a_document_of_one_token_sees_itself),
        cmocka_unit_test(one_document_is_the_whole_window_bit_for_bit),
        cmocka_unit_test(one_key_gives_its_value_and_no_gradient_to_scores),
        cmocka_unit_test(large_scores_do_not_overflow),
        cmocka_unit_test(scores_that_grow_along_the_window_match_the_reference),
        cmocka_unit_test(a_nan_reaches_every_row_that_sees_it_and_no_other),
        cmocka_unit_test(results_do_not_depend_on_the_threads),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
