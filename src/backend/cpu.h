/* cpu.h: what the files of the CPU backend share. */
#ifndef GROUTER_BACKEND_CPU_H
#define GROUTER_BACKEND_CPU_H

#include "grouter/backend.h"

/* Shape-free products of oneDNN for one storage type, made once at opening; they may run in any thread at any time. */
typedef struct gr_cpu_products gr_cpu_products;

typedef struct gr_cpu {
    int n_thread;
    gr_cpu_products *products; /* NULL for fp32 */
    void *scratch;             /* grows in the first step, then stays */
    size_t scratch_size;
} gr_cpu;

gr_err gr_cpu_open(gr_backend **out, gr_dtype dtype, bool computes);

/* Fill in the ops that depend on the storage type: cpu_ops.c, compiled once per type. */
void gr_cpu_set_ops_f32(gr_backend *b);
void gr_cpu_set_ops_bf16(gr_backend *b);

/* At least n_byte, 64-byte aligned, until the next call. Not zeroed. */
GR_MUST gr_err gr_cpu_scratch(gr_backend *b, size_t n_byte, void **out);

/* ---------------------------------------------------------------- oneDNN (cpu_gemm.c)
 * The products take m, n, k > 0. They run with the threads there are: all of them, or one inside a parallel region, and
 * return the library's status, 0 is success: gr_fail is not for parallel regions, so their callers collect the status
 * and check it afterwards. */
int gr_cpu_product_f32(const gr_cpu_products *none, const gr_gemm *g);
int gr_cpu_product_bf16(const gr_cpu_products *p, const gr_gemm *g);
GR_MUST gr_err gr_cpu_gemm_check(int status);

/* The products of bf16 matrices. 69 naming fp32 where oneDNN has none for this CPU. */
GR_MUST gr_err gr_cpu_products_open(gr_cpu_products **out);
void gr_cpu_products_close(gr_cpu_products *p); /* accepts NULL */

/* ---------------------------------------------------------------- ops without activations (cpu_gates.c,
 * cpu_divergence.c, cpu_squares.c) */
gr_err gr_cpu_gather_f32(gr_backend *b, gr_lane lane, const gr_gather *a);
gr_err gr_cpu_sum_f32(gr_backend *b, gr_lane lane, const gr_sum *a);
gr_err gr_cpu_pair_gates_forward(gr_backend *b, gr_lane lane, const gr_pair_gates *a);
gr_err gr_cpu_pair_gates_backward(gr_backend *b, gr_lane lane, const gr_pair_gates *a);
gr_err gr_cpu_divergence(gr_backend *b, gr_lane lane, const gr_divergence *a);
gr_err gr_cpu_sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out);
gr_err gr_cpu_decide(gr_backend *b, gr_lane lane, const gr_decide *a);

/* e^x within about 1 ulp where the result is a normal number, else 0 or infinity; NaN stays NaN. Branch-free, so that
 * loops over it become vector code. x = n ln 2 + r, |r| <= ln 2 / 2: a polynomial in r (Cephes expf) times 2^n. */
static inline float gr_cpu_exp(float x) {
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it leaves n in the low bits of the mantissa */
    union {
        float f;
        uint32_t u;
    } shifted = {.f = x * 1.44269504f + to_integer}, scale;
    float n = shifted.f - to_integer;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    scale.u = (shifted.u - 0x4B400000u + 126u) << 23; /* 2^(n-1): n may be 128 */
    float y = p * scale.f * 2.0f;
    y = x < -86.6f ? 0.0f : y;
    return x > 88.7228f ? (float)__builtin_inff() : y;
}

#endif
