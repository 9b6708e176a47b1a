/* mpi.c: ranks of an MPI job; the only file that knows MPI.
 *
 * Everything but bcast and barrier is built from one primitive: every rank of a group has a part for every other one,
 * sent and received as messages of at most message_max bytes, one per peer at a time. A pair of ranks derives the same
 * cut from the same count, and MPI keeps the order of messages between two ranks, so one tag is enough. The primitive's
 * tables are made at opening: no call allocates. */
#include "comm/kinds.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

/* What moves between this rank and one peer; pointers advance as messages are posted. */
typedef struct part {
    const uint8_t *send;
    uint8_t *recv;
    size_t send_left, recv_left; /* bytes */
} part;

typedef struct mpi_state {
    MPI_Comm comm[GR_N_GROUP];
    part *part;           /* [world size], by rank of the group in use */
    MPI_Request *request; /* [2 * world size] */
    MPI_Status *status;   /* [2 * world size] */
    int n_request;
    gr_group moving;    /* group of the exchange in flight */
    gr_traffic traffic; /* what the call in progress is for */
    bool in_flight;
    bool owner; /* this comm called MPI_Init and calls MPI_Finalize */
    gr_comm_mpi_limits limits;
    uint8_t *scratch; /* shards received by reduce_shards */
} mpi_state;

static gr_err check(const gr_comm *c, int rc, const char *what) {
    if (rc == MPI_SUCCESS)
        return GR_OK;
    char text[MPI_MAX_ERROR_STRING + 1] = "unknown error";
    int n = 0;
    MPI_Error_string(rc, text, &n);
    return gr_fail(GR_PEER,
        "rank %d of %d: %s failed: %s; another rank or the network was lost, see the other ranks' messages and start "
        "again",
        c->rank[GR_WORLD], c->size[GR_WORLD], what, text);
}

/* ---------------------------------------------------------------- the primitive */

/* Posts the next message from and to every peer that has bytes left. Receives first, so that data finds its place. */
static gr_err post_messages(gr_comm *c, gr_group g) {
    mpi_state *s = c->state;
    int me = c->rank[g], n = c->size[g];
    s->n_request = 0;
    for (int i = 1; i < n; i++) {
        int peer = (me + n - i) % n;
        part *p = &s->part[peer];
        size_t n_byte = p->recv_left < s->limits.message_max ? p->recv_left : s->limits.message_max;
        if (n_byte == 0)
            continue;
        GR_TRY(check(
            c, MPI_Irecv(p->recv, (int)n_byte, MPI_BYTE, peer, 0, s->comm[g], &s->request[s->n_request]), "MPI_Irecv"));
        s->n_request++;
        p->recv += n_byte;
        p->recv_left -= n_byte;
    }
    for (int i = 1; i < n; i++) {
        int peer = (me + i) % n;
        part *p = &s->part[peer];
        size_t n_byte = p->send_left < s->limits.message_max ? p->send_left : s->limits.message_max;
        if (n_byte == 0)
            continue;
        GR_TRY(check(
            c, MPI_Isend(p->send, (int)n_byte, MPI_BYTE, peer, 0, s->comm[g], &s->request[s->n_request]), "MPI_Isend"));
        s->n_request++;
        p->send += n_byte;
        p->send_left -= n_byte;
        c->sent[s->traffic] += n_byte;
    }
    return GR_OK;
}

/* Waits for the posted messages; of several failures the first request's own error is reported. */
static gr_err wait_messages(gr_comm *c) {
    mpi_state *s = c->state;
    int rc = MPI_Waitall(s->n_request, s->request, s->status);
    for (int i = 0; rc == MPI_ERR_IN_STATUS && i < s->n_request; i++)
        if (s->status[i].MPI_ERROR != MPI_SUCCESS && s->status[i].MPI_ERROR != MPI_ERR_PENDING)
            rc = s->status[i].MPI_ERROR;
    return check(c, rc, "MPI_Waitall");
}

