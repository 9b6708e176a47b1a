/* cuda_open.c: finding a GPU, opening and closing backend cuda. */
#include "cuda.h"

#include <stdlib.h>

/* What can be known before a device is chosen. */
typedef struct survey {
    cudaError_t status;
    int n_device, major; /* the best compute capability */
    int driver;
} survey;

static survey look(void) {
    survey s = {0};
    (void)cudaDriverGetVersion(&s.driver); /* stays 0 */
    s.status = cudaGetDeviceCount(&s.n_device);
    for (int i = 0; i < s.n_device && !s.status; i++) {
        int major = 0;
        s.status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
        s.major = major > s.major ? major : s.major;
    }
    (void)cudaGetLastError(); /* no launch is to find it */
    return s;
}

static bool is_usable(const survey *s) {
    return s->status == cudaSuccess && s->n_device > 0 && s->major >= 8;
}

bool gr_cuda_is_here(void) {
    const survey s = look();
    return is_usable(&s);
}

static void say(const gr_cuda *s, int n_device) {
    struct cudaDeviceProp found;
    size_t n_free = 0, n_total = 0;
    if (cudaGetDeviceProperties(&found, s->device) || cudaMemGetInfo(&n_free, &n_total)) {
        (void)cudaGetLastError();
        return;
    }
    gr_info("backend cuda: %s, device %d of %d, %.1f of %.1f GiB free, CUDA %d.%d, %s", found.name, s->device, n_device,
        (double)n_free / 0x1p30, (double)n_total / 0x1p30, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10,
        gr_cuda_library());
    if (found.major != 9)
        gr_warn(
            "backend cuda: its tests have run on GPUs of compute capability 9.0 only, this one is of %d.%d; before a "
            "long run try scripts/gpu_acceptance.sh",
            found.major, found.minor);
}

static void cuda_close(gr_backend *b) {
    gr_cuda *s = b->state;
    if (s) {
        (void)cudaDeviceSynchronize(); /* a failed device cannot be waited for */
        for (int lane = 0; lane < GR_N_LANE; lane++)
            cudaFree(s->scratch[lane].p);
        gr_cuda_cudnn_close(s->cudnn);
        gr_cuda_products_close(s->products);
        gr_cuda_staging_close(s);
        gr_cuda_queues_close(s);
    }
    free(s);
    free(b);
}

/* Compute capability 8.0 is the least there is; wgmma is 9.0's alone. */
static gr_err find_kernels(gr_cuda *s, gr_experts *best) {
    const int device = s->device;
    int major = 0, minor = 0, shared = 0;
    cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (!status)
        status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (!status)
        status = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    s->shared_max = (size_t)shared;
    *best = major == 9 && minor == 0 ? GR_EXPERTS_WGMMA : GR_EXPERTS_MMA;
    return gr_cuda_check((int)status, "reading what a GPU has");
}

static gr_err open_state(gr_backend *b, const survey *found) {
    void *state;
    GR_TRY(gr_alloc(&state, 1, sizeof(gr_cuda), "backend cuda"));
    gr_cuda *s = b->state = state;
    s->device = gr_device_choose(gr_device_local_rank(), found->n_device);
    GR_TRY(gr_cuda_check((int)cudaSetDevice(s->device), "choosing a GPU"));
    GR_TRY(gr_cuda_queues_open(s));
    say(s, found->n_device);
    GR_TRY(gr_cuda_staging_open(s));
    GR_TRY(find_kernels(s, &b->experts_best));
    GR_TRY(gr_cuda_products_open(b, &s->products));
    GR_TRY(gr_cuda_cudnn_open(b->dtype, &s->cudnn));
    /* in fp32 neither takes a call, and asking for either is no mistake */
    b->attention_best = s->cudnn || b->dtype != GR_BF16 ? GR_ATTENTION_CUDNN : GR_ATTENTION_FLASH;
    return GR_OK;
}

static const gr_backend table = {
    .name = "cuda",
    .logits_room = GR_DEVICE_LOGITS_ROOM,
    .alloc = gr_cuda_alloc,
    .release = gr_cuda_release,
    .room = gr_cuda_room,
    .owns = gr_cuda_owns,
    .alloc_host = gr_cuda_alloc_host,
    .release_host = gr_cuda_release_host,
    .upload = gr_cuda_upload,
    .download = gr_cuda_download,
    .fill_zero = gr_cuda_fill_zero,
    .copy = gr_cuda_copy,
    .wait = gr_cuda_wait,
    .lane_native = gr_cuda_lane_native,
    .sync = gr_cuda_sync,
    .sync_lane = gr_cuda_sync_lane,
    .use_plans = gr_cuda_use_plans,
    .tune = gr_cuda_tune,
    .save_plans = gr_cuda_save_plans,
    .close = cuda_close,
};

gr_err gr_cuda_open(gr_backend **out, gr_dtype dtype) {
    void *memory;
    *out = NULL;
    GR_ASSERT(dtype == GR_F32 || dtype == GR_BF16, "storage type %s", gr_dtype_name(dtype));
    const survey found = look();
    if (!is_usable(&found))
        return gr_cuda_refuse((int)found.status, found.n_device, found.major, found.driver);
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_backend), "backend cuda"));
    gr_backend *b = memory;
    *b = table;
    b->dtype = dtype;
    b->elem_size = gr_dtype_size(dtype);
    gr_cuda_set_ops(b);
    gr_err err = open_state(b, &found);
    if (err) {
        cuda_close(b);
        return err;
    }
    *out = b;
    return GR_OK;
}
