/* cpu_gemm.c: matrix products by oneDNN; the only file that knows it.
 *
 * fp32 uses dnnl_sgemm: shapes and transposes are arguments, so an expert's number of rows may change at every call
 * without a primitive to create or cache, and it looks at the threads when it runs, so it may be called inside and
 * outside of parallel regions. Measured on 2 cores of Zen 4 it equals the matmul primitive of a fixed shape (within
 * 5 % at 1024^3, ahead of it for most attention and weight gradient shapes).
 *
 * bf16 has no such call: it uses matmul primitives whose shapes and leading dimensions are given when they run, one for
 * each layout, type and way of writing c, made once. oneDNN documents them as safe for several threads at once when the
 * scratchpad is the user's; with shapes unknown it has none. Its CPU stream holds no state, so all threads share one.
 *
 * Written for the C API of oneDNN 2; its version 3 makes primitive descriptors in another way. */
#include "cpu.h"

#include <dnnl.h>
#include <stdlib.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *gr_backend_library(void) {
    return "oneDNN v" TEXT(DNNL_VERSION_MAJOR) "." TEXT(DNNL_VERSION_MINOR) "." TEXT(DNNL_VERSION_PATCH);
}

gr_err gr_cpu_gemm_check(int status) {
    if (status == dnnl_success)
        return GR_OK;
    if (status == dnnl_out_of_memory)
        return gr_fail(
            GR_RESOURCE, "oneDNN: expected memory for a matrix product, got none; use a smaller micro-batch");
    return gr_fail(GR_BUG, "oneDNN: expected success from a matrix product, got status %d; please report this", status);
}

int gr_cpu_product_f32(const gr_cpu_products *none, const gr_gemm *g) {
    (void)none;
    return (int)dnnl_sgemm(g->layout == GR_TN ? 'T' : 'N', g->layout == GR_NT ? 'T' : 'N', g->m, g->n, g->k, 1.0f, g->a,
        g->lda, g->b, g->ldb, g->write == GR_ACCUMULATE ? 1.0f : 0.0f, g->c, g->ldc);
}

/* ---------------------------------------------------------------- bf16 */

enum { N_LAYOUT = GR_TN + 1, N_WRITE = GR_ACCUMULATE + 1, N_RESULT = 2 /* c in bf16, in fp32 */ };

struct gr_cpu_products {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t run[N_LAYOUT][N_WRITE][N_RESULT];
};

/* A matrix [rows, columns] in oneDNN's sense; transposed: stored as [columns, rows]. */
static dnnl_status_t matrix(dnnl_memory_desc_t *out, dnnl_data_type_t type, dnnl_dim_t rows, dnnl_dim_t columns,
    dnnl_dim_t ld, bool transposed) {
    const dnnl_dims_t shape = {rows, columns}, plain = {ld, 1}, turned = {1, ld};
    return dnnl_memory_desc_init_by_strides(out, 2, shape, type, transposed ? turned : plain);
}

static dnnl_status_t make_attributes(dnnl_primitive_attr_t attributes, dnnl_post_ops_t after, gr_write write) {
    dnnl_status_t status = dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    if (!status && write == GR_ACCUMULATE)
        status = dnnl_post_ops_append_sum(after, 1.0f);
    return status ? status : dnnl_primitive_attr_set_post_ops(attributes, after);
}

static dnnl_status_t make_descriptor(
    dnnl_engine_t engine, gr_layout layout, gr_write write, dnnl_data_type_t result, dnnl_primitive_desc_t *out) {
    const dnnl_dim_t open = DNNL_RUNTIME_DIM_VAL;
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t product;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t after = NULL;
    dnnl_status_t status = matrix(&a, dnnl_bf16, open, open, open, layout == GR_TN);
    if (!status)
        status = matrix(&b, dnnl_bf16, open, open, open, layout == GR_NT);
    if (!status)
        status = matrix(&c, result, open, open, open, false);
    if (!status)
        status = dnnl_matmul_desc_init(&product, &a, &b, NULL, &c);
    if (!status)
        status = dnnl_primitive_attr_create(&attributes);
    if (!status)
        status = dnnl_post_ops_create(&after);
    if (!status)
        status = make_attributes(attributes, after, write);
    if (!status)
        status = dnnl_primitive_desc_create(out, &product, attributes, engine, NULL);
    if (after)
        dnnl_post_ops_destroy(after);
    if (attributes)
        dnnl_primitive_attr_destroy(attributes);
    return status;
}

