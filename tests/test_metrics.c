#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "grouter/json.h"
#include "grouter/train.h"

static const char *const log_path = "test_metrics.jsonl";
static const char *const screen_path = "test_metrics.stderr";

/* Sends stderr to a file until screen_take. */
static int screen_start(void) {
    int kept = dup(STDERR_FILENO);
    int file = open(screen_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(kept >= 0 && file >= 0);
    fflush(stderr);
    dup2(file, STDERR_FILENO);
    close(file);
    return kept;
}

static char *file_take(const char *path) {
    char *text;
    size_t n;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_BUG, &text, &n), GR_OK);
    unlink(path);
    return text;
}

static char *screen_take(int kept) {
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    return file_take(screen_path);
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; *p; p++)
        n += strncmp(p, what, strlen(what)) == 0;
    return n;
}

static gr_metrics_options options(void) {
    return (gr_metrics_options){.path = log_path,
        .steps = 10,
        .log_every = 4,
        .tokens_per_step = 2000,
        .flops_per_token = 1e6,
        .peak_flops = 1e11};
}

static gr_step_record record(int64_t step) {
    return (gr_step_record){.step = step,
        .tokens_seen = (uint64_t)step * 2000,
        .loss = 4.2126,
        .lr = 9.9e-5,
        .grad_norm = 0.812,
        .loss_valid = NAN,
        .bytes_nats_valid = NAN,
        .step_ms = 100,
        .prepare_ms = 1,
        .forward_ms = 30,
        .backward_ms = 60,
        .exchange_ms = 2,
        .reduce_ms = 3,
        .optimizer_ms = 4,
        .aux_loss = NAN,
        .z_loss = NAN,
        .max_vio = 0.12,
        .max_vio_layer = NAN,
        .exact_match = NAN,
        .overlap = NAN,
        .gate_cosine = NAN,
        .max_vio_valid = NAN,
        .bytes_sent = NAN,
        .rows_per_token = NAN,
        .rows_per_token_best = NAN,
        .imbalance = NAN,
        .imbalance_best = NAN};
}

static gr_metrics *metrics_open(const gr_metrics_options *o) {
    gr_metrics *m;
    unlink(log_path);
    assert_int_equal(gr_metrics_open(&m, o), GR_OK);
    return m;
}

static gr_json *line_parse(const char *line, size_t n) {
    gr_json *doc;
    assert_int_equal(gr_json_parse(&doc, line, n, log_path, 1 << 16, 4, GR_BUG), GR_OK);
    return doc;
}

static double number(const gr_json *doc, const char *key) {
    double value;
    assert_true(gr_json_f64(gr_json_get(gr_json_root(doc), key), &value));
    return value;
}

static bool has(const gr_json *doc, const char *key) {
    return gr_json_get(gr_json_root(doc), key) != NULL;
}

/* The log's only line after one step. */
static gr_json *log_of(const gr_step_record *r) {
    gr_metrics_options o = options();
    int kept = screen_start();
    gr_metrics *m = metrics_open(&o);
    gr_metrics_step(m, r);
    free(screen_take(kept));
    char *text = file_take(log_path); /* before close: every step is flushed */
    gr_metrics_close(m);
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_true(strlen(text) <= 512);
    gr_json *doc = line_parse(text, strlen(text));
    free(text);
    return doc;
}

static void a_step_is_one_flat_object_with_what_was_measured(void **state) {
    (void)state;
    gr_step_record r = record(3);
    gr_json *doc = log_of(&r);
    assert_true(number(doc, "schema") == 1);
    assert_true(number(doc, "step") == 3);
    assert_true(number(doc, "tokens_seen") == 6000);
    assert_true(number(doc, "loss") == 4.2126);
    assert_true(number(doc, "grad_norm") == 0.812);
    assert_true(number(doc, "lr") == 9.9e-5);
    assert_true(number(doc, "step_ms") == 100);
    assert_true(number(doc, "exchange_ms") == 2);
    assert_true(number(doc, "tokens_per_s") == 20000);
    assert_true(number(doc, "model_flops_per_s") == 2e10);
    assert_true(number(doc, "peak_share") == 0.2);
    assert_true(number(doc, "maxvio") == 0.12);
    assert_false(gr_json_get(gr_json_root(doc), "skipped")->boolean);
    const char *when = gr_json_get(gr_json_root(doc), "time")->string;
    int year, month, day, hour, minute, second, end = 0;
    int n = sscanf(when, "%4d-%2d-%2dT%2d:%2d:%2dZ%n", &year, &month, &day, &hour, &minute, &second, &end);
    assert_true(n == 6 && end == 20 && when[20] == 0);
    for (const gr_json_node *c = gr_json_root(doc)->child; c; c = c->next)
        assert_true(c->kind != GR_JSON_OBJECT && c->kind != GR_JSON_ARRAY && c->kind != GR_JSON_NULL);
    gr_json_close(doc);
}

