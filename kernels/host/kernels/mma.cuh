/* mma.cuh of kernels/host: see kernels/mma.cuh, of which this is the meaning on the CPU. */
#ifndef GROUTER_HOST_MMA_CUH
#define GROUTER_HOST_MMA_CUH

#include "kernels/device.cuh"

static inline float gr_host_half(uint32_t pair, int high) {
    return __bfloat162float(__nv_bfloat16{(uint16_t)(pair >> 16 * high)});
}

/* What a lane brings to a product. */
struct gr_host_operands {
    uint32_t a[4], b[2];
};

/* 16 numbers of the lanes 4 i .. 4 i + 3: their registers low and high hold the numbers 2t, 2t+1 and 2t+8, 2t+9. */
template <typename F> static inline void gr_host_gather(F lane, int i, float (&to)[16]) {
    for (int t = 0; t < 4; t++)
        for (int k = 0; k < 4; k++)
            to[2 * t + k % 2 + k / 2 * 8] = gr_host_half(lane(4 * i + t, k / 2), k % 2);
}

static inline void gr_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const int g = gr_host::lane() / 4, t = gr_host::lane() % 4;
    const gr_host_operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const auto *all = (const gr_host_operands *const *)gr_host::hand_over(&mine);
    float upper[16], lower[16], left[16], right[16];
    gr_host_gather([&](int l, int half) { return all[l]->a[2 * half]; }, g, upper);
    gr_host_gather([&](int l, int half) { return all[l]->a[2 * half + 1]; }, g, lower);
    gr_host_gather([&](int l, int half) { return all[l]->b[half]; }, 2 * t, left);
    gr_host_gather([&](int l, int half) { return all[l]->b[half]; }, 2 * t + 1, right);
    for (int k = 0; k < 16; k++) {
        d[0] += upper[k] * left[k];
        d[1] += upper[k] * right[k];
        d[2] += lower[k] * left[k];
        d[3] += lower[k] * right[k];
    }
    __syncwarp(); /* `mine` is not needed any more */
}

static inline void gr_load_matrices(const gr_bf16 *row, uint32_t (&b)[4]) {
    const int g = gr_host::lane() / 4, t = gr_host::lane() % 4;
    const auto *rows = (const gr_bf16 *const *)gr_host::hand_over(row);
    for (int m = 0; m < 4; m++)
        b[m] = (uint32_t)rows[8 * m + g][2 * t + 1].bits << 16 | rows[8 * m + g][2 * t].bits;
    __syncwarp();
}

static inline void gr_load_turned(const gr_bf16 *row, uint32_t (&b)[4]) {
    const int g = gr_host::lane() / 4, t = gr_host::lane() % 4;
    const auto *rows = (const gr_bf16 *const *)gr_host::hand_over(row);
    for (int m = 0; m < 4; m++)
        b[m] = (uint32_t)rows[8 * m + 2 * t + 1][g].bits << 16 | rows[8 * m + 2 * t][g].bits;
    __syncwarp();
}

static inline void gr_copy_async(gr_bf16 *to, const gr_bf16 *from) {
    gr_host::copy_later(to, from, 16);
}

static inline void gr_copy_async(gr_bf16 *to, const gr_bf16 *from, bool there) {
    gr_host::copy_later(to, from, there ? 16 : 0);
}

static inline void gr_copy_commit(void) {
    gr_host::copies_commit();
}

template <int N> static inline void gr_copy_wait(void) {
    gr_host::copies_wait(N);
}

static inline gr_bf16 *gr_launched_room(void) {
    return (gr_bf16 *)gr_host::room();
}

static inline uint32_t gr_pair(float low, float high) {
    return (uint32_t)__float2bfloat16_rn(high).bits << 16 | __float2bfloat16_rn(low).bits;
}

static inline float gr_low(uint32_t pair) {
    return gr_host_half(pair, 0);
}

static inline float gr_high(uint32_t pair) {
    return gr_host_half(pair, 1);
}

#endif
