/* Collecting the errors of a config. */
#include "errors.h"

void gr_config_complain_v(gr_config_errors *e, gr_place place, const char *fmt, va_list args) {
    if (e->n++ >= GR_CONFIG_ERRORS_MAX)
        return;
    char *line = e->line[e->n - 1];
    int n = place.line ? snprintf(line, GR_CONFIG_LINE_MAX, "%s:%d:%d: ", place.source, place.line, place.column)
                       : snprintf(line, GR_CONFIG_LINE_MAX, "%s: ", place.source);
    if (n < GR_CONFIG_LINE_MAX)
        vsnprintf(line + n, (size_t)(GR_CONFIG_LINE_MAX - n), fmt, args);
}

void gr_config_complain(gr_config_errors *e, gr_place place, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    gr_config_complain_v(e, place, fmt, args);
    va_end(args);
}

gr_err gr_config_fail_with(gr_err code, const gr_config_errors *e) {
    if (e->n == 0)
        return GR_OK;
    const char *line[GR_CONFIG_ERRORS_MAX];
    char more[64];
    int n = e->n <= GR_CONFIG_ERRORS_MAX ? e->n : GR_CONFIG_ERRORS_MAX - 1;
    for (int i = 0; i < n; i++)
        line[i] = e->line[i];
    if (n < e->n) {
        snprintf(more, sizeof more, "... and %d more errors in this config", e->n - n);
        line[n++] = more;
    }
    return gr_fail_lines(code, line, n);
}

gr_err gr_config_fail(const gr_config_errors *e) {
    return gr_config_fail_with(GR_CONFIG, e);
}
