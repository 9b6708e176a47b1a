#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lying_disk.h"
#include "lying_io.h"

enum { N_BYTE = 2000, N_SEED = 60 };

static char root[64];

static const char *below(const char *name) {
    static char path[4][128];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", root, name);
    return path[i];
}

static int setup(void **state) {
    (void)state;
    strcpy(root, "lying_io.XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    lying_folder_remove(root);
    return 0;
}

/* ---- what the simulated programs do; they run in a child, where a failed call ends it with 1 */

static void must(bool ok) {
    if (!ok)
        _exit(1);
}

static void sync_path(gr_io *io, const char *path) {
    int fd = io->open(io, path, O_RDONLY, 0);
    must(fd >= 0 && io->sync(io, fd) == 0 && io->close(io, fd) == 0);
}

static int create(gr_io *io, const char *name) {
    uint8_t data[N_BYTE];
    memset(data, 'x', sizeof data);
    int fd = io->open(io, below(name), O_WRONLY | O_CREAT | O_EXCL, 0666);
    must(fd >= 0 && io->write(io, fd, data, sizeof data) == N_BYTE);
    return fd;
}

static void create_synced(gr_io *io, const char *name) {
    int fd = create(io, name);
    must(io->sync(io, fd) == 0 && io->close(io, fd) == 0);
}

static void nothing_in_doubt(gr_io *io) {
    must(io->make_folder(io, below("tmp")) == 0);
    create_synced(io, "tmp/a");
    sync_path(io, below("tmp"));
    must(io->rename(io, below("tmp"), below("final")) == 0);
    sync_path(io, root);
}

static void bytes_in_doubt(gr_io *io) {
    must(io->close(io, create(io, "a")) == 0);
    sync_path(io, root);
}

static void name_in_doubt(gr_io *io) {
    create_synced(io, "a");
}

static void rename_in_doubt(gr_io *io) {
    create_synced(io, "a");
    sync_path(io, root);
    must(io->rename(io, below("a"), below("b")) == 0);
}

static void removal_in_doubt(gr_io *io) {
    nothing_in_doubt(io);
    must(io->rename(io, below("final"), below("trash")) == 0);
    must(io->remove_file(io, below("trash/a")) == 0);
}

static void sync_fails_then_succeeds(gr_io *io) {
    int fd = create(io, "a");
    must(io->sync(io, fd) == -EIO && io->sync(io, fd) == 0 && io->close(io, fd) == 0);
    sync_path(io, root);
}

/* Runs the program on an empty folder until it is killed; the call `at` meets the fault. */
static void run(void (*program)(gr_io *), lying_fault fault, uint64_t at, uint64_t seed) {
    lying_folder_clear(root);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        gr_io *io = lying_io_open(&(lying_options){
            .under = gr_io_system(), .root = root, .fault = fault, .at = at, .error = EIO, .seed = seed});
        program(io);
        lying_io_lose_power(io);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static bool exists(const char *name) {
    return gr_path_exists(below(name));
}

/* How many of the file's bytes are what was written; -1: the file is not there. */
static int kept(const char *name, size_t *n_byte) {
    uint8_t data[N_BYTE + 1];
    int fd = open(below(name), O_RDONLY), n_kept = 0;
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, data, sizeof data);
    close(fd);
    *n_byte = (size_t)n;
    for (ssize_t i = 0; i < n; i++)
        n_kept += data[i] == 'x';
    return n_kept;
}

/* ---- power loss */

static void synced_bytes_under_synced_names_survive(void **state) {
    (void)state;
    size_t n;
    for (uint64_t seed = 0; seed < 9; seed++) {
        run(nothing_in_doubt, LYING_NONE, 0, seed);
        assert_int_equal(kept("final/a", &n), N_BYTE);
        assert_false(exists("tmp"));
    }
}

static void unsynced_bytes_are_lost_in_all_ways(void **state) {
    (void)state;
    bool empty = false, whole = false, garbled = false, partly = false;
    for (uint64_t seed = 0; seed < N_SEED; seed++) {
        run(bytes_in_doubt, LYING_NONE, 0, seed);
        size_t n;
        int n_kept = kept("a", &n);
        assert_true(n_kept >= 0);
        empty |= n == 0;
        whole |= n_kept == N_BYTE;
        garbled |= n == N_BYTE && n_kept < 100;
        partly |= n_kept >= 512 && n_kept < N_BYTE;
    }
    assert_true(empty && whole && garbled && partly);
}

static void a_synced_file_under_an_unsynced_name_may_be_gone(void **state) {
    (void)state;
    size_t n;
    run(name_in_doubt, LYING_NONE, 0, 0);
    assert_false(exists("a"));
    run(name_in_doubt, LYING_NONE, 0, 1);
    assert_int_equal(kept("a", &n), N_BYTE);
}

static void an_unsynced_rename_gives_the_old_name_or_the_new(void **state) {
    (void)state;
    int n_old = 0;
    for (uint64_t seed = 0; seed < N_SEED; seed++) {
        run(rename_in_doubt, LYING_NONE, 0, seed);
        assert_true(exists("a") != exists("b"));
        n_old += exists("a");
    }
    assert_in_range(n_old, N_SEED / 3, N_SEED - N_SEED / 3); /* seeds of kind 0 all keep the old name, of kind 1 none */
}

static void a_removal_may_get_through_before_its_folders_rename(void **state) {
    (void)state;
    bool early = false, late = false;
    for (uint64_t seed = 0; seed < N_SEED; seed++) {
        run(removal_in_doubt, LYING_NONE, 0, seed);
        early |= exists("final") && !exists("final/a");
        late |= exists("trash/a");
    }
    assert_true(early && late);
}

static void bytes_of_a_failed_sync_stay_in_doubt(void **state) {
    (void)state;
    size_t n;
    run(sync_fails_then_succeeds, LYING_ERROR, 2, 0);
    assert_int_equal(kept("a", &n), 0);
    assert_int_equal(n, 0);
}

/* ---- other faults */

static void a_kill_strikes_before_its_call_or_halfway(void **state) {
    (void)state;
    size_t n;
    run(name_in_doubt, LYING_KILL, 0, 0);
    assert_false(exists("a"));
    run(name_in_doubt, LYING_KILL, 1, 0);
    assert_int_equal(kept("a", &n), 0);
    run(name_in_doubt, LYING_KILL_HALF, 0, 0);
    assert_int_equal(kept("a", &n), N_BYTE / 2);
}

static gr_io *faulty(lying_fault fault, uint64_t at, int error) {
    lying_folder_clear(root);
    return lying_io_open(
        &(lying_options){.under = gr_io_system(), .root = root, .fault = fault, .at = at, .error = error});
}

static void an_error_strikes_once_or_until_healed(void **state) {
    (void)state;
    for (lying_fault fault = LYING_ERROR; fault <= LYING_ERROR_ON; fault++) {
        gr_io *io = faulty(fault, 1, ENOSPC);
        int fd = io->open(io, below("a"), O_WRONLY | O_CREAT, 0666);
        assert_true(fd >= 0);
        assert_int_equal(io->write(io, fd, "1", 1), -ENOSPC);
        assert_true(lying_io_struck(io));
        assert_int_equal(io->write(io, fd, "2", 1), fault == LYING_ERROR ? 1 : -ENOSPC);
        lying_io_heal(io);
        assert_int_equal(io->write(io, fd, "3", 1), 1);
        assert_int_equal(io->close(io, fd), 0);
        assert_int_equal(lying_io_calls(io), 5);
        assert_int_equal(lying_io_trace(io)[0], CALL_CREATE);
        assert_int_equal(lying_io_trace(io)[4], CALL_CLOSE);
        lying_io_close(io);
    }
}

static void a_short_write_takes_half_and_rot_changes_one_bit(void **state) {
    (void)state;
    gr_io *io = faulty(LYING_SHORT, 0, 0);
    int fd = io->open(io, below("a"), O_WRONLY | O_CREAT, 0666);
    assert_int_equal(io->write(io, fd, "xxxxxx", 6), 3);
    assert_int_equal(io->write(io, fd, "xxx", 3), 3);
    assert_int_equal(io->close(io, fd), 0);
    lying_io_close(io);
    io = faulty(LYING_ROT, 0, 0);
    fd = io->open(io, below("a"), O_WRONLY | O_CREAT, 0666);
    assert_int_equal(io->write(io, fd, "xxxxxx", 6), 6);
    assert_int_equal(io->write(io, fd, "xxxxxx", 6), 6);
    assert_int_equal(io->close(io, fd), 0);
    lying_io_close(io);
    size_t n;
    assert_int_equal(kept("a", &n), 11);
    assert_int_equal(n, 12);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(synced_bytes_under_synced_names_survive),
        cmocka_unit_test(unsynced_bytes_are_lost_in_all_ways),
        cmocka_unit_test(a_synced_file_under_an_unsynced_name_may_be_gone),
        cmocka_unit_test(an_unsynced_rename_gives_the_old_name_or_the_new),
        cmocka_unit_test(a_removal_may_get_through_before_its_folders_rename),
        cmocka_unit_test(bytes_of_a_failed_sync_stay_in_doubt),
        cmocka_unit_test(a_kill_strikes_before_its_call_or_halfway),
        cmocka_unit_test(an_error_strikes_once_or_until_healed),
        cmocka_unit_test(a_short_write_takes_half_and_rot_changes_one_bit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
