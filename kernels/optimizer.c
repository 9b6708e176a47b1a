/* optimizer.c: scratch of optimizer.cu. */
#include "kernels/kernels.h"

size_t gr_kernel_sum_squares_scratch(int64_t n) {
    return (size_t)((n + GR_SQUARES_BLOCK - 1) / GR_SQUARES_BLOCK) * sizeof(double);
}
