/* times.h: what all benchmarks share: summaries of times, random data, arrays of an op. */
#ifndef GROUTER_BENCH_TIMES_H
#define GROUTER_BENCH_TIMES_H

#include "grouter/bench.h"

/* Median and quartiles; sorts ms[n], n >= 1. */
gr_bench_time gr_bench_quartiles(double *ms, size_t n);

/* For n numbers of the storage type: element i is scale * gr_bench_normal(key, first + i), rounded. */
void gr_bench_fill_normal(gr_dtype dtype, void *to, int64_t n, uint64_t key, uint64_t first, float scale);
/* The same number once more, as it is stored. */
double gr_bench_stored(gr_dtype dtype, uint64_t key, uint64_t i, float scale);
/* Element i of an array of F32, BF16, F64, I32, U32, U16, U8 or U64. */
double gr_bench_get(gr_dtype dtype, const void *from, int64_t i);

/* ||got - expected|| / ||expected|| over everything that was compared. */
typedef struct bench_error {
    double difference, norm;
} bench_error;
static inline void gr_bench_compare(bench_error *e, double got, double expected) {
    e->difference += (got - expected) * (got - expected);
    e->norm += expected * expected;
}
/* Infinite with a NaN, or where all should be 0 and is not. */
double gr_bench_error_get(const bench_error *e);
/* The largest error that an op with this storage type may have. */
double gr_bench_error_max(gr_dtype dtype);

double gr_bench_silu(double u); /* u / (1 + e^-u) */
double gr_bench_silu_slope(double u);

/* The i-th of n_sample places among n, from the first to the last. */
static inline int64_t gr_bench_sample(int64_t i, int64_t n_sample, int64_t n) {
    return n_sample > 1 ? i * (n - 1) / (n_sample - 1) : 0;
}

/* Memory of n_byte in each rank fits what their host has left: 69. Collective. */
GR_MUST gr_err gr_bench_room(gr_comm *c, size_t n_byte, const char *bench, const char *remedy);

/* ---------------------------------------------------------------- arrays of one op, on the host and in the backend */

typedef enum bench_role {
    BENCH_IN,   /* read */
    BENCH_OUT,  /* overwritten: NaN before */
    BENCH_SUM,  /* added to: 0 before */
    BENCH_TURN, /* changed in place; the next run goes on from there */
    BENCH_BACK, /* changed in place; brought back before every run */
} bench_role;

/* scale 0: zeros, for the caller to fill in on the host before the upload; else normal. */
typedef struct bench_want {
    bench_role role;
    gr_dtype dtype;
    int64_t n;
    float scale;
} bench_want;

typedef struct bench_array {
    bench_want want;
    void *host;   /* before the first run */
    void *result; /* after it, where it may have changed */
    void *device; /* backend memory */
} bench_array;

enum { BENCH_ARRAYS_MAX = 20 };
typedef struct bench_arrays {
    gr_backend *backend;
    int n;
    bench_array list[BENCH_ARRAYS_MAX];
} bench_arrays;

/* Array i is what want[i] says; with n 0 its pointers are NULL. 69 before anything is allocated if it does not fit. */
GR_MUST gr_err gr_bench_arrays_open(bench_arrays *a, gr_backend *b, const bench_want *want, int n_want, uint64_t seed);
void gr_bench_arrays_close(bench_arrays *a); /* accepts a zeroed or half-opened one */
GR_MUST gr_err gr_bench_arrays_upload(bench_arrays *a);
GR_MUST gr_err gr_bench_arrays_restore(bench_arrays *a);  /* BENCH_BACK */
GR_MUST gr_err gr_bench_arrays_download(bench_arrays *a); /* `result` of all but BENCH_IN */

#endif
