/* test_kernel_wgmma.c: which kernels a call of grouped experts takes, and how wide the tiles of those by wgmma are. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "kernels/kernels.h"

#include "experts_fixture.h"

static void a_call_takes_the_last_kernels_that_may_and_fit(void **state) {
    (void)state;
    gr_ffn a = whole_call();
    for (int asked = GR_EXPERTS_CUBLAS; asked < GR_N_EXPERTS; asked++) {
        assert_int_equal(gr_kernel_experts_choose((gr_experts)asked, GR_BF16, &a), asked);
        assert_int_equal(gr_kernel_experts_choose((gr_experts)asked, GR_F32, &a), GR_EXPERTS_CUBLAS);
    }
    a.tiles = NULL;
    assert_int_equal(gr_kernel_experts_choose(GR_EXPERTS_WGMMA, GR_BF16, &a), GR_EXPERTS_CUBLAS);
}

static void tiles_have_a_width_that_is_compiled(void **state) {
    (void)state;
    for (int64_t n = 8; n < 3000; n += 8)
        for (int n_part = 1; n_part <= 2; n_part++) {
            const int width = gr_wgmma_columns(n * n_part, n_part);
            assert_true(width == 128 || width == 192 || width == 256);
        }
}

/* Few columns are not multiplied in a wide tile, many not in narrow ones. */
static void tiles_are_as_wide_as_pays(void **state) {
    (void)state;
    assert_int_equal(gr_wgmma_columns(64, 1), 128);
    assert_int_equal(gr_wgmma_columns(2 * 64, 2), 128);
    assert_int_equal(gr_wgmma_columns(384, 1), 192);
    assert_int_equal(gr_wgmma_columns(4096, 1), 256);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_takes_the_last_kernels_that_may_and_fit),
        cmocka_unit_test(tiles_have_a_width_that_is_compiled),
        cmocka_unit_test(tiles_are_as_wide_as_pays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
