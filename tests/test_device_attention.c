/* test_device_attention.c: which attention cuDNN is asked for, and the parts in which it is asked for backward. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "backend/device.h"

/* Addresses only: a multiple of 16. */
static gr_attention usual(void) {
    return (gr_attention){.n_window = 4,
        .T = 128,
        .H = 8,
        .H_kv = 2,
        .head_dim = 64,
        .ldq = 768,
        .ldk = 768,
        .ldv = 768,
        .ldo = 512,
        .q = (void *)4096,
        .k = (void *)8192,
        .v = (void *)12288,
        .o = (void *)16384};
}

static void a_library_is_asked_only_for_what_it_can_do(void **state) {
    (void)state;
    gr_attention a = usual();
    const uint32_t document[1] = {0};
    assert_true(gr_library_attends(GR_BF16, &a));
    assert_false(gr_library_attends(GR_F32, &a));
    a.head_dim = 256;
    assert_true(gr_library_attends(GR_BF16, &a));
    a.head_dim = 264;
    assert_false(gr_library_attends(GR_BF16, &a));
    a.head_dim = 12;
    assert_false(gr_library_attends(GR_BF16, &a));
    a = usual();
    a.T = 64;
    assert_true(gr_library_attends(GR_BF16, &a));
    a.T = 63;
    assert_false(gr_library_attends(GR_BF16, &a));
    a = usual();
    a.n_window = 0;
    assert_false(gr_library_attends(GR_BF16, &a));
    a = usual();
    a.documents.first = document;
    assert_false(gr_library_attends(GR_BF16, &a));
    a = usual();
    a.dk = (void *)4104; /* backward's arrays count where they are there */
    assert_false(gr_library_attends(GR_BF16, &a));
    a = usual();
    a.ldo = 516;
    assert_false(gr_library_attends(GR_BF16, &a));
}

/* Bytes of the scores of a part, with windows rounded up to tiles of 64 and 128. */
static int64_t bytes_of(const gr_attention *a, int64_t n_window, int64_t H_kv) {
    return 2 * ((a->T + 63) / 64 * 64) * ((a->T + 127) / 128 * 128) * n_window * H_kv * (a->H / a->H_kv);
}

static void check_part(const gr_attention *a, int64_t n_byte) {
    const gr_attend_part part = gr_attend_part_of(a, (size_t)n_byte);
    if (part.n_window == 0) {
        assert_true(bytes_of(a, 1, 1) > n_byte);
        return;
    }
    assert_true(part.n_window > 0 && part.H_kv > 0);
    assert_int_equal(a->n_window % part.n_window, 0);
    assert_int_equal(a->H_kv % part.H_kv, 0);
    assert_true(part.n_window == 1 || part.H_kv == a->H_kv);
    assert_true(bytes_of(a, part.n_window, part.H_kv) <= n_byte);
    for (int64_t w = part.n_window + 1; w <= a->n_window && part.H_kv == a->H_kv; w++)
        assert_true(a->n_window % w != 0 || bytes_of(a, w, a->H_kv) > n_byte);
    for (int64_t h = part.H_kv + 1; h <= a->H_kv; h++)
        assert_true(a->H_kv % h != 0 || bytes_of(a, 1, h) > n_byte);
}

static void parts_are_the_largest_that_fit_and_cover_all(void **state) {
    (void)state;
    static const int64_t T[] = {2, 64, 65, 130, 2048, 4096, 32768};
    for (int64_t n_window = 1; n_window <= 12; n_window++)
        for (int64_t H_kv = 1; H_kv <= 8; H_kv++)
            for (size_t t = 0; t < sizeof T / sizeof *T; t++)
                for (int64_t group = 1; group <= 8; group *= 2)
                    for (int64_t n_byte = 1 << 12; n_byte <= INT64_C(1) << 34; n_byte *= 4) {
                        const gr_attention a = {.n_window = n_window, .T = T[t], .H = group * H_kv, .H_kv = H_kv};
                        check_part(&a, n_byte);
                    }
}

static void scratch_is_of_the_way_that_is_left(void **state) {
    (void)state;
    const gr_attention a = usual();
    gr_attend_means m = {.shared_max = SIZE_MAX, .limits = {.n_query = 64, .n_score = 1 << 14}, .room = 1 << 30};
    const size_t library = gr_attend_scratch(&m, GR_BF16, &a, true);
    m.room = 1000; /* less than a head's scores */
    const size_t flash = gr_attend_scratch(&m, GR_BF16, &a, true);
    assert_int_equal(flash, 2 * 4 * 8 * 128 * sizeof(float));
    assert_true(library > 4 * 8 * 128 * 128 * 2);
    assert_int_equal(gr_attend_scratch(&m, GR_BF16, &a, false), 0);
    m.shared_max = 48 << 10;
    const size_t plain = gr_attend_scratch(&m, GR_BF16, &a, true);
    assert_int_equal(plain, 2 * (2 * 64 * 128) * (4 + 2) + 2 * (2 * 128 * 64) * 4);
    m = (gr_attend_means){.way = GR_ATTENTION_CUBLAS, .shared_max = SIZE_MAX, .limits = m.limits, .room = 1 << 30};
    assert_int_equal(gr_attend_scratch(&m, GR_BF16, &a, true), plain);
    assert_int_equal(gr_attend_scratch(&m, GR_BF16, &a, false), 2 * 64 * 128 * (4 + 2));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_library_is_asked_only_for_what_it_can_do),
        cmocka_unit_test(scratch_is_of_the_way_that_is_left),
        cmocka_unit_test(parts_are_the_largest_that_fit_and_cover_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
