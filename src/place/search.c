/* search.c: experts change places in pairs, so that every part keeps its number of them. A pass over the tokens gives
 * the gain of every swap (gains.c). Of a batch of swaps the gains do not add up exactly, so the next pass decides
 * whether it stays. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    BATCH = 4,    /* swaps at once, at first */
    ROUNDS = 200, /* of swaps and homes in turn */
    BATCHES_PER_ROUND = 6,
    HOMES_EVERY = 8, /* repairs between two looks at the homes */
    PROBES = 24,     /* swaps that are tried with windows that follow */
    PROBE_ROUNDS = 8,
};
static const double GAIN_MIN = 1e-5; /* share of the rows that a round must save for another one */

/* ---------------------------------------------------------------- memory */

static gr_err alloc_search(gr_place_search *s) {
    const uint32_t E = s->level.E, n_part = s->level.n_part;
    GR_TRY(gr_alloc((void **)&s->part, E, sizeof *s->part, "parts of experts"));
    GR_TRY(gr_alloc((void **)&s->trial, E, sizeof *s->trial, "parts of experts"));
    GR_TRY(gr_alloc((void **)&s->home, s->view->n, sizeof *s->home, "homes of windows"));
    GR_TRY(gr_alloc((void **)&s->trial_home, s->view->n, sizeof *s->trial_home, "homes of windows"));
    GR_TRY(gr_alloc((void **)&s->sum, n_part, sizeof *s->sum, "pairs by part"));
    if (s->level.group_size < n_part)
        GR_TRY(gr_alloc((void **)&s->group, s->view->n, sizeof *s->group, "groups of windows"));
    GR_TRY(gr_place_gains_open(&s->now, s->view, n_part));
    return gr_place_gains_open(&s->next, s->view, n_part);
}

gr_err gr_place_search_open(gr_place_search *s, const gr_place_level *l, const gr_place_view *v) {
    *s = (gr_place_search){.level = *l, .view = v};
    gr_err e = alloc_search(s);
    if (e)
        gr_place_search_close(s);
    return e;
}

void gr_place_search_close(gr_place_search *s) {
    gr_place_gains_close(&s->next);
    gr_place_gains_close(&s->now);
    free(s->group);
    free(s->sum);
    free(s->trial_home);
    free(s->home);
    free(s->trial);
    free(s->part);
    *s = (gr_place_search){0};
}

/* ---------------------------------------------------------------- homes */

static void touch_all(const gr_place_view *v, const uint16_t *part, uint32_t n_part, uint32_t *touch) {
#pragma omp parallel for schedule(static) if (v->n * v->T * v->K >= GR_PLACE_WIDE_MIN)
    for (size_t w = 0; w < v->n; w++)
        gr_place_touch(v->ids + w * v->step * v->T * v->K, v->T, v->K, part, n_part, touch + w * n_part);
}

/* home[n] for these touch counts, table by table. */
static gr_err match_homes(const gr_place_view *v, gr_place_homes h, uint16_t *home) {
    const uint32_t *touch = h.touch;
    const uint16_t *group = h.group;
    for (int i = 0; i < v->n_table; i++) {
        h.before = v->begin[i];
        h.n = v->begin[i + 1] - v->begin[i];
        h.touch = touch + v->begin[i] * h.n_part;
        h.group = group ? group + v->begin[i] : NULL;
        GR_TRY(gr_place_homes_find(&h, home + v->begin[i]));
    }
    return GR_OK;
}

/* The group of every window: swaps within groups never change how many of its tokens have an expert in a group. */
static gr_err find_groups(gr_place_search *s, const uint16_t *part) {
    const gr_place_level *l = &s->level;
    if (!s->group)
        return GR_OK;
    const uint32_t n_group = l->n_part / l->group_size; /* fewer than parts: room in `now` */
    for (uint32_t e = 0; e < l->E; e++)
        s->trial[e] = (uint16_t)(part[e] / l->group_size);
    touch_all(s->view, s->trial, n_group, s->now.touch);
    return match_homes(s->view,
        (gr_place_homes){.n_part = n_group,
            .group_size = n_group,
            .part_ranks = l->group_size * l->part_ranks,
            .touch = s->now.touch},
        s->group);
}