static void learned_routers_add_their_losses_and_the_fullest_layer(void **state) {
    (void)state;
    gr_step_record r = record(3);
    r.aux_loss = 0.02;
    r.z_loss = 0.003;
    r.max_vio_layer = 0.5;
    gr_json *doc = log_of(&r);
    assert_true(number(doc, "aux_loss") == 0.02 && number(doc, "z_loss") == 0.003);
    assert_true(number(doc, "maxvio") == 0.12 && number(doc, "maxvio_max") == 0.5);
    gr_json_close(doc);
}

static void bytes_sent_are_exact_and_zero_is_a_figure(void **state) {
    (void)state;
    gr_step_record r = record(3);
    r.bytes_sent = 1234567890123;
    gr_json *doc = log_of(&r);
    assert_true(number(doc, "bytes_sent") == 1234567890123);
    gr_json_close(doc);
    r.bytes_sent = 0; /* one rank sends nothing */
    doc = log_of(&r);
    assert_true(has(doc, "bytes_sent") && number(doc, "bytes_sent") == 0);
    gr_json_close(doc);
}

static void grouters_add_how_near_they_are_to_what_they_imitate(void **state) {
    (void)state;
    gr_step_record r = record(3);
    r.max_vio = NAN;
    r.exact_match = 0.25;
    r.overlap = 0.5;
    r.gate_cosine = 0.75;
    r.max_vio_valid = 1.5;
    gr_json *doc = log_of(&r);
    assert_true(number(doc, "exact_match") == 0.25 && number(doc, "overlap") == 0.5);
    assert_true(number(doc, "gate_cosine") == 0.75 && number(doc, "maxvio_valid") == 1.5);
    assert_false(has(doc, "maxvio"));
    gr_json_close(doc);
}

static void expert_parallel_ranks_add_their_traffic_and_what_would_be_best(void **state) {
    (void)state;
    gr_step_record r = record(2);
    r.rows_per_token = 0.75;
    r.imbalance = 1.125;
    gr_json *doc = log_of(&r);
    assert_true(number(doc, "rows_per_token") == 0.75 && number(doc, "imbalance") == 1.125);
    assert_false(has(doc, "rows_per_token_best") || has(doc, "imbalance_best"));
    gr_json_close(doc);
    r.rows_per_token_best = 0.5;
    r.imbalance_best = 1.0625;
    doc = log_of(&r);
    assert_true(number(doc, "rows_per_token_best") == 0.5 && number(doc, "imbalance_best") == 1.0625);
    gr_json_close(doc);
}

static void what_was_not_measured_is_absent(void **state) {
    (void)state;
    gr_step_record r = record(1);
    gr_json *doc = log_of(&r);
    assert_false(has(doc, "aux_loss") || has(doc, "z_loss") || has(doc, "maxvio_max"));
    assert_false(has(doc, "rows_per_token") || has(doc, "imbalance"));
    assert_false(has(doc, "exact_match") || has(doc, "overlap") || has(doc, "gate_cosine") || has(doc, "maxvio_valid"));
    assert_false(has(doc, "bytes_sent"));
    assert_false(has(doc, "loss_valid"));
    assert_false(has(doc, "nats_per_byte_valid"));
    assert_false(has(doc, "eval_ms"));
    assert_false(has(doc, "eta_s"));
    gr_json_close(doc);
    r.loss_valid = 4.5;
    r.eval_ms = 20;
    doc = log_of(&r);
    assert_true(number(doc, "loss_valid") == 4.5);
    assert_true(number(doc, "eval_ms") == 20);
    assert_false(has(doc, "nats_per_byte_valid"));
    gr_json_close(doc);
}

static void a_loss_that_is_not_finite_leaves_a_valid_object(void **state) {
    (void)state;
    gr_step_record r = record(2);
    r.loss = -INFINITY;
    r.grad_norm = NAN;
    r.skipped = true;
    gr_json *doc = log_of(&r);
    assert_false(has(doc, "loss"));
    assert_false(has(doc, "grad_norm"));
    assert_true(gr_json_get(gr_json_root(doc), "skipped")->boolean);
    gr_json_close(doc);
}

/* The last line's value of `key` after the given steps. */
static double after(const gr_step_record *steps, int n, const char *key, char **screen) {
    gr_metrics_options o = options();
    int kept = screen_start();
    gr_metrics *m = metrics_open(&o);
    for (int i = 0; i < n; i++)
        gr_metrics_step(m, &steps[i]);
    gr_metrics_close(m);
    *screen = screen_take(kept);
    char *text = file_take(log_path), *last = text;
    for (char *p = text; *p; p++)
        if (*p == '\n' && p[1])
            last = p + 1;
    gr_json *doc = line_parse(last, strlen(last));
    double value = has(doc, key) ? number(doc, key) : NAN;
    gr_json_close(doc);
    free(text);
    return value;
}

