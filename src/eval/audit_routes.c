/* audit_routes.c: how two routes of one position differ. */
#include <math.h>
#include <string.h>

#include "audit.h"

/* An unused slot (gate 0) is no choice. */
static void compare_sets(gr_route_change *c, uint32_t K, const gr_route *a, const gr_route *b) {
    uint32_t i = 0, j = 0, n_union = 0;
    double change = 0;
    bool changed = false;
    while (i < K || j < K) {
        bool in_a = i < K && (j == K || a->ids[i] <= b->ids[j]), in_b = j < K && (i == K || b->ids[j] <= a->ids[i]);
        double gate_a = in_a ? (double)a->gates[i] : 0, gate_b = in_b ? (double)b->gates[j] : 0;
        i += in_a;
        j += in_b;
        n_union += gate_a > 0 || gate_b > 0;
        change += fabs(gate_a - gate_b);
        changed |= (gate_a > 0) != (gate_b > 0);
    }
    c->set_changed += changed;
    c->gate_change += n_union ? change / n_union : 0;
}

static double log_sum(uint32_t E, const float *scores) {
    double largest = -INFINITY, sum = 0;
    for (uint32_t e = 0; e < E; e++)
        largest = fmax(largest, (double)scores[e]);
    for (uint32_t e = 0; e < E; e++)
        sum += exp((double)scores[e] - largest);
    return largest + log(sum);
}

/* KL of softmax(b) from softmax(a), at least 0. */
static double divergence(uint32_t E, const float *a, const float *b) {
    double shift_a = log_sum(E, a), shift_b = log_sum(E, b), sum = 0;
    for (uint32_t e = 0; e < E; e++) {
        double log_p = (double)a[e] - shift_a, log_q = (double)b[e] - shift_b;
        sum += exp(log_p) * (log_p - log_q);
    }
    return fmax(sum, 0);
}

bool gr_route_change_add(gr_route_change *c, uint32_t E, uint32_t K, const gr_route *before, const gr_route *after) {
    c->n += 1;
    if (memcmp(before->ids, after->ids, K * sizeof *before->ids) == 0 &&
        memcmp(before->gates, after->gates, K * sizeof *before->gates) == 0 &&
        (!before->scores || memcmp(before->scores, after->scores, E * sizeof *before->scores) == 0))
        return false;
    compare_sets(c, K, before, after);
    if (before->scores)
        c->divergence += divergence(E, before->scores, after->scores);
    return true;
}

int gr_leak_bucket_of(uint32_t distance) {
    int bucket = 0;
    for (uint64_t last = 0; last < distance; last = last ? 2 * last : 1)
        bucket++;
    return bucket;
}

void gr_leak_bucket_range(int bucket, uint32_t *first, uint32_t *last) {
    *last = bucket == 0 ? 0 : 1u << (bucket - 1);
    *first = bucket < 2 ? *last : (1u << (bucket - 2)) + 1;
}