/* The best homes for these experts, and the touch counts. */
static gr_err find_homes(const gr_place_search *s, const uint16_t *part, uint32_t *touch, uint16_t *home) {
    const gr_place_level *l = &s->level;
    touch_all(s->view, part, l->n_part, touch);
    return match_homes(s->view,
        (gr_place_homes){.n_part = l->n_part,
            .group_size = l->group_size,
            .part_ranks = l->part_ranks,
            .touch = touch,
            .group = s->group},
        home);
}

/* The best homes for these experts, and all gains from there. */
static gr_err settle(gr_place_search *s, const uint16_t *part) {
    GR_TRY(find_homes(s, part, s->now.touch, s->home));
    return gr_place_gains_count(&s->now, s->view, part, s->home);
}

/* ---------------------------------------------------------------- repair */

static bool may_swap(const gr_place_level *l, const uint16_t *part, uint32_t e, uint32_t f) {
    return part[e] != part[f] && part[e] / l->group_size == part[f] / l->group_size;
}

static uint64_t above(uint64_t pairs, uint64_t cap) {
    return pairs > cap ? pairs - cap : 0;
}

/* Pairs above the cap that swapping e and f takes away; 0 if it takes none. */
static uint64_t relief(const gr_place_search *s, const uint16_t *part, uint32_t e, uint32_t f) {
    const gr_place_level *l = &s->level;
    const uint64_t a = s->sum[part[e]], b = s->sum[part[f]];
    if (a <= l->cap || l->load[f] >= l->load[e])
        return 0;
    const uint64_t less = l->load[e] - l->load[f];
    const uint64_t before = above(a, l->cap) + above(b, l->cap),
                   after = above(a - less, l->cap) + above(b + less, l->cap);
    return before > after ? before - after : 0;
}

/* Swaps the pair that costs fewest rows for each pair that it takes off; false if none takes off any. */
static bool relieve(gr_place_search *s, uint16_t *part) {
    const uint32_t E = s->level.E;
    uint32_t best_e = E, best_f = E;
    double least = 0;
    for (uint32_t e = 0; e < E; e++)
        for (uint32_t f = 0; f < E; f++) {
            const uint64_t off = may_swap(&s->level, part, e, f) ? relief(s, part, e, f) : 0;
            if (off == 0)
                continue;
            const double price = (double)gr_place_gains_swap(&s->now, part, e, f) / (double)off;
            if (best_e == E || price < least) {
                least = price;
                best_e = e;
                best_f = f;
            }
        }
    if (best_e == E)
        return false;
    const uint16_t p = part[best_e];
    part[best_e] = part[best_f];
    part[best_f] = p;
    return true;
}

