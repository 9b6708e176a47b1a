/* fidelity.c: how alike the choices of two routers are. */
#include "grouter/teacher.h"

#include <math.h>

static double largest_of(uint32_t E, const float *z) {
    double largest = (double)z[0];
    for (uint32_t e = 1; e < E; e++)
        largest = fmax(largest, (double)z[e]);
    return largest;
}

/* ln softmax(z)_e = (z_e - largest) - the returned number. */
static double log_sum(uint32_t E, const float *z, double largest) {
    double sum = 0;
    for (uint32_t e = 0; e < E; e++)
        sum += exp((double)z[e] - largest);
    return log(sum);
}

static double divergence_of(uint32_t E, const float *teacher, const float *student) {
    double most_p = largest_of(E, teacher), most_q = largest_of(E, student), sum = 0;
    double log_p = log_sum(E, teacher, most_p), log_q = log_sum(E, student, most_q);
    for (uint32_t e = 0; e < E; e++) {
        double ln_p = ((double)teacher[e] - most_p) - log_p, ln_q = ((double)student[e] - most_q) - log_q;
        double p = exp(ln_p);
        if (p > 0) /* p ln p -> 0 */
            sum += p * (ln_p - ln_q);
    }
    return sum;
}

/* Cosine of the two softmaxes over the experts ids[K]; a common factor does not matter, so each is scaled by its
 * largest. */
static double cosine_of(uint32_t K, const uint16_t *ids, const float *teacher, const float *student) {
    double largest_a = -INFINITY, largest_b = -INFINITY, ab = 0, aa = 0, bb = 0;
    for (uint32_t k = 0; k < K; k++) {
        largest_a = fmax(largest_a, (double)teacher[ids[k]]);
        largest_b = fmax(largest_b, (double)student[ids[k]]);
    }
    for (uint32_t k = 0; k < K; k++) {
        double a = exp((double)teacher[ids[k]] - largest_a), b = exp((double)student[ids[k]] - largest_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    return ab / sqrt(aa * bb);
}

/* Members that two ascending lists share. */
static uint32_t shared(uint32_t K, const uint16_t *a, const uint16_t *b) {
    uint32_t n = 0;
    for (uint32_t i = 0, j = 0; i < K && j < K;) {
        n += a[i] == b[j];
        uint16_t x = a[i], y = b[j];
        i += x <= y;
        j += y <= x;
    }
    return n;
}

void gr_fidelity_add(gr_fidelity *f, const gr_fidelity_pair *pair) {
    const uint32_t E = pair->E, K = pair->K;
    const gr_selection of_teacher = {.E = E, .K = K, .scale = 1, .threshold = 1, .bias = pair->teacher_bias};
    const gr_selection of_student = {.E = E, .K = K, .scale = 1, .threshold = 1, .bias = pair->student_bias};
    for (int64_t i = 0; i < pair->n; i++) {
        if (pair->counted && pair->counted[i] < 0)
            continue;
        const float *a = pair->teacher + i * E, *b = pair->student + i * E;
        uint16_t ids_a[GR_TOPK_MAX], ids_b[GR_TOPK_MAX];
        float gates[GR_TOPK_MAX];
        gr_select(&of_teacher, 1, a, ids_a, gates);
        gr_select(&of_student, 1, b, ids_b, gates);
        uint32_t same = shared(K, ids_a, ids_b);
        f->n_token += 1;
        f->divergence += divergence_of(E, a, b);
        f->exact += same == K;
        f->overlap += (double)same / K;
        f->cosine += cosine_of(K, ids_a, a, b);
    }
}
