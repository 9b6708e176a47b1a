/* cuda_driver_double.c: stands in for libcuda.so.1 where cuDNN makes plans for a GPU that is described to it: nothing
 * is run, so each function has only to be there and to succeed. */

#define FUNCTIONS(X)                                                                                                   \
    X(cuCtxGetCurrent)                                                                                                 \
    X(cuCtxGetDevice)                                                                                                  \
    X(cuCtxGetLimit)                                                                                                   \
    X(cuCtxPopCurrent)                                                                                                 \
    X(cuCtxPushCurrent)                                                                                                \
    X(cuDeviceGet)                                                                                                     \
    X(cuDeviceGetAttribute)                                                                                            \
    X(cuDeviceGetCount)                                                                                                \
    X(cuDevicePrimaryCtxRelease)                                                                                       \
    X(cuDevicePrimaryCtxReset)                                                                                         \
    X(cuDevicePrimaryCtxRetain)                                                                                        \
    X(cuDriverGetVersion)                                                                                              \
    X(cuFuncGetAttribute)                                                                                              \
    X(cuFuncSetAttribute)                                                                                              \
    X(cuGetErrorName)                                                                                                  \
    X(cuGetErrorString)                                                                                                \
    X(cuKernelGetAttribute)                                                                                            \
    X(cuKernelSetAttribute)                                                                                            \
    X(cuLaunchCooperativeKernel)                                                                                       \
    X(cuLaunchKernel)                                                                                                  \
    X(cuLaunchKernelEx)                                                                                                \
    X(cuLibraryLoadFromFile)                                                                                           \
    X(cuLibraryUnload)                                                                                                 \
    X(cuLinkAddData)                                                                                                   \
    X(cuLinkAddData_v2)                                                                                                \
    X(cuLinkAddFile_v2)                                                                                                \
    X(cuLinkComplete)                                                                                                  \
    X(cuLinkCreate)                                                                                                    \
    X(cuLinkCreate_v2)                                                                                                 \
    X(cuLinkDestroy)                                                                                                   \
    X(cuMemcpyDtoH_v2)                                                                                                 \
    X(cuModuleGetFunction)                                                                                             \
    X(cuModuleGetGlobal_v2)                                                                                            \
    X(cuModuleLoadData)                                                                                                \
    X(cuModuleLoadDataEx)                                                                                              \
    X(cuModuleLoadFatBinary)                                                                                           \
    X(cuModuleUnload)                                                                                                  \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor)                                                                     \
    X(cuOccupancyMaxPotentialClusterSize)                                                                              \
    X(cuStreamGetCtx)                                                                                                  \
    X(cuStreamSynchronize)                                                                                             \
    X(cuTensorMapEncodeTiled)

#define SUCCEED(name)                                                                                                  \
    int name(void);                                                                                                    \
    int name(void) {                                                                                                   \
        return 0;                                                                                                      \
    }
FUNCTIONS(SUCCEED)

int cuInit(unsigned flags);
int cuLibraryLoadData(void **library);
int cuLibraryGetKernel(void **kernel);
int cuKernelGetFunction(void **function);

/* CUDA_ERROR_NO_DEVICE: what is described is not here. */
int cuInit(unsigned flags) {
    (void)flags;
    return 100;
}

static int place;

int cuLibraryLoadData(void **library) {
    *library = &place;
    return 0;
}

int cuLibraryGetKernel(void **kernel) {
    *kernel = &place;
    return 0;
}

int cuKernelGetFunction(void **function) {
    *function = &place;
    return 0;
}
