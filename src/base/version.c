/* What was built, and with how many threads it runs. */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "grouter/base.h"
#include "version.h"

const char *gr_version_text(void) {
    return GR_VERSION " (" GR_GIT_HASH ")";
}

int gr_threads_settle(void) {
    int n = 0;
#ifdef _OPENMP
    omp_set_dynamic(0);
#endif
#pragma omp parallel reduction(+ : n)
    n++;
#ifdef _OPENMP
    omp_set_num_threads(n);
#endif
    return n;
}

int gr_thread_count(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
