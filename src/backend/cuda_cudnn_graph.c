/* cuda_cudnn_graph.c: attention as cuDNN's engines know it: a graph of operations over tensors, most of them never in
 * memory. Engines are found by the form of the graph, so it is that of the library's own front end, operation for
 * operation.
 *
 * Forward   s = scale q k^T, masked;  lse = log sum exp(s);  o = (exp(s - max) / sum) v
 * Backward  delta = <dout, o>;  p = exp(s - lse);  dv = p^T dout;  ds = scale p (dout v^T - delta);
 *           dk = ds^T q;  dq = ds k;  dk and dv of a key/value head summed over its query heads, each one rounded
 * before
 *
 * Tensors are [window, head, row, column]; k and v come turned where they are a right operand's transpose. */
#include "cuda_cudnn.h"
#include "device.h"

#include <math.h>

/* Numbers of the tensors that have memory; the others follow. */
enum { Q = 1, K, V, O, LSE, DOUT, DQ, DK, DV, DELTA, SCALE, ONE, MASKED, N_OUTSIDE };

typedef cudnnBackendDescriptor_t descriptor;

/* A graph being made: after the first failure nothing more is done. */
typedef struct graph {
    const gr_cudnn *c;
    cudnnStatus_t status;
    gr_cudnn_plan *p;
    int64_t n_tensor;
    int64_t n_op;
    descriptor op[32];
} graph;

/* ---------------------------------------------------------------- descriptors */

static descriptor make(graph *g, cudnnBackendDescriptorType_t type) {
    descriptor d = NULL;
    GR_ASSERT(g->p->n < GR_CUDNN_DESCRIPTORS_MAX, "%d descriptors", g->p->n);
    if (!g->status)
        g->status = g->c->cudnnBackendCreateDescriptor(type, &d);
    if (d)
        g->p->descriptor[g->p->n++] = d;
    return d;
}

static void set(graph *g, descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
    const void *value) {
    if (!g->status)
        g->status = g->c->cudnnBackendSetAttribute(d, name, type, n, value);
}

