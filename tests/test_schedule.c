#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

#include "grouter/optim.h"

static const gr_schedule all[] = {GR_SCHEDULE_COSINE, GR_SCHEDULE_WSD, GR_SCHEDULE_LINEAR, GR_SCHEDULE_CONSTANT};
enum { N_SCHEDULE = sizeof all / sizeof *all };

static gr_lr paper(gr_schedule schedule) {
    return (gr_lr){.schedule = schedule, .lr = 1e-4, .lr_min = 1e-5, .warmup_steps = 5000, .decay_steps = 25000};
}

static void assert_close(double a, double b) {
    if (!(fabs(a - b) <= 1e-12 * fabs(b)))
        fail_msg("%.17g is not %.17g", a, b);
}

static void warm_up_rises_by_equal_steps_and_ends_at_the_peak(void **state) {
    (void)state;
    for (int k = 0; k < N_SCHEDULE; k++) {
        gr_lr s = paper(all[k]);
        assert_close(gr_lr_at(&s, 0), 1e-4 / 5000);
        for (int64_t i = 1; i < 5000; i++)
            assert_true(fabs(gr_lr_at(&s, i) - gr_lr_at(&s, i - 1) - 1e-4 / 5000) < 1e-18);
        assert_close(gr_lr_at(&s, 4999), 1e-4);
        assert_close(gr_lr_at(&s, 5000), 1e-4);
    }
}

static void every_decay_falls_without_jumps_to_the_minimum(void **state) {
    (void)state;
    for (int k = 0; k < N_SCHEDULE; k++) {
        gr_lr s = paper(all[k]);
        if (s.schedule == GR_SCHEDULE_CONSTANT)
            continue;
        /* steepest: wsd falls the whole way in a fifth of the decay */
        double largest = 1.6 * (1e-4 - 1e-5) / 4000;
        for (int64_t i = 5000; i < 25000; i++) {
            double fall = gr_lr_at(&s, i) - gr_lr_at(&s, i + 1);
            assert_true(fall >= 0 && fall <= largest);
        }
        assert_close(gr_lr_at(&s, 25000), 1e-5);
        assert_close(gr_lr_at(&s, 1000000), 1e-5);
    }
}

static void half_way_each_schedule_is_where_its_formula_says(void **state) {
    (void)state;
    gr_lr cosine = paper(GR_SCHEDULE_COSINE), linear = paper(GR_SCHEDULE_LINEAR), wsd = paper(GR_SCHEDULE_WSD);
    assert_close(gr_lr_at(&cosine, 15000), 5.5e-5);
    assert_close(gr_lr_at(&cosine, 10000), 1e-5 + 9e-5 * (1 + sqrt(0.5)) / 2);
    assert_close(gr_lr_at(&linear, 10000), 1e-4 - 0.25 * 9e-5);
    assert_close(gr_lr_at(&wsd, 21000), 1e-4);
    assert_close(gr_lr_at(&wsd, 23000), 5.5e-5);
    assert_true(gr_lr_at(&wsd, 21001) < 1e-4);
}

static void wsd_rounds_its_last_fifth_up(void **state) {
    (void)state;
    gr_lr s = {.schedule = GR_SCHEDULE_WSD, .lr = 1, .lr_min = 0, .warmup_steps = 0, .decay_steps = 6};
    const double expected[] = {1, 1, 1, 1, 1, 0.5, 0, 0}; /* ceil(1.2) = 2 steps of decay */
    for (int64_t i = 0; i < 8; i++)
        assert_close(gr_lr_at(&s, i), expected[i]);
}

static void constant_stays_at_the_peak(void **state) {
    (void)state;
    gr_lr s = paper(GR_SCHEDULE_CONSTANT);
    assert_close(gr_lr_at(&s, 1000000), 1e-4);
}

static void a_decay_that_ends_within_the_warm_up_still_gives_rates_in_range(void **state) {
    (void)state;
    for (int k = 0; k < N_SCHEDULE; k++) {
        gr_lr s = {.schedule = all[k], .lr = 1, .lr_min = 0.1, .warmup_steps = 10, .decay_steps = 5};
        for (int64_t i = 0; i < 20; i++) {
            double lr = gr_lr_at(&s, i);
            assert_true(lr >= 0.1 && lr <= 1);
        }
    }
}

static void without_warm_up_the_first_step_runs_at_the_peak(void **state) {
    (void)state;
    for (int k = 0; k < N_SCHEDULE; k++) {
        gr_lr s = {.schedule = all[k], .lr = 0.5, .lr_min = 0.1, .warmup_steps = 0, .decay_steps = 100};
        assert_close(gr_lr_at(&s, 0), 0.5);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_rises_by_equal_steps_and_ends_at_the_peak),
        cmocka_unit_test(every_decay_falls_without_jumps_to_the_minimum),
        cmocka_unit_test(half_way_each_schedule_is_where_its_formula_says),
        cmocka_unit_test(wsd_rounds_its_last_fifth_up),
        cmocka_unit_test(constant_stays_at_the_peak),
        cmocka_unit_test(a_decay_that_ends_within_the_warm_up_still_gives_rates_in_range),
        cmocka_unit_test(without_warm_up_the_first_step_runs_at_the_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
