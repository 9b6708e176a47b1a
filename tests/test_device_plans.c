/* test_device_plans.c: the file of tuned products comes back as it was written, and what is wrong in one is said with
 * its line. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "backend/device_plans.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME "test_device_plans.json"

static void write_text(const char *text) {
    gr_out *out;
    assert_int_equal(gr_out_open(&out, FILE_NAME), GR_OK);
    assert_int_equal(gr_out_write(out, text, strlen(text)), GR_OK);
    assert_int_equal(gr_out_commit(out), GR_OK);
    gr_out_close(out);
}

static gr_product_plan plan_of(gr_layout layout, int64_t m, uint8_t byte) {
    const gr_gemm g = {.layout = layout,
        .write = layout == GR_TN ? GR_ACCUMULATE : GR_OVERWRITE,
        .m = m,
        .n = 20,
        .k = 30,
        .lda = 1000,
        .ldb = 1001,
        .ldc = 1002,
        .c_dtype = layout == GR_TN ? GR_F32 : GR_BF16};
    gr_product_plan p = {.key = gr_product_key_with(&g, (gr_alignments){16, 8, 2}), .us = 12.5};
    for (int i = 0; i < GR_ALGORITHM_BYTES; i++)
        p.algorithm[i] = (uint8_t)(byte + i);
    return p;
}

static void what_is_written_is_read(void **state) {
    (void)state;
    gr_product_plan plan[] = {
        plan_of(GR_NT, 10, 0), plan_of(GR_NN, 10, 100), plan_of(GR_TN, 10, 200), plan_of(GR_NT, INT32_MAX, 255)};
    gr_product_plans plans = {.gpu = "GPU \"7\"", .cublas = "13.1.0", .dtype = GR_BF16, .n = 4, .plan = plan}, back;
    gr_out *out;
    assert_int_equal(gr_out_open(&out, FILE_NAME), GR_OK);
    assert_int_equal(gr_product_plans_write(&plans, out), GR_OK);
    assert_int_equal(gr_out_commit(out), GR_OK);
    gr_out_close(out);
    assert_int_equal(gr_product_plans_read(&back, FILE_NAME), GR_OK);
    assert_string_equal(back.gpu, plans.gpu);
    assert_string_equal(back.cublas, plans.cublas);
    assert_int_equal(back.dtype, GR_BF16);
    assert_int_equal(back.n, 4);
    for (int i = 0; i < 4; i++) {
        assert_memory_equal(&back.plan[i].key, &plan[i].key, sizeof plan[i].key);
        assert_memory_equal(back.plan[i].algorithm, plan[i].algorithm, GR_ALGORITHM_BYTES);
        assert_true(back.plan[i].us == 12.5);
        assert_int_equal(back.plan[i].line, 8 + 2 * i);
    }
    gr_product_plans_close(&back);
}

static void a_key_gives_its_product_back(void **state) {
    (void)state;
    const gr_product_plan p = plan_of(GR_TN, 7, 0);
    const gr_gemm g = gr_product_of_key(&p.key);
    const gr_alignments at = gr_product_alignments(&p.key);
    assert_int_equal(g.layout, GR_TN);
    assert_int_equal(g.write, GR_ACCUMULATE);
    assert_int_equal(g.c_dtype, GR_F32);
    assert_true(g.m == 7 && g.n == 20 && g.k == 30 && g.lda == 1000 && g.ldb == 1001 && g.ldc == 1002);
    assert_true(at.a == 16 && at.b == 8 && at.c == 2);
    const gr_product_key again = gr_product_key_with(&g, at);
    assert_memory_equal(&again, &p.key, sizeof again);
}

/* ---------------------------------------------------------------- wrong ones */

#define HEX16 "0123456789abcdef"
#define HEX128 HEX16 HEX16 HEX16 HEX16 HEX16 HEX16 HEX16 HEX16
#define HEAD                                                                                                           \
    "{\"format\": \"grouter-product-plans\", \"version\": 1, \"gpu\": \"g\", \"cublas\": \"c\", \"dtype\": "           \
    "\"bf16\",\n"
#define PLAN                                                                                                           \
    "{\"layout\": \"NT\", \"write\": \"overwrite\", \"c\": \"bf16\", \"m\": 8, \"n\": 9, \"k\": 10, \"lda\": 10, "     \
    "\"ldb\": 10, \"ldc\": 9, \"alignment\": [16, 16, 16], \"us\": 1, \"algorithm\": \"" HEX128 "\"}"
static const char good[] = HEAD "\"plans\": [\n" PLAN "]}";

/* The good file with `old` replaced where it is first: refused, naming line and found. */
static void check(const char *old, const char *new, int line, const char *expected, const char *found) {
    char text[8192], where[64];
    gr_product_plans plans;
    const char *at = strstr(good, old);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, new, at + strlen(old));
    write_text(text);
    snprintf(where, sizeof where, FILE_NAME ":%d:", line);
    assert_int_equal(gr_product_plans_read(&plans, FILE_NAME), GR_DATA);
    assert_non_null(strstr(gr_error_text(), where));
    assert_non_null(strstr(gr_error_text(), expected));
    assert_non_null(strstr(gr_error_text(), found));
    assert_null(plans.plan);
}

static void a_good_file_is_accepted(void **state) {
    (void)state;
    gr_product_plans plans;
    write_text(good);
    assert_int_equal(gr_product_plans_read(&plans, FILE_NAME), GR_OK);
    assert_int_equal(plans.n, 1);
    gr_product_plans_close(&plans);
}

