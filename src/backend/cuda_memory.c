/* cuda_memory.c: memory of the GPU, and the ways of bytes between it and the host. */
#include "cuda.h"

#include <string.h>

#define RING_SIZE ((size_t)64 << 20)
#define PIECE ((size_t)8 << 20) /* of one copy through pinned memory */

gr_err gr_cuda_alloc(gr_backend *b, size_t n_byte, const char *what, void **out) {
    gr_cuda *s = b->state;
    size_t n_free, n_total;
    *out = NULL;
    GR_TRY(gr_cuda_check((int)cudaMemGetInfo(&n_free, &n_total), "asking for free memory"));
    if (n_byte > n_free)
        return gr_cuda_refuse_memory(what, n_byte, n_free, n_total);
    const size_t size = n_byte > 0 ? n_byte : 1; /* an address of its own, as on the CPU */
    const cudaError_t status = cudaMalloc(out, size);
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* no launch is to find it */
        *out = NULL;
        return gr_cuda_refuse_memory(what, n_byte, n_free, n_total);
    }
    GR_TRY(gr_cuda_check((int)status, what));
    gr_err err = gr_cuda_check((int)cudaMemsetAsync(*out, 0, size, s->queue[GR_LANE_COMPUTE]), what);
    if (!err)
        err = gr_cuda_wait_queue(b, GR_LANE_COMPUTE); /* any lane may be next */
    if (err) {
        cudaFree(*out);
        *out = NULL;
    }
    return err;
}

void gr_cuda_release(gr_backend *b, void *p) {
    (void)b;
    cudaFree(p);
}

uint64_t gr_cuda_room(gr_backend *b) {
    (void)b;
    size_t n_free = 0, n_total;
    if (cudaMemGetInfo(&n_free, &n_total))
        (void)cudaGetLastError(); /* whoever allocates hears of it */
    return n_free;
}