static void set_descriptor(graph *g, descriptor d, cudnnBackendAttributeName_t name, descriptor value) {
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void set_type(graph *g, descriptor d, cudnnBackendAttributeName_t name, cudnnDataType_t type) {
    set(g, d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static void finish(graph *g, descriptor d) {
    if (!g->status)
        g->status = g->c->cudnnBackendFinalize(d);
}

/* ---------------------------------------------------------------- tensors */

typedef enum place { IN_MEMORY, VIRTUAL, BY_VALUE } place;

typedef struct layout {
    int64_t size[4], stride[4];
} layout;

static descriptor tensor(graph *g, int64_t number, place at, cudnnDataType_t type, layout l) {
    const int64_t alignment = 16;
    const bool yes = true;
    descriptor d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set_type(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, l.size);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, l.stride);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (at == VIRTUAL)
        set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
    if (at == BY_VALUE)
        set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    finish(g, d);
    return d;
}

static layout turned(layout l) {
    return (layout){{l.size[0], l.size[1], l.size[3], l.size[2]}, {l.stride[0], l.stride[1], l.stride[3], l.stride[2]}};
}

/* Of heads in rows of ld elements. */
static layout layout_of_heads(const graph *g, int64_t n_head, int64_t ld) {
    const gr_cudnn_shape *s = &g->p->shape;
    return (layout){{s->n_window, n_head, s->T, s->head_dim}, {s->T * ld, s->head_dim, ld, 1}};
}

static descriptor heads(graph *g, int64_t number, int64_t n_head, int64_t ld) {
    return tensor(g, number, IN_MEMORY, CUDNN_DATA_BFLOAT16, layout_of_heads(g, n_head, ld));
}

static descriptor heads_turned(graph *g, int64_t number, int64_t n_head, int64_t ld) {
    return tensor(g, number, IN_MEMORY, CUDNN_DATA_BFLOAT16, turned(layout_of_heads(g, n_head, ld)));
}

static layout layout_of_scores(const graph *g) {
    const gr_cudnn_shape *s = &g->p->shape;
    const int64_t T = s->T;
    return (layout){{s->n_window, s->H, T, T}, {s->H * T * T, T * T, T, 1}};
}

static descriptor scores(graph *g, cudnnDataType_t type) {
    return tensor(g, g->n_tensor++, VIRTUAL, type, layout_of_scores(g));
}

/* One number per row of each query head. */
static layout layout_of_rows(const graph *g) {
    const gr_cudnn_shape *s = &g->p->shape;
    return (layout){{s->n_window, s->H, s->T, 1}, {s->H * s->T, s->T, 1, 1}};
}

static descriptor rows(graph *g) {
    return tensor(g, g->n_tensor++, VIRTUAL, CUDNN_DATA_FLOAT, layout_of_rows(g));
}

static descriptor rows_in_memory(graph *g, int64_t number) {
    return tensor(g, number, IN_MEMORY, CUDNN_DATA_FLOAT, layout_of_rows(g));
}

static descriptor number(graph *g, int64_t number) {
    return tensor(g, number, BY_VALUE, CUDNN_DATA_FLOAT, (layout){{1, 1, 1, 1}, {1, 1, 1, 1}});
}

/* ---------------------------------------------------------------- operations */

static void add_op(graph *g, descriptor op) {
    finish(g, op);
    GR_ASSERT(g->n_op < (int64_t)(sizeof g->op / sizeof *g->op), "%lld operations", (long long)g->n_op);
    g->op[g->n_op++] = op;
}

/* c = a b */
static void product(graph *g, descriptor a, descriptor b, descriptor c) {
    descriptor how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    finish(g, how);
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    add_op(g, op);
}

typedef struct step {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t type; /* computed in */
    int64_t axis;         /* of GEN_INDEX */
    descriptor x, b, mask;
} step;

/* y = step(x, b), elementwise; returns y. */
static descriptor apply(graph *g, step s, descriptor y) {
    const float one = 1;
    descriptor how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &s.mode);
    set_type(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, s.type);
    if (s.mode == CUDNN_POINTWISE_GEN_INDEX)
        set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &s.axis);
    finish(g, how);
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, s.x);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    if (s.b)
        set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, s.b);
    if (s.mask)
        set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, s.mask);
    set(g, op, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, CUDNN_TYPE_FLOAT, 1, &one);
    set(g, op, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, CUDNN_TYPE_FLOAT, 1, &one);
    add_op(g, op);
    return y;
}

static descriptor with(graph *g, cudnnPointwiseMode_t mode, descriptor x, descriptor b, descriptor y) {
    return apply(g, (step){.mode = mode, .type = CUDNN_DATA_FLOAT, .x = x, .b = b}, y);
}

