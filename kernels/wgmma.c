/* wgmma.c: which calls the kernels for sm_90a take, and how wide their tiles are. */
#include "kernels/kernels.h"

bool gr_kernel_wgmma_fits(gr_dtype dtype, const gr_ffn *a) {
    return gr_kernel_grouped_fits(dtype, a);
}

int gr_wgmma_columns(int64_t n, int n_part) {
    static const int widths[] = {256, 192, 128};
    const int64_t extra = 64; /* what a tile costs beside its columns, in columns: its rows, its beginning and end */
    int best = 0;
    int64_t least = INT64_MAX;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        const int64_t part = n / n_part, width = widths[i] / n_part;
        const int64_t cost = (part + width - 1) / width * (widths[i] + extra);
        if (cost < least) {
            least = cost;
            best = widths[i];
        }
    }
    return best;
}
