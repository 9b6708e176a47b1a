/* reservoir.c: a uniform sample of a stream of vectors. */
#include "grouter/fold.h"

#include <stdlib.h>
#include <string.h>

gr_err gr_reservoir_open(gr_reservoir *r, size_t n_max, uint32_t D, uint64_t seed, uint32_t part) {
    *r = (gr_reservoir){.n_max = n_max, .D = D, .seed = seed, .stream = gr_stream_id("reservoir") + part};
    size_t n_number;
    if (!gr_mul_size(n_max, D, &n_number))
        return gr_fail(GR_RESOURCE, "sample: %zu vectors of %u numbers do not fit memory", n_max, D);
    return gr_alloc((void **)&r->x, n_number, sizeof *r->x, "sample of vectors");
}

void gr_reservoir_add(gr_reservoir *r, size_t n, const float *x) {
    for (size_t i = 0; i < n; i++) {
        uint64_t slot = r->n_seen;
        if (slot >= r->n_max) /* vector number n_seen stays with chance n_max / (n_seen + 1) */
            slot = (uint64_t)((unsigned __int128)gr_random_u64(r->seed, r->stream, r->n_seen) * (r->n_seen + 1) >> 64);
        else
            r->n++;
        if (slot < r->n_max)
            memcpy(r->x + (size_t)slot * r->D, x + i * r->D, r->D * sizeof *x);
        r->n_seen++;
    }
}

void gr_reservoir_close(gr_reservoir *r) {
    free(r->x);
    *r = (gr_reservoir){0};
}

size_t gr_reservoir_quota(size_t n_max, uint32_t rank, uint32_t n_rank) {
    GR_ASSERT(rank < n_rank, "rank %u of %u", rank, n_rank);
    return n_max / n_rank + (rank < n_max % n_rank);
}