/* y = x summed, or its largest, over the dimensions where y has one element. */
static descriptor reduce(graph *g, cudnnReduceTensorOp_t mode, descriptor x, descriptor y) {
    const bool no = false; /* that of an op alone; engines are asked as a whole */
    descriptor how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set_type(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    set(g, how, CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC, CUDNN_TYPE_BOOLEAN, 1, &no);
    finish(g, how);
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add_op(g, op);
    return y;
}

/* The elements of x in the layout of y. */
static descriptor reshape(graph *g, descriptor x, descriptor y) {
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    add_op(g, op);
    return y;
}

/* ---------------------------------------------------------------- attention */

/* Scores whose key lies behind their query become -inf. */
static descriptor mask(graph *g, descriptor s) {
    const step position = {.mode = CUDNN_POINTWISE_GEN_INDEX, .type = CUDNN_DATA_FLOAT, .x = s};
    step query = position, key = position;
    query.axis = 2;
    key.axis = 3;
    descriptor of_query = apply(g, query, scores(g, CUDNN_DATA_INT32));
    descriptor of_key = apply(g, key, scores(g, CUDNN_DATA_INT32));
    const step compare = {.mode = CUDNN_POINTWISE_CMP_GE, .type = CUDNN_DATA_BOOLEAN, .x = of_query, .b = of_key};
    const step choose = {.mode = CUDNN_POINTWISE_BINARY_SELECT,
        .type = CUDNN_DATA_FLOAT,
        .x = s,
        .b = number(g, MASKED),
        .mask = apply(g, compare, scores(g, CUDNN_DATA_BOOLEAN))};
    return apply(g, choose, scores(g, CUDNN_DATA_FLOAT));
}

/* scale q k^T */
static descriptor scaled_scores(graph *g, descriptor q, descriptor k_turned, descriptor scale) {
    descriptor s = scores(g, CUDNN_DATA_FLOAT);
    product(g, q, k_turned, s);
    return with(g, CUDNN_POINTWISE_MUL, s, scale, scores(g, CUDNN_DATA_FLOAT));
}

static void forward(graph *g) {
    const gr_cudnn_shape *a = &g->p->shape;
    descriptor v = heads(g, V, a->H_kv, a->ldv), k_turned = heads_turned(g, K, a->H_kv, a->ldk);
    descriptor q = heads(g, Q, a->H, a->ldq), lse = rows_in_memory(g, LSE), o = heads(g, O, a->H, a->ldo);
    descriptor s = scaled_scores(g, q, k_turned, number(g, SCALE));
    if (a->causal)
        s = mask(g, s);
    descriptor largest = reduce(g, CUDNN_REDUCE_TENSOR_MAX, s, rows(g));
    descriptor less = with(g, CUDNN_POINTWISE_SUB, s, largest, scores(g, CUDNN_DATA_FLOAT));
    descriptor e = with(g, CUDNN_POINTWISE_EXP, less, NULL, scores(g, CUDNN_DATA_FLOAT));
    descriptor sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, rows(g));
    with(g, CUDNN_POINTWISE_ADD, largest, with(g, CUDNN_POINTWISE_LOG, sum, NULL, rows(g)), lse);
    descriptor p = with(g, CUDNN_POINTWISE_DIV, e, sum, scores(g, CUDNN_DATA_BFLOAT16));
    product(g, p, v, o);
}

/* dk or dv, from p^T or ds^T and the rows of all query heads. */
static void to_keys(graph *g, descriptor from, descriptor of_queries, descriptor out) {
    const gr_cudnn_shape *a = &g->p->shape;
    const int64_t hd = a->head_dim;
    descriptor from_turned = reshape(g, from,
        tensor(g, g->n_tensor++, VIRTUAL, CUDNN_DATA_BFLOAT16,
            (layout){{a->n_window, a->H, a->T, a->T}, {a->H * a->T * a->T, a->T * a->T, 1, a->T}}));
    if (a->H == a->H_kv) {
        product(g, from_turned, of_queries, out);
        return;
    }
    descriptor each = tensor(g, g->n_tensor++, VIRTUAL, CUDNN_DATA_BFLOAT16,
        (layout){{a->n_window, a->H, a->T, hd}, {a->H * a->T * hd, a->T * hd, hd, 1}});
    product(g, from_turned, of_queries, each);
    reduce(g, CUDNN_REDUCE_TENSOR_ADD, each, out);
}

static descriptor deltas(graph *g, descriptor dout, descriptor o) {
    const gr_cudnn_shape *a = &g->p->shape;
    const int64_t width = a->H * a->head_dim;
    descriptor each = with(g, CUDNN_POINTWISE_MUL, dout, o,
        tensor(g, g->n_tensor++, VIRTUAL, CUDNN_DATA_FLOAT,
            (layout){{a->n_window, a->H, a->T, a->head_dim}, {a->T * width, a->T * a->head_dim, width, 1}}));
    descriptor sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, each, rows(g));
    return with(g, CUDNN_POINTWISE_MUL, sum, number(g, ONE), rows_in_memory(g, DELTA));
}

