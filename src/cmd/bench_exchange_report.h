/* bench_exchange_report.h: what `bench exchange` measured, as a table and as JSON. */
#ifndef GROUTER_CMD_BENCH_EXCHANGE_REPORT_H
#define GROUTER_CMD_BENCH_EXCHANGE_REPORT_H

#include "grouter/bench.h"

/* placement: the file it is from, or NULL. */
void gr_exchange_print(const gr_exchange_options *o, const char *placement, const gr_exchange_report *r);
GR_MUST gr_err gr_exchange_write(
    gr_out *out, const gr_exchange_options *o, const char *placement, const gr_exchange_report *r);

#endif
