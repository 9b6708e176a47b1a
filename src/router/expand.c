/* expand.c: score rows for new experts, made for the tokens that no old row scores well. LAPACK's only file; its two
 * routines are called by their Fortran names, which every LAPACK has. */
#include "grouter/kmeans.h"
#include "internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BAD_QUANTILE 0.2
/* Of a centroid's norm. What float rounding leaves of a vector inside the span is below 1e-7. */
#define OWN_PART_MIN 1e-6
enum {
    BAD_PER_NEW = 4,
    ITERATION_MAX = 100,
    QR_BLOCK = 64, /* columns LAPACK handles at a time, at most: sizes its scratch */
};

/* A = Q R by Householder reflections, A [m,n] by columns; then the first n columns of Q in its place. */
void dgeqrf_(
    const int *m, const int *n, double *A, const int *lda, double *tau, double *work, const int *lwork, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *A, const int *lda, const double *tau, double *work,
    const int *lwork, int *info);

typedef struct scored {
    double score;
    size_t at;
} scored;

typedef struct work {
    const gr_expansion *a;
    uint32_t n_new;
    scored *best;    /* [n] best score of every vector, then sorted, lowest first */
    double *W_t;     /* [D, E_S] */
    float *bad;      /* [n_bad, D] */
    float *centroid; /* [n_new, D] */
    double *Q;       /* [E_T, D] rows; LAPACK's [D, E_T] by columns */
    double *tau;     /* [E_T] */
    double *scratch; /* [E_T * QR_BLOCK] */
    double *own;     /* [n_new] R_jj of the new columns */
} work;

/* ---------------------------------------------------------------- checks */

static gr_err check_finite(const float *x, size_t n, uint32_t D, const char *what) {
    for (size_t i = 0; i < n; i++)
        for (uint32_t d = 0; d < D; d++)
            if (!isfinite(x[i * D + d]))
                return gr_fail(GR_NONFINITE, "expand: expected finite %s, got %g in row %zu, column %" PRIu32, what,
                    (double)x[i * D + d], i, d);
    return GR_OK;
}

gr_err gr_expansion_check_sizes(uint32_t E_S, uint32_t E_T, uint32_t D) {
    if (E_S < 1 || E_T <= E_S || E_T > D || E_T > GR_EXPERTS_MAX)
        return gr_fail(GR_CONFIG,
            "expand: expected more than the %" PRIu32 " experts there are and at most %" PRIu32
            " (%s), since new rows are orthogonal to all others, got %" PRIu32,
            E_S, D < GR_EXPERTS_MAX ? D : GR_EXPERTS_MAX,
            D < GR_EXPERTS_MAX ? "the router's width" : "the most there can be", E_T);
    return GR_OK;
}

static gr_err check(const gr_expansion *a) {
    GR_TRY(gr_expansion_check_sizes(a->E_S, a->E_T, a->D));
    GR_ASSERT(a->D <= INT32_MAX / 2, "width %" PRIu32, a->D);
    if (a->n < a->E_T - a->E_S)
        return gr_fail(GR_DATA, "expand: expected at least %" PRIu32 " sampled vectors (one a new expert), got %zu",
            a->E_T - a->E_S, a->n);
    GR_TRY(check_finite(a->W, a->E_S, a->D, "score rows"));
    return check_finite(a->x, a->n, a->D, "sampled vectors");
}

/* ---------------------------------------------------------------- tokens that are scored badly */

static double best_score(const work *w, const float *x) {
    const uint32_t E = w->a->E_S;
    double score[GR_EXPERTS_MAX];
    memset(score, 0, E * sizeof *score);
    for (uint32_t d = 0; d < w->a->D; d++) {
        const double v = x[d];
        const double *column = w->W_t + (size_t)d * E;
        for (uint32_t e = 0; e < E; e++)
            score[e] += v * column[e];
    }
    double best = score[0];
    for (uint32_t e = 1; e < E; e++)
        best = score[e] > best ? score[e] : best;
    return best;
}

