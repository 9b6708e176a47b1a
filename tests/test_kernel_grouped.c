/* test_kernel_grouped.c: the arithmetic of the grouped experts' kernels: every number has one place and one block, and
 * what the hardware takes at once lies in different banks. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "kernels/grouped.h"
#include "kernels/kernels.h"

#include "experts_fixture.h"

/* ---------------------------------------------------------------- shared memory */

typedef int (*place)(int row, int unit);

/* Each unit of `rows` rows of `units` has 16 bytes of its own within `room` numbers. */
static void check_places(place at, int rows, int units, int room) {
    uint8_t *taken = calloc((size_t)room / GR_GROUPED_UNIT, 1);
    assert_non_null(taken);
    for (int row = 0; row < rows; row++)
        for (int unit = 0; unit < units; unit++) {
            const int p = at(row, unit);
            assert_true(p >= 0 && p + GR_GROUPED_UNIT <= room && p % GR_GROUPED_UNIT == 0);
            assert_false(taken[p / GR_GROUPED_UNIT]);
            taken[p / GR_GROUPED_UNIT] = 1;
        }
    free(taken);
}

/* The banks of 16 bytes, of which 128 bytes have eight. */
static int bank(int p) {
    return p / GR_GROUPED_UNIT % 8;
}

/* Eight units read or written at once lie in eight banks: of rows `apart` apart, or next to each other in a row. */
static void check_banks(place at, int rows, int units, bool in_rows) {
    for (int row = 0; row < rows; row += 8)
        for (int unit = 0; unit < units; unit++) {
            unsigned banks = 0;
            for (int i = 0; i < 8; i++)
                banks |= 1u << bank(at(row + i, unit));
            assert_int_equal(banks, 0xff);
        }
    for (int row = 0; row < rows && in_rows; row++)
        for (int unit = 0; unit < units; unit += 8) {
            unsigned banks = 0;
            for (int i = 0; i < 8; i++)
                banks |= 1u << bank(at(row, unit + i));
            assert_int_equal(banks, 0xff);
        }
}

static void operands_have_their_places_and_no_bank_is_asked_twice(void **state) {
    (void)state;
    check_places(gr_grouped_row_at, GR_GROUPED_SIDE, GR_GROUPED_DEPTH / 8, GR_GROUPED_OPERAND);
    check_banks(gr_grouped_row_at, GR_GROUPED_SIDE, GR_GROUPED_DEPTH / 8, false);
    check_places(gr_grouped_slab_at, GR_GROUPED_DEPTH, GR_GROUPED_SIDE / 8, GR_GROUPED_OPERAND);
    check_banks(gr_grouped_slab_at, GR_GROUPED_DEPTH, GR_GROUPED_SIDE / 8, true);
    check_places(gr_grouped_patch_at, GR_GROUPED_QUARTER, 8, GR_GROUPED_PATCH);
    check_banks(gr_grouped_patch_at, GR_GROUPED_QUARTER, 8, true);
    check_places(gr_grouped_half_patch_at, GR_GROUPED_QUARTER, 4, GR_GROUPED_PATCH);
    check_banks(gr_grouped_half_patch_at, GR_GROUPED_QUARTER, 4, false);
}

/* Two rows of half a patch are stored at once. */
static void half_patches_are_read_without_waiting(void **state) {
    (void)state;
    for (int row = 0; row < GR_GROUPED_QUARTER; row += 2) {
        unsigned banks = 0;
        for (int i = 0; i < 8; i++)
            banks |= 1u << bank(gr_grouped_half_patch_at(row + i / 4, i % 4));
        assert_int_equal(banks, 0xff);
    }
}

static void rooms_are_large_enough(void **state) {
    (void)state;
    assert_true(GR_GROUPED_STAGES * GR_GROUPED_STAGE * 2 <= GR_GROUPED_ROOM);
    assert_true(4 * 2 * GR_GROUPED_PATCH * 2 <= GR_GROUPED_ROOM); /* two patches of each warp */
    assert_true(2 * GR_GROUPED_ROOM <= 164 << 10);                /* two blocks on the smallest multiprocessor, sm_80 */
}

/* ---------------------------------------------------------------- blocks */

static void columns_of_a_row_tile_follow_each_other(void **state) {
    (void)state;
    for (int64_t n_column = 1; n_column < 20; n_column++)
        for (int64_t row = 0, block = 0; row < 30; row++)
            for (int64_t column = 0; column < n_column; column++, block++) {
                const gr_grouped_spot s = gr_grouped_spot_of(block, n_column);
                assert_true(s.row_tile == row && s.column_tile == column);
            }
    const gr_grouped_spot far = gr_grouped_spot_of(INT64_C(2147483647), 7);
    assert_true(far.row_tile == 306783378 && far.column_tile == 1);
}

