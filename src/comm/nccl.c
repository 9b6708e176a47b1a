/* nccl.c: rows and sums between GPUs by NCCL; with nccl_library.c the only file that knows it.
 *
 * Communicators are non-blocking: NCCL works on a call in a thread of its own, and the communicator says "in progress"
 * until the call's kernels are in the stream. Every call here therefore is one group of operations on one communicator,
 * followed by asking until they are queued; the device is not waited for. While the host does wait for the device it
 * asks after errors (watch). Whatever goes wrong ends all communicators: a run goes on from its checkpoint. */
#include "comm/kinds.h"
#include "comm/nccl_library.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct nccl {
    gr_mover mover; /* first: what the calls get */
    gr_nccl call;
    ncclComm_t comm[GR_N_GROUP]; /* NULL: a group of one rank, or none. A group as large as the world has the world's */
    cudaStream_t stream;         /* of lane COMM */
    gr_group moving;             /* of the exchange in flight */
    gr_group group;              /* of the last call, and what it was: for the text of errors */
    const char *what;
    bool lost; /* its communicators have been ended after an error */
    void *scratch;
    gr_comm_nccl_limits limits;
} nccl;

/* ---------------------------------------------------------------- errors and the end of communicators */

/* Communicators in work for a thread that may never come back. */
typedef struct abortion {
    gr_nccl call;
    ncclComm_t comm[GR_N_GROUP];
    int n;
    atomic_bool done;
} abortion;

/* All in one group: each may wait for kernels behind which another's wait. */
static void *abort_all(void *argument) {
    abortion *a = argument;
    bool grouped = a->call.ncclGroupStart() == ncclSuccess;
    for (int i = 0; i < a->n; i++)
        (void)a->call.ncclCommAbort(a->comm[i]);
    if (grouped)
        (void)a->call.ncclGroupEnd();
    atomic_store(&a->done, true);
    return NULL;
}

/* Forgets the communicators and gives NCCL limits.abort_s to end them: it has been seen to hang there. */
static void end_all(nccl *s) {
    void *p;
    pthread_t thread;
    if (gr_alloc(&p, 1, sizeof(abortion), "end of NCCL"))
        return;
    abortion *a = p;
    ncclComm_t world = s->comm[GR_WORLD];
    a->call = s->call;
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        if (s->comm[g] && (g == GR_WORLD || s->comm[g] != world))
            a->comm[a->n++] = s->comm[g];
        s->comm[g] = NULL;
    }
    if (a->n == 0 || pthread_create(&thread, NULL, abort_all, a)) {
        free(a);
        return;
    }
    double start_s = gr_time_s();
    while (!atomic_load(&a->done) && gr_time_s() - start_s < s->limits.abort_s)
        usleep(1000);
    if (!atomic_load(&a->done)) {
        pthread_detach(thread); /* and leaves it its list */
        return;
    }
    pthread_join(thread, NULL);
    free(a);
}

static const char *group_name(gr_group g) {
    static const char *const names[GR_N_GROUP] = {"world", "expert-parallel", "expert-data-parallel"};
    return names[g];
}

/* The last call of `g` failed: its communicator may stand still for ever, and with it all behind it in the stream. */
static gr_err lose(nccl *s, gr_group g, const char *why) {
    const gr_comm *c = s->mover.comm;
    gr_err e = gr_fail(GR_PEER,
        "rank %d of %d: NCCL: %s with the %s group (rank %d of %d): %s; see the other ranks' messages, their GPUs "
        "(nvidia-smi, dmesg) and the network between them (NCCL_DEBUG=INFO tells more); ranks that share a GPU need "
        "parallel.comm \"mpi\"; start again",
        c->rank[GR_WORLD], c->size[GR_WORLD], s->what, group_name(g), c->rank[g], c->size[g], why);
    s->lost = true;
    end_all(s);
    return e;
}

static gr_err lose_for(nccl *s, gr_group g, ncclResult_t rc) {
    char why[512];
    const char *more = s->comm[g] ? s->call.ncclGetLastError(s->comm[g]) : NULL;
    snprintf(why, sizeof why, "%s%s%s", s->call.ncclGetErrorString(rc), more && *more ? ": " : "",
        more && *more ? more : "");
    return lose(s, g, why);
}

static gr_err lose_late(nccl *s, gr_group g, double limit_s) {
    char why[128];
    snprintf(why, sizeof why, "expected all its ranks to take part within %g s, got no end", limit_s);
    return lose(s, g, why);
}

