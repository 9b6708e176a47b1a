/* nccl_library.c: loading NCCL. */
#include "comm/nccl_library.h"

#include <dlfcn.h>
#include <string.h>

#define NAME "libnccl.so.2"

/* A pointer to a function is not one to an object in C, but has its bytes in POSIX. */
static gr_err find(void *library, const char *name, void *pointer) {
    void *found = dlsym(library, name);
    if (!found)
        return gr_fail(GR_RESOURCE,
            "comm nccl: expected " NAME " with %s, got one without; install the version that --version names, or use "
            "parallel.comm \"mpi\"",
            name);
    memcpy(pointer, &found, sizeof found);
    return GR_OK;
}

/* From where the system looks, else from where it was when the program was built. */
gr_err gr_nccl_load(gr_nccl *out) {
    void *library = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        library = dlopen(GR_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return gr_fail(GR_RESOURCE,
            "comm nccl: expected library " NAME
            ", got none (%s); install NCCL or name its folder in LD_LIBRARY_PATH, or "
            "use parallel.comm \"mpi\"",
            dlerror());
#define FIND(name) GR_TRY(find(library, #name, &out->name));
    GR_NCCL_FUNCTIONS(FIND)
#undef FIND
    return GR_OK;
}
