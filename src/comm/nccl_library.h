/* nccl_library.h: NCCL, loaded when a comm first needs it: the library has 200 MiB, which a run on the CPU should not
 * have in its address space, and a program built with it should start where it is not. */
#ifndef GROUTER_COMM_NCCL_LIBRARY_H
#define GROUTER_COMM_NCCL_LIBRARY_H

#include <nccl.h>

#include "grouter/base.h"

#define GR_NCCL_FUNCTIONS(X)                                                                                           \
    X(ncclGetVersion)                                                                                                  \
    X(ncclGetUniqueId)                                                                                                 \
    X(ncclCommInitRankConfig)                                                                                          \
    X(ncclCommGetAsyncError)                                                                                           \
    X(ncclCommFinalize)                                                                                                \
    X(ncclCommDestroy)                                                                                                 \
    X(ncclCommAbort)                                                                                                   \
    X(ncclGetErrorString)                                                                                              \
    X(ncclGetLastError)                                                                                                \
    X(ncclGroupStart)                                                                                                  \
    X(ncclGroupEnd)                                                                                                    \
    X(ncclSend)                                                                                                        \
    X(ncclRecv)                                                                                                        \
    X(ncclAllReduce)                                                                                                   \
    X(ncclReduce)                                                                                                      \
    X(ncclReduceScatter)                                                                                               \
    X(ncclAllGather)                                                                                                   \
    X(ncclBroadcast)

/* Each function under its own name. */
typedef struct gr_nccl {
#define GR_NCCL_MEMBER(name) __typeof__(&name) name;
    GR_NCCL_FUNCTIONS(GR_NCCL_MEMBER)
#undef GR_NCCL_MEMBER
} gr_nccl;

/* The library stays loaded. 69 if it is not there or has not all of these. */
GR_MUST gr_err gr_nccl_load(gr_nccl *out);

#endif
