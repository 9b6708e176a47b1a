/* Files: read-only mappings, whole-file reads, folders, and new files that appear complete or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "grouter/base.h"

/* ---------------------------------------------------------------- reading */

static const char *kind_text(mode_t mode) {
    return S_ISDIR(mode) ? "a folder" : S_ISFIFO(mode) ? "a FIFO" : "a device or socket";
}

static gr_err open_regular(const char *path, gr_err code, int *fd, size_t *n) {
    *n = 0;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must not block us */
    if (*fd < 0)
        return gr_fail(code, "%s: cannot be opened: %s; check the name and its permissions", path, strerror(errno));
    struct stat st = {.st_mode = 0};
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(*fd);
        return gr_fail(code, "%s: expected a regular file, got %s", path, kind_text(st.st_mode));
    }
    *n = (size_t)st.st_size;
    return GR_OK;
}

gr_err gr_map_open(gr_map *m, const char *path, gr_err code) {
    static const uint8_t nothing[1];
    *m = (gr_map){0};
    int fd;
    size_t n;
    GR_TRY(open_regular(path, code, &fd, &n));
    if (n == 0) {
        close(fd);
        *m = (gr_map){.p = nothing};
        return GR_OK;
    }
    void *p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
    int mmap_errno = errno;
    close(fd);
    if (p == MAP_FAILED)
        return gr_fail(code, "%s: cannot be mapped: %s", path, strerror(mmap_errno));
    *m = (gr_map){.p = p, .n = n};
    return GR_OK;
}

void gr_map_close(gr_map *m) {
    if (m->n)
        munmap((void *)(uintptr_t)m->p, m->n);
    *m = (gr_map){0};
}

gr_err gr_file_read(const char *path, size_t max, gr_err code, char **text, size_t *n) {
    *text = NULL;
    *n = 0;
    int fd;
    size_t size;
    GR_TRY(open_regular(path, code, &fd, &size));
    if (size > max) {
        close(fd);
        return gr_fail(code, "%s: expected at most %zu bytes, got %zu", path, max, size);
    }
    char *p = malloc(size + 1);
    size_t got = 0;
    while (p && got < size) {
        ssize_t r = read(fd, p + got, size - got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            break;
        got += (size_t)r;
    }
    int read_errno = errno;
    close(fd);
    if (!p || got < size) {
        free(p);
        return gr_fail(code, "%s: cannot be read: %s", path, p ? strerror(read_errno) : "no memory");
    }
    p[size] = 0;
    *text = p;
    *n = size;
    return GR_OK;
}

/* ---------------------------------------------------------------- writing */

struct gr_out {
    char *path;      /* final name; NULL for a joined file */
    char *temporary; /* name until commit */
    int fd;          /* -1 once closed */
    size_t n_buffered;
    bool locked; /* others are kept out until it is closed */
    bool keep;   /* close leaves the temporary file */
    bool committed;
    uint8_t buffer[1 << 16];
};

static gr_err storage_error(const char *path, const char *doing, int error) {
    return gr_fail(GR_STORAGE, "%s: %s failed: %s; check the folder, its free space and permissions", path, doing,
        strerror(error));
}

static gr_err write_all(int fd, const char *path, const uint8_t *p, size_t n) {
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return storage_error(path, "writing", w < 0 ? errno : ENOSPC);
        p += w;
        n -= (size_t)w;
    }
    return GR_OK;
}

static gr_err open_out(gr_out **out, const char *path, const char *temporary, int flags) {
    *out = NULL;
    gr_out *o = calloc(1, sizeof *o);
    if (!o)
        return gr_fail(GR_RESOURCE, "%s: no memory for a write buffer", temporary);
    o->fd = -1;
    o->path = path ? strdup(path) : NULL;
    o->temporary = strdup(temporary);
    if (!o->temporary || (path && !o->path)) {
        gr_out_close(o);
        return gr_fail(GR_RESOURCE, "%s: no memory for its name", temporary);
    }
    o->fd = open(temporary, flags | O_RDWR | O_CLOEXEC, 0666);
    if (o->fd < 0) {
        gr_err e = storage_error(temporary, "creating", errno);
        o->committed = true; /* nothing of ours to remove */
        gr_out_close(o);
        return e;
    }
    *out = o;
    return GR_OK;
}

/* Renaming over a device or FIFO would destroy it, over a folder fails after all the work. */
static gr_err check_replaceable(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0 || S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))
        return GR_OK;
    return gr_fail(GR_STORAGE, "%s: expected a new name or a regular file to replace, got %s; write to another name",
        path, kind_text(st.st_mode));
}

gr_err gr_out_open(gr_out **out, const char *path) {
    *out = NULL;
    GR_TRY(check_replaceable(path));
    size_t n = strlen(path) + 32;
    char *temporary = malloc(n);
    if (!temporary)
        return gr_fail(GR_RESOURCE, "%s: no memory for its name", path);
    snprintf(temporary, n, "%s.tmp-%ld", path, (long)getpid());
    unlink(temporary); /* a leftover of a dead process that had our number */
    gr_err e = open_out(out, path, temporary, O_CREAT | O_EXCL);
    free(temporary);
    return e;
}

/* The lock is on the file, not on its name: whoever held it may have renamed or removed the file meanwhile. */
static gr_err lock_out(gr_out *o, uint64_t *n_byte) {
    struct stat file, name;
    bool ours = flock(o->fd, LOCK_EX | LOCK_NB) == 0 && fstat(o->fd, &file) == 0 && stat(o->temporary, &name) == 0 &&
                file.st_dev == name.st_dev && file.st_ino == name.st_ino;
    if (ours && S_ISREG(file.st_mode)) {
        o->locked = true;
        *n_byte = (uint64_t)file.st_size;
        return GR_OK;
    }
    o->keep = true; /* it is another's */
    if (ours)
        return gr_fail(
            GR_STORAGE, "%s: expected a regular file, got %s; remove it", o->temporary, kind_text(file.st_mode));
    return gr_fail(GR_CONFIG, "%s: expected a file no other run writes, got one in use; wait for that run or stop it",
        o->temporary);
}

