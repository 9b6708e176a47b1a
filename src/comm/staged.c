/* staged.c: device memory through page-locked host memory and the comm's own calls, so that any number of ranks may
 * share a device. A call works on as much as fits at a time: download, wait for the device, the same call on host
 * memory, upload. Sums stay in rank order, element by element, hence the bits of the same call on host memory. */
#include <stdlib.h>

#include "comm/kinds.h"

typedef struct staged {
    gr_mover mover; /* first: what the calls get */
    uint8_t *memory;
    size_t size;
    uint32_t *rows;      /* [2 * world size]: what a round of an exchange sends to and receives from each rank */
    gr_exchange x;       /* in flight */
    size_t round, piece; /* of x: rounds done; rows of one round to or from one rank, at most */
} staged;

static gr_err from_device(staged *s, size_t at, const void *data, size_t n_byte) {
    gr_backend *b = s->mover.backend;
    return n_byte ? b->download(b, GR_LANE_COMM, s->memory + at, data, n_byte) : GR_OK;
}

static gr_err to_device(staged *s, void *data, size_t at, size_t n_byte) {
    gr_backend *b = s->mover.backend;
    return n_byte ? b->upload(b, GR_LANE_COMM, data, s->memory + at, n_byte) : GR_OK;
}

/* The host may use the memory: downloads have arrived, uploads of the piece before have left. Names what comes next. */
static gr_err arrive(staged *s) {
    gr_backend *b = s->mover.backend;
    GR_TRY(b->sync(b));
    s->mover.comm->traffic = s->mover.traffic;
    return GR_OK;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* ---------------------------------------------------------------- exchange of rows
 * In rounds: in round i every pair of ranks moves rows [i * piece, (i+1) * piece) of its count, which both know. Rows
 * to others are in the first half of the memory, rows from others in the second. */

static size_t round_rows(const staged *s, uint32_t n_row) {
    size_t done = s->round * s->piece;
    return n_row > done ? least(n_row - done, s->piece) : 0;
}

static gr_err start_round(staged *s) {
    gr_comm *c = s->mover.comm;
    const gr_exchange *x = &s->x;
    int n = c->size[x->group], me = c->rank[x->group];
    size_t row = x->width * gr_dtype_size(x->dtype), at = 0;
    const uint8_t *send = x->send;
    for (int r = 0; r < n; r++) {
        size_t n_send = r == me ? 0 : round_rows(s, x->send_rows[r]);
        GR_TRY(from_device(s, at, send + s->round * s->piece * row, n_send * row));
        s->rows[r] = (uint32_t)n_send;
        s->rows[n + r] = r == me ? 0 : (uint32_t)round_rows(s, x->recv_rows[r]);
        at += n_send * row;
        send += x->send_rows[r] * row;
    }
    GR_TRY(arrive(s));
    gr_exchange round = {.group = x->group,
        .dtype = x->dtype,
        .width = x->width,
        .send = s->memory,
        .send_rows = s->rows,
        .recv = s->memory + s->size / 2,
        .recv_rows = s->rows + n};
    return s->mover.host.exchange_start(c, &round);
}

static gr_err finish_round(staged *s) {
    gr_comm *c = s->mover.comm;
    const gr_exchange *x = &s->x;
    int n = c->size[x->group];
    size_t row = x->width * gr_dtype_size(x->dtype), at = s->size / 2;
    uint8_t *recv = x->recv;
    GR_TRY(s->mover.host.exchange_wait(c));
    for (int r = 0; r < n; r++) {
        size_t n_byte = s->rows[n + r] * row;
        GR_TRY(to_device(s, recv + s->round * s->piece * row, at, n_byte));
        at += n_byte;
        recv += x->recv_rows[r] * row;
    }
    s->round++;
    return GR_OK;
}

static bool is_left(const staged *s) {
    const gr_comm *c = s->mover.comm;
    size_t most = 0;
    for (int r = 0; r < c->size[s->x.group]; r++) {
        size_t n = s->x.send_rows[r] > s->x.recv_rows[r] ? s->x.send_rows[r] : s->x.recv_rows[r];
        most = r != c->rank[s->x.group] && n > most ? n : most;
    }
    return most > s->round * s->piece;
}

static gr_err exchange_start(gr_mover *m, const gr_exchange *x) {
    staged *s = (staged *)m;
    size_t row = x->width * gr_dtype_size(x->dtype), n_other = (size_t)m->comm->size[x->group] - 1;
    s->x = *x;
    s->round = 0;
    s->piece = s->size / 2 / n_other / row;
    if (s->piece == 0)
        return gr_fail(GR_RESOURCE,
            "comm mpi: expected rows of at most %zu bytes to pass through %zu bytes of host memory to %zu ranks, got "
            "%zu; use parallel.comm \"nccl\" or a smaller parallel.expert_parallel_size",
            s->size / 2 / n_other, s->size, n_other, row);
    return start_round(s);
}

static gr_err exchange_wait(gr_mover *m) {
    staged *s = (staged *)m;
    GR_TRY(finish_round(s));
    while (is_left(s)) {
        GR_TRY(start_round(s));
        GR_TRY(finish_round(s));
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- collectives */

static gr_err sum(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n) {
    staged *s = (staged *)m;
    size_t elem = gr_dtype_size(dtype), most = s->size / elem;
    uint8_t *at = data;
    for (size_t first = 0; first < n; first += most) {
        size_t n_here = least(n - first, most);
        GR_TRY(from_device(s, 0, at + first * elem, n_here * elem));
        GR_TRY(arrive(s));
        GR_TRY(m->host.sum(m->comm, g, dtype, s->memory, n_here));
        GR_TRY(to_device(s, at + first * elem, 0, n_here * elem));
    }
    return GR_OK;
}

static gr_err reduce_scatter(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    staged *s = (staged *)m;
    size_t elem = gr_dtype_size(dtype), n_rank = (size_t)m->comm->size[g], me = (size_t)m->comm->rank[g];
    size_t most = s->size / elem / n_rank;
    uint8_t *at = data;
    for (size_t first = 0; first < n_shard; first += most) {
        size_t n = least(n_shard - first, most);
        for (size_t r = 0; r < n_rank; r++)
            GR_TRY(from_device(s, r * n * elem, at + (r * n_shard + first) * elem, n * elem));
        GR_TRY(arrive(s));
        GR_TRY(m->host.reduce_scatter(m->comm, g, dtype, s->memory, n));
        GR_TRY(to_device(s, at + (me * n_shard + first) * elem, me * n * elem, n * elem));
    }
    return GR_OK;
}

static gr_err all_gather(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    staged *s = (staged *)m;
    size_t elem = gr_dtype_size(dtype), n_rank = (size_t)m->comm->size[g], me = (size_t)m->comm->rank[g];
    size_t most = s->size / elem / n_rank;
    uint8_t *at = data;
    for (size_t first = 0; first < n_shard; first += most) {
        size_t n = least(n_shard - first, most);
        GR_TRY(from_device(s, me * n * elem, at + (me * n_shard + first) * elem, n * elem));
        GR_TRY(arrive(s));
        GR_TRY(m->host.all_gather(m->comm, g, dtype, s->memory, n));
        for (size_t r = 0; r < n_rank; r++)
            GR_TRY(to_device(s, at + (r * n_shard + first) * elem, r * n * elem, r == me ? 0 : n * elem));
    }
    return GR_OK;
}

/* As much of the piece as fits at a time, whoever owns it. */
static gr_err reduce_piece(gr_mover *m, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    staged *s = (staged *)m;
    size_t elem = gr_dtype_size(dtype), most = s->size / elem;
    uint8_t *at = data;
    for (size_t first = 0; first < p.n; first += most) {
        const gr_piece part = {.shard = p.shard, .first = p.first + first, .n = least(p.n - first, most)};
        const gr_piece own = gr_piece_owned(part, m->comm->rank[g]);
        GR_TRY(from_device(s, 0, at + first * elem, part.n * elem));
        GR_TRY(arrive(s));
        GR_TRY(m->host.reduce_piece(m->comm, g, dtype, s->memory, part));
        GR_TRY(to_device(s, at + (first + own.first) * elem, own.first * elem, own.n * elem));
    }
    return GR_OK;
}

static gr_err gather_piece(gr_mover *m, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    staged *s = (staged *)m;
    size_t elem = gr_dtype_size(dtype), most = s->size / elem;
    uint8_t *at = data;
    for (size_t first = 0; first < p.n; first += most) {
        const gr_piece part = {.shard = p.shard, .first = p.first + first, .n = least(p.n - first, most)};
        const gr_piece own = gr_piece_owned(part, m->comm->rank[g]);
        size_t end = own.first + own.n;
        GR_TRY(from_device(s, own.first * elem, at + (first + own.first) * elem, own.n * elem));
        GR_TRY(arrive(s));
        GR_TRY(m->host.gather_piece(m->comm, g, dtype, s->memory, part));
        GR_TRY(to_device(s, at + first * elem, 0, own.first * elem));
        GR_TRY(to_device(s, at + (first + end) * elem, end * elem, (part.n - end) * elem));
    }
    return GR_OK;
}

static gr_err bcast(gr_mover *m, gr_group g, void *data, size_t n_byte, int root) {
    staged *s = (staged *)m;
    bool sends = m->comm->rank[g] == root;
    uint8_t *at = data;
    for (size_t first = 0; first < n_byte; first += s->size) {
        size_t n = least(n_byte - first, s->size);
        GR_TRY(from_device(s, 0, at + first, sends ? n : 0));
        GR_TRY(arrive(s));
        GR_TRY(m->host.bcast(m->comm, g, s->memory, n, root));
        GR_TRY(to_device(s, at + first, 0, sends ? 0 : n));
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- opening and closing */

static gr_err group(gr_mover *m) {
    (void)m;
    return GR_OK;
}

static void close_staged(gr_mover *m, bool orderly) {
    staged *s = (staged *)m;
    if (orderly && m->backend->sync(m->backend)) /* the last upload may not have left yet */
        gr_debug("closing: %s", gr_error_text());
    m->backend->release_host(m->backend, s->memory);
    free(s->rows);
    free(s);
}

gr_err gr_comm_staged_open(gr_mover **out, gr_comm *c, gr_backend *b, size_t n_byte) {
    *out = NULL;
    void *p;
    size_t n_rank = (size_t)c->size[GR_WORLD];
    if (n_byte / n_rank / 2 < sizeof(uint64_t))
        return gr_fail(GR_CONFIG, "comm mpi: expected at most %zu ranks with %zu bytes of host memory, got %zu",
            n_byte / 2 / sizeof(uint64_t), n_byte, n_rank);
    GR_TRY(gr_alloc(&p, 1, sizeof(staged), "staging"));
    staged *s = p;
    s->mover = (gr_mover){.name = "mpi",
        .comm = c,
        .backend = b,
        .exchange_start = exchange_start,
        .exchange_wait = exchange_wait,
        .sum = sum,
        .reduce_scatter = reduce_scatter,
        .all_gather = all_gather,
        .reduce_piece = reduce_piece,
        .gather_piece = gather_piece,
        .bcast = bcast,
        .group = group,
        .close = close_staged};
    s->size = n_byte / 16 * 16; /* halves of whole doubles */
    gr_err e = gr_alloc(&p, 2 * n_rank, sizeof *s->rows, "rows of a round");
    if (!e) {
        s->rows = p;
        e = b->alloc_host(b, s->size, "staging of device memory", &p);
    }
    if (e) {
        close_staged(&s->mover, false);
        return e;
    }
    s->memory = p;
    *out = &s->mover;
    return GR_OK;
}
