/* cuda_plans.c: algorithms of matrix products from and to a file. What the file says of an algorithm is not believed:
 * the library has to accept it for its product, within the same bounds as its suggestions. */
#include "cuda_products.h"
#include "device_plans.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == GR_ALGORITHM_BYTES, "an algorithm has other bytes than the file");

/* ---------------------------------------------------------------- what an algorithm may be */

/* Where the library does not say: the widest that an address is ever known to have. */
static uint32_t alignment_asked(
    const gr_cuda_products *p, const cublasLtMatmulAlgo_t *a, cublasLtMatmulAlgoCapAttributes_t which) {
    uint32_t n = 0;
    size_t written = 0;
    const cublasStatus_t status = p->call.cublasLtMatmulAlgoCapGetAttribute(a, which, &n, sizeof n, &written);
    return status || written != sizeof n ? 16 : n;
}

/* The library's left operand is b (gr_product_view). */
static bool is_aligned(const gr_cuda_products *p, const gr_product_key *key, const cublasLtMatmulAlgo_t *a) {
    const gr_alignments at = gr_product_alignments(key);
    return alignment_asked(p, a, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES) <= at.b &&
           alignment_asked(p, a, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES) <= at.a &&
           alignment_asked(p, a, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES) <= at.c &&
           alignment_asked(p, a, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES) <= at.c;
}

static bool adds_in_fp32(const gr_cuda_products *p, const cublasLtMatmulAlgo_t *a) {
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_MASK;
    size_t written = 0;
    const cublasStatus_t status = p->call.cublasLtMatmulAlgoConfigGetAttribute(
        a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme, &written);
    return !status && written == sizeof scheme &&
           (scheme == CUBLASLT_REDUCTION_SCHEME_NONE || scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
}

const char *gr_cublas_objection(gr_cuda_products *p, const gr_product_key *key, const cublasLtMatmulAlgo_t *algorithm) {
    const gr_gemm g = gr_product_of_key(key);
    gr_cublas_descriptors d;
    cublasLtMatmulHeuristicResult_t result = {0};
    if (gr_cublas_describe(p, &g, &d))
        return "cuBLAS cannot describe the product";
    if (p->call.cublasLtMatmulAlgoCheck(
            p->lt, &d.product, &d.left, &d.right, &d.result, &d.result, algorithm, &result) ||
        result.state != CUBLAS_STATUS_SUCCESS)
        return "cuBLAS does not accept it";
    if (result.workspaceSize > GR_CUDA_WORKSPACE)
        return "it needs more workspace";
    if (!adds_in_fp32(p, algorithm))
        return "it does not add in fp32";
    return is_aligned(p, key, algorithm) ? NULL : "it needs wider alignment";
}

/* ---------------------------------------------------------------- this machine */

static gr_err name_machine(const gr_backend *b, char *gpu, size_t n_gpu, char *cublas, size_t n_cublas) {
    const gr_cuda *s = b->state;
    struct cudaDeviceProp found;
    const size_t v = s->products->call.cublasLtGetVersion();
    GR_TRY(gr_cuda_check((int)cudaGetDeviceProperties(&found, s->device), "reading what a GPU has"));
    snprintf(gpu, n_gpu, "%.*s", (int)sizeof found.name, found.name);
    snprintf(cublas, n_cublas, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return GR_OK;
}

static gr_err check_machine(const gr_backend *b, const gr_product_plans *plans, const char *path) {
    char gpu[sizeof plans->gpu], cublas[sizeof plans->cublas];
    GR_TRY(name_machine(b, gpu, sizeof gpu, cublas, sizeof cublas));
    const struct {
        const char *what, *ours, *theirs;
    } all[] = {{"this GPU", gpu, plans->gpu}, {"this cuBLAS", cublas, plans->cublas},
        {"the dtype of this run", gr_product_dtype_name(b->dtype), gr_product_dtype_name(plans->dtype)}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(all[i].ours, all[i].theirs) != 0)
            return gr_fail(GR_DATA,
                "parallel.product_plans: %s: expected plans for %s, \"%s\", got ones for \"%s\"; " GR_PLANS_ADVICE
                " here, or leave the key out",
                path, all[i].what, all[i].ours, all[i].theirs);
    return GR_OK;
}

/* ---------------------------------------------------------------- from a file */

static gr_err use_plan(gr_cuda_products *p, const gr_product_plan *from, const char *path) {
    gr_cuda_plan plan = {.is_lt = true};
    memcpy(&plan.algorithm, from->algorithm, sizeof plan.algorithm);
    const char *objection = gr_cublas_objection(p, &from->key, &plan.algorithm);
    if (objection)
        return gr_fail(GR_DATA,
            "parallel.product_plans: %s:%d: expected an algorithm for a product of %lld x %lld x %lld, got one that "
            "cannot be used: %s; " GR_PLANS_ADVICE " here, or leave the key out",
            path, from->line, (long long)from->key.m, (long long)from->key.n, (long long)from->key.k, objection);
    p->plans[gr_product_number(&p->table, &from->key)] = plan;
    p->n_listed++;
    return GR_OK;
}

gr_err gr_cuda_use_plans(gr_backend *b, const gr_product_plans *plans, const char *path) {
    gr_cuda_products *p = ((gr_cuda *)b->state)->products;
    GR_ASSERT(p->table.n == 0, "%d products before their plans", p->table.n);
    GR_TRY(check_machine(b, plans, path));
    for (int i = 0; i < plans->n; i++)
        GR_TRY(use_plan(p, &plans->plan[i], path));
    gr_info("backend cuda: %d products by the algorithms of %s", plans->n, path);
    return GR_OK;
}

void gr_cuda_say_unlisted(const gr_cuda_products *p) {
    if (p->n_unlisted)
        gr_info("backend cuda: %d shapes of products were not in the file of plans, which has %d: they took the "
                "library's first suggestion",
            p->n_unlisted, p->n_listed);
}

/* ---------------------------------------------------------------- to a file */

/* Returns how many of them beat the first suggestion. */
static int collect(const gr_cuda_products *p, gr_product_plans *plans) {
    int n_better = 0;
    for (int i = 0; i < p->table.n && plans->n < GR_PLANS_MAX; i++) {
        const gr_cuda_plan *from = &p->plans[i];
        if (from->us <= 0)
            continue;
        gr_product_plan *to = &plans->plan[plans->n++];
        *to = (gr_product_plan){.key = p->table.key[i], .us = (double)from->us};
        memcpy(to->algorithm, &from->algorithm, sizeof to->algorithm);
        n_better += from->us < from->us_first;
    }
    return n_better;
}

gr_err gr_cuda_save_plans(gr_backend *b, gr_out *out) {
    const gr_cuda_products *p = ((gr_cuda *)b->state)->products;
    gr_product_plans plans = {.dtype = b->dtype};
    void *memory;
    GR_TRY(name_machine(b, plans.gpu, sizeof plans.gpu, plans.cublas, sizeof plans.cublas));
    GR_TRY(gr_alloc(&memory, GR_PLANS_MAX, sizeof *plans.plan, "plans of products"));
    plans.plan = memory;
    const int n_better = collect(p, &plans);
    gr_err err = plans.n > 0 ? gr_product_plans_write(&plans, out)
                             : gr_fail(GR_RESOURCE,
                                   "products: expected some whose algorithm can be chosen, got none of "
                                   "%d; there is nothing to tune",
                                   p->table.n);
    if (!err)
        gr_info("backend cuda: %d shapes of products tuned, %d of them faster than by the first suggestion", plans.n,
            n_better);
    gr_product_plans_close(&plans);
    return err;
}
