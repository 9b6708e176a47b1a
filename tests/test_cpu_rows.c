/* Rows by index on the CPU backend: gather, sums of a plan, embedding. Orders are fixed, so results are exact. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

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

static void gathered_rows_are_the_indexed_rows(void **state) {
    (void)state;
    static const uint32_t index[5] = {3, 0, 3, 6, 1};
    for (int64_t width = 1; width <= 33; width += 16) {
        float *in = check_random(1, 7 * width), *out = check_poisoned(5 * width);
        gr_gather a = {.n_row = 5, .width = width, .in = in, .index = index, .out = out};
        assert_int_equal(backend->gather_rows(backend, GR_LANE_COMPUTE, &a), 0);
        for (int r = 0; r < 5; r++)
            assert_memory_equal(out + r * width, in + index[r] * width, (size_t)width * sizeof *in);
        free(in);
        free(out);
    }
}

static void no_rows_are_legal(void **state) {
    (void)state;
    gr_gather gather = {.n_row = 0, .width = 4};
    gr_sum sum = {.n_row = 0, .width = 4};
    gr_embed embed = {.n = 0, .width = 4, .n_vocab = 3};
    assert_int_equal(backend->gather_rows(backend, GR_LANE_COMPUTE, &gather), 0);
    assert_int_equal(backend->sum_rows(backend, GR_LANE_COMPUTE, &sum), 0);
    assert_int_equal(backend->embed_forward(backend, GR_LANE_COMPUTE, &embed), 0);
    assert_int_equal(backend->embed_backward(backend, GR_LANE_COMPUTE, &embed), 0);
}

/* Row 0: one term of each list; 1: none; 2: several of the first; 3: several of the second. */
static const uint32_t offset0[5] = {0, 1, 1, 4, 4}, index0[4] = {5, 0, 2, 2};
static const uint32_t offset1[5] = {0, 1, 1, 1, 3}, index1[3] = {1, 0, 1};

static void expected_sums(const gr_sum *a, float *out) {
    for (int64_t i = 0; i < a->n_row * a->width; i++) {
        int64_t r = i / a->width, column = i % a->width;
        float sum = a->base ? ((const float *)a->base)[i] : 0;
        for (int s = 0; s < 2; s++) {
            const float *source = a->source[s];
            for (uint32_t j = a->offset[s][r]; source && j < a->offset[s][r + 1]; j++)
                sum += source[a->index[s][j] * a->width + column];
        }
        out[i] = check_stored(sum);
    }
}

static void check_sums(gr_sum *a, float *out) {
    float *expected = check_poisoned(a->n_row * a->width);
    expected_sums(a, expected);
    a->out = out;
    assert_int_equal(backend->sum_rows(backend, GR_LANE_COMPUTE, a), 0);
    assert_memory_equal(out, expected, (size_t)(a->n_row * a->width) * sizeof *out);
    free(expected);
}

static void sums_follow_their_lists_in_order(void **state) {
    (void)state;
    enum { WIDTH = 19 };
    float *first = check_random(1, 6 * WIDTH), *second = check_random(2, 2 * WIDTH), *base = check_random(3, 4 * WIDTH);
    float *out = check_poisoned(4 * WIDTH);
    gr_sum a = {
        .n_row = 4, .width = WIDTH, .source = {first, second}, .offset = {offset0, offset1}, .index = {index0, index1}};
    check_sums(&a, out);
    a.base = base;
    check_sums(&a, out);
    a.source[0] = NULL;
    check_sums(&a, out);
    a.source[1] = NULL;
    check_sums(&a, out);
    a.source[0] = first;
    check_sums(&a, base); /* in place */
    free(first);
    free(second);
    free(base);
    free(out);
}

static void embedded_rows_are_the_rows_of_the_table(void **state) {
    (void)state;
    static const uint32_t id[3] = {256, 0, 256};
    float *table = check_random(1, 257 * 5), *out = check_poisoned(3 * 5);
    gr_embed a = {.n = 3, .width = 5, .n_vocab = 257, .id = id, .table = table, .out = out};
    assert_int_equal(backend->embed_forward(backend, GR_LANE_COMPUTE, &a), 0);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(out + i * 5, table + id[i] * 5, 5 * sizeof *out);
    free(table);
    free(out);
}

static void check_embedding_gradients(int width) {
    enum { N = 501, V = 11 };
    uint32_t id[N];
    float *dout = check_random(1, N * width), *dtable = check_random(2, V * width);
    for (uint32_t i = 0; i < N; i++)
        id[i] = i * i % (V - 1); /* the last id never occurs */
    float *expected = check_copy(V * width, dtable), *start = check_copy(V * width, dtable);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < width; j++)
            expected[(int)id[i] * width + j] += dout[i * width + j];
    for (int n_thread = 1; n_thread <= 3; n_thread++) {
        gr_backend *b;
        check_set_threads(n_thread);
        assert_int_equal(check_backend_open(&b, CHECK_DTYPE), 0);
        memcpy(dtable, start, (size_t)(V * width) * sizeof *dtable);
        gr_embed a = {.n = N, .width = width, .n_vocab = V, .id = id, .dout = dout, .dtable = dtable};
        assert_int_equal(b->embed_backward(b, GR_LANE_COMPUTE, &a), 0);
        assert_memory_equal(dtable, expected, (size_t)(V * width) * sizeof *dtable);
        gr_backend_close(b);
    }
    free(dout);
    free(dtable);
    free(expected);
    free(start);
}

static void embedding_gradients_add_in_token_order_at_any_thread_count(void **state) {
    (void)state;
    check_embedding_gradients(21);
    check_embedding_gradients(24); /* vectors */
    check_embedding_gradients(2100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gathered_rows_are_the_indexed_rows),
        cmocka_unit_test(no_rows_are_legal),
        cmocka_unit_test(sums_follow_their_lists_in_order),
        cmocka_unit_test(embedded_rows_are_the_rows_of_the_table),
        cmocka_unit_test(embedding_gradients_add_in_token_order_at_any_thread_count),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
