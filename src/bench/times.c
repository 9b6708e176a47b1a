/* times.c: summaries of times, and random data that other programs can make too. */
#include "times.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

gr_bench_time gr_bench_quartiles(double *ms, size_t n) {
    qsort(ms, n, sizeof *ms, by_value);
    return (gr_bench_time){.median_ms = n % 2 ? ms[n / 2] : (ms[n / 2 - 1] + ms[n / 2]) / 2,
        .low_ms = ms[n / 4],
        .high_ms = ms[n - 1 - n / 4]};
}

/* ---------------------------------------------------------------- data */

float gr_bench_normal(uint64_t key, uint64_t i) {
    uint64_t z = (key * UINT64_C(0xD1342543DE82EF95) + i) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    z ^= z >> 31;
    const int32_t sum = (int32_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
    return (float)(sum - 131070) * 2.64290e-5f; /* mean 2 (2^16 - 1), deviation 2^16 / sqrt(3) */
}

void gr_bench_fill_normal(gr_dtype dtype, void *to, int64_t n, uint64_t key, uint64_t first, float scale) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        const float x = scale * gr_bench_normal(key, first + (uint64_t)i);
        if (dtype == GR_BF16)
            ((uint16_t *)to)[i] = gr_bf16_from_f32(x);
        else
            ((float *)to)[i] = x;
    }
}

double gr_bench_stored(gr_dtype dtype, uint64_t key, uint64_t i, float scale) {
    const float x = scale * gr_bench_normal(key, i);
    return (double)(dtype == GR_BF16 ? gr_f32_from_bf16(gr_bf16_from_f32(x)) : x);
}

double gr_bench_get(gr_dtype dtype, const void *from, int64_t i) {
    switch (dtype) {
    case GR_F32:
        return (double)((const float *)from)[i];
    case GR_BF16:
        return (double)gr_f32_from_bf16(((const uint16_t *)from)[i]);
    case GR_F64:
        return ((const double *)from)[i];
    case GR_I32:
        return ((const int32_t *)from)[i];
    case GR_U32:
        return ((const uint32_t *)from)[i];
    case GR_U16:
        return ((const uint16_t *)from)[i];
    case GR_U64:
        return (double)((const uint64_t *)from)[i];
    default:
        GR_ASSERT(dtype == GR_U8, "an array of %s", gr_dtype_name(dtype));
        return ((const uint8_t *)from)[i];
    }
}

double gr_bench_error_get(const bench_error *e) {
    if (e->difference == 0)
        return 0;
    double error = sqrt(e->difference / e->norm);
    return isfinite(error) ? error : INFINITY;
}

double gr_bench_error_max(gr_dtype dtype) {
    return dtype == GR_BF16 ? 2e-2 : 1e-5;
}

double gr_bench_silu(double u) {
    return u / (1 + exp(-u));
}

double gr_bench_silu_slope(double u) {
    const double sigmoid = 1 / (1 + exp(-u));
    return sigmoid + gr_bench_silu(u) * (1 - sigmoid);
}
