/* cuda_peak.c: the best rate of a large product, for utilisations. */
#include "cuda.h"

/* 1.4 ms at 800 TFLOP/s (bf16), 2.7 ms at 50 (fp32): launching is nothing beside it. */
enum { SIDE_BF16 = 8192, SIDE_F32 = 4096, RUNS = 6, PATTERN = 4096 };

/* Speed depends on the data: no zeros. One block of numbers in (-1, 1), again and again. */
static gr_err fill(gr_backend *b, uint8_t *to, size_t n_byte) {
    float pattern[PATTERN];
    uint16_t rounded[PATTERN];
    for (uint32_t i = 0; i < PATTERN; i++) {
        pattern[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
        rounded[i] = gr_bf16_from_f32(pattern[i]);
    }
    const bool narrow = b->dtype == GR_BF16;
    size_t done = narrow ? sizeof rounded : sizeof pattern;
    GR_TRY(b->upload(b, GR_LANE_COMPUTE, to, narrow ? (const void *)rounded : pattern, done));
    for (; done < n_byte; done *= 2) /* both are powers of two times the block */
        GR_TRY(b->copy(b, GR_LANE_COMPUTE, to + done, to, n_byte - done < done ? n_byte - done : done));
    return GR_OK;
}

static gr_err time_product(gr_backend *b, const gr_gemm *g, cudaEvent_t begin, cudaEvent_t end, double *rate) {
    const cudaStream_t stream = b->lane_native(b, GR_LANE_COMPUTE);
    float ms = 0;
    GR_TRY(gr_cuda_check((int)cudaEventRecord(begin, stream), "timing"));
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE, g));
    GR_TRY(gr_cuda_check((int)cudaEventRecord(end, stream), "timing"));
    GR_TRY(gr_cuda_wait_event(b, end));
    GR_TRY(gr_cuda_check((int)cudaEventElapsedTime(&ms, begin, end), "timing"));
    *rate = 2.0 * (double)g->m * (double)g->n * (double)g->k / ((double)ms * 1e-3);
    return GR_OK;
}

static gr_err time_all(gr_backend *b, const gr_gemm *g, cudaEvent_t event[2], double *best) {
    *best = 0;
    for (int run = 0; run < RUNS; run++) {
        double rate;
        GR_TRY(time_product(b, g, event[0], event[1], &rate));
        *best = rate > *best ? rate : *best;
    }
    return GR_OK;
}

gr_err gr_cuda_peak(gr_backend *b, double *flops_per_s) {
    const int64_t side = b->dtype == GR_BF16 ? SIDE_BF16 : SIDE_F32;
    const size_t n_byte = (size_t)(side * side) * b->elem_size;
    void *memory = NULL;
    cudaEvent_t event[2] = {0};
    GR_TRY(b->alloc(b, 3 * n_byte, "peak measurement", &memory));
    uint8_t *x = memory;
    const gr_gemm g = {.layout = GR_NN,
        .m = side,
        .n = side,
        .k = side,
        .a = x,
        .lda = side,
        .b = x + n_byte,
        .ldb = side,
        .c = x + 2 * n_byte,
        .ldc = side,
        .c_dtype = b->dtype};
    gr_err err = fill(b, x, 2 * n_byte);
    for (int i = 0; i < 2 && !err; i++)
        err = gr_cuda_check((int)cudaEventCreate(&event[i]), "timing");
    if (!err)
        err = time_all(b, &g, event, flops_per_s);
    for (int i = 0; i < 2; i++)
        if (event[i])
            cudaEventDestroy(event[i]);
    b->release(b, memory);
    return err;
}
