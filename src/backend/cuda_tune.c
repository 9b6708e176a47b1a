/* cuda_tune.c: which of cuBLASLt's suggestions for a product is the fastest, by the clock. Runs that train do not come
 * here: they read what was found (cuda_plans.c).
 *
 * A product is timed where it lies, in the step that needs it, with the bytes that its result has now, and computed
 * afterwards as if nothing had been. So an overwritten result may be written again and again; of an accumulated one the
 * sums go elsewhere. Not measured on a GPU yet. */
#include "cuda_products.h"

#include <stdlib.h>

/* Launches of a sample are queued together, so that the host is ahead of the GPU in all but the first. */
enum { SUGGESTIONS = 12, SAMPLES = 7, RUNS = 4 };

typedef struct timing {
    gr_backend *b;
    gr_cuda_products *p;
    gr_cublas_place at;
    const gr_gemm *g;
    gr_cublas_descriptors d;
    void *to; /* g->c, or memory of the same size */
    cudaEvent_t begin, end;
} timing;

gr_err gr_cuda_tune(gr_backend *b, bool on) {
    gr_cuda *s = b->state;
    s->products->is_tuning = on;
    return GR_OK;
}

/* Experts of other workers and rows of other ranks would be timed too. */
static gr_err wait_for_all(gr_backend *b) {
    for (int q = 0; q < GR_CUDA_QUEUES; q++)
        GR_TRY(gr_cuda_wait_queue(b, q));
    return GR_OK;
}

static gr_err timing_open(timing *t) {
    const gr_gemm *g = t->g;
    GR_TRY(wait_for_all(t->b));
    GR_TRY(gr_cublas_check(t->p, gr_cublas_describe(t->p, g, &t->d), "describing a product"));
    GR_TRY(gr_cuda_check((int)cudaEventCreate(&t->begin), "timing a product"));
    GR_TRY(gr_cuda_check((int)cudaEventCreate(&t->end), "timing a product"));
    t->to = g->c;
    if (g->write == GR_OVERWRITE)
        return GR_OK;
    const size_t n = (size_t)((g->m - 1) * g->ldc + g->n);
    return gr_cuda_alloc(t->b, n * gr_dtype_size(g->c_dtype), "a second result of a product that is tuned", &t->to);
}

static void timing_close(timing *t) {
    if (t->to != t->g->c)
        gr_cuda_release(t->b, t->to);
    if (t->begin)
        cudaEventDestroy(t->begin);
    if (t->end)
        cudaEventDestroy(t->end);
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static gr_err run(timing *t, const cublasLtMatmulAlgo_t *algorithm) {
    return gr_cublas_check(t->p, gr_cublas_run(t->p, t->at, t->g, algorithm, &t->d, t->to), "a product that is tuned");
}

static gr_err take_sample(timing *t, const cublasLtMatmulAlgo_t *algorithm, float *ms) {
    GR_TRY(gr_cuda_check((int)cudaEventRecord(t->begin, t->at.stream), "timing a product"));
    for (int i = 0; i < RUNS; i++)
        GR_TRY(run(t, algorithm));
    GR_TRY(gr_cuda_check((int)cudaEventRecord(t->end, t->at.stream), "timing a product"));
    GR_TRY(gr_cuda_wait_event(t->b, t->end));
    return gr_cuda_check((int)cudaEventElapsedTime(ms, t->begin, t->end), "timing a product");
}

/* Median; 0 for an algorithm that does not take g, though it was suggested for a product with a few rows more. */
static gr_err time_algorithm(timing *t, const cublasLtMatmulAlgo_t *algorithm, float *us) {
    float ms[SAMPLES];
    *us = 0;
    const cublasStatus_t first = gr_cublas_run(t->p, t->at, t->g, algorithm, &t->d, t->to); /* loads its code, too */
    if (gr_cublas_refused(first))
        return GR_OK;
    GR_TRY(gr_cublas_check(t->p, first, "a product that is tuned"));
    for (int i = 0; i < SAMPLES; i++)
        GR_TRY(take_sample(t, algorithm, &ms[i]));
    qsort(ms, SAMPLES, sizeof *ms, by_value);
    *us = ms[SAMPLES / 2] * 1e3f / RUNS;
    return GR_OK;
}

/* Of equals the one that was suggested first. */
static gr_err time_all(timing *t, const cublasLtMatmulHeuristicResult_t *found, int n, gr_cuda_plan *best) {
    for (int i = 0; i < n; i++) {
        float us;
        GR_TRY(time_algorithm(t, &found[i].algo, &us));
        if (i == 0)
            best->us_first = us;
        if (us > 0 && (best->us <= 0 || us < best->us)) {
            best->us = us;
            best->algorithm = found[i].algo;
        }
    }
    return GR_OK;
}

/* Those that a run will accept from a file, in their order; returns how many. */
static int keep_acceptable(
    gr_cuda_products *p, const gr_gemm *canonical, cublasLtMatmulHeuristicResult_t *found, int n) {
    const gr_product_key key = gr_product_key_of(canonical);
    int n_kept = 0;
    for (int i = 0; i < n; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && !gr_cublas_objection(p, &key, &found[i].algo))
            found[n_kept++] = found[i];
    return n_kept;
}

gr_err gr_cuda_tune_product(gr_backend *b, int queue, const gr_gemm *canonical, const gr_gemm *g, gr_cuda_plan *out) {
    gr_cuda *s = b->state;
    timing t = {.b = b, .p = s->products, .at = gr_cublas_place_of(s, queue), .g = g};
    cublasLtMatmulHeuristicResult_t found[SUGGESTIONS];
    int n;
    *out = (gr_cuda_plan){0};
    GR_TRY(gr_cublas_suggest(t.p, canonical, SUGGESTIONS, found, &n));
    if (n == 0 || found[0].state != CUBLAS_STATUS_SUCCESS)
        return GR_OK;
    out->is_lt = true;
    out->algorithm = found[0].algo;
    n = keep_acceptable(t.p, canonical, found, n);
    gr_err err = timing_open(&t);
    if (!err)
        err = time_all(&t, found, n, out);
    timing_close(&t);
    return err;
}
