/* Arenas and host memory. */
#include <stdlib.h>
#include <string.h>

#include "grouter/base.h"

void *gr_arena_take(gr_arena *a, size_t count, size_t elem_size) {
    size_t n_byte = 0, padded = 0, used = 0;
    if (!gr_mul_size(count, elem_size, &n_byte) || !gr_add_size(n_byte, GR_ALIGN - 1, &padded) ||
        !gr_add_size(a->used, padded & ~(size_t)(GR_ALIGN - 1), &used)) {
        a->overflow = true;
        return NULL;
    }
    void *p = a->base && n_byte ? a->base + a->used : NULL;
    GR_ASSERT(
        !a->base || used <= a->size, "arena of %zu bytes cannot place %zu more after %zu", a->size, n_byte, a->used);
    a->used = used;
    if (used > a->peak)
        a->peak = used;
    return p;
}

gr_err gr_alloc(void **out, size_t count, size_t elem_size, const char *what) {
    *out = NULL;
    size_t n_byte;
    if (!gr_mul_size(count, elem_size, &n_byte))
        return gr_fail(
            GR_RESOURCE, "%s: %zu elements of %zu bytes do not fit the address space", what, count, elem_size);
    *out = calloc(n_byte ? n_byte : 1, 1);
    if (!*out)
        return gr_fail(GR_RESOURCE, "%s: needs %.1f MiB of memory that is not there; use a smaller configuration", what,
            (double)n_byte / 1048576.0);
    return GR_OK;
}
