/* bench_gemm.c: the rates of the matrix products that a training step of CONFIG makes with its weights, forward and
 * backward, with this process's threads, through the backend that training uses. Usage: bench_gemm CONFIG
 * [KEY=VALUE]...; the last line repeats the forward product with the most FLOPs. Run by scripts/bench_cpu.sh. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "grouter/backend.h"
#include "grouter/config.h"

#define MEASURE_S 0.25

typedef struct shape {
    const char *name;
    int64_t m, n, k;
} shape;

enum { SHAPES_MAX = 6 };

/* Experts get the rows that uniform routing would give them. */
static int shapes_of(const gr_backend *b, const gr_config *c, shape list[SHAPES_MAX]) {
    const gr_model_config *m = &c->model;
    const int64_t N = (int64_t)c->train.micro_batch_windows * c->data.seq_len, D = m->hidden_size,
                  F = m->moe_intermediate_size, hd = m->head_dim;
    const int64_t row = N * m->num_experts_per_tok * gr_config_expert_parallel(c) / m->num_experts;
    int n = 0;
    list[n++] = (shape){"q,k,v", N, (m->num_attention_heads + 2 * m->num_key_value_heads) * hd, D};
    list[n++] = (shape){"attention output", N, D, m->num_attention_heads * hd};
    list[n++] = (shape){"one expert up", row > 0 ? row : 1, 2 * F, D};
    list[n++] = (shape){"one expert down", row > 0 ? row : 1, D, F};
    list[n++] = (shape){"head, one chunk", gr_logits_chunk(b, N, m->vocab_size), m->vocab_size, D};
    const int64_t wide = m->first_k_dense_replace > 0 ? m->intermediate_size : m->shared_expert_intermediate_size;
    if (wide > 0)
        list[n++] = (shape){"dense or shared up", N, 2 * wide, D};
    return n;
}

/* The products of y = x W^T: y, dx = dy W and dW = dy^T x, for x [m,k], W [n,k]. Each is c = op(a) op(b) in the three
 * places. */
static gr_gemm product_of(const shape *s, gr_layout layout, gr_dtype dtype, void *const place[3]) {
    gr_gemm g = {.layout = layout, .a = place[0], .b = place[1], .c = place[2]};
    g.c_dtype = layout == GR_TN ? GR_F32 : dtype; /* as training has it */
    g.m = layout == GR_TN ? s->n : s->m;
    g.n = layout == GR_NT ? s->n : s->k;
    g.k = layout == GR_NT ? s->k : layout == GR_NN ? s->n : s->m;
    g.lda = layout == GR_TN ? g.m : g.k;
    g.ldb = layout == GR_NT ? g.k : g.n;
    g.ldc = g.n;
    return g;
}

/* Best of as many runs as fit MEASURE_S, in FLOP/s. */
static gr_err rate_measure(gr_backend *b, const gr_gemm *g, double *best) {
    const double flop = 2.0 * (double)g->m * (double)g->n * (double)g->k, begin = gr_time_s();
    *best = 0;
    while (gr_time_s() - begin < MEASURE_S) {
        double start = gr_time_s();
        GR_TRY(b->gemm(b, GR_LANE_COMPUTE, g));
        double rate = flop / (gr_time_s() - start);
        *best = rate > *best ? rate : *best;
    }
    return GR_OK;
}

/* Speed depends on the data: no zeros. */
static void fill(gr_dtype dtype, void *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(i * 2654435761u % 1024) / 512 - 1;
        if (dtype == GR_F32)
            ((float *)to)[i] = x;
        else
            ((uint16_t *)to)[i] = gr_bf16_from_f32(x);
    }
}

/* Rates by layout, in the order of gr_layout. */
static gr_err rates_measure(gr_backend *b, const shape *s, double rate[3]) {
    const int64_t size[3] = {s->m * s->k, s->n * s->k, s->m * s->n};
    const int64_t largest = size[0] > size[1] ? size[0] : size[1], each = largest > size[2] ? largest : size[2];
    void *memory = NULL;
    GR_TRY(b->alloc(b, 3 * (size_t)each * sizeof(float), "matrix product", &memory));
    void *const place[3] = {memory, (float *)memory + each, (float *)memory + 2 * each}; /* room for fp32 in all */
    fill(b->dtype, place[0], each);
    fill(b->dtype, place[1], each);
    gr_err err = GR_OK;
    for (int layout = 0; layout < 3 && !err; layout++) {
        const gr_gemm g = product_of(s, (gr_layout)layout, b->dtype, place);
        err = rate_measure(b, &g, &rate[layout]);
    }
    b->release(b, memory);
    return err;
}

static void shape_print(const char *head, const shape *s) {
    printf("%s%-18s %6" PRId64 " x %5" PRId64 " x %5" PRId64 "  ", head, s->name, s->m, s->n, s->k);
}

static gr_err bench(const gr_config *c) {
    gr_backend *backend;
    GR_TRY(gr_backend_open(&backend, gr_config_backend_name(c), gr_config_dtype(c)));
    shape list[SHAPES_MAX], largest = {0};
    double rate[3], rate_largest = 0;
    gr_err err = GR_OK;
    const int n = shapes_of(backend, c, list);
    printf("GFLOP/s of y = x W^T, dx = dy W, dW = dy^T x for x [m,k] and W [n,k], as m x n x k\n");
    for (int i = 0; i < n; i++) {
        err = rates_measure(backend, &list[i], rate);
        if (err)
            break;
        shape_print("  ", &list[i]);
        printf("%7.1f %7.1f %7.1f\n", rate[GR_NT] * 1e-9, rate[GR_NN] * 1e-9, rate[GR_TN] * 1e-9);
        if (list[i].m * list[i].n * list[i].k > largest.m * largest.n * largest.k) {
            largest = list[i];
            rate_largest = rate[GR_NT];
        }
    }
    if (!err) {
        shape_print("largest: ", &largest);
        printf("%7.1f GFLOP/s\n", rate_largest * 1e-9);
    }
    gr_backend_close(backend);
    return err;
}

int main(int argc, char **argv) {
    static gr_config config;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_gemm CONFIG [KEY=VALUE]...\n");
        return GR_USAGE;
    }
    gr_err err = gr_config_load(&config, GR_CONFIG_TRAIN, argv[1], (const char *const *)argv + 2, argc - 2);
    if (!err)
        err = bench(&config);
    if (err)
        gr_error_print(stderr, err);
    return (int)err;
}