static void backward(graph *g) {
    const gr_cudnn_shape *a = &g->p->shape;
    descriptor scale = number(g, SCALE), lse = rows_in_memory(g, LSE), dout = heads(g, DOUT, a->H, a->ldo);
    descriptor o = heads(g, O, a->H, a->ldo), v_turned = heads_turned(g, V, a->H_kv, a->ldv);
    descriptor k_turned = heads_turned(g, K, a->H_kv, a->ldk), q = heads(g, Q, a->H, a->ldq);
    descriptor dv = heads(g, DV, a->H_kv, a->ldv), dk = heads(g, DK, a->H_kv, a->ldk), dq = heads(g, DQ, a->H, a->ldq);
    descriptor delta = deltas(g, dout, o);

    descriptor s = scaled_scores(g, q, k_turned, scale);
    s = with(g, CUDNN_POINTWISE_SUB, s, lse, scores(g, CUDNN_DATA_FLOAT));
    if (a->causal)
        s = mask(g, s);
    descriptor p = with(g, CUDNN_POINTWISE_EXP, s, NULL, scores(g, CUDNN_DATA_FLOAT));
    to_keys(g, p, dout, dv);

    descriptor dp = scores(g, CUDNN_DATA_FLOAT);
    product(g, dout, v_turned, dp);
    descriptor less = with(g, CUDNN_POINTWISE_SUB, dp, delta, scores(g, CUDNN_DATA_FLOAT));
    descriptor ds = with(g, CUDNN_POINTWISE_MUL, less, p, scores(g, CUDNN_DATA_FLOAT));
    ds = with(g, CUDNN_POINTWISE_MUL, ds, scale, scores(g, CUDNN_DATA_FLOAT));
    to_keys(g, ds, q, dk);

    descriptor k =
        reshape(g, k_turned, tensor(g, g->n_tensor++, VIRTUAL, CUDNN_DATA_FLOAT, layout_of_heads(g, a->H_kv, a->ldk)));
    product(g, ds, k, dq);
}

/* ---------------------------------------------------------------- plans */

static descriptor operations(graph *g, const gr_cudnn_target *target) {
    descriptor d = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_op, g->op);
    if (target->handle)
        set(g, d, (cudnnBackendAttributeName_t)800 /* its handle */, CUDNN_TYPE_HANDLE, 1, &target->handle);
    finish(g, d);
    return d;
}

