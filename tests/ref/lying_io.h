/* lying_io.h: an I/O table over another one that counts calls and, at one of them, fails, stops the process or loses
 * power (lying_disk.h). Syncs reach only the model of the disk, never the real one: nothing here outlives this machine.
 */
#ifndef GROUTER_LYING_IO_H
#define GROUTER_LYING_IO_H

#include "grouter/io.h"

typedef enum lying_call {
    CALL_OPEN,
    CALL_CREATE, /* an open with O_CREAT */
    CALL_WRITE,
    CALL_READ,
    CALL_STAT,
    CALL_ALLOCATE,
    CALL_SYNC,
    CALL_CLOSE,
    CALL_RENAME,
    CALL_MAKE_FOLDER,
    CALL_REMOVE_FILE,
    CALL_REMOVE_FOLDER,
    CALL_LIST,
} lying_call;

typedef enum lying_fault {
    LYING_NONE,       /* only counts */
    LYING_KILL,       /* SIGKILL before the call */
    LYING_KILL_HALF,  /* SIGKILL after half of a write's bytes */
    LYING_POWER_LOSS, /* during the call: whatever it did is uncertain; then SIGKILL */
    LYING_ERROR,      /* the call does nothing (close: closes; sync: dooms what was not synced) and returns `error` */
    LYING_ERROR_ON,   /* so does every later one until lying_io_heal */
    LYING_SHORT,      /* half of a write's or read's bytes */
    LYING_SHORT_ON,   /* likewise, until healed */
    LYING_ROT,        /* a write stores one wrong bit and says success */
    LYING_N
} lying_fault;

typedef struct lying_options {
    gr_io *under;
    const char *root; /* folder whose contents a power loss may change; exists */
    lying_fault fault;
    uint64_t at;   /* the fault strikes at the first call it can strike, counted from 0, that is not before this one */
    int error;     /* errno of LYING_ERROR and LYING_ERROR_ON */
    uint64_t seed; /* of the power loss */
} lying_options;

/* Free with lying_io_close. */
gr_io *lying_io_open(const lying_options *o);
void lying_io_close(gr_io *io);

/* The calls made so far: how many, and the kinds of the first LYING_TRACE_MAX. */
enum { LYING_TRACE_MAX = 4096 };
uint64_t lying_io_calls(const gr_io *io);
const uint8_t *lying_io_trace(const gr_io *io);
bool lying_io_struck(const gr_io *io);
void lying_io_heal(gr_io *io);

/* Loses power now: the process ends. */
_Noreturn void lying_io_lose_power(gr_io *io);

/* Whether the fault can strike a call of this kind: EINTR reads and writes, ENOSPC what takes room, EIO
 * everything. */
bool lying_fault_strikes(lying_fault fault, int error, lying_call call);

#endif
