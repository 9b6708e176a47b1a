/* backend.c: backends by name. */
#include "grouter/backend.h"

#include "cpu.h"

#include <string.h>

static gr_err backend_open(gr_backend **out, const char *name, gr_dtype dtype, bool computes) {
    *out = NULL;
    if (strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0)
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

void gr_backend_close(gr_backend *b) {
    if (b)
        b->close(b);
}

const char *gr_backend_names(void) {
    return "cpu";
}

int64_t gr_logits_chunk(int64_t n, int64_t V) {
    int64_t fit = (INT64_C(32) << 20) / (int64_t)sizeof(float) / (V > 0 ? V : 1);
    int64_t chunk = fit < 16 ? 16 : fit;
    return chunk < n ? chunk : n;
}
