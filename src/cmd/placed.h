/* placed.h: what `place` and `inspect` of a placement have in common. Internal to src/cmd. */
#ifndef GROUTER_CMD_PLACED_H
#define GROUTER_CMD_PLACED_H

#include "grouter/placement.h"

/* The scores as an aligned table on stdout, one way to place a line. */
void gr_placed_print_scores(const gr_placement *p);

/* The picture: experts chosen together by rank, load of ranks, rows of each way to place. 74. */
GR_MUST gr_err gr_placed_draw(const gr_placement *p, const char *svg);

#endif
