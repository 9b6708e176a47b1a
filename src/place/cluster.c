/* cluster.c: the paper's placement of experts: windows with like affinity are clustered, and each cluster gets the
 * experts that it uses most. */
#include "internal.h"

#include "grouter/kmeans.h"
#include "grouter/transport.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CENTROIDS = 100, STARTS = 10, ITERATIONS_MAX = 300 };
static const double TOLERANCE = 1e-4;
static const double COST_ONE = 0x1p29; /* an affinity of 1 as a whole number: costs stay below 2^30 */

/* ---------------------------------------------------------------- entropy */

double gr_place_entropy(const float *phi, uint32_t E) {
    double bits = 0;
    for (uint32_t e = 0; e < E; e++)
        if (phi[e] > 0)
            bits -= (double)phi[e] * log2((double)phi[e]);
    return E > 1 ? bits / log2((double)E) : 0;
}

/* x[n][E] := the affinity of windows that are concentrated enough. */
static gr_err filter(const gr_place_sample *s, uint32_t n_part, double entropy_max, float **x, size_t *n) {
    GR_TRY(gr_alloc((void **)x, s->n * s->E, sizeof **x, "affinity vectors to cluster"));
    *n = 0;
    for (size_t i = 0; i < s->n; i++)
        if (gr_place_entropy(s->phi + i * s->E, s->E) <= entropy_max)
            memcpy(*x + (*n)++ * s->E, s->phi + i * s->E, s->E * sizeof **x);
    if (*n == s->n)
        return GR_OK;
    const bool too_few = *n < n_part;
    gr_info("%zu of %zu sampled windows have an entropy above %.4g of log2 %" PRIu32 "%s", s->n - *n, s->n, entropy_max,
        s->E, too_few ? "; too few are left, so all are clustered" : " and are left out of the clusters");
    if (too_few) {
        memcpy(*x, s->phi, s->n * s->E * sizeof **x);
        *n = s->n;
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- k-means */

typedef struct centroids {
    uint32_t n;      /* those that have windows */
    float *x;        /* [n][E] */
    uint32_t *label; /* [n_window] */
} centroids;

/* Drops centroids without windows and renumbers the others in order. */
static gr_err drop_empty(centroids *c, size_t n_window, uint32_t E) {
    uint32_t *number = NULL, n = 0;
    GR_TRY(gr_alloc((void **)&number, c->n, sizeof *number, "centroids"));
    for (size_t i = 0; i < n_window; i++)
        number[c->label[i]] = 1;
    for (uint32_t k = 0; k < c->n; k++) {
        if (!number[k])
            continue;
        memmove(c->x + (size_t)n * E, c->x + (size_t)k * E, E * sizeof *c->x);
        number[k] = n++;
    }
    for (size_t i = 0; i < n_window; i++)
        c->label[i] = number[c->label[i]];
    c->n = n;
    free(number);
    return GR_OK;
}

/* The starts one by one, so that there is progress to show: the one of least inertia, ties to the earlier. */
static gr_err run_starts(gr_kmeans *a, centroids *c, float *x, uint32_t *label, uint64_t seed) {
    double best = INFINITY;
    gr_progress progress;
    gr_progress_start(&progress, "clustering the sample", "starts", STARTS);
    for (int i = 0; i < STARTS; i++) {
        gr_kmeans_report r;
        a->seed = gr_random_u64(seed, gr_stream_id("placement: clusters"), (uint64_t)i);
        GR_TRY(gr_kmeans_run(a, x, label, &r));
        if (r.inertia < best) {
            best = r.inertia;
            memcpy(c->x, x, (size_t)a->K * a->D * sizeof *x);
            memcpy(c->label, label, a->n * sizeof *label);
        }
        gr_progress_update(&progress, (uint64_t)i + 1);
    }
    gr_progress_finish(&progress, STARTS);
    return GR_OK;
}

static gr_err find_centroids(centroids *c, const float *windows, size_t n, uint32_t E, uint32_t n_part, uint64_t seed) {
    const uint32_t wanted = n_part > CENTROIDS ? n_part : CENTROIDS;
    float *x = NULL;
    uint32_t *label = NULL;
    gr_kmeans a = {.x = windows,
        .n = n,
        .D = E,
        .K = n < wanted ? (uint32_t)n : wanted,
        .n_restart = 1,
        .n_iteration_max = ITERATIONS_MAX,
        .tolerance = TOLERANCE};
    c->n = a.K;
    gr_err e = gr_alloc((void **)&c->x, (size_t)a.K * E, sizeof *c->x, "centroids");
    if (!e)
        e = gr_alloc((void **)&c->label, n, sizeof *c->label, "labels of windows");
    if (!e)
        e = gr_alloc((void **)&x, (size_t)a.K * E, sizeof *x, "centroids");
    if (!e)
        e = gr_alloc((void **)&label, n, sizeof *label, "labels of windows");
    if (!e)
        e = run_starts(&a, c, x, label, seed);
    if (!e)
        e = drop_empty(c, n, E);
    free(label);
    free(x);
    return e;
}

/* ---------------------------------------------------------------- linkage */

static double cosine(const float *x, const float *y, uint32_t D) {
    double xy = 0, xx = 0, yy = 0;
    for (uint32_t d = 0; d < D; d++) {
        xy += (double)x[d] * (double)y[d];
        xx += (double)x[d] * (double)x[d];
        yy += (double)y[d] * (double)y[d];
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
}

/* The closest two of the clusters that are left, a < b. */
static void closest(const double *distance, const bool *gone, uint32_t n, uint32_t *a, uint32_t *b) {
    double least = INFINITY;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = i + 1; j < n && !gone[i]; j++)
            if (!gone[j] && distance[(size_t)i * n + j] < least) {
                least = distance[(size_t)i * n + j];
                *a = i;
                *b = j;
            }
}

static void merge(double *distance, bool *gone, uint32_t n, uint32_t a, uint32_t b) {
    gone[b] = true;
    for (uint32_t i = 0; i < n; i++) {
        const double far = fmax(distance[(size_t)a * n + i], distance[(size_t)b * n + i]);
        distance[(size_t)a * n + i] = distance[(size_t)i * n + a] = far;
    }
}

static void link_points(double *distance, bool *gone, uint32_t n, uint32_t n_cluster, uint32_t *cluster) {
    for (uint32_t i = 0; i < n; i++)
        cluster[i] = i; /* the lowest point of its cluster */
    for (uint32_t left = n; left > n_cluster; left--) {
        uint32_t a = 0, b = 1;
        closest(distance, gone, n, &a, &b);
        merge(distance, gone, n, a, b);
        for (uint32_t i = 0; i < n; i++)
            if (cluster[i] == b)
                cluster[i] = a;
    }
    uint32_t n_named = 0;
    for (uint32_t i = 0; i < n; i++)
        cluster[i] = cluster[i] == i ? n_named++ : cluster[cluster[i]];
}

gr_err gr_place_linkage(const float *x, uint32_t n, uint32_t D, uint32_t n_cluster, uint32_t *cluster) {
    double *distance = NULL;
    bool *gone = NULL;
    gr_err e = gr_alloc((void **)&distance, (size_t)n * n, sizeof *distance, "distances of centroids");
    if (!e)
        e = gr_alloc((void **)&gone, n, sizeof *gone, "centroids");
    for (uint32_t i = 0; i < n && !e; i++)
        for (uint32_t j = 0; j < n; j++)
            distance[(size_t)i * n + j] = 1 - cosine(x + (size_t)i * D, x + (size_t)j * D, D);
    if (!e)
        link_points(distance, gone, n, n_cluster, cluster);
    free(gone);
    free(distance);
    return e;
}

/* ---------------------------------------------------------------- clusters of windows */

static gr_err take_means(
    const centroids *c, const uint32_t *cluster, const float *x, size_t n, uint32_t n_part, uint32_t E, float *centre) {
    double *sum = NULL;
    size_t *count = NULL;
    gr_err e = gr_alloc((void **)&sum, (size_t)n_part * E, sizeof *sum, "centres of clusters");
    if (!e)
        e = gr_alloc((void **)&count, n_part, sizeof *count, "clusters");
    for (size_t i = 0; i < n && !e; i++) {
        const uint32_t p = cluster[c->label[i]];
        count[p]++;
        for (uint32_t d = 0; d < E; d++)
            sum[(size_t)p * E + d] += (double)x[i * E + d];
    }
    for (uint32_t p = 0; p < n_part && !e; p++)
        for (uint32_t d = 0; d < E; d++)
            centre[(size_t)p * E + d] = count[p] ? (float)(sum[(size_t)p * E + d] / (double)count[p]) : 0.0f;
    free(count);
    free(sum);
    return e;
}

gr_err gr_place_centres(const gr_place_sample *s, uint32_t n_part, double entropy_max, uint64_t seed, float *centre) {
    float *x = NULL;
    size_t n = 0;
    centroids c = {0};
    uint32_t *cluster = NULL;
    gr_err e = filter(s, n_part, entropy_max, &x, &n);
    if (!e)
        e = find_centroids(&c, x, n, s->E, n_part, seed);
    if (!e)
        e = gr_alloc((void **)&cluster, c.n, sizeof *cluster, "clusters of centroids");
    if (!e)
        e = gr_place_linkage(c.x, c.n, s->E, c.n < n_part ? c.n : n_part, cluster);
    if (!e)
        e = take_means(&c, cluster, x, n, n_part, s->E, centre);
    free(cluster);
    free(c.label);
    free(c.x);
    free(x);
    return e;
}

/* ---------------------------------------------------------------- experts to clusters */

static gr_err match(const float *centre, uint32_t n_part, uint32_t E, int32_t *cost, uint64_t *room, uint16_t *part) {
    for (uint32_t p = 0; p < n_part; p++) {
        room[p] = E / n_part;
        for (uint32_t e = 0; e < E; e++)
            cost[(size_t)e * n_part + p] = -(int32_t)lround((double)centre[(size_t)p * E + e] * COST_ONE);
    }
    return gr_transport_solve(&(gr_transport){.n = E, .P = n_part, .cost = cost, .room = room}, part, NULL);
}

gr_err gr_place_match(const float *centre, uint32_t n_part, uint32_t E, uint16_t *part) {
    int32_t *cost = NULL;
    uint64_t *room = NULL;
    gr_err e = gr_alloc((void **)&cost, (size_t)E * n_part, sizeof *cost, "affinity of experts");
    if (!e)
        e = gr_alloc((void **)&room, n_part, sizeof *room, "clusters");
    if (!e)
        e = match(centre, n_part, E, cost, room, part);
    free(room);
    free(cost);
    return e;
}
