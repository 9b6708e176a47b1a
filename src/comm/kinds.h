/* kinds.h: the comms that gr_comm_open chooses from, and what moves device memory for them. */
#ifndef GROUTER_COMM_KINDS_H
#define GROUTER_COMM_KINDS_H

#include "grouter/comm.h"

/* One process; every group is {this rank} and nothing moves. */
GR_MUST gr_err gr_comm_self_open(gr_comm **out);

/* Sizes a test shrinks to reach the chunked paths with little data. */
typedef struct gr_comm_mpi_limits {
    size_t message_max; /* bytes of one message; MPI counts are int */
    size_t scratch;     /* bytes of received shards that `sum` and `reduce_scatter` work on at a time */
} gr_comm_mpi_limits;
#define GR_COMM_MPI_LIMITS ((gr_comm_mpi_limits){.message_max = (size_t)1 << 30, .scratch = (size_t)8 << 20})

/* Calls MPI_Init_thread(FUNNELED) unless it was called before. n_announced: ranks the launcher speaks of, 0 if unknown;
 * several announced while MPI sees one is 64. Every MPI error is 73 with MPI's own text. */
GR_MUST gr_err gr_comm_mpi_open(gr_comm **out, int n_announced, const gr_comm_mpi_limits *limits);

/* Bytes of scratch for sums over a world of n_rank ranks. */
size_t gr_comm_mpi_scratch(const gr_comm_mpi_limits *limits, int n_rank);

/* Name and version of the MPI library, callable at any time. */
const char *gr_comm_mpi_library(void);

/* What rank r owns of a piece: elements [first, first+n) counted from the piece's own first. */
gr_piece gr_piece_owned(gr_piece p, int r);

/* ---------------------------------------------------------------- device memory */

/* The calls of a gr_comm that move data. */
typedef struct gr_comm_calls {
    gr_err (*exchange_start)(gr_comm *c, const gr_exchange *x);
    gr_err (*exchange_wait)(gr_comm *c);
    gr_err (*sum)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n);
    gr_err (*reduce_scatter)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard);
    gr_err (*all_gather)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n_shard);
    gr_err (*reduce_piece)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p);
    gr_err (*gather_piece)(gr_comm *c, gr_group g, gr_dtype dtype, void *data, gr_piece p);
    gr_err (*join)(gr_comm *c);
    gr_err (*bcast)(gr_comm *c, gr_group g, void *data, size_t n_byte, int root);
    gr_err (*barrier)(gr_comm *c, gr_group g);
} gr_comm_calls;

/* Moves memory of one backend for the comm it is made for. The calls mean what those of gr_comm do, for groups of more
 * than one rank and at least one element, and queue their work on lane COMM: device.c has ordered that lane, and does
 * what needs no other rank. They count the bytes they hand to others as `traffic`. */
typedef struct gr_mover gr_mover;
struct gr_mover {
    const char *name; /* of the comm as long as this moves for it */
    bool queues;      /* its `queues` */
    gr_comm *comm;
    gr_backend *backend;
    gr_comm_calls host; /* of the comm, for host memory; set by gr_device_open */
    gr_traffic traffic; /* what the call in progress moves data for */
    gr_err (*exchange_start)(gr_mover *m, const gr_exchange *x); /* rows of other ranks only */
    gr_err (*exchange_wait)(gr_mover *m);
    gr_err (*sum)(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n);
    gr_err (*reduce_scatter)(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n_shard);
    gr_err (*all_gather)(gr_mover *m, gr_group g, gr_dtype dtype, void *data, size_t n_shard);
    gr_err (*reduce_piece)(gr_mover *m, gr_group g, gr_dtype dtype, void *data, gr_piece p);
    gr_err (*gather_piece)(gr_mover *m, gr_group g, gr_dtype dtype, void *data, gr_piece p);
    gr_err (*bcast)(gr_mover *m, gr_group g, void *data, size_t n_byte, int root);
    gr_err (*group)(gr_mover *m); /* EP and EDP have been formed anew; collective, agreed */
    void (*close)(gr_mover *m, bool orderly);
};

/* From now on c's calls look where their data are. Takes `m`, which is NULL for a world of one rank. */
GR_MUST gr_err gr_device_open(gr_comm *c, gr_backend *b, gr_mover *m);
/* After gr_comm_group. */
GR_MUST gr_err gr_device_group(gr_comm *c);
/* orderly: all ranks do it together. */
void gr_device_close(gr_comm *c, bool orderly);

/* By the comm's calls for host memory, through `n_byte` bytes of page-locked memory, a piece at a time; not collective.
 * 64 if a rank of the world could not have a byte of them. */
GR_MUST gr_err gr_comm_staged_open(gr_mover **out, gr_comm *c, gr_backend *b, size_t n_byte);

/* By NCCL. The communicators of all groups formed so far are created and warmed up; collective, agreed. */
typedef struct gr_comm_nccl_limits {
    double start_s; /* for the other ranks to take part in creating a communicator */
    double wait_s;  /* for them to take part in a call */
    double abort_s; /* for NCCL to give up */
} gr_comm_nccl_limits;
#define GR_COMM_NCCL_LIMITS ((gr_comm_nccl_limits){.start_s = 300, .wait_s = 600, .abort_s = 10})
GR_MUST gr_err gr_comm_nccl_open(gr_mover **out, gr_comm *c, gr_backend *b, const gr_comm_nccl_limits *limits);
const char *gr_comm_nccl_library(void); /* "NCCL 2.28.9": what it was built with */

#endif
