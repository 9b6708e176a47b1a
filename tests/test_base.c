/* Base: random numbers, bijection, bf16, arenas, files. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "grouter/base.h"

/* Known answers of the Random123 distribution (kat_vectors, philox4x32 10). */
static void philox_equals_the_published_vectors(void **state) {
    (void)state;
    uint32_t w[4];
    gr_philox(0, 0, 0, w);
    const uint32_t zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    assert_memory_equal(w, zero, sizeof w);
    gr_philox(UINT64_MAX, UINT64_MAX, UINT64_MAX, w);
    const uint32_t ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    assert_memory_equal(w, ones, sizeof w);
    gr_philox(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu, w);
    const uint32_t pi[4] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
    assert_memory_equal(w, pi, sizeof w);
}

static void bijection_visits_every_value_once(void **state) {
    (void)state;
    const uint64_t sizes[] = {1, 2, 3, 5, 64, 65, 1000, 4097};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t n = sizes[s];
        uint8_t *seen = calloc(n, 1);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t x = gr_bijection(7 + s, n, i);
            assert_true(x < n);
            assert_int_equal(seen[x]++, 0);
        }
        free(seen);
    }
}

static void bijection_depends_on_the_key_and_mixes(void **state) {
    (void)state;
    int fixed = 0, equal = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        fixed += gr_bijection(1, 1000, i) == i;
        equal += gr_bijection(1, 1000, i) == gr_bijection(2, 1000, i);
    }
    assert_in_range(fixed, 0, 12);
    assert_in_range(equal, 0, 12);
}

static void normal_numbers_have_mean_0_and_variance_1(void **state) {
    (void)state;
    double sum = 0, squares = 0;
    const int n = 100000;
    for (int i = 0; i < n; i++) {
        double x = gr_random_normal(3, 4, (uint64_t)i);
        sum += x;
        squares += x * x;
    }
    assert_true(fabs(sum / n) < 0.02);
    assert_true(fabs(squares / n - 1) < 0.02);
}

static void uniform_numbers_fill_their_range(void **state) {
    (void)state;
    int count[7] = {0};
    for (uint64_t i = 0; i < 70000; i++)
        count[gr_random_below(5, 6, i, 7)]++;
    for (int k = 0; k < 7; k++)
        assert_in_range(count[k], 9500, 10500);
}

/* Sign, five bits of exponent e, ten of fraction f: 2^(e-15) * (1 + f/1024), or 2^-14 * f/1024 for e = 0. */
static void f16_has_the_values_of_ieee_754(void **state) {
    (void)state;
    for (uint32_t u = 0; u <= 0xffff; u++) {
        int e = (int)(u >> 10 & 31), f = (int)(u & 1023);
        double value = e ? ldexp(1 + f / 1024.0, e - 15) : ldexp(f / 1024.0, -14);
        float x = gr_f32_from_f16((uint16_t)u);
        assert_int_equal(signbit(x) != 0 && !isnan(x), u >> 15 && !(e == 31 && f));
        if (e == 31)
            assert_true(f ? isnan(x) : isinf(x));
        else
            assert_true((double)fabsf(x) == value);
    }
}

static void bf16_rounds_to_nearest_even_and_keeps_nan(void **state) {
    (void)state;
    assert_int_equal(gr_bf16_from_f32(1.0f), 0x3f80);
    assert_int_equal(gr_bf16_from_f32(1.00390625f), 0x3f80); /* halfway: even below */
    assert_int_equal(gr_bf16_from_f32(1.01171875f), 0x3f82); /* halfway: even above */
    assert_int_equal(gr_bf16_from_f32(INFINITY), 0x7f80);
    assert_true(isnan(gr_f32_from_bf16(gr_bf16_from_f32(NAN))));
    for (uint32_t u = 0; u < 0x7f80; u++)
        assert_int_equal(gr_bf16_from_f32(gr_f32_from_bf16((uint16_t)u)), u);
}

static void arena_places_what_it_measured(void **state) {
    (void)state;
    gr_arena a = {0};
    for (int pass = 0; pass < 2; pass++) {
        char *p = GR_TAKE(&a, 3, char);
        double *q = GR_TAKE(&a, 5, double);
        assert_null(gr_arena_take(&a, 0, 8));
        if (pass) {
            assert_int_equal((uintptr_t)q % GR_ALIGN, (uintptr_t)a.base % GR_ALIGN);
            assert_ptr_equal((char *)q, p + GR_ALIGN);
            memset(q, 1, 5 * sizeof *q);
            break;
        }
        assert_null(p);
        assert_int_equal(a.peak, 2 * GR_ALIGN);
        size_t size = a.peak;
        void *base;
        assert_int_equal(gr_alloc(&base, size, 1, "test"), GR_OK);
        a = (gr_arena){.base = base, .size = size};
    }
    free(a.base);
}

static void arena_notes_sizes_that_overflow(void **state) {
    (void)state;
    gr_arena a = {0};
    assert_null(gr_arena_take(&a, SIZE_MAX / 4, 8));
    assert_true(a.overflow);
}