gr_err gr_place_repair(gr_place_search *s, uint16_t *part) {
    GR_TRY(find_groups(s, part));
    for (int n = 0; gr_place_fullest(&s->level, part, s->sum) > s->level.cap; n++) {
        if (n % HOMES_EVERY == 0)
            GR_TRY(settle(s, part));
        else
            GR_TRY(gr_place_gains_count(&s->now, s->view, part, s->home));
        if (!relieve(s, part)) {
            gr_place_even(&s->level, part);
            return GR_OK;
        }
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- descent */

typedef struct offer {
    int64_t change; /* of rows */
    uint16_t e, f;
} offer;

static int best_first(const void *a, const void *b) {
    const offer *x = a, *y = b;
    if (x->change != y->change)
        return x->change < y->change ? -1 : 1;
    return x->e < y->e ? -1 : x->e > y->e; /* one offer for each e */
}

/* True, and the loads changed, if both parts stay within the cap. */
static bool take_loads(gr_place_search *s, const uint16_t *part, uint32_t e, uint32_t f, bool only_ask) {
    const gr_place_level *l = &s->level;
    const uint64_t a = s->sum[part[e]] - l->load[e] + l->load[f], b = s->sum[part[f]] - l->load[f] + l->load[e];
    if (a > l->cap || b > l->cap)
        return false;
    if (!only_ask) {
        s->sum[part[e]] = a;
        s->sum[part[f]] = b;
    }
    return true;
}

/* The best partner of each expert, among those above it. */
static uint32_t make_offers(gr_place_search *s, offer *list) {
    uint32_t n = 0;
    gr_place_fullest(&s->level, s->part, s->sum);
    for (uint32_t e = 0; e < s->level.E; e++) {
        offer best = {.change = 0};
        for (uint32_t f = e + 1; f < s->level.E; f++) {
            if (!may_swap(&s->level, s->part, e, f))
                continue;
            const int64_t change = gr_place_gains_swap(&s->now, s->part, e, f);
            if (change < best.change && take_loads(s, s->part, e, f, true))
                best = (offer){.change = change, .e = (uint16_t)e, .f = (uint16_t)f};
        }
        if (best.change < 0)
            list[n++] = best;
    }
    qsort(list, n, sizeof *list, best_first);
    return n;
}

/* trial := part with up to n_max of the best swaps; how many. */
static uint32_t try_swaps(gr_place_search *s, uint32_t n_max) {
    offer list[GR_EXPERTS_MAX];
    const uint32_t n_offer = make_offers(s, list);
    uint32_t n = 0;
    memcpy(s->trial, s->part, s->level.E * sizeof *s->trial);
    for (uint32_t i = 0; i < n_offer && n < n_max; i++) {
        const uint16_t e = list[i].e, f = list[i].f;
        const bool untouched = s->trial[e] == s->part[e] && s->trial[f] == s->part[f];
        if (!untouched || !take_loads(s, s->part, e, f, false))
            continue;
        s->trial[e] = s->part[f];
        s->trial[f] = s->part[e];
        n++;
    }
    return n;
}

/* Batches of swaps while they lower the rows; homes stay. */
static gr_err move_experts(gr_place_search *s, uint32_t *batch, int *n_taken) {
    *n_taken = 0;
    while (*n_taken < BATCHES_PER_ROUND) {
        const uint32_t n = try_swaps(s, *batch);
        if (n == 0)
            return GR_OK;
        GR_TRY(gr_place_gains_count(&s->next, s->view, s->trial, s->home));
        if (s->next.rows >= s->now.rows) { /* their gains got in each other's way; that of one alone is exact */
            GR_ASSERT(n > 1, "one swap gave %llu rows after %llu", (unsigned long long)s->next.rows,
                (unsigned long long)s->now.rows);
            *batch = n / 2;
            continue;
        }
        const gr_place_gains kept = s->now;
        s->now = s->next;
        s->next = kept;
        memcpy(s->part, s->trial, s->level.E * sizeof *s->part);
        ++*n_taken;
        *batch = *batch < s->level.E / 4 ? 2 * *batch : *batch;
    }
    return GR_OK;
}

gr_err gr_place_descend(gr_place_search *s, uint16_t *part, uint64_t *rows) {
    uint32_t batch = BATCH;
    memcpy(s->part, part, s->level.E * sizeof *part);
    GR_TRY(find_groups(s, part));
    GR_TRY(settle(s, s->part));
    for (int round = 0; round < ROUNDS; round++) {
        const double before = (double)s->now.rows;
        int n_taken;
        GR_TRY(move_experts(s, &batch, &n_taken));
        GR_TRY(settle(s, s->part));
        if (n_taken == 0 || before - (double)s->now.rows <= GAIN_MIN * before)
            break;
    }
    memcpy(part, s->part, s->level.E * sizeof *part);
    *rows = s->now.rows;
    return GR_OK;
}

/* ---------------------------------------------------------------- out of hollows */

/* The swaps within the cap with the smallest change of rows, whatever its sign, best first. */
static uint32_t list_probes(gr_place_search *s, offer list[PROBES]) {
    uint32_t n = 0;
    gr_place_fullest(&s->level, s->part, s->sum);
    for (uint32_t e = 0; e < s->level.E; e++)
        for (uint32_t f = e + 1; f < s->level.E; f++) {
            if (!may_swap(&s->level, s->part, e, f) || !take_loads(s, s->part, e, f, true))
                continue;
            const int64_t change = gr_place_gains_swap(&s->now, s->part, e, f);
            if (n == PROBES && change >= list[n - 1].change)
                continue;
            n += n < PROBES;
            uint32_t i = n - 1;
            for (; i > 0 && list[i - 1].change > change; i--)
                list[i] = list[i - 1];
            list[i] = (offer){.change = change, .e = (uint16_t)e, .f = (uint16_t)f};
        }
    return n;
}

/* rows of trial[E] with its best homes. */
static gr_err count_trial(gr_place_search *s, uint64_t *rows) {
    const uint32_t n_part = s->level.n_part;
    GR_TRY(find_homes(s, s->trial, s->next.touch, s->trial_home));
    *rows = 0;
    for (size_t w = 0; w < s->view->n; w++)
        for (uint32_t p = 0; p < n_part; p++)
            *rows += p != s->trial_home[w] ? s->next.touch[w * n_part + p] : 0;
    return GR_OK;
}

/* The first swap that pays once the windows follow is made, and the gains are counted from there. */
static gr_err probe(gr_place_search *s, bool *found) {
    offer list[PROBES];
    const uint32_t n = list_probes(s, list);
    *found = false;
    for (uint32_t i = 0; i < n && !*found; i++) {
        const uint16_t e = list[i].e, f = list[i].f;
        uint64_t rows;
        memcpy(s->trial, s->part, s->level.E * sizeof *s->trial);
        s->trial[e] = s->part[f];
        s->trial[f] = s->part[e];
        GR_TRY(count_trial(s, &rows));
        *found = rows < s->now.rows;
    }
    if (!*found)
        return GR_OK;
    memcpy(s->part, s->trial, s->level.E * sizeof *s->part);
    return settle(s, s->part);
}

static gr_err descend_and_probe(gr_place_search *s, uint16_t *part, uint64_t *rows) {
    bool found = true;
    GR_TRY(gr_place_descend(s, part, rows));
    for (int round = 0; round < PROBE_ROUNDS && found; round++) {
        GR_TRY(probe(s, &found));
        if (found) {
            memcpy(part, s->part, s->level.E * sizeof *part);
            GR_TRY(gr_place_descend(s, part, rows));
        }
    }
    return GR_OK;
}

/* Looser by a share of the mean of parts, there and back. */
static gr_err try_looser(gr_place_search *s, double share, uint16_t *part, uint64_t *rows) {
    const uint64_t cap = s->level.cap;
    double total = 0;
    for (uint32_t e = 0; e < s->level.E; e++)
        total += (double)s->level.load[e];
    s->level.cap = cap + (uint64_t)(share * total / s->level.n_part);
    gr_err e = gr_place_descend(s, part, rows);
    s->level.cap = cap;
    if (!e)
        e = gr_place_repair(s, part);
    return e ? e : descend_and_probe(s, part, rows);
}

static gr_err improve(gr_place_search *s, uint16_t *part, uint16_t *trial, uint64_t *rows) {
    static const double share[] = {0.02, 0.05, 0.1, 0.3};
    const size_t n_byte = s->level.E * sizeof *part;
    GR_TRY(descend_and_probe(s, part, rows));
    for (size_t i = 0; i < sizeof share / sizeof *share; i++) {
        uint64_t trial_rows;
        memcpy(trial, part, n_byte);
        GR_TRY(try_looser(s, share[i], trial, &trial_rows));
        if (trial_rows >= *rows)
            continue;
        *rows = trial_rows;
        memcpy(part, trial, n_byte);
    }
    return GR_OK;
}

gr_err gr_place_improve(gr_place_search *s, uint16_t *part, uint64_t *rows) {
    uint16_t *trial = NULL;
    gr_err e = gr_alloc((void **)&trial, s->level.E, sizeof *trial, "parts of experts");
    if (!e)
        e = improve(s, part, trial, rows);
    free(trial);
    return e;
}
