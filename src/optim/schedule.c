/* Learning rate as a pure function of the step: nothing to save, nothing to resume. */
#include "grouter/optim.h"

#include <math.h>

static double between(double from, double to, int64_t done, int64_t of) {
    return from + (to - from) * ((double)done / (double)of);
}

double gr_lr_at(const gr_lr *s, int64_t step) {
    int64_t w = s->warmup_steps, d = s->decay_steps;
    if (step < w)
        return s->lr * (double)(step + 1) / (double)w;
    if (s->schedule == GR_SCHEDULE_CONSTANT)
        return s->lr;
    if (step >= d)
        return s->lr_min;
    if (s->schedule == GR_SCHEDULE_LINEAR)
        return between(s->lr, s->lr_min, step - w, d - w);
    if (s->schedule == GR_SCHEDULE_COSINE)
        return s->lr_min + (s->lr - s->lr_min) * (1 + cos(M_PI * (double)(step - w) / (double)(d - w))) / 2;
    int64_t n_last = (d - w + 4) / 5; /* ceil of a fifth, in integers */
    return step < d - n_last ? s->lr : between(s->lr, s->lr_min, step - (d - n_last), n_last);
}