static gr_err stay_lost(const nccl *s) {
    return gr_fail(GR_PEER, "rank %d of %d: NCCL has been ended after an error; start again",
        s->mover.comm->rank[GR_WORLD], s->mover.comm->size[GR_WORLD]);
}

/* ---------------------------------------------------------------- calls */

static ncclResult_t state_of(const nccl *s, gr_group g) {
    ncclResult_t state = ncclSuccess, rc = s->call.ncclCommGetAsyncError(s->comm[g], &state);
    return rc == ncclSuccess ? state : rc;
}

/* Until the group's last call is in the stream, or for the first ones: has met all other ranks. */
static gr_err settle(nccl *s, gr_group g, double limit_s) {
    double start_s = gr_time_s();
    for (;;) {
        ncclResult_t state = state_of(s, g);
        if (state == ncclSuccess)
            return GR_OK;
        if (state != ncclInProgress)
            return lose_for(s, g, state);
        if (!(gr_time_s() - start_s < limit_s))
            return lose_late(s, g, limit_s);
        sched_yield();
    }
}

/* A call of group `g` begins. */
static gr_err call_begin(nccl *s, gr_group g, const char *what) {
    if (s->lost)
        return stay_lost(s);
    s->group = g;
    s->what = what;
    ncclResult_t rc = s->call.ncclGroupStart();
    return rc == ncclSuccess ? GR_OK : lose_for(s, g, rc);
}

/* Operations after one that failed are left out. */
static bool is_well(ncclResult_t rc) {
    return rc == ncclSuccess || rc == ncclInProgress;
}

static gr_err call_end(nccl *s, gr_group g, ncclResult_t rc, double limit_s) {
    ncclResult_t end = s->call.ncclGroupEnd();
    rc = is_well(rc) ? end : rc;
    return is_well(rc) ? settle(s, g, limit_s) : lose_for(s, g, rc);
}

static void count(nccl *s, size_t n_byte) {
    s->mover.comm->sent[s->mover.traffic] += n_byte;
}

static bool has_others(const gr_comm *c, const gr_exchange *x) {
    for (int r = 0; r < c->size[x->group]; r++)
        if (r != c->rank[x->group] && (x->send_rows[r] || x->recv_rows[r]))
            return true;
    return false;
}

/* A pair of ranks without rows between them has no operation on either side, since both know the count. */
static gr_err exchange_start(gr_mover *m, const gr_exchange *x) {
    nccl *s = (nccl *)m;
    const gr_comm *c = m->comm;
    const uint8_t *send = x->send;
    uint8_t *recv = x->recv;
    size_t row = x->width * gr_dtype_size(x->dtype);
    ncclResult_t rc = ncclSuccess;
    s->moving = x->group;
    if (!s->lost && !has_others(c, x))
        return GR_OK;
    GR_TRY(call_begin(s, x->group, "an exchange of rows"));
    for (int r = 0; r < c->size[x->group]; r++) {
        size_t n_send = x->send_rows[r] * row, n_recv = x->recv_rows[r] * row;
        bool other = r != c->rank[x->group];
        if (other && n_send && is_well(rc))
            rc = s->call.ncclSend(send, n_send, ncclUint8, r, s->comm[x->group], s->stream);
        if (other && n_recv && is_well(rc))
            rc = s->call.ncclRecv(recv, n_recv, ncclUint8, r, s->comm[x->group], s->stream);
        count(s, other ? n_send : 0);
        send += n_send;
        recv += n_recv;
    }
    return call_end(s, x->group, rc, s->limits.wait_s);
}

static gr_err exchange_wait(gr_mover *m) {
    nccl *s = (nccl *)m;
    if (s->lost)
        return stay_lost(s);
    ncclResult_t state = state_of(s, s->moving);
    return state == ncclSuccess ? GR_OK : lose_for(s, s->moving, state);
}

static ncclDataType_t number(gr_dtype dtype) {
    return dtype == GR_F32 ? ncclFloat32 : dtype == GR_F64 ? ncclFloat64 : ncclUint64;
}

