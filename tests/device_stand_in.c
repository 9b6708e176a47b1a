/* device_stand_in.c: puts the device double in the place of every backend that a program opens, which is linked with
 * --wrap: the program then runs as on a device whose memory the host cannot touch. */
#include "device_double.h"

gr_err __real_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);
gr_err __wrap_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);

gr_err __wrap_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype) {
    gr_backend *inner;
    *out = NULL;
    GR_TRY(__real_gr_backend_open(&inner, name, dtype));
    return device_double_open(out, inner);
}
