/* kinds.h: the comms that gr_comm_open chooses from. */
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

#endif
