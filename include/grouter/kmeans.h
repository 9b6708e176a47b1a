/* kmeans.h: k-means of points on the host: k-means++ seeding, Lloyd iterations, restarts. Only base.h is below it. */
#ifndef GROUTER_KMEANS_H
#define GROUTER_KMEANS_H

#include "grouter/base.h"

typedef struct gr_kmeans {
    const float *x; /* [n, D] points, finite; borrowed */
    size_t n;
    uint32_t D, K; /* 1 <= K <= n */
    uint64_t seed;
    int n_restart;       /* 1 or more: the lowest inertia is kept, ties to the earlier start */
    int n_iteration_max; /* of one start: how often the centroids may move */
    double tolerance;    /* a start ends when an iteration lowers its inertia by no more than this share */
} gr_kmeans;

typedef struct gr_kmeans_report {
    double inertia;  /* sum of squared distances of the points to their centroids */
    int n_iteration; /* of the start that was kept */
    bool converged;  /* the last iteration gained no more than the tolerance */
} gr_kmeans_report;

/* centroid[K,D] and label[n] (the nearest centroid, ties to the lowest) of the best start. label and report may be
 * NULL. Seeding: k-means++ (Arthur and Vassilvitskii 2007), one candidate per centroid. An empty cluster takes the
 * point farthest from its centroid. With fewer than K different points some centroids are equal, and of equal ones all
 * but the lowest have no point. Distances and sums are in double; the result depends on nothing but the arguments, not
 * on the number of threads. Errors: 65 if n < K or K = 0, 71 if a coordinate is not finite, 69 without memory (about
 * 20n + 16KD bytes). */
GR_MUST gr_err gr_kmeans_run(const gr_kmeans *a, float *centroid, uint32_t *label, gr_kmeans_report *report);

#endif
