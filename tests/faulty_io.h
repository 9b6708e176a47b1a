/* faulty_io.h: the system's file calls, of which the n-th fails, once or from then on. Syncing only pretends. */
#ifndef GROUTER_FAULTY_IO_H
#define GROUTER_FAULTY_IO_H

#include "grouter/io.h"

typedef struct faulty_io {
    gr_io table;
    int64_t n_call, fail_at; /* fail_at 0: never */
    int error;               /* errno of the failure */
    bool persistent;
    int failed_fd; /* whose sync or close failed and that was not opened anew; -1: none */
    bool repeated; /* such a sync or close was called again */
} faulty_io;

/* 0, or the error of this call. */
static inline int faulty_next(gr_io *io) {
    faulty_io *f = io->state;
    f->n_call++;
    bool fails = f->fail_at && (f->n_call == f->fail_at || (f->persistent && f->n_call > f->fail_at));
    return fails ? -f->error : 0;
}

static inline int faulty_open(gr_io *io, const char *path, int flags, unsigned mode) {
    faulty_io *f = io->state;
    int r = faulty_next(io);
    int fd = r ? r : gr_io_system()->open(gr_io_system(), path, flags, mode);
    if (fd >= 0 && fd == f->failed_fd)
        f->failed_fd = -1;
    return fd;
}

static inline int64_t faulty_write(gr_io *io, int fd, const void *data, size_t n_byte) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->write(gr_io_system(), fd, data, n_byte);
}

static inline int64_t faulty_read(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->read(gr_io_system(), fd, data, n_byte, offset);
}

static inline int faulty_stat(gr_io *io, int fd, uint64_t *n_byte, bool *is_regular) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->stat(gr_io_system(), fd, n_byte, is_regular);
}

static inline int faulty_allocate(gr_io *io, int fd, uint64_t n_byte) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->allocate(gr_io_system(), fd, n_byte);
}

static inline int faulty_sync(gr_io *io, int fd) {
    faulty_io *f = io->state;
    int r = faulty_next(io);
    f->repeated = f->repeated || fd == f->failed_fd;
    if (r)
        f->failed_fd = fd;
    return r;
}

/* A failed close has closed all the same, as on Linux. */
static inline int faulty_close(gr_io *io, int fd) {
    int r = faulty_next(io), closed = gr_io_system()->close(gr_io_system(), fd);
    return r ? r : closed;
}

static inline int faulty_rename(gr_io *io, const char *from, const char *to) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->rename(gr_io_system(), from, to);
}

static inline int faulty_make_folder(gr_io *io, const char *path) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->make_folder(gr_io_system(), path);
}

static inline int faulty_remove_file(gr_io *io, const char *path) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->remove_file(gr_io_system(), path);
}

static inline int faulty_remove_folder(gr_io *io, const char *path) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->remove_folder(gr_io_system(), path);
}

static inline int faulty_list(
    gr_io *io, const char *path, int (*visit)(const char *name, void *context), void *context) {
    int r = faulty_next(io);
    return r ? r : gr_io_system()->list(gr_io_system(), path, visit, context);
}

static inline gr_io *faulty_io_open(faulty_io *f) {
    *f = (faulty_io){.failed_fd = -1,
        .table = {.open = faulty_open,
            .write = faulty_write,
            .read = faulty_read,
            .stat = faulty_stat,
            .allocate = faulty_allocate,
            .sync = faulty_sync,
            .close = faulty_close,
            .rename = faulty_rename,
            .make_folder = faulty_make_folder,
            .remove_file = faulty_remove_file,
            .remove_folder = faulty_remove_folder,
            .list = faulty_list,
            .state = f}};
    return &f->table;
}

/* From now on the n-th call fails. */
static inline void faulty_io_set(faulty_io *f, int64_t n, int error, bool persistent) {
    f->n_call = 0;
    f->fail_at = n;
    f->error = error;
    f->persistent = persistent;
}

#endif
