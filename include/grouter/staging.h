/* staging.h: between host arrays and backend memory. On a backend with host_memory an array is handed on as it is and
 * nothing is copied; elsewhere a copy of it is. The calls are the same for both. */
#ifndef GROUTER_STAGING_H
#define GROUTER_STAGING_H

#include "grouter/backend.h"

/* ---------------------------------------------------------------- backend memory in host code */

/* Large arrays are staged in pieces of so many bytes. */
#define GR_STAGING_PIECE ((size_t)1 << 20)

/* A host copy of some backend memory: one piece at a time, its room grows and stays. */
typedef struct gr_staging {
    gr_backend *backend; /* whose memory; NULL: host memory */
    void *room;
    size_t n_byte;
} gr_staging;

/* Where host code writes what memory[n_byte] is to hold. What is there is of the last call. 69. */
GR_MUST gr_err gr_staging_room(gr_staging *s, void *memory, size_t n_byte, void **host);
/* Sends what was written there, in the order of lane COMPUTE. */
GR_MUST gr_err gr_staging_store(gr_staging *s, void *memory, size_t n_byte);
/* memory[n_byte] as COMPUTE has left it; waits for it. *host is valid until the next call, but for gr_staging_room of
 * the same memory, which gives it to be changed. 69. */
GR_MUST gr_err gr_staging_fetch(gr_staging *s, const void *memory, size_t n_byte, const void **host);
void gr_staging_close(gr_staging *s); /* accepts a zeroed one */

/* ---------------------------------------------------------------- host arrays in ops */

/* Several arrays that reach the backend in one upload. */
typedef struct gr_parcel {
    gr_backend *backend;
    uint8_t *host;   /* [size] where they are packed */
    uint8_t *memory; /* [size] where they arrive, backend memory */
    size_t size, used;
} gr_parcel;

/* Adds from[n_byte]; returns where ops will find it once the parcel has been sent: with host_memory where it is. The
 * caller has seen to `size`: each array takes a multiple of GR_ALIGN bytes. */
const void *gr_parcel_add(gr_parcel *p, const void *from, size_t n_byte);
/* Takes room of n_byte for such an array in the parcel's memory: none with host_memory. */
void gr_parcel_take(const gr_backend *b, gr_arena *arena, size_t count, size_t elem_size);
/* One upload on lane SIDE, which COMPUTE waits for; the host's arrays may be changed then. What was in the memory is
 * overwritten: SIDE must have waited for the ops that read it. The parcel is empty afterwards. */
GR_MUST gr_err gr_parcel_send(gr_parcel *p);

#endif