/* Finishes what post_messages began: waits, then posts and waits again until no part has bytes left. */
static gr_err finish_parts(gr_comm *c, gr_group g) {
    mpi_state *s = c->state;
    while (s->n_request > 0) {
        GR_TRY(wait_messages(c));
        GR_TRY(post_messages(c, g));
    }
    return GR_OK;
}

static gr_err move_parts(gr_comm *c, gr_group g) {
    GR_TRY(post_messages(c, g));
    return finish_parts(c, g);
}

/* A call begins: takes what it is for. */
static void begin(gr_comm *c, gr_group g) {
    mpi_state *s = c->state;
    GR_ASSERT(c->size[g] > 0, "group %d is used before gr_comm_group formed it", (int)g);
    GR_ASSERT(!s->in_flight, "a collective of group %d is called while an exchange is in flight", (int)g);
    s->traffic = c->traffic;
    c->traffic = GR_TRAFFIC_OTHER;
}

/* ---------------------------------------------------------------- exchange of rows */

static gr_err exchange_start(gr_comm *c, const gr_exchange *x) {
    begin(c, x->group);
    mpi_state *s = c->state;
    const uint8_t *send = x->send;
    uint8_t *recv = x->recv;
    size_t row = x->width * gr_dtype_size(x->dtype);
    for (int r = 0; r < c->size[x->group]; r++) {
        size_t send_byte = x->send_rows[r] * row, recv_byte = x->recv_rows[r] * row;
        s->part[r] = (part){.send = send, .recv = recv, .send_left = send_byte, .recv_left = recv_byte};
        send += send_byte;
        recv += recv_byte;
    }
    part *own = &s->part[c->rank[x->group]];
    GR_ASSERT(
        own->send_left == own->recv_left, "%zu bytes to and %zu from the own rank", own->send_left, own->recv_left);
    if (own->send_left > 0)
        memcpy(own->recv, own->send, own->send_left);
    s->moving = x->group;
    s->in_flight = true;
    return post_messages(c, x->group);
}

static gr_err exchange_wait(gr_comm *c) {
    mpi_state *s = c->state;
    GR_ASSERT(s->in_flight, "no exchange was started");
    s->in_flight = false;
    return finish_parts(c, s->moving);
}

/* ---------------------------------------------------------------- sums and gathers over shards
 * An array is cut into one shard of equal size per rank of the group, which owns it; the last ones may be short or
 * empty. The calls work on a piece of it, or on all. */

typedef struct shards {
    gr_group group;
    gr_dtype dtype;
    uint8_t *data; /* [piece.n] */
    gr_piece piece;
} shards;

/* Where rank r's part of the piece begins. */
static uint8_t *shard_at(const shards *a, int r) {
    return a->data + gr_piece_owned(a->piece, r).first * gr_dtype_size(a->dtype);
}

/* Elements of rank r's part from `first` on, at most `most`. */
static size_t shard_length(const shards *a, int r, size_t first, size_t most) {
    size_t n = gr_piece_owned(a->piece, r).n, length = first < n ? n - first : 0;
    return length < most ? length : most;
}

static void add_f32(void *acc, const void *x, size_t n) {
    float *a = acc;
    const float *b = x;
    for (size_t i = 0; i < n; i++)
        a[i] += b[i];
}

static void add_f64(void *acc, const void *x, size_t n) {
    double *a = acc;
    const double *b = x;
    for (size_t i = 0; i < n; i++)
        a[i] += b[i];
}

static void add_u64(void *acc, const void *x, size_t n) {
    uint64_t *a = acc;
    const uint64_t *b = x;
    for (size_t i = 0; i < n; i++)
        a[i] += b[i];
}

/* own[n] := sum over the ranks in rank order, in the array's own precision. Rank r's operand is `own` for this rank,
 * else the next `stride` bytes of `received`. */
