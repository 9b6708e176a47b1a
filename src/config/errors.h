/* errors.h: the errors of one config, collected so that all are reported at once. Internal to src/config and
 * to the reader of Hugging Face's configs. */
#ifndef GROUTER_CONFIG_ERRORS_H
#define GROUTER_CONFIG_ERRORS_H

#include <stdarg.h>

#include "schema.h"

enum { GR_CONFIG_ERRORS_MAX = 20, GR_CONFIG_LINE_MAX = 700 };

typedef struct gr_place {
    const char *source; /* file, or "--set" */
    int line, column;   /* line 0: unknown */
} gr_place;

typedef enum gr_key_state { GR_KEY_ABSENT, GR_KEY_GIVEN, GR_KEY_WRONG } gr_key_state;

typedef struct gr_config_errors {
    gr_key_state state[GR_N_KEY]; /* rules leave out keys that are wrong on their own */
    gr_place place[GR_N_KEY];     /* of given keys */
    int n;                        /* errors so far; those beyond the maximum are only counted */
    char line[GR_CONFIG_ERRORS_MAX][GR_CONFIG_LINE_MAX];
} gr_config_errors;

void gr_config_complain(gr_config_errors *e, gr_place place, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void gr_config_complain_v(gr_config_errors *e, gr_place place, const char *fmt, va_list args);

/* All errors as one failure (of code 64, or another), GR_OK if there are none. */
GR_MUST gr_err gr_config_fail(const gr_config_errors *e);
GR_MUST gr_err gr_config_fail_with(gr_err code, const gr_config_errors *e);

/* The rules between keys (reliability of values that are legal alone). `source` names the config where a key has no
 * place of its own. */
void gr_config_check(gr_config_errors *e, const gr_config *c, const char *source);

#endif
