/* cublas_double.c: stands in for cuBLAS where cuda_double.c stands in for the CUDA runtime. Products are sums in
 * double.
 *
 * There are several algorithms for a product, whose times are made up, and two that must not be taken.
 *
 * Ends the process where cuBLAS would be used wrongly: an address less aligned than the algorithm was chosen for, a
 * workspace that two streams share. Some products have no algorithm, and some algorithms do not take every number of
 * rows, so that both ways around are taken. Products too large for a test's time are left undone. */
#include <stdlib.h>
#include <string.h>

#include "cuda_double.h"

#include "backend/cuda_blas.h"

/* ---------------------------------------------------------------- products */

typedef struct matrix {
    cudaDataType type;
    int64_t rows, columns, ld;
    bool turned;
} matrix;

/* One of a batch of column-major products d = left right + beta c. */
typedef struct product {
    matrix left, right, result;
    const char *a, *b, *c;
    char *d;
    bool added;
} product;

int double_n_asked, double_n_product[DOUBLE_ALGORITHMS];

double double_ms_of(uint32_t number) {
    static const double ms[DOUBLE_ALGORITHMS] = {4, 5, 1.5, 2, 1};
    return ms[number];
}

static size_t size_of(cudaDataType type) {
    return type == CUDA_R_16BF ? 2 : 4;
}

static double load(const matrix *x, const char *p, int64_t row, int64_t column) {
    const int64_t at = x->turned ? row * x->ld + column : column * x->ld + row;
    if (x->type == CUDA_R_16BF)
        return (double)gr_f32_from_bf16(((const uint16_t *)(const void *)p)[at]);
    return (double)((const float *)(const void *)p)[at];
}

static void run_product(void *work) {
    const product *p = work;
    const int64_t k = p->left.turned ? p->left.rows : p->left.columns;
    if ((double)p->result.rows * (double)p->result.columns * (double)k > 2e9) {
        free(work);
        return;
    }
#pragma omp parallel for
    for (int64_t j = 0; j < p->result.columns; j++) {
        for (int64_t i = 0; i < p->result.rows; i++) {
            double sum = p->added ? load(&p->result, p->c, i, j) : 0;
            for (int64_t l = 0; l < k; l++)
                sum += load(&p->left, p->a, i, l) * load(&p->right, p->b, l, j);
            const int64_t at = j * p->result.ld + i;
            if (p->result.type == CUDA_R_16BF)
                ((uint16_t *)(void *)p->d)[at] = gr_bf16_from_f32((float)sum);
            else
                ((float *)(void *)p->d)[at] = (float)sum;
        }
    }
    free(work);
}

/* Shapes of the three must agree; ld is at least the rows. */
static void check_product(const product *p) {
    const matrix *l = &p->left, *r = &p->right, *d = &p->result;
    if ((l->turned ? l->columns : l->rows) != d->rows || (r->turned ? r->rows : r->columns) != d->columns ||
        (l->turned ? l->rows : l->columns) != (r->turned ? r->columns : r->rows))
        double_die("a product of matrices that do not fit");
    if (l->ld < l->rows || r->ld < r->rows || d->ld < d->rows)
        double_die("a leading dimension below the rows");
}

/* A workspace belongs to one stream at a time. */
static void check_workspace(const void *workspace, cudaStream_t s) {
    enum { SEEN_MAX = 256 };
    static struct {
        const void *workspace;
        cudaStream_t stream;
    } seen[SEEN_MAX];
    if (!workspace || (uintptr_t)workspace % 256 != 0)
        double_die("no workspace, or one that is not aligned");
    for (int i = 0; i < SEEN_MAX; i++) {
        if (seen[i].workspace == workspace && seen[i].stream != s && double_is_busy(seen[i].stream))
            double_die("a workspace of two streams at once");
        if (!seen[i].workspace || seen[i].workspace == workspace) {
            seen[i].workspace = workspace;
            seen[i].stream = s;
            return;
        }
    }
}

static void enqueue_product(cudaStream_t s, const product *p, double ms) {
    product *copy = double_memory(sizeof *p);
    check_product(p);
    *copy = *p;
    double_spend(s, ms);
    double_enqueue(s, run_product, copy);
}

