/* narrow.h: a bf16 backend for tests that hold their arrays in fp32. */
#ifndef GROUTER_NARROW_H
#define GROUTER_NARROW_H

#include "grouter/backend.h"

/* Takes over `inner`, a bf16 backend, behind one that claims fp32: every op gets rounded copies of its act arrays, and
 * what it wrote is widened back. Ends the process when an op writes into the gaps between rows, or leaves adamw's copy
 * of the weights other than rounded. A product's c is act where c_dtype is GR_BF16. */
GR_MUST gr_err narrow_open(gr_backend **out, gr_backend *inner);

#endif
