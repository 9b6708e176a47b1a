/* arrays.c: the arrays of one op that is measured. */
#include <stdlib.h>
#include <string.h>

#include "times.h"

static size_t bytes_of(const bench_want *w) {
    return (size_t)w->n * gr_dtype_size(w->dtype);
}

/* Host copies count everywhere, backend memory where it is the host's. */
static gr_err check_room(const gr_backend *b, const bench_want *want, int n_want) {
    double n_byte = 0;
    for (int i = 0; i < n_want; i++)
        n_byte += (double)bytes_of(&want[i]) * (1 + (want[i].role != BENCH_IN) + b->host_memory);
    const gr_memory_room room = gr_memory_room_get("");
    const uint64_t there = room.host < room.process ? room.host : room.process;
    if (n_byte <= (double)there)
        return GR_OK;
    return gr_fail(GR_RESOURCE,
        "bench kernels: expected arrays of at most %.2f GiB (%s), got a need of %.2f GiB; lower --tokens or choose a "
        "smaller --shape",
        (double)there / 0x1p30, room.limit, n_byte / 0x1p30);
}

static gr_err open_one(bench_array *a, gr_backend *b, const bench_want *want, uint64_t key) {
    const size_t n_byte = bytes_of(want);
    a->want = *want;
    if (n_byte == 0)
        return GR_OK;
    GR_TRY(gr_alloc(&a->host, n_byte, 1, "host copy of an array"));
    if (want->role != BENCH_IN)
        GR_TRY(gr_alloc(&a->result, n_byte, 1, "results of an op"));
    if (want->role == BENCH_OUT)
        memset(a->host, 0xFF, n_byte); /* NaN of every floating type */
    else if (want->scale != 0)
        gr_bench_fill_normal(want->dtype, a->host, want->n, key, 0, want->scale);
    return b->alloc(b, n_byte, "array of an op", &a->device);
}

gr_err gr_bench_arrays_open(bench_arrays *a, gr_backend *b, const bench_want *want, int n_want, uint64_t seed) {
    GR_ASSERT(n_want <= BENCH_ARRAYS_MAX, "%d arrays", n_want);
    *a = (bench_arrays){.backend = b, .n = n_want};
    GR_TRY(check_room(b, want, n_want));
    for (int i = 0; i < n_want; i++)
        GR_TRY(open_one(&a->list[i], b, &want[i], seed * BENCH_ARRAYS_MAX + (uint64_t)i));
    return GR_OK;
}

void gr_bench_arrays_close(bench_arrays *a) {
    for (int i = 0; i < a->n; i++) {
        bench_array *x = &a->list[i];
        if (x->device)
            a->backend->release(a->backend, x->device);
        free(x->result);
        free(x->host);
    }
    *a = (bench_arrays){0};
}

static gr_err upload(bench_arrays *a, const bench_array *x) {
    if (!x->device)
        return GR_OK;
    return a->backend->upload(a->backend, GR_LANE_COMPUTE, x->device, x->host, bytes_of(&x->want));
}

gr_err gr_bench_arrays_upload(bench_arrays *a) {
    for (int i = 0; i < a->n; i++)
        GR_TRY(upload(a, &a->list[i]));
    return a->backend->sync(a->backend);
}

gr_err gr_bench_arrays_restore(bench_arrays *a) {
    for (int i = 0; i < a->n; i++)
        if (a->list[i].want.role == BENCH_BACK)
            GR_TRY(upload(a, &a->list[i]));
    return GR_OK;
}

gr_err gr_bench_arrays_download(bench_arrays *a) {
    for (int i = 0; i < a->n; i++) {
        const bench_array *x = &a->list[i];
        if (x->result)
            GR_TRY(a->backend->download(a->backend, GR_LANE_COMPUTE, x->result, x->device, bytes_of(&x->want)));
    }
    return a->backend->sync(a->backend);
}
