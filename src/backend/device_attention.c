/* device_attention.c: which attention a library is asked for, and in what parts. */
#include "kernels/geometry.h"
#include "kernels/kernels.h"

#include "device.h"

bool gr_library_attends(gr_dtype dtype, const gr_attention *a) {
    return dtype == GR_BF16 && a->head_dim <= 256 && a->n_window > 0 && a->T >= 64 && !a->documents.first &&
           !a->documents.end && gr_kernel_attend_aligned(a) && (uintptr_t)a->lse % 16 == 0;
}

/* The largest divisor of n that is at most `most`; 0 where that is 0. */
static int64_t divisor(int64_t n, int64_t most) {
    int64_t d = most < n ? most : n;
    while (d > 1 && n % d != 0)
        d--;
    return d;
}

gr_attend_part gr_attend_part_of(const gr_attention *a, size_t n_byte) {
    const int64_t of_head = 2 * gr_round_up(a->T, 64) * gr_round_up(a->T, 128) * (a->H / a->H_kv);
    const int64_t n_head = (int64_t)n_byte / of_head; /* key/value heads that fit */
    const int64_t n_window = divisor(a->n_window, n_head / a->H_kv);
    if (n_window > 0)
        return (gr_attend_part){n_window, a->H_kv};
    const int64_t H_kv = divisor(a->H_kv, n_head);
    return (gr_attend_part){H_kv > 0, H_kv};
}
