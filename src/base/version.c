/* What was built, and with how many threads it runs. */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "grouter/base.h"
#include "version.h"

const char *gr_version_text(void) {
    return GR_VERSION " (" GR_GIT_HASH ")";
}

int gr_thread_count(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
