/* leak.h: the report of `eval --leak`. */
#ifndef GROUTER_CMD_LEAK_H
#define GROUTER_CMD_LEAK_H

#include "grouter/leak.h"

/* One page for people on stdout. */
void gr_leak_print(const gr_leak_options *o, const gr_leak *leak);
/* The same figures as JSON (schema in README). 74. */
GR_MUST gr_err gr_leak_write(gr_out *out, const gr_leak_options *o, const gr_leak *leak);

#endif
