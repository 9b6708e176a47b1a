#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "grouter/io.h"

static const char *const folder = "test_io.work", *const path = "test_io.work/file",
                         *const other = "test_io.work/other";

static int clean(void **state) {
    (void)state;
    unlink(path);
    unlink(other);
    rmdir(folder);
    return 0;
}

static int set_up(void **state) {
    gr_io *io = gr_io_system();
    clean(state);
    return io->make_folder(io, folder);
}

static int create(gr_io *io) {
    int fd = io->open(io, path, O_RDWR | O_CREAT | O_EXCL, 0666);
    assert_true(fd >= 0);
    return fd;
}

static void a_file_goes_through_every_call_and_back(void **state) {
    (void)state;
    gr_io *io = gr_io_system();
    uint64_t n = 0;
    bool regular = false;
    char text[8] = "";
    int fd = create(io);
    assert_int_equal(io->allocate(io, fd, 5), 0);
    assert_int_equal(gr_io_write_all(io, fd, "hello", 5), 0);
    assert_int_equal(io->sync(io, fd), 0);
    assert_int_equal(io->stat(io, fd, &n, &regular), 0);
    assert_true(n == 5 && regular);
    assert_int_equal(gr_io_read_all(io, fd, text, sizeof text, 1), 4);
    assert_string_equal(text, "ello");
    assert_int_equal(io->close(io, fd), 0);
    assert_int_equal(io->rename(io, path, other), 0);
    assert_int_equal(io->remove_file(io, other), 0);
    assert_int_equal(io->remove_folder(io, folder), 0);
}

static void errors_come_back_negative(void **state) {
    (void)state;
    gr_io *io = gr_io_system();
    uint64_t n;
    bool regular;
    close(create(io));
    assert_int_equal(io->open(io, path, O_RDWR | O_CREAT | O_EXCL, 0666), -EEXIST);
    assert_int_equal(io->make_folder(io, folder), -EEXIST);
    assert_int_equal(io->remove_folder(io, folder), -ENOTEMPTY);
    assert_int_equal(io->rename(io, other, path), -ENOENT);
    assert_int_equal(io->remove_file(io, other), -ENOENT);
    assert_int_equal(io->write(io, -1, "x", 1), -EBADF);
    assert_int_equal(io->read(io, -1, &n, 1, 0), -EBADF);
    assert_int_equal(io->sync(io, -1), -EBADF);
    assert_int_equal(io->stat(io, -1, &n, &regular), -EBADF);
    assert_int_equal(io->allocate(io, -1, 1), -EBADF);
    assert_int_equal(io->close(io, -1), -EBADF);
    assert_int_equal(io->list(io, other, NULL, NULL), -ENOENT);
}

static void more_room_than_there_is_fails_before_any_byte_moves(void **state) {
    (void)state;
    gr_io *io = gr_io_system();
    int fd = create(io);
    int r = io->allocate(io, fd, (uint64_t)1 << 60);
    io->close(io, fd);
    assert_true(r == -ENOSPC || r == -EFBIG || r == 0); /* 0: a filesystem that cannot reserve */
}

static int count(const char *name, void *context) {
    int *left = context;
    assert_true(strcmp(name, ".") != 0 && strcmp(name, "..") != 0);
    return --*left == 0;
}

static void listing_leaves_out_the_dots_and_stops_when_told(void **state) {
    (void)state;
    gr_io *io = gr_io_system();
    close(create(io));
    close(open(other, O_CREAT | O_WRONLY, 0666));
    int left = 9;
    assert_int_equal(io->list(io, folder, count, &left), 0);
    assert_int_equal(left, 7);
    left = 1;
    assert_int_equal(io->list(io, folder, count, &left), 0);
    assert_int_equal(left, 0);
}

/* ---------------------------------------------------------------- whole transfers */

typedef struct mock {
    char data[8];
    int n, calls;
} mock;

/* Every second call is interrupted, the others move one byte. */
static int64_t halting_write(gr_io *io, int fd, const void *data, size_t n_byte) {
    mock *m = io->state;
    (void)fd;
    if (m->calls++ % 2 == 0)
        return -EINTR;
    assert_true(n_byte > 0 && m->n < (int)sizeof m->data);
    m->data[m->n++] = *(const char *)data;
    return 1;
}

static int64_t halting_read(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    mock *m = io->state;
    (void)fd;
    if (m->calls++ % 2 == 0)
        return -EINTR;
    assert_true(n_byte > 0);
    if (offset >= (uint64_t)m->n)
        return 0;
    *(char *)data = m->data[offset];
    return 1;
}

static int64_t full_write(gr_io *io, int fd, const void *data, size_t n_byte) {
    (void)io, (void)fd, (void)data, (void)n_byte;
    return 0;
}

static int64_t broken_read(gr_io *io, int fd, void *data, size_t n_byte, uint64_t offset) {
    (void)io, (void)fd, (void)data, (void)n_byte, (void)offset;
    return -EIO;
}

static void transfers_go_on_after_short_counts_and_interrupts(void **state) {
    (void)state;
    mock m = {.n = 0};
    char text[8] = "";
    gr_io io = {.write = halting_write, .read = halting_read, .state = &m};
    assert_int_equal(gr_io_write_all(&io, 3, "abcdef", 6), 0);
    assert_int_equal(m.n, 6);
    assert_int_equal(gr_io_read_all(&io, 3, text, sizeof text, 2), 4);
    assert_string_equal(text, "cdef");
}

static void a_write_of_nothing_and_a_broken_read_are_errors(void **state) {
    (void)state;
    char c;
    gr_io io = {.write = full_write, .read = broken_read};
    assert_int_equal(gr_io_write_all(&io, 3, "a", 1), -ENOSPC);
    assert_int_equal(gr_io_read_all(&io, 3, &c, 1, 0), -EIO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_goes_through_every_call_and_back, set_up, clean),
        cmocka_unit_test_setup_teardown(errors_come_back_negative, set_up, clean),
        cmocka_unit_test_setup_teardown(more_room_than_there_is_fails_before_any_byte_moves, set_up, clean),
        cmocka_unit_test_setup_teardown(listing_leaves_out_the_dots_and_stops_when_told, set_up, clean),
        cmocka_unit_test(transfers_go_on_after_short_counts_and_interrupts),
        cmocka_unit_test(a_write_of_nothing_and_a_broken_read_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
