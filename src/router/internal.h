/* internal.h: what the files of src/router share. */
#ifndef GROUTER_ROUTER_INTERNAL_H
#define GROUTER_ROUTER_INTERNAL_H

#include "grouter/router.h"

/* The network of a Grouter, ready for windows of T tokens (network.c). */
typedef struct gr_network gr_network;
GR_MUST gr_err gr_network_open(gr_network **out, const gr_grouter *g, gr_backend *backend, uint32_t T);
void gr_network_close(gr_network *n); /* accepts NULL */
/* scores [T, E] and, unless NULL, features [T, D] of one window; host memory valid until the next call. */
GR_MUST gr_err gr_network_scores(gr_network *n, const uint32_t *tokens, const float **scores, const float **features);

struct gr_router {
    gr_router_info info;
    float gate;      /* hash, random: scale/K as bf16 */
    uint64_t stream; /* random only */
    uint16_t *table; /* hash: [V][K] ascending */
    gr_grouter grouter;
    gr_network *network; /* of the Grouter; NULL until prepared */
    const float *scores; /* of its last window */
    float threshold;     /* scale: off */
    bool bias;
};

/* hash.c */
GR_MUST gr_err gr_router_open_table(gr_router **out, gr_map map, const char *path);

GR_MUST gr_err gr_router_route_table(
    const gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates);

#endif
