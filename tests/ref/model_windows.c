#include "model_windows.h"

#include <stdio.h>
#include <stdlib.h>

static void *take(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p) {
        fprintf(stderr, "no memory for %zu elements\n", n);
        exit(1);
    }
    return p;
}

static int ascending(const void *a, const void *b) {
    return (int)*(const uint16_t *)a - (int)*(const uint16_t *)b;
}

/* K distinct ascending experts of token i. */
static void draw_experts(const model_case_options *o, uint64_t i, uint16_t *ids) {
    int E = o->config->num_experts, K = o->config->num_experts_per_tok, n = 0;
    if (o->only_expert >= 0)
        ids[n++] = (uint16_t)o->only_expert;
    for (uint64_t draw = 0; n < K; draw++) {
        uint16_t e = (uint16_t)gr_random_below(21, i, draw, (uint32_t)E);
        bool seen = false;
        for (int k = 0; k < n; k++)
            seen |= ids[k] == e;
        if (!seen)
            ids[n++] = e;
    }
    qsort(ids, (size_t)K, sizeof *ids, ascending);
}

windows windows_make(const model_case_options *o, int n_part, int step) {
    uint64_t base = (uint64_t)step << 32;
    windows w = {.n = (int64_t)n_part * o->n_window * o->T};
    size_t K = (size_t)o->config->num_experts_per_tok, n = (size_t)w.n;
    w.token = take(n, sizeof *w.token);
    w.target = take(n, sizeof *w.target);
    w.ids = take(n * K, sizeof *w.ids);
    w.gates = take(n * K, sizeof *w.gates);
    for (size_t i = 0; i < n; i++) {
        w.token[i] = gr_random_below(22, 0, base + i, (uint32_t)o->config->vocab_size);
        w.target[i] = i % 11 == 5 ? -1 : (int32_t)gr_random_below(22, 1, base + i, (uint32_t)o->config->vocab_size);
        draw_experts(o, base + i, w.ids + i * K);
        for (size_t k = 0; k < K; k++)
            w.gates[i * K + k] = 0.2f + (float)gr_random_below(22, 2 + k, base + i, 64) / 64;
        if (o->unused_slots && i % 5 == 1)
            w.gates[i * K + i % K] = 0;
    }
    return w;
}

void windows_free(windows *w) {
    free(w->token);
    free(w->target);
    free(w->ids);
    free(w->gates);
}
