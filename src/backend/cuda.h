/* cuda.h: what the files of backend cuda share. Compiled in only where the CUDA toolkit was found.
 *
 * Lanes are streams that order nothing among themselves; a fixed number of further streams ("workers") take the experts
 * of an op at once, between a fork from its lane and a join to it. All calls are of one thread. */
#ifndef GROUTER_BACKEND_CUDA_H
#define GROUTER_BACKEND_CUDA_H

#include <cuda_runtime_api.h>

#include "kernels/geometry.h"

#include "device.h"

enum {
    GR_CUDA_WORKERS = 4,
    GR_CUDA_QUEUES = GR_N_LANE + GR_CUDA_WORKERS /* a queue: a lane's stream, or GR_N_LANE + w */
};

/* Matrix products (cuda_gemm.c). */
typedef struct gr_cuda_products gr_cuda_products;

/* Attention by cuDNN (cuda_cudnn.c). */
typedef struct gr_cuda_cudnn gr_cuda_cudnn;

/* Device memory that ops of one lane use one after the other. */
typedef struct gr_cuda_scratch_room {
    void *p;
    size_t size;
} gr_cuda_scratch_room;

typedef struct gr_cuda {
    int device;
    size_t shared_max; /* bytes of shared memory that a block may ask for */
    cudaStream_t queue[GR_CUDA_QUEUES];
    cudaEvent_t mark[GR_CUDA_QUEUES]; /* of whoever waits for a queue: recorded just before */
    gr_cuda_products *products;
    gr_cuda_cudnn *cudnn;                    /* NULL: there is none, or not for this type */
    gr_cuda_scratch_room scratch[GR_N_LANE]; /* grow in the first step, then stay */
    /* Uploads go through the ring, so that the host's array is free at once and the copy needs no wait. */
    gr_ring ring;
    uint8_t *ring_memory; /* pinned */
    cudaEvent_t ring_copied[GR_RING_PARTS];
    uint8_t *landing; /* pinned: where downloads to ordinary memory arrive */
} gr_cuda;

/* ---------------------------------------------------------------- opening (cuda_open.c) */

/* Is there a GPU this backend can use? Says nothing. */
bool gr_cuda_is_here(void);
/* 69 with what was found and what to do where there is no driver, no GPU, or none of compute capability 8.0. */
gr_err gr_cuda_open(gr_backend **out, gr_dtype dtype);
const char *gr_cuda_library(void); /* "cuBLAS 13.1.0" (cuda_gemm.c) */

/* ---------------------------------------------------------------- errors (cuda_check.c) */

/* A cudaError_t, from the runtime or from a launcher: 69 for what the machine lacks or lost, 70 for what we did wrong.
 * `what` was being done. */
GR_MUST gr_err gr_cuda_check(int status, const char *what);
/* Why there is no GPU for us, from what the runtime says: the status of counting devices (n_device of them, the best of
 * compute capability `major`) and the version of CUDA the driver is for (1000 major + 10 minor, 0: no driver). */
GR_MUST gr_err gr_cuda_refuse(int status, int n_device, int major, int driver);
/* Not enough free memory for n_byte of `what`. */
GR_MUST gr_err gr_cuda_refuse_memory(const char *what, size_t n_byte, size_t n_free, size_t n_total);

/* ---------------------------------------------------------------- memory and order (cuda_memory.c, cuda_queue.c) */

gr_err gr_cuda_alloc(gr_backend *b, size_t n_byte, const char *what, void **out);
void gr_cuda_release(gr_backend *b, void *p);
uint64_t gr_cuda_room(gr_backend *b);
bool gr_cuda_owns(const gr_backend *b, const void *p);
gr_err gr_cuda_alloc_host(gr_backend *b, size_t n_byte, const char *what, void **out);
void gr_cuda_release_host(gr_backend *b, void *p);
gr_err gr_cuda_upload(gr_backend *b, gr_lane lane, void *to, const void *from_host, size_t n_byte);
gr_err gr_cuda_download(gr_backend *b, gr_lane lane, void *to_host, const void *from, size_t n_byte);
gr_err gr_cuda_fill_zero(gr_backend *b, gr_lane lane, void *p, size_t n_byte);
gr_err gr_cuda_copy(gr_backend *b, gr_lane lane, void *to, const void *from, size_t n_byte);
GR_MUST gr_err gr_cuda_staging_open(gr_cuda *s);
void gr_cuda_staging_close(gr_cuda *s); /* accepts half-open */

