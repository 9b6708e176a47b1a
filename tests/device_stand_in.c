/* device_stand_in.c: puts the device double in the place of every backend that a program opens, which is linked with
 * --wrap: the program then runs as on a device whose memory the host cannot touch. With DEVICE_DOUBLE_QUEUES in the
 * environment its comm says that its calls wait for no one, so that the program does beside each other what it can. */
#include <stdlib.h>

#include "device_double.h"
#include "grouter/comm.h"

gr_err __real_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);
gr_err __wrap_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);

gr_err __wrap_gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype) {
    gr_backend *inner;
    *out = NULL;
    GR_TRY(__real_gr_backend_open(&inner, name, dtype));
    return device_double_open(out, inner);
}

gr_err __real_gr_comm_attach(gr_comm *c, gr_backend *b);
gr_err __wrap_gr_comm_attach(gr_comm *c, gr_backend *b);

gr_err __wrap_gr_comm_attach(gr_comm *c, gr_backend *b) {
    GR_TRY(__real_gr_comm_attach(c, b));
    c->queues = c->size[GR_WORLD] > 1 && getenv("DEVICE_DOUBLE_QUEUES");
    return GR_OK;
}
