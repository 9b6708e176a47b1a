/* grouped.h: the arithmetic of the grouped experts' kernels that is not the device's: which block does what, where
 * numbers lie in shared memory, how much of that there is. Plain C that nvcc compiles too, so that it is tested without
 * a GPU.
 *
 * A block makes GR_GROUPED_SIDE x GR_GROUPED_SIDE numbers of one expert's product c[m,n] = sum over k, in steps of
 * GR_GROUPED_DEPTH k, of which GR_GROUPED_STAGES are on their way or in use. Its four warps make a quarter each. */
#ifndef GROUTER_KERNELS_GROUPED_H
#define GROUTER_KERNELS_GROUPED_H

#include "grouter/tiles.h"

#include "kernels/geometry.h"

enum {
    GR_GROUPED_SIDE = GR_TILE_ROWS,
    GR_GROUPED_DEPTH = 32,
    GR_GROUPED_STAGES = 4,
    GR_GROUPED_THREADS = 128,
    GR_GROUPED_QUARTER = GR_GROUPED_SIDE / 2,                   /* side of a warp's part */
    GR_GROUPED_OPERAND = GR_GROUPED_SIDE * GR_GROUPED_DEPTH,    /* numbers of one operand in one step */
    GR_GROUPED_STAGE = 2 * GR_GROUPED_OPERAND,                  /* of both */
    GR_GROUPED_PATCH = GR_GROUPED_QUARTER * GR_GROUPED_QUARTER, /* numbers of a warp's part */
    GR_GROUPED_ROOM = GR_GROUPED_STAGES * GR_GROUPED_STAGE * 2, /* bytes of shared memory */
    GR_GROUPED_UNIT = 8,                                        /* bf16 numbers of 16 bytes, moved as one */
    GR_GROUPED_UP = GR_GROUPED_SIDE / 2,                        /* columns of a that a block of up makes */
    GR_GROUPED_GATE_COLUMNS = GR_GROUPED_QUARTER                /* whose share of dgate one warp adds up */
};

/* ---------------------------------------------------------------- shared memory
 *
 * Offsets in numbers of a unit of 16 bytes. Units of a row are permuted by the row, so that the eight rows which a
 * matrix of ldmatrix takes at one unit lie in different banks, as do the units of a row that one copy writes. */

/* An operand whose rows run along k: [GR_GROUPED_SIDE][GR_GROUPED_DEPTH], two rows in all banks. */
GR_EVERYWHERE int gr_grouped_row_at(int row, int unit) {
    return row * GR_GROUPED_DEPTH + (unit ^ (row >> 1 & 3)) * GR_GROUPED_UNIT;
}

/* An operand whose rows are of one k: [GR_GROUPED_DEPTH][GR_GROUPED_SIDE]. */
GR_EVERYWHERE int gr_grouped_slab_at(int k, int unit) {
    return k * GR_GROUPED_SIDE + (unit ^ (k & 7)) * GR_GROUPED_UNIT;
}

/* A warp's part of a result: [GR_GROUPED_QUARTER][GR_GROUPED_QUARTER]. */
GR_EVERYWHERE int gr_grouped_patch_at(int row, int unit) {
    return row * GR_GROUPED_QUARTER + (unit ^ (row & 7)) * GR_GROUPED_UNIT;
}

/* A patch of half the width in the room of a whole one: its four units lie in turn left and right. */
GR_EVERYWHERE int gr_grouped_half_patch_at(int row, int unit) {
    return gr_grouped_patch_at(row, unit + 4 * (row & 1));
}

/* ---------------------------------------------------------------- which block does what */

GR_EVERYWHERE int64_t gr_grouped_sides(int64_t n) {
    return gr_ceil_div(n, GR_GROUPED_SIDE);
}

/* Blocks over row tiles: all columns of a row tile follow each other, so that its rows stay in the second-level
 * cache. */
typedef struct gr_grouped_spot {
    int64_t row_tile, column_tile;
} gr_grouped_spot;

GR_EVERYWHERE gr_grouped_spot gr_grouped_spot_of(int64_t block, int64_t n_column_tile) {
    gr_grouped_spot s;
    s.row_tile = block / n_column_tile;
    s.column_tile = block % n_column_tile;
    return s;
}

/* Blocks over the weights' gradients [n_m, n_n] of experts: `place` of the expert in expert_order, first row and
 * column. */
typedef struct gr_grouped_part {
    int64_t place, m, n;
} gr_grouped_part;

GR_EVERYWHERE int64_t gr_grouped_parts(int64_t n_expert, int64_t n_m, int64_t n_n) {
    return n_expert * gr_grouped_sides(n_m) * gr_grouped_sides(n_n);
}

GR_EVERYWHERE gr_grouped_part gr_grouped_part_of(int64_t block, int64_t n_m, int64_t n_n) {
    const int64_t across = gr_grouped_sides(n_n), each = gr_grouped_sides(n_m) * across;
    gr_grouped_part p;
    p.place = block / each;
    p.m = block % each / across * GR_GROUPED_SIDE;
    p.n = block % across * GR_GROUPED_SIDE;
    return p;
}

/* Up takes GR_GROUPED_UP columns of h1 and the same of h3, eight by eight in turn, so that both meet in one thread: the
 * row of w13 [2F, D] for column n of the block whose first column of h1 is `first`; -1 beyond F. */
GR_EVERYWHERE int64_t gr_grouped_up_row(int64_t F, int64_t first, int n) {
    const int64_t column = first + n / 16 * 8 + n % 8;
    return column >= F ? -1 : n % 16 < 8 ? column : F + column;
}

/* Partial sums of a pair's dgate, one for each warp's columns; they lie [gr_grouped_gate_parts][n_pair] as floats in da
 * [n_pair, F] of bf16, which has room for them for every F that is a multiple of 8. */
GR_EVERYWHERE int64_t gr_grouped_gate_parts(int64_t F) {
    return gr_ceil_div(F, GR_GROUPED_GATE_COLUMNS);
}

#endif
