/* double_plans.c: algorithms of matrix products are chosen by the clock only where a backend is told to, are kept in a
 * file, and come back from it; over the doubles of the CUDA runtime and cuBLAS, whose times are made up. Numbers are
 * small and whole, so that every product is exact. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "backend/cuda_products.h"
#include "backend/device_plans.h"
#include "cuda_double.h"

#include <stdlib.h>
#include <string.h>

#define FILE_NAME "double_plans.json"
#define BAD_NAME "double_plans_bad.json"
enum { MOST = 64 * 64 };

/* What the model and the experts ask for: layouts, both ways of writing, both types of result, rows that change. */
typedef struct shape {
    gr_layout layout;
    gr_write write;
    gr_dtype c_dtype;
    gr_rows rows;
    int64_t m, n, k;
} shape;
static const shape shapes[] = {{GR_NT, GR_OVERWRITE, GR_BF16, GR_ROWS_FIXED, 32, 24, 16},
    {GR_NN, GR_ACCUMULATE, GR_BF16, GR_ROWS_FIXED, 32, 24, 16},
    {GR_TN, GR_ACCUMULATE, GR_F32, GR_ROWS_FIXED, 24, 16, 32},
    {GR_NT, GR_OVERWRITE, GR_BF16, GR_ROWS_CHANGE, 17, 40, 16},
    {GR_NT, GR_OVERWRITE, GR_BF16, GR_ROWS_CHANGE, 30, 40, 16},
    {GR_NT, GR_OVERWRITE, GR_BF16, GR_ROWS_CHANGE, 28, 40, 16}, /* 7 divides it: the double wants a plan of its own */
    {GR_TN, GR_ACCUMULATE, GR_F32, GR_ROWS_CHANGE, 24, 40, 17}};
enum { N_SHAPE = sizeof shapes / sizeof *shapes, N_PLAN = 6 /* 17 and 30 rows share one, 28 has one of its own */ };

/* A backend with arrays for one product. */
typedef struct bench {
    gr_backend *b;
    uint16_t *x, *y; /* [MOST], whole numbers */
    void *c;         /* [MOST] floats or bf16 */
} bench;

static void *memory_of(bench *t, size_t n_byte) {
    void *p;
    assert_int_equal(t->b->alloc(t->b, n_byte, "test", &p), GR_OK);
    return p;
}

static bench open_bench(void) {
    bench t = {0};
    uint16_t x[MOST], y[MOST];
    assert_int_equal(gr_backend_open(&t.b, "cuda", GR_BF16), GR_OK);
    t.x = memory_of(&t, sizeof x);
    t.y = memory_of(&t, sizeof y);
    t.c = memory_of(&t, MOST * sizeof(float));
    for (int i = 0; i < MOST; i++) {
        x[i] = gr_bf16_from_f32((float)(i * 7 % 5 - 2));
        y[i] = gr_bf16_from_f32((float)(i * 11 % 3 - 1));
    }
    assert_int_equal(t.b->upload(t.b, GR_LANE_COMPUTE, t.x, x, sizeof x), GR_OK);
    assert_int_equal(t.b->upload(t.b, GR_LANE_COMPUTE, t.y, y, sizeof y), GR_OK);
    return t;
}

static void close_bench(bench *t) {
    t->b->release(t->b, t->x);
    t->b->release(t->b, t->y);
    t->b->release(t->b, t->c);
    gr_backend_close(t->b);
}

static float x_at(int64_t i) {
    return (float)(i * 7 % 5 - 2);
}

static float y_at(int64_t i) {
    return (float)(i * 11 % 3 - 1);
}

/* What c has before: whole numbers too. */
static float before_at(int64_t i) {
    return (float)(i % 9);
}

static float expected_at(const shape *s, int64_t i, int64_t j) {
    float sum = s->write == GR_ACCUMULATE ? before_at(i * s->n + j) : 0;
    for (int64_t l = 0; l < s->k; l++) {
        const float x = x_at(s->layout == GR_TN ? l * s->m + i : i * s->k + l);
        sum += x * y_at(s->layout == GR_NT ? j * s->k + l : l * s->n + j);
    }
    return sum;
}

static void fill(bench *t, const shape *s) {
    float wide[MOST];
    uint16_t narrow[MOST];
    for (int i = 0; i < MOST; i++) {
        wide[i] = before_at(i);
        narrow[i] = gr_bf16_from_f32(wide[i]);
    }
    const bool is_wide = s->c_dtype == GR_F32;
    assert_int_equal(t->b->upload(t->b, GR_LANE_COMPUTE, t->c, is_wide ? (const void *)wide : narrow,
                         is_wide ? sizeof wide : sizeof narrow),
        GR_OK);
}

