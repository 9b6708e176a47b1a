/* nccl_double.h: a stand-in for libnccl and for the CUDA calls beside it, over MPI and the lanes of lane_double.h. It
 * takes the place of the few functions that src/comm/nccl.c calls, as a non-blocking communicator does: a call is in
 * progress until it has been asked after, and only then in the stream. It is strict: whatever NCCL forbids or may hang
 * on, and whatever the project's rules add (operations in a group of one communicator, in the lane COMM, in memory of
 * the device, in place, no own rows, no empty messages, the same call with the same counts on all ranks in the same
 * order), ends the test with a message. Sums are made from the last rank to the first. */
#ifndef GROUTER_TESTS_NCCL_DOUBLE_H
#define GROUTER_TESTS_NCCL_DOUBLE_H

#include <stdbool.h>

/* All ranks together, with MPI running; before the first and after the last use. The end checks that no message of a
 * communicator that was not aborted is left, and that none of these is still open. */
void nccl_double_start(void);
void nccl_double_finish(void);

typedef struct nccl_double_counts {
    int init, finalized, destroyed, aborted; /* communicators */
    int groups, sends, receives, collectives;
} nccl_double_counts;
nccl_double_counts nccl_double_count(void);

/* From now on this rank does not take part in creating communicators, as if its process stood still. */
void nccl_double_stay_away(bool away);
/* The next question about any communicator is answered with ncclRemoteError, and this process's only. */
void nccl_double_break(void);
/* ncclCommAbort never comes back. */
void nccl_double_hang(bool hang);

#endif
