/* lying_io.c: each call asks `next` what to do, does it on the real folder and tells the model of the disk. */
#include "lying_io.h"

#include "lying_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct lying {
    gr_io io; /* first: a gr_io * is a lying * */
    lying_options o;
    lying_disk *disk;
    uint64_t n_call;
    uint8_t trace[LYING_TRACE_MAX];
    bool struck, healed;
} lying;

bool lying_fault_strikes(lying_fault fault, int error, lying_call call) {
    bool transfers = call == CALL_WRITE || call == CALL_READ;
    bool takes_room = call == CALL_CREATE || call == CALL_WRITE || call == CALL_ALLOCATE || call == CALL_SYNC ||
                      call == CALL_MAKE_FOLDER || call == CALL_RENAME;
    switch (fault) {
    case LYING_KILL:
    case LYING_POWER_LOSS:
        return true;
    case LYING_KILL_HALF:
    case LYING_ROT:
        return call == CALL_WRITE;
    case LYING_SHORT:
    case LYING_SHORT_ON:
        return transfers;
    case LYING_ERROR:
    case LYING_ERROR_ON:
        return error == EINTR ? transfers : error == ENOSPC ? takes_room : true;
    default:
        return false;
    }
}

_Noreturn static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

_Noreturn void lying_io_lose_power(gr_io *io) {
    lying *l = (lying *)io;
    lying_disk_lose_power(l->disk, l->o.seed);
    die();
}

/* The fault the call in hand meets. */
static lying_fault next(gr_io *io, lying_call call) {
    lying *l = (lying *)io;
    uint64_t i = l->n_call++;
    if (i < LYING_TRACE_MAX)
        l->trace[i] = (uint8_t)call;
    bool lasting = l->o.fault == LYING_ERROR_ON || l->o.fault == LYING_SHORT_ON;
    if (i < l->o.at || l->healed || (l->struck && !lasting) || !lying_fault_strikes(l->o.fault, l->o.error, call))
        return LYING_NONE;
    l->struck = true;
    switch (l->o.fault) {
    case LYING_KILL:
        die();
    case LYING_ERROR_ON:
        return LYING_ERROR;
    case LYING_SHORT_ON:
        return LYING_SHORT;
    default:
        return l->o.fault;
    }
}

static void end(gr_io *io, lying_fault fault) {
    if (fault == LYING_POWER_LOSS)
        lying_io_lose_power(io);
}

static gr_io *under(gr_io *io) {
    return ((lying *)io)->o.under;
}

static lying_disk *disk(gr_io *io) {
    return ((lying *)io)->disk;
}

static int error_of(const gr_io *io) {
    return -((const lying *)io)->o.error;
}

static int lying_open(gr_io *io, const char *path, int flags, unsigned mode) {
    lying_fault fault = next(io, flags & O_CREAT ? CALL_CREATE : CALL_OPEN);
    if (fault == LYING_ERROR)
        return error_of(io);
    GR_ASSERT(!(flags & (O_TRUNC | O_APPEND)), "%s: flags %x are not modelled", path, (unsigned)flags);
    int fd = under(io)->open(under(io), path, flags, mode);
    if (fd >= 0)
        lying_disk_opened(disk(io), path, fd);
    end(io, fault);
    return fd;
}

static int64_t write_rotten(gr_io *io, int fd, const uint8_t *data, size_t n_byte) {
    uint8_t *copy = malloc(n_byte);
    GR_ASSERT(copy, "no memory");
    memcpy(copy, data, n_byte);
    copy[n_byte / 2] ^= 1;
    int64_t n = under(io)->write(under(io), fd, copy, n_byte);
    if (n > 0)
        lying_disk_wrote(disk(io), fd, copy, (size_t)n);
    free(copy);
    return n;
}

static int64_t lying_write(gr_io *io, int fd, const void *data, size_t n_byte) {
    lying_fault fault = next(io, CALL_WRITE);
    if (fault == LYING_ERROR)
        return error_of(io);
    if (fault == LYING_ROT && n_byte > 0)
        return write_rotten(io, fd, data, n_byte);
    if ((fault == LYING_SHORT || fault == LYING_KILL_HALF) && n_byte > 1)
        n_byte /= 2;
    int64_t n = under(io)->write(under(io), fd, data, n_byte);
    if (fault == LYING_KILL_HALF)
        die();
    if (n > 0)
        lying_disk_wrote(disk(io), fd, data, (size_t)n);
    end(io, fault);
    return n;
}

