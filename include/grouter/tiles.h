/* tiles.h: the pairs of grouped experts cut into row tiles, for kernels that take one tile each. Indices only, from
 * counts that the host knows. */
#ifndef GROUTER_TILES_H
#define GROUTER_TILES_H

#include "grouter/base.h"

enum { GR_TILE_ROWS = 128 };

/* Consecutive pairs of one expert: at least 1, at most GR_TILE_ROWS of them. */
typedef struct gr_row_tile {
    uint32_t expert, first, n_row;
    uint32_t zero; /* to 16 bytes: kernels read a tile at once */
} gr_row_tile;

/* No list of n_pair pairs of n_expert experts has more tiles. */
static inline uint64_t gr_tiles_max(uint64_t n_pair, uint64_t n_expert) {
    return n_pair / GR_TILE_ROWS + (n_expert < n_pair ? n_expert : n_pair);
}

/* Experts by descending number of pairs, ties by lower id (longest processing time first, so that the last blocks of a
 * launch are short ones): order[n_expert]. Then the tiles of each in that order, those of an expert by row, all full
 * but its last: tiles[gr_tiles_max]. Pairs of expert e are [offset[e], offset[e+1]); returns the number of tiles, which
 * cover each pair once. */
uint32_t gr_tiles_build(const uint32_t *offset, uint32_t n_expert, gr_row_tile *tiles, uint32_t *order);

#endif
