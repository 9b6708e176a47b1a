/* homes.c: which rank reads which window, exactly. */
#include "internal.h"

#include "grouter/transport.h"

#include <stdlib.h>

typedef struct work {
    uint32_t *window; /* [n] those of one group */
    int32_t *cost;    /* [n][group_size] */
    uint16_t *place;  /* [n] */
    uint64_t *room;   /* [group_size] */
} work;

/* Windows for a rank: floor(n/R), and one more for as many ranks as there is a remainder, from where the tables before
 * have ended: over all tables together shares are as equal as within each. */
static uint64_t rank_room(uint64_t n, uint64_t before, uint32_t R, uint32_t rank) {
    return n / R + ((rank + R - before % R) % R < n % R);
}

static uint64_t part_room(const gr_place_homes *h, uint32_t part) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < h->part_ranks; i++)
        n += rank_room(h->n, h->before, h->n_part * h->part_ranks, part * h->part_ranks + i);
    return n;
}

static gr_err find_group(const gr_place_homes *h, work *w, uint32_t group, uint16_t *home) {
    const uint32_t P = h->group_size, first = group * P;
    size_t n = 0;
    for (size_t i = 0; i < h->n; i++) {
        if (h->group && h->group[i] != group)
            continue;
        for (uint32_t p = 0; p < P; p++)
            w->cost[n * P + p] = -(int32_t)h->touch[i * h->n_part + first + p];
        w->window[n++] = (uint32_t)i;
    }
    for (uint32_t p = 0; p < P; p++)
        w->room[p] = part_room(h, first + p);
    GR_TRY(gr_transport_solve(&(gr_transport){.n = n, .P = P, .cost = w->cost, .room = w->room}, w->place, NULL));
    for (size_t i = 0; i < n; i++)
        home[w->window[i]] = (uint16_t)(first + w->place[i]);
    return GR_OK;
}

gr_err gr_place_homes_find(const gr_place_homes *h, uint16_t *home) {
    work w = {0};
    size_t n_cost;
    if (h->n == 0)
        return GR_OK;
    if (h->n >= UINT32_MAX || !gr_mul_size(h->n, h->group_size, &n_cost))
        return gr_fail(
            GR_RESOURCE, "place: %zu windows of one table do not fit the assignment; place fewer at once", h->n);
    gr_err e = gr_alloc((void **)&w.window, h->n, sizeof *w.window, "windows");
    if (!e)
        e = gr_alloc((void **)&w.cost, n_cost, sizeof *w.cost, "costs of windows");
    if (!e)
        e = gr_alloc((void **)&w.place, h->n, sizeof *w.place, "ranks of windows");
    if (!e)
        e = gr_alloc((void **)&w.room, h->group_size, sizeof *w.room, "windows of ranks");
    for (uint32_t g = 0; g < h->n_part / h->group_size && !e; g++)
        e = find_group(h, &w, g, home);
    free(w.room);
    free(w.place);
    free(w.cost);
    free(w.window);
    return e;
}
