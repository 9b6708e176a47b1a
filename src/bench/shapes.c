/* shapes.c: the shapes of known layers, by name. */
#include <string.h>

#include "grouter/bench.h"

static const gr_bench_shape shapes[] = {
    {"small", 256, 512, 384, 16, 4, 8, 2, 64, 4096},
    {"tiny-qwen3", 4096, 384, 344, 128, 8, 8, 8, 48, 151680},
    {"mini-qwen3", 4096, 1024, 384, 128, 8, 16, 4, 128, 151680},
    {"mini-ds-v2-lite", 4096, 512, 704, 64, 6, 8, 8, 64, 151680},
    {"mini-gpt-oss", 4096, 720, 720, 32, 4, 32, 8, 64, 151680},
    {"qwen3-30b-a3b", 4096, 2048, 768, 128, 8, 32, 4, 128, 151936},
};
enum { N_SHAPE = sizeof shapes / sizeof *shapes };

const char *gr_bench_shape_names(void) {
    return "small, tiny-qwen3, mini-qwen3, mini-ds-v2-lite, mini-gpt-oss, qwen3-30b-a3b";
}

gr_err gr_bench_shape_find(const char *name, gr_bench_shape *out) {
    gr_nearest nearest = {.to = name};
    for (int i = 0; i < N_SHAPE; i++) {
        if (strcmp(name, shapes[i].name) == 0) {
            *out = shapes[i];
            return GR_OK;
        }
        gr_nearest_offer(&nearest, shapes[i].name);
    }
    if (nearest.name)
        return gr_fail(GR_USAGE, "--shape: expected one of %s, got \"%s\": did you mean %s?", gr_bench_shape_names(),
            name, nearest.name);
    return gr_fail(GR_USAGE, "--shape: expected one of %s, got \"%s\"", gr_bench_shape_names(), name);
}
