/* self.c: one process. Every collective over one rank leaves its data as it is. */
#include "comm/kinds.h"

#include <stdlib.h>
#include <string.h>

static gr_err exchange_start(gr_comm *c, const gr_exchange *x) {
    (void)c;
    size_t n_byte = (size_t)x->send_rows[0] * x->width * gr_dtype_size(x->dtype);
    if (n_byte > 0)
        memcpy(x->recv, x->send, n_byte);
    return GR_OK;
}

static gr_err exchange_wait(gr_comm *c) {
    (void)c;
    return GR_OK;
}

static gr_err keep_elements(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n) {
    (void)c, (void)g, (void)dtype, (void)data, (void)n;
    return GR_OK;
}

static gr_err keep_piece(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    (void)c, (void)g, (void)dtype, (void)data, (void)p;
    return GR_OK;
}

static gr_err bcast(gr_comm *c, gr_group g, void *data, size_t n_byte, int root) {
    (void)c, (void)g, (void)data, (void)n_byte, (void)root;
    return GR_OK;
}

static gr_err join(gr_comm *c) {
    (void)c;
    return GR_OK;
}

static gr_err barrier(gr_comm *c, gr_group g) {
    (void)c, (void)g;
    return GR_OK;
}

static gr_err group(gr_comm *c, int R_ep) {
    GR_ASSERT(R_ep == c->size[GR_EP], "%d", R_ep);
    return GR_OK;
}

static void close_self(gr_comm *c, bool finalize) {
    (void)finalize;
    free(c);
}

gr_err gr_comm_self_open(gr_comm **out) {
    void *p;
    GR_TRY(gr_alloc(&p, 1, sizeof **out, "comm self"));
    gr_comm *c = p;
    *c = (gr_comm){
        .name = "self",
        .size = {1, 1, 1},
        .exchange_start = exchange_start,
        .exchange_wait = exchange_wait,
        .sum = keep_elements,
        .reduce_scatter = keep_elements,
        .all_gather = keep_elements,
        .reduce_piece = keep_piece,
        .gather_piece = keep_piece,
        .join = join,
        .bcast = bcast,
        .barrier = barrier,
        .group = group,
        .close = close_self,
    };
    *out = c;
    return GR_OK;
}
