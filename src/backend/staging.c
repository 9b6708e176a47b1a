/* staging.c: host code's way to backend memory, and host arrays' way to ops. */
#include "grouter/staging.h"

#include <stdlib.h>
#include <string.h>

static bool is_in_place(const gr_backend *b) {
    return !b || b->host_memory;
}

/* ---------------------------------------------------------------- backend memory in host code */

gr_err gr_staging_room(gr_staging *s, void *memory, size_t n_byte, void **host) {
    *host = memory;
    if (is_in_place(s->backend))
        return GR_OK;
    if (n_byte > s->n_byte) {
        free(s->room);
        s->n_byte = 0;
        GR_TRY(gr_alloc(&s->room, n_byte, 1, "host copy of backend memory"));
        s->n_byte = n_byte;
    }
    *host = s->room;
    return GR_OK;
}

gr_err gr_staging_store(gr_staging *s, void *memory, size_t n_byte) {
    if (is_in_place(s->backend))
        return GR_OK;
    GR_ASSERT(n_byte <= s->n_byte, "%zu bytes of a room of %zu", n_byte, s->n_byte);
    return s->backend->upload(s->backend, GR_LANE_COMPUTE, memory, s->room, n_byte);
}

gr_err gr_staging_fetch(gr_staging *s, const void *memory, size_t n_byte, const void **host) {
    gr_backend *b = s->backend;
    void *room;
    GR_TRY(gr_staging_room(s, (void *)(uintptr_t)memory, n_byte, &room));
    *host = room;
    if (is_in_place(b))
        return GR_OK;
    GR_TRY(b->download(b, GR_LANE_COMPUTE, room, memory, n_byte));
    return b->sync(b);
}

void gr_staging_close(gr_staging *s) {
    free(s->room);
    *s = (gr_staging){0};
}

/* ---------------------------------------------------------------- host arrays in ops */

const void *gr_parcel_add(gr_parcel *p, const void *from, size_t n_byte) {
    if (is_in_place(p->backend) || !from)
        return from;
    size_t room = (n_byte + GR_ALIGN - 1) & ~(size_t)(GR_ALIGN - 1);
    GR_ASSERT(room <= p->size - p->used, "parcel of %zu bytes has %zu and gets %zu more", p->size, p->used, n_byte);
    const void *there = p->memory + p->used;
    memcpy(p->host + p->used, from, n_byte);
    p->used += room;
    return there;
}

void gr_parcel_take(const gr_backend *b, gr_arena *arena, size_t count, size_t elem_size) {
    if (!is_in_place(b))
        (void)gr_arena_take(arena, count, elem_size);
}

gr_err gr_parcel_send(gr_parcel *p) {
    gr_backend *b = p->backend;
    size_t n_byte = p->used;
    p->used = 0;
    if (n_byte == 0)
        return GR_OK;
    GR_TRY(b->upload(b, GR_LANE_SIDE, p->memory, p->host, n_byte));
    return b->wait(b, GR_LANE_COMPUTE, GR_LANE_SIDE);
}