static void file_appears_only_when_committed(void **state) {
    (void)state;
    const char *path = "test_base.file";
    unlink(path);
    gr_out *o;
    assert_int_equal(gr_out_open(&o, path), GR_OK);
    assert_int_equal(gr_out_write(o, "abc", 3), GR_OK);
    assert_false(gr_path_exists(path));
    char temporary[256];
    snprintf(temporary, sizeof temporary, "%s", gr_out_temporary(o));
    gr_out_close(o);
    assert_false(gr_path_exists(temporary));
    assert_false(gr_path_exists(path));

    assert_int_equal(gr_out_open(&o, path), GR_OK);
    assert_int_equal(gr_out_printf(o, "%d-%s", 7, "x"), GR_OK);
    assert_int_equal(gr_out_commit(o), GR_OK);
    gr_out_close(o);
    char *text;
    size_t n;
    assert_int_equal(gr_file_read(path, 100, GR_DATA, &text, &n), GR_OK);
    assert_string_equal(text, "7-x");
    free(text);
    assert_int_equal(gr_file_read(path, 2, GR_DATA, &text, &n), GR_DATA);
    unlink(path);
}

static void only_regular_files_are_replaced(void **state) {
    (void)state;
    const char *fifo = "test_base.fifo", *folder = "test_base.folder";
    gr_out *o;
    unlink(fifo);
    rmdir(folder);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(gr_out_open(&o, fifo), GR_STORAGE);
    assert_null(o);
    assert_non_null(strstr(gr_error_text(), "test_base.fifo: expected a new name or a regular file"));
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(gr_out_open(&o, folder), GR_STORAGE);
    assert_non_null(strstr(gr_error_text(), "got a folder"));
    unlink(fifo);
    rmdir(folder);
}

static void paths_are_the_same_file_by_any_name(void **state) {
    (void)state;
    const char *a = "test_base.same", *b = "test_base.link";
    gr_out *o;
    unlink(b);
    assert_int_equal(gr_out_open(&o, a), GR_OK);
    assert_int_equal(gr_out_commit(o), GR_OK);
    gr_out_close(o);
    assert_false(gr_path_same(a, b));
    assert_int_equal(symlink(a, b), 0);
    assert_true(gr_path_same(a, b));
    assert_false(gr_path_same(a, "."));
    unlink(b);
    unlink(a);
}

static void an_error_is_one_line_whatever_its_arguments(void **state) {
    (void)state;
    assert_int_equal(gr_fail(GR_DATA, "%s: bad", "a\nb"), GR_DATA);
    assert_string_equal(gr_error_text(), "a b: bad");
    const char *lines[] = {"one", "t\nwo"};
    assert_int_equal(gr_fail_lines(GR_CONFIG, lines, 2), GR_CONFIG);
    assert_string_equal(gr_error_text(), "one\nt wo");
}

static void only_strict_utf8_is_valid(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n_valid;
    } cases[] = {
        {"", 0}, {"plain text, longer than a word", 30}, {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", 11},
        {"ab\xc3", 2},           /* cut short */
        {"\xc0\xaf", 0},         /* overlong */
        {"\xe0\x80\x80", 0},     /* overlong */
        {"a\xed\xa0\x80", 1},    /* surrogate */
        {"\xf4\x90\x80\x80", 0}, /* above U+10FFFF */
        {"\xf0\x9f\x98(", 0},    /* broken at its end */
        {"12345678\x80", 8},     /* after a word of ASCII */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(gr_utf8_valid((const uint8_t *)cases[i].text, strlen(cases[i].text)), cases[i].n_valid);
}

static void unreadable_paths_carry_the_callers_code(void **state) {
    (void)state;
    gr_map m;
    assert_int_equal(gr_map_open(&m, "/nonexistent/file", GR_CHECKPOINT), GR_CHECKPOINT);
    assert_non_null(strstr(gr_error_text(), "/nonexistent/file"));
    assert_int_equal(gr_map_open(&m, ".", GR_DATA), GR_DATA);
    gr_out *o;
    assert_int_equal(gr_out_open(&o, "/nonexistent/file"), GR_STORAGE);
}

static void spans_never_read_past_their_end(void **state) {
    (void)state;
    const uint8_t bytes[7] = {1, 2, 3, 4, 5, 6, 7};
    gr_span s = {bytes, sizeof bytes};
    uint32_t v;
    uint64_t w;
    assert_true(gr_take_u32(&s, &v));
    assert_int_equal(v, 0x04030201);
    assert_false(gr_take_u32(&s, &v));
    assert_false(gr_take_u64(&s, &w));
    assert_int_equal(s.n, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_equals_the_published_vectors),
        cmocka_unit_test(bijection_visits_every_value_once),
        cmocka_unit_test(bijection_depends_on_the_key_and_mixes),
        cmocka_unit_test(normal_numbers_have_mean_0_and_variance_1),
        cmocka_unit_test(uniform_numbers_fill_their_range),
        cmocka_unit_test(bf16_rounds_to_nearest_even_and_keeps_nan),
        cmocka_unit_test(f16_has_the_values_of_ieee_754),
        cmocka_unit_test(arena_places_what_it_measured),
        cmocka_unit_test(arena_notes_sizes_that_overflow),
        cmocka_unit_test(file_appears_only_when_committed),
        cmocka_unit_test(only_regular_files_are_replaced),
        cmocka_unit_test(paths_are_the_same_file_by_any_name),
        cmocka_unit_test(an_error_is_one_line_whatever_its_arguments),
        cmocka_unit_test(only_strict_utf8_is_valid),
        cmocka_unit_test(unreadable_paths_carry_the_callers_code),
        cmocka_unit_test(spans_never_read_past_their_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