/* Counted as a reduce-scatter and an all-gather of shards, however NCCL makes it; the last shards may be short. */
static size_t sum_bytes(const gr_comm *c, gr_group g, size_t n, size_t elem) {
    size_t n_rank = (size_t)c->size[g], shard = n / n_rank + (n % n_rank != 0), first = (size_t)c->rank[g] * shard;
    size_t own = first < n ? (n - first < shard ? n - first : shard) : 0;
    return (n - own + own * (n_rank - 1)) * elem;
}

static gr_err sum(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n) {
    nccl *s = (nccl *)m;
    GR_TRY(call_begin(s, g, "a sum"));
    ncclResult_t rc = s->call.ncclAllReduce(data, data, n, number(dtype), ncclSum, s->comm[g], s->stream);
    count(s, sum_bytes(m->comm, g, n, gr_dtype_size(dtype)));
    return call_end(s, g, rc, s->limits.wait_s);
}

static gr_err reduce_scatter(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    nccl *s = (nccl *)m;
    size_t shard = n_shard * gr_dtype_size(dtype), others = (size_t)m->comm->size[g] - 1;
    uint8_t *own = (uint8_t *)data + (size_t)m->comm->rank[g] * shard;
    GR_TRY(call_begin(s, g, "a reduce-scatter"));
    ncclResult_t rc = s->call.ncclReduceScatter(data, own, n_shard, number(dtype), ncclSum, s->comm[g], s->stream);
    count(s, others * shard);
    return call_end(s, g, rc, s->limits.wait_s);
}

static gr_err all_gather(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    nccl *s = (nccl *)m;
    size_t shard = n_shard * gr_dtype_size(dtype), others = (size_t)m->comm->size[g] - 1;
    const uint8_t *own = (const uint8_t *)data + (size_t)m->comm->rank[g] * shard;
    GR_TRY(call_begin(s, g, "an all-gather"));
    ncclResult_t rc = s->call.ncclAllGather(own, data, shard, ncclUint8, s->comm[g], s->stream);
    count(s, others * shard);
    return call_end(s, g, rc, s->limits.wait_s);
}

/* Of each owner's part one operation, all in one group: NCCL gives them one launch. */
static gr_err reduce_piece(gr_mover *m, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    nccl *s = (nccl *)m;
    size_t elem = gr_dtype_size(dtype);
    ncclResult_t rc = ncclSuccess;
    GR_TRY(call_begin(s, g, "a reduction by pieces"));
    for (int r = 0; r < m->comm->size[g]; r++) {
        const gr_piece part = gr_piece_owned(p, r);
        uint8_t *at = (uint8_t *)data + part.first * elem;
        if (part.n && is_well(rc))
            rc = s->call.ncclReduce(at, at, part.n, number(dtype), ncclSum, r, s->comm[g], s->stream);
        count(s, r == m->comm->rank[g] ? 0 : part.n * elem);
    }
    return call_end(s, g, rc, s->limits.wait_s);
}

static gr_err gather_piece(gr_mover *m, gr_group g, gr_dtype dtype, void *data, gr_piece p) {
    nccl *s = (nccl *)m;
    size_t elem = gr_dtype_size(dtype), others = (size_t)m->comm->size[g] - 1;
    ncclResult_t rc = ncclSuccess;
    GR_TRY(call_begin(s, g, "a gathering by pieces"));
    for (int r = 0; r < m->comm->size[g]; r++) {
        const gr_piece part = gr_piece_owned(p, r);
        uint8_t *at = (uint8_t *)data + part.first * elem;
        if (part.n && is_well(rc))
            rc = s->call.ncclBroadcast(at, at, part.n * elem, ncclUint8, r, s->comm[g], s->stream);
        count(s, r == m->comm->rank[g] ? others * part.n * elem : 0);
    }
    return call_end(s, g, rc, s->limits.wait_s);
}

static gr_err bcast(gr_mover *m, gr_group g, void *data, size_t n_byte, int root) {
    nccl *s = (nccl *)m;
    GR_TRY(call_begin(s, g, "a broadcast"));
    ncclResult_t rc = s->call.ncclBroadcast(data, data, n_byte, ncclUint8, root, s->comm[g], s->stream);
    count(s, m->comm->rank[g] == root ? n_byte * (size_t)(m->comm->size[g] - 1) : 0);
    return call_end(s, g, rc, s->limits.wait_s);
}

/* ---------------------------------------------------------------- while the host waits for the device */

