/* Command lines of the commands: long options and what is left over. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"

enum { OPTIONS_MAX = 64 };

typedef struct parser {
    const char *command;
    const gr_option *options;
    int n_option;
    int seen[OPTIONS_MAX];
} parser;

/* `text` without what follows '='; -1 if no option has that name. */
static int find_option(const parser *p, const char *text) {
    size_t n = strcspn(text, "=");
    for (int i = 0; i < p->n_option; i++)
        if (strlen(p->options[i].name) == n && strncmp(p->options[i].name, text, n) == 0)
            return i;
    return -1;
}

GR_MUST static gr_err fail_unknown(const parser *p, const char *text) {
    char name[64];
    int n = (int)strcspn(text, "=");
    snprintf(name, sizeof name, "%.*s", n, text);
    gr_nearest nearest = {.to = name};
    gr_nearest_offer(&nearest, "--help");
    for (int i = 0; i < p->n_option; i++)
        gr_nearest_offer(&nearest, p->options[i].name);
    if (nearest.name)
        return gr_fail(GR_USAGE, "%s: unknown option %s: did you mean %s?", p->command, name, nearest.name);
    return gr_fail(GR_USAGE, "%s: unknown option %s; see grouter-train %s --help", p->command, name, p->command);
}

/* Takes option i at argv[*at], moving *at to the last argument used. */
GR_MUST static gr_err take_option(parser *p, int i, int argc, char **argv, int *at) {
    const gr_option *o = &p->options[i];
    const char *equals = strchr(argv[*at], '=');
    int n = ++p->seen[i];
    if (o->n_seen)
        *o->n_seen = n;
    if (!o->value) {
        if (equals)
            return gr_fail(GR_USAGE, "%s: %s takes no value, got \"%s\"", p->command, o->name, equals + 1);
        return GR_OK;
    }
    if (n > o->max && o->max == 1)
        return gr_fail(GR_USAGE, "%s: %s: given twice; keep one of them", p->command, o->name);
    if (n > o->max)
        return gr_fail(GR_USAGE, "%s: %s: expected at most %d times, got it again", p->command, o->name, o->max);
    if (equals) {
        o->value[n - 1] = equals + 1;
        return GR_OK;
    }
    if (*at + 1 == argc)
        return gr_fail(GR_USAGE, "%s: %s: expected a value after it", p->command, o->name);
    if (strncmp(argv[*at + 1], "--", 2) == 0)
        return gr_fail(GR_USAGE,
            "%s: %s: expected a value after it, got the option %s; if it is the value, write %s=%s", p->command,
            o->name, argv[*at + 1], o->name, argv[*at + 1]);
    o->value[n - 1] = argv[++*at];
    return GR_OK;
}

gr_err gr_options_parse(int argc, char **argv, const gr_option *options, int n_option, const char **positional,
    int n_positional_max, int *n_positional) {
    GR_ASSERT(n_option <= OPTIONS_MAX, "%d options", n_option);
    parser p = {.command = argv[0], .options = options, .n_option = n_option};
    bool only_positional = false;
    int n = 0;
    for (int i = 0; i < n_option; i++)
        if (options[i].n_seen)
            *options[i].n_seen = 0;
    for (int at = 1; at < argc; at++) {
        const char *text = argv[at];
        if (!only_positional && strcmp(text, "--") == 0) {
            only_positional = true;
        } else if (!only_positional && text[0] == '-' && text[1]) {
            int i = find_option(&p, text);
            if (i < 0)
                return fail_unknown(&p, text);
            GR_TRY(take_option(&p, i, argc, argv, &at));
        } else {
            if (n == n_positional_max)
                return gr_fail(GR_USAGE, "%s: unexpected argument \"%s\"; see grouter-train %s --help", p.command, text,
                    p.command);
            positional[n++] = text;
        }
    }
    if (n_positional)
        *n_positional = n;
    return GR_OK;
}

gr_err gr_option_u64(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out) {
    size_t n = strspn(text, "0123456789");
    errno = 0;
    unsigned long long v = strtoull(text, NULL, 10);
    if (n == 0 || text[n] || errno || v < min || v > max)
        return gr_fail(
            GR_USAGE, "%s: expected an integer in [%" PRIu64 ", %" PRIu64 "], got \"%s\"", name, min, max, text);
    *out = v;
    return GR_OK;
}

gr_err gr_option_f64(const char *name, const char *text, double min, double max, double *out) {
    char *end;
    size_t n = strspn(text, "0123456789+-.eE"); /* neither spaces nor hexadecimal, inf or nan */
    double v = strtod(text, &end);
    if (n == 0 || text[n] || *end || !isfinite(v) || v < min || v > max)
        return gr_fail(GR_USAGE, "%s: expected a number in [%g, %g], got \"%s\"", name, min, max, text);
    *out = v;
    return GR_OK;
}

gr_err gr_output_check(const char *output, const char *input) {
    if (gr_path_same(output, input))
        return gr_fail(
            GR_USAGE, "--out: expected another file than the input %s, got %s; choose another name", input, output);
    return GR_OK;
}
