/* transfer.h: moving rows between the ranks of the expert-parallel group. */
#ifndef GROUTER_MOE_TRANSFER_H
#define GROUTER_MOE_TRANSFER_H

#include "grouter/moe.h"

/* Sends send_rows[r] rows of `width` elements from `send` to each rank r and receives recv_rows[r] into `recv`, both by
 * rank. Ordered after all COMPUTE work so far and before all that follows. Adds its time to exchange_ms. */
GR_MUST gr_err gr_moe_transfer(gr_moe *m, gr_dtype dtype, int64_t width, const void *send, const uint32_t *send_rows,
    void *recv, const uint32_t *recv_rows);

#endif
