/* links.h: rows by the link they travel on. Rank r of an expert-parallel group is on node r / node_ranks. */
#ifndef GROUTER_LINKS_H
#define GROUTER_LINKS_H

#include "grouter/base.h"

typedef struct gr_links {
    uint64_t within;  /* rows to other ranks of the sender's node */
    uint64_t between; /* rows to ranks of other nodes */
} gr_links;

/* Adds the rows that one dispatch of a window sends if `rank` of R reads it: touch[R] tokens of the window have an
 * expert on each rank, and each of them is one row to that rank, but to the reader itself none. node_ranks >= 1. */
void gr_links_add(gr_links *l, const uint32_t *touch, uint32_t R, uint32_t node_ranks, uint32_t rank);

#endif
