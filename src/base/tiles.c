/* tiles.c: experts by load, and their pairs in tiles. */
#include "grouter/tiles.h"

static uint32_t rows_of(const uint32_t *offset, uint32_t e) {
    return offset[e + 1] - offset[e];
}

/* A total order, so that the result does not depend on how it is sorted. */
static bool is_before(const uint32_t *offset, uint32_t a, uint32_t b) {
    const uint32_t n_a = rows_of(offset, a), n_b = rows_of(offset, b);
    return n_a > n_b || (n_a == n_b && a < b);
}

/* Shell's sort with Knuth's gaps: in place, for a few hundred experts, once per micro-batch. */
static void sort_experts(const uint32_t *offset, uint32_t n, uint32_t *order) {
    uint32_t gap = 1;
    while (gap < n / 3)
        gap = 3 * gap + 1;
    for (uint32_t e = 0; e < n; e++)
        order[e] = e;
    for (; gap > 0; gap /= 3)
        for (uint32_t i = gap; i < n; i++) {
            const uint32_t e = order[i];
            uint32_t at = i;
            for (; at >= gap && is_before(offset, e, order[at - gap]); at -= gap)
                order[at] = order[at - gap];
            order[at] = e;
        }
}

uint32_t gr_tiles_build(const uint32_t *offset, uint32_t n_expert, gr_row_tile *tiles, uint32_t *order) {
    uint32_t n = 0;
    sort_experts(offset, n_expert, order);
    for (uint32_t i = 0; i < n_expert; i++) {
        const uint32_t e = order[i], end = offset[e + 1];
        for (uint32_t first = offset[e]; first < end;) {
            const uint32_t n_row = end - first < GR_TILE_ROWS ? end - first : GR_TILE_ROWS;
            tiles[n++] = (gr_row_tile){.expert = e, .first = first, .n_row = n_row};
            first += n_row;
        }
    }
    return n;
}