static int64_t lying_read(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    lying_fault fault = next(io, CALL_READ);
    if (fault == LYING_ERROR)
        return error_of(io);
    end(io, fault);
    return under(io)->read(under(io), fd, data, fault == LYING_SHORT && n_byte > 1 ? n_byte / 2 : n_byte, offset);
}

static int lying_stat(gr_io *io, int fd, uint64_t *n_byte, bool *is_regular) {
    lying_fault fault = next(io, CALL_STAT);
    if (fault == LYING_ERROR)
        return error_of(io);
    end(io, fault);
    return under(io)->stat(under(io), fd, n_byte, is_regular);
}

static int lying_allocate(gr_io *io, int fd, uint64_t n_byte) {
    lying_fault fault = next(io, CALL_ALLOCATE);
    if (fault == LYING_ERROR)
        return error_of(io);
    int rc = under(io)->allocate(under(io), fd, n_byte);
    if (rc == 0)
        lying_disk_allocated(disk(io), fd, n_byte);
    end(io, fault);
    return rc;
}

static int lying_sync(gr_io *io, int fd) {
    lying_fault fault = next(io, CALL_SYNC);
    end(io, fault);
    if (fault == LYING_ERROR) {
        lying_disk_sync_failed(disk(io), fd);
        return error_of(io);
    }
    lying_disk_synced(disk(io), fd);
    return 0;
}

static int lying_close(gr_io *io, int fd) {
    lying_fault fault = next(io, CALL_CLOSE);
    end(io, fault);
    int rc = under(io)->close(under(io), fd);
    lying_disk_closed(disk(io), fd);
    return fault == LYING_ERROR ? error_of(io) : rc;
}

static int lying_rename(gr_io *io, const char *from, const char *to) {
    lying_fault fault = next(io, CALL_RENAME);
    if (fault == LYING_ERROR)
        return error_of(io);
    int rc = under(io)->rename(under(io), from, to);
    if (rc == 0)
        lying_disk_renamed(disk(io), from, to);
    end(io, fault);
    return rc;
}

static int lying_make_folder(gr_io *io, const char *path) {
    lying_fault fault = next(io, CALL_MAKE_FOLDER);
    if (fault == LYING_ERROR)
        return error_of(io);
    int rc = under(io)->make_folder(under(io), path);
    if (rc == 0)
        lying_disk_made(disk(io), path);
    end(io, fault);
    return rc;
}

static int lying_remove_file(gr_io *io, const char *path) {
    lying_fault fault = next(io, CALL_REMOVE_FILE);
    if (fault == LYING_ERROR)
        return error_of(io);
    int rc = under(io)->remove_file(under(io), path);
    if (rc == 0)
        lying_disk_removed(disk(io), path);
    end(io, fault);
    return rc;
}

static int lying_remove_folder(gr_io *io, const char *path) {
    lying_fault fault = next(io, CALL_REMOVE_FOLDER);
    if (fault == LYING_ERROR)
        return error_of(io);
    int rc = under(io)->remove_folder(under(io), path);
    if (rc == 0)
        lying_disk_removed(disk(io), path);
    end(io, fault);
    return rc;
}

static int lying_list(gr_io *io, const char *path, int (*visit)(const char *name, void *context), void *context) {
    lying_fault fault = next(io, CALL_LIST);
    if (fault == LYING_ERROR)
        return error_of(io);
    end(io, fault);
    return under(io)->list(under(io), path, visit, context);
}

gr_io *lying_io_open(const lying_options *o) {
    lying *l = calloc(1, sizeof *l);
    GR_ASSERT(l, "no memory");
    l->o = *o;
    l->disk = lying_disk_open(o->root);
    l->io = (gr_io){
        .open = lying_open,
        .write = lying_write,
        .read = lying_read,
        .stat = lying_stat,
        .allocate = lying_allocate,
        .sync = lying_sync,
        .close = lying_close,
        .rename = lying_rename,
        .make_folder = lying_make_folder,
        .remove_file = lying_remove_file,
        .remove_folder = lying_remove_folder,
        .list = lying_list,
    };
    return &l->io;
}

void lying_io_close(gr_io *io) {
    lying *l = (lying *)io;
    if (!l)
        return;
    lying_disk_close(l->disk);
    free(l);
}

uint64_t lying_io_calls(const gr_io *io) {
    return ((const lying *)io)->n_call;
}

const uint8_t *lying_io_trace(const gr_io *io) {
    return ((const lying *)io)->trace;
}

bool lying_io_struck(const gr_io *io) {
    return ((const lying *)io)->struck;
}

void lying_io_heal(gr_io *io) {
    ((lying *)io)->healed = true;
}
