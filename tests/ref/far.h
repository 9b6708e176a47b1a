/* far.h: a backend whose memory the host cannot touch, for tests that hold their arrays in host memory. */
#ifndef GROUTER_FAR_H
#define GROUTER_FAR_H

#include "grouter/backend.h"

/* Takes over `inner`: every op gets copies of its arrays in inner's memory, and what it wrote is brought back. Ends the
 * process when an op writes into an input or between rows. The memory functions of the result are not to be used. */
GR_MUST gr_err far_open(gr_backend **out, gr_backend *inner);

#endif
