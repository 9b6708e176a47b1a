/* cpu.c: the CPU backend: memory and the table of ops. Lanes run at once, in the order of the calls. */
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

static void cpu_close(gr_backend *b) {
    gr_cpu *s = b->state;
    if (s)
        free(s->scratch);
    free(s);
    free(b);
}

static int count_threads(void) {
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n++;
    return n;
}

static const gr_backend cpu_ops = {
    .name = "cpu",
    .dtype = GR_F32,
    .elem_size = sizeof(gr_act),
    .host_memory = true,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .fill_zero = cpu_fill_zero,
    .copy = cpu_copy,
    .wait = cpu_wait,
    .lane_native = cpu_lane_native,
    .sync = cpu_sync,
    .gemm = gr_cpu_gemm_op,
    .gather_rows = gr_cpu_gather_rows,
    .sum_rows = gr_cpu_sum_rows,
    .gather_f32 = gr_cpu_gather_f32,
    .sum_f32 = gr_cpu_sum_f32,
    .router_forward = gr_cpu_router_forward,
    .router_backward = gr_cpu_router_backward,
    .pair_gates_forward = gr_cpu_pair_gates_forward,
    .pair_gates_backward = gr_cpu_pair_gates_backward,
    .ffn_forward = gr_cpu_ffn_forward,
    .ffn_backward = gr_cpu_ffn_backward,
    .embed_forward = gr_cpu_embed_forward,
    .embed_backward = gr_cpu_embed_backward,
    .norm_forward = gr_cpu_norm_forward,
    .norm_backward = gr_cpu_norm_backward,
    .layer_norm_forward = gr_cpu_layer_norm_forward,
    .layer_norm_backward = gr_cpu_layer_norm_backward,
    .rope = gr_cpu_rope,
    .attention_forward = gr_cpu_attention_forward,
    .attention_backward = gr_cpu_attention_backward,
    .cross_entropy = gr_cpu_cross_entropy,
    .divergence = gr_cpu_divergence,
    .sum_squares = gr_cpu_sum_squares,
    .adamw = gr_cpu_adamw,
    .peak = gr_cpu_peak,
    .close = cpu_close,
};

gr_err gr_cpu_open(gr_backend **out) {
    void *b = NULL, *state = NULL;
    *out = NULL;
    GR_TRY(gr_alloc(&b, 1, sizeof(gr_backend), "cpu backend"));
    gr_err err = gr_alloc(&state, 1, sizeof(gr_cpu), "cpu backend");
    if (err) {
        free(b);
        return err;
    }
    ((gr_cpu *)state)->n_thread = count_threads();
    *out = b;
    **out = cpu_ops;
    (*out)->state = state;
    return GR_OK;
}
