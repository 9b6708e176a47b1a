/* cuda_gemm.c: matrix products by cuBLASLt, which only the files of cuda_products.h know.
 *
 * A plan is the library's algorithm for a shape, found at the first product that needs it, and kept. A run times
 * nothing: a choice by the clock could be another one in the next run, whose bits would differ. So a plan is that of a
 * file which was tuned once (cuda_plans.c), or else the first of the library's own suggestions; only while the backend
 * is told to tune (cuda_tune.c), which no run does, is it the fastest of several. Descriptors live on the stack, so a
 * product allocates nothing.
 *
 * fp32 is CUBLAS_COMPUTE_32F, which uses no TF32; bf16 products are summed in fp32 too, and where the library splits
 * the inner dimension their parts are added in fp32 in a step of its own: the same bits at every call. Each queue has
 * its own workspace, since the library writes there. cuBLAS itself does batches, and what cuBLASLt has no algorithm
 * for. */
#include "cuda_products.h"

#include <stdlib.h>

gr_err gr_cublas_check(const gr_cuda_products *p, cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS)
        return GR_OK;
    return gr_fail(status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_EXECUTION_FAILED ||
                           status == CUBLAS_STATUS_NOT_INITIALIZED
                       ? GR_RESOURCE
                       : GR_BUG,
        "backend cuda: expected success from cuBLAS at %s, got %s; see nvidia-smi for what else uses the GPU, and "
        "report this if it happens again",
        what, p->call.cublasGetStatusString(status));
}

const char *gr_cuda_library(void) {
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
    return "cuBLAS " TEXT(CUBLAS_VER_MAJOR) "." TEXT(CUBLAS_VER_MINOR) "." TEXT(CUBLAS_VER_PATCH);
}

/* ---------------------------------------------------------------- descriptors */

static cublasStatus_t set_turned(
    const gr_cuda_products *p, cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t which, bool turned) {
    const cublasOperation_t operation = turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    return p->call.cublasLtMatmulDescSetAttribute(product, which, &operation, sizeof operation);
}

static cudaDataType_t result_type(const gr_cuda_products *p, const gr_gemm *g) {
    return g->c_dtype == GR_F32 ? CUDA_R_32F : p->act;
}

cublasStatus_t gr_cublas_describe(const gr_cuda_products *p, const gr_gemm *g, gr_cublas_descriptors *d) {
    const gr_product_view v = gr_product_view_of(g);
    cublasStatus_t status =
        p->call.cublasLtMatmulDescInit_internal(&d->product, sizeof d->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status = set_turned(p, &d->product, CUBLASLT_MATMUL_DESC_TRANSA, v.turn_left);
    if (!status)
        status = set_turned(p, &d->product, CUBLASLT_MATMUL_DESC_TRANSB, v.turn_right);
    if (!status)
        status = p->call.cublasLtMatrixLayoutInit_internal(
            &d->left, sizeof d->left, p->act, (uint64_t)v.left_rows, (uint64_t)v.left_columns, g->ldb);
    if (!status)
        status = p->call.cublasLtMatrixLayoutInit_internal(
            &d->right, sizeof d->right, p->act, (uint64_t)v.right_rows, (uint64_t)v.right_columns, g->lda);
    if (!status)
        status = p->call.cublasLtMatrixLayoutInit_internal(
            &d->result, sizeof d->result, result_type(p, g), (uint64_t)g->n, (uint64_t)g->m, g->ldc);
    return status;
}

/* ---------------------------------------------------------------- plans */

static cublasStatus_t set_preferences(const gr_cuda_products *p, cublasLtMatmulPreference_t wish, const gr_gemm *g) {
    const size_t workspace = GR_CUDA_WORKSPACE;
    const uint32_t added_in_fp32 = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t left = gr_product_alignment(g->b), right = gr_product_alignment(g->a),
                   result = gr_product_alignment(g->c);
    const struct {
        cublasLtMatmulPreferenceAttributes_t which;
        const void *value;
        size_t size;
    } all[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &added_in_fp32, sizeof added_in_fp32},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &left, sizeof left},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &right, sizeof right},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &result, sizeof result},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &result, sizeof result}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        cublasStatus_t status =
            p->call.cublasLtMatmulPreferenceSetAttribute(wish, all[i].which, all[i].value, all[i].size);
        if (status)
            return status;
    }
    return CUBLAS_STATUS_SUCCESS;
}

