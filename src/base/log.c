/* Log lines and progress, all on stderr; results go to stdout. */
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "grouter/base.h"

static gr_log_level log_level = GR_LOG_INFO;

void gr_log_set(gr_log_level level) {
    log_level = level;
}

static void print_line(const char *head, const char *fmt, va_list args) {
    char text[4096];
    vsnprintf(text, sizeof text, fmt, args);
    fputs(head, stderr);
    gr_print_plain(stderr, text, strlen(text));
    fputc('\n', stderr);
}

void gr_info(const char *fmt, ...) {
    if (log_level < GR_LOG_INFO)
        return;
    va_list args;
    va_start(args, fmt);
    print_line("", fmt, args);
    va_end(args);
}

void gr_warn(const char *fmt, ...) {
    if (log_level < GR_LOG_INFO)
        return;
    va_list args;
    va_start(args, fmt);
    print_line("warning: ", fmt, args);
    va_end(args);
}

void gr_debug(const char *fmt, ...) {
    if (log_level < GR_LOG_DEBUG)
        return;
    va_list args;
    va_start(args, fmt);
    print_line("debug: ", fmt, args);
    va_end(args);
}

double gr_time_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *gr_duration_text(double seconds, char *text) {
    const double longest_s = 99.0 * 365 * 86400;
    uint64_t s = seconds > 0 ? (uint64_t)(fmin(seconds, longest_s) + 0.5) : 0;
    if (s >= 86400)
        snprintf(text, 16, "%ud%02uh", (unsigned)(s / 86400), (unsigned)(s / 3600 % 24));
    else if (s >= 3600)
        snprintf(text, 16, "%uh%02um", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
    else if (s >= 60)
        snprintf(text, 16, "%um%02us", (unsigned)(s / 60), (unsigned)(s % 60));
    else
        snprintf(text, 16, "%us", (unsigned)s);
    return text;
}

void gr_progress_start(gr_progress *p, const char *label, const char *unit, uint64_t total) {
    *p = (gr_progress){.label = label, .unit = unit, .total = total};
    p->start_s = p->shown_s = gr_time_s();
    p->tty = isatty(STDERR_FILENO) == 1;
}

/* "0.16 ", "830 ", "12.5 k" or "3.1 M" into text; returns text. */
static const char *scaled(double n, char text[24]) {
    if (n < 10)
        snprintf(text, 24, "%.2g ", n);
    else if (n < 1e3)
        snprintf(text, 24, "%.0f ", n);
    else
        snprintf(text, 24, n < 1e6 ? "%.1f k" : "%.1f M", n / (n < 1e6 ? 1e3 : 1e6));
    return text;
}

static void progress_print(const gr_progress *p, uint64_t done, double now_s, const char *head, const char *tail) {
    double elapsed_s = now_s - p->start_s;
    double rate = elapsed_s > 0 ? (double)done / elapsed_s : 0;
    char eta[16], n[3][24];
    double left_s = rate > 0 && p->total > done ? (double)(p->total - done) / rate : 0;
    fprintf(stderr, "%s%s: %5.1f%% | %s of %s%s | %s%s/s | eta %s%s", head, p->label,
        p->total ? 100.0 * (double)done / (double)p->total : 100.0, scaled((double)done, n[0]),
        scaled((double)p->total, n[1]), p->unit, scaled(rate, n[2]), p->unit, gr_duration_text(left_s, eta), tail);
    fflush(stderr);
}

void gr_progress_update(gr_progress *p, uint64_t done) {
    if (log_level < GR_LOG_INFO)
        return;
    double now_s = gr_time_s();
    if (now_s - p->shown_s < (p->tty ? 0.2 : 10.0))
        return;
    p->shown_s = now_s;
    p->shown = true;
    progress_print(p, done, now_s, p->tty ? "\r\033[K" : "", p->tty ? "" : "\n");
}

void gr_progress_finish(gr_progress *p, uint64_t done) {
    if (log_level < GR_LOG_INFO)
        return;
    double elapsed_s = gr_time_s() - p->start_s;
    double rate = elapsed_s > 0 ? (double)done / elapsed_s : 0;
    char took[16], n[2][24];
    fprintf(stderr, "%s%s: %s%s in %s (%s%s/s)\n", p->tty && p->shown ? "\r\033[K" : "", p->label,
        scaled((double)done, n[0]), p->unit, gr_duration_text(elapsed_s, took), scaled(rate, n[1]), p->unit);
}