static void the_head_is_checked(void **state) {
    (void)state;
    check("grouter-product-plans", "grouter-mapping", 1, "\"grouter-product-plans\"", "got \"grouter-mapping\"");
    check("\"version\": 1", "\"version\": 2", 1, "expected 1", "got 2");
    check("\"gpu\": \"g\", ", "", 1, "\"gpu\"", "got none");
    check("\"c\", \"dtype\"", "\"13.1.0.00000000000000000000000000\", \"dtype\"", 1, "a text of 1 to 31 bytes", "got");
    check("\"gpu\": \"g\"", "\"gpu\": \"\"", 1, "a text of 1 to 255 bytes", "got \"\"");
    check("\"dtype\": \"bf16\"", "\"dtype\": \"fp16\"", 1, "\"fp32\" or \"bf16\"", "got \"fp16\"");
    check("\"dtype\": \"bf16\"", "\"dtype\": \"fp32\"", 3, "fp32 or the file's dtype fp32", "got bf16");
    check("\"plans\": [\n" PLAN "]", "\"plans\": []", 2, "an array of 1 to 2048", "got");
    check("\"plans\"", "\"plan\"", 1, "\"plans\"", "got none");
}

static void each_value_of_a_plan_is_checked(void **state) {
    (void)state;
    check("\"NT\"", "\"TT\"", 3, "\"NT\" or \"NN\" or \"TN\"", "got \"TT\"");
    check("\"overwrite\"", "1", 3, "\"overwrite\" or \"accumulate\"", "got 1");
    check("\"m\": 8", "\"m\": 0", 3, "from 1 to 2147483647", "got 0");
    check("\"n\": 9", "\"n\": 2147483648", 3, "from 1 to 2147483647", "got 2147483648");
    check("\"k\": 10", "\"k\": 1e1", 3, "a whole number", "got 1e1");
    check("\"lda\": 10", "\"lda\": 9", 3, "from 10 to", "got 9");
    check("\"ldb\": 10", "\"ldb\": 9", 3, "from 10 to", "got 9");
    check("\"ldc\": 9", "\"ldc\": 8", 3, "from 9 to", "got 8");
    check("[16, 16, 16]", "[16, 16]", 3, "three of 1, 2, 4, 8 and 16", "got");
    check("[16, 16, 16]", "[16, 3, 16]", 3, "three of 1, 2, 4, 8 and 16", "got");
    check("[16, 16, 16]", "[16, 16, 32]", 3, "three of 1, 2, 4, 8 and 16", "got");
    check("\"us\": 1", "\"us\": -1", 3, "a number above 0", "got -1");
    check("\"" HEX16, "\"0123456789abcde", 3, "128 hexadecimal digits", "got");
    check("\"" HEX16, "\"0123456789abcdeg", 3, "128 hexadecimal digits", "got");
    check("\"" HEX16, "\"00" HEX16, 3, "128 hexadecimal digits", "got");
    check("\"" HEX16, "\"0123456789ABCDEF", 3, "128 hexadecimal digits", "got");
    check("]}", ",\n1]}", 4, "\"layout\"", "got none");
}

/* a [k, m] of a TN product has rows of m. */
static void leading_dimensions_follow_the_layout(void **state) {
    (void)state;
    check("\"NT\", \"write\": \"overwrite\", \"c\": \"bf16\", \"m\": 8",
        "\"TN\", \"write\": \"overwrite\", \"c\": \"bf16\", \"m\": 11", 3, "\"lda\": expected a whole number from 11",
        "got 10");
    check("\"NT\", \"write\": \"overwrite\", \"c\": \"bf16\", \"m\": 8, \"n\": 9",
        "\"NN\", \"write\": \"overwrite\", \"c\": \"bf16\", \"m\": 8, \"n\": 11", 3,
        "\"ldb\": expected a whole number from 11", "got 10");
}

static void a_product_is_there_once(void **state) {
    (void)state;
    check("]}", ",\n" PLAN "]}", 4, "that of line 3 again", "each product once");
}

static void what_is_no_json_or_too_much_of_it_is_refused(void **state) {
    (void)state;
    gr_product_plans plans;
    check("{\"format\"", "{format", 1, "", "");
    check("\"us\": 1", "\"us\": 1, \"us\": 2", 3, "us", "");
    assert_int_equal(gr_product_plans_read(&plans, "test_device_plans.absent"), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "cannot be opened"));
    char *text = malloc((3 << 20) + 1);
    assert_non_null(text);
    memset(text, ' ', 3 << 20);
    text[3 << 20] = 0;
    write_text(text);
    free(text);
    assert_int_equal(gr_product_plans_read(&plans, FILE_NAME), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "expected at most"));
}

/* The CPU reads and checks the file, and has nothing to use it for. */
static void a_backend_without_a_choice_checks_the_file_and_leaves_it(void **state) {
    (void)state;
    gr_backend *b;
    assert_int_equal(gr_backend_open(&b, "cpu", GR_F32), GR_OK);
    assert_int_equal(gr_backend_set_plans(b, ""), GR_OK);
    write_text(good);
    assert_int_equal(gr_backend_set_plans(b, FILE_NAME), GR_OK);
    write_text("{}");
    assert_int_equal(gr_backend_set_plans(b, FILE_NAME), GR_DATA);
    assert_int_equal(gr_backend_tune(b, true), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "cpu"));
    gr_backend_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(a_key_gives_its_product_back),
        cmocka_unit_test(a_good_file_is_accepted),
        cmocka_unit_test(the_head_is_checked),
        cmocka_unit_test(each_value_of_a_plan_is_checked),
        cmocka_unit_test(leading_dimensions_follow_the_layout),
        cmocka_unit_test(a_product_is_there_once),
        cmocka_unit_test(what_is_no_json_or_too_much_of_it_is_refused),
        cmocka_unit_test(a_backend_without_a_choice_checks_the_file_and_leaves_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
