/* cuda_cudnn_load.c: finding and loading cuDNN. */
#include "cuda_cudnn.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "libcudnn.so.9"

/* The first file of a pattern that loads; NULL. */
static void *open_first(const char *pattern) {
    glob_t found;
    void *library = NULL;
    if (glob(pattern, 0, NULL, &found) != 0)
        return NULL;
    for (size_t i = 0; i < found.gl_pathc && !library; i++)
        library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    globfree(&found);
    return library;
}

/* Python wheels bring the library in a folder that no loader looks at. */
static void *open_wheel(void) {
    static const char *const folder[] = {"/usr/local/lib/python3*/site-packages",
        "/usr/local/lib/python3*/dist-packages", "/usr/lib/python3*/site-packages", "/usr/lib/python3/dist-packages"};
    const char *environment = getenv("VIRTUAL_ENV");
    char pattern[4096];
    void *library = NULL;
    if (environment) {
        const int n =
            snprintf(pattern, sizeof pattern, "%s/lib/python3*/site-packages/nvidia/cudnn/lib/" NAME, environment);
        library = n > 0 && (size_t)n < sizeof pattern ? open_first(pattern) : NULL;
    }
    for (size_t i = 0; i < sizeof folder / sizeof *folder && !library; i++) {
        snprintf(pattern, sizeof pattern, "%s/nvidia/cudnn/lib/" NAME, folder[i]);
        library = open_first(pattern);
    }
    return library;
}

/* A pointer to a function is not one to an object in C, but has its bytes in POSIX. */
static gr_err find(void *library, const char *name, void *pointer) {
    void *found = dlsym(library, name);
    if (!found)
        return gr_fail(
            GR_RESOURCE, "cuDNN: expected " NAME " with %s, got one without; install cuDNN 9.16 or later", name);
    memcpy(pointer, &found, sizeof found);
    return GR_OK;
}

/* Where the system looks, then beside the toolkit's libraries, where it was when the program was built, and among the
 * wheels. */
gr_err gr_cudnn_load(gr_cudnn *out) {
    void *library = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        library = dlopen(GR_CUDA_LIBRARY_DIR "/" NAME, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        library = dlopen(GR_CUDNN_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        library = open_wheel();
    if (!library)
        return gr_fail(GR_RESOURCE,
            "cuDNN: expected library " NAME ", got none; install cuDNN or name its folder in LD_LIBRARY_PATH");
#define FIND(name) GR_TRY(find(library, #name, &out->name));
    GR_CUDNN_FUNCTIONS(FIND)
#undef FIND
    const size_t version = out->cudnnGetVersion();
    if (version < GR_CUDNN_OLDEST)
        return gr_fail(GR_RESOURCE, "cuDNN: expected 9.16 or later, got %zu.%zu.%zu; install a later one",
            version / 10000, version / 100 % 100, version % 100);
    return GR_OK;
}
