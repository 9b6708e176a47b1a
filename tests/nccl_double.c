/* nccl_double.c: see nccl_double.h. */
#include "nccl_double.h"

#include <mpi.h>

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/nccl_library.h"
#include "lane_double.h"

enum { CALLS_MAX = 256, COMMS_MAX = 256, RANKS_MAX = 16, QUESTIONS = 3 };

typedef enum kind { KIND_SEND, KIND_RECEIVE, KIND_SUM, KIND_SCATTER, KIND_GATHER, KIND_BCAST, KIND_REDUCE } kind;
static const char *const kind_names[] = {
    "ncclSend", "ncclRecv", "ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclBroadcast", "ncclReduce"};

typedef struct call {
    kind kind;
    const uint8_t *send;
    uint8_t *recv;
    size_t n_byte; /* of a message, of the whole array of a sum, of one shard of the others */
    ncclDataType_t type;
    int peer; /* or root */
} call;

/* What goes before the bytes of every message, so that the other side sees whether it is what it expects. */
typedef struct head {
    int32_t tag, number, kind, root, type, padding;
    uint64_t n_byte, n_carried;
} head;

typedef enum phase { MEETING, READY, FINALIZING, FINALIZED } phase;

struct ncclComm {
    int n, rank, tag;
    int world[RANKS_MAX]; /* of each rank */
    int32_t n_sent[RANKS_MAX], n_received[RANKS_MAX];
    phase phase;
    int hello[RANKS_MAX][2], n_hello; /* rank, world rank: gathered by rank 0 */
    MPI_Request request[RANKS_MAX];
    int n_request;
    bool answering;
    int questions;     /* still to be asked before what is in progress is over */
    struct work *work; /* in progress, to be put into the stream then */
    bool destroyed;
    atomic_bool aborted;
};

/* One group in a stream. */
typedef struct work {
    ncclComm_t comm;
    cudaStream_t stream;
    call calls[CALLS_MAX];
    int n_call;
    bool posted;
    MPI_Request request[2 * CALLS_MAX * RANKS_MAX];
    int n_request;
    uint8_t *out[CALLS_MAX][RANKS_MAX], *in[CALLS_MAX][RANKS_MAX]; /* messages to and from each rank; NULL: none */
} work;

static MPI_Comm meeting, moving; /* for ids and for data */
static struct ncclComm *comms[COMMS_MAX];
static int n_comm, n_id;
static _Thread_local work *open_group; /* what has been called since ncclGroupStart; NULL: nothing */
static _Thread_local int depth;
static nccl_double_counts counts;
static atomic_int n_aborted;
static bool stays_away, breaks;
static atomic_bool hangs;

static int world_rank(void) {
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

__attribute__((format(printf, 1, 2))) _Noreturn static void die(const char *fmt, ...) {
    char text[512];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    fprintf(stderr, "nccl double, rank %d: %s\n", world_rank(), text);
    fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, 1);
    _exit(1);
}

#define MUST(cond, ...)                                                                                                \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            die(__VA_ARGS__);                                                                                          \
    } while (0)

/* ---------------------------------------------------------------- what a group does */

static size_t type_size(ncclDataType_t type) {
    return type == ncclUint8 ? 1 : type == ncclFloat32 ? 4 : type == ncclFloat64 || type == ncclUint64 ? 8 : 0;
}

static bool is_collective(const call *c) {
    return c->kind != KIND_SEND && c->kind != KIND_RECEIVE;
}

/* Bytes that this call hands to rank r of its communicator. All of a sum's array goes to everybody. */
static size_t carried_to(const struct ncclComm *m, const call *c, int r, int from) {
    size_t n = (size_t)m->n;
    switch (c->kind) {
    case KIND_SEND:
        return r == c->peer ? c->n_byte : 0;
    case KIND_RECEIVE:
        return from == c->peer ? c->n_byte : 0;
    case KIND_SUM:
        return c->n_byte;
    case KIND_SCATTER:
        return n * c->n_byte;
    case KIND_GATHER:
        return c->n_byte;
    case KIND_REDUCE:
        return r == c->peer ? c->n_byte : 0;
    default:
        return from == c->peer ? c->n_byte : 0;
    }
}

static void *take(size_t n_byte) {
    void *p = calloc(n_byte, 1);
    MUST(p, "no memory");
    return p;
}

