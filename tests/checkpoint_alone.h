/* checkpoint_alone.h: what the tests of one rank share. They define CHECKPOINT_FOLDER, their own, before. */
#ifndef GROUTER_CHECKPOINT_ALONE_H
#define GROUTER_CHECKPOINT_ALONE_H

#include "checkpoint_fixture.h"
#include "faulty_io.h"
#include "train/checkpoint_parts.h"

static const char *const folder = CHECKPOINT_FOLDER;
static gr_comm *comm;

/* Nothing here loses power, and waiting for the disk would be most of the time. */
static gr_io *quick_io(void) {
    static faulty_io quick;
    return faulty_io_open(&quick);
}

static int clean(void **state) {
    (void)state;
    fixture_folder_remove(folder);
    return 0;
}

static void saves(int64_t first, int64_t second) {
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, quick_io(), folder, GR_ZERO_1, 0);
    assert_int_equal(checkpoint_fixture_save(&x, first), GR_OK);
    if (second)
        assert_int_equal(checkpoint_fixture_save(&x, second), GR_OK);
    checkpoint_fixture_close(&x);
}

static gr_checkpoint_found find(void) {
    gr_checkpoint_found found;
    assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_OK);
    return found;
}

static inline int64_t found_step(void) {
    gr_checkpoint_found found = find();
    int64_t step = found.found ? found.state.step : -1;
    gr_checkpoint_found_close(&found);
    return step;
}

/* ---------------------------------------------------------------- files of a checkpoint */

enum { OLD = 10, NEW = 20 };

/* Path of a file of the new checkpoint: i as in the manifest's list, -1 the manifest. */
static const char *file_path(int i) {
    static char path[256];
    char name[CHECKPOINT_NAME_MAX] = CHECKPOINT_MANIFEST;
    if (i >= 0)
        gr_saved_file_name(1, 1, i, name);
    snprintf(path, sizeof path, "%s/step-%08d/%s", folder, (int)NEW, name);
    return path;
}

/* Not inline: GCC 12 would take the text for a pointer to the local variable. */
__attribute__((noinline)) static char *file_read(const char *path, size_t *n) {
    char *text;
    assert_int_equal(gr_file_read(path, 1 << 24, GR_BUG, &text, n), GR_OK);
    return text;
}

static void file_write(const char *path, const void *text, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

#endif