gr_err gr_cublas_suggest(
    gr_cuda_products *p, const gr_gemm *g, int n_max, cublasLtMatmulHeuristicResult_t *out, int *n) {
    gr_cublas_descriptors d;
    cublasLtMatmulPreferenceOpaque_t wish;
    *n = 0;
    GR_TRY(gr_cublas_check(p, gr_cublas_describe(p, g, &d), "describing a product"));
    GR_TRY(
        gr_cublas_check(p, p->call.cublasLtMatmulPreferenceInit_internal(&wish, sizeof wish), "describing a product"));
    GR_TRY(gr_cublas_check(p, set_preferences(p, &wish, g), "describing a product"));
    const cublasStatus_t status = p->call.cublasLtMatmulAlgoGetHeuristic(
        p->lt, &d.product, &d.left, &d.right, &d.result, &d.result, &wish, n_max, out, n);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED)
        return gr_cublas_check(p, status, "choosing an algorithm");
    *n = 0;
    return GR_OK;
}

/* The first suggestion of cuBLASLt for g, if it has one. */
static gr_err make_plan(gr_cuda_products *p, const gr_gemm *g, gr_cuda_plan *out) {
    cublasLtMatmulHeuristicResult_t found;
    int n;
    GR_TRY(gr_cublas_suggest(p, g, 1, &found, &n));
    *out = (gr_cuda_plan){.is_lt = n > 0 && found.state == CUBLAS_STATUS_SUCCESS};
    if (out->is_lt)
        out->algorithm = found.algo;
    return GR_OK;
}

/* A file of plans was tuned on a run whose shapes may have been others. */
static void note_unlisted(gr_cuda_products *p, const gr_gemm *g, const gr_cuda_plan *made) {
    if (p->n_listed == 0 || !made->is_lt)
        return;
    if (p->n_unlisted++ == 0)
        gr_info("backend cuda: a product of %lld x %lld x %lld is not in the file of plans: it and others like it take "
                "the library's first suggestion",
            (long long)g->m, (long long)g->n, (long long)g->k);
}

/* Of a shape seen before, the plan kept for it; a full table makes new ones each time. `canonical` is what the plan is
 * for, g what is to be computed. */
static gr_err find_plan(gr_backend *b, int queue, const gr_gemm *canonical, const gr_gemm *g, gr_cuda_plan *out) {
    gr_cuda_products *p = ((gr_cuda *)b->state)->products;
    const gr_product_key key = gr_product_key_of(canonical);
    const int n_before = p->table.n, number = gr_product_number(&p->table, &key);
    if (number >= 0 && number < n_before) {
        *out = p->plans[number];
        return GR_OK;
    }
    if (p->is_tuning && number >= 0)
        GR_TRY(gr_cuda_tune_product(b, queue, canonical, g, out));
    else
        GR_TRY(make_plan(p, canonical, out));
    note_unlisted(p, canonical, out);
    if (number >= 0)
        p->plans[number] = *out;
    return GR_OK;
}

/* ---------------------------------------------------------------- products */

gr_cublas_place gr_cublas_place_of(const gr_cuda *s, int queue) {
    return (gr_cublas_place){
        .stream = s->queue[queue], .workspace = s->products->workspace + (size_t)queue * GR_CUDA_WORKSPACE};
}

static const float one = 1.0f, zero = 0.0f;

