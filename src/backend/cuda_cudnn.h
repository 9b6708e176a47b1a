/* cuda_cudnn.h: cuDNN, loaded when backend cuda is opened, and its plans for attention. Of its interfaces the one in C
 * is used, in which an op is a graph of products, elementwise steps and sums that an engine of the library does in one
 * go. Only src/backend/cuda_cudnn*.c know it. */
#ifndef GROUTER_BACKEND_CUDA_CUDNN_H
#define GROUTER_BACKEND_CUDA_CUDNN_H

#include <cudnn.h>

#include "grouter/backend.h"

#define GR_CUDNN_FUNCTIONS(X)                                                                                          \
    X(cudnnGetVersion)                                                                                                 \
    X(cudnnGetErrorString)                                                                                             \
    X(cudnnCreate)                                                                                                     \
    X(cudnnDestroy)                                                                                                    \
    X(cudnnSetStream)                                                                                                  \
    X(cudnnBackendCreateDescriptor)                                                                                    \
    X(cudnnBackendDestroyDescriptor)                                                                                   \
    X(cudnnBackendSetAttribute)                                                                                        \
    X(cudnnBackendGetAttribute)                                                                                        \
    X(cudnnBackendFinalize)                                                                                            \
    X(cudnnBackendExecute)

/* Each function under its own name. */
typedef struct gr_cudnn {
#define GR_CUDNN_MEMBER(name) __typeof__(&name) name;
    GR_CUDNN_FUNCTIONS(GR_CUDNN_MEMBER)
#undef GR_CUDNN_MEMBER
} gr_cudnn;

/* The library stays loaded. 69 where it is not there, or older than GR_CUDNN_OLDEST: attention of windows that are no
 * multiple of 128 tokens needs help from its caller there. */
#define GR_CUDNN_OLDEST 91600
GR_MUST gr_err gr_cudnn_load(gr_cudnn *out);

/* ---------------------------------------------------------------- plans (cuda_cudnn_graph.c) */

/* What a plan is for: some windows and heads of a gr_attention. */
typedef struct gr_cudnn_shape {
    bool backward, causal;
    int64_t n_window, T, H, H_kv, head_dim;
    int64_t ldq, ldk, ldv, ldo;
} gr_cudnn_shape;

/* The GPU that a plan is for: of a handle, or as the library describes it (a finished descriptor of type DEVICEPROP),
 * which needs no GPU. */
typedef struct gr_cudnn_target {
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t device;
} gr_cudnn_target;

enum { GR_CUDNN_DESCRIPTORS_MAX = 128 };

typedef struct gr_cudnn_plan {
    gr_cudnn_shape shape;
    cudnnBackendDescriptor_t plan; /* NULL: the library has no deterministic engine for the shape */
    size_t scratch, workspace_at;  /* bytes; where in them the engine's own begin */
    float scale, one, masked;      /* read by the engine whenever it runs */
    int n;
    cudnnBackendDescriptor_t descriptor[GR_CUDNN_DESCRIPTORS_MAX];
} gr_cudnn_plan;

/* Arrays of the shape's first window and head; those of backward only in backward. */
typedef struct gr_cudnn_arrays {
    const void *q, *k, *v, *dout;
    void *o, *dq, *dk, *dv;
    float *lse;
} gr_cudnn_arrays;

/* The first engine of the library's own suggestions that gives the same bits at every call: not one chosen by the
 * clock. Takes up to seconds where the library compiles it. */
void gr_cudnn_plan_open(
    const gr_cudnn *c, const gr_cudnn_target *target, const gr_cudnn_shape *shape, gr_cudnn_plan *out);
void gr_cudnn_plan_close(const gr_cudnn *c, gr_cudnn_plan *p);
/* Queues the op on the handle's stream. Scratch is aligned to 256 bytes. Returns the library's status. */
GR_MUST cudnnStatus_t gr_cudnn_plan_run(
    const gr_cudnn *c, cudnnHandle_t handle, const gr_cudnn_plan *p, const gr_cudnn_arrays *arrays, void *scratch);

#endif
