/* Files of one checkpoint folder, all through the table of file calls. A failed sync or close is never repeated: the
 * kernel may have dropped the pages and would call the second try a success. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"

gr_err gr_storage_fail(const char *path, const char *doing, int negative_errno) {
    return gr_fail(GR_STORAGE, "%s: %s failed: %s; check the folder, its free space and permissions", path, doing,
        strerror(-negative_errno));
}

/* ---------------------------------------------------------------- writing */

gr_err gr_new_file_open(
    gr_new_file *f, gr_io *io, const char *folder, const char *name, uint64_t n_byte, uint8_t *buffer) {
    *f = (gr_new_file){.io = io, .buffer = buffer};
    snprintf(f->path, sizeof f->path, "%s/%s", folder, name);
    GR_TRY(gr_hasher_open(&f->hasher));
    f->fd = io->open(io, f->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    if (f->fd < 0)
        return gr_storage_fail(f->path, "creating", f->fd);
    f->is_open = true;
    int r = io->allocate(io, f->fd, n_byte);
    return r < 0 ? gr_storage_fail(f->path, "reserving its room", r) : GR_OK;
}

static gr_err flush(gr_new_file *f) {
    int r = gr_io_write_all(f->io, f->fd, f->buffer, f->n_buffered);
    f->n_buffered = 0;
    return r < 0 ? gr_storage_fail(f->path, "writing", r) : GR_OK;
}

gr_err gr_new_file_write(gr_new_file *f, const void *data, size_t n_byte) {
    gr_hasher_add(f->hasher, data, n_byte);
    f->n_byte += n_byte;
    if (n_byte > CHECKPOINT_BUFFER_BYTE - f->n_buffered)
        GR_TRY(flush(f));
    if (n_byte >= CHECKPOINT_BUFFER_BYTE) {
        int r = gr_io_write_all(f->io, f->fd, data, n_byte);
        return r < 0 ? gr_storage_fail(f->path, "writing", r) : GR_OK;
    }
    if (n_byte)
        memcpy(f->buffer + f->n_buffered, data, n_byte);
    f->n_buffered += n_byte;
    return GR_OK;
}

gr_err gr_new_file_commit(gr_new_file *f, gr_saved_file *out) {
    GR_TRY(flush(f));
    int r = f->io->sync(f->io, f->fd);
    if (r < 0)
        return gr_storage_fail(f->path, "fsync", r);
    f->is_open = false;
    r = f->io->close(f->io, f->fd);
    if (r < 0)
        return gr_storage_fail(f->path, "closing", r);
    *out = (gr_saved_file){.n_byte = f->n_byte, .hash = gr_hasher_128(f->hasher)};
    return GR_OK;
}

void gr_new_file_close(gr_new_file *f) {
    if (f->is_open)
        f->io->close(f->io, f->fd);
    gr_hasher_close(f->hasher);
    *f = (gr_new_file){0};
}

/* ---------------------------------------------------------------- reading */

/* O_NONBLOCK: a FIFO must not block us. */
static gr_err open_regular(gr_io *io, const char *path, int *fd, uint64_t *n_byte) {
    bool is_regular = false;
    *fd = io->open(io, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (*fd < 0)
        return gr_fail(GR_CHECKPOINT, "%s: expected a regular file, got: %s", path,
            *fd == -ELOOP ? "a symbolic link" : strerror(-*fd));
    int r = io->stat(io, *fd, n_byte, &is_regular);
    if (r == 0 && is_regular)
        return GR_OK;
    io->close(io, *fd);
    return gr_fail(
        GR_CHECKPOINT, "%s: expected a regular file, got: %s", path, r < 0 ? strerror(-r) : "something else");
}

static gr_err open_sized(gr_io *io, const char *path, const gr_saved_file *expected, int *fd) {
    uint64_t n_byte;
    GR_TRY(open_regular(io, path, fd, &n_byte));
    if (n_byte == expected->n_byte)
        return GR_OK;
    io->close(io, *fd);
    return gr_fail(GR_CHECKPOINT, "%s: size: expected %" PRIu64 " bytes, got %" PRIu64, path, expected->n_byte, n_byte);
}

static gr_err hash_check(
    gr_io *io, int fd, const char *path, const gr_saved_file *expected, gr_hasher *hasher, uint8_t *buffer) {
    for (uint64_t at = 0; at < expected->n_byte;) {
        uint64_t left = expected->n_byte - at;
        size_t want = left < CHECKPOINT_BUFFER_BYTE ? (size_t)left : CHECKPOINT_BUFFER_BYTE;
        int64_t n = gr_io_read_all(io, fd, buffer, want, at);
        if (n < (int64_t)want)
            return gr_fail(GR_CHECKPOINT, "%s: byte %" PRIu64 ": expected %zu more, got: %s", path, at, want,
                n < 0 ? strerror((int)-n) : "the end of the file");
        gr_hasher_add(hasher, buffer, want);
        at += want;
    }
    gr_hash128 got = gr_hasher_128(hasher);
    char expected_text[33], got_text[33];
    if (got.lo == expected->hash.lo && got.hi == expected->hash.hi)
        return GR_OK;
    return gr_fail(GR_CHECKPOINT, "%s: XXH3-128: expected %s, got %s", path,
        gr_hash128_text(expected->hash, expected_text), gr_hash128_text(got, got_text));
}

gr_err gr_saved_file_verify(
    gr_io *io, const char *folder, const char *name, const gr_saved_file *expected, uint8_t *buffer) {
    char path[CHECKPOINT_FILE_PATH_MAX];
    int fd;
    gr_hasher *hasher;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    GR_TRY(gr_hasher_open(&hasher));
    gr_err err = open_sized(io, path, expected, &fd);
    if (!err) {
        err = hash_check(io, fd, path, expected, hasher, buffer);
        io->close(io, fd);
    }
    gr_hasher_close(hasher);
    return err;
}

gr_err gr_saved_file_check_size(gr_io *io, const char *folder, const char *name, const gr_saved_file *expected) {
    char path[CHECKPOINT_FILE_PATH_MAX];
    int fd;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    GR_TRY(open_sized(io, path, expected, &fd));
    io->close(io, fd);
    return GR_OK;
}

static gr_err text_read(gr_io *io, int fd, const char *path, size_t size, char **text) {
    void *memory;
    GR_TRY(gr_alloc(&memory, size + 1, 1, path));
    int64_t got = gr_io_read_all(io, fd, memory, size, 0);
    if (got < (int64_t)size) {
        free(memory);
        return gr_fail(GR_CHECKPOINT, "%s: expected %zu bytes, got: %s", path, size,
            got < 0 ? strerror((int)-got) : "the end of the file");
    }
    *text = memory;
    return GR_OK;
}

gr_err gr_saved_text_read(gr_io *io, const char *folder, const char *name, size_t max, char **text, size_t *n) {
    char path[CHECKPOINT_FILE_PATH_MAX];
    int fd;
    uint64_t size;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    GR_TRY(open_regular(io, path, &fd, &size));
    gr_err err = size > max
                     ? gr_fail(GR_CHECKPOINT, "%s: size: expected at most %zu bytes, got %" PRIu64, path, max, size)
                     : text_read(io, fd, path, (size_t)size, text);
    *n = (size_t)size;
    io->close(io, fd);
    return err;
}

/* ---------------------------------------------------------------- folders */

gr_err gr_saved_folder_sync(gr_io *io, const char *path) {
    int fd = io->open(io, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return gr_storage_fail(path, "opening the folder", fd);
    int r = io->sync(io, fd), closed = io->close(io, fd);
    r = r < 0 ? r : closed;
    return r < 0 ? gr_storage_fail(path, "fsync of the folder", r) : GR_OK;
}

gr_err gr_saved_folder_check(gr_io *io, const char *path) {
    int fd = io->open(io, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd < 0)
        return gr_fail(GR_CHECKPOINT, "%s: expected a folder, no link, got: %s", path, strerror(-fd));
    io->close(io, fd);
    return GR_OK;
}

static int name_add(const char *name, void *context) {
    gr_names *names = context;
    if (strlen(name) >= CHECKPOINT_NAME_MAX || !names->keep(name))
        return 0;
    if (names->n == names->n_max) {
        int n_max = 2 * names->n_max + 16;
        void *grown = realloc(names->name, (size_t)n_max * sizeof *names->name);
        if (!grown)
            return -ENOMEM;
        names->name = grown;
        names->n_max = n_max;
    }
    strcpy(names->name[names->n++], name);
    return 0;
}

static int name_compare(const void *a, const void *b) {
    return strcmp(a, b);
}

int gr_names_list(gr_io *io, const char *path, bool (*keep)(const char *name), gr_names *names) {
    *names = (gr_names){.keep = keep};
    int r = io->list(io, path, name_add, names);
    if (r == 0 && names->n > 0) /* what a folder lists first differs from machine to machine */
        qsort(names->name, (size_t)names->n, sizeof *names->name, name_compare);
    return r;
}

/* Skips decimal digits; NULL without any. */
static const char *skip_digits(const char *p) {
    const char *end = p;
    while (*end >= '0' && *end <= '9')
        end++;
    return end > p ? end : NULL;
}

static bool shard_name_is(const char *name) {
    if (strncmp(name, "model-", 6) != 0 && strncmp(name, "optim-", 6) != 0)
        return false;
    const char *p = skip_digits(name + 6);
    if (!p || strncmp(p, "-of-", 4) != 0)
        return false;
    p = skip_digits(p + 4);
    return p && strcmp(p, ".safetensors") == 0;
}

static bool saved_name_is(const char *name) {
    return strcmp(name, CHECKPOINT_MANIFEST) == 0 || strcmp(name, CHECKPOINT_INDEX) == 0 || shard_name_is(name);
}

int gr_saved_folder_remove(gr_io *io, const char *path) {
    gr_names names;
    char file[CHECKPOINT_FILE_PATH_MAX];
    int r = gr_names_list(io, path, saved_name_is, &names);
    for (int i = 0; r == 0 && i < names.n; i++) {
        snprintf(file, sizeof file, "%s/%s", path, names.name[i]);
        r = io->remove_file(io, file);
    }
    free(names.name);
    return r < 0 ? r : io->remove_folder(io, path);
}