/* Of a batch's first product; g says where its arrays are. */
static cublasStatus_t run_plain(gr_cuda_products *p, gr_cublas_place at, const gr_gemm *g, gr_cuda_batch batch) {
    const gr_product_view v = gr_product_view_of(g);
    cublasStatus_t status = p->call.cublasSetStream_v2(p->blas, at.stream); /* takes the workspace away */
    if (!status)
        status = p->call.cublasSetWorkspace_v2(p->blas, at.workspace, GR_CUDA_WORKSPACE);
    if (!status)
        status = p->call.cublasGemmStridedBatchedEx_64(p->blas, v.turn_left ? CUBLAS_OP_T : CUBLAS_OP_N,
            v.turn_right ? CUBLAS_OP_T : CUBLAS_OP_N, g->n, g->m, g->k, &one, g->b, p->act, g->ldb, batch.stride_b,
            g->a, p->act, g->lda, batch.stride_a, g->write == GR_ACCUMULATE ? &one : &zero, g->c, result_type(p, g),
            g->ldc, batch.stride_c, batch.n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    return status;
}

cublasStatus_t gr_cublas_run(gr_cuda_products *p, gr_cublas_place at, const gr_gemm *g,
    const cublasLtMatmulAlgo_t *algorithm, gr_cublas_descriptors *d, void *to) {
    return p->call.cublasLtMatmul(p->lt, &d->product, &one, g->b, &d->left, g->a, &d->right,
        g->write == GR_ACCUMULATE ? &one : &zero, g->c, &d->result, to, &d->result, algorithm, at.workspace,
        GR_CUDA_WORKSPACE, at.stream);
}

bool gr_cublas_refused(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
}

static cublasStatus_t run_plan(
    gr_cuda_products *p, gr_cublas_place at, const gr_gemm *g, const gr_cuda_plan *use, gr_cublas_descriptors *d) {
    if (!use->is_lt)
        return run_plain(p, at, g, (gr_cuda_batch){.n = 1});
    return gr_cublas_run(p, at, g, &use->algorithm, d, g->c);
}

/* No inner dimension: zeros, or nothing to add. */
static gr_err without_terms(cudaStream_t stream, const gr_gemm *g) {
    const size_t size = gr_dtype_size(g->c_dtype);
    if (g->write == GR_ACCUMULATE)
        return GR_OK;
    return gr_cuda_check(
        (int)cudaMemset2DAsync(g->c, (size_t)g->ldc * size, 0, (size_t)g->n * size, (size_t)g->m, stream),
        "an empty product");
}

gr_err gr_cuda_product(gr_backend *b, int queue, const gr_gemm *g, gr_rows rows) {
    gr_cuda *s = b->state;
    gr_cuda_products *p = s->products;
    const gr_cublas_place at = gr_cublas_place_of(s, queue);
    GR_ASSERT(g->c_dtype == GR_F32 || g->c_dtype == b->dtype, "c_dtype %s", gr_dtype_name(g->c_dtype));
    if (g->m == 0 || g->n == 0)
        return GR_OK;
    if (g->k == 0)
        return without_terms(at.stream, g);
    const gr_gemm canonical = gr_product_canonical(g, rows);
    gr_cuda_plan use;
    gr_cublas_descriptors d;
    GR_TRY(find_plan(b, queue, &canonical, g, &use));
    GR_TRY(gr_cublas_check(p, gr_cublas_describe(p, g, &d), "describing a product"));
    cublasStatus_t status = run_plan(p, at, g, &use, &d);
    const bool is_canonical = canonical.m == g->m && canonical.k == g->k;
    if (gr_cublas_refused(status) && !is_canonical) {
        GR_TRY(find_plan(b, queue, g, g, &use));
        status = run_plan(p, at, g, &use, &d);
    }
    return gr_cublas_check(p, status, "a matrix product");
}

gr_err gr_cuda_product_batch(gr_backend *b, int queue, const gr_gemm *g, gr_cuda_batch batch) {
    gr_cuda *s = b->state;
    GR_ASSERT(g->k > 0, "a batch of products without an inner dimension");
    if (g->m == 0 || g->n == 0 || batch.n == 0)
        return GR_OK;
    return gr_cublas_check(
        s->products, run_plain(s->products, gr_cublas_place_of(s, queue), g, batch), "matrix products");
}

gr_err gr_cuda_gemm(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    return gr_cuda_product(b, (int)lane, a, GR_ROWS_FIXED);
}

/* ---------------------------------------------------------------- opening */

static gr_err open_handles(gr_cuda_products *p) {
    GR_TRY(gr_cublas_load(&p->call));
    GR_TRY(gr_cublas_check(p, p->call.cublasLtCreate(&p->lt), "opening"));
    GR_TRY(gr_cublas_check(p, p->call.cublasCreate_v2(&p->blas), "opening"));
    return gr_cublas_check(p,
        p->call.cublasSetMathMode(
            p->blas, (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
        "opening");
}

gr_err gr_cuda_products_open(gr_backend *b, gr_cuda_products **out) {
    void *memory, *workspace;
    *out = NULL;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_cuda_products), "plans of matrix products"));
    gr_cuda_products *p = *out = memory;
    p->act = b->dtype == GR_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    GR_TRY(open_handles(p));
    GR_TRY(b->alloc(b, GR_CUDA_QUEUES * GR_CUDA_WORKSPACE, "workspace of matrix products", &workspace));
    p->workspace = workspace;
    return GR_OK;
}

void gr_cuda_products_close(gr_cuda_products *p) {
    if (!p)
        return;
    gr_cuda_say_unlisted(p);
    cudaFree(p->workspace);
    if (p->blas)
        p->call.cublasDestroy_v2(p->blas);
    if (p->lt)
        p->call.cublasLtDestroy(p->lt);
    free(p);
}
