/* cpu.c: the CPU backend: opening and memory. Lanes run at once, in the order of the calls. */
#include "cpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define COPY_BLOCK ((size_t)1 << 20)

/* Bytes of physical memory, SIZE_MAX when the system does not say. */
static size_t physical_memory(void) {
    long n_page = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t n_byte;
    if (n_page <= 0 || page <= 0 || !gr_mul_size((size_t)n_page, (size_t)page, &n_byte))
        return SIZE_MAX;
    return n_byte;
}

/* Large areas are asked for in huge pages: GEMMs over them spend measurably less time on address translation. */
static void *aligned_memory(size_t n_byte) {
    size_t align = n_byte >= HUGE_PAGE ? HUGE_PAGE : GR_ALIGN, size;
    if (!gr_add_size(n_byte, align - 1, &size))
        return NULL;
    size = size > align ? size / align * align : align;
    void *p = aligned_alloc(align, size);
    if (p && align == HUGE_PAGE)
        (void)madvise(p, size, MADV_HUGEPAGE); /* advice: nothing depends on it */
    return p;
}

static gr_err cpu_copy(gr_backend *b, gr_lane lane, void *to, const void *from, size_t n_byte) {
    (void)b;
    (void)lane;
#pragma omp parallel for if (n_byte > COPY_BLOCK)
    for (size_t at = 0; at < n_byte; at += COPY_BLOCK)
        memcpy((char *)to + at, (const char *)from + at, n_byte - at < COPY_BLOCK ? n_byte - at : COPY_BLOCK);
    return GR_OK;
}

static gr_err cpu_fill_zero(gr_backend *b, gr_lane lane, void *p, size_t n_byte) {
    (void)b;
    (void)lane;
#pragma omp parallel for if (n_byte > COPY_BLOCK)
    for (size_t at = 0; at < n_byte; at += COPY_BLOCK)
        memset((char *)p + at, 0, n_byte - at < COPY_BLOCK ? n_byte - at : COPY_BLOCK);
    return GR_OK;
}

static gr_err cpu_alloc(gr_backend *b, size_t n_byte, const char *what, void **out) {
    size_t there = physical_memory();
    *out = n_byte <= there ? aligned_memory(n_byte) : NULL;
    if (!*out) {
        return gr_fail(GR_RESOURCE,
            "%s: expected %.2f GiB of memory, got none (this machine has %.2f GiB); use a smaller model, fewer windows "
            "per micro-batch or more ranks on more machines",
            what, (double)n_byte / 0x1p30, (double)there / 0x1p30);
    }
    return cpu_fill_zero(b, GR_LANE_COMPUTE, *out, n_byte);
}

static void cpu_release(gr_backend *b, void *p) {
    (void)b;
    free(p);
}

gr_err gr_cpu_scratch(gr_backend *b, size_t n_byte, void **out) {
    gr_cpu *s = b->state;
    if (n_byte > s->scratch_size) {
        free(s->scratch);
        s->scratch_size = 0;
        s->scratch = aligned_memory(n_byte);
        if (!s->scratch)
            return gr_fail(
                GR_RESOURCE, "cpu backend: expected %zu bytes of scratch, got none; use shorter windows", n_byte);
        s->scratch_size = n_byte;
    }
    *out = s->scratch;
    return GR_OK;
}

static bool cpu_owns(const gr_backend *b, const void *p) {
    (void)b;
    (void)p;
    return false;
}

static gr_err cpu_alloc_host(gr_backend *b, size_t n_byte, const char *what, void **out) {
    (void)b;
    return gr_alloc(out, n_byte, 1, what);
}

static gr_err cpu_wait(gr_backend *b, gr_lane waiting, gr_lane for_lane) {
    (void)b;
    (void)waiting;
    (void)for_lane;
    return GR_OK;
}

static void *cpu_lane_native(gr_backend *b, gr_lane lane) {
    (void)b;
    (void)lane;
    return NULL;
}

static gr_err cpu_sync(gr_backend *b) {
    (void)b;
    return GR_OK;
}

static gr_err cpu_sync_lane(gr_backend *b, gr_lane lane) {
    (void)b;
    (void)lane;
    return GR_OK;
}

static void cpu_close(gr_backend *b) {
    gr_cpu *s = b->state;
    if (s) {
        gr_cpu_products_close(s->products);
        free(s->scratch);
    }
    free(s);
    free(b);
}

/* What all storage types share. */
static const gr_backend shared_ops = {
    .name = "cpu",
    .host_memory = true,
    .logits_room = (size_t)32 << 20, /* they stay in a large cache */
    .alloc = cpu_alloc,
    .release = cpu_release,
    .owns = cpu_owns,
    .alloc_host = cpu_alloc_host,
    .release_host = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .fill_zero = cpu_fill_zero,
    .copy = cpu_copy,
    .wait = cpu_wait,
    .lane_native = cpu_lane_native,
    .sync = cpu_sync,
    .sync_lane = cpu_sync_lane,
    .gather_f32 = gr_cpu_gather_f32,
    .sum_f32 = gr_cpu_sum_f32,
    .pair_gates_forward = gr_cpu_pair_gates_forward,
    .pair_gates_backward = gr_cpu_pair_gates_backward,
    .divergence = gr_cpu_divergence,
    .sum_squares = gr_cpu_sum_squares,
    .decide = gr_cpu_decide,
    .close = cpu_close,
};

static gr_err open_state(gr_backend *b, bool computes) {
    void *state;
    GR_TRY(gr_alloc(&state, 1, sizeof(gr_cpu), "cpu backend"));
    gr_cpu *s = b->state = state;
    s->n_thread = gr_threads_settle();
    return computes && b->dtype == GR_BF16 ? gr_cpu_products_open(&s->products) : GR_OK;
}

gr_err gr_cpu_open(gr_backend **out, gr_dtype dtype, bool computes) {
    void *memory = NULL;
    *out = NULL;
    GR_ASSERT(dtype == GR_F32 || dtype == GR_BF16, "storage type %s", gr_dtype_name(dtype));
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "cpu backend"));
    gr_backend *b = memory;
    *b = shared_ops;
    (dtype == GR_BF16 ? gr_cpu_set_ops_bf16 : gr_cpu_set_ops_f32)(b);
    gr_err err = open_state(b, computes);
    if (err) {
        cpu_close(b);
        return err;
    }
    *out = b;
    return GR_OK;
}
