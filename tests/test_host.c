/* How much memory this machine says it has left. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/base.h"

/* A machine: files below a new folder. */
typedef struct machine {
    char root[64];
} machine;

static void put(const machine *m, const char *path, const char *text) {
    char full[512], folder[512];
    snprintf(full, sizeof full, "%s%s", m->root, path);
    snprintf(folder, sizeof folder, "%s", full);
    *strrchr(folder, '/') = '\0';
    assert_int_equal(gr_folder_make(folder), GR_OK);
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static machine make_machine(void) {
    machine m = {.root = "test_host_XXXXXX"};
    assert_non_null(mkdtemp(m.root));
    put(&m, "/proc/meminfo", "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:    1000000 kB\n");
    return m;
}

static void remove_machine(const machine *m) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", m->root);
    assert_int_equal(system(command), 0);
}

static void available_memory_bounds_without_groups(void **state) {
    (void)state;
    machine m = make_machine();
    gr_memory_room room = gr_memory_room_get(m.root);
    assert_int_equal(room.host, 1000000ull * 1024);
    assert_string_equal(room.limit, "MemAvailable");
    remove_machine(&m);
}

static void the_tightest_group_of_version_2_bounds_and_file_pages_do_not_count(void **state) {
    (void)state;
    machine m = make_machine();
    put(&m, "/proc/self/cgroup", "0::/job/step\n");
    put(&m, "/sys/fs/cgroup/job/step/memory.max", "max\n");
    put(&m, "/sys/fs/cgroup/job/memory.max", "500000000\n");
    put(&m, "/sys/fs/cgroup/job/memory.current", "300000000\n");
    put(&m, "/sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 100000000\nactive_file 50000000\n");
    gr_memory_room room = gr_memory_room_get(m.root);
    assert_int_equal(room.host, 350000000);
    assert_string_equal(room.limit, "cgroup limit");
    remove_machine(&m);
}

static void groups_of_version_1_are_read_where_the_memory_controller_is(void **state) {
    (void)state;
    machine m = make_machine();
    put(&m, "/proc/self/cgroup", "9:cpu:/elsewhere\n4:memory:/job\n0::/\n");
    put(&m, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "400000000\n");
    put(&m, "/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "390000000\n");
    put(&m, "/sys/fs/cgroup/memory/job/memory.stat", "cache 9\ntotal_inactive_file 5000000\ntotal_active_file 0\n");
    assert_int_equal(gr_memory_room_get(m.root).host, 15000000);
    put(&m, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "100\n"); /* over its limit: nothing is left */
    assert_int_equal(gr_memory_room_get(m.root).host, 0);
    remove_machine(&m);
}

static void what_is_not_said_bounds_nothing(void **state) {
    (void)state;
    machine m = make_machine();
    put(&m, "/proc/meminfo", "MemTotal: 1 kB\n");
    put(&m, "/proc/self/cgroup", "nonsense\n:\n\n1:memory\n0::/none\n");
    assert_int_equal(gr_memory_room_get(m.root).host, UINT64_MAX);
    remove_machine(&m);
}

static void a_path_that_is_not_there_yet_has_the_room_of_the_folder_above(void **state) {
    (void)state;
    uint64_t here = gr_disk_room("."), made = gr_disk_room("not/made/yet"), root = gr_disk_room("/not-there/at-all");
    assert_true(here > 0 && root > 0);
    assert_in_range(made, here / 2, here + here / 2); /* others write meanwhile */
}

static void touched_memory_is_resident(void **state) {
    (void)state;
    const size_t n_byte = 64 << 20;
    uint64_t before = gr_memory_resident();
    if (before == 0)
        skip();
    char *p = malloc(n_byte);
    assert_non_null(p);
    memset(p, 1, n_byte);
    uint64_t grown = gr_memory_resident() - before;
    assert_int_equal(p[n_byte - 1], 1);
    free(p);
    assert_in_range(grown, n_byte - (n_byte >> 4), 2 * n_byte);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(available_memory_bounds_without_groups),
        cmocka_unit_test(the_tightest_group_of_version_2_bounds_and_file_pages_do_not_count),
        cmocka_unit_test(groups_of_version_1_are_read_where_the_memory_controller_is),
        cmocka_unit_test(what_is_not_said_bounds_nothing),
        cmocka_unit_test(a_path_that_is_not_there_yet_has_the_room_of_the_folder_above),
        cmocka_unit_test(touched_memory_is_resident),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
