/* internal.h: what the files of src/router share. */
#ifndef GROUTER_ROUTER_INTERNAL_H
#define GROUTER_ROUTER_INTERNAL_H

#include "grouter/folding.h"
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

/* Sampled windows, shared among ranks in parts (survey.c). */
typedef struct gr_survey {
    gr_comm *comm;
    gr_backend *backend;
    gr_tokens *const *tokens; /* [n_file] */
    int n_file;
    uint32_t T, n_part;
    uint64_t seed, n_all, n_window; /* windows in all files, and sampled */
} gr_survey;
GR_MUST gr_err gr_survey_open(gr_survey *s, const gr_folding *f); /* 65 without a window */

/* Inputs of the score rows, sampled over all ranks. */
typedef struct gr_vectors {
    float *x; /* [n, D], of rank 0 with room for all ranks' */
    size_t n, n_max;
    uint32_t D;
} gr_vectors;
GR_MUST gr_err gr_vectors_open(gr_vectors *v, const gr_survey *s, size_t n_max, uint32_t D);
void gr_vectors_close(gr_vectors *v); /* accepts a zeroed one */

/* Collective: adds the choices of g on the sample to `choices` on every rank and, unless NULL, fills `vectors`, in the
 * end all of them on rank 0. The caller agreed on everything before. */
GR_MUST gr_err gr_survey_run(const gr_survey *s, const gr_grouter *g, gr_affinity *choices, gr_vectors *vectors);

/* Numbers of experts that rows of D can be expanded from and to (expand.c): 64. */
GR_MUST gr_err gr_expansion_check_sizes(uint32_t E_S, uint32_t E_T, uint32_t D);

/* hash.c */
GR_MUST gr_err gr_router_open_table(gr_router **out, gr_map map, const char *path);

GR_MUST gr_err gr_router_route_table(
    const gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates);

#endif
