/* cpu.h: what the files of the CPU backend share. */
#ifndef GROUTER_BACKEND_CPU_H
#define GROUTER_BACKEND_CPU_H

#include "grouter/backend.h"

/* Storage type of activations. Every op calls activations by this name and everything else `float`, so a second storage
 * type is a second instance of the loops, not a hunt for casts. */
typedef float gr_act;

typedef struct gr_cpu {
    int n_thread;
    void *scratch; /* grows in the first step, then stays */
    size_t scratch_size;
} gr_cpu;

gr_err gr_cpu_open(gr_backend **out);

/* At least n_byte, 64-byte aligned, until the next call. Not zeroed. */
GR_MUST gr_err gr_cpu_scratch(gr_backend *b, size_t n_byte, void **out);

/* Runs with the threads there are: all of them, or one inside a parallel region. Returns the library's status, 0 is
 * success: gr_fail is not for parallel regions, so their callers collect the status and check it afterwards. */
int gr_cpu_gemm(const gr_gemm *g);
GR_MUST gr_err gr_cpu_gemm_check(int status);

gr_err gr_cpu_gemm_op(gr_backend *b, gr_lane lane, const gr_gemm *a);
gr_err gr_cpu_gather_rows(gr_backend *b, gr_lane lane, const gr_gather *a);
gr_err gr_cpu_sum_rows(gr_backend *b, gr_lane lane, const gr_sum *a);
gr_err gr_cpu_gather_f32(gr_backend *b, gr_lane lane, const gr_gather *a);
gr_err gr_cpu_sum_f32(gr_backend *b, gr_lane lane, const gr_sum *a);
gr_err gr_cpu_router_forward(gr_backend *b, gr_lane lane, const gr_router_op *a);
gr_err gr_cpu_router_backward(gr_backend *b, gr_lane lane, const gr_router_op *a);
gr_err gr_cpu_pair_gates_forward(gr_backend *b, gr_lane lane, const gr_pair_gates *a);
gr_err gr_cpu_pair_gates_backward(gr_backend *b, gr_lane lane, const gr_pair_gates *a);
gr_err gr_cpu_ffn_forward(gr_backend *b, gr_lane lane, const gr_ffn *a);
gr_err gr_cpu_ffn_backward(gr_backend *b, gr_lane lane, const gr_ffn *a);
gr_err gr_cpu_embed_forward(gr_backend *b, gr_lane lane, const gr_embed *a);
gr_err gr_cpu_embed_backward(gr_backend *b, gr_lane lane, const gr_embed *a);
gr_err gr_cpu_norm_forward(gr_backend *b, gr_lane lane, const gr_norm *a);
gr_err gr_cpu_norm_backward(gr_backend *b, gr_lane lane, const gr_norm *a);
gr_err gr_cpu_layer_norm_forward(gr_backend *b, gr_lane lane, const gr_layer_norm *a);
gr_err gr_cpu_layer_norm_backward(gr_backend *b, gr_lane lane, const gr_layer_norm *a);
gr_err gr_cpu_rope(gr_backend *b, gr_lane lane, const gr_rope *a);
gr_err gr_cpu_attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a);
gr_err gr_cpu_attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a);
gr_err gr_cpu_cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a);
gr_err gr_cpu_divergence(gr_backend *b, gr_lane lane, const gr_divergence *a);
gr_err gr_cpu_sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out);
gr_err gr_cpu_adamw(gr_backend *b, gr_lane lane, const gr_adamw *a);
gr_err gr_cpu_peak(gr_backend *b, double *flops_per_s);

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
