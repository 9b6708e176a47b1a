/* internal.h: who owns which elements. Internal to src/optim. */
#ifndef GROUTER_OPTIM_INTERNAL_H
#define GROUTER_OPTIM_INTERNAL_H

#include "grouter/optim.h"

/* Elements [first, first+n) of the flat range. */
typedef struct gr_share {
    int64_t first, n;
} gr_share;

/* What this rank owns: an equal share of [0] the dense part, over the world, and of [1] its experts, over the ranks
 * that hold the same ones. Over all ranks each element of the model has exactly one owner. */
void gr_share_owned(const gr_params *p, const gr_comm *comm, gr_share owned[2]);

#endif
