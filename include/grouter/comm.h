/* comm.h: who the ranks are and how rows move. Chosen by name at run time: "self", "mpi", "nccl".
 *
 * Counts are rows or elements, never bytes. Every collective is called by all ranks of its group in the same order.
 *
 * Where the data are. Without a backend (gr_comm_attach) all data are host memory. With a backend whose memory the host
 * cannot touch, every call looks: data that the backend owns (gr_backend.owns) are device memory, all others host
 * memory. The data of one call are all in one of the two, on all ranks alike.
 *   Host memory: moved by MPI; done when the call returns.
 *   Device memory: moved by NCCL, or by MPI through page-locked host memory. The call takes its place among the ops of
 *   lane COMPUTE: it runs on lane COMM after all that was queued on COMPUTE before it, and what is queued on COMPUTE
 *   after it starts when it is done. Between exchange_start and exchange_wait COMPUTE goes on beside the exchange: the
 *   first half of that sentence is exchange_start's, the second exchange_wait's. Callers need no waits of their own.
 *   With NCCL no call waits for the device; through host memory every call does, once per piece. Host code reads
 *   results as an op's, by download and sync.
 *   While `beside` is set, COMPUTE goes on beside sums and gathers as well: what is queued on it after them starts when
 *   they are done only from `join` on, or from the next call without `beside`.
 *
 * Sums are in rank order, so the same layout gives the same bits. Those of NCCL are in an order of its own: equal to
 * the others to rounding, and on the same machines with the same layout the same bits in every run and on all ranks
 * (its ring algorithm, asked for unless NCCL_ALGO is set). */
#ifndef GROUTER_COMM_H
#define GROUTER_COMM_H

#include "grouter/backend.h"

typedef enum gr_group {
    GR_WORLD,
    GR_EP,  /* expert-parallel: R_ep consecutive ranks */
    GR_EDP, /* expert-data-parallel: equal rank modulo R_ep */
    GR_N_GROUP
} gr_group;

/* What data moves for: bytes are counted apart. */
typedef enum gr_traffic {
    GR_TRAFFIC_OTHER,     /* what no caller names: agreement, losses, loads, norms, checkpoints, start-up */
    GR_TRAFFIC_DISPATCH,  /* rows to their experts; in backward, gradients of the layer's output */
    GR_TRAFFIC_COMBINE,   /* sums of rows back; in backward, gradients of its input */
    GR_TRAFFIC_GATES,     /* learned gates with their rows, and their gradients back */
    GR_TRAFFIC_ROUTES,    /* choices of learned routers, routes made online */
    GR_TRAFFIC_GRADIENTS, /* of weights, to their sums, and the sums back where they are not sharded */
    GR_TRAFFIC_WEIGHTS,   /* from their owners to all that use them */
    GR_N_TRAFFIC
} gr_traffic;
const char *gr_traffic_name(gr_traffic t); /* "dispatch" */

typedef struct gr_exchange {
    gr_group group;
    gr_dtype dtype;
    uint32_t width;            /* elements per row */
    const void *send;          /* rows by destination rank */
    const uint32_t *send_rows; /* [group size]; both lists are read until exchange_wait returns */
    void *recv;                /* rows by source rank */
    const uint32_t *recv_rows; /* [group size]; sender's and receiver's counts agree (from the plan) */
} gr_exchange;

/* Elements [first, first+n) of an array of which every rank of a group owns `shard` elements, in rank order. */
typedef struct gr_piece {
    size_t shard, first, n;
} gr_piece;

