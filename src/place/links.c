/* links.c: rows within a node and between nodes. */
#include "grouter/links.h"

void gr_links_add(gr_links *l, const uint32_t *touch, uint32_t R, uint32_t node_ranks, uint32_t rank) {
    GR_ASSERT(node_ranks > 0 && rank < R, "rank %u of %u, %u a node", rank, R, node_ranks);
    for (uint32_t r = 0; r < R; r++) {
        if (r == rank)
            continue;
        if (r / node_ranks == rank / node_ranks)
            l->within += touch[r];
        else
            l->between += touch[r];
    }
}