/* Numbers of a gradient [n_m, n_n], each in one block of its expert. */
static void check_parts(int64_t n_expert, int64_t n_m, int64_t n_n) {
    uint8_t *owned = calloc((size_t)(n_expert * n_m * n_n), 1);
    assert_non_null(owned);
    int64_t before = 0;
    for (int64_t block = 0; block < gr_grouped_parts(n_expert, n_m, n_n); block++) {
        const gr_grouped_part p = gr_grouped_part_of(block, n_m, n_n);
        assert_true(p.place >= before && p.place < n_expert);
        assert_true(p.m < n_m && p.n < n_n); /* no block without work */
        before = p.place;
        for (int64_t m = p.m; m < gr_at_most(p.m + GR_GROUPED_SIDE, n_m); m++)
            for (int64_t n = p.n; n < gr_at_most(p.n + GR_GROUPED_SIDE, n_n); n++)
                owned[(p.place * n_m + m) * n_n + n]++;
    }
    for (int64_t i = 0; i < n_expert * n_m * n_n; i++)
        assert_int_equal(owned[i], 1);
    free(owned);
}

static void each_gradient_has_one_owner(void **state) {
    (void)state;
    static const int64_t width[] = {8, 120, 128, 136, 344, 720};
    for (int m = 0; m < 6; m++)
        for (int n = 0; n < 6; n++)
            check_parts(3, width[m], width[n]);
    check_parts(1, 128, 8);
}

static void up_takes_each_row_of_w13_once(void **state) {
    (void)state;
    static const int64_t widths[] = {8, 56, 64, 72, 344, 384, 704, 720, 768};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        const int64_t F = widths[i];
        uint8_t taken[2 * 768] = {0};
        for (int64_t first = 0; first < F; first += GR_GROUPED_UP)
            for (int n = 0; n < GR_GROUPED_SIDE; n++) {
                const int64_t row = gr_grouped_up_row(F, first, n);
                assert_true(row < 2 * F);
                if (row >= 0)
                    taken[row]++;
                /* h1 of a column is in block of eight 2j of a warp, its h3 in 2j + 1 */
                if (n % 16 < 8 && row >= 0)
                    assert_true(gr_grouped_up_row(F, first, n + 8) == row + F);
                if (n % 16 < 8 && row >= 0)
                    assert_true(row == first + n / GR_GROUPED_QUARTER * 32 + n % GR_GROUPED_QUARTER / 16 * 8 + n % 8);
            }
        for (int64_t row = 0; row < 2 * F; row++)
            assert_int_equal(taken[row], 1);
    }
}

static void shares_of_gate_gradients_fit_where_da_was(void **state) {
    (void)state;
    for (int64_t F = 8; F < 5000; F += 8)
        assert_true(gr_grouped_gate_parts(F) * 4 <= F * 2);
    /* a warp's columns lie in one share */
    for (int64_t column = 0; column < 1000; column += GR_GROUPED_QUARTER)
        assert_true(column / GR_GROUPED_GATE_COLUMNS < gr_grouped_gate_parts(column + 8));
}

/* ---------------------------------------------------------------- which calls */

static void calls_that_the_kernels_cannot_do_are_refused(void **state) {
    (void)state;
    gr_ffn a = whole_call();
    assert_true(gr_kernel_grouped_fits(GR_BF16, &a));
    assert_false(gr_kernel_grouped_fits(GR_F32, &a));
    for (int wrong = 0; wrong < 9; wrong++) {
        a = whole_call();
        a.D = wrong == 0 ? 20 : wrong == 1 ? 0 : a.D;
        a.F = wrong == 2 ? 12 : wrong == 3 ? 0 : a.F;
        a.tiles = wrong == 4 ? NULL : a.tiles;
        a.expert_order = wrong == 5 ? NULL : a.expert_order;
        a.device_offset = wrong == 6 ? NULL : a.device_offset;
        a.h = wrong == 7 ? (char *)a.h + 8 : a.h;
        a.dw2 = wrong == 8 ? (float *)a.h + 1 : NULL;
        assert_false(gr_kernel_grouped_fits(GR_BF16, &a));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operands_have_their_places_and_no_bank_is_asked_twice),
        cmocka_unit_test(half_patches_are_read_without_waiting),
        cmocka_unit_test(rooms_are_large_enough),
        cmocka_unit_test(columns_of_a_row_tile_follow_each_other),
        cmocka_unit_test(each_gradient_has_one_owner),
        cmocka_unit_test(up_takes_each_row_of_w13_once),
        cmocka_unit_test(shares_of_gate_gradients_fit_where_da_was),
        cmocka_unit_test(calls_that_the_kernels_cannot_do_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