static int by_score(const void *a, const void *b) {
    const scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static void score_vectors(work *w) {
    const gr_expansion *a = w->a;
    for (uint32_t e = 0; e < a->E_S; e++)
        for (uint32_t d = 0; d < a->D; d++)
            w->W_t[(size_t)d * a->E_S + e] = a->W[(size_t)e * a->D + d];
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < a->n; i++)
        w->best[i] = (scored){.score = best_score(w, a->x + i * a->D), .at = i};
    qsort(w->best, a->n, sizeof *w->best, by_score);
}

/* Value at q of the sorted scores, linear between neighbours. */
static double quantile(const scored *sorted, size_t n, double q) {
    const double position = q * (double)(n - 1);
    const size_t below = (size_t)position;
    const double low = sorted[below].score, high = sorted[below + 1 < n ? below + 1 : below].score;
    return low + (position - (double)below) * (high - low);
}

static size_t count_bad(const work *w, double threshold) {
    const size_t n = w->a->n;
    size_t n_bad = 0;
    while (n_bad < n && w->best[n_bad].score <= threshold)
        n_bad++;
    if (n_bad >= w->n_new)
        return n_bad;
    const size_t wanted = (size_t)BAD_PER_NEW * w->n_new;
    return wanted < n ? wanted : n;
}

static gr_err find_centroids(work *w, gr_expansion_report *report) {
    const uint32_t D = w->a->D;
    GR_TRY(gr_alloc((void **)&w->bad, report->n_bad * D, sizeof *w->bad, "expand: badly scored vectors"));
    for (size_t i = 0; i < report->n_bad; i++)
        memcpy(w->bad + i * D, w->a->x + w->best[i].at * D, D * sizeof *w->bad);
    const gr_kmeans clusters = {.x = w->bad,
        .n = report->n_bad,
        .D = D,
        .K = w->n_new,
        .seed = w->a->seed,
        .n_restart = 1,
        .n_iteration_max = ITERATION_MAX,
        .tolerance = 0};
    gr_kmeans_report found;
    GR_TRY(gr_kmeans_run(&clusters, w->centroid, NULL, &found));
    report->inertia = found.inertia;
    report->n_iteration = found.n_iteration;
    return GR_OK;
}

/* ---------------------------------------------------------------- new rows */

static double norm(const float *x, uint32_t D) {
    double sum = 0;
    for (uint32_t d = 0; d < D; d++)
        sum += (double)x[d] * (double)x[d];
    return sqrt(sum);
}

/* |R_jj| is the length of what column j has outside the span of the columns before it. Near 0 the direction that Q
 * gives it is rounding noise. */
static gr_err check_own_part(const work *w, uint32_t j) {
    const double whole = norm(w->centroid + (size_t)j * w->a->D, w->a->D);
    if (fabs(w->own[j]) > OWN_PART_MIN * whole)
        return GR_OK;
    return gr_fail(GR_DATA,
        "expand: new expert %" PRIu32 " of %" PRIu32
        ": expected a cluster centre with a part outside the span of the rows before it, got %.2g of its norm %.4g; "
        "sample more or other tokens, or ask for fewer experts",
        j + 1, w->n_new, whole > 0 ? fabs(w->own[j]) / whole : 0.0, whole);
}