static dnnl_status_t make_product(
    dnnl_engine_t engine, gr_layout layout, gr_write write, dnnl_data_type_t result, dnnl_primitive_t *out) {
    dnnl_primitive_desc_t descriptor;
    dnnl_status_t status = make_descriptor(engine, layout, write, result, &descriptor);
    if (status)
        return status;
    const dnnl_memory_desc_t *scratchpad = dnnl_primitive_desc_query_md(descriptor, dnnl_query_scratchpad_md, 0);
    GR_ASSERT(!scratchpad || dnnl_memory_desc_get_size(scratchpad) == 0, "a scratchpad of %zu bytes",
        dnnl_memory_desc_get_size(scratchpad));
    status = dnnl_primitive_create(out, descriptor);
    dnnl_primitive_desc_destroy(descriptor);
    return status;
}

static dnnl_status_t make_products(gr_cpu_products *p) {
    dnnl_status_t status = dnnl_engine_create(&p->engine, dnnl_cpu, 0);
    if (!status)
        status = dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags);
    for (int layout = 0; layout < N_LAYOUT; layout++)
        for (int write = 0; write < N_WRITE; write++)
            for (int result = 0; result < N_RESULT && !status; result++)
                status = make_product(p->engine, (gr_layout)layout, (gr_write)write, result ? dnnl_f32 : dnnl_bf16,
                    &p->run[layout][write][result]);
    return status;
}

/* The instruction set oneDNN uses: what the CPU has, or less where ONEDNN_MAX_CPU_ISA says so. */
static const char *instruction_set(void) {
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
        return "SSE4.1";
    case dnnl_cpu_isa_avx:
        return "AVX";
    case dnnl_cpu_isa_avx2:
    case dnnl_cpu_isa_avx2_vnni:
        return "AVX2";
    default:
        return "another instruction set";
    }
}

gr_err gr_cpu_products_open(gr_cpu_products **out) {
    void *memory;
    *out = NULL;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_cpu_products), "bf16 products"));
    gr_cpu_products *p = memory;
    dnnl_status_t status = make_products(p);
    if (!status) {
        *out = p;
        return GR_OK;
    }
    gr_cpu_products_close(p);
    if (status == dnnl_unimplemented)
        return gr_fail(GR_RESOURCE,
            "train.dtype: expected a CPU for which oneDNN has bf16 products (AVX-512 with BW, VL and DQ), got %s; use "
            "train.dtype \"fp32\"",
            instruction_set());
    return gr_cpu_gemm_check((int)status);
}

void gr_cpu_products_close(gr_cpu_products *p) {
    if (!p)
        return;
    for (int i = 0; i < N_LAYOUT * N_WRITE * N_RESULT; i++) {
        dnnl_primitive_t run = p->run[i / (N_WRITE * N_RESULT)][i / N_RESULT % N_WRITE][i % N_RESULT];
        if (run)
            dnnl_primitive_destroy(run);
    }
    if (p->stream)
        dnnl_stream_destroy(p->stream);
    if (p->engine)
        dnnl_engine_destroy(p->engine);
    free(p);
}

/* What one product needs around its arrays. */
typedef struct operands {
    dnnl_memory_t a, b, c;
} operands;

static dnnl_status_t operands_open(const gr_cpu_products *p, const gr_gemm *g, operands *o) {
    dnnl_memory_desc_t a, b, c;
    dnnl_status_t status = matrix(&a, dnnl_bf16, g->m, g->k, g->lda, g->layout == GR_TN);
    if (!status)
        status = matrix(&b, dnnl_bf16, g->k, g->n, g->ldb, g->layout == GR_NT);
    if (!status)
        status = matrix(&c, g->c_dtype == GR_F32 ? dnnl_f32 : dnnl_bf16, g->m, g->n, g->ldc, false);
    /* oneDNN takes no pointers to const; it writes only c. */
    if (!status)
        status = dnnl_memory_create(&o->a, &a, p->engine, (void *)(uintptr_t)g->a);
    if (!status)
        status = dnnl_memory_create(&o->b, &b, p->engine, (void *)(uintptr_t)g->b);
    return status ? status : dnnl_memory_create(&o->c, &c, p->engine, g->c);
}

static void operands_close(operands *o) {
    if (o->c)
        dnnl_memory_destroy(o->c);
    if (o->b)
        dnnl_memory_destroy(o->b);
    if (o->a)
        dnnl_memory_destroy(o->a);
}

int gr_cpu_product_bf16(const gr_cpu_products *p, const gr_gemm *g) {
    operands o = {0};
    dnnl_status_t status = operands_open(p, g, &o);
    if (!status) {
        const dnnl_exec_arg_t argument[] = {{DNNL_ARG_SRC, o.a}, {DNNL_ARG_WEIGHTS, o.b}, {DNNL_ARG_DST, o.c}};
        status = dnnl_primitive_execute(p->run[g->layout][g->write][g->c_dtype == GR_F32], p->stream, 3, argument);
    }
    operands_close(&o);
    return (int)status;
}
