/* device.c: calls on memory that the host cannot touch. Each call is sent to where its data are, and those on device
 * memory take their place between the backend's lanes. */
#include <stdlib.h>

#include "comm/kinds.h"

struct gr_comm_device {
    gr_mover *mover;  /* NULL: one rank */
    const char *name; /* of the comm before */
    gr_comm_calls host;
    bool in_flight, in_flight_here; /* an exchange; one of device memory */
    gr_group moving;
};

static bool is_here(const gr_comm *c, const void *p, size_t n) {
    const gr_backend *b = c->device;
    return n > 0 && b->owns(b, p);
}

/* A call on device memory begins: takes what it is for. */
static gr_err begin(gr_comm *c, gr_group g) {
    gr_comm_device *d = c->device_state;
    GR_ASSERT(c->size[g] > 0, "group %d is used before gr_comm_group formed it", (int)g);
    GR_ASSERT(!d->in_flight, "a collective of group %d is called while an exchange is in flight", (int)g);
    if (d->mover)
        d->mover->traffic = c->traffic;
    c->traffic = GR_TRAFFIC_OTHER;
    return c->device->wait(c->device, GR_LANE_COMM, GR_LANE_COMPUTE);
}

static gr_err join(gr_comm *c) {
    gr_backend *b = c->device;
    return b->wait(b, GR_LANE_COMPUTE, GR_LANE_COMM);
}

static gr_err end(gr_comm *c) {
    return c->beside ? GR_OK : join(c);
}

/* ---------------------------------------------------------------- exchange of rows */

typedef struct rows {
    size_t n, before_own; /* rows of all ranks; of those before this one */
} rows;

static rows count_rows(const uint32_t *n_row, int size, int me) {
    rows r = {0};
    for (int i = 0; i < size; i++) {
        r.before_own += i < me ? n_row[i] : 0;
        r.n += n_row[i];
    }
    return r;
}

/* Own rows never leave the device. */
static gr_err keep_own(gr_comm *c, const gr_exchange *x, rows send, rows recv) {
    gr_backend *b = c->device;
    int me = c->rank[x->group];
    size_t row = x->width * gr_dtype_size(x->dtype), n = x->send_rows[me];
    GR_ASSERT(n == x->recv_rows[me], "%zu rows to and %u from the own rank", n, x->recv_rows[me]);
    if (n == 0)
        return GR_OK;
    return b->copy(b, GR_LANE_COMM, (uint8_t *)x->recv + recv.before_own * row,
        (const uint8_t *)x->send + send.before_own * row, n * row);
}

/* Rows of one side only say where they are; a rank without any has nothing to do, wherever the others' are. */
static gr_err exchange_start(gr_comm *c, const gr_exchange *x) {
    gr_comm_device *d = c->device_state;
    int size = c->size[x->group], me = c->rank[x->group];
    rows send = count_rows(x->send_rows, size, me), recv = count_rows(x->recv_rows, size, me);
    bool sent_here = is_here(c, x->send, send.n), received_here = is_here(c, x->recv, recv.n);
    GR_ASSERT(!send.n || !recv.n || sent_here == received_here, "an exchange between host and device memory");
    if (!sent_here && !received_here) {
        GR_TRY(d->host.exchange_start(c, x));
        d->in_flight = true;
        d->in_flight_here = false;
        return GR_OK;
    }
    GR_TRY(begin(c, x->group));
    GR_TRY(keep_own(c, x, send, recv));
    if (size > 1)
        GR_TRY(d->mover->exchange_start(d->mover, x));
    d->in_flight = d->in_flight_here = true;
    d->moving = x->group;
    return GR_OK;
}

static gr_err exchange_wait(gr_comm *c) {
    gr_comm_device *d = c->device_state;
    GR_ASSERT(d->in_flight, "no exchange was started");
    d->in_flight = false;
    if (!d->in_flight_here)
        return d->host.exchange_wait(c);
    if (c->size[d->moving] > 1)
        GR_TRY(d->mover->exchange_wait(d->mover));
    return join(c);
}

/* ---------------------------------------------------------------- collectives: one rank's data are the result already
 */

static gr_err sum(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n) {
    gr_comm_device *d = c->device_state;
    if (!is_here(c, data, n))
        return d->host.sum(c, g, dtype, data, n);
    GR_TRY(begin(c, g));
    GR_ASSERT(dtype == GR_F32 || dtype == GR_F64 || dtype == GR_U64, "%s cannot be summed", gr_dtype_name(dtype));
    if (c->size[g] > 1)
        GR_TRY(d->mover->sum(d->mover, g, dtype, data, n));
    return end(c);
}

