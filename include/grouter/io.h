/* io.h: every file call of saving, retention and resuming goes through one table, so that a test can make any of them
 * fail, stop the process or lie (drop what was not synced). */
#ifndef GROUTER_IO_H
#define GROUTER_IO_H

#include "grouter/base.h"

/* All functions return 0 or a count, or -errno. */
typedef struct gr_io gr_io;
struct gr_io {
    int (*open)(gr_io *io, const char *path, int flags, unsigned mode); /* a descriptor */
    int64_t (*write)(gr_io *io, int fd, const void *data, size_t n_byte);
    int64_t (*read)(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset);
    int (*stat)(gr_io *io, int fd, uint64_t *n_byte, bool *is_regular);
    int (*allocate)(gr_io *io, int fd, uint64_t n_byte); /* fails before data moves if there is no room */
    int (*sync)(gr_io *io, int fd);                      /* of files and folders */
    int (*close)(gr_io *io, int fd);
    int (*rename)(gr_io *io, const char *from, const char *to);
    int (*make_folder)(gr_io *io, const char *path);
    int (*remove_file)(gr_io *io, const char *path);
    int (*remove_folder)(gr_io *io, const char *path); /* empty */
    /* Calls visit(name, context) for every entry but "." and ".."; stops when it returns non-zero. */
    int (*list)(gr_io *io, const char *path, int (*visit)(const char *name, void *context), void *context);
    void *state;
};

/* The operating system's. */
gr_io *gr_io_system(void);

/* Whole transfers across short counts and EINTR: 0, the bytes read (fewer only at the end of the file), or -errno. */
int gr_io_write_all(gr_io *io, int fd, const void *data, size_t n_byte);
int64_t gr_io_read_all(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset);

#endif
