/* Mapping files: what was written is read again, and nothing that is not a whole, true mapping is. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/fold.h"

static const char path[] = "test_mapping.json";

static const gr_hash128 router = {.hi = 0x0123456789abcdef, .lo = 0xfedcba9876543210};

static const char folded[] = "{\n"
                             "  \"format\": \"grouter-mapping\",\n"
                             "  \"version\": 1,\n"
                             "  \"method\": \"affinity\",\n"
                             "  \"fold\": \"mean\",\n"
                             "  \"source_experts\": 5,\n"
                             "  \"target_experts\": 2,\n"
                             "  \"router\": \"0123456789abcdeffedcba9876543210\",\n"
                             "  \"tokens\": 400,\n"
                             "  \"groups\": [\n"
                             "    [0, 1, 3],\n"
                             "    [2, 4]\n"
                             "  ]\n"
                             "}\n";

static const char expanded[] = "{\n"
                               "  \"format\": \"grouter-mapping\",\n"
                               "  \"version\": 1,\n"
                               "  \"method\": \"expand\",\n"
                               "  \"fold\": \"sum\",\n"
                               "  \"source_experts\": 2,\n"
                               "  \"target_experts\": 5,\n"
                               "  \"new\": 3,\n"
                               "  \"router\": \"0123456789abcdeffedcba9876543210\",\n"
                               "  \"tokens\": 0,\n"
                               "  \"groups\": [\n"
                               "    [0],\n"
                               "    [1]\n"
                               "  ]\n"
                               "}\n";

static void write_text(const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void assert_file_is(const char *expected) {
    char *text;
    size_t n;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_DATA, &text, &n), 0);
    assert_string_equal(text, expected);
    free(text);
}

static void assert_same(const gr_mapping *a, const gr_mapping *b) {
    assert_int_equal(a->method, b->method);
    assert_int_equal(a->fold, b->fold);
    assert_int_equal(a->E_S, b->E_S);
    assert_int_equal(a->E_T, b->E_T);
    assert_int_equal(a->router.lo, b->router.lo);
    assert_int_equal(a->router.hi, b->router.hi);
    assert_int_equal(a->n_token, b->n_token);
    assert_int_equal(a->n_group, b->n_group);
    assert_memory_equal(a->offset, b->offset, (a->n_group + 1) * sizeof *a->offset);
    assert_memory_equal(a->member, b->member, a->E_S * sizeof *a->member);
}

static void test_the_file_is_the_one_documented(void **state) {
    (void)state;
    gr_mapping m;
    assert_int_equal(gr_mapping_open(&m, GR_FOLD_AFFINITY, 5, 2), 0);
    memcpy(m.member, (uint16_t[]){0, 1, 3, 2, 4}, 5 * sizeof *m.member);
    m.fold = GR_FOLD_MEAN;
    m.router = router;
    m.n_token = 400;
    assert_int_equal(gr_mapping_save(&m, path), 0);
    assert_file_is(folded);
    gr_mapping_close(&m);
    const gr_grouping g = {.method = GR_FOLD_EXPAND, .E_S = 2, .E_T = 5, .router = router};
    assert_int_equal(gr_mapping_group(&m, &g), 0);
    assert_int_equal(gr_mapping_save(&m, path), 0);
    assert_file_is(expanded);
    gr_mapping_close(&m);
}

static void test_every_method_is_read_as_it_was_written(void **state) {
    (void)state;
    gr_affinity a;
    assert_int_equal(gr_affinity_open(&a, 12), 0);
    for (uint32_t i = 0; i < 12; i++)
        a.load[i] = i * i % 7;
    *a.n_token = 9;
    for (int method = 0; method < GR_N_FOLD_METHOD; method++) {
        const uint32_t E_T = method == GR_FOLD_EXPAND ? 20 : 4;
        const gr_grouping g = {
            .method = (gr_fold_method)method, .E_S = 12, .E_T = E_T, .seed = 1, .affinity = &a, .router = router};
        gr_mapping written, read;
        assert_int_equal(gr_mapping_group(&written, &g), 0);
        assert_int_equal(gr_mapping_save(&written, path), 0);
        assert_int_equal(gr_mapping_load(&read, path), 0);
        assert_same(&read, &written);
        gr_mapping_close(&read);
        gr_mapping_close(&written);
    }
    gr_affinity_close(&a);
}

static void test_the_largest_mapping_is_read(void **state) {
    (void)state;
    const gr_grouping g = {.method = GR_FOLD_BLOCK, .E_S = GR_EXPERTS_MAX, .E_T = GR_EXPERTS_MAX};
    gr_mapping written, read;
    assert_int_equal(gr_mapping_group(&written, &g), 0);
    assert_int_equal(gr_mapping_save(&written, path), 0);
    assert_int_equal(gr_mapping_load(&read, path), 0);
    assert_same(&read, &written);
    gr_mapping_close(&read);
    gr_mapping_close(&written);
}

/* ---------------------------------------------------------------- hostile files */

