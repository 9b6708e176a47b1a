/* transport.h: the exact assignment of many things to few places with given room. Windows to ranks and experts to
 * clusters are both this problem (the transportation form of linear assignment: a place with room for q things stands
 * for q equal columns). Only base.h is below it. */
#ifndef GROUTER_TRANSPORT_H
#define GROUTER_TRANSPORT_H

#include "grouter/base.h"

typedef struct gr_transport {
    size_t n;             /* things */
    uint32_t P;           /* places, at least 1 */
    const int32_t *cost;  /* [n][P] of a thing at a place, below 2^30 either way; borrowed */
    const uint64_t *room; /* [P] things that a place takes; together n or more: an invariant. Borrowed */
} gr_transport;

/* place[n] := a least total cost; returned in *total unless NULL. Whole numbers, so the optimum is exact; one thread
 * and a fixed order, so ties always fall the same way. Successive shortest paths over places: O(n P (P^2 + log n)) at
 * worst, memory O(n P). 69 if memory is short. */
GR_MUST gr_err gr_transport_solve(const gr_transport *t, uint16_t *place, int64_t *total);

#endif
