/* device_double.h: a backend whose memory host code cannot touch, where there is no device. It computes with another
 * backend, on pages that are accessible only while one of its own calls runs: host code that touches them ends the
 * process. What a device would have later comes later: uploads on lanes other than COMPUTE when a lane waits for
 * theirs, downloads into memory of alloc_host at sync (until then it holds rubbish; other memory waits at once). Arrays
 * of ops must lie in its memory, lanes must have been ordered, or the process ends and says why. */
#ifndef GROUTER_DEVICE_DOUBLE_H
#define GROUTER_DEVICE_DOUBLE_H

#include "grouter/backend.h"

/* Takes `inner`, the CPU backend, over, also on failure. */
GR_MUST gr_err device_double_open(gr_backend **out, gr_backend *inner);

#endif
