/* io.c: the operating system's table of file calls, and whole transfers through any table. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "grouter/io.h"

static int result(int r) {
    return r < 0 ? -errno : r;
}

static int system_open(gr_io *io, const char *path, int flags, unsigned mode) {
    (void)io;
    return result(open(path, flags | O_CLOEXEC, (mode_t)mode));
}

static int64_t system_write(gr_io *io, int fd, const void *data, size_t n_byte) {
    (void)io;
    ssize_t n = write(fd, data, n_byte);
    return n < 0 ? -errno : n;
}

static int64_t system_read(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    (void)io;
    ssize_t n = pread(fd, data, n_byte, (off_t)offset);
    return n < 0 ? -errno : n;
}

static int system_stat(gr_io *io, int fd, uint64_t *n_byte, bool *is_regular) {
    (void)io;
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -errno;
    *n_byte = (uint64_t)st.st_size;
    *is_regular = S_ISREG(st.st_mode);
    return 0;
}

/* A filesystem that cannot reserve room is no reason to fail: its writes will tell. posix_fallocate would write the
 * whole file there. */
static int system_allocate(gr_io *io, int fd, uint64_t n_byte) {
    (void)io;
    if (n_byte == 0)
        return 0;
    int r;
    do
        r = fallocate(fd, 0, 0, (off_t)n_byte);
    while (r != 0 && errno == EINTR);
    return r != 0 && errno != EOPNOTSUPP && errno != ENOSYS ? -errno : 0;
}

static int system_sync(gr_io *io, int fd) {
    (void)io;
    return result(fsync(fd));
}

static int system_close(gr_io *io, int fd) {
    (void)io;
    return result(close(fd));
}

static int system_rename(gr_io *io, const char *from, const char *to) {
    (void)io;
    return result(rename(from, to));
}

static int system_make_folder(gr_io *io, const char *path) {
    (void)io;
    return result(mkdir(path, 0777));
}

static int system_remove_file(gr_io *io, const char *path) {
    (void)io;
    return result(unlink(path));
}

static int system_remove_folder(gr_io *io, const char *path) {
    (void)io;
    return result(rmdir(path));
}

static int system_list(gr_io *io, const char *path, int (*visit)(const char *name, void *context), void *context) {
    (void)io;
    DIR *folder = opendir(path);
    if (!folder)
        return -errno;
    int stopped = 0;
    errno = 0;
    for (struct dirent *e; !stopped && (e = readdir(folder)) != NULL; errno = 0)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            stopped = visit(e->d_name, context);
    int failed = stopped ? 0 : errno;
    closedir(folder);
    return -failed;
}

gr_io *gr_io_system(void) {
    static gr_io table = {
        .open = system_open,
        .write = system_write,
        .read = system_read,
        .stat = system_stat,
        .allocate = system_allocate,
        .sync = system_sync,
        .close = system_close,
        .rename = system_rename,
        .make_folder = system_make_folder,
        .remove_file = system_remove_file,
        .remove_folder = system_remove_folder,
        .list = system_list,
    };
    return &table;
}

int gr_io_write_all(gr_io *io, int fd, const void *data, size_t n_byte) {
    const uint8_t *p = data;
    while (n_byte) {
        int64_t n = io->write(io, fd, p, n_byte);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? (int)n : -ENOSPC;
        p += n;
        n_byte -= (size_t)n;
    }
    return 0;
}

int64_t gr_io_read_all(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    uint8_t *p = data;
    size_t got = 0;
    while (got < n_byte) {
        int64_t n = io->read(io, fd, p + got, n_byte - got, offset + got);
        if (n == -EINTR)
            continue;
        if (n < 0)
            return n;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    return (int64_t)got;
}