/* ---------------------------------------------------------------- cuBLASLt */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out) {
    *out = double_memory(1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

typedef struct description {
    cublasOperation_t left, right;
} description;

cublasStatus_t cublasLtMatmulDescInit_internal(
    cublasLtMatmulDesc_t desc, size_t size, cublasComputeType_t compute, cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        double_die("a product that is not summed in fp32");
    memset(desc, 0, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(
    cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which, const void *value, size_t size) {
    description *d = (description *)(void *)desc;
    cublasOperation_t *to = which == CUBLASLT_MATMUL_DESC_TRANSA ? &d->left : &d->right;
    if (size != sizeof *to || (which != CUBLASLT_MATMUL_DESC_TRANSA && which != CUBLASLT_MATMUL_DESC_TRANSB))
        double_die("an attribute that is not known here");
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(
    cublasLtMatrixLayout_t layout, size_t size, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld) {
    const matrix m = {.type = type, .rows = (int64_t)rows, .columns = (int64_t)columns, .ld = ld};
    if (sizeof m > size)
        double_die("no room for a layout");
    memcpy(layout, &m, sizeof m);
    return CUBLAS_STATUS_SUCCESS;
}

typedef struct wishes {
    uint64_t workspace;
    uint32_t reduction, alignment[4];
} wishes;

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t wish, size_t size) {
    memset(wish, 0, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t wish, cublasLtMatmulPreferenceAttributes_t which, const void *value, size_t size) {
    wishes *w = (wishes *)(void *)wish;
    if (which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && size == sizeof w->workspace)
        memcpy(&w->workspace, value, size);
    else if (which == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && size == sizeof w->reduction)
        memcpy(&w->reduction, value, size);
    else if (which >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
             which <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES && size == sizeof *w->alignment)
        memcpy(&w->alignment[which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, size);
    else
        double_die("a preference that is not known here");
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) {
    return 130100;
}

static product described(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t left, cublasLtMatrixLayout_t right,
    cublasLtMatrixLayout_t result) {
    const description *d = (const description *)(const void *)desc;
    product p = {.left = *(const matrix *)(const void *)left,
        .right = *(const matrix *)(const void *)right,
        .result = *(const matrix *)(const void *)result};
    p.left.turned = d->left == CUBLAS_OP_T;
    p.right.turned = d->right == CUBLAS_OP_T;
    check_product(&p);
    return p;
}

static int64_t inner(const product *p) {
    return p->left.turned ? p->left.rows : p->left.columns;
}

/* None for bf16 rows that are not whole units of 16 bytes. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
    cublasLtMatrixLayout_t left, cublasLtMatrixLayout_t right, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t result,
    cublasLtMatmulPreference_t wish, int n_asked, cublasLtMatmulHeuristicResult_t *out, int *n_found) {
    (void)handle;
    const wishes *w = (const wishes *)(const void *)wish;
    const product p = described(desc, left, right, result);
    if (memcmp(c, result, sizeof(matrix)) != 0 || n_asked < 1 || w->reduction != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
        double_die("a question that was not expected");
    double_n_asked++;
    *n_found = 0;
    if (p.left.type == CUDA_R_16BF && (p.left.ld % 8 || p.right.ld % 8))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    double_algorithm a = {.rows = p.result.rows, .columns = p.result.columns, .k = inner(&p)};
    memcpy(a.alignment, w->alignment, sizeof a.alignment);
    if (sizeof a > sizeof out->algo)
        double_die("no room for an algorithm");
    for (; *n_found < n_asked && *n_found < DOUBLE_ALGORITHMS; ++*n_found) {
        cublasLtMatmulHeuristicResult_t *to = out + *n_found;
        a.number = (uint32_t)*n_found;
        memset(to, 0, sizeof *to);
        memcpy(&to->algo, &a, sizeof a);
        to->workspaceSize = w->workspace;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* Up to what it was chosen for, but for multiples of 7. */
static bool takes(const double_algorithm *a, const product *p) {
    const bool same = a->rows == p->result.rows && a->columns == p->result.columns && a->k == inner(p);
    return same || (a->rows == p->result.rows && p->result.columns <= a->columns && inner(p) <= a->k &&
                       p->result.columns % 7 != 0 && inner(p) % 7 != 0);
}

static const double_algorithm *algorithm_of(const cublasLtMatmulAlgo_t *algo) {
    return (const double_algorithm *)(const void *)algo;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t left,
    cublasLtMatrixLayout_t right, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t result,
    const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *out) {
    (void)handle;
    (void)c;
    const product p = described(desc, left, right, result);
    const double_algorithm *a = algorithm_of(algo);
    if (a->number >= DOUBLE_ALGORITHMS || !takes(a, &p))
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(out, 0, sizeof *out);
    out->workspaceSize = (size_t)(a->number == DOUBLE_REFUSED ? 33 : 32) << 20;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCapGetAttribute(const cublasLtMatmulAlgo_t *algo,
    cublasLtMatmulAlgoCapAttributes_t which, void *value, size_t size, size_t *n_written) {
    if (which < CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES || which > CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES ||
        size != sizeof(uint32_t))
        double_die("a property that is not known here");
    memcpy(value, &algorithm_of(algo)->alignment[which - CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES], size);
    *n_written = size;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
    cublasLtMatmulAlgoConfigAttributes_t which, void *value, size_t size, size_t *n_written) {
    static const uint32_t of[DOUBLE_ALGORITHMS] = {CUBLASLT_REDUCTION_SCHEME_NONE,
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, CUBLASLT_REDUCTION_SCHEME_NONE,
        CUBLASLT_REDUCTION_SCHEME_NONE};
    const uint32_t scheme = of[algorithm_of(algo)->number];
    if (which != CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME || size != sizeof scheme)
        double_die("a setting that is not known here");
    memcpy(value, &scheme, size);
    *n_written = size;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
    cublasLtMatrixLayout_t left, const void *b, cublasLtMatrixLayout_t right, const void *beta, const void *c,
    cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t result, const cublasLtMatmulAlgo_t *algo,
    void *workspace, size_t workspace_size, cudaStream_t s) {
    (void)handle;
    (void)workspace_size;
    const double_algorithm *chosen = algorithm_of(algo);
    product p = described(desc, left, right, result);
    p.a = a;
    p.b = b;
    p.c = c;
    p.d = d;
    p.added = *(const float *)beta != 0;
    if (c_layout != result || *(const float *)alpha != 1 || (c != d && !p.added))
        double_die("a product that was not expected");
    if (!takes(chosen, &p))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((uintptr_t)a % chosen->alignment[0] || (uintptr_t)b % chosen->alignment[1] ||
        (uintptr_t)c % chosen->alignment[2] || (uintptr_t)d % chosen->alignment[3])
        double_die("an address less aligned than the algorithm asks for");
    if (chosen->number == DOUBLE_REFUSED || chosen->number == DOUBLE_ROUNDED)
        double_die("an algorithm that needs more workspace than there is, or rounds parts of sums");
    check_workspace(workspace, s);
    double_n_product[chosen->number]++;
    enqueue_product(s, &p, double_ms_of(chosen->number));
    return CUBLAS_STATUS_SUCCESS;
}

/* ---------------------------------------------------------------- cuBLAS */

struct cublasContext {
    cudaStream_t stream;
    void *workspace;
};

cublasStatus_t cublasCreate_v2(cublasHandle_t *out) {
    *out = calloc(1, sizeof **out);
    return *out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    (void)handle;
    return mode & CUBLAS_TF32_TENSOR_OP_MATH ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t s) {
    *handle = (struct cublasContext){.stream = s};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t size) {
    (void)size;
    handle->workspace = workspace;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "a failure";
}

cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t handle, cublasOperation_t turn_a, cublasOperation_t turn_b,
    int64_t m, int64_t n, int64_t k, const void *alpha, const void *a, cudaDataType a_type, int64_t lda,
    long long int stride_a, const void *b, cudaDataType b_type, int64_t ldb, long long int stride_b, const void *beta,
    void *c, cudaDataType c_type, int64_t ldc, long long int stride_c, int64_t n_batch, cublasComputeType_t compute,
    cublasGemmAlgo_t algorithm_asked) {
    const bool ta = turn_a == CUBLAS_OP_T, tb = turn_b == CUBLAS_OP_T;
    if (compute != CUBLAS_COMPUTE_32F || algorithm_asked != CUBLAS_GEMM_DEFAULT || *(const float *)alpha != 1)
        double_die("a product that was not expected");
    check_workspace(handle->workspace, handle->stream);
    for (int64_t i = 0; i < n_batch; i++) {
        const product p = {.left = {.type = a_type, .rows = ta ? k : m, .columns = ta ? m : k, .ld = lda, .turned = ta},
            .right = {.type = b_type, .rows = tb ? n : k, .columns = tb ? k : n, .ld = ldb, .turned = tb},
            .result = {.type = c_type, .rows = m, .columns = n, .ld = ldc},
            .a = (const char *)a + (size_t)(i * stride_a) * size_of(a_type),
            .b = (const char *)b + (size_t)(i * stride_b) * size_of(b_type),
            .c = (char *)c + (size_t)(i * stride_c) * size_of(c_type),
            .d = (char *)c + (size_t)(i * stride_c) * size_of(c_type),
            .added = *(const float *)beta != 0};
        enqueue_product(handle->stream, &p, 1);
    }
    return CUBLAS_STATUS_SUCCESS;
}

gr_err gr_cublas_load(gr_cublas *out) {
#define FILL(name) out->name = name;
    GR_CUBLASLT_FUNCTIONS(FILL)
    GR_CUBLAS_FUNCTIONS(FILL)
#undef FILL
    return GR_OK;
}
