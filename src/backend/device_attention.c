/* device_attention.c: which attention a library is asked for, in what parts, and what scratch attention takes. */
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

/* Of one window and key/value head, as engines of cuDNN place them: whole tiles of 64 x 128 scores in bf16. */
static size_t scores_of_head(const gr_attention *a) {
    return (size_t)(2 * gr_round_up(a->T, 64) * gr_round_up(a->T, 128) * (a->H / a->H_kv));
}

gr_attend_part gr_attend_part_of(const gr_attention *a, size_t n_byte) {
    const int64_t n_head = (int64_t)(n_byte / scores_of_head(a)); /* key/value heads that fit */
    const int64_t n_window = divisor(a->n_window, n_head / a->H_kv);
    if (n_window > 0)
        return (gr_attend_part){n_window, a->H_kv};
    const int64_t H_kv = divisor(a->H_kv, n_head);
    return (gr_attend_part){H_kv > 0, H_kv};
}

gr_attend_part gr_library_part_of(gr_dtype dtype, const gr_attention *a, bool backward, size_t n_byte) {
    if (!gr_library_attends(dtype, a))
        return (gr_attend_part){0};
    const gr_attend_part part = backward ? gr_attend_part_of(a, n_byte) : (gr_attend_part){a->n_window, a->H_kv};
    const bool whole = part.n_window == a->n_window && part.H_kv == a->H_kv;
    if (!whole && a->T % 4 != 0) /* lse of every part must begin at 16 bytes */
        return (gr_attend_part){0};
    return part;
}

/* ---------------------------------------------------------------- scratch */

bool gr_attend_may(gr_attention_kernels chosen, gr_attention_kernels way) {
    return chosen == GR_ATTENTION_AUTO || chosen >= way;
}

bool gr_attend_may_flash(const gr_attend_means *m, gr_dtype dtype, const gr_attention *a) {
    return gr_attend_may(m->way, GR_ATTENTION_FLASH) && gr_kernel_flash_fits(dtype, a) &&
           gr_kernel_flash_shared(a->head_dim) <= m->shared_max;
}

size_t gr_library_sums(int64_t n_row) {
    return (size_t)gr_round_up(n_row * (int64_t)sizeof(float), 256);
}

/* Of a part: its scores; a float for each row and head; where query heads share a key/value head, dk and dv of each in
 * bf16 before they are summed. 256 are the engine's own. Forward keeps nothing. So cuDNN 9.19 says
 * (test_cuda_cudnn); its engines for A100 take a little less. */
static size_t library_scratch(const gr_attend_means *m, gr_dtype dtype, const gr_attention *a, bool backward) {
    if (!backward || !gr_attend_may(m->way, GR_ATTENTION_CUDNN))
        return 0;
    const gr_attend_part part = gr_library_part_of(dtype, a, true, m->room);
    if (part.n_window == 0)
        return 0;
    const int64_t n_row = part.n_window * part.H_kv * (a->H / a->H_kv) * a->T;
    return (size_t)(part.n_window * part.H_kv) * scores_of_head(a) + gr_library_sums(n_row) +
           (a->H == a->H_kv ? 0 : (size_t)(2 * 2 * n_row * a->head_dim)) + 256;
}

size_t gr_attend_scratch(const gr_attend_means *m, gr_dtype dtype, const gr_attention *a, bool backward) {
    if (a->n_window == 0 || a->T == 0)
        return 0;
    const size_t library = library_scratch(m, dtype, a, backward);
    size_t own = 0;
    if (!gr_attend_may_flash(m, dtype, a)) {
        const gr_attend_tiles tiles = gr_attend_tiles_of(m->limits, a->T, a->H_kv);
        own = gr_attend_room_of(&tiles, a->T, a->head_dim, gr_dtype_size(dtype), backward).n_byte;
    } else if (backward)
        own = gr_kernel_flash_backward_scratch(a);
    return library > own ? library : own;
}
