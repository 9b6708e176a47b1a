/* Command lines: forms of options, what is refused and how, strict numbers. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "cmd/cmd.h"

enum { SET_MAX = 2, REST_MAX = 2 };

/* A command with one option of each kind. */
static struct {
    const char *out, *set[SET_MAX], *rest[REST_MAX];
    int n_set, n_fresh, n_rest;
} seen;

static gr_err parse(int argc, const char *const *argv) {
    memset(&seen, 0, sizeof seen);
    seen.n_set = seen.n_fresh = seen.n_rest = -1;
    const gr_option options[] = {
        {"--out", &seen.out, 1, NULL}, {"--set", seen.set, SET_MAX, &seen.n_set}, {"--fresh", NULL, 0, &seen.n_fresh}};
    return gr_options_parse(argc, (char **)argv, options, 3, seen.rest, REST_MAX, &seen.n_rest);
}

#define PARSE(...)                                                                                                     \
    parse((int)(sizeof((const char *[]){"cmd", __VA_ARGS__}) / sizeof(char *)), (const char *[]){"cmd", __VA_ARGS__})

#define ASSERT_REFUSED(error, ...)                                                                                     \
    do {                                                                                                               \
        assert_int_equal(PARSE(__VA_ARGS__), GR_USAGE);                                                                \
        if (!strstr(gr_error_text(), error))                                                                           \
            fail_msg("error:    %s\nexpected: %s", gr_error_text(), error);                                            \
    } while (0)

static void test_values_come_apart_or_after_an_equals_sign(void **state) {
    (void)state;
    assert_int_equal(PARSE("a", "--out", "x", "--set=k=v", "--fresh", "--set", "l=w", "b"), GR_OK);
    assert_string_equal(seen.out, "x");
    assert_int_equal(seen.n_set, 2);
    assert_string_equal(seen.set[0], "k=v");
    assert_string_equal(seen.set[1], "l=w");
    assert_int_equal(seen.n_fresh, 1);
    assert_int_equal(seen.n_rest, 2);
    assert_string_equal(seen.rest[0], "a");
    assert_string_equal(seen.rest[1], "b");
}

static void test_what_is_absent_counts_as_none(void **state) {
    (void)state;
    const char *none = "cmd";
    assert_int_equal(parse(1, &none), GR_OK);
    assert_null(seen.out);
    assert_int_equal(seen.n_set, 0);
    assert_int_equal(seen.n_fresh, 0);
    assert_int_equal(seen.n_rest, 0);
}

static void test_odd_values_are_possible(void **state) {
    (void)state;
    assert_int_equal(PARSE("--out=--fresh", "--set", "-1", "-", "--", "--set"), GR_OK);
    assert_string_equal(seen.out, "--fresh");
    assert_string_equal(seen.set[0], "-1");
    assert_string_equal(seen.rest[0], "-");
    assert_string_equal(seen.rest[1], "--set");
    assert_int_equal(seen.n_fresh, 0);
    assert_int_equal(PARSE("--out="), GR_OK);
    assert_string_equal(seen.out, "");
}

static void test_wrong_command_lines_are_refused(void **state) {
    (void)state;
    ASSERT_REFUSED("cmd: unknown option --sett: did you mean --set?", "--sett=1");
    ASSERT_REFUSED("cmd: unknown option --se: did you mean --set?", "--se");
    ASSERT_REFUSED("cmd: unknown option -o", "-o");
    ASSERT_REFUSED("cmd: unknown option --zzzzzzz; see grouter-train cmd --help", "--zzzzzzz");
    ASSERT_REFUSED("cmd: --out: expected a value after it", "--out");
    ASSERT_REFUSED("cmd: --out: expected a value after it, got the option --fresh", "--out", "--fresh");
    ASSERT_REFUSED("cmd: --out: given twice", "--out", "a", "--out", "b");
    ASSERT_REFUSED("cmd: --set: expected at most 2 times", "--set=a", "--set=b", "--set=c");
    ASSERT_REFUSED("cmd: --fresh takes no value, got \"1\"", "--fresh=1");
    ASSERT_REFUSED("cmd: unexpected argument \"c\"", "a", "b", "c");
}

static void test_integers_are_strict(void **state) {
    (void)state;
    uint64_t v = 0;
    assert_int_equal(gr_option_u64("--n", "18446744073709551615", 0, UINT64_MAX, &v), GR_OK);
    assert_true(v == UINT64_MAX);
    assert_int_equal(gr_option_u64("--n", "5", 5, 5, &v), GR_OK);
    static const char *const bad[] = {"", " 5", "5 ", "+5", "-5", "0x5", "5.0", "4", "6", "18446744073709551616"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        v = 77;
        assert_int_equal(gr_option_u64("--n", bad[i], 5, 5, &v), GR_USAGE);
        assert_true(v == 77);
    }
    assert_string_equal(gr_error_text(), "--n: expected an integer in [5, 5], got \"18446744073709551616\"");
    assert_int_equal(gr_option_u64("--n", "18446744073709551616", 0, UINT64_MAX, &v), GR_USAGE);
}

static void test_numbers_are_strict(void **state) {
    (void)state;
    double v = 0;
    assert_int_equal(gr_option_f64("--x", "-2.5e-1", -1, 1, &v), GR_OK);
    assert_true(v == -0.25);
    static const char *const bad[] = {"", "nan", "inf", " 1", "1 ", "0x1", "1e", "1e999", "1,0", "2", "-2", "--1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(gr_option_f64("--x", bad[i], -1, 1, &v), GR_USAGE);
    assert_string_equal(gr_error_text(), "--x: expected a number in [-1, 1], got \"--1\"");
}

static void test_the_nearest_name_is_a_typing_error_away(void **state) {
    (void)state;
    static const char *const names[] = {"tokens", "route", "train", "eval", "inspect", "token", "dir"};
    static const struct {
        const char *to, *nearest;
    } cases[] = {{"dri", "dir"}, {"tokens", "tokens"}, {"trian", "train"}, {"routes", "route"}, {"tokes", "tokens"},
        {"inpsect", "inspect"}, {"evl", "eval"}, {"train", "train"}, {"quux", NULL}, {"", NULL}, {"fine-tune", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gr_nearest nearest = {.to = cases[i].to};
        for (size_t j = 0; j < sizeof names / sizeof *names; j++)
            gr_nearest_offer(&nearest, names[j]);
        if (cases[i].nearest)
            assert_string_equal(nearest.name, cases[i].nearest);
        else
            assert_null(nearest.name);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_come_apart_or_after_an_equals_sign),
        cmocka_unit_test(test_what_is_absent_counts_as_none),
        cmocka_unit_test(test_odd_values_are_possible),
        cmocka_unit_test(test_wrong_command_lines_are_refused),
        cmocka_unit_test(test_integers_are_strict),
        cmocka_unit_test(test_numbers_are_strict),
        cmocka_unit_test(test_the_nearest_name_is_a_typing_error_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
