/* cmd.h: the commands. Each parses its arguments, calls the library, prints results on stdout. Internal to src/. */
#ifndef GROUTER_CMD_H
#define GROUTER_CMD_H

#include "grouter/base.h"

typedef struct gr_command {
    const char *name;
    const char *summary;                  /* one line */
    const char *help;                     /* usage, options, one example; exit codes are appended by main */
    gr_err (*run)(int argc, char **argv); /* argv[0] is the command's name */
} gr_command;

extern const gr_command gr_cmd_tokens, gr_cmd_route, gr_cmd_place, gr_cmd_train, gr_cmd_distill, gr_cmd_tune,
    gr_cmd_fold, gr_cmd_eval, gr_cmd_bench, gr_cmd_inspect;

/* What --version prints: version, compiler, build, backends, comms, libraries. */
void gr_version_print(FILE *out);

/* Options of one command: long names only. `value` NULL means a flag without value, counted in *n_seen. */
typedef struct gr_option {
    const char *name;   /* "--out" */
    const char **value; /* one value, or the first of `max` values for repeatable options */
    int max;            /* 0 for flags, 1 for single values, more for repeatable ones */
    int *n_seen;        /* may be NULL */
} gr_option;

/* Fills options; what is left over goes to positional[n_positional_max]. Accepts "--a v" and "--a=v" (the only form for
 * values that begin with "--"); after "--" everything is left over. Unknown options (with the nearest known one),
 * missing values, repeats of single options and extra arguments: 2. */
GR_MUST gr_err gr_options_parse(int argc, char **argv, const gr_option *options, int n_option, const char **positional,
    int n_positional_max, int *n_positional);

/* Strict numbers for option values: 2 naming the option, the text and the range. */
GR_MUST gr_err gr_option_u64(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out);
GR_MUST gr_err gr_option_f64(const char *name, const char *text, double min, double max, double *out);

/* An output may not be written over an input: 2 naming both. Paths that do not exist are no inputs yet. */
GR_MUST gr_err gr_output_check(const char *output, const char *input);

#endif
