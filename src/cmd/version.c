/* What this binary was built from and with. */
#include "cmd/cmd.h"
#include "grouter/backend.h"
#include "grouter/comm.h"
#include "grouter/json.h"
#include "version.h"

#ifdef _OPENMP
#define OPENMP_VERSION _OPENMP /* date of the specification, yyyymm */
#else
#define OPENMP_VERSION 0
#endif

void gr_version_print(FILE *out) {
    fprintf(out, "grouter-train %s\n", gr_version_text());
    fprintf(out, "compiler   %s\n", GR_COMPILER);
    fprintf(out, "build      %s\n", GR_BUILD);
    fprintf(out, "backends   %s\n", gr_backend_names());
    fprintf(out, "CUDA       %s\n", GR_CUDA_FOUND);
    fprintf(out, "cuDNN      %s\n", GR_CUDNN_FOUND);
    fprintf(out, "comms      %s\n", gr_comm_names());
    fprintf(out, "libraries  %s, %s, %s, %s", gr_backend_library(), gr_comm_library(), gr_json_library(),
        gr_hash_library());
    if (OPENMP_VERSION)
        fprintf(out, ", OpenMP %d (%d threads)", OPENMP_VERSION, gr_thread_count());
    fputc('\n', out);
}
