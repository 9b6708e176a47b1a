/* kmeans.c: k-means++ and Lloyd. Work is shared out by point or by cluster, and every sum is made by one thread in a
 * fixed order, so no result depends on the number of threads. */
#include "grouter/kmeans.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    TILE = 16,        /* centroids whose distances to a point are summed side by side */
    LANES = 8,        /* partial sums of one distance */
    WIDE_MIN = 65536, /* numbers of all points: below, threads cost more than they bring */
};

typedef struct work {
    const gr_kmeans *a;
    bool wide;             /* enough work to share it out */
    uint64_t stream, draw; /* the next random number is element `draw` */
    float *centroid;       /* [K,D] */
    double *tiled;         /* [ceil(K/TILE), D, TILE] the same, for the distances; the last tile is filled up with 0 */
    double *sum;           /* [K,D] */
    uint32_t *label;       /* [n] */
    double *distance;      /* [n] squared, to the point's centroid */
    size_t *order;         /* [n] points by label, ascending within one */
    size_t *count;         /* [K] points of each cluster */
    size_t *start;         /* [K+1] first entry of each cluster in `order` */
} work;

/* ---------------------------------------------------------------- distances */

static double point_distance(const float *x, const float *y, uint32_t D) {
    double lane[LANES] = {0};
    uint32_t d = 0;
    for (; d + LANES <= D; d += LANES)
        for (int l = 0; l < LANES; l++) {
            double t = (double)x[d + (uint32_t)l] - (double)y[d + (uint32_t)l];
            lane[l] += t * t;
        }
    for (; d < D; d++)
        lane[0] += ((double)x[d] - (double)y[d]) * ((double)x[d] - (double)y[d]);
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* Squared distances of x[D] to the centroids of one tile [D,TILE]. */
static void tile_distances(const float *x, const double *tile, uint32_t D, double out[TILE]) {
    double sum[TILE] = {0};
    for (uint32_t d = 0; d < D; d++) {
        const double v = x[d];
        for (int k = 0; k < TILE; k++) {
            double t = v - tile[(size_t)d * TILE + (size_t)k];
            sum[k] += t * t;
        }
    }
    memcpy(out, sum, sizeof sum);
}

static size_t tile_count(uint32_t K) {
    return ((size_t)K + TILE - 1) / TILE;
}

static void tile_centroids(work *w) {
    const uint32_t D = w->a->D;
    for (uint32_t k = 0; k < w->a->K; k++)
        for (uint32_t d = 0; d < D; d++)
            w->tiled[((size_t)(k / TILE) * D + d) * TILE + k % TILE] = w->centroid[(size_t)k * D + d];
}

static uint32_t nearest(const work *w, const float *x, double *distance) {
    const uint32_t K = w->a->K, D = w->a->D;
    uint32_t best = 0;
    *distance = INFINITY;
    for (uint32_t first = 0; first < K; first += TILE) {
        double d[TILE];
        tile_distances(x, w->tiled + (size_t)first * D, D, d);
        for (uint32_t k = 0; k < TILE && first + k < K; k++)
            if (d[k] < *distance) {
                *distance = d[k];
                best = first + k;
            }
    }
    return best;
}

/* Every point to its nearest centroid. Returns the inertia. */
static double assign_points(work *w) {
    const size_t n = w->a->n;
    tile_centroids(w);
#pragma omp parallel for schedule(static) if (w->wide)
    for (size_t i = 0; i < n; i++)
        w->label[i] = nearest(w, w->a->x + i * w->a->D, &w->distance[i]);
    double inertia = 0;
    for (size_t i = 0; i < n; i++)
        inertia += w->distance[i];
    return inertia;
}

/* ---------------------------------------------------------------- seeding */

static uint64_t next_random(work *w) {
    return gr_random_u64(w->a->seed, w->stream, w->draw++);
}

/* A point with a chance proportional to its squared distance to the centroids so far; any, if all distances are 0. */
static size_t draw_point(work *w) {
    const size_t n = w->a->n;
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += w->distance[i];
    const uint64_t random = next_random(w);
    if (!(total > 0))
        return (size_t)((unsigned __int128)random * n >> 64);
    const double target = (double)(random >> 11) * 0x1p-53 * total;
    size_t i = 0;
    double sum = w->distance[0]; /* in the order of `total`, which is above the target */
    while (sum <= target && i + 1 < n)
        sum += w->distance[++i];
    return i;
}

static void seed_centroids(work *w) {
    const size_t n = w->a->n;
    const uint32_t D = w->a->D;
    memset(w->distance, 0, n * sizeof *w->distance); /* so the first is drawn uniformly */
    for (uint32_t k = 0; k < w->a->K; k++) {
        float *c = w->centroid + (size_t)k * D;
        memcpy(c, w->a->x + draw_point(w) * D, D * sizeof *c);
#pragma omp parallel for schedule(static) if (w->wide)
        for (size_t i = 0; i < n; i++) {
            double d = point_distance(w->a->x + i * D, c, D);
            if (k == 0 || d < w->distance[i])
                w->distance[i] = d;
        }
    }
}

/* ---------------------------------------------------------------- moving */

/* An empty cluster takes the point farthest from its centroid that does not leave another cluster empty. */
static void fill_empty_clusters(work *w) {
    for (uint32_t k = 0; k < w->a->K; k++) {
        if (w->count[k])
            continue;
        size_t far = SIZE_MAX;
        double distance = 0;
        for (size_t i = 0; i < w->a->n; i++)
            if (w->distance[i] > distance && w->count[w->label[i]] > 1) {
                distance = w->distance[i];
                far = i;
            }
        if (far == SIZE_MAX) /* fewer than K different points: it stays empty */
            return;
        w->count[w->label[far]]--;
        w->count[k] = 1;
        w->label[far] = k;
        w->distance[far] = 0;
    }
}

static void order_points(work *w) {
    const uint32_t K = w->a->K;
    w->start[0] = 0;
    for (uint32_t k = 0; k < K; k++)
        w->start[k + 1] = w->start[k] + w->count[k];
    memset(w->count, 0, K * sizeof *w->count);
    for (size_t i = 0; i < w->a->n; i++)
        w->order[w->start[w->label[i]] + w->count[w->label[i]]++] = i;
}

/* Every centroid to the mean of its points. */
static void move_centroids(work *w) {
    const uint32_t K = w->a->K, D = w->a->D;
    memset(w->count, 0, K * sizeof *w->count);
    for (size_t i = 0; i < w->a->n; i++)
        w->count[w->label[i]]++;
    fill_empty_clusters(w);
    order_points(w);
#pragma omp parallel for schedule(dynamic) if (w->wide)
    for (uint32_t k = 0; k < K; k++) {
        double *sum = w->sum + (size_t)k * D;
        memset(sum, 0, D * sizeof *sum);
        for (size_t at = w->start[k]; at < w->start[k + 1]; at++)
            for (uint32_t d = 0; d < D; d++)
                sum[d] += (double)w->a->x[w->order[at] * D + d];
        for (uint32_t d = 0; d < D && w->count[k]; d++)
            w->centroid[(size_t)k * D + d] = (float)(sum[d] / (double)w->count[k]);
    }
}

static gr_kmeans_report run_start(work *w) {
    gr_kmeans_report r = {0};
    seed_centroids(w);
    r.inertia = assign_points(w);
    while (r.n_iteration < w->a->n_iteration_max && !r.converged) {
        const double before = r.inertia;
        move_centroids(w);
        r.inertia = assign_points(w);
        r.n_iteration++;
        r.converged = !(r.inertia < (1 - w->a->tolerance) * before);
    }
    return r;
}

/* ---------------------------------------------------------------- interface */

static gr_err check(const gr_kmeans *a) {
    GR_ASSERT(a->D >= 1 && a->n_restart >= 1 && a->n_iteration_max >= 0 && a->tolerance >= 0 && a->tolerance < 1,
        "D %u, %d restarts, %d iterations, tolerance %g", a->D, a->n_restart, a->n_iteration_max, a->tolerance);
    if (a->K < 1 || a->K > a->n)
        return gr_fail(GR_DATA, "k-means: expected 1 to %zu clusters (the number of points), got %u; take more points",
            a->n, a->K);
    for (size_t i = 0; i < a->n; i++)
        for (uint32_t d = 0; d < a->D; d++)
            if (!isfinite(a->x[i * a->D + d]))
                return gr_fail(GR_NONFINITE, "k-means: expected finite coordinates, got %g at point %zu, coordinate %u",
                    (double)a->x[i * a->D + d], i, d);
    return GR_OK;
}

static gr_err work_open(work *w, const gr_kmeans *a) {
    *w = (work){.a = a, .stream = gr_stream_id("k-means"), .wide = a->n > WIDE_MIN / a->D};
    const char *what = "k-means";
    size_t n_tiled;
    if (!gr_mul_size(tile_count(a->K) * TILE, a->D, &n_tiled)) /* K D is below it */
        return gr_fail(GR_RESOURCE, "k-means: %u centroids of %u coordinates do not fit memory", a->K, a->D);
    GR_TRY(gr_alloc((void **)&w->centroid, (size_t)a->K * a->D, sizeof *w->centroid, what));
    GR_TRY(gr_alloc((void **)&w->tiled, n_tiled, sizeof *w->tiled, what));
    GR_TRY(gr_alloc((void **)&w->sum, (size_t)a->K * a->D, sizeof *w->sum, what));
    GR_TRY(gr_alloc((void **)&w->label, a->n, sizeof *w->label, what));
    GR_TRY(gr_alloc((void **)&w->distance, a->n, sizeof *w->distance, what));
    GR_TRY(gr_alloc((void **)&w->order, a->n, sizeof *w->order, what));
    GR_TRY(gr_alloc((void **)&w->count, a->K, sizeof *w->count, what));
    return gr_alloc((void **)&w->start, (size_t)a->K + 1, sizeof *w->start, what);
}

static void work_close(work *w) {
    free(w->start);
    free(w->count);
    free(w->order);
    free(w->distance);
    free(w->label);
    free(w->sum);
    free(w->tiled);
    free(w->centroid);
}

gr_err gr_kmeans_run(const gr_kmeans *a, float *centroid, uint32_t *label, gr_kmeans_report *report) {
    GR_TRY(check(a));
    work w;
    gr_err err = work_open(&w, a);
    gr_kmeans_report best = {.inertia = INFINITY};
    for (int start = 0; start < a->n_restart && !err; start++) {
        gr_kmeans_report r = run_start(&w);
        if (!(r.inertia < best.inertia))
            continue;
        best = r;
        memcpy(centroid, w.centroid, (size_t)a->K * a->D * sizeof *centroid);
        if (label)
            memcpy(label, w.label, a->n * sizeof *label);
    }
    if (!err && report)
        *report = best;
    work_close(&w);
    return err;
}