static void the_first_step_and_evaluations_do_not_slow_the_estimate(void **state) {
    (void)state;
    gr_step_record steps[4] = {record(1), record(2), record(3), record(4)};
    steps[0].step_ms = 5000;
    steps[2].step_ms = 7000;
    steps[2].loss_valid = 4.3;
    char *screen;
    assert_true(isnan(after(steps, 1, "eta_s", &screen)));
    assert_non_null(strstr(screen, "warming up"));
    assert_null(strstr(screen, "eta"));
    free(screen);
    assert_true(fabs(after(steps, 4, "eta_s", &screen) - 0.6) < 1e-9);
    assert_non_null(strstr(screen, "step 4/10 | loss 4.213 | gnorm 0.81 | lr 9.9e-05 | 100 ms | 20.0k tok/s | "
                                   "20.0% of peak | maxvio 0.12 | eta 1s\n"));
    free(screen);
}

static void small_losses_are_shown_with_digits_that_count(void **state) {
    (void)state;
    gr_step_record steps[2] = {record(1), record(2)};
    char *screen;
    steps[1].loss = 0.000123456;
    steps[1].loss_valid = 0.0345678;
    steps[1].max_vio = NAN;
    after(steps, 2, "loss", &screen);
    assert_non_null(strstr(screen, "step 2/10 | loss 0.000123 | valid 0.0346 | gnorm 0.81"));
    assert_null(strstr(strstr(screen, "step 2/10"), "maxvio"));
    free(screen);
}

static void plain_lines_come_at_both_ends_and_on_the_beat(void **state) {
    (void)state;
    gr_step_record steps[10];
    for (int i = 0; i < 10; i++)
        steps[i] = record(i + 1);
    char *screen;
    after(steps, 10, "step", &screen);
    const int64_t expected[] = {1, 4, 8, 10};
    char *line = screen;
    for (int i = 0; i < 4; i++) {
        char head[32];
        int n = snprintf(head, sizeof head, "step %lld/10 ", (long long)expected[i]);
        assert_memory_equal(line, head, (size_t)n);
        line = strchr(line, '\n') + 1;
    }
    assert_int_equal(*line, 0);
    assert_null(strchr(screen, '\033'));
    free(screen);
}

static void evaluations_and_skips_are_shown_at_once(void **state) {
    (void)state;
    gr_step_record steps[3] = {record(1), record(2), record(3)};
    steps[1].loss_valid = 3.25;
    steps[2].skipped = true;
    steps[2].loss = NAN;
    steps[2].grad_norm = 1e300;
    char *screen;
    after(steps, 3, "step", &screen);
    assert_non_null(strstr(screen, "step 2/10 | loss 4.213 | valid 3.250 |"));
    assert_non_null(strstr(screen, "step 3/10 | loss nan | gnorm 1.00e+300 | lr 9.9e-05 | skipped |"));
    free(screen);
}

static void on_a_terminal_the_steps_between_rewrite_one_line_of_its_width(void **state) {
    (void)state;
    int screen = posix_openpt(O_RDWR | O_NOCTTY);
    if (screen < 0 || grantpt(screen) || unlockpt(screen))
        skip();
    int terminal = open(ptsname(screen), O_RDWR | O_NOCTTY), kept = dup(STDERR_FILENO);
    struct winsize size = {.ws_row = 5, .ws_col = 24};
    assert_int_equal(ioctl(terminal, TIOCSWINSZ, &size), 0);
    dup2(terminal, STDERR_FILENO);
    gr_metrics_options o = options();
    gr_metrics *m = metrics_open(&o);
    for (int64_t i = 1; i <= 4; i++) {
        gr_step_record r = record(i);
        gr_metrics_step(m, &r);
    }
    gr_metrics_close(m);
    dup2(kept, STDERR_FILENO);
    char shown[1024] = {0};
    size_t n_shown = 0;
    while (count(shown, "\n") < 2) { /* what was written arrives in pieces */
        struct pollfd more = {.fd = screen, .events = POLLIN};
        assert_int_equal(poll(&more, 1, 10000), 1);
        ssize_t n = read(screen, shown + n_shown, sizeof shown - 1 - n_shown);
        assert_true(n > 0);
        n_shown += (size_t)n;
    }
    const char *between = strchr(shown, '\n') + 1;           /* after the first step's line */
    const char *expected = "\r\033[Kstep 2/10 | loss 4.213 " /* 23 columns */
                           "\r\033[Kstep 3/10 | loss 4.213 "
                           "\r\033[Kstep 4/10 | loss 4.213 | gnorm";
    assert_memory_equal(between, expected, strlen(expected));
    close(kept);
    close(terminal);
    close(screen);
    unlink(log_path);
}

