/* broken_io.c: whatever a kind does not change goes straight to the table under it. */
#include "broken_io.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { DEFERRED_MAX = 64, BROKEN_PATH_MAX = 1024 };

/* A data file of BROKEN_MARKER whose bytes wait for the manifest. */
typedef struct deferred {
    char path[BROKEN_PATH_MAX];
    int fd; /* -1 once closed */
    uint8_t *data;
    size_t n_byte;
} deferred;

typedef struct broken {
    gr_io io; /* first: a gr_io * is a broken * */
    broken_kind kind;
    gr_io *under;
    int64_t keep_last;
    deferred file[DEFERRED_MAX];
    int n_file, manifest_fd;
    char published[BROKEN_PATH_MAX]; /* renamed into place, its folder not synced yet */
} broken;

const char *broken_name(broken_kind kind) {
    static const char *const name[BROKEN_N] = {
        "none", "no file sync", "no folder sync", "in place", "marker before the data", "delete before verify"};
    return name[kind];
}

static gr_io *under(gr_io *io) {
    return ((broken *)io)->under;
}

static bool is_folder(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool in_place(gr_io *io) {
    broken_kind kind = ((broken *)io)->kind;
    return kind == BROKEN_IN_PLACE || kind == BROKEN_MARKER;
}

/* `path` with its part tmp-<step>.<id>, if any, replaced by the checkpoint's final name. */
static const char *final_path(gr_io *io, const char *path, char out[BROKEN_PATH_MAX]) {
    const char *tmp = in_place(io) ? strstr(path, "/tmp-") : NULL;
    if (!tmp)
        return path;
    long long step = strtoll(tmp + 5, NULL, 10);
    const char *rest = tmp + 1 + strcspn(tmp + 1, "/");
    snprintf(out, BROKEN_PATH_MAX, "%.*s/step-%08lld%s", (int)(tmp - path), path, step, rest);
    return out;
}

/* ---- the data that comes after its marker */

static deferred *deferred_at(gr_io *io, int fd) {
    broken *b = (broken *)io;
    for (int i = 0; i < b->n_file; i++)
        if (b->file[i].fd == fd)
            return &b->file[i];
    return NULL;
}

static void note_opened(broken *b, const char *path, int flags, int fd) {
    const char *name = strrchr(path, '/') + 1;
    if (b->kind != BROKEN_MARKER || !(flags & O_CREAT))
        return;
    if (!strncmp(name, "manifest", 8)) {
        b->manifest_fd = fd;
        return;
    }
    GR_ASSERT(b->n_file < DEFERRED_MAX, "%s", path);
    deferred *f = &b->file[b->n_file++];
    *f = (deferred){.fd = fd};
    snprintf(f->path, sizeof f->path, "%s", path);
}

static int deferred_write(gr_io *u, const deferred *f) {
    int fd = u->open(u, f->path, O_WRONLY, 0);
    if (fd < 0)
        return fd;
    int64_t n = 0;
    for (size_t at = 0; at < f->n_byte && n >= 0; at += n > 0 ? (size_t)n : 0)
        n = u->write(u, fd, f->data + at, f->n_byte - at);
    int rc = n < 0 ? (int)n : u->sync(u, fd);
    u->close(u, fd);
    return rc;
}

static int deferred_write_all(broken *b) {
    int rc = 0;
    for (int i = 0; i < b->n_file; i++) {
        if (rc == 0)
            rc = deferred_write(b->under, &b->file[i]);
        free(b->file[i].data);
    }
    b->n_file = 0;
    b->manifest_fd = -1;
    return rc;
}

/* ---- deleting first */

typedef struct removal {
    gr_io *under;
    const char *folder;
} removal;

static int remove_entry(const char *name, void *context) {
    removal *r = context;
    char path[BROKEN_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", r->folder, name);
    return r->under->remove_file(r->under, path);
}

static void sync_folder(gr_io *u, const char *path) {
    int fd = u->open(u, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return;
    u->sync(u, fd);
    u->close(u, fd);
}

/* The checkpoint that has to go now that another is published, if one a step is saved: hidden, then removed, as it
 * should be, only too early. */
static void remove_oldest(broken *b) {
    const char *path = b->published;
    const char *name = strstr(path, "/step-");
    long long step = name ? strtoll(name + 6, NULL, 10) - b->keep_last : 0;
    char folder[BROKEN_PATH_MAX], old[BROKEN_PATH_MAX + 64], trash[BROKEN_PATH_MAX + 64];
    snprintf(folder, sizeof folder, "%.*s", (int)(name ? name - path : 0), path);
    snprintf(old, sizeof old, "%s/step-%08lld", folder, step);
    snprintf(trash, sizeof trash, "%s/trash-%08lld.0123456789abcdef", folder, step);
    b->published[0] = 0;
    if (step < 1 || b->under->rename(b->under, old, trash) != 0)
        return;
    sync_folder(b->under, folder);
    if (b->under->list(b->under, trash, remove_entry, &(removal){b->under, trash}) == 0)
        b->under->remove_folder(b->under, trash);
}

/* ---- the table */

static int broken_open(gr_io *io, const char *path, int flags, unsigned mode) {
    char at[BROKEN_PATH_MAX];
    path = final_path(io, path, at);
    int fd = under(io)->open(under(io), path, flags, mode);
    if (fd >= 0)
        note_opened((broken *)io, path, flags, fd);
    return fd;
}

static int64_t broken_write(gr_io *io, int fd, const void *data, size_t n_byte) {
    deferred *f = deferred_at(io, fd);
    if (!f)
        return under(io)->write(under(io), fd, data, n_byte);
    f->data = realloc(f->data, f->n_byte + n_byte + 1);
    GR_ASSERT(f->data, "no memory");
    memcpy(f->data + f->n_byte, data, n_byte);
    f->n_byte += n_byte;
    return (int64_t)n_byte;
}

static int64_t broken_read(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    return under(io)->read(under(io), fd, data, n_byte, offset);
}

static int broken_stat(gr_io *io, int fd, uint64_t *n_byte, bool *is_regular) {
    return under(io)->stat(under(io), fd, n_byte, is_regular);
}

static int broken_allocate(gr_io *io, int fd, uint64_t n_byte) {
    return under(io)->allocate(under(io), fd, n_byte);
}

static int broken_sync(gr_io *io, int fd) {
    broken *b = (broken *)io;
    if ((b->kind == BROKEN_NO_FILE_SYNC && !is_folder(fd)) || (b->kind == BROKEN_NO_FOLDER_SYNC && is_folder(fd)) ||
        deferred_at(io, fd))
        return 0;
    int rc = under(io)->sync(under(io), fd);
    if (rc == 0 && b->published[0] && is_folder(fd))
        remove_oldest(b);
    return rc == 0 && fd == b->manifest_fd ? deferred_write_all(b) : rc;
}

static int broken_close(gr_io *io, int fd) {
    deferred *f = deferred_at(io, fd);
    if (f)
        f->fd = -1;
    return under(io)->close(under(io), fd);
}

static int broken_rename(gr_io *io, const char *from, const char *to) {
    broken *b = (broken *)io;
    char at[BROKEN_PATH_MAX];
    bool publishes = strstr(from, "/tmp-") && strstr(to, "/step-");
    if (in_place(io) && publishes)
        return 0;
    int rc = under(io)->rename(under(io), final_path(io, from, at), to);
    if (rc == 0 && b->kind == BROKEN_DELETE_FIRST && publishes)
        snprintf(b->published, sizeof b->published, "%s", to);
    return rc;
}

static int broken_make_folder(gr_io *io, const char *path) {
    char at[BROKEN_PATH_MAX];
    return under(io)->make_folder(under(io), final_path(io, path, at));
}

static int broken_remove_file(gr_io *io, const char *path) {
    char at[BROKEN_PATH_MAX];
    return under(io)->remove_file(under(io), final_path(io, path, at));
}

static int broken_remove_folder(gr_io *io, const char *path) {
    char at[BROKEN_PATH_MAX];
    return under(io)->remove_folder(under(io), final_path(io, path, at));
}

static int broken_list(gr_io *io, const char *path, int (*visit)(const char *name, void *context), void *context) {
    char at[BROKEN_PATH_MAX];
    return under(io)->list(under(io), final_path(io, path, at), visit, context);
}

gr_io *broken_io_open(broken_kind kind, gr_io *lower, int64_t keep_last) {
    broken *b = calloc(1, sizeof *b);
    GR_ASSERT(b, "no memory");
    *b = (broken){.kind = kind, .under = lower, .keep_last = keep_last, .manifest_fd = -1};
    b->io = (gr_io){
        .open = broken_open,
        .write = broken_write,
        .read = broken_read,
        .stat = broken_stat,
        .allocate = broken_allocate,
        .sync = broken_sync,
        .close = broken_close,
        .rename = broken_rename,
        .make_folder = broken_make_folder,
        .remove_file = broken_remove_file,
        .remove_folder = broken_remove_folder,
        .list = broken_list,
    };
    return &b->io;
}

void broken_io_close(gr_io *io) {
    broken *b = (broken *)io;
    for (int i = 0; b && i < b->n_file; i++)
        free(b->file[i].data);
    free(b);
}
