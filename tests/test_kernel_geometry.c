/* test_kernel_geometry.c: the arithmetic that kernels share with the host: every row, key and byte once, within bounds.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "kernels/geometry.h"
#include "kernels/kernels.h"

/* ---------------------------------------------------------------- partial sums of rows */

static void check_partials(int64_t n_row) {
    const int64_t each = gr_partial_rows(n_row), n = gr_partial_count(n_row);
    assert_true(each >= GR_WARPS_MAX && each % GR_WARPS_MAX == 0);
    assert_true(n <= GR_PARTIAL_MAX);
    assert_true(n * each >= n_row && (n - 1) * each < (n_row > 0 ? n_row : 1));
    assert_true(gr_partial_bytes(n_row, 7) == (size_t)n * 7 * sizeof(float));
}

static void partials_cover_all_rows_and_none_is_empty(void **state) {
    (void)state;
    for (int64_t n_row = 0; n_row < 20000; n_row++)
        check_partials(n_row);
    for (int64_t n_row = 1; n_row < INT64_C(1) << 33; n_row *= 3)
        for (int64_t more = -1; more <= 1; more++)
            check_partials(n_row + more);
    assert_int_equal(gr_partial_count(0), 0);
}

static void sums_of_all_warps_fit_or_there_is_one_warp(void **state) {
    (void)state;
    for (int64_t width = 1; width < 40000; width++) {
        const int n = gr_partial_warps(width);
        assert_true(n >= 1 && n <= GR_WARPS_MAX);
        assert_true(n * width <= GR_SUMS_MANY || n == 1);
        assert_true(n == GR_WARPS_MAX || (n + 1) * width > GR_SUMS_MANY);
        if (width * GR_WARPS_MAX <= GR_SUMS_FEW)
            assert_int_equal(n, GR_WARPS_MAX);
    }
}

/* ---------------------------------------------------------------- heads of q and k */

/* Every head once, in the order of rows, in parts of one kind. */
static void check_head_parts(gr_heads h, gr_head_parts parts) {
    const int64_t n_part = parts.n_q + parts.n_k;
    int64_t row = 0, column = 0;
    for (int64_t p = 0; p < n_part; p++) {
        const gr_head_part part = gr_head_part_of(h, parts, p);
        assert_true(part.is_key == (p >= parts.n_q) && part.n > 0);
        if (p == parts.n_q) { /* keys begin where queries end */
            assert_true(row == (h.n_q ? h.n_row : 0) && column == 0);
            row = 0;
        }
        for (int i = 0; i < part.n; i++) {
            const gr_head_place at = gr_head_place_of(&part, i);
            assert_true(at.row == row && at.column == column + (part.is_key ? h.n_q : 0));
            assert_true(at.position == (h.T ? row % h.T : 0));
            column = (column + 1) % (part.is_key ? h.n_k : h.n_q);
            row += column == 0;
        }
    }
    assert_true(n_part == 0 || (row == h.n_row && column == 0));
    assert_true((parts.n_q == 0) == (h.n_row * h.n_q == 0) && (parts.n_k == 0) == (h.n_row * h.n_k == 0));
}

static void parts_hold_every_head_once(void **state) {
    (void)state;
    static const int64_t n_row[] = {0, 1, 2, 21, 64, 129, 1000};
    for (size_t i = 0; i < sizeof n_row / sizeof *n_row; i++)
        for (int64_t n_q = 0; n_q < 18; n_q += 1 + n_q / 2)
            for (int64_t n_k = 0; n_k < 18; n_k += 1 + n_k / 2)
                for (int64_t T = 0; T < 40; T = 3 * T + 1) {
                    const gr_heads h = {.n_row = n_row[i], .n_q = n_q, .n_k = n_k, .T = T};
                    check_head_parts(h, gr_head_parts_forward(h));
                    check_head_parts(h, gr_head_parts_backward(h));
                }
}