static bool is_deterministic(graph *g, descriptor config) {
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t n = 0;
    descriptor engine = make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (!g->status)
        g->status = g->c->cudnnBackendGetAttribute(
            config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
    if (!g->status)
        g->status = g->c->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
            CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, note);
    bool found = false;
    for (int64_t i = 0; i < n && !g->status; i++)
        found = found || note[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    return !g->status && !found;
}

/* The library's suggestions, best first, into config[SUGGESTIONS]. */
enum { SUGGESTIONS = 8 };
static int64_t suggestions(graph *g, const gr_cudnn_target *target, descriptor ops, descriptor *config) {
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t n = 0;
    descriptor d = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_descriptor(g, d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, ops);
    set(g, d, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (target->device)
        set_descriptor(g, d, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target->device);
    finish(g, d);
    for (int i = 0; i < SUGGESTIONS; i++)
        config[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (!g->status)
        g->status = g->c->cudnnBackendGetAttribute(
            d, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, SUGGESTIONS, &n, config);
    return g->status ? 0 : n < SUGGESTIONS ? n : SUGGESTIONS;
}

/* A plan of this suggestion; NULL where the GPU or the library cannot do it. */
static descriptor plan_of(graph *g, const gr_cudnn_target *target, descriptor config, int64_t *workspace) {
    int64_t n;
    descriptor d = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_descriptor(g, d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (target->handle)
        set(g, d, (cudnnBackendAttributeName_t)400 /* its handle */, CUDNN_TYPE_HANDLE, 1, &target->handle);
    if (target->device)
        set_descriptor(g, d, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target->device);
    finish(g, d);
    if (!g->status)
        g->status = g->c->cudnnBackendGetAttribute(
            d, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, workspace);
    return g->status ? NULL : d;
}

static void choose(graph *g, const gr_cudnn_target *target) {
    gr_cudnn_plan *p = g->p;
    descriptor config[SUGGESTIONS];
    const int64_t n = suggestions(g, target, operations(g, target), config);
    for (int64_t i = 0; i < n && !p->plan; i++) {
        int64_t workspace = 0;
        if (is_deterministic(g, config[i]))
            p->plan = plan_of(g, target, config[i], &workspace);
        g->status = CUDNN_STATUS_SUCCESS; /* the next one may do */
        p->scratch = p->workspace_at + (size_t)workspace;
    }
}

void gr_cudnn_plan_open(
    const gr_cudnn *c, const gr_cudnn_target *target, const gr_cudnn_shape *shape, gr_cudnn_plan *out) {
    *out =
        (gr_cudnn_plan){.shape = *shape, .scale = 1.0f / sqrtf((float)shape->head_dim), .one = 1, .masked = -INFINITY};
    out->workspace_at = shape->backward ? gr_library_sums(shape->n_window * shape->H * shape->T) : 0;
    graph g = {.c = c, .p = out, .n_tensor = N_OUTSIDE};
    (shape->backward ? backward : forward)(&g);
    choose(&g, target);
}

void gr_cudnn_plan_close(const gr_cudnn *c, gr_cudnn_plan *p) {
    for (int i = p->n - 1; i >= 0; i--)
        c->cudnnBackendDestroyDescriptor(p->descriptor[i]);
    *p = (gr_cudnn_plan){0};
}

/* ---------------------------------------------------------------- running */

/* What a plan reads and writes, by number. The library takes addresses only as ones it may write to. */
typedef struct pack {
    int64_t n, number[N_OUTSIDE];
    void *address[N_OUTSIDE];
} pack;

static void put(pack *k, int64_t number, const void *address) {
    k->number[k->n] = number;
    k->address[k->n++] = (void *)(uintptr_t)address;
}

static pack pack_of(const gr_cudnn_plan *p, const gr_cudnn_arrays *a, void *scratch) {
    pack k = {0};
    put(&k, Q, a->q);
    put(&k, K, a->k);
    put(&k, V, a->v);
    put(&k, O, a->o);
    put(&k, LSE, a->lse);
    put(&k, SCALE, &p->scale);
    if (p->shape.causal)
        put(&k, MASKED, &p->masked);
    if (p->shape.backward) {
        put(&k, DOUT, a->dout);
        put(&k, DQ, a->dq);
        put(&k, DK, a->dk);
        put(&k, DV, a->dv);
        put(&k, DELTA, scratch);
        put(&k, ONE, &p->one);
    }
    return k;
}

cudnnStatus_t gr_cudnn_plan_run(
    const gr_cudnn *c, cudnnHandle_t handle, const gr_cudnn_plan *p, const gr_cudnn_arrays *arrays, void *scratch) {
    const pack k = pack_of(p, arrays, scratch);
    void *workspace = (char *)scratch + p->workspace_at;
    descriptor d;
    cudnnStatus_t status = c->cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &d);
    if (status)
        return status;
    status = c->cudnnBackendSetAttribute(d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, k.n, k.address);
    if (!status)
        status = c->cudnnBackendSetAttribute(d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, k.n, k.number);
    if (!status)
        status = c->cudnnBackendSetAttribute(d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (!status)
        status = c->cudnnBackendFinalize(d);
    if (!status)
        status = c->cudnnBackendExecute(handle, p->plan, d);
    c->cudnnBackendDestroyDescriptor(d);
    return status;
}
