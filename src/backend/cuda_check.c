/* cuda_check.c: what CUDA says, as errors of ours. */
#include "cuda.h"

/* Numbers and names that a bug of ours explains; everything else happens to a machine. */
static bool is_ours(int status) {
    return status == cudaErrorInvalidValue || status == cudaErrorInvalidConfiguration ||
           status == cudaErrorInvalidResourceHandle || status == cudaErrorInvalidDevicePointer ||
           status == cudaErrorIllegalAddress || status == cudaErrorMisalignedAddress || status == cudaErrorAssert ||
           status == cudaErrorInvalidDeviceFunction;
}

gr_err gr_cuda_check(int status, const char *what) {
    const cudaError_t error = (cudaError_t)status;
    if (error == cudaSuccess)
        return GR_OK;
    if (error == cudaErrorMemoryAllocation)
        return gr_fail(GR_RESOURCE,
            "backend cuda: expected memory for %s, got none (%s); use fewer windows per micro-batch or a GPU that "
            "nothing "
            "else uses",
            what, cudaGetErrorName(error));
    if (is_ours(status))
        return gr_fail(GR_BUG, "backend cuda: expected success from %s, got %s (%s); please report this", what,
            cudaGetErrorName(error), cudaGetErrorString(error));
    return gr_fail(GR_RESOURCE,
        "backend cuda: expected success from %s, got %s (%s); see nvidia-smi and the kernel's log, and start again, on "
        "another GPU if it happens again",
        what, cudaGetErrorName(error), cudaGetErrorString(error));
}

gr_err gr_cuda_refuse(int status, int n_device, int major, int driver) {
    const int needed = CUDART_VERSION / 1000;
    if (driver == 0)
        return gr_fail(GR_RESOURCE,
            "backend cuda: expected a GPU and its driver, found no NVIDIA driver; install one for CUDA %d or later, or "
            "use "
            "--set parallel.backend=cpu",
            needed);
    if (status == cudaErrorInsufficientDriver || driver / 1000 < needed)
        return gr_fail(GR_RESOURCE,
            "backend cuda: expected a driver for CUDA %d or later, found one for CUDA %d.%d; install a newer one, or "
            "use "
            "--set parallel.backend=cpu",
            needed, driver / 1000, driver % 1000 / 10);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && n_device == 0))
        return gr_fail(GR_RESOURCE,
            "backend cuda: expected a GPU, found a driver and none; see nvidia-smi and CUDA_VISIBLE_DEVICES, or use "
            "--set parallel.backend=cpu");
    if (status == cudaSuccess && major < 8)
        return gr_fail(GR_RESOURCE,
            "backend cuda: expected a GPU of compute capability 8.0 or later (A100, H100), found at most %d.x; use "
            "--set parallel.backend=cpu",
            major);
    return gr_cuda_check(status, "counting GPUs");
}

gr_err gr_cuda_refuse_memory(const char *what, size_t n_byte, size_t n_free, size_t n_total) {
    return gr_fail(GR_RESOURCE,
        "%s: expected %.2f GiB of GPU memory, got none: %.2f of %.2f GiB are free; use a smaller model, fewer windows "
        "per "
        "micro-batch, train.recompute or more ranks with a GPU each",
        what, (double)n_byte / 0x1p30, (double)n_free / 0x1p30, (double)n_total / 0x1p30);
}
