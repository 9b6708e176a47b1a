/* What a run says about itself: one JSON object per step for programs, one line now and then for people. */
#include "grouter/train.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SCHEMA 1
#define CLEAR_LINE "\r\033[K"

struct gr_metrics {
    gr_metrics_options o; /* path NULL: nothing is written or shown */
    char *path;
    int file;
    bool tty;
    bool started;    /* the first step is over */
    bool transient;  /* the terminal's current line is a progress line that the next one rewrites */
    bool warned;     /* a write failed and was reported */
    bool torn;       /* the file may end inside a line */
    int64_t n_timed; /* steps in the averages */
    double timed_ms;
};

/* Bytes of `text` before the first record of a step after `last`; a torn last line goes too. */
static size_t bytes_kept(const char *text, size_t n, int64_t last) {
    size_t kept = 0;
    while (kept < n) {
        const char *line = text + kept, *end = memchr(line, '\n', n - kept);
        if (!end)
            break;
        const char *step = memmem(line, (size_t)(end - line), "\"step\":", 7);
        if (!step || strtoll(step + 7, NULL, 10) > last)
            break;
        kept = (size_t)(end + 1 - text);
    }
    return kept;
}

/* A run that goes on from a checkpoint writes the steps after it again. */
static gr_err cut_off(const char *path, int64_t last) {
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return GR_OK; /* new, or a device: nothing to cut */
    gr_map log;
    GR_TRY(gr_map_open(&log, path, GR_STORAGE));
    size_t kept = bytes_kept((const char *)log.p, log.n, last);
    gr_map_close(&log);
    if (truncate(path, (off_t)kept) != 0)
        return gr_fail(
            GR_STORAGE, "%s: cutting it off after step %lld failed: %s", path, (long long)last, strerror(errno));
    return GR_OK;
}

gr_err gr_metrics_open(gr_metrics **out, const gr_metrics_options *o) {
    *out = NULL;
    void *memory;
    if (o->path)
        GR_TRY(cut_off(o->path, o->resume_step));
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_metrics), "metrics"));
    gr_metrics *m = memory;
    m->o = *o;
    m->file = -1;
    if (o->path) {
        m->path = strdup(o->path);
        m->file = m->path ? open(m->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
        if (m->file < 0) {
            int reason = errno;
            gr_metrics_close(m);
            return gr_fail(GR_STORAGE,
                "%s: expected a file that can be written, got: %s; check run.dir and its "
                "permissions",
                o->path, strerror(reason));
        }
        m->o.path = m->path;
        m->tty = isatty(STDERR_FILENO) == 1;
    }
    *out = m;
    return GR_OK;
}

static void transient_clear(gr_metrics *m) {
    if (m->transient)
        fputs(CLEAR_LINE, stderr);
    m->transient = false;
}

void gr_metrics_close(gr_metrics *m) {
    if (!m)
        return;
    if (m->transient)
        fputc('\n', stderr); /* an early end leaves the last step on the screen */
    if (m->file >= 0)
        close(m->file);
    free(m->path);
    free(m);
}

/* ---------------------------------------------------------------- text of bounded length */

typedef struct text {
    char s[2048];
    size_t n;
} text;

__attribute__((format(printf, 2, 3))) static void text_add(text *t, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(t->s + t->n, sizeof t->s - t->n, fmt, args);
    va_end(args);
    GR_ASSERT(n >= 0 && (size_t)n < sizeof t->s - t->n, "%zu + %d bytes", t->n, n);
    t->n += (size_t)n;
}

/* ,"key":value unless the value was not measured. JSON has neither NaN nor Inf. */
static void number_add(text *t, const char *key, double value) {
    if (isfinite(value))
        text_add(t, ",\"%s\":%.9g", key, value);
}

/* A whole number, to its last digit. */
static void count_add(text *t, const char *key, double value) {
    if (isfinite(value))
        text_add(t, ",\"%s\":%.0f", key, value);
}

static void time_add(text *t, const char *key, double value) {
    if (isfinite(value))
        text_add(t, ",\"%s\":%.6g", key, value);
}

/* ---------------------------------------------------------------- speed */

static bool evaluated(const gr_step_record *r) {
    return isfinite(r->loss_valid);
}

static void speed_update(gr_metrics *m, const gr_step_record *r) {
    if (m->started && !evaluated(r)) {
        m->n_timed++;
        m->timed_ms += r->step_ms;
    }
    m->started = r->step > 0; /* step 0 only evaluates: step 1 is still the first */
}

/* Mean seconds per step; NaN while warming up. */
static double step_s(const gr_metrics *m) {
    return m->n_timed > 0 ? m->timed_ms / 1e3 / (double)m->n_timed : NAN;
}

static double eta_s(const gr_metrics *m, const gr_step_record *r) {
    return step_s(m) * (double)(m->o.steps - r->step);
}

/* ---------------------------------------------------------------- metrics.jsonl */