/* Of the most heads that there may be (kernels/head_norm.cu), the first and last part and what is around 2^32. */
static void many_heads_are_found_with_64_bits(void **state) {
    (void)state;
    const gr_heads h = {.n_row = INT64_C(1) << 36, .n_q = 3, .n_k = 1, .T = 4099};
    const gr_head_parts forward = gr_head_parts_forward(h), backward = gr_head_parts_backward(h);
    assert_true(forward.n_q + forward.n_k <= INT32_MAX + INT64_C(1));
    assert_true(backward.n_q == GR_PARTIAL_MAX && backward.n_k == GR_PARTIAL_MAX);
    assert_true(backward.each_q <= INT32_MAX / 2);
    for (int64_t p = 0; p < backward.n_q; p += 31) {
        const gr_head_part part = gr_head_part_of(h, backward, p);
        const gr_head_place at = gr_head_place_of(&part, part.n - 1);
        const int64_t head = p * backward.each_q + part.n - 1;
        assert_true(at.row == head / 3 && at.column == head % 3 && at.position == head / 3 % 4099);
    }
    const gr_head_part last = gr_head_part_of(h, backward, backward.n_q + backward.n_k - 1);
    const gr_head_place end = gr_head_place_of(&last, last.n - 1);
    assert_true(end.row == h.n_row - 1 && end.column == 3);
    const gr_head_norm a = {.n_row = h.n_row, .n_q = 3, .n_k = 1, .head_dim = 64};
    assert_true(gr_kernel_head_norm_backward_scratch(&a) == 2 * GR_PARTIAL_MAX * 64 * sizeof(float));
}

static void lanes_hold_a_head_or_it_is_too_wide(void **state) {
    (void)state;
    for (int64_t n_group = 1; n_group < 100; n_group++) {
        const int lanes = gr_head_lanes(n_group);
        if (n_group > GR_HEAD_LANES_MAX)
            assert_int_equal(lanes, 0);
        else
            assert_true(lanes >= n_group && (lanes & (lanes - 1)) == 0 && lanes < 2 * n_group);
    }
}

static void parts_of_tokens_cover_them(void **state) {
    (void)state;
    for (int64_t n = 1; n < 5000; n++) {
        const int64_t each = gr_sum_each(n);
        assert_true(each * GR_SUM_PARTS >= n && (each - 1) * GR_SUM_PARTS < n);
    }
}

static void lists_of_the_embedding_do_not_overlap(void **state) {
    (void)state;
    static const int64_t shape[][2] = {{1, 1}, {7, 3}, {3, 7}, {4096, 257}, {131072, 151680}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        const int64_t n = shape[i][0], n_vocab = shape[i][1];
        const gr_embed_lists l = gr_embed_lists_of(n, n_vocab);
        assert_true(l.cursor == 0 && l.count >= 1 && l.start >= l.count + n_vocab && l.slot >= l.start + n_vocab);
        assert_true(l.rough >= l.slot + n && l.list >= l.rough + n && l.n_word >= l.list + n);
        assert_true(l.n_zero >= l.count + n_vocab); /* the counts and the cursor start at 0 */
        assert_true(gr_kernel_embed_backward_scratch(&(gr_embed){.n = n, .n_vocab = n_vocab}) == (size_t)l.n_word * 4);
    }
}

/* ---------------------------------------------------------------- attention */

static const gr_attend_limits most = {.n_query = 512, .n_score = 1 << 24};

static void check_tiles(int64_t n, int64_t H_kv) {
    const gr_attend_tiles t = gr_attend_tiles_of(most, n, H_kv);
    assert_true(t.n_query >= GR_ATTEND_BLOCK_MIN && t.n_query <= most.n_query);
    assert_true(t.n_head >= 1 && t.n_head <= H_kv);
    assert_true(t.ld >= n && t.ld < n + 8 && t.ld % 8 == 0);
    assert_true(t.n_score == t.n_head * t.n_query * t.ld);
    assert_true(t.n_score <= most.n_score || (t.n_query == GR_ATTEND_BLOCK_MIN && t.n_head == 1));
    assert_true(t.n_query < 2 * n || t.n_query == GR_ATTEND_BLOCK_MIN); /* no block of mostly nothing */
}

