/* cuda_blas.c: loading cuBLAS. */
#include "cuda_blas.h"

#include <dlfcn.h>
#include <string.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define VERSION TEXT(CUBLAS_VER_MAJOR)

/* Where the system looks, then where the program was built. */
static gr_err open_library(const char *name, const char *there, void **out) {
    *out = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!*out)
        *out = dlopen(there, RTLD_NOW | RTLD_LOCAL);
    if (*out)
        return GR_OK;
    return gr_fail(GR_RESOURCE,
        "backend cuda: expected library %s, got none (%s); install cuBLAS " VERSION
        " or name its folder in LD_LIBRARY_PATH, or use --set parallel.backend=cpu",
        name, dlerror());
}

/* A pointer to a function is not one to an object in C, but has its bytes in POSIX. */
static gr_err find(void *library, const char *name, void *pointer) {
    void *found = dlsym(library, name);
    if (!found)
        return gr_fail(GR_RESOURCE,
            "backend cuda: expected cuBLAS " VERSION
            " with %s, got one without; install the version that --version names",
            name);
    memcpy(pointer, &found, sizeof found);
    return GR_OK;
}

gr_err gr_cublas_load(gr_cublas *out) {
    void *lt, *blas;
    GR_TRY(open_library("libcublasLt.so." VERSION, GR_CUDA_LIBRARY_DIR "/libcublasLt.so." VERSION, &lt));
    GR_TRY(open_library("libcublas.so." VERSION, GR_CUDA_LIBRARY_DIR "/libcublas.so." VERSION, &blas));
#define FIND_LT(name) GR_TRY(find(lt, #name, &out->name));
#define FIND(name) GR_TRY(find(blas, #name, &out->name));
    GR_CUBLASLT_FUNCTIONS(FIND_LT)
    GR_CUBLAS_FUNCTIONS(FIND)
    return GR_OK;
}