static void record_text(const gr_metrics *m, const gr_step_record *r, text *t) {
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    text_add(t, "{\"schema\":%d,\"time\":\"%s\",\"step\":%lld,\"tokens_seen\":%llu", SCHEMA, when, (long long)r->step,
        (unsigned long long)r->tokens_seen);
    number_add(t, "loss", r->loss);
    number_add(t, "aux_loss", r->aux_loss);
    number_add(t, "z_loss", r->z_loss);
    number_add(t, "loss_valid", r->loss_valid);
    number_add(t, "nats_per_byte_valid", r->bytes_nats_valid);
    number_add(t, "grad_norm", r->grad_norm);
    number_add(t, "lr", r->lr);
    time_add(t, "step_ms", r->step_ms);
    time_add(t, "prepare_ms", r->prepare_ms);
    time_add(t, "forward_ms", r->forward_ms);
    time_add(t, "backward_ms", r->backward_ms);
    time_add(t, "exchange_ms", r->exchange_ms);
    time_add(t, "reduce_ms", r->reduce_ms);
    time_add(t, "optimizer_ms", r->optimizer_ms);
    time_add(t, "eval_ms", evaluated(r) ? r->eval_ms : NAN);
    double tokens_per_s = m->o.tokens_per_step / (r->step_ms / 1e3), flops = tokens_per_s * m->o.flops_per_token;
    number_add(t, "tokens_per_s", tokens_per_s);
    number_add(t, "model_flops_per_s", flops);
    number_add(t, "peak_share", m->o.peak_flops > 0 ? flops / m->o.peak_flops : NAN);
    number_add(t, "maxvio", r->max_vio);
    number_add(t, "maxvio_max", r->max_vio_layer);
    number_add(t, "maxvio_valid", r->max_vio_valid);
    count_add(t, "bytes_sent", r->bytes_sent);
    number_add(t, "rows_per_token", r->rows_per_token);
    number_add(t, "rows_per_token_best", r->rows_per_token_best);
    number_add(t, "imbalance", r->imbalance);
    number_add(t, "imbalance_best", r->imbalance_best);
    number_add(t, "exact_match", r->exact_match);
    number_add(t, "overlap", r->overlap);
    number_add(t, "gate_cosine", r->gate_cosine);
    text_add(t, ",\"skipped\":%s", r->skipped ? "true" : "false");
    time_add(t, "eta_s", eta_s(m, r));
    text_add(t, "}\n");
}

/* The newline after a torn line keeps later records readable once there is space again. */
static void record_write(gr_metrics *m, const gr_step_record *r) {
    text t = {0};
    if (m->torn)
        text_add(&t, "\n");
    record_text(m, r, &t);
    ssize_t n = write(m->file, t.s, t.n);
    bool whole = n == (ssize_t)t.n;
    m->torn = !whole && (m->torn || n > 0);
    if (whole || m->warned)
        return;
    m->warned = true;
    transient_clear(m);
    gr_warn("%s: expected to write %zu bytes, got: %s; training goes on, steps will be missing there", m->path, t.n,
        n < 0 ? strerror(errno) : "fewer");
}

/* ---------------------------------------------------------------- lines for people */

static void rate_add(text *t, double per_s) {
    if (per_s >= 1e6)
        text_add(t, " | %.2fM tok/s", per_s / 1e6);
    else if (per_s >= 1e3)
        text_add(t, " | %.1fk tok/s", per_s / 1e3);
    else
        text_add(t, " | %.0f tok/s", per_s);
}

/* The name and a number with so many decimals; one that diverged must not make the line endless. */
static void value_add(text *t, const char *name, int decimals, double value) {
    if (isfinite(value) && fabs(value) >= 1e6)
        text_add(t, " | %s %.2e", name, value);
    else
        text_add(t, " | %s %.*f", name, decimals, isnan(value) ? (double)NAN : value);
}

/* A divergence soon is so small that no fixed number of decimals would show it. */
static void loss_add(text *t, const char *name, double value) {
    if (value != 0 && fabs(value) < 0.1)
        text_add(t, " | %s %.3g", name, value);
    else
        value_add(t, name, 3, value);
}

static void line_text(const gr_metrics *m, const gr_step_record *r, text *t) {
    text_add(t, "step %lld/%lld", (long long)r->step, (long long)m->o.steps);
    if (r->step == 0) { /* before training there is only the evaluation */
        loss_add(t, "valid", r->loss_valid);
        return;
    }
    loss_add(t, "loss", r->loss);
    if (evaluated(r))
        loss_add(t, "valid", r->loss_valid);
    value_add(t, "gnorm", 2, r->grad_norm);
    text_add(t, " | lr %.1e", r->lr);
    if (r->skipped)
        text_add(t, " | skipped");
    text_add(t, " | %.0f ms", r->step_ms);
    double per_s = m->o.tokens_per_step / step_s(m);
    if (isfinite(per_s)) {
        rate_add(t, per_s);
        if (m->o.peak_flops > 0)
            text_add(t, " | %.1f%% of peak", 100 * per_s * m->o.flops_per_token / m->o.peak_flops);
    }
    if (isfinite(r->max_vio)) /* distill counts choices in validation alone */
        value_add(t, "maxvio", 2, r->max_vio);
    char eta[16];
    if (isfinite(per_s))
        text_add(t, " | eta %s", gr_duration_text(eta_s(m, r), eta));
    else
        text_add(t, " | warming up");
}

/* A line that stays: due every log_every steps, at both ends, and when there is something to tell. */
static bool line_due(const gr_metrics *m, const gr_step_record *r, bool first) {
    bool regular = m->o.log_every > 0 && r->step % m->o.log_every == 0;
    return regular || first || r->step == m->o.steps || evaluated(r) || r->skipped;
}

/* Rewritten in place, cut to the terminal's width: a wrapped line could not be rewritten. */
static void transient_show(gr_metrics *m, const text *t) {
    struct winsize window = {0};
    int width = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1 ? window.ws_col - 1 : 79;
    fprintf(stderr, CLEAR_LINE "%.*s", width, t->s);
    fflush(stderr);
    m->transient = true;
}

void gr_metrics_step(gr_metrics *m, const gr_step_record *r) {
    if (!m->o.path)
        return;
    bool first = !m->started;
    speed_update(m, r);
    bool due = line_due(m, r, first);
    if (due)
        transient_clear(m);
    record_write(m, r);
    text line = {0};
    line_text(m, r, &line);
    if (due)
        gr_info("%s", line.s);
    else if (m->tty)
        transient_show(m, &line);
}
