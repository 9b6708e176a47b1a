/* backend.c: backends by name. */
#include "grouter/backend.h"

#include "cpu.h"
#include "device.h"
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

static gr_err describe_cuda(gr_backend **out, gr_dtype dtype) {
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "backend"));
    *out = memory;
    **out = (gr_backend){.name = "cuda",
        .dtype = dtype,
        .elem_size = gr_dtype_size(dtype),
        .logits_room = GR_DEVICE_LOGITS_ROOM,
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

gr_err gr_backend_set_experts(gr_backend *b, const char *name) {
    static const char *const names[GR_N_EXPERTS] = {"auto", "cublas", "mma", "wgmma"};
    int way = 0;
    while (way < GR_N_EXPERTS && strcmp(name, names[way]) != 0)
        way++;
    if (way == GR_N_EXPERTS)
        return gr_fail(GR_CONFIG, "expert kernels: expected auto, cublas, mma or wgmma, got \"%s\"", name);
    if (b->experts_best && way > (int)b->experts_best)
        return gr_fail(GR_RESOURCE,
            "expert kernels: expected ones that this GPU has, at most \"%s\", got \"%s\"; use auto",
            names[b->experts_best], name);
    b->experts = (gr_experts)way;
    return GR_OK;
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