static gr_err reduce_scatter(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    gr_comm_device *d = c->device_state;
    if (!is_here(c, data, n_shard))
        return d->host.reduce_scatter(c, g, dtype, data, n_shard);
    GR_TRY(begin(c, g));
    GR_ASSERT(dtype == GR_F32 || dtype == GR_F64 || dtype == GR_U64, "%s cannot be summed", gr_dtype_name(dtype));
    if (c->size[g] > 1)
        GR_TRY(d->mover->reduce_scatter(d->mover, g, dtype, data, n_shard));
    return end(c);
}

static gr_err all_gather(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    gr_comm_device *d = c->device_state;
    if (!is_here(c, data, n_shard))
        return d->host.all_gather(c, g, dtype, data, n_shard);
    GR_TRY(begin(c, g));
    if (c->size[g] > 1)
        GR_TRY(d->mover->all_gather(d->mover, g, dtype, data, n_shard));
    return end(c);
}

static gr_err reduce_piece(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    gr_comm_device *d = c->device_state;
    if (!is_here(c, data, p.n))
        return d->host.reduce_piece(c, g, dtype, data, p);
    GR_TRY(begin(c, g));
    GR_ASSERT(dtype == GR_F32 || dtype == GR_F64 || dtype == GR_U64, "%s cannot be summed", gr_dtype_name(dtype));
    if (c->size[g] > 1)
        GR_TRY(d->mover->reduce_piece(d->mover, g, dtype, data, p));
    return end(c);
}

static gr_err gather_piece(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    gr_comm_device *d = c->device_state;
    if (!is_here(c, data, p.n))
        return d->host.gather_piece(c, g, dtype, data, p);
    GR_TRY(begin(c, g));
    if (c->size[g] > 1)
        GR_TRY(d->mover->gather_piece(d->mover, g, dtype, data, p));
    return end(c);
}

static gr_err bcast(gr_comm *c, gr_group g, void *data, size_t n_byte, int root) {
    gr_comm_device *d = c->device_state;
    if (!is_here(c, data, n_byte))
        return d->host.bcast(c, g, data, n_byte, root);
    GR_TRY(begin(c, g));
    if (c->size[g] > 1)
        GR_TRY(d->mover->bcast(d->mover, g, data, n_byte, root));
    return end(c);
}

static gr_err barrier(gr_comm *c, gr_group g) {
    return c->device_state->host.barrier(c, g);
}

/* ---------------------------------------------------------------- opening and closing */

static gr_comm_calls calls_get(const gr_comm *c) {
    return (gr_comm_calls){.exchange_start = c->exchange_start,
        .exchange_wait = c->exchange_wait,
        .sum = c->sum,
        .reduce_scatter = c->reduce_scatter,
        .all_gather = c->all_gather,
        .reduce_piece = c->reduce_piece,
        .gather_piece = c->gather_piece,
        .join = c->join,
        .bcast = c->bcast,
        .barrier = c->barrier};
}

static void calls_set(gr_comm *c, const gr_comm_calls *calls) {
    c->exchange_start = calls->exchange_start;
    c->exchange_wait = calls->exchange_wait;
    c->sum = calls->sum;
    c->reduce_scatter = calls->reduce_scatter;
    c->all_gather = calls->all_gather;
    c->reduce_piece = calls->reduce_piece;
    c->gather_piece = calls->gather_piece;
    c->join = calls->join;
    c->bcast = calls->bcast;
    c->barrier = calls->barrier;
}

static const gr_comm_calls looking = {.exchange_start = exchange_start,
    .exchange_wait = exchange_wait,
    .sum = sum,
    .reduce_scatter = reduce_scatter,
    .all_gather = all_gather,
    .reduce_piece = reduce_piece,
    .gather_piece = gather_piece,
    .join = join,
    .bcast = bcast,
    .barrier = barrier};

gr_err gr_device_open(gr_comm *c, gr_backend *b, gr_mover *m) {
    void *p;
    GR_ASSERT(!c->device && (m || c->size[GR_WORLD] == 1), "%d ranks", c->size[GR_WORLD]);
    gr_err e = gr_alloc(&p, 1, sizeof *c->device_state, "device of the comm");
    if (e) {
        if (m)
            m->close(m, false);
        return e;
    }
    c->device_state = p;
    *c->device_state = (gr_comm_device){.mover = m, .name = c->name, .host = calls_get(c)};
    c->device = b;
    calls_set(c, &looking);
    if (m) {
        m->host = c->device_state->host;
        c->name = m->name;
        c->queues = m->queues;
    }
    return GR_OK;
}

gr_err gr_device_group(gr_comm *c) {
    gr_mover *m = c->device_state->mover;
    return m ? m->group(m) : GR_OK;
}

void gr_device_close(gr_comm *c, bool orderly) {
    gr_comm_device *d = c->device_state;
    if (d->mover)
        d->mover->close(d->mover, orderly);
    calls_set(c, &d->host);
    c->name = d->name;
    c->queues = false;
    c->device = NULL;
    c->device_state = NULL;
    free(d);
}
