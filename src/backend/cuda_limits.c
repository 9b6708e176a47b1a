/* cuda_limits.c: how much memory ops of backend cuda take for blocks of their work: their tests have limits of their
 * own, since blocks of this size would not show in windows of a few tokens. */
#include "cuda.h"

gr_attend_limits gr_cuda_attend_limits(void) {
    return GR_DEVICE_ATTEND_LIMITS;
}

size_t gr_cuda_attend_room(void) {
    return GR_DEVICE_ATTEND_ROOM;
}