static void post_call(work *w, int i) {
    struct ncclComm *m = w->comm;
    const call *c = &w->calls[i];
    for (int r = 0; r < m->n; r++) {
        bool sends = r != m->rank && (is_collective(c) || (c->kind == KIND_SEND && r == c->peer));
        bool receives = r != m->rank && (is_collective(c) || (c->kind == KIND_RECEIVE && r == c->peer));
        if (sends) {
            size_t n = carried_to(m, c, r, m->rank);
            head h = {.tag = m->tag,
                .number = m->n_sent[r]++,
                .kind = is_collective(c) ? (int)c->kind : (int)KIND_SEND,
                .root = is_collective(c) ? c->peer : 0,
                .type = (int)c->type,
                .n_byte = c->n_byte,
                .n_carried = n};
            w->out[i][r] = take(sizeof h + n);
            memcpy(w->out[i][r], &h, sizeof h);
            memcpy(w->out[i][r] + sizeof h, c->send, n);
            MPI_Isend(
                w->out[i][r], (int)(sizeof h + n), MPI_BYTE, m->world[r], m->tag, moving, &w->request[w->n_request++]);
        }
        if (receives) { /* room for a message that is too long as well: it is to be seen, not to be cut off */
            size_t room = sizeof(head) + carried_to(m, c, m->rank, r) + 65536;
            w->in[i][r] = take(room);
            MPI_Irecv(w->in[i][r], (int)room, MPI_BYTE, m->world[r], m->tag, moving, &w->request[w->n_request++]);
        }
    }
}

static void check_head(work *w, const call *c, int r, const uint8_t *message) {
    struct ncclComm *m = w->comm;
    head h;
    memcpy(&h, message, sizeof h);
    kind expected = is_collective(c) ? c->kind : KIND_SEND;
    MUST(h.tag == m->tag && h.number == m->n_received[r]++, "message %d from rank %d out of order", h.number, r);
    MUST(h.kind == (int)expected, "rank %d calls %s where this one calls %s", r, kind_names[h.kind],
        kind_names[c->kind]);
    MUST(h.n_byte == c->n_byte, "%s: rank %d has %zu bytes, this one %zu", kind_names[c->kind], r, (size_t)h.n_byte,
        c->n_byte);
    MUST(h.type == (int)c->type && (!is_collective(c) || h.root == c->peer), "%s: rank %d has another type or root",
        kind_names[c->kind], r);
    MUST(h.n_carried == carried_to(m, c, m->rank, r), "%s: rank %d carries another number of bytes",
        kind_names[c->kind], r);
}

static void add(ncclDataType_t type, uint8_t *to, const uint8_t *from, size_t n_byte) {
    for (size_t at = 0; at < n_byte; at += type_size(type)) {
        if (type == ncclFloat32)
            *(float *)(void *)(to + at) += *(const float *)(const void *)(from + at);
        else if (type == ncclFloat64)
            *(double *)(void *)(to + at) += *(const double *)(const void *)(from + at);
        else
            *(uint64_t *)(void *)(to + at) += *(const uint64_t *)(const void *)(from + at);
    }
}

/* The sum over the ranks of n_byte bytes at `first` of their arrays. */
static void add_up(work *w, int i, size_t first, size_t n_byte) {
    struct ncclComm *m = w->comm;
    const call *c = &w->calls[i];
    uint8_t *sum = take(n_byte);
    for (int r = m->n - 1; r >= 0; r--)
        add(c->type, sum, (r == m->rank ? c->send : w->in[i][r] + sizeof(head)) + first, n_byte);
    memcpy(c->recv, sum, n_byte);
    free(sum);
}

static void finish_call(work *w, int i) {
    struct ncclComm *m = w->comm;
    const call *c = &w->calls[i];
    for (int r = 0; r < m->n; r++)
        if (w->in[i][r])
            check_head(w, c, r, w->in[i][r]);
    if (c->kind == KIND_RECEIVE)
        memcpy(c->recv, w->in[i][c->peer] + sizeof(head), c->n_byte);
    else if (c->kind == KIND_SUM)
        add_up(w, i, 0, c->n_byte);
    else if (c->kind == KIND_SCATTER) {
        add_up(w, i, (size_t)m->rank * c->n_byte, c->n_byte);
        uint8_t *all = c->recv - (size_t)m->rank * c->n_byte; /* in place; NCCL says nothing of the other shards */
        for (int r = 0; r < m->n; r++)
            if (r != m->rank)
                memset(all + (size_t)r * c->n_byte, 0xff, c->n_byte);
    } else if (c->kind == KIND_GATHER) {
        for (int r = 0; r < m->n; r++)
            if (r != m->rank)
                memcpy(c->recv + (size_t)r * c->n_byte, w->in[i][r] + sizeof(head), c->n_byte);
    } else if (c->kind == KIND_REDUCE && m->rank == c->peer)
        add_up(w, i, 0, c->n_byte);
    else if (c->kind == KIND_BCAST && m->rank != c->peer)
        memcpy(c->recv, w->in[i][c->peer] + sizeof(head), c->n_byte);
}

