/* router.h: what chooses experts: balanced hash and random (small .router files). */
#ifndef GROUTER_ROUTER_H
#define GROUTER_ROUTER_H

#include "grouter/routes.h"

typedef enum gr_router_method { GR_ROUTER_HASH, GR_ROUTER_RANDOM } gr_router_method;

typedef struct gr_router_info {
    gr_router_method method;
    uint32_t V, E, K; /* V: hash only, 0 for random */
    float scale;
    uint64_t seed;   /* random only */
    gr_hash128 hash; /* XXH3-128 of settings and tensors, never of data */
} gr_router_info;

typedef struct gr_router gr_router;

/* Balanced hash (Roller et al. 2021 with K > 1, algorithms 9.1): ids from most to least frequent (ties to the lower
 * id); each takes the K lightest experts (ties to the lower id) and adds its frequency to each. frequency[V], 0 counts
 * as 1. */
GR_MUST gr_err gr_router_fit_hash(
    gr_router **out, const uint64_t *frequency, uint32_t V, uint32_t E, uint32_t K, float scale);
/* K distinct uniform experts per position, keyed by (seed, position in the token file); gates scale/K. */
GR_MUST gr_err gr_router_make_random(gr_router **out, uint64_t seed, uint32_t E, uint32_t K, float scale);

GR_MUST gr_err gr_router_save(const gr_router *r, const char *path);
GR_MUST gr_err gr_router_open(gr_router **out, const char *path); /* every field and the checksum checked: 65 */
void gr_router_close(gr_router *r);
const gr_router_info *gr_router_get(const gr_router *r);

/* Routes window `window` (tokens[T+1]; the last one is only a label): ids[T*K] ascending, gates[T*K] exact bf16 values
 * that sum to scale within scale/256. An id >= V is 65. Thread-safe. */
GR_MUST gr_err gr_router_route(
    const gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates);

/* The table header this router's routes carry; provenance and sizes are the caller's. */
void gr_router_describe(const gr_router *r, gr_routes_info *info);

#endif