static void add_in_rank_order(
    const gr_comm *c, const shards *a, uint8_t *own, const uint8_t *received, size_t stride, size_t n) {
    enum { BLOCK_BYTE = 4096 }; /* accumulator that stays in the first-level cache */
    _Alignas(GR_ALIGN) uint8_t acc[BLOCK_BYTE];
    int me = c->rank[a->group], n_rank = c->size[a->group];
    size_t elem = gr_dtype_size(a->dtype);
    void (*add)(void *, const void *, size_t) = a->dtype == GR_F32 ? add_f32 : a->dtype == GR_F64 ? add_f64 : add_u64;
    for (size_t at = 0; at < n * elem; at += BLOCK_BYTE) {
        size_t n_byte = n * elem - at < BLOCK_BYTE ? n * elem - at : BLOCK_BYTE;
        for (int r = 0; r < n_rank; r++) {
            const uint8_t *x = (r == me ? own : received + (size_t)(r < me ? r : r - 1) * stride) + at;
            if (r == 0)
                memcpy(acc, x, n_byte);
            else
                add(acc, x, n_byte / elem);
        }
        memcpy(own + at, acc, n_byte);
    }
}

/* Own part := sum over the group. The others' stay as they were. */
static gr_err reduce_shards(gr_comm *c, const shards *a) {
    mpi_state *s = c->state;
    int me = c->rank[a->group], n_rank = c->size[a->group];
    size_t elem = gr_dtype_size(a->dtype);
    size_t step = s->limits.scratch / (size_t)(n_rank - 1) / elem;
    size_t longest = a->piece.shard < a->piece.n ? a->piece.shard : a->piece.n;
    for (size_t first = 0; first < longest; first += step) {
        size_t mine = shard_length(a, me, first, step);
        uint8_t *recv = s->scratch;
        for (int r = 0; r < n_rank; r++) {
            if (r == me)
                continue;
            s->part[r] = (part){
                .send = shard_at(a, r) + first * elem,
                .recv = recv,
                .send_left = shard_length(a, r, first, step) * elem,
                .recv_left = mine * elem,
            };
            recv += step * elem;
        }
        GR_TRY(move_parts(c, a->group));
        add_in_rank_order(c, a, shard_at(a, me) + first * elem, s->scratch, step * elem, mine);
    }
    return GR_OK;
}

/* Every rank's own part to all others. */
static gr_err gather_shards(gr_comm *c, const shards *a) {
    mpi_state *s = c->state;
    int me = c->rank[a->group];
    size_t elem = gr_dtype_size(a->dtype);
    for (int r = 0; r < c->size[a->group]; r++)
        s->part[r] = (part){
            .send = shard_at(a, me),
            .recv = shard_at(a, r),
            .send_left = gr_piece_owned(a->piece, me).n * elem,
            .recv_left = gr_piece_owned(a->piece, r).n * elem,
        };
    return move_parts(c, a->group);
}

static void assert_summable(gr_dtype dtype) {
    GR_ASSERT(dtype == GR_F32 || dtype == GR_F64 || dtype == GR_U64, "%s cannot be summed", gr_dtype_name(dtype));
}

static gr_err sum(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n) {
    begin(c, g);
    assert_summable(dtype);
    size_t n_rank = (size_t)c->size[g];
    if (n_rank == 1)
        return GR_OK;
    const gr_piece all = {.shard = n / n_rank + (n % n_rank != 0), .n = n};
    shards a = {.group = g, .dtype = dtype, .data = data, .piece = all};
    GR_TRY(reduce_shards(c, &a));
    return gather_shards(c, &a);
}

static gr_err reduce_piece(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    begin(c, g);
    assert_summable(dtype);
    if (c->size[g] == 1)
        return GR_OK;
    shards a = {.group = g, .dtype = dtype, .data = data, .piece = p};
    return reduce_shards(c, &a);
}

static gr_err gather_piece(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    begin(c, g);
    shards a = {.group = g, .dtype = dtype, .data = data, .piece = p};
    return gather_shards(c, &a);
}