/* At least n_byte for ops of the lane, aligned to 256 bytes, until the lane's next op that asks. Not zeroed. */
GR_MUST gr_err gr_cuda_scratch(gr_backend *b, gr_lane lane, size_t n_byte, void **out);

gr_err gr_cuda_wait(gr_backend *b, gr_lane waiting, gr_lane for_lane);
void *gr_cuda_lane_native(gr_backend *b, gr_lane lane);
gr_err gr_cuda_sync(gr_backend *b);
gr_err gr_cuda_sync_lane(gr_backend *b, gr_lane lane);
/* The host waits for one queue, or for an event; counted, and watched where b->watch is. */
GR_MUST gr_err gr_cuda_wait_queue(gr_backend *b, int queue);
GR_MUST gr_err gr_cuda_wait_event(gr_backend *b, cudaEvent_t event);
/* The first n_worker workers start after what `lane` has queued; the lane goes on after theirs. */
GR_MUST gr_err gr_cuda_fork(gr_cuda *s, gr_lane lane, int n_worker);
GR_MUST gr_err gr_cuda_join(gr_cuda *s, gr_lane lane, int n_worker);
GR_MUST gr_err gr_cuda_queues_open(gr_cuda *s);
void gr_cuda_queues_close(gr_cuda *s); /* accepts half-open */

/* ---------------------------------------------------------------- ops (cuda_gemm.c, cuda_peak.c, cuda_ffn.c,
 * cuda_attention.c, cuda_loss.c, cuda_ops.c) */

GR_MUST gr_err gr_cuda_products_open(gr_backend *b, gr_cuda_products **out);
void gr_cuda_products_close(gr_cuda_products *p); /* accepts NULL and half-open */
/* Any shape, on any queue; a and b act, c as c_dtype says. */
GR_MUST gr_err gr_cuda_product(gr_backend *b, int queue, const gr_gemm *g, gr_rows rows);
/* n products of one shape (k > 0), the arrays of the next one so many elements on; 0: the same array for all. */
typedef struct gr_cuda_batch {
    int64_t n, stride_a, stride_b, stride_c;
} gr_cuda_batch;
GR_MUST gr_err gr_cuda_product_batch(gr_backend *b, int queue, const gr_gemm *g, gr_cuda_batch batch);

gr_err gr_cuda_use_plans(gr_backend *b, const gr_product_plans *plans, const char *path); /* cuda_plans.c */
gr_err gr_cuda_save_plans(gr_backend *b, gr_out *out);
gr_err gr_cuda_tune(gr_backend *b, bool on); /* cuda_tune.c */
gr_err gr_cuda_gemm(gr_backend *b, gr_lane lane, const gr_gemm *a);
gr_err gr_cuda_peak(gr_backend *b, double *flops_per_s);
gr_err gr_cuda_ffn_forward(gr_backend *b, gr_lane lane, const gr_ffn *a);
gr_err gr_cuda_ffn_backward(gr_backend *b, gr_lane lane, const gr_ffn *a);
gr_err gr_cuda_attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a);
gr_err gr_cuda_attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a);
size_t gr_cuda_attention_scratch(const gr_backend *b, const gr_attention *a, bool backward);
gr_err gr_cuda_cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a);
gr_attend_limits gr_cuda_attend_limits(void); /* cuda_limits.c */
size_t gr_cuda_attend_room(void);             /* bytes of scores of a part of attention by cuDNN; likewise */

/* Where cuDNN is not compiled in (then these are in cuda_cudnn_absent.c), not found or older than 9.16, *out is NULL,
 * and the log says so once. */
GR_MUST gr_err gr_cuda_cudnn_open(gr_dtype dtype, gr_cuda_cudnn **out);
void gr_cuda_cudnn_close(gr_cuda_cudnn *c); /* accepts NULL */
/* *done false: nothing is queued, since there is no cuDNN or it has nothing for this op that gives the same bits at
 * every call. The answer for a shape stays the same. */
GR_MUST gr_err gr_cuda_cudnn_attention(gr_backend *b, gr_lane lane, const gr_attention *a, bool backward, bool *done);
/* Fills in every op of the table. */
void gr_cuda_set_ops(gr_backend *b);

/* ---------------------------------------------------------------- names for profilers (cuda_range.c) */

/* What the host queues between the two is shown under that name. */
void gr_cuda_range_push(const char *name);
void gr_cuda_range_pop(void);

#endif
