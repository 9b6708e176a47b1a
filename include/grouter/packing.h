/* packing.h: which rank takes which window of one global batch. The batch keeps its windows; only their places change,
 * so losses and gradients stay what they were but for the order of sums.
 *
 * A global batch has n = n_bin * R * B windows: n_bin = micro-batches x expert-parallel groups, in each of them B
 * windows for each of R ranks. First windows go to ranks so that as few rows as possible travel (exact, gr_transport:
 * rank r takes n_bin * B of them). Then each rank's windows go to bins so that the fullest rank of any bin has few
 * expert pairs: swaps of two windows of one rank between bins, which change no row. Rows come first: with few windows
 * in a bin the fullest rank may have more than in the order given, because its windows are those that like its experts.
 */
#ifndef GROUTER_PACKING_H
#define GROUTER_PACKING_H

#include "grouter/base.h"

typedef struct gr_packing {
    uint32_t n_bin, R, B;
    const uint32_t *touch; /* [n][R] tokens of each window with an expert on each rank; borrowed */
    const uint32_t *pairs; /* [n][R] pairs of each window on each rank; borrowed */
    double goal;           /* swapping ends at this imbalance; 1.03 */
} gr_packing;

/* Rows: sum over windows w and ranks r != the window's of touch[w][r]. Imbalance: pairs of the fullest rank in any bin
 * over the mean of ranks and bins. */
typedef struct gr_packing_report {
    uint64_t rows, rows_before; /* packed (no packing has fewer), and in the order given */
    double imbalance, imbalance_before;
    double imbalance_bound; /* no packing has less: from the totals of ranks, which no packing changes */
} gr_packing_report;

/* order[n]: order[(bin * R + r) * B + b] := window. The same for the same input whatever the number of threads. 69. */
GR_MUST gr_err gr_packing_run(const gr_packing *p, uint32_t *order, gr_packing_report *report);

#endif
