/* load.c: expert pairs per part: what is the least, and experts shared out by load alone. */
#include "internal.h"

#include <stdlib.h>

uint64_t gr_place_fullest(const gr_place_level *l, const uint16_t *part, uint64_t *sum) {
    uint64_t most = 0;
    for (uint32_t p = 0; p < l->n_part; p++)
        sum[p] = 0;
    for (uint32_t e = 0; e < l->E; e++)
        sum[part[e]] += l->load[e];
    for (uint32_t p = 0; p < l->n_part; p++)
        most = sum[p] > most ? sum[p] : most;
    return most;
}

/* ---------------------------------------------------------------- a lower bound */

static int heavier_first(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Of the mR + 1 heaviest experts some rank has m + 1, which are no lighter than the last m + 1 of them; the rest of its
 * experts are no lighter than the lightest. */
double gr_place_load_bound(const uint64_t *load, uint32_t E, uint32_t R) {
    uint64_t sorted[GR_EXPERTS_MAX];
    const uint32_t E_local = E / R;
    double total = 0, bound = 0;
    for (uint32_t e = 0; e < E; e++) {
        sorted[e] = load[e];
        total += (double)load[e];
    }
    qsort(sorted, E, sizeof *sorted, heavier_first);
    for (uint32_t m = 0; m < E_local; m++) {
        double sum = 0;
        for (uint32_t i = m * R - m; i <= m * R; i++)
            sum += (double)sorted[i];
        for (uint32_t i = E - (E_local - m - 1); i < E; i++)
            sum += (double)sorted[i];
        bound = sum > bound ? sum : bound;
    }
    bound = total > 0 ? bound * R / total : 1;
    return bound > 1 ? bound : 1;
}

/* ---------------------------------------------------------------- even loads */

typedef struct heavy {
    uint64_t load;
    uint16_t expert;
} heavy;

static int heaviest_first(const void *a, const void *b) {
    const heavy *x = a, *y = b;
    if (x->load != y->load)
        return x->load < y->load ? 1 : -1;
    return x->expert < y->expert ? -1 : 1;
}

/* From the heaviest on, each expert goes to the lightest part of the group that has room. */
static void share_out(const gr_place_level *l, uint32_t first, heavy *list, uint32_t n, uint64_t *sum, uint16_t *part) {
    uint32_t count[GR_PLACEMENT_RANKS_MAX] = {0};
    const uint32_t room = n / l->group_size;
    qsort(list, n, sizeof *list, heaviest_first);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t best = l->group_size;
        for (uint32_t p = 0; p < l->group_size; p++)
            if (count[p] < room && (best == l->group_size || sum[first + p] < sum[first + best]))
                best = p;
        count[best]++;
        sum[first + best] += list[i].load;
        part[list[i].expert] = (uint16_t)(first + best);
    }
}

typedef struct swap {
    uint32_t e, f; /* e of the fullest part */
    uint64_t most; /* pairs of the fuller of the two afterwards */
} swap;

/* The swap of the fullest part of the group with another of its parts that leaves the fuller of both the lightest. */
static swap best_swap(const gr_place_level *l, const uint16_t *part, const uint64_t *sum, uint32_t full) {
    swap best = {.most = sum[full]};
    for (uint32_t e = 0; e < l->E; e++)
        for (uint32_t f = 0; part[e] == full && f < l->E; f++) {
            const uint32_t p = part[f];
            if (p == full || p / l->group_size != full / l->group_size || l->load[f] >= l->load[e])
                continue;
            const uint64_t less = l->load[e] - l->load[f], a = sum[full] - less, b = sum[p] + less;
            if ((a > b ? a : b) < best.most)
                best = (swap){.e = e, .f = f, .most = a > b ? a : b};
        }
    return best;
}

/* Each swap makes the sorted loads smaller, so it ends. */
static void level_out(const gr_place_level *l, uint32_t first, uint64_t *sum, uint16_t *part) {
    for (;;) {
        uint32_t full = first;
        for (uint32_t p = first; p < first + l->group_size; p++)
            full = sum[p] > sum[full] ? p : full;
        const swap s = best_swap(l, part, sum, full);
        if (sum[full] <= l->cap || s.most >= sum[full])
            return;
        const uint16_t other = part[s.f];
        sum[full] -= l->load[s.e] - l->load[s.f];
        sum[other] += l->load[s.e] - l->load[s.f];
        part[s.e] = other;
        part[s.f] = (uint16_t)full;
    }
}

void gr_place_even(const gr_place_level *l, uint16_t *part) {
    heavy list[GR_EXPERTS_MAX];
    uint64_t sum[GR_PLACEMENT_RANKS_MAX] = {0};
    for (uint32_t first = 0; first < l->n_part; first += l->group_size) {
        uint32_t n = 0;
        for (uint32_t e = 0; e < l->E; e++)
            if (part[e] >= first && part[e] < first + l->group_size)
                list[n++] = (heavy){.load = l->load[e], .expert = (uint16_t)e};
        share_out(l, first, list, n, sum, part);
        level_out(l, first, sum, part);
    }
}
