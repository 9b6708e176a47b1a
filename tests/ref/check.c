#include "check.h"
#include "far.h"
#include "narrow.h"

#include "ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define POISON 0x7FDA0000u /* its upper half, a bf16, is a NaN too */

static gr_dtype stored_as = GR_F32;

double check_bound(void) {
    return stored_as == GR_F32 ? CHECK_F32 : 4e-3;
}

const char *check_backend_name(void) {
    const char *name = getenv("CHECK_BACKEND");
    return name ? name : "cpu";
}

static void skip(void) {
    printf("skipped: %s\n", gr_error_text());
    fflush(stdout);
    exit(77);
}

/* In fp32 there is nothing to choose. */
static gr_err choose_attention(gr_backend *b) {
    const char *name = getenv("CHECK_ATTENTION");
    if (!name || b->dtype != GR_BF16)
        return GR_OK;
    const gr_err err = gr_backend_set_attention(b, name);
    if (err == GR_RESOURCE)
        skip();
    return err;
}

/* Backend "far" is the CPU's with its memory out of reach: the tests' own copying, tested without a device. */
static gr_err open_named(gr_backend **out, gr_dtype dtype) {
    const char *name = check_backend_name();
    gr_backend *inner;
    if (strcmp(name, "cpu") == 0)
        return gr_backend_open(out, "cpu", dtype);
    gr_err err = gr_backend_open(&inner, strcmp(name, "far") == 0 ? "cpu" : name, dtype);
    if (err == GR_RESOURCE && strcmp(name, "cuda") == 0)
        skip();
    if (!err)
        err = choose_attention(inner);
    return err ? err : far_open(out, inner);
}

gr_err check_backend_open(gr_backend **out, gr_dtype dtype) {
    gr_backend *inner;
    stored_as = dtype;
    GR_TRY(open_named(&inner, dtype));
    inner->logits_room = (size_t)32 << 20; /* chunks that a test fills, on a device too */
    if (dtype == GR_BF16)
        return narrow_open(out, inner);
    *out = inner;
    return GR_OK;
}

float check_stored(float x) {
    return stored_as == GR_F32 ? x : gr_f32_from_bf16(gr_bf16_from_f32(x));
}

static float *memory(int64_t n) {
    float *p = malloc((size_t)(n > 0 ? n : 1) * sizeof *p);
    if (!p) {
        fprintf(stderr, "check: no memory for %lld numbers\n", (long long)n);
        abort();
    }
    return p;
}

float *check_random(uint64_t seed, int64_t n) {
    float *x = memory(n);
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = check_stored((float)(int64_t)(state >> 40) / (float)(1 << 23) - 1);
    }
    return x;
}

float *check_poisoned(int64_t n) {
    float *x = memory(n);
    const uint32_t poison = POISON;
    for (int64_t i = 0; i < n; i++)
        memcpy(x + i, &poison, sizeof poison);
    return x;
}

bool check_is_poison(float x) {
    const uint32_t poison = POISON;
    return memcmp(&x, &poison, sizeof poison) == 0;
}

float *check_zeros(int64_t n) {
    float *x = memory(n);
    memset(x, 0, (size_t)n * sizeof *x);
    return x;
}

float *check_copy(int64_t n, const float *x) {
    float *y = memory(n);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

float *check_random_rows(uint64_t seed, int64_t n_row, int64_t width, int64_t ld) {
    float *x = check_poisoned(n_row * ld), *value = check_random(seed, n_row * width);
    for (int64_t i = 0; i < n_row; i++)
        memcpy(x + i * ld, value + i * width, (size_t)width * sizeof *x);
    free(value);
    return x;
}

void check_angles(int64_t T, int64_t head_dim, double theta, float **cosine, float **sine) {
    const int64_t half = head_dim / 2;
    *cosine = check_zeros(T * half);
    *sine = check_zeros(T * half);
    for (int64_t i = 0; i < T * half; i++) {
        double angle = (double)(i / half) * pow(theta, -2.0 * (double)(i % half) / (double)head_dim);
        (*cosine)[i] = (float)cos(angle);
        (*sine)[i] = (float)sin(angle);
    }
}

double *check_double(int64_t n, const float *x) {
    return check_packed(1, n, n, x);
}

double *check_packed(int64_t n_row, int64_t width, int64_t ld, const float *x) {
    double *y = ref_alloc(n_row * width);
    for (int64_t i = 0; i < n_row; i++)
        for (int64_t j = 0; j < width; j++)
            y[i * width + j] = (double)x[i * ld + j];
    return y;
}

double check_error(int64_t n, const float *got, const double *expected) {
    return check_rows_error(1, n, n, got, expected);
}

double check_rows_error(int64_t n_row, int64_t width, int64_t ld, const float *got, const double *expected) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n_row; i++) {
        for (int64_t j = 0; j < ld; j++) {
            const float x = got[i * ld + j];
            if (j >= width) {
                if (!check_is_poison(x))
                    return INFINITY;
                continue;
            }
            const double y = expected[i * width + j];
            error += ((double)x - y) * ((double)x - y);
            norm += y * y;
        }
    }
    if (isnan(error))
        return INFINITY;
    if (norm == 0)
        return error == 0 ? 0 : INFINITY;
    return sqrt(error / norm);
}

void check_set_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}