static gr_piece whole(const gr_comm *c, gr_group g, size_t n_shard) {
    return (gr_piece){.shard = n_shard, .n = n_shard * (size_t)c->size[g]};
}

static gr_err reduce_scatter(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    return reduce_piece(c, g, dtype, data, whole(c, g, n_shard));
}

static gr_err all_gather(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    return gather_piece(c, g, dtype, data, whole(c, g, n_shard));
}

static gr_err join(gr_comm *c) {
    (void)c;
    return GR_OK;
}

/* ---------------------------------------------------------------- plain MPI collectives */

static gr_err bcast(gr_comm *c, gr_group g, void *data, size_t n_byte, int root) {
    begin(c, g);
    mpi_state *s = c->state;
    uint8_t *p = data;
    if (c->rank[g] == root)
        c->sent[s->traffic] += n_byte * (size_t)(c->size[g] - 1);
    while (n_byte > 0) {
        size_t n = n_byte < s->limits.message_max ? n_byte : s->limits.message_max;
        GR_TRY(check(c, MPI_Bcast(p, (int)n, MPI_BYTE, root, s->comm[g]), "MPI_Bcast"));
        p += n;
        n_byte -= n;
    }
    return GR_OK;
}

static gr_err barrier(gr_comm *c, gr_group g) {
    begin(c, g);
    mpi_state *s = c->state;
    return check(c, MPI_Barrier(s->comm[g]), "MPI_Barrier");
}

/* ---------------------------------------------------------------- opening, groups, closing */

static gr_err free_group(gr_comm *c, gr_group g) {
    mpi_state *s = c->state;
    c->size[g] = 0;
    if (s->comm[g] == MPI_COMM_NULL)
        return GR_OK;
    return check(c, MPI_Comm_free(&s->comm[g]), "MPI_Comm_free");
}

