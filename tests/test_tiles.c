/* test_tiles.c: row tiles of grouped experts: each pair in one tile, tiles of an expert in order, long experts first.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>

#include "grouter/tiles.h"

enum { EXPERTS_MAX = 4096 };

typedef struct lists {
    uint32_t n_expert, n_pair, n_tile;
    uint32_t offset[EXPERTS_MAX + 1], order[EXPERTS_MAX];
    gr_row_tile *tiles;
} lists;

static uint32_t rows_of(const lists *l, uint32_t e) {
    return l->offset[e + 1] - l->offset[e];
}

/* Tiles beyond the bound would be written into memory that is not there. */
static void open_lists(lists *l, const uint32_t *count, uint32_t n_expert) {
    l->n_expert = n_expert;
    l->offset[0] = 0;
    for (uint32_t e = 0; e < n_expert; e++)
        l->offset[e + 1] = l->offset[e] + count[e];
    l->n_pair = l->offset[n_expert];
    const uint64_t most = gr_tiles_max(l->n_pair, n_expert);
    l->tiles = malloc((most ? most : 1) * sizeof *l->tiles);
    assert_non_null(l->tiles);
    l->n_tile = gr_tiles_build(l->offset, n_expert, l->tiles, l->order);
    assert_true(l->n_tile <= most);
}

static void check_order(const lists *l) {
    uint8_t seen[EXPERTS_MAX] = {0};
    for (uint32_t i = 0; i < l->n_expert; i++) {
        assert_true(l->order[i] < l->n_expert && !seen[l->order[i]]);
        seen[l->order[i]] = 1;
        if (i == 0)
            continue;
        const uint32_t before = l->order[i - 1], e = l->order[i];
        assert_true(rows_of(l, before) >= rows_of(l, e));
        assert_true(rows_of(l, before) > rows_of(l, e) || before < e);
    }
}

/* The tiles are those of the experts in order, so they follow from it. */
static void check_tiles(const lists *l) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < l->n_expert; i++) {
        const uint32_t e = l->order[i];
        for (uint32_t first = l->offset[e]; first < l->offset[e + 1]; first += GR_TILE_ROWS, at++) {
            const uint32_t left = l->offset[e + 1] - first;
            assert_true(at < l->n_tile);
            assert_int_equal(l->tiles[at].expert, e);
            assert_int_equal(l->tiles[at].first, first);
            assert_int_equal(l->tiles[at].n_row, left < GR_TILE_ROWS ? left : GR_TILE_ROWS);
            assert_int_equal(l->tiles[at].zero, 0);
        }
    }
    assert_int_equal(at, l->n_tile);
}

static void check(const uint32_t *count, uint32_t n_expert) {
    static lists l;
    open_lists(&l, count, n_expert);
    check_order(&l);
    check_tiles(&l);
    free(l.tiles);
}

#define CHECK(...)                                                                                                     \
    do {                                                                                                               \
        const uint32_t count_[] = {__VA_ARGS__};                                                                       \
        check(count_, sizeof count_ / sizeof *count_);                                                                 \
    } while (0)

static void pairs_are_covered_once_and_long_experts_come_first(void **state) {
    (void)state;
    CHECK(1, 63, 64, 65, 127, 128, 129, 255, 256, 257);
    CHECK(5, 5, 5, 5, 5);
    CHECK(1, 1, 1, 1, 1, 1);
    CHECK(100, 100, 10000, 100, 100); /* a hot one */
    CHECK(1);
    CHECK(128);
}

static void empty_experts_have_no_tiles(void **state) {
    (void)state;
    CHECK(0, 200, 3);
    CHECK(200, 0, 3);
    CHECK(200, 3, 0);
    CHECK(0, 0, 0, 70, 0, 0);
    CHECK(0, 0, 0);
    CHECK(0);
}

static void random_loads_of_many_experts(void **state) {
    (void)state;
    static uint32_t count[EXPERTS_MAX];
    for (uint32_t run = 0; run < 40; run++) {
        const uint32_t n_expert = 1 + (uint32_t)gr_random_below(1, run, 0, run % 8 ? 300 : EXPERTS_MAX);
        const uint32_t most = 1u << run % 12;
        for (uint32_t e = 0; e < n_expert; e++)
            count[e] = (uint32_t)gr_random_below(2, run, e, most + 1);
        check(count, n_expert);
    }
}

/* Of all loads with so many pairs the most tiles: as many experts as can be have one row more than whole tiles. */
static void no_load_has_more_tiles_than_the_bound(void **state) {
    (void)state;
    for (uint32_t n_expert = 1; n_expert <= 5; n_expert++)
        for (uint32_t n_pair = 0; n_pair < 1000; n_pair++) {
            const uint32_t full = n_expert > 0 ? n_pair / n_expert : 0;
            uint32_t count[5] = {0}, left = n_pair;
            for (uint32_t e = 0; e < n_expert && left > 0; e++, left -= count[e - 1])
                count[e] = e + 1 == n_expert                               ? left
                           : full / GR_TILE_ROWS * GR_TILE_ROWS + 1 < left ? full / GR_TILE_ROWS * GR_TILE_ROWS + 1
                                                                           : left;
            check(count, n_expert);
        }
    assert_true(gr_tiles_max(0, 8) == 0);
    assert_true(gr_tiles_max(UINT32_MAX, 4096) == (uint64_t)UINT32_MAX / GR_TILE_ROWS + 4096);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_are_covered_once_and_long_experts_come_first),
        cmocka_unit_test(empty_experts_have_no_tiles),
        cmocka_unit_test(random_loads_of_many_experts),
        cmocka_unit_test(no_load_has_more_tiles_than_the_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
