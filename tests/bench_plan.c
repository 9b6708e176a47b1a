/* bench_plan.c: median and fastest time to build one rank's plan for N*K = 262,144 own pairs (N 32768, K 8, E 128). Run
 * by scripts/bench_plan.sh. */
#include <stdio.h>
#include <stdlib.h>

#include "grouter/plan.h"

enum { N = 32768, K = 8, E = 128, RUNS = 41 };

/* K distinct ascending experts per token, uniform. */
static void draw_routes(uint32_t n_token, uint16_t *ids, float *gates) {
    for (uint32_t t = 0; t < n_token; t++) {
        uint16_t *row = ids + (size_t)t * K;
        for (uint32_t k = 0; k < K; k++) { /* Floyd's sampling: the k-th draw is among E-K+k+1 experts */
            uint16_t most = (uint16_t)(E - K + k);
            uint16_t e = (uint16_t)gr_random_below(1, t, k, most + 1u);
            for (uint32_t j = 0; j < k; j++)
                if (row[j] == e)
                    e = most;
            uint32_t at = k;
            for (; at > 0 && row[at - 1] > e; at--)
                row[at] = row[at - 1];
            row[at] = e;
        }
        for (uint32_t k = 0; k < K; k++)
            gates[(size_t)t * K + k] = 1.0f / K;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *what, double *s) {
    qsort(s, RUNS, sizeof *s, by_value);
    printf("  %s %6.2f ms (fastest %.2f)", what, s[RUNS / 2] * 1e3, s[0] * 1e3);
}

static gr_err bench(uint32_t n_rank) {
    gr_expert_map map;
    GR_TRY(gr_expert_map_open(&map, E, n_rank));
    uint64_t pairs = (uint64_t)N * K;
    gr_plan_limits limits = {.N = N,
        .K = K,
        .n_rank = n_rank,
        .E_local = E / n_rank,
        .send_max = pairs,
        .recv_max = 2 * pairs,
        .pair_max = 2 * pairs};
    gr_plan plan;
    gr_plan_builder *builder;
    gr_arena arena = {0};
    gr_plan_layout(&arena, &limits, &map, &plan, &builder);
    void *base, *ids, *gates, *pair_gate;
    GR_TRY(gr_alloc(&base, arena.peak, 1, "plan"));
    arena = (gr_arena){.base = base, .size = arena.peak};
    gr_plan_layout(&arena, &limits, &map, &plan, &builder);
    GR_TRY(gr_alloc(&ids, n_rank * pairs, sizeof(uint16_t), "ids"));
    GR_TRY(gr_alloc(&gates, n_rank * pairs, sizeof(float), "gates"));
    GR_TRY(gr_alloc(&pair_gate, limits.pair_max, sizeof(float), "pair gates"));
    draw_routes(n_rank * N, ids, gates);
    double build[RUNS], fill[RUNS];
    for (int i = 0; i < RUNS; i++) {
        double start = gr_time_s();
        GR_TRY(gr_plan_build(&plan, builder, &limits, &map, n_rank / 2, ids, gates));
        double built = gr_time_s();
        gr_plan_gates(&plan, gates, pair_gate);
        build[i] = built - start;
        fill[i] = gr_time_s() - built;
    }
    printf("R_ep %2u:", n_rank);
    print_times("build", build);
    print_times("gates", fill);
    printf("  %u pairs, %u rows sent, %u received\n", plan.n_pair, plan.n_send, plan.n_recv);
    free(pair_gate);
    free(gates);
    free(ids);
    free(base);
    gr_expert_map_close(&map);
    return GR_OK;
}

int main(void) {
    static const uint32_t n_rank[] = {1, 2, 8, 64};
    for (size_t i = 0; i < sizeof n_rank / sizeof n_rank[0]; i++) {
        gr_err err = bench(n_rank[i]);
        if (err) {
            gr_error_print(stderr, err);
            return (int)err;
        }
    }
    return 0;
}
