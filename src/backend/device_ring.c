/* device_ring.c: room in a staging ring. */
#include "device.h"

static int part_index(const gr_ring *r, int i) {
    return (r->oldest + i) % GR_RING_PARTS;
}

int gr_ring_newest(const gr_ring *r) {
    return part_index(r, r->n - 1);
}

/* Where n_byte bytes would begin; false if nowhere. Parts in use lie between the oldest's begin and the newest's end,
 * which may have come round to the front of the ring. */
static bool find_room(const gr_ring *r, size_t n_byte, size_t *at) {
    if (r->n == 0) {
        *at = 0;
        return n_byte <= r->size;
    }
    const size_t tail = r->part[r->oldest].begin, head = r->part[gr_ring_newest(r)].end;
    const bool came_round = head <= tail;
    if (came_round) {
        *at = head;
        return n_byte <= tail - head;
    }
    *at = n_byte <= r->size - head ? head : 0;
    return *at == head || n_byte <= tail;
}

bool gr_ring_take(gr_ring *r, size_t n_byte, size_t *at) {
    GR_ASSERT(n_byte <= r->size, "%zu bytes of a ring of %zu", n_byte, r->size);
    size_t whole = n_byte ? (n_byte + GR_ALIGN - 1) / GR_ALIGN * GR_ALIGN : GR_ALIGN;
    whole = whole <= r->size ? whole : r->size;
    size_t begin;
    if (r->n == GR_RING_PARTS || !find_room(r, whole, &begin))
        return false;
    r->n++;
    const int newest = gr_ring_newest(r);
    r->part[newest].begin = begin;
    r->part[newest].end = begin + whole;
    *at = begin;
    return true;
}

void gr_ring_drop(gr_ring *r) {
    GR_ASSERT(r->n > 0, "%d parts", r->n);
    r->oldest = part_index(r, 1);
    r->n--;
}
