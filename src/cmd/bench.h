/* bench.h: what the benchmarks' commands have in common. Internal to src/cmd. */
#ifndef GROUTER_CMD_BENCH_H
#define GROUTER_CMD_BENCH_H

#include "grouter/bench.h"

/* One for each thing to measure; argv[0] is "bench <what>". */
GR_MUST gr_err gr_cmd_bench_exchange(int argc, char **argv);
GR_MUST gr_err gr_cmd_bench_kernels(int argc, char **argv);
GR_MUST gr_err gr_cmd_bench_layer(int argc, char **argv);
GR_MUST gr_err gr_cmd_bench_step(int argc, char **argv);

/* "fp32", "bf16", NULL: fp32. 2 for others. */
GR_MUST gr_err gr_bench_dtype_parse(const char *text, gr_dtype *out);
const char *gr_bench_dtype_text(gr_dtype dtype);
/* An option's number, `standard` without one. */
GR_MUST gr_err gr_bench_u32_parse(
    const char *name, const char *text, uint32_t min, uint32_t max, uint32_t standard, uint32_t *out);

/* "1.234 [1.2, 1.3]" in a column of its own, whatever the machine. */
void gr_bench_time_print(const gr_bench_time *t);

/* ---------------------------------------------------------------- figures for programs */

/* text, or NULL and a number; NaN is null. */
typedef struct bench_field {
    const char *key, *text;
    double number;
} bench_field;

/* What holds for all rows, and the rows: n_row times n_column fields, in every row the same keys. As JSON
 * {head..., "<rows>": [{...}, ...]}; as CSV a line of keys and for each row a line of its head and its fields. */
typedef struct bench_table {
    const char *rows;
    const bench_field *head;
    int n_head;
    const bench_field *field;
    int n_row, n_column;
} bench_table;

typedef struct bench_outputs {
    gr_out *json, *csv;
} bench_outputs;

/* By one rank, before the work, so that a place that cannot be written to shows: 74. NULL: not asked for. */
GR_MUST gr_err gr_bench_outputs_open(bench_outputs *o, const char *json, const char *csv);
GR_MUST gr_err gr_bench_outputs_write(bench_outputs *o, const bench_table *t);
void gr_bench_outputs_close(bench_outputs *o); /* accepts a zeroed one; what was not written leaves nothing */

#endif
