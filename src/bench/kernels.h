/* kernels.h: what the files of the kernel benchmark share. kernels.c: time; kernels_product.c: ops of matrix products;
 * kernels_attention.c: attention and the loss; kernels_rows.c: ops over rows; kernels_heads.c: over heads;
 * kernels_router.c: routers and divergence; kernels_flat.c: flat arrays. */
#ifndef GROUTER_BENCH_KERNELS_H
#define GROUTER_BENCH_KERNELS_H

#include "times.h"

/* One op on one shape: its arrays and the arguments it is called with. */
typedef struct bench_kernel {
    gr_backend *backend;
    const gr_bench_shape *shape;
    int64_t N, P, flat; /* tokens, pairs N*K, numbers of a flat array */
    uint64_t seed;
    int way; /* of the case's variants */
    bench_arrays arrays;
    union {
        gr_gemm gemm;
        gr_gather gather;
        gr_sum sum;
        gr_router_op router;
        gr_pair_gates pair_gates;
        gr_ffn ffn;
        gr_embed embed;
        gr_norm norm;
        gr_head_norm head_norm;
        gr_layer_norm layer_norm;
        gr_rope rope;
        gr_attention attention;
        gr_cross_entropy loss;
        gr_divergence divergence;
        gr_adamw adamw;
    } op;
    gr_adamw_range range; /* of adamw: all */
    double flops, bytes;
    char text[64]; /* its sizes, for people */
} bench_kernel;

typedef struct bench_case {
    const char *op, *variant, *flops, *bytes; /* formulas; "" for no FLOPs */
    int way;
    bool compute;                           /* bound by arithmetic */
    gr_experts experts;                     /* a way of the op; only where the backend has it */
    gr_attention_kernels attention;         /* likewise */
    gr_err (*open)(bench_kernel *k);        /* arrays, filled on the host, and arguments */
    gr_err (*prepare)(bench_kernel *k);     /* what must have run before; NULL */
    gr_err (*run)(bench_kernel *k);         /* the op */
    double (*check)(const bench_kernel *k); /* error of the first run's results */
} bench_case;

/* A case of an op that is measured in one way only. */
#define BENCH_CASE(name, f, b, how, o, p, r, c)                                                                        \
    { .op = name, .variant = "", .flops = f, .bytes = b, .way = how, .open = o, .prepare = p, .run = r, .check = c }

extern const bench_case gr_bench_product_cases[], gr_bench_attention_cases[], gr_bench_row_cases[],
    gr_bench_head_cases[], gr_bench_router_cases[], gr_bench_flat_cases[];
extern const int gr_bench_n_product_case, gr_bench_n_attention_case, gr_bench_n_row_case, gr_bench_n_head_case,
    gr_bench_n_router_case, gr_bench_n_flat_case;

/* Element i of array `id`, before and after the first run. */
static inline double gr_bench_in(const bench_kernel *k, int id, int64_t i) {
    return gr_bench_get(k->arrays.list[id].want.dtype, k->arrays.list[id].host, i);
}
static inline double gr_bench_out(const bench_kernel *k, int id, int64_t i) {
    return gr_bench_get(k->arrays.list[id].want.dtype, k->arrays.list[id].result, i);
}
static inline void *gr_bench_device(const bench_kernel *k, int id) {
    return k->arrays.list[id].device;
}
static inline void *gr_bench_host(const bench_kernel *k, int id) {
    return k->arrays.list[id].host;
}
#define BENCH_OPEN(k, want)                                                                                            \
    gr_bench_arrays_open(&(k)->arrays, (k)->backend, (want), (int)(sizeof(want) / sizeof *(want)), (k)->seed)

#endif
