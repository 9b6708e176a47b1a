/* peak_stand_in.c: a rate for programs on the double of the CUDA runtime, where the products that measure one take
 * hours; linked with --wrap. */
#include "backend/cuda.h"

gr_err __wrap_gr_cuda_peak(gr_backend *b, double *flops_per_s);

gr_err __wrap_gr_cuda_peak(gr_backend *b, double *flops_per_s) {
    (void)b;
    *flops_per_s = 1e9;
    return GR_OK;
}
