/* room.c: does a benchmark fit the memory there is? */
#include <stdlib.h>

#include "times.h"

gr_err gr_bench_room(gr_comm *c, size_t n_byte, const char *bench, const char *remedy) {
    const int me = c->rank[GR_WORLD], R = c->size[GR_WORLD];
    void *memory;
    uint64_t n_here = 0;
    GR_TRY(gr_comm_agree(c, gr_alloc(&memory, (size_t)R, sizeof(uint64_t), "hosts of the ranks")));
    uint64_t *hosts = memory;
    hosts[me] = gr_host_id();
    gr_err e = c->all_gather(c, GR_WORLD, GR_U64, hosts, 1);
    for (int r = 0; r < R && !e; r++)
        n_here += hosts[r] == hosts[me];
    free(hosts);
    const gr_memory_room room = gr_memory_room_get("");
    if (!e && (n_byte > room.host / n_here || n_byte > room.process))
        e = gr_fail(GR_RESOURCE,
            "%s: expected arrays of at most %llu bytes for each of %llu ranks here (%s), got %zu; %s", bench,
            (unsigned long long)(room.host / n_here), (unsigned long long)n_here, room.limit, n_byte, remedy);
    return gr_comm_agree(c, e);
}
