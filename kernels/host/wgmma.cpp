/* wgmma.cpp: kernels of sm_90a, whose instructions are not emulated: here so that programs link, never chosen. */
#include "kernels/kernels.h"

#define NOT_EMULATED(product)                                                                                          \
    int gr_kernel_wgmma_##product(void *, const gr_ffn *) {                                                            \
        return -1;                                                                                                     \
    }

NOT_EMULATED(up)
NOT_EMULATED(down)
NOT_EMULATED(down_input)
NOT_EMULATED(input)
NOT_EMULATED(down_weights)
NOT_EMULATED(up_weights)
