/* transport.c: things are assigned one after the other, each time along the cheapest chain of moves that ends where
 * there is room: the thing takes a place, one of that place's things goes on to the next, and so on. Assignments stay
 * optimal for the things that are in, so no cycle of moves pays, and a chain visits a place at most once.
 *
 * The cheapest thing to move from p to q is the top of a heap per ordered pair of places. A thing that has left stays
 * in its old heaps until it comes to their tops. */
#include "grouter/transport.h"

#include <stdlib.h>
#include <string.h>

#define NOWHERE UINT16_MAX

typedef struct move {
    int32_t rise; /* cost there minus cost here */
    uint32_t thing;
} move;

typedef struct heap {
    move *at;
    size_t n, n_max;
} heap;

typedef struct work {
    const gr_transport *t;
    uint16_t *place;  /* [n] */
    uint64_t *count;  /* [P] */
    heap *heaps;      /* [P][P] moves from p to q */
    int64_t *rise;    /* [P][P] of each heap's top, NEVER where there is nothing to move */
    int64_t *dist;    /* [P] cheapest chain that ends with one more thing at q */
    uint16_t *before; /* [P] the place before q in that chain; NOWHERE: the new thing itself */
} work;

static const int64_t NEVER = INT64_MAX / 4; /* two of them add up without overflow */

/* ---------------------------------------------------------------- heaps: least rise first, ties to the lowest thing */

static bool is_less(move a, move b) {
    return a.rise < b.rise || (a.rise == b.rise && a.thing < b.thing);
}

static gr_err heap_push(heap *h, move m) {
    if (h->n == h->n_max) {
        size_t n_max = h->n_max ? 2 * h->n_max : 16;
        move *at = realloc(h->at, n_max * sizeof *at);
        if (!at)
            return gr_fail(
                GR_RESOURCE, "assignment: expected memory for %zu moves of one pair of places, got none", n_max);
        h->at = at;
        h->n_max = n_max;
    }
    size_t i = h->n++;
    for (; i > 0 && is_less(m, h->at[(i - 1) / 2]); i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = m;
    return GR_OK;
}

static void heap_pop(heap *h) {
    move last = h->at[--h->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && is_less(h->at[child + 1], h->at[child]))
            child++;
        if (!is_less(h->at[child], last))
            break;
        h->at[i] = h->at[child];
    }
    h->at[i] = last;
}

/* ---------------------------------------------------------------- places */

static int32_t cost_of(const work *w, size_t thing, uint32_t place) {
    return w->t->cost[thing * w->t->P + place];
}

static heap *heap_of(work *w, uint32_t from, uint32_t to) {
    return &w->heaps[(size_t)from * w->t->P + to];
}

static gr_err enter(work *w, uint32_t thing, uint16_t place) {
    w->place[thing] = place;
    for (uint32_t q = 0; q < w->t->P; q++)
        if (q != place)
            GR_TRY(heap_push(
                heap_of(w, place, q), (move){.rise = cost_of(w, thing, q) - cost_of(w, thing, place), .thing = thing}));
    return GR_OK;
}

/* Drops what has left from the tops of a place's heaps, and notes the tops. */
static void refresh(work *w, uint32_t place) {
    for (uint32_t q = 0; q < w->t->P; q++) {
        heap *h = heap_of(w, place, q);
        while (h->n && w->place[h->at[0].thing] != place)
            heap_pop(h);
        w->rise[(size_t)place * w->t->P + q] = h->n ? h->at[0].rise : NEVER;
    }
}

static bool has_room(const work *w, uint32_t place) {
    return w->count[place] < w->t->room[place];
}

/* ---------------------------------------------------------------- one thing */

static uint32_t cheapest_place(const work *w, size_t thing) {
    uint32_t best = 0;
    for (uint32_t q = 1; q < w->t->P; q++)
        if (cost_of(w, thing, q) < cost_of(w, thing, best))
            best = q;
    return best;
}

/* Bellman-Ford over places; few rounds are needed, since chains are short. */
static uint32_t cheapest_chain(work *w, size_t thing) {
    const uint32_t P = w->t->P;
    for (uint32_t q = 0; q < P; q++) {
        w->dist[q] = cost_of(w, thing, q);
        w->before[q] = NOWHERE;
    }
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t p = 0; p < P; p++)
            for (uint32_t q = 0; q < P; q++) {
                int64_t through = w->dist[p] + w->rise[(size_t)p * P + q];
                if (through < w->dist[q]) {
                    w->dist[q] = through;
                    w->before[q] = (uint16_t)p;
                    changed = true;
                }
            }
    }
    uint32_t end = P;
    for (uint32_t q = 0; q < P; q++)
        if (has_room(w, q) && (end == P || w->dist[q] < w->dist[end]))
            end = q;
    GR_ASSERT(end < P, "room for fewer than %zu things", w->t->n);
    return end;
}

/* From the end of the chain backwards: each place hands on its cheapest thing before it gets another. */
static gr_err follow_chain(work *w, uint32_t thing, uint32_t end) {
    w->count[end]++;
    uint32_t q = end;
    while (w->before[q] != NOWHERE) {
        uint32_t p = w->before[q], moved = heap_of(w, p, q)->at[0].thing;
        GR_TRY(enter(w, moved, (uint16_t)q));
        refresh(w, q);
        q = p;
    }
    GR_TRY(enter(w, thing, (uint16_t)q));
    refresh(w, q);
    return GR_OK;
}

static gr_err assign(work *w, uint32_t thing) {
    uint32_t best = cheapest_place(w, thing);
    /* Moving others cannot pay by itself, so where there is room at the cheapest place there is no better chain. */
    if (has_room(w, best)) {
        w->before[best] = NOWHERE;
        return follow_chain(w, thing, best);
    }
    return follow_chain(w, thing, cheapest_chain(w, thing));
}

/* ---------------------------------------------------------------- all of them */

static gr_err work_open(work *w, const gr_transport *t, uint16_t *place) {
    const char *what = "assignment";
    const size_t P = t->P;
    *w = (work){.t = t, .place = place};
    GR_TRY(gr_alloc((void **)&w->count, P, sizeof *w->count, what));
    GR_TRY(gr_alloc((void **)&w->heaps, P * P, sizeof *w->heaps, what));
    GR_TRY(gr_alloc((void **)&w->rise, P * P, sizeof *w->rise, what));
    GR_TRY(gr_alloc((void **)&w->dist, P, sizeof *w->dist, what));
    GR_TRY(gr_alloc((void **)&w->before, P, sizeof *w->before, what));
    for (size_t i = 0; i < P * P; i++)
        w->rise[i] = NEVER;
    memset(place, 0xff, t->n * sizeof *place);
    return GR_OK;
}

static void work_close(work *w) {
    for (size_t i = 0; w->heaps && i < (size_t)w->t->P * w->t->P; i++)
        free(w->heaps[i].at);
    free(w->before);
    free(w->dist);
    free(w->rise);
    free(w->heaps);
    free(w->count);
}

gr_err gr_transport_solve(const gr_transport *t, uint16_t *place, int64_t *total) {
    GR_ASSERT(t->P >= 1 && t->P < NOWHERE && t->n < UINT32_MAX, "%zu things, %u places", t->n, t->P);
    work w;
    gr_err e = work_open(&w, t, place);
    for (uint32_t i = 0; i < t->n && !e; i++)
        e = assign(&w, i);
    int64_t sum = 0;
    for (size_t i = 0; i < t->n && !e; i++)
        sum += cost_of(&w, i, place[i]);
    if (total)
        *total = sum;
    work_close(&w);
    return e;
}
