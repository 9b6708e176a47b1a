/* check.h: inputs, poisoned outputs and norm-wise comparison for tests that hold a backend against the reference. The
 * same tests run once per storage type: CHECK_DTYPE, GR_F32 or GR_BF16, is a test program's own. Their arrays are fp32
 * in both (narrow.h); with bf16 the inputs are numbers that bf16 holds. */
#ifndef GROUTER_CHECK_H
#define GROUTER_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "grouter/backend.h"

/* The bounds of kernels against the double reference: of what they store; of what is fp32 whatever is stored. */
double check_bound(void);
#define CHECK_F32 1e-5

/* The backend under test, for fp32 arrays in host memory; from then on this storage type is the tests'. It is the one
 * that the environment names in CHECK_BACKEND: "cpu" where it says nothing, "cuda" (the test ends as skipped, with the
 * reason, where there is no GPU), or "far" (see check.c). CHECK_ATTENTION names what computes its attention
 * (gr_backend_set_attention); tests are skipped where that is not there. */
GR_MUST gr_err check_backend_open(gr_backend **out, gr_dtype dtype);
const char *check_backend_name(void);

/* x as the storage type holds it. */
float check_stored(float x);

/* n stored values in (-1, 1), the same for the same seed. Free with free(). */
float *check_random(uint64_t seed, int64_t n);
/* Rows of ld elements: `width` such values, then poison. */
float *check_random_rows(uint64_t seed, int64_t n_row, int64_t width, int64_t ld);
/* What rotary embedding turns by: tables [T, head_dim/2] of position * theta^(-2i/head_dim). */
void check_angles(int64_t T, int64_t head_dim, double theta, float **cosine, float **sine);
/* n NaNs: an output that is not written, or is read before it is written, shows. */
float *check_poisoned(int64_t n);
bool check_is_poison(float x);
float *check_zeros(int64_t n);
float *check_copy(int64_t n, const float *x);

/* The same values in double. */
double *check_double(int64_t n, const float *x);
/* The first `width` elements of every row of ld elements, in double. */
double *check_packed(int64_t n_row, int64_t width, int64_t ld, const float *x);

/* ||got - expected|| / ||expected||; infinite when got has a NaN, or is not zero where expected is. */
double check_error(int64_t n, const float *got, const double *expected);
/* The same for rows of ld elements, of which the first `width` count; infinite too when the rest of a row is not
 * poison: strided outputs must leave their gaps alone. */
double check_rows_error(int64_t n_row, int64_t width, int64_t ld, const float *got, const double *expected);

/* Threads of the parallel regions that follow; nothing without OpenMP. */
void check_set_threads(int n);

#endif