gr_err gr_out_resume(gr_out **out, const char *path, const char *temporary, uint64_t *n_byte) {
    *out = NULL;
    GR_TRY(check_replaceable(path));
    GR_TRY(open_out(out, path, temporary, O_CREAT | O_NOFOLLOW | O_NONBLOCK));
    gr_err e = lock_out(*out, n_byte);
    if (e) {
        gr_out_close(*out);
        *out = NULL;
    }
    return e;
}

gr_err gr_out_restart(gr_out *o) {
    if (unlink(o->temporary) != 0)
        return storage_error(o->temporary, "removing", errno);
    int fd = open(o->temporary, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
    if (fd < 0) {
        gr_err e = storage_error(o->temporary, "creating", errno);
        o->keep = true; /* nothing of ours to remove */
        return e;
    }
    close(o->fd);
    o->fd = fd;
    uint64_t n_byte;
    return lock_out(o, &n_byte);
}

void gr_out_keep(gr_out *o) {
    o->keep = true;
}

gr_err gr_out_join(gr_out **out, const char *temporary) {
    return open_out(out, NULL, temporary, 0);
}

const char *gr_out_temporary(const gr_out *o) {
    return o->temporary;
}

static gr_err flush_buffer(gr_out *o) {
    size_t n = o->n_buffered;
    o->n_buffered = 0;
    return write_all(o->fd, o->temporary, o->buffer, n);
}

gr_err gr_out_write(gr_out *o, const void *data, size_t n_byte) {
    if (o->n_buffered + n_byte > sizeof o->buffer)
        GR_TRY(flush_buffer(o));
    if (n_byte >= sizeof o->buffer)
        return write_all(o->fd, o->temporary, data, n_byte);
    if (n_byte)
        memcpy(o->buffer + o->n_buffered, data, n_byte);
    o->n_buffered += n_byte;
    return GR_OK;
}

gr_err gr_out_printf(gr_out *o, const char *fmt, ...) {
    char text[4096];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    GR_ASSERT(n >= 0 && (size_t)n < sizeof text, "formatted text of %d bytes", n);
    return gr_out_write(o, text, (size_t)n);
}

gr_err gr_out_pwrite(gr_out *o, const void *data, size_t n_byte, uint64_t offset) {
    const uint8_t *p = data;
    while (n_byte) {
        ssize_t w = pwrite(o->fd, p, n_byte, (off_t)offset);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return storage_error(o->temporary, "writing", w < 0 ? errno : ENOSPC);
        p += w;
        offset += (uint64_t)w;
        n_byte -= (size_t)w;
    }
    return GR_OK;
}

gr_err gr_out_pread(gr_out *o, void *data, size_t n_byte, uint64_t offset) {
    uint8_t *p = data;
    while (n_byte) {
        ssize_t r = pread(o->fd, p, n_byte, (off_t)offset);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return storage_error(o->temporary, "reading", errno);
        if (r == 0) {
            memset(p, 0, n_byte);
            break;
        }
        p += r;
        offset += (uint64_t)r;
        n_byte -= (size_t)r;
    }
    return GR_OK;
}

gr_err gr_out_sync(gr_out *o) {
    GR_TRY(flush_buffer(o));
    if (fsync(o->fd) != 0)
        return storage_error(o->temporary, "fsync", errno);
    return GR_OK;
}

static gr_err sync_folder_of(const char *path) {
    char *copy = strdup(path);
    if (!copy)
        return gr_fail(GR_RESOURCE, "%s: no memory for its name", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    free(copy);
    return failed ? storage_error(path, "fsync of its folder", failed) : GR_OK;
}

static gr_err close_out(gr_out *o) {
    int fd = o->fd;
    o->fd = -1;
    return close(fd) == 0 ? GR_OK : storage_error(o->temporary, "closing", errno);
}

gr_err gr_out_commit(gr_out *o) {
    GR_TRY(gr_out_sync(o));
    if (!o->locked) /* a lock goes with the descriptor: it must outlast the temporary name */
        GR_TRY(close_out(o));
    if (rename(o->temporary, o->path) != 0)
        return storage_error(o->path, "renaming into place", errno);
    o->committed = true;
    if (o->locked)
        GR_TRY(close_out(o));
    return sync_folder_of(o->path);
}

void gr_out_close(gr_out *o) {
    if (!o)
        return;
    if (o->path && o->temporary && !o->committed && !o->keep)
        unlink(o->temporary);
    if (o->fd >= 0) /* last: a lock ends with it */
        close(o->fd);
    free(o->path);
    free(o->temporary);
    free(o);
}

/* ---------------------------------------------------------------- folders */

bool gr_path_same(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool gr_path_exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

gr_err gr_folder_make(const char *path) {
    char *copy = strdup(path);
    if (!copy)
        return gr_fail(GR_RESOURCE, "%s: no memory for its name", path);
    int failed = 0;
    for (char *p = copy + 1; !failed && *copy; p++) {
        if (*p != '/' && *p != 0)
            continue;
        char kept = *p;
        *p = 0;
        if (mkdir(copy, 0777) != 0 && errno != EEXIST)
            failed = errno;
        *p = kept;
        if (!kept)
            break;
    }
    free(copy);
    struct stat st;
    if (!failed && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)))
        failed = ENOTDIR;
    return failed ? storage_error(path, "creating the folder", failed) : GR_OK;
}
