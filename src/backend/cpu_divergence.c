/* cpu_divergence.c: how far a student's scores are from a teacher's. In double: near the end of a distillation the two
 * are so close that fp32 would lose what is left. */
#include "cpu.h"

#include <math.h>

/* ln softmax(z/t)_e = (z_e - largest) / t - log_sum. The two are never added up: large scores would swallow the log. */
typedef struct normaliser {
    double largest, log_sum, t;
} normaliser;

static normaliser normaliser_of(int64_t E, const float *z, double t) {
    double largest = (double)z[0], sum = 0;
    for (int64_t e = 1; e < E; e++)
        largest = (double)z[e] > largest ? (double)z[e] : largest;
    for (int64_t e = 0; e < E; e++)
        sum += exp(((double)z[e] - largest) / t);
    return (normaliser){.largest = largest, .log_sum = log(sum), .t = t};
}

static double log_share(const normaliser *n, float z) {
    return ((double)z - n->largest) / n->t - n->log_sum;
}

static double token_divergence(const gr_divergence *a, int64_t i) {
    const double t = (double)a->temperature;
    const float *teacher = a->teacher + i * a->E, *student = a->student + i * a->E;
    float *d = a->dstudent ? a->dstudent + i * a->E : NULL;
    const normaliser of_p = normaliser_of(a->E, teacher, t), of_q = normaliser_of(a->E, student, t);
    double sum = 0;
    for (int64_t e = 0; e < a->E; e++) {
        const double ln_p = log_share(&of_p, teacher[e]), ln_q = log_share(&of_q, student[e]), p = exp(ln_p);
        if (p > 0) /* p ln p -> 0 */
            sum += p * (ln_p - ln_q);
        if (d)
            d[e] = (float)((double)a->scale * t * (exp(ln_q) - p));
    }
    return t * t * sum;
}

gr_err gr_cpu_divergence(gr_backend *b, gr_lane lane, const gr_divergence *a) {
    (void)lane;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)a->n * sizeof(double), &memory));
    double *loss = memory;
#pragma omp parallel for
    for (int64_t i = 0; i < a->n; i++)
        loss[i] = token_divergence(a, i);
    for (int64_t i = 0; i < a->n; i++)
        *a->loss_sum += loss[i];
    return GR_OK;
}
