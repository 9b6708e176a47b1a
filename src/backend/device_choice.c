/* device_choice.c: which of a machine's devices a process takes. */
#include "device.h"

#include <stdlib.h>

int gr_device_local_rank(void) {
    static const char *const variable[] = {
        "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"};
    for (size_t i = 0; i < sizeof variable / sizeof *variable; i++) {
        const char *text = getenv(variable[i]);
        if (!text || *text < '0' || *text > '9')
            continue;
        char *end;
        long rank = strtol(text, &end, 10);
        if (*end == '\0' && rank <= 1 << 20)
            return (int)rank;
    }
    return 0;
}

int gr_device_choose(int local_rank, int n_device) {
    return local_rank % n_device;
}