/* A product on the lane, and every element of it. */
static void check_product(bench *t, const shape *s) {
    float wide[MOST];
    const gr_gemm g = {.layout = s->layout,
        .write = s->write,
        .m = s->m,
        .n = s->n,
        .k = s->k,
        .a = t->x,
        .lda = s->layout == GR_TN ? s->m : s->k,
        .b = t->y,
        .ldb = s->layout == GR_NT ? s->k : s->n,
        .c = t->c,
        .ldc = s->n,
        .c_dtype = s->c_dtype};
    fill(t, s);
    assert_int_equal(gr_cuda_product(t->b, GR_LANE_COMPUTE, &g, s->rows), GR_OK);
    assert_int_equal(t->b->download(t->b, GR_LANE_COMPUTE, wide, t->c, sizeof wide), GR_OK);
    assert_int_equal(t->b->sync(t->b), GR_OK);
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n; j++) {
            const int64_t at = i * s->n + j;
            const float got = s->c_dtype == GR_F32 ? wide[at] : gr_f32_from_bf16(((uint16_t *)(void *)wide)[at]);
            assert_true(got == gr_f32_from_bf16(gr_bf16_from_f32(expected_at(s, i, j))));
        }
}

static void check_all(bench *t) {
    for (int i = 0; i < N_SHAPE; i++)
        check_product(t, &shapes[i]);
}

static void forget_counts(void) {
    double_n_timed = double_n_asked = 0;
    memset(double_n_product, 0, sizeof double_n_product);
}

/* Into the file, by a backend that tunes all shapes. */
static void tune(void) {
    bench t = open_bench();
    gr_out *out;
    assert_int_equal(gr_backend_tune(t.b, true), GR_OK);
    check_all(&t);
    assert_int_equal(gr_backend_tune(t.b, false), GR_OK);
    assert_int_equal(gr_out_open(&out, FILE_NAME), GR_OK);
    assert_int_equal(gr_backend_save_plans(t.b, out), GR_OK);
    assert_int_equal(gr_out_commit(out), GR_OK);
    gr_out_close(out);
    close_bench(&t);
}

/* ---------------------------------------------------------------- tests */

static void without_a_file_the_first_suggestion_is_taken_untimed(void **state) {
    (void)state;
    bench t = open_bench();
    forget_counts();
    check_all(&t);
    assert_int_equal(double_n_timed, 0);
    assert_int_equal(double_n_product[0], N_SHAPE);
    assert_int_equal(double_n_asked, N_PLAN);
    close_bench(&t);
}

/* The fifth suggestion is faster, but not allowed (the double ends the process where it is taken). */
static void tuning_finds_the_fastest_that_is_allowed(void **state) {
    (void)state;
    gr_product_plans plans;
    tune();
    assert_int_equal(gr_product_plans_read(&plans, FILE_NAME), GR_OK);
    assert_int_equal(plans.n, N_PLAN);
    assert_string_equal(plans.gpu, "double 0");
    assert_string_equal(plans.cublas, "13.1.0");
    assert_int_equal(plans.dtype, GR_BF16);
    for (int i = 0; i < plans.n; i++) {
        double_algorithm a;
        memcpy(&a, plans.plan[i].algorithm, sizeof a);
        assert_int_equal(a.number, DOUBLE_FASTEST);
        assert_true(plans.plan[i].us == 1e3 * double_ms_of(DOUBLE_FASTEST));
    }
    gr_product_plans_close(&plans);
}

static void a_product_that_is_tuned_is_right_and_is_so_again(void **state) {
    (void)state;
    bench t = open_bench();
    assert_int_equal(gr_backend_tune(t.b, true), GR_OK);
    forget_counts();
    check_all(&t);
    assert_true(double_n_timed > 0);
    assert_int_equal(gr_backend_tune(t.b, false), GR_OK);
    forget_counts();
    check_all(&t);
    assert_int_equal(double_n_timed, 0);
    assert_int_equal(double_n_asked, 0);
    assert_int_equal(double_n_product[DOUBLE_FASTEST], N_SHAPE);
    close_bench(&t);
}

/* Neither times anything nor asks the library, and takes the same algorithms twice. */
static void a_run_takes_what_the_file_says(void **state) {
    (void)state;
    tune();
    for (int run = 0; run < 2; run++) {
        bench t = open_bench();
        assert_int_equal(gr_backend_set_plans(t.b, FILE_NAME), GR_OK);
        forget_counts();
        check_all(&t);
        assert_int_equal(double_n_timed, 0);
        assert_int_equal(double_n_asked, 0);
        assert_int_equal(double_n_product[DOUBLE_FASTEST], N_SHAPE);
        assert_int_equal(((gr_cuda *)t.b->state)->products->n_unlisted, 0);
        close_bench(&t);
    }
}

