/* backend.c: backends by name. */
#include "grouter/backend.h"

#include "cpu.h"
#include "device_plans.h"
#ifdef GR_WITH_CUDA
#include "cuda.h"
#endif

#include <stdlib.h>
#include <string.h>

#ifdef GR_WITH_CUDA
#define NAMES "cpu cuda"
static bool has_cuda(void) {
    return gr_cuda_is_here();
}

static gr_err open_cuda(gr_backend **out, gr_dtype dtype) {
    return gr_cuda_open(out, dtype);
}
#else
#define NAMES "cpu"
static bool has_cuda(void) {
    return false;
}

static gr_err open_cuda(gr_backend **out, gr_dtype dtype) {
    (void)dtype;
    *out = NULL;
    return gr_fail(GR_CONFIG, "backend: expected auto or one of: " NAMES
                              ", got \"cuda\", which is not compiled in; build where the CUDA toolkit "
                              "is (grouter-train --version says why not here), or use cpu");
}
#endif

/* Only a device's memory is out of the host's reach: sizes need no more. */
static void close_description(gr_backend *b) {
    free(b);
}

/* Of a GPU that is not here, whose choice was not narrowed, the most that any takes. */
static size_t described_attention_scratch(const gr_backend *b, const gr_attention *a, bool backward) {
    const gr_attend_means means = {
        .way = b->attention, .shared_max = SIZE_MAX, .limits = GR_DEVICE_ATTEND_LIMITS, .room = GR_DEVICE_ATTEND_ROOM};
    return gr_attend_scratch(&means, b->dtype, a, backward);
}

static gr_err describe_cuda(gr_backend **out, gr_dtype dtype) {
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "backend"));
    *out = memory;
    **out = (gr_backend){.name = "cuda",
        .dtype = dtype,
        .elem_size = gr_dtype_size(dtype),
        .logits_room = GR_DEVICE_LOGITS_ROOM,
        .attention_scratch = described_attention_scratch,
        .close = close_description};
    return GR_OK;
}

static gr_err backend_open(gr_backend **out, const char *name, gr_dtype dtype, bool computes) {
    *out = NULL;
    const bool automatic = strcmp(name, "auto") == 0;
    if (strcmp(name, "cuda") == 0 || (automatic && has_cuda()))
        return computes ? open_cuda(out, dtype) : describe_cuda(out, dtype);
    if (automatic || strcmp(name, "cpu") == 0)
        return gr_cpu_open(out, dtype, computes);
    return gr_fail(GR_CONFIG, "backend: expected auto or one of: %s, got \"%s\"; choose one that is compiled in",
        gr_backend_names(), name);
}

gr_err gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype) {
    return backend_open(out, name, dtype, true);
}

gr_err gr_backend_describe(gr_backend **out, const char *name, gr_dtype dtype) {
    return backend_open(out, name, dtype, false);
}

/* The number of the name; `best` is the last one that is there, 0 where there is no choice. */
static gr_err choose_way(const char *what, const char *const names[4], int best, const char *name, int *way) {
    for (*way = 0; *way < 4; ++*way)
        if (strcmp(name, names[*way]) == 0) {
            if (!best || *way <= best)
                return GR_OK;
            return gr_fail(GR_RESOURCE,
                "%s kernels: expected ones that are there, at most \"%s\", got \"%s\"; use auto", what, names[best],
                name);
        }
    return gr_fail(GR_CONFIG, "%s kernels: expected %s, %s, %s or %s, got \"%s\"", what, names[0], names[1], names[2],
        names[3], name);
}

gr_err gr_backend_set_experts(gr_backend *b, const char *name) {
    static const char *const names[] = {"auto", "cublas", "mma", "wgmma"};
    int way;
    GR_TRY(choose_way("expert", names, (int)b->experts_best, name, &way));
    b->experts = (gr_experts)way;
    return GR_OK;
}

gr_err gr_backend_set_attention(gr_backend *b, const char *name) {
    static const char *const names[] = {"auto", "cublas", "flash", "cudnn"};
    int way;
    GR_TRY(choose_way("attention", names, (int)b->attention_best, name, &way));
    b->attention = (gr_attention_kernels)way;
    return GR_OK;
}

gr_err gr_backend_set_plans(gr_backend *b, const char *path) {
    gr_product_plans plans;
    if (!*path)
        return GR_OK;
    GR_TRY(gr_product_plans_read(&plans, path));
    gr_err err = b->use_plans ? b->use_plans(b, &plans, path) : GR_OK;
    gr_product_plans_close(&plans);
    return err;
}

gr_err gr_backend_tune(gr_backend *b, bool on) {
    if (b->tune)
        return b->tune(b, on);
    return gr_fail(GR_RESOURCE,
        "products: expected a backend that chooses their algorithms, cuda, to tune, got %s; tune where a GPU is",
        b->name);
}

gr_err gr_backend_save_plans(gr_backend *b, gr_out *out) {
    GR_ASSERT(b->save_plans, "backend %s has no plans of products", b->name);
    return b->save_plans(b, out);
}

void gr_backend_close(gr_backend *b) {
    if (b)
        b->close(b);
}

const char *gr_backend_names(void) {
    return NAMES;
}

int64_t gr_logits_chunk(const gr_backend *b, int64_t n, int64_t V) {
    int64_t fit = (int64_t)(b->logits_room / sizeof(float)) / (V > 0 ? V : 1);
    int64_t chunk = fit < 16 ? 16 : fit;
    return chunk < n ? chunk : n;
}