static gr_err orthogonalise(work *w) {
    const gr_expansion *a = w->a;
    const int m = (int)a->D, n = (int)a->E_T, n_scratch = n * QR_BLOCK;
    const size_t n_old = (size_t)a->E_S * a->D, n_added = (size_t)w->n_new * a->D;
    for (size_t i = 0; i < n_old; i++)
        w->Q[i] = a->W[i];
    for (size_t i = 0; i < n_added; i++)
        w->Q[n_old + i] = w->centroid[i];
    int info;
    dgeqrf_(&m, &n, w->Q, &m, w->tau, w->scratch, &n_scratch, &info);
    GR_ASSERT(info == 0, "dgeqrf: argument %d", -info);
    for (uint32_t j = 0; j < w->n_new; j++) {
        w->own[j] = w->Q[(size_t)(a->E_S + j) * a->D + a->E_S + j];
        GR_TRY(check_own_part(w, j));
    }
    dorgqr_(&m, &n, &n, w->Q, &m, w->tau, w->scratch, &n_scratch, &info);
    GR_ASSERT(info == 0, "dorgqr: argument %d", -info);
    return GR_OK;
}

static gr_err find_radius(const gr_expansion *a, double *radius) {
    double sum = 0;
    for (uint32_t e = 0; e < a->E_S; e++)
        sum += norm(a->W + (size_t)e * a->D, a->D);
    *radius = sum / a->E_S;
    if (!(*radius > 0))
        return gr_fail(
            GR_DATA, "expand: expected score rows that are not all 0, got %" PRIu32 " rows of zeros", a->E_S);
    return GR_OK;
}

static void write_rows(const work *w, double radius, float *W_T, float *bias_T) {
    const gr_expansion *a = w->a;
    memcpy(W_T, a->W, (size_t)a->E_S * a->D * sizeof *W_T);
    for (uint32_t j = 0; j < w->n_new; j++) {
        const size_t row = (size_t)(a->E_S + j) * a->D;
        const double scale = w->own[j] < 0 ? -radius : radius;
        for (uint32_t d = 0; d < a->D; d++)
            W_T[row + d] = (float)(scale * w->Q[row + d]);
    }
    if (!a->bias)
        return;
    memcpy(bias_T, a->bias, a->E_S * sizeof *bias_T);
    memset(bias_T + a->E_S, 0, w->n_new * sizeof *bias_T);
}

/* ---------------------------------------------------------------- interface */

static gr_err work_open(work *w, const gr_expansion *a) {
    *w = (work){.a = a, .n_new = a->E_T - a->E_S};
    const char *what = "expand";
    GR_TRY(gr_alloc((void **)&w->best, a->n, sizeof *w->best, what));
    GR_TRY(gr_alloc((void **)&w->W_t, (size_t)a->D * a->E_S, sizeof *w->W_t, what));
    GR_TRY(gr_alloc((void **)&w->centroid, (size_t)w->n_new * a->D, sizeof *w->centroid, what));
    GR_TRY(gr_alloc((void **)&w->Q, (size_t)a->E_T * a->D, sizeof *w->Q, what));
    GR_TRY(gr_alloc((void **)&w->tau, a->E_T, sizeof *w->tau, what));
    GR_TRY(gr_alloc((void **)&w->scratch, (size_t)a->E_T * QR_BLOCK, sizeof *w->scratch, what));
    return gr_alloc((void **)&w->own, w->n_new, sizeof *w->own, what);
}

static void work_close(work *w) {
    free(w->own);
    free(w->scratch);
    free(w->tau);
    free(w->Q);
    free(w->centroid);
    free(w->bad);
    free(w->W_t);
    free(w->best);
}

gr_err gr_expansion_run(const gr_expansion *a, float *W_T, float *bias_T, gr_expansion_report *report) {
    gr_expansion_report r = {0};
    GR_TRY(check(a));
    GR_TRY(find_radius(a, &r.radius));
    work w;
    gr_err err = work_open(&w, a);
    if (!err) {
        score_vectors(&w);
        r.threshold = quantile(w.best, a->n, BAD_QUANTILE);
        r.n_bad = count_bad(&w, r.threshold);
        err = find_centroids(&w, &r);
    }
    if (!err)
        err = orthogonalise(&w);
    if (!err)
        write_rows(&w, r.radius, W_T, bias_T);
    work_close(&w);
    if (!err && report)
        *report = r;
    return err;
}