static void other_products_take_the_first_suggestion_and_are_counted(void **state) {
    (void)state;
    const shape other = {GR_NT, GR_OVERWRITE, GR_BF16, GR_ROWS_FIXED, 40, 24, 16};
    tune();
    bench t = open_bench();
    assert_int_equal(gr_backend_set_plans(t.b, FILE_NAME), GR_OK);
    forget_counts();
    check_product(&t, &other);
    check_product(&t, &other);
    check_product(&t, &shapes[0]);
    assert_int_equal(double_n_timed, 0);
    assert_int_equal(double_n_product[0], 2);
    assert_int_equal(double_n_product[DOUBLE_FASTEST], 1);
    assert_int_equal(((gr_cuda *)t.b->state)->products->n_unlisted, 1);
    close_bench(&t);
}

/* The file with its first `old` replaced. */
static void change_file(const char *old, const char *new) {
    char *text;
    size_t n;
    gr_out *out;
    assert_int_equal(gr_file_read(FILE_NAME, 1 << 20, GR_DATA, &text, &n), GR_OK);
    char *at = strstr(text, old);
    assert_non_null(at);
    assert_int_equal(gr_out_open(&out, BAD_NAME), GR_OK);
    assert_int_equal(gr_out_write(out, text, (size_t)(at - text)), GR_OK);
    assert_int_equal(gr_out_write(out, new, strlen(new)), GR_OK);
    assert_int_equal(gr_out_write(out, at + strlen(old), strlen(at + strlen(old))), GR_OK);
    assert_int_equal(gr_out_commit(out), GR_OK);
    gr_out_close(out);
    free(text);
}

static void check_refused(const char *old, const char *new, const char *expected, const char *found) {
    bench t = open_bench();
    change_file(old, new);
    assert_int_equal(gr_backend_set_plans(t.b, BAD_NAME), GR_DATA);
    assert_non_null(strstr(gr_error_text(), BAD_NAME));
    assert_non_null(strstr(gr_error_text(), expected));
    assert_non_null(strstr(gr_error_text(), found));
    assert_non_null(strstr(gr_error_text(), "--tune-products"));
    close_bench(&t);
}

static void files_of_other_machines_are_refused(void **state) {
    (void)state;
    tune();
    check_refused("double 0", "double 7", "this GPU, \"double 0\"", "got ones for \"double 7\"");
    check_refused("13.1.0", "13.2.1", "this cuBLAS, \"13.1.0\"", "got ones for \"13.2.1\"");
    bench t = {0};
    assert_int_equal(gr_backend_open(&t.b, "cuda", GR_F32), GR_OK);
    assert_int_equal(gr_backend_set_plans(t.b, FILE_NAME), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "the dtype of this run, \"fp32\", got ones for \"bf16\""));
    gr_backend_close(t.b);
}

/* Of the first plan, whose rows are the double's columns: what it was chosen for, its alignment, its number. */
static void algorithms_that_the_library_does_not_take_are_refused(void **state) {
    (void)state;
    tune();
    check_refused("\"algorithm\": \"1800000000000000", "\"algorithm\": \"1900000000000000", "32 x 24 x 16",
        "cuBLAS does not accept it");
    check_refused("0300000000000000", "0500000000000000", ":8:", "cuBLAS does not accept it");
    check_refused("0300000000000000", "0400000000000000", ":8:", "it needs more workspace");
    check_refused("\"alignment\": [16, 16, 16]", "\"alignment\": [8, 16, 16]", ":8:", "it needs wider alignment");
    check_refused("\"alignment\": [16, 16, 16]", "\"alignment\": [16, 16, 4]", ":8:", "it needs wider alignment");
    check_refused("0300000000000000", "0200000000000000", ":8:", "it does not add in fp32");
}

static void nothing_tuned_is_no_file(void **state) {
    (void)state;
    bench t = open_bench();
    gr_out *out;
    check_all(&t); /* not told to tune */
    assert_int_equal(gr_out_open(&out, BAD_NAME), GR_OK);
    assert_int_equal(gr_backend_save_plans(t.b, out), GR_RESOURCE);
    gr_out_close(out);
    close_bench(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_file_the_first_suggestion_is_taken_untimed),
        cmocka_unit_test(tuning_finds_the_fastest_that_is_allowed),
        cmocka_unit_test(a_product_that_is_tuned_is_right_and_is_so_again),
        cmocka_unit_test(a_run_takes_what_the_file_says),
        cmocka_unit_test(other_products_take_the_first_suggestion_and_are_counted),
        cmocka_unit_test(files_of_other_machines_are_refused),
        cmocka_unit_test(algorithms_that_the_library_does_not_take_are_refused),
        cmocka_unit_test(nothing_tuned_is_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