static void scores_do_not_grow_with_the_square_of_a_window(void **state) {
    (void)state;
    for (int64_t n = 1; n <= 1 << 20; n += 1 + n / 3)
        for (int64_t H_kv = 1; H_kv <= 128; H_kv += 1 + H_kv / 2)
            check_tiles(n, H_kv);
    assert_int_equal(gr_attend_tiles_of(most, 4096, 8).n_query, 512); /* a window of the paper: as large as may be */
    assert_int_equal(gr_attend_tiles_of(most, 1 << 20, 8).n_score, most.n_score);
}

/* A window of three documents: positions 0-2, 3, 4-9. */
enum { T = 10 };
static const uint32_t first[T] = {0, 0, 0, 3, 4, 4, 4, 4, 4, 4}, end[T] = {3, 3, 3, 4, 10, 10, 10, 10, 10, 10};

static void rows_see_what_their_mask_and_document_allow(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++)
        for (int documents = 0; documents < 2; documents++)
            for (int64_t row = 0; row < T; row++) {
                const gr_attend_seen s =
                    gr_attend_seen_by(causal, T, row, documents ? &first[row] : NULL, documents ? &end[row] : NULL);
                for (int64_t key = 0; key < T; key++) {
                    const bool same = !documents || first[key] == first[row];
                    assert_int_equal(key >= s.first && key < s.end, same && (!causal || key <= row));
                }
            }
}

static void blocks_hold_all_keys_that_their_rows_see(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++)
        for (int64_t begin = 0; begin < T; begin++)
            for (int64_t n = 1; begin + n <= T; n++) {
                const int64_t n_key = gr_attend_keys(causal, T, begin, n);
                assert_true(n_key >= 1 && n_key <= T);
                for (int64_t row = begin; row < begin + n; row++)
                    assert_true(gr_attend_seen_by(causal, T, row, NULL, NULL).end <= n_key);
                if (begin + n == T)
                    assert_int_equal(n_key, T); /* the block that sets the sums of dk and dv sees all keys */
            }
}

static void arrays_of_attention_do_not_overlap(void **state) {
    (void)state;
    const gr_attend_tiles t = gr_attend_tiles_of(most, 131, 3);
    const size_t scores = (size_t)t.n_score * 4, sums = (size_t)t.n_head * 131 * 20 * 4;
    const gr_attend_room f = gr_attend_room_of(&t, 131, 20, 4, true), b = gr_attend_room_of(&t, 131, 20, 2, true);
    assert_true(f.p == f.scores && f.ds == f.dscores); /* in place */
    assert_true(f.dscores >= f.scores + scores && f.dk >= f.dscores + scores && f.dv >= f.dk + sums);
    assert_true(f.n_byte >= f.dv + sums);
    assert_true(b.dscores >= b.scores + scores && b.p >= b.dscores + scores && b.ds >= b.p + scores / 2);
    assert_true(b.dk >= b.ds + scores / 2 && b.dv >= b.dk + sums && b.n_byte >= b.dv + sums);
    assert_true(b.p % 256 == 0 && b.ds % 256 == 0 && b.dk % 256 == 0 && b.dv % 256 == 0);
    const gr_attend_room forward = gr_attend_room_of(&t, 131, 20, 2, false);
    assert_true(forward.p >= scores && forward.n_byte >= forward.p + scores / 2);
    assert_true(forward.n_byte < 2 * scores); /* nothing of backward */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(partials_cover_all_rows_and_none_is_empty),
        cmocka_unit_test(sums_of_all_warps_fit_or_there_is_one_warp),
        cmocka_unit_test(parts_hold_every_head_once),
        cmocka_unit_test(many_heads_are_found_with_64_bits),
        cmocka_unit_test(lanes_hold_a_head_or_it_is_too_wide),
        cmocka_unit_test(parts_of_tokens_cover_them),
        cmocka_unit_test(lists_of_the_embedding_do_not_overlap),
        cmocka_unit_test(scores_do_not_grow_with_the_square_of_a_window),
        cmocka_unit_test(rows_see_what_their_mask_and_document_allow),
        cmocka_unit_test(blocks_hold_all_keys_that_their_rows_see),
        cmocka_unit_test(arrays_of_attention_do_not_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