bool gr_cuda_owns(const gr_backend *b, const void *p) {
    (void)b;
    struct cudaPointerAttributes found;
    if (!p || cudaPointerGetAttributes(&found, p) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return found.type == cudaMemoryTypeDevice;
}

gr_err gr_cuda_alloc_host(gr_backend *b, size_t n_byte, const char *what, void **out) {
    (void)b;
    const size_t size = n_byte > 0 ? n_byte : 1;
    *out = NULL;
    const cudaError_t status = cudaHostAlloc(out, size, cudaHostAllocDefault);
    if (status) {
        (void)cudaGetLastError();
        *out = NULL;
        return gr_fail(GR_RESOURCE, "%s: expected %.2f GiB of page-locked memory, got none (%s); see ulimit -l", what,
            (double)n_byte / 0x1p30, cudaGetErrorName(status));
    }
    memset(*out, 0, size);
    return GR_OK;
}

void gr_cuda_release_host(gr_backend *b, void *p) {
    (void)b;
    if (p)
        cudaFreeHost(p);
}

gr_err gr_cuda_fill_zero(gr_backend *b, gr_lane lane, void *p, size_t n_byte) {
    const gr_cuda *s = b->state;
    return n_byte ? gr_cuda_check((int)cudaMemsetAsync(p, 0, n_byte, s->queue[lane]), "fill_zero") : GR_OK;
}

gr_err gr_cuda_copy(gr_backend *b, gr_lane lane, void *to, const void *from, size_t n_byte) {
    const gr_cuda *s = b->state;
    if (n_byte == 0)
        return GR_OK;
    return gr_cuda_check((int)cudaMemcpyAsync(to, from, n_byte, cudaMemcpyDeviceToDevice, s->queue[lane]), "copy");
}

/* ---------------------------------------------------------------- through pinned memory */

gr_err gr_cuda_staging_open(gr_cuda *s) {
    void *p;
    GR_TRY(gr_cuda_alloc_host(NULL, RING_SIZE, "uploads", &p));
    s->ring_memory = p;
    s->ring.size = RING_SIZE;
    for (int i = 0; i < GR_RING_PARTS; i++)
        GR_TRY(gr_cuda_check(
            (int)cudaEventCreateWithFlags(&s->ring_copied[i], cudaEventDisableTiming), "opening an event"));
    GR_TRY(gr_cuda_alloc_host(NULL, PIECE, "downloads", &p));
    s->landing = p;
    return GR_OK;
}

void gr_cuda_staging_close(gr_cuda *s) {
    for (int i = 0; i < GR_RING_PARTS; i++)
        if (s->ring_copied[i])
            cudaEventDestroy(s->ring_copied[i]);
    gr_cuda_release_host(NULL, s->landing);
    gr_cuda_release_host(NULL, s->ring_memory);
}

/* The oldest upload has left the ring. Only a copy that is still to be done makes the host wait. */
static gr_err drop_oldest(gr_backend *b) {
    gr_cuda *s = b->state;
    const cudaEvent_t copied = s->ring_copied[s->ring.oldest];
    const cudaError_t status = cudaEventQuery(copied);
    if (status == cudaErrorNotReady)
        GR_TRY(gr_cuda_wait_event(b, copied));
    else
        GR_TRY(gr_cuda_check((int)status, "upload"));
    gr_ring_drop(&s->ring);
    return GR_OK;
}

static gr_err upload_piece(gr_backend *b, gr_lane lane, void *to, const void *from, size_t n_byte) {
    gr_cuda *s = b->state;
    size_t at;
    while (!gr_ring_take(&s->ring, n_byte, &at))
        GR_TRY(drop_oldest(b));
    memcpy(s->ring_memory + at, from, n_byte);
    const cudaEvent_t copied = s->ring_copied[gr_ring_newest(&s->ring)];
    cudaError_t status = cudaMemcpyAsync(to, s->ring_memory + at, n_byte, cudaMemcpyHostToDevice, s->queue[lane]);
    if (!status)
        status = cudaEventRecord(copied, s->queue[lane]);
    return gr_cuda_check((int)status, "upload");
}

gr_err gr_cuda_upload(gr_backend *b, gr_lane lane, void *to, const void *from_host, size_t n_byte) {
    for (size_t at = 0; at < n_byte; at += PIECE) {
        const size_t n = n_byte - at < PIECE ? n_byte - at : PIECE;
        GR_TRY(upload_piece(b, lane, (char *)to + at, (const char *)from_host + at, n));
    }
    return GR_OK;
}

static bool is_pinned(const void *p) {
    struct cudaPointerAttributes found;
    if (cudaPointerGetAttributes(&found, p) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return found.type == cudaMemoryTypeHost;
}

gr_err gr_cuda_download(gr_backend *b, gr_lane lane, void *to_host, const void *from, size_t n_byte) {
    gr_cuda *s = b->state;
    if (n_byte == 0)
        return GR_OK;
    b->n_download++;
    if (is_pinned(to_host))
        return gr_cuda_check(
            (int)cudaMemcpyAsync(to_host, from, n_byte, cudaMemcpyDeviceToHost, s->queue[lane]), "download");
    for (size_t at = 0; at < n_byte; at += PIECE) {
        const size_t n = n_byte - at < PIECE ? n_byte - at : PIECE;
        GR_TRY(gr_cuda_check(
            (int)cudaMemcpyAsync(s->landing, (const char *)from + at, n, cudaMemcpyDeviceToHost, s->queue[lane]),
            "download"));
        GR_TRY(gr_cuda_wait_queue(b, (int)lane));
        memcpy((char *)to_host + at, s->landing, n);
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- scratch */

gr_err gr_cuda_scratch(gr_backend *b, gr_lane lane, size_t n_byte, void **out) {
    gr_cuda *s = b->state;
    gr_cuda_scratch_room *room = &s->scratch[lane];
    if (n_byte > room->size) {
        if (room->p)
            GR_TRY(gr_cuda_wait_queue(b, (int)lane)); /* ops that use it */
        cudaFree(room->p);
        *room = (gr_cuda_scratch_room){0};
        GR_TRY(gr_cuda_alloc(b, n_byte, "scratch of an op", &room->p));
        room->size = n_byte;
    }
    *out = room->p;
    return GR_OK;
}