static void free_work(work *w) {
    for (int i = 0; i < w->n_call; i++)
        for (int r = 0; r < RANKS_MAX; r++) {
            free(w->out[i][r]);
            free(w->in[i][r]);
        }
    free(w);
}

/* The head of the stream: what has been posted is waited for. */
static bool step_work(void *of) {
    work *w = of;
    int done = 1;
    if (atomic_load(&w->comm->aborted)) { /* its messages stay with MPI, and their memory with them */
        for (int i = 0; i < w->n_request; i++)
            if (w->request[i] != MPI_REQUEST_NULL) {
                MPI_Cancel(&w->request[i]);
                MPI_Request_free(&w->request[i]);
            }
        return true;
    }
    for (int i = 0; !w->posted && i < w->n_call; i++)
        post_call(w, i);
    w->posted = true;
    MPI_Testall(w->n_request, w->request, &done, MPI_STATUSES_IGNORE);
    if (!done)
        return false;
    for (int i = 0; i < w->n_call; i++)
        finish_call(w, i);
    free_work(w);
    return true;
}

/* ---------------------------------------------------------------- calls in groups */

static void must_be_ready(const struct ncclComm *m, const char *name) {
    MUST(m && !m->destroyed, "%s: the communicator is not there", name);
    MUST(!atomic_load(&m->aborted), "%s: the communicator has been aborted", name);
    MUST(m->phase == READY && !m->work, "%s: the communicator's last call is still in progress", name);
}

static ncclResult_t put(ncclComm_t m, cudaStream_t stream, call c) {
    const char *name = kind_names[c.kind];
    must_be_ready(m, name);
    MUST(depth == 1, "%s outside of a group", name);
    MUST(type_size(c.type) > 0, "%s: type %d", name, (int)c.type);
    MUST(c.n_byte > 0, "%s of nothing", name);
    MUST(c.peer >= 0 && c.peer < m->n, "%s: rank %d of %d", name, c.peer, m->n);
    MUST(is_collective(&c) || c.peer != m->rank, "%s: own rows", name);
    MUST(lane_double_is(stream, GR_LANE_COMM), "%s: not on lane COMM", name);
    work *w = open_group = open_group ? open_group : take(sizeof *w);
    MUST(!w->comm || (w->comm == m && w->stream == stream), "%s: a second communicator in one group", name);
    MUST(w->n_call < CALLS_MAX, "too many calls in a group");
    bool rooted = c.kind == KIND_BCAST || c.kind == KIND_REDUCE; /* several, each of another root */
    MUST(!is_collective(&c) || w->n_call == 0 || (rooted && w->calls[0].kind == c.kind),
        "%s: more than one collective in a group", name);
    for (int i = 0; i < w->n_call; i++)
        MUST(w->calls[i].kind != c.kind || w->calls[i].peer != c.peer, "%s: twice to one rank in a group", name);
    size_t n_read = c.kind == KIND_SCATTER ? (size_t)m->n * c.n_byte : c.kind == KIND_RECEIVE ? 0 : c.n_byte;
    size_t n_written = c.kind == KIND_GATHER ? (size_t)m->n * c.n_byte : c.kind == KIND_SEND ? 0 : c.n_byte;
    MUST(!n_read || lane_double_holds(stream, c.send, n_read), "%s reads outside of device memory", name);
    MUST(!n_written || lane_double_holds(stream, c.recv, n_written), "%s writes outside of device memory", name);
    w->comm = m;
    w->stream = stream;
    w->calls[w->n_call++] = c;
    counts.sends += c.kind == KIND_SEND;
    counts.receives += c.kind == KIND_RECEIVE;
    counts.collectives += is_collective(&c);
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
    MUST(depth++ == 0, "a group in a group");
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    MUST(depth-- == 1, "ncclGroupEnd without ncclGroupStart");
    work *w = open_group;
    open_group = NULL;
    if (!w)
        return ncclSuccess;
    w->comm->work = w;
    w->comm->questions = QUESTIONS;
    counts.groups++;
    return ncclInProgress;
}