typedef struct gr_comm_device gr_comm_device;
typedef struct gr_comm gr_comm;
struct gr_comm {
    const char *name;
    int rank[GR_N_GROUP], size[GR_N_GROUP]; /* of this process in each group; size 0: not formed yet */
    /* What the next call moves data for: set before it; every call sets it back to GR_TRAFFIC_OTHER. */
    gr_traffic traffic;
    /* Bytes of data that this rank has handed to other ranks since the comm was opened; what it keeps for itself does
     * not count. Of a bcast the root counts one copy for each other rank, however they travel. */
    uint64_t sent[GR_N_TRAFFIC];
    /* One exchange may be in flight; its buffers belong to the comm between start and wait. Meanwhile no other call. */
    gr_err (*exchange_start)(gr_comm *c, const gr_exchange *x);
    gr_err (*exchange_wait)(gr_comm *c);
    /* data[n] := sum over the group, in place, in rank order, same bits on every rank. F32 (added in fp32), F64, U64.
     */
    gr_err (*sum)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n);
    /* data[size*n_shard] -> own shard data[rank*n_shard..] := sum over the group, in rank order; other shards
     * undefined. */
    gr_err (*reduce_scatter)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard);
    /* data[size*n_shard] with the own shard valid -> all shards valid. Any dtype. */
    gr_err (*all_gather)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard);
    /* Both for a piece of such an array, data[p.n]: it may be of one owner or of several, whose own parts of it are
     * what the calls speak of. By pieces an array has the sums of the whole, with NCCL to rounding. */
    gr_err (*reduce_piece)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p);
    gr_err (*gather_piece)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p);
    /* See `beside`; for host memory nothing. */
    gr_err (*join)(gr_comm *c);
    bool beside; /* set and cleared by the caller */
    gr_err (*bcast)(gr_comm *c, gr_group g, void *data, size_t n_byte, int root);
    gr_err (*barrier)(gr_comm *c, gr_group g);
    gr_err (*group)(gr_comm *c, int R_ep);    /* see gr_comm_group */
    void (*close)(gr_comm *c, bool finalize); /* see gr_comm_close */
    bool queues;                              /* calls on device memory wait for no one: by NCCL */
    gr_backend *device;                       /* the backend whose memory the calls take as well; NULL: there is none */
    gr_comm_device *device_state;             /* NULL without it */
    bool automatic;                           /* opened as "auto": gr_comm_attach chooses who moves device memory */
    gr_err agreed;                            /* what the last gr_comm_agree found */
    int agreed_rank;                          /* whose error that was */
    void *state;
};

/* 64 unless `name` can be opened by this program. */
GR_MUST gr_err gr_comm_check(const char *name);
/* Opens "auto", "self", "mpi" or "nccl": auto is mpi under a launcher of more than one rank, else self (no MPI_Init). A
 * launcher that announces several ranks while MPI sees one is 64. After it only rank 0 logs. Groups: world only. */
GR_MUST gr_err gr_comm_open(gr_comm **out, const char *name);
/* Forms the expert-parallel and expert-data-parallel groups; R_ep divides the size (64). Called again it replaces them.
 */
GR_MUST gr_err gr_comm_group(gr_comm *c, int R_ep);
/* From now on the calls also take memory of `b`, which stays open until gr_comm_detach. Collective, agreed by all
 * ranks; a call for another backend replaces the first. Where the host can touch the backend's memory nothing changes
 * (a comm opened as "nccl" is then 64). Else a comm opened as "nccl" creates and warms up NCCL's communicators of all
 * groups formed so far, and of those formed later, on `b`'s device, which no two ranks may share; so does "auto" in a
 * program built with NCCL if `b` has queues for it (the comm is then named "nccl"); "mpi" takes page-locked host memory
 * of GR_COMM_STAGE bytes. 69 where some ranks have a device and others do not; 73 when a rank is not there within 5
 * minutes, and later, from any call or from the backend's sync, when one stays away for 10 minutes or NCCL reports an
 * error: the communicators are then aborted, and the process can only end. */
GR_MUST gr_err gr_comm_attach(gr_comm *c, gr_backend *b);
#define GR_COMM_STAGE ((size_t)64 << 20)
/* Ends that, before the backend is closed. With status 0 or an error all ranks agreed on it is collective; any other
 * error aborts what NCCL still does, since the other ranks may never come. Accepts a comm to which nothing is attached.
 */
void gr_comm_detach(gr_comm *c, gr_err status);
/* Detaches, then: status 0 or an error all ranks agreed on: finalises. Any other error: leaves MPI alone, since
 * MPI_Finalize would wait for the others; the process must then _exit with the code (main does). Accepts NULL. */
void gr_comm_close(gr_comm *c, gr_err status);

/* How many ranks the launcher says it started; 0 without a launcher. */
int gr_comm_launched(void);

/* Bytes of host memory that the comm uses for sums over ranks, and as it is attached, for device memory on its way. */
size_t gr_comm_memory(const gr_comm *c);

/* All ranks pass their own status; all return the first failing rank's code (only that rank has the text to print), and
 * the error counts as agreed for gr_comm_close. */
GR_MUST gr_err gr_comm_agree(gr_comm *c, gr_err mine);

/* Names compiled in, space-separated, for --version. */
const char *gr_comm_names(void);
const char *gr_comm_library(void); /* "Open MPI v4.1.4", with NCCL "Open MPI v4.1.4 + NCCL 2.28.9" */

#endif