static void a_full_disk_warns_once_and_training_goes_on(void **state) {
    (void)state;
    gr_metrics_options o = options();
    gr_metrics *m;
    o.path = "/dev/full";
    int kept = screen_start();
    assert_int_equal(gr_metrics_open(&m, &o), GR_OK);
    for (int64_t i = 1; i <= 3; i++) {
        gr_step_record r = record(i);
        gr_metrics_step(m, &r);
    }
    gr_metrics_close(m);
    char *screen = screen_take(kept);
    assert_int_equal(count(screen, "warning: /dev/full"), 1);
    assert_int_equal(count(screen, "step "), 1); /* the first; the others are not due */
    free(screen);
}

static void a_log_that_cannot_be_opened_is_a_storage_error(void **state) {
    (void)state;
    gr_metrics_options o = options();
    gr_metrics *m;
    o.path = "test_metrics.absent/metrics.jsonl";
    assert_int_equal(gr_metrics_open(&m, &o), GR_STORAGE);
    assert_non_null(strstr(gr_error_text(), "test_metrics.absent/metrics.jsonl"));
    assert_null(m);
}

static void ranks_without_a_path_are_silent(void **state) {
    (void)state;
    gr_metrics_options o = options();
    gr_step_record r = record(1);
    o.path = NULL;
    int kept = screen_start();
    gr_metrics *m = metrics_open(&o);
    gr_metrics_step(m, &r);
    gr_metrics_close(m);
    char *screen = screen_take(kept);
    assert_string_equal(screen, "");
    free(screen);
}

static void log_steps(const gr_metrics_options *o, int64_t first, int64_t last) {
    int kept = screen_start();
    gr_metrics *m;
    assert_int_equal(gr_metrics_open(&m, o), GR_OK);
    for (int64_t step = first; step <= last; step++) {
        gr_step_record r = record(step);
        gr_metrics_step(m, &r);
    }
    gr_metrics_close(m);
    free(screen_take(kept));
}

static void a_log_goes_on_after_the_step_of_the_checkpoint(void **state) {
    (void)state;
    gr_metrics_options o = options();
    unlink(log_path);
    log_steps(&o, 1, 5);
    FILE *torn = fopen(log_path, "a");
    assert_non_null(torn);
    fputs("{\"schema\":1,\"time\":\"2026", torn);
    fclose(torn);
    o.resume_step = 3;
    log_steps(&o, 4, 4);
    char *text = file_take(log_path);
    assert_int_equal(count(text, "\n"), 4);
    for (int step = 1; step <= 4; step++) {
        char key[32];
        snprintf(key, sizeof key, "\"step\":%d,", step);
        assert_int_equal(count(text, key), 1);
    }
    free(text);
}

static void a_run_that_starts_over_starts_its_log_over(void **state) {
    (void)state;
    gr_metrics_options o = options();
    o.resume_step = -1;
    unlink(log_path);
    log_steps(&o, 1, 2);
    log_steps(&o, 1, 1);
    char *text = file_take(log_path);
    assert_int_equal(count(text, "\n"), 1);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_one_flat_object_with_what_was_measured),
        cmocka_unit_test(learned_routers_add_their_losses_and_the_fullest_layer),
        cmocka_unit_test(bytes_sent_are_exact_and_zero_is_a_figure),
        cmocka_unit_test(grouters_add_how_near_they_are_to_what_they_imitate),
        cmocka_unit_test(expert_parallel_ranks_add_their_traffic_and_what_would_be_best),
        cmocka_unit_test(what_was_not_measured_is_absent),
        cmocka_unit_test(a_loss_that_is_not_finite_leaves_a_valid_object),
        cmocka_unit_test(the_first_step_and_evaluations_do_not_slow_the_estimate),
        cmocka_unit_test(small_losses_are_shown_with_digits_that_count),
        cmocka_unit_test(plain_lines_come_at_both_ends_and_on_the_beat),
        cmocka_unit_test(evaluations_and_skips_are_shown_at_once),
        cmocka_unit_test(on_a_terminal_the_steps_between_rewrite_one_line_of_its_width),
        cmocka_unit_test(a_full_disk_warns_once_and_training_goes_on),
        cmocka_unit_test(a_log_that_cannot_be_opened_is_a_storage_error),
        cmocka_unit_test(ranks_without_a_path_are_silent),
        cmocka_unit_test(a_log_goes_on_after_the_step_of_the_checkpoint),
        cmocka_unit_test(a_run_that_starts_over_starts_its_log_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