ncclResult_t ncclSend(
    const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t m, cudaStream_t stream) {
    return put(m, stream,
        (call){.kind = KIND_SEND, .send = send, .n_byte = count * type_size(type), .type = type, .peer = peer});
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t m, cudaStream_t stream) {
    return put(m, stream,
        (call){.kind = KIND_RECEIVE, .recv = recv, .n_byte = count * type_size(type), .type = type, .peer = peer});
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
    ncclComm_t m, cudaStream_t stream) {
    MUST(send == recv && op == ncclSum && type != ncclUint8, "ncclAllReduce: not a sum in place");
    return put(m, stream,
        (call){.kind = KIND_SUM, .send = send, .recv = recv, .n_byte = count * type_size(type), .type = type});
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
    ncclComm_t m, cudaStream_t stream) {
    MUST(send == recv && op == ncclSum && type != ncclUint8, "ncclReduce: not a sum in place");
    return put(m, stream,
        (call){.kind = KIND_REDUCE,
            .send = send,
            .recv = recv,
            .n_byte = count * type_size(type),
            .type = type,
            .peer = root});
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
    ncclComm_t m, cudaStream_t stream) {
    size_t shard = count * type_size(type);
    MUST(op == ncclSum && type != ncclUint8, "ncclReduceScatter: not a sum");
    MUST(m && recv == (const uint8_t *)send + (size_t)m->rank * shard, "ncclReduceScatter: not in place");
    return put(m, stream, (call){.kind = KIND_SCATTER, .send = send, .recv = recv, .n_byte = shard, .type = type});
}

ncclResult_t ncclAllGather(
    const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t m, cudaStream_t stream) {
    size_t shard = count * type_size(type);
    MUST(m && send == (uint8_t *)recv + (size_t)m->rank * shard, "ncclAllGather: not in place");
    return put(m, stream, (call){.kind = KIND_GATHER, .send = send, .recv = recv, .n_byte = shard, .type = type});
}

ncclResult_t ncclBroadcast(
    const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t m, cudaStream_t stream) {
    MUST(send == recv, "ncclBroadcast: not in place");
    return put(m, stream,
        (call){.kind = KIND_BCAST,
            .send = send,
            .recv = recv,
            .n_byte = count * type_size(type),
            .type = type,
            .peer = root});
}

/* ---------------------------------------------------------------- communicators */

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    int made[3] = {world_rank(), ++n_id, 4711};
    memset(id, 0, sizeof *id);
    memcpy(id->internal, made, sizeof made);
    return ncclSuccess;
}

/* Rank 0 hears from everybody who they are, and tells everybody. */
ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n, ncclUniqueId id, int rank, ncclConfig_t *config) {
    int made[3];
    memcpy(made, id.internal, sizeof made);
    MUST(made[2] == 4711, "ncclCommInitRankConfig: an id that was not made by ncclGetUniqueId");
    MUST(config && config->blocking == 0, "ncclCommInitRankConfig: a blocking communicator");
    MUST(n > 1 && n <= RANKS_MAX && rank >= 0 && rank < n && n_comm < COMMS_MAX, "rank %d of %d", rank, n);
    MUST(depth == 0, "ncclCommInitRankConfig in a group");
    struct ncclComm *m = take(sizeof *m);
    m->n = n;
    m->rank = rank;
    m->tag = made[0] * 1000 + made[1];
    m->hello[0][0] = rank;
    m->hello[0][1] = world_rank();
    m->questions = QUESTIONS;
    comms[n_comm++] = *out = m;
    counts.init++;
    if (stays_away)
        return ncclInProgress;
    if (rank != 0) {
        MPI_Isend(m->hello[0], 2, MPI_INT, made[0], m->tag, meeting, &m->request[m->n_request++]);
        MPI_Irecv(m->world, n, MPI_INT, made[0], m->tag, meeting, &m->request[m->n_request++]);
    } else {
        MUST(made[0] == world_rank(), "the id is not of the group's first rank");
        for (int r = 1; r < n; r++)
            MPI_Irecv(m->hello[r], 2, MPI_INT, MPI_ANY_SOURCE, m->tag, meeting, &m->request[m->n_request++]);
    }
    return ncclInProgress;
}

