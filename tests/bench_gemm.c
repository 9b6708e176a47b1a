/* bench_gemm.c: the rate of each matrix product that a training step of CONFIG makes forward, with this process's
 * threads, through the backend that training uses. Usage: bench_gemm CONFIG [KEY=VALUE]...; the last line repeats the
 * product with the most FLOPs. Run by scripts/bench_cpu.sh. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "grouter/backend.h"
#include "grouter/config.h"

#define MEASURE_S 0.4

typedef struct shape {
    const char *name;
    int64_t m, n, k;
} shape;

enum { SHAPES_MAX = 6 };

/* Experts get the rows that uniform routing would give them. */
static int shapes_of(const gr_config *c, shape list[SHAPES_MAX]) {
    const gr_model_config *m = &c->model;
    const int64_t N = (int64_t)c->train.micro_batch_windows * c->data.seq_len, D = m->hidden_size,
                  F = m->moe_intermediate_size, hd = m->head_dim;
    const int64_t row = N * m->num_experts_per_tok * gr_config_expert_parallel(c) / m->num_experts;
    int n = 0;
    list[n++] = (shape){"q,k,v", N, (m->num_attention_heads + 2 * m->num_key_value_heads) * hd, D};
    list[n++] = (shape){"attention output", N, D, m->num_attention_heads * hd};
    list[n++] = (shape){"one expert up", row > 0 ? row : 1, 2 * F, D};
    list[n++] = (shape){"one expert down", row > 0 ? row : 1, D, F};
    list[n++] = (shape){"head, one chunk", gr_logits_chunk(N, m->vocab_size), m->vocab_size, D};
    const int64_t wide = m->first_k_dense_replace > 0 ? m->intermediate_size : m->shared_expert_intermediate_size;
    if (wide > 0)
        list[n++] = (shape){"dense or shared up", N, 2 * wide, D};
    return n;
}

/* Best of as many runs as fit MEASURE_S, in FLOP/s: y = x W^T as the forward pass has it. */
static gr_err rate_measure(gr_backend *b, const shape *s, double *best) {
    void *memory = NULL;
    const int64_t n_in = s->m * s->k + s->n * s->k;
    GR_TRY(b->alloc(b, (size_t)(n_in + s->m * s->n) * sizeof(float), "matrix product", &memory));
    float *x = memory;
    for (int64_t i = 0; i < n_in; i++) /* speed depends on the data: no zeros */
        x[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
    const gr_gemm g = {.layout = GR_NT,
        .m = s->m,
        .n = s->n,
        .k = s->k,
        .a = x,
        .lda = s->k,
        .b = x + s->m * s->k,
        .ldb = s->k,
        .c = x + n_in,
        .ldc = s->n,
        .c_dtype = GR_F32};
    const double flop = 2.0 * (double)s->m * (double)s->n * (double)s->k, begin = gr_time_s();
    gr_err err = GR_OK;
    *best = 0;
    while (!err && gr_time_s() - begin < MEASURE_S) {
        double start = gr_time_s();
        err = b->gemm(b, GR_LANE_COMPUTE, &g);
        double rate = flop / (gr_time_s() - start);
        *best = rate > *best ? rate : *best;
    }
    b->release(b, memory);
    return err;
}

static void rate_print(const char *head, const shape *s, double rate) {
    printf("%s%-18s %6" PRId64 " x %5" PRId64 " x %5" PRId64 "  %7.1f GFLOP/s\n", head, s->name, s->m, s->n, s->k,
        rate * 1e-9);
}

static gr_err bench(const gr_config *c) {
    gr_backend *backend;
    GR_TRY(gr_backend_open(&backend, gr_config_backend_name(c)));
    shape list[SHAPES_MAX], largest = {0};
    double rate = 0, rate_largest = 0;
    gr_err err = GR_OK;
    const int n = shapes_of(c, list);
    for (int i = 0; i < n && !err; i++) {
        err = rate_measure(backend, &list[i], &rate);
        rate_print("  ", &list[i], rate);
        if (list[i].m * list[i].n * list[i].k > largest.m * largest.n * largest.k) {
            largest = list[i];
            rate_largest = rate;
        }
    }
    if (!err)
        rate_print("largest: ", &largest, rate_largest);
    gr_backend_close(backend);
    return err;
}

int main(int argc, char **argv) {
    static gr_config config;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_gemm CONFIG [KEY=VALUE]...\n");
        return GR_USAGE;
    }
    gr_err err = gr_config_load(&config, argv[1], (const char *const *)argv + 2, argc - 2);
    if (!err)
        err = bench(&config);
    if (err)
        gr_error_print(stderr, err);
    return (int)err;
}
