/* router.h: what chooses experts: balanced hash and random (small .router files), or a Grouter (grouter.h). */
#ifndef GROUTER_ROUTER_H
#define GROUTER_ROUTER_H

#include "grouter/grouter.h"

typedef enum gr_router_method {
    GR_ROUTER_HASH,
    GR_ROUTER_RANDOM,
    GR_ROUTER_GROUTER,
    GR_N_ROUTER_METHOD
} gr_router_method;
const char *gr_router_method_name(gr_router_method method); /* "hash", "random", "grouter" */

typedef struct gr_router_info {
    gr_router_method method;
    uint32_t V, E, K; /* V: 0 for random, which takes any token */
    float scale;
    uint64_t seed;        /* random only */
    gr_mask mask;         /* Grouter only; else NONE */
    gr_position position; /* Grouter only; else NONE */
    bool variable_k;      /* leaves slots unused: dynamic activation */
    gr_hash128 hash;      /* XXH3-128 of settings and tensors, never of data */
} gr_router_info;

typedef struct gr_router gr_router;

/* Balanced hash (Roller et al. 2021 with K > 1, algorithms 9.1): ids from most to least frequent (ties to the lower
 * id); each takes the K lightest experts (ties to the lower id) and adds its frequency to each. frequency[V], 0 counts
 * as 1. */
GR_MUST gr_err gr_router_fit_hash(
    gr_router **out, const uint64_t *frequency, uint32_t V, uint32_t E, uint32_t K, float scale);
/* K distinct uniform experts per position, keyed by (seed, position in the token file); gates scale/K. */
GR_MUST gr_err gr_router_make_random(gr_router **out, uint64_t seed, uint32_t E, uint32_t K, float scale);

GR_MUST gr_err gr_router_save(const gr_router *r, const char *path); /* hash and random */
/* Any of the three kinds, recognised by its first bytes; every field and checksum checked: 65, a Grouter's tensors 66.
 */
GR_MUST gr_err gr_router_open(gr_router **out, const char *path);
void gr_router_close(gr_router *r);
const gr_router_info *gr_router_get(const gr_router *r);

/* Optional ways to use a Grouter (gr_selection); they are settings, so each changes the router's hash. threshold in (0,
 * scale) turns dynamic activation on; bias routing selects by score + the Grouter's bias. Another threshold, or a
 * router of another method: 2. */
GR_MUST gr_err gr_router_use_threshold(gr_router *r, float threshold);
GR_MUST gr_err gr_router_use_bias(gr_router *r);

/* What gr_router_route needs for windows of T tokens: of a Grouter its network on `backend` (storage type F32), which
 * must outlive the router; of the others nothing. 69. */
GR_MUST gr_err gr_router_prepare(gr_router *r, gr_backend *backend, uint32_t T);

/* Routes window `window` (tokens[T+1]; the last one is only a label, never seen): ids[T*K] ascending, gates[T*K] exact
 * bf16 values that sum to scale within scale/256 (less, and zeros, with variable_k). An id >= V is 65; scores of a
 * Grouter that are not finite are 71, naming the token: its weights are damaged. A Grouter is always evaluated one
 * window per call, so that a table and online routing have the same bits. */
GR_MUST gr_err gr_router_route(
    gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates);

/* The scores behind the routes of the last window, [T, E]; NULL unless the router is a Grouter. */
const float *gr_router_scores(const gr_router *r);

/* The table header this router's routes carry; provenance and sizes are the caller's. */
void gr_router_describe(const gr_router *r, gr_routes_info *info);

#endif
