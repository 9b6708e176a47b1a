/* The one error of a process: its text is kept here and printed once, by main. */
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "grouter/base.h"

static _Thread_local struct { /* threads that read files fail each for itself; main prints what its own thread met */
    char text[16384]; /* room for 20 lines of config errors with long paths */
    bool silent;
} last_error;

/* One error is one line, whatever name of a file or key is in it. */
static void make_one_line(char *text) {
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = ' ';
}

gr_err gr_fail_at(gr_err code, const char *file, int line, const char *fmt, ...) {
    char text[sizeof last_error.text]; /* arguments may point into the old text */
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    make_one_line(text);
    memcpy(last_error.text, text, sizeof text);
    last_error.silent = false;
    gr_debug("error %d raised at %s:%d", (int)code, file, line);
    return code;
}

gr_err gr_fail_lines(gr_err code, const char *const *line, int n) {
    char text[sizeof last_error.text];
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < n && used < sizeof text; i++) {
        size_t start = used + (i > 0);
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i ? "\n" : "", line[i]);
        if (start < sizeof text)
            make_one_line(text + start);
    }
    memcpy(last_error.text, text, sizeof text);
    last_error.silent = false;
    return code;
}

gr_err gr_fail_silently(gr_err code) {
    last_error.silent = true;
    return code;
}

const char *gr_error_text(void) {
    return last_error.text;
}

void gr_print_plain(FILE *out, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            fputc(c, out);
    }
}

void gr_error_print(FILE *out, gr_err code) {
    if (last_error.silent)
        return;
    const char *text = last_error.text[0] ? last_error.text : "no description";
    while (*text) {
        size_t n = strcspn(text, "\n");
        fprintf(out, "grouter-train: error[E%d] ", (int)code);
        gr_print_plain(out, text, n);
        fputc('\n', out);
        text += n + (text[n] == '\n');
    }
    fflush(out);
    last_error.silent = true;
}

void gr_assert_fail(const char *file, int line, const char *cond, const char *fmt, ...) {
    fprintf(stderr, "grouter-train: error[E%d] %s:%d: broken invariant (%s): ", GR_BUG, file, line, cond);
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputs("; this is a bug in grouter-train: please report it\n", stderr);
    fflush(stderr);
    _exit(GR_BUG);
}