/* True when all have met. */
static bool meet(struct ncclComm *m) {
    int done = 0;
    if (m->n_request == 0)
        return false; /* stays away */
    MPI_Testall(m->n_request, m->request, &done, MPI_STATUSES_IGNORE);
    if (!done || m->rank != 0 || m->answering)
        return done;
    for (int r = 0; r < m->n; r++)
        m->world[m->hello[r][0]] = m->hello[r][1];
    m->n_request = 0;
    for (int r = 1; r < m->n; r++)
        MPI_Isend(m->world, m->n, MPI_INT, m->world[r], m->tag, meeting, &m->request[m->n_request++]);
    m->answering = true;
    return false;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t m, ncclResult_t *state) {
    MUST(m && !m->destroyed && !atomic_load(&m->aborted), "ncclCommGetAsyncError: the communicator is not there");
    *state = ncclInProgress;
    if (breaks) {
        breaks = false;
        *state = ncclRemoteError;
        return ncclSuccess;
    }
    if (m->phase == MEETING) {
        if (!meet(m) || --m->questions > 0)
            return ncclSuccess;
        m->phase = READY;
    }
    if (m->phase == FINALIZING) {
        if (--m->questions > 0)
            return ncclSuccess;
        m->phase = FINALIZED;
    }
    if (m->work) {
        if (--m->questions > 0)
            return ncclSuccess;
        lane_double_push(m->work->stream, step_work, m->work);
        m->work = NULL;
    }
    *state = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t m) {
    must_be_ready(m, "ncclCommFinalize");
    m->phase = FINALIZING;
    m->questions = QUESTIONS;
    counts.finalized++;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t m) {
    MUST(m && !m->destroyed && m->phase == FINALIZED, "ncclCommDestroy: the communicator has not been finalized");
    m->destroyed = true;
    counts.destroyed++;
    return ncclSuccess;
}

/* From a thread of its own: MPI is left alone here. */
ncclResult_t ncclCommAbort(ncclComm_t m) {
    MUST(m && !m->destroyed && !atomic_exchange(&m->aborted, true), "ncclCommAbort: the communicator is not there");
    MUST(depth == 1, "ncclCommAbort outside of a group");
    atomic_fetch_add(&n_aborted, 1);
    while (atomic_load(&hangs))
        usleep(1000);
    return ncclSuccess;
}

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t rc) {
    return rc == ncclRemoteError ? "remote process exited or there was a network error" : "error of the double";
}

const char *ncclGetLastError(ncclComm_t m) {
    (void)m;
    return "last words";
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return lane_double_query(stream) ? cudaSuccess : cudaErrorNotReady;
}

const char *cudaGetErrorString(cudaError_t rc) {
    return rc == cudaSuccess ? "no error" : "error of the double";
}

/* ---------------------------------------------------------------- for tests */

/* In the place of nccl_library.c. */
gr_err gr_nccl_load(gr_nccl *out) {
#define FIND(name) out->name = name;
    GR_NCCL_FUNCTIONS(FIND)
#undef FIND
    return GR_OK;
}

void nccl_double_start(void) {
    MPI_Comm_dup(MPI_COMM_WORLD, &meeting);
    MPI_Comm_dup(MPI_COMM_WORLD, &moving);
}

static bool was_aborted(int tag) {
    for (int i = 0; i < n_comm; i++)
        if (comms[i]->tag == tag)
            return atomic_load(&comms[i]->aborted);
    return false;
}

void nccl_double_finish(void) {
    int found = 1;
    MPI_Status status;
    MPI_Barrier(MPI_COMM_WORLD);
    while (found) {
        MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, moving, &found, &status);
        if (!found)
            break;
        int n = 0;
        MPI_Get_count(&status, MPI_BYTE, &n);
        MUST(was_aborted(status.MPI_TAG), "a message from rank %d that nobody received", status.MPI_SOURCE);
        uint8_t *rest = take((size_t)n);
        MPI_Recv(rest, n, MPI_BYTE, status.MPI_SOURCE, status.MPI_TAG, moving, MPI_STATUS_IGNORE);
        free(rest);
    }
    for (int i = 0; i < n_comm; i++)
        MUST(comms[i]->destroyed || atomic_load(&comms[i]->aborted), "communicator %d is still open", i);
    MPI_Barrier(MPI_COMM_WORLD);
}

nccl_double_counts nccl_double_count(void) {
    nccl_double_counts c = counts;
    c.aborted = atomic_load(&n_aborted);
    return c;
}

void nccl_double_stay_away(bool away) {
    stays_away = away;
}

void nccl_double_break(void) {
    breaks = true;
}

void nccl_double_hang(bool hang) {
    atomic_store(&hangs, hang);
}
