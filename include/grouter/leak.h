/* leak.h: does a route see the future? Two measurements over sampled windows of data.valid and cuts shared by them; a
 * cut t divides a window into its prefix, tokens 0..t, and what comes after.
 *
 *   routes  the tokens after t are replaced by those of another window; what changes in the routes of positions <= t?
 *   loss    cross-entropy of a trained target at t, whose next token is the first one after the cut, with three kinds
 * of routes for positions <= t: of the whole window, of the prefix alone, and of the prefix with another window's
 *           suffix. The target reads the true tokens in all three.
 *
 * A router that sees nothing ahead changes no bit in the first. In the second, its routes of the prefix alone may
 * differ by the rounding of products of other sizes. */
#ifndef GROUTER_LEAK_H
#define GROUTER_LEAK_H

#include "grouter/config.h"
#include "grouter/comm.h"
#include "grouter/router.h"

typedef struct gr_leak_options {
    const gr_config *config; /* of train; its model is the target, its data.valid the text */
    gr_comm *comm;           /* the ranks share the windows */
    const char *router;      /* file */
    bool bias;               /* gr_router_use_bias */
    float threshold;         /* gr_router_use_threshold; 0: off */
    const char *weights;     /* of the target; NULL: only the routes are measured */
    uint64_t n_window;       /* windows, and cuts in each, at most: as many as there are otherwise */
    uint64_t n_cut;
    uint64_t seed; /* of windows, cuts and suffixes */
} gr_leak_options;

/* Mean over windows of their means over cuts, and its standard error over windows (NaN with one window). */
typedef struct gr_leak_mean {
    double mean, error;
} gr_leak_mean;

/* Positions whose distance t - position lies in [first, last]; means over them. */
typedef struct gr_leak_bucket {
    uint32_t first, last;
    uint64_t n_route;
    double set_changed; /* share with other experts */
    double gate_change; /* mean |difference| of the gates of the experts in either route */
    double divergence;  /* KL of the softmax over all experts after the change from that before, nats; Grouters only */
} gr_leak_bucket;
enum { GR_LEAK_BUCKETS = 33 }; /* 0, 1, 2, 3-4, 5-8, ... up to 2^31 */

typedef struct gr_leak {
    gr_router_info router;
    uint32_t T, n_cut, *cut; /* cut[n_cut] ascending; owned */
    uint64_t n_window;
    uint64_t n_route, n_changed; /* compared; of those with another bit in experts, gates or scores */
    int n_bucket;
    gr_leak_bucket bucket[GR_LEAK_BUCKETS];
    bool target; /* the losses below were measured, nats per token */
    gr_leak_mean full, prefix, swapped;
    gr_leak_mean prefix_rise, swapped_rise; /* prefix - full, swapped - full */
    gr_leak_mean last;                      /* full at the last position of the windows: there is nothing ahead */
} gr_leak;

/* Collective over the world; the same result on every rank and, but for rounding of the target, on any number of ranks.
 * 64: learned routes, no data.valid, windows of one token. 65: a router of other sizes than the model's, or another
 * than data.valid's tables were made with; fewer than two windows. 66: weights. Sources: gr_leak's fields. */
GR_MUST gr_err gr_leak_run(const gr_leak_options *o, gr_leak *out);
void gr_leak_close(gr_leak *leak); /* accepts a zeroed one */

#endif
