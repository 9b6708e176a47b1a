/* cuda_limits.c: how much memory ops of backend cuda take for blocks of their work: their tests have limits of their
 * own, since blocks of this size would not show in windows of a few tokens. */
#include "cuda.h"

/* 64 MiB of scores: 512 rows of a window of 4096 for 8 heads, which keeps the GPU busy and stays near the second-level
 * cache. */
gr_attend_limits gr_cuda_attend_limits(void) {
    return (gr_attend_limits){.n_query = 512, .n_score = 1 << 24};
}

/* 1 GiB: two windows of 4096 tokens with 16 heads, 4096 tiles of 128 x 128 scores a head. */
size_t gr_cuda_attend_room(void) {
    return (size_t)1 << 30;
}