/* `text` with its first `from` replaced must be refused, naming the line and then `part`. */
static void assert_refused(const char *text, const char *from, const char *to, const char *part) {
    char changed[2048];
    const char *at = strstr(text, from);
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_text(changed, strlen(changed));
    gr_mapping m;
    if (gr_mapping_load(&m, path) != GR_DATA)
        fail_msg("accepted with \"%s\" for \"%s\"", to, from);
    assert_null(m.member);
    if (!strstr(gr_error_text(), path) || !strstr(gr_error_text(), part))
        fail_msg("\"%s\" for \"%s\": \"%s\" is missing from: %s", to, from, part, gr_error_text());
}

static void test_wrong_fields_are_refused_by_name_line_and_value(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *part;
    } cases[] = {
        {"grouter-mapping", "grouter-map", ":2: \"format\": expected \"grouter-mapping\", got \"grouter-map\""},
        {"\"grouter-mapping\"", "[1]", ":2: \"format\""},
        {"\"version\": 1", "\"version\": 2", ":3: \"version\": expected a whole number from 1 to 1, got 2"},
        {"  \"version\": 1,\n", "", ":1: expected a member \"version\""},
        {"\"affinity\"", "\"affine\"", ":4: \"method\": expected the name of a fold method, got \"affine\""},
        {"\"affinity\"", "null", ":4: \"method\": expected the name of a fold method, got null"},
        {"\"mean\"", "\"max\"", ":5: \"fold\": expected \"sum\" or \"mean\", got \"max\""},
        {"\"mean\"", "true", ":5: \"fold\": expected \"sum\" or \"mean\", got true"},
        {": 5,", ": 0,", ":6: \"source_experts\": expected a whole number from 1 to 4096, got 0"},
        {": 5,", ": 5.0,", ":6: \"source_experts\""},
        {": 5,", ": 4097,", ":6: \"source_experts\""},
        {": 5,", ": 18446744073709551621,", ":6: \"source_experts\""},
        {": 2,", ": 6,", ":7: \"target_experts\": expected a whole number from 1 to 5, got 6"},
        {": 2,", ": 3,", ":10: \"groups\": expected an array of 3 groups, got an array of 2"},
        {"\"0123", "\"X123", ":8: \"router\": expected 32 hexadecimal digits"},
        {"3210\"", "321\"", ":8: \"router\""},
        {"3210\"", "32100\"", ":8: \"router\""},
        {"\"0123456789abcdeffedcba9876543210\"", "12", ":8: \"router\""},
        {"400", "-1", ":9: \"tokens\": expected a whole number from 0"},
        {"400", "{}", ":9: \"tokens\""},
        {"[\n    [0, 1, 3],\n    [2, 4]\n  ]", "7", ":10: \"groups\": expected an array of 2 groups, got 7"},
        {"[2, 4]", "{}", ":12: \"groups\": expected arrays of one or more expert ids, got an object"},
        {"[2, 4]", "[]", ":12: \"groups\": expected arrays of one or more expert ids, got an array of 0"},
        {"[2, 4]", "[2, 5]", ":12: \"groups\": expected ascending expert ids below 5 in a group, got 5"},
        {"[2, 4]", "[4, 2]", ":12: \"groups\": expected ascending expert ids below 5 in a group, got 2"},
        {"[2, 4]", "[2, 2]", ":12: \"groups\": expected ascending expert ids below 5 in a group, got 2"},
        {"[2, 4]", "[-1, 4]", ":12: \"groups\": expected ascending expert ids below 5 in a group, got -1"},
        {"[2, 4]", "[2, \"4\"]", ":12: \"groups\""},
        {"[2, 4]", "[1, 4]", ":12: \"groups\": expected each source expert in one group, got 1"},
        {"[2, 4]", "[2]", ":10: \"groups\": expected 5 ids in all groups together, got 4"},
        {"[2, 4]", "[[2], 4]", ":12:6: nested deeper"},
        {"\"tokens\"", "\"new\": 0, \"tokens\"", ":9: expected only members of a mapping, got \"new\""},
        {"\"tokens\"", "\"token\"", ":9: expected only members of a mapping, got \"token\""},
        {"\"tokens\"", "\"fold\": \"sum\", \"tokens\"", "duplicate"},
        {"\"affinity\"", "\"balance-reference\"", ":7: \"target_experts\": expected a divisor"},
        {"]\n}", "]\n} 1", "expected"},
        {"{\n", "[1, ", "expected"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_refused(folded, cases[i].from, cases[i].to, cases[i].part);
    write_text("[1]", 3);
    gr_mapping m;
    assert_int_equal(gr_mapping_load(&m, path), GR_DATA);
    assert_int_equal(gr_mapping_load(&m, "no-such-mapping.json"), GR_DATA);
}

static void test_wrong_expansions_are_refused(void **state) {
    (void)state;
    assert_refused(expanded, "\"sum\"", "\"mean\"", ":5: \"fold\": expected \"sum\", got \"mean\"");
    assert_refused(expanded, "\"new\": 3", "\"new\": 2", ":8: \"new\": expected a whole number from 3 to 3, got 2");
    assert_refused(expanded, "  \"new\": 3,\n", "", "expected a member \"new\"");
    assert_refused(expanded, ": 5,", ": 2,", ":7: \"target_experts\": expected a whole number from 3 to 4096");
    assert_refused(expanded, "[1]", "[0]", ":13: \"groups\"");
    assert_refused(expanded, "[0],\n    [1]", "[1],\n    [0]", ":12: \"groups\": expected every source expert alone");
    assert_refused(expanded, "[0]", "[0, 1]", ":12: \"groups\": expected every source expert alone");
}

static void test_repeated_experts_are_for_balance_reference_only(void **state) {
    (void)state;
    static const char text[] =
        "{\"format\": \"grouter-mapping\", \"version\": 1, \"method\": \"balance-reference\", \"fold\": \"sum\", "
        "\"source_experts\": 4, \"target_experts\": 2, \"router\": \"00000000000000000000000000000000\", "
        "\"tokens\": 1, \"groups\": [[1, 3], [1, 2]]}";
    write_text(text, strlen(text));
    gr_mapping m;
    assert_int_equal(gr_mapping_load(&m, path), 0);
    assert_int_equal(gr_mapping_used(&m), 3);
    gr_mapping_close(&m);
    assert_refused(text, "balance-reference", "balance", ":1: \"groups\": expected each source expert in one group");
    assert_refused(text, "[1, 2]", "[1, 2, 3]", ":1: \"groups\": expected as many ids");
}

static void test_cut_files_are_refused_and_flipped_ones_never_half_read(void **state) {
    (void)state;
    const size_t n = strlen(folded);
    char text[sizeof folded];
    for (size_t cut = 0; cut + 1 < n; cut++) { /* without the last newline it is still whole */
        write_text(folded, cut);
        gr_mapping m;
        assert_int_equal(gr_mapping_load(&m, path), GR_DATA);
    }
    for (size_t i = 0; i < n; i++)
        for (unsigned bit = i % 4; bit < 8; bit += 4) {
            memcpy(text, folded, n);
            text[i] = (char)(text[i] ^ (1 << bit));
            write_text(text, n);
            gr_mapping m;
            const gr_err err = gr_mapping_load(&m, path);
            assert_true(err == GR_DATA || err == GR_OK);
            if (!err)
                assert_int_equal(gr_mapping_used(&m), 5);
            gr_mapping_close(&m);
        }
}

static int remove_file(void **state) {
    (void)state;
    unlink(path);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_file_is_the_one_documented),
        cmocka_unit_test(test_every_method_is_read_as_it_was_written),
        cmocka_unit_test(test_the_largest_mapping_is_read),
        cmocka_unit_test(test_wrong_fields_are_refused_by_name_line_and_value),
        cmocka_unit_test(test_wrong_expansions_are_refused),
        cmocka_unit_test(test_repeated_experts_are_for_balance_reference_only),
        cmocka_unit_test(test_cut_files_are_refused_and_flipped_ones_never_half_read),
    };
    return cmocka_run_group_tests(tests, NULL, remove_file);
}
