/* grouped.c: which calls the kernels of grouped experts take, and which kernels a call takes. */
#include "kernels/kernels.h"

static bool is_at16(const void *p) {
    return (uintptr_t)p % 16 == 0; /* NULL is */
}

/* Kernels count in 32 bits, some steps beyond the end. */
#define COUNT_MAX (INT32_MAX - 1024)

bool gr_kernel_grouped_fits(gr_dtype dtype, const gr_ffn *a) {
    const void *const arrays[] = {
        a->x, a->w13, a->w2, a->h, a->a, a->y, a->dy, a->da, a->dw13, a->dw2, a->dx, a->tiles};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        if (!is_at16(arrays[i]))
            return false;
    return dtype == GR_BF16 && a->tiles && a->expert_order && a->device_offset && a->D > 0 && a->F > 0 &&
           a->D % 8 == 0 && a->F % 8 == 0 && a->D <= COUNT_MAX / 2 && a->F <= COUNT_MAX / 2 && a->n_pair <= COUNT_MAX;
}

gr_experts gr_kernel_experts_choose(gr_experts asked, gr_dtype dtype, const gr_ffn *a) {
    if (asked == GR_EXPERTS_WGMMA && gr_kernel_wgmma_fits(dtype, a))
        return GR_EXPERTS_WGMMA;
    if (asked >= GR_EXPERTS_MMA && gr_kernel_grouped_fits(dtype, a))
        return GR_EXPERTS_MMA;
    return GR_EXPERTS_CUBLAS;
}