/* NCCL's work on lane COMM also waits for what made its data: the limit is for both together. */
static gr_err watch(void *watched, double waited_s) {
    nccl *s = watched;
    if (s->lost)
        return stay_lost(s);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        ncclResult_t state = s->comm[g] ? state_of(s, g) : ncclSuccess;
        if (!is_well(state))
            return lose_for(s, g, state);
    }
    if (waited_s < s->limits.wait_s || cudaStreamQuery(s->stream) == cudaSuccess)
        return GR_OK;
    return lose_late(s, s->group, s->limits.wait_s);
}

/* Until the stream is empty. */
static gr_err drain(nccl *s, gr_group g, double limit_s) {
    double start_s = gr_time_s();
    cudaError_t rc;
    while ((rc = cudaStreamQuery(s->stream)) == cudaErrorNotReady) {
        ncclResult_t state = state_of(s, g);
        if (!is_well(state))
            return lose_for(s, g, state);
        if (!(gr_time_s() - start_s < limit_s))
            return lose_late(s, g, limit_s);
        usleep(50);
    }
    return rc == cudaSuccess ? GR_OK : lose(s, g, cudaGetErrorString(rc));
}

/* ---------------------------------------------------------------- opening and closing */

/* NCCL connects ranks, and takes memory for it, when they first need each other: before the first step then. One int
 * goes to and comes from each rank, then every kind of collective follows. */
static gr_err warm_up(nccl *s, gr_group g) {
    gr_comm *c = s->mover.comm;
    size_t n = (size_t)c->size[g], me = (size_t)c->rank[g];
    uint32_t *out = s->scratch, *in = out + n;
    GR_TRY(call_begin(s, g, "the first exchange"));
    ncclResult_t rc = ncclSuccess;
    for (size_t r = 0; r < n; r++) {
        if (r != me && is_well(rc))
            rc = s->call.ncclSend(out + r, sizeof *out, ncclUint8, (int)r, s->comm[g], s->stream);
        if (r != me && is_well(rc))
            rc = s->call.ncclRecv(in + r, sizeof *in, ncclUint8, (int)r, s->comm[g], s->stream);
    }
    GR_TRY(call_end(s, g, rc, s->limits.start_s));
    GR_TRY(call_begin(s, g, "the first sum"));
    rc = s->call.ncclAllReduce(out, out, n, ncclFloat32, ncclSum, s->comm[g], s->stream);
    GR_TRY(call_end(s, g, rc, s->limits.start_s));
    GR_TRY(call_begin(s, g, "the first reduction to one"));
    rc = s->call.ncclReduce(out, out, n, ncclFloat32, ncclSum, 0, s->comm[g], s->stream);
    GR_TRY(call_end(s, g, rc, s->limits.start_s));
    GR_TRY(call_begin(s, g, "the first broadcast"));
    rc = s->call.ncclBroadcast(out, out, sizeof *out, ncclUint8, 0, s->comm[g], s->stream);
    GR_TRY(call_end(s, g, rc, s->limits.start_s));
    GR_TRY(call_begin(s, g, "the first reduce-scatter"));
    rc = s->call.ncclReduceScatter(out, out + me, 1, ncclFloat32, ncclSum, s->comm[g], s->stream);
    GR_TRY(call_end(s, g, rc, s->limits.start_s));
    GR_TRY(call_begin(s, g, "the first all-gather"));
    rc = s->call.ncclAllGather(out + me, out, sizeof *out, ncclUint8, s->comm[g], s->stream);
    GR_TRY(call_end(s, g, rc, s->limits.start_s));
    return drain(s, g, s->limits.start_s);
}

static gr_err create(nccl *s, gr_group g, const ncclUniqueId *id) {
    const gr_comm *c = s->mover.comm;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    s->what = "creating the communicator";
    ncclResult_t rc = s->call.ncclCommInitRankConfig(&s->comm[g], c->size[g], *id, c->rank[g], &config);
    if (!is_well(rc))
        return lose_for(s, g, rc);
    GR_TRY(settle(s, g, s->limits.start_s));
    return warm_up(s, g);
}

/* The communicator of a group; its id goes from the group's first rank to the others over MPI. */
static gr_err form(nccl *s, gr_group g) {
    gr_comm *c = s->mover.comm;
    if (c->size[g] <= 1)
        return GR_OK;
    if (g != GR_WORLD && c->size[g] == c->size[GR_WORLD]) {
        s->comm[g] = s->comm[GR_WORLD];
        return GR_OK;
    }
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    s->what = "making an id";
    ncclResult_t rc = c->rank[g] == 0 ? s->call.ncclGetUniqueId(&id) : ncclSuccess;
    GR_TRY(gr_comm_agree(c, rc == ncclSuccess ? GR_OK : lose_for(s, g, rc)));
    GR_TRY(c->bcast(c, g, &id, sizeof id, 0));
    return gr_comm_agree(c, create(s, g, &id));
}