static gr_err form_group(gr_comm *c, gr_group g, int color) {
    mpi_state *s = c->state;
    GR_TRY(free_group(c, g));
    GR_TRY(check(c, MPI_Comm_split(s->comm[GR_WORLD], color, c->rank[GR_WORLD], &s->comm[g]), "MPI_Comm_split"));
    GR_TRY(check(c, MPI_Comm_set_errhandler(s->comm[g], MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    GR_TRY(check(c, MPI_Comm_rank(s->comm[g], &c->rank[g]), "MPI_Comm_rank"));
    return check(c, MPI_Comm_size(s->comm[g], &c->size[g]), "MPI_Comm_size");
}

static gr_err group(gr_comm *c, int R_ep) {
    GR_TRY(form_group(c, GR_EP, c->rank[GR_WORLD] / R_ep));
    return form_group(c, GR_EDP, c->rank[GR_WORLD] % R_ep);
}

/* Failures while closing have no one left to tell: the work is done, or its error is already known. */
static void close_mpi(gr_comm *c, bool finalize) {
    mpi_state *s = c->state;
    if (s) {
        if (finalize) {
            for (int g = GR_N_GROUP - 1; g >= 0; g--)
                if (free_group(c, (gr_group)g))
                    gr_debug("closing: %s", gr_error_text());
            if (s->owner)
                MPI_Finalize();
        }
        free(s->part);
        free(s->request);
        free(s->status);
        free(s->scratch);
    }
    free(s);
    free(c);
}

static gr_err start_mpi(gr_comm *c) {
    mpi_state *s = c->state;
    int initialized = 0, finalized = 0, provided = MPI_THREAD_FUNNELED;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    GR_ASSERT(!finalized, "MPI cannot start twice in one process");
    if (!initialized) {
        GR_TRY(check(c, MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread"));
        s->owner = true;
    }
    GR_TRY(check(c, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    GR_TRY(check(c, MPI_Comm_dup(MPI_COMM_WORLD, &s->comm[GR_WORLD]), "MPI_Comm_dup"));
    GR_TRY(check(c, MPI_Comm_rank(s->comm[GR_WORLD], &c->rank[GR_WORLD]), "MPI_Comm_rank"));
    GR_TRY(check(c, MPI_Comm_size(s->comm[GR_WORLD], &c->size[GR_WORLD]), "MPI_Comm_size"));
    if (provided < MPI_THREAD_FUNNELED)
        return gr_fail(GR_RESOURCE,
            "%s: expected thread support MPI_THREAD_FUNNELED, got MPI_THREAD_SINGLE; "
            "use an MPI library built with threads",
            gr_comm_mpi_library());
    return GR_OK;
}

size_t gr_comm_mpi_scratch(const gr_comm_mpi_limits *limits, int n_rank) {
    size_t least = (size_t)n_rank * sizeof(uint64_t); /* one element from each rank */
    return limits->scratch > least ? limits->scratch : least;
}

/* Tables and scratch for the largest group, the world. */
static gr_err make_tables(gr_comm *c, const gr_comm_mpi_limits *limits) {
    mpi_state *s = c->state;
    size_t n_rank = (size_t)c->size[GR_WORLD];
    s->limits = *limits;
    s->limits.scratch = gr_comm_mpi_scratch(limits, c->size[GR_WORLD]);
    void *p;
    GR_TRY(gr_alloc(&p, n_rank, sizeof *s->part, "message table"));
    s->part = p;
    GR_TRY(gr_alloc(&p, 2 * n_rank, sizeof *s->request, "message requests"));
    s->request = p;
    GR_TRY(gr_alloc(&p, 2 * n_rank, sizeof *s->status, "message status"));
    s->status = p;
    GR_TRY(gr_alloc(&p, s->limits.scratch, 1, "scratch of sums over ranks"));
    s->scratch = p;
    return GR_OK;
}

static gr_err open_mpi(gr_comm *c, int n_announced, const gr_comm_mpi_limits *limits) {
    void *p;
    GR_TRY(gr_alloc(&p, 1, sizeof(mpi_state), "comm mpi"));
    mpi_state *s = c->state = p;
    for (int g = 0; g < GR_N_GROUP; g++)
        s->comm[g] = MPI_COMM_NULL;
    GR_TRY(start_mpi(c));
    if (c->size[GR_WORLD] == 1 && n_announced > 1)
        return gr_fail(GR_CONFIG,
            "launcher: expected %d ranks as it announces, but MPI (%s) sees one; start with the mpirun of that library",
            n_announced, gr_comm_mpi_library());
    if (c->rank[GR_WORLD] > 0)
        gr_log_set(GR_LOG_QUIET);
    return make_tables(c, limits);
}

gr_err gr_comm_mpi_open(gr_comm **out, int n_announced, const gr_comm_mpi_limits *limits) {
    *out = NULL;
    void *p;
    GR_TRY(gr_alloc(&p, 1, sizeof **out, "comm mpi"));
    gr_comm *c = p;
    *c = (gr_comm){
        .name = "mpi",
        .exchange_start = exchange_start,
        .exchange_wait = exchange_wait,
        .sum = sum,
        .reduce_scatter = reduce_scatter,
        .all_gather = all_gather,
        .reduce_piece = reduce_piece,
        .gather_piece = gather_piece,
        .join = join,
        .bcast = bcast,
        .barrier = barrier,
        .group = group,
        .close = close_mpi,
    };
    gr_err err = open_mpi(c, n_announced, limits);
    if (err) {
        close_mpi(c, c->size[GR_WORLD] == 1); /* alone, nobody else can be kept waiting */
        return err;
    }
    *out = c;
    return GR_OK;
}

/* The library's version text up to its first comma or line end: "Open MPI v4.1.4". */
const char *gr_comm_mpi_library(void) {
    static char text[MPI_MAX_LIBRARY_VERSION_STRING + 1];
    int n = 0;
    if (MPI_Get_library_version(text, &n) != MPI_SUCCESS)
        return "MPI";
    text[strcspn(text, ",\n")] = '\0';
    return text;
}