/* After all that was queued has been done; the other ranks of the group do it too. */
static void dissolve(nccl *s, gr_group g) {
    ncclComm_t comm = s->comm[g];
    if (!comm)
        return;
    if (g != GR_WORLD && comm == s->comm[GR_WORLD]) {
        s->comm[g] = NULL;
        return;
    }
    s->what = "closing the communicator";
    ncclResult_t rc = s->call.ncclCommFinalize(comm);
    gr_err e = is_well(rc) ? settle(s, g, s->limits.abort_s) : lose_for(s, g, rc);
    if (!e && !is_well(rc = s->call.ncclCommDestroy(comm)))
        gr_debug("closing: ncclCommDestroy: %s", s->call.ncclGetErrorString(rc));
    if (e)
        gr_debug("closing: %s", gr_error_text());
    s->comm[g] = NULL;
}

static gr_err group(gr_mover *m) {
    nccl *s = (nccl *)m;
    GR_TRY(gr_comm_agree(m->comm, s->lost ? stay_lost(s) : GR_OK));
    dissolve(s, GR_EDP);
    dissolve(s, GR_EP);
    GR_TRY(form(s, GR_EP));
    return form(s, GR_EDP);
}

static void close_nccl(gr_mover *m, bool orderly) {
    nccl *s = (nccl *)m;
    if (m->backend->watched == s) {
        m->backend->watch = NULL;
        m->backend->watched = NULL;
    }
    for (int g = GR_N_GROUP - 1; orderly && !s->lost && g >= 0; g--)
        dissolve(s, (gr_group)g);
    end_all(s);
    m->backend->release(m->backend, s->scratch);
    free(s);
}

static gr_err open_nccl(nccl *s) {
    gr_backend *b = s->mover.backend;
    gr_comm *c = s->mover.comm;
    size_t n_int = 2 * (size_t)c->size[GR_WORLD];
    gr_err e = GR_OK;
    s->stream = b->lane_native(b, GR_LANE_COMM);
    if (!s->stream)
        e = gr_fail(
            GR_CONFIG, "parallel.comm: expected a backend with CUDA streams for NCCL, got %s; use mpi", b->name);
    /* The one algorithm whose sums come out with the same bits in every run. */
    if (!e && setenv("NCCL_ALGO", "Ring", 0))
        e = gr_fail(GR_RESOURCE, "NCCL_ALGO: expected room in the environment, got none");
    if (!e)
        e = b->alloc(b, n_int * sizeof(uint32_t), "NCCL's first exchange", &s->scratch);
    if (!e)
        e = gr_nccl_load(&s->call);
    GR_TRY(gr_comm_agree(c, e));
    GR_ASSERT(!b->watch, "backend %s has a comm already", b->name);
    b->watch = watch;
    b->watched = s;
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++)
        GR_TRY(form(s, g));
    int version = 0;
    if (s->call.ncclGetVersion(&version) == ncclSuccess && version != NCCL_VERSION_CODE)
        gr_info("comm nccl: built with version %d, runs with %d", NCCL_VERSION_CODE, version);
    return GR_OK;
}

gr_err gr_comm_nccl_open(gr_mover **out, gr_comm *c, gr_backend *b, const gr_comm_nccl_limits *limits) {
    *out = NULL;
    void *p = NULL;
    gr_err e = gr_comm_agree(c, gr_alloc(&p, 1, sizeof(nccl), "comm nccl"));
    if (e) {
        free(p);
        return e;
    }
    nccl *s = p;
    s->limits = *limits;
    s->mover = (gr_mover){.name = "nccl",
        .queues = true,
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
        .close = close_nccl};
    e = open_nccl(s);
    if (e) {
        close_nccl(&s->mover, false);
        return e;
    }
    *out = &s->mover;
    return GR_OK;
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
const char *gr_comm_nccl_library(void) {
    return "NCCL " TEXT(NCCL_MAJOR) "." TEXT(NCCL_MINOR) "." TEXT(NCCL_PATCH);
}
