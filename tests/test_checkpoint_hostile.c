#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <sys/stat.h>

#define CHECKPOINT_FOLDER "test_checkpoint_hostile.work"
#include "checkpoint_alone.h"

/* ---------------------------------------------------------------- hostile checkpoints: whole, but not to be trusted */

/* Writes the manifest with `text` for the text before its last line. */
static void manifest_seal(const char *text, size_t n) {
    char seal[64];
    FILE *f = fopen(file_path(-1), "wb");
    assert_non_null(f);
    snprintf(seal, sizeof seal, "  \"xxh3_64\": \"%016llx\"\n}\n", (unsigned long long)gr_hash64(text, n));
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_true(fputs(seal, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

/* One newest checkpoint whose manifest has `to` where it had `from`; what finding it says. */
static void expect_refused(const char *from, const char *to, const char *what) {
    saves(NEW, 0);
    size_t n;
    char *text = file_read(file_path(-1), &n), *at = strstr(text, from);
    assert_non_null(at);
    *strstr(text, "  \"xxh3_64\": ") = '\0';
    char *edited = malloc(n + strlen(to) + 1);
    int n_edited = sprintf(edited, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    manifest_seal(edited, (size_t)n_edited);
    free(edited);
    free(text);

    gr_manifest m;
    uint8_t *buffer = malloc(CHECKPOINT_BUFFER_BYTE);
    char path[GR_CHECKPOINT_PATH_MAX];
    gr_step_path(folder, NEW, path);
    assert_int_equal(gr_checkpoint_verify(gr_io_system(), path, NEW, buffer, &m, NULL, NULL), GR_CHECKPOINT);
    if (!strstr(gr_error_text(), what))
        fail_msg("\"%s\" is not in: %s", what, gr_error_text());
    gr_manifest_close(&m);
    free(buffer);
    gr_checkpoint_found found;
    assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_CHECKPOINT);
    clean(NULL);
}

static void a_manifest_cannot_lead_outside_its_folder(void **state) {
    (void)state;
    const char *const name = "\"optim-0-of-1.safetensors\"";
    expect_refused(name, "\"../model-0-of-1.safetensors\"", "expected optim-0-of-1.safetensors, got ../model");
    expect_refused(name, "\"/etc/passwd\"", "got /etc/passwd");
    expect_refused(name, "\"\"", "files[2]: name");
    expect_refused(name, "\"model-0-of-1.safetensors\"", "files[2]: name");
    expect_refused(name, "7", "got none");
}

static void a_manifest_of_wrong_numbers_is_refused(void **state) {
    (void)state;
    expect_refused("\"step\": 20", "\"step\": 21", "step: expected the folder's 20, got 21");
    expect_refused("\"step\": 20", "\"step\": -20", "got -20");
    expect_refused("\"cursor\": 160", "\"cursor\": 1e3", "cursor: expected a whole number");
    expect_refused("\"cursor\": 160", "\"cursor\": 18446744073709551616", "cursor: expected a whole number");
    expect_refused("\"ranks\": 1", "\"ranks\": 4294967297", "ranks: expected a whole number of 1 to 32767");
    expect_refused("\"ranks\": 1", "\"ranks\": 32767", "files: expected 32769 of them");
    expect_refused("\"ranks\": 1", "\"ranks\": 0", "ranks: ");
    expect_refused("\"expert_parallel_size\": 1", "\"expert_parallel_size\": 2", "of 1 to 1, got 2");
    expect_refused("\"facts\": {", "\"facts\": {\"a\": 1,", "facts: a: expected a string");
    expect_refused("\"facts\": {", "\"more\": 1, \"facts\": {", "expected 12 members, got 13");
    expect_refused("\"size\": ", "\"size\": 1", "size: expected 1");
    expect_refused("\"xxh3_128\": \"", "\"xxh3_128\": \"0", "32 hexadecimal digits");
    expect_refused("\"step\": 20", "\"step\": 20, \"step\": 20", "step");
}

static void another_version_is_refused_even_over_an_older_checkpoint(void **state) {
    (void)state;
    expect_refused("\"version\": 1", "\"version\": 2", "version: expected 1, got 2");
    saves(OLD, NEW);
    size_t n;
    char *text = file_read(file_path(-1), &n);
    text[strlen("{\n  \"version\": ")] = '2';
    *strstr(text, "  \"xxh3_64\": ") = '\0';
    manifest_seal(text, strlen(text));
    free(text);
    gr_checkpoint_found found;
    assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_CHECKPOINT);
    assert_non_null(strstr(gr_error_text(), "expected 1, got 2"));
}

static void links_and_pipes_are_no_files(void **state) {
    (void)state;
    saves(OLD, NEW);
    for (int i = -1; i < gr_saved_file_count(1, 1); i++) {
        char aside[256];
        snprintf(aside, sizeof aside, "%s/aside", folder);
        assert_int_equal(rename(file_path(i), aside), 0);
        assert_int_equal(symlink("../aside", file_path(i)), 0);
        assert_int_equal(found_step(), OLD);
        unlink(file_path(i));
        assert_int_equal(mkfifo(file_path(i), 0600), 0);
        assert_int_equal(found_step(), OLD);
        unlink(file_path(i));
        assert_int_equal(rename(aside, file_path(i)), 0);
    }
    assert_int_equal(found_step(), NEW);
    assert_int_equal(rename(CHECKPOINT_FOLDER "/step-00000020", CHECKPOINT_FOLDER "/elsewhere"), 0);
    assert_int_equal(symlink("elsewhere", CHECKPOINT_FOLDER "/step-00000020"), 0);
    assert_int_equal(found_step(), OLD);
}

/* ---------------------------------------------------------------- whole checkpoints that do not fit the model */

/* Changes the list of a file's tensors before it is written anew. */
typedef void change(gr_tensor *list, int *n);

/* File i of the new checkpoint written anew with other tensors; the manifest agrees. */
static void file_change(int i, change *apply) {
    size_t n_manifest, n_text;
    char *manifest = file_read(file_path(-1), &n_manifest), *text, changed[256];
    gr_safetensors *from;
    gr_safetensors_writer *w;
    gr_tensor list[512];
    assert_int_equal(gr_safetensors_open(&from, file_path(i)), GR_OK);
    int n = gr_safetensors_count(from);
    assert_true(n > 50 && n < 500);
    for (int k = 0; k < n; k++)
        list[k] = *gr_safetensors_at(from, k);
    apply(list, &n);
    snprintf(changed, sizeof changed, "%s", file_path(i));
    assert_int_equal(gr_safetensors_writer_open(&w, changed, list, n, NULL, 0), GR_OK);
    for (int k = 0; k < n; k++) {
        static const uint8_t zeros[1 << 16];
        size_t size = gr_dtype_size(list[k].dtype);
        for (int d = 0; d < list[k].n_dim; d++)
            size *= (size_t)list[k].dim[d];
        assert_int_equal(gr_safetensors_writer_append(w, zeros, size), GR_OK);
    }
    assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
    gr_safetensors_writer_close(w);
    gr_safetensors_close(from);

    gr_manifest m;
    gr_hasher *hasher;
    assert_int_equal(gr_manifest_parse(&m, manifest, n_manifest, "manifest"), GR_OK);
    free(manifest);
    text = file_read(changed, &n_text);
    assert_int_equal(gr_hasher_open(&hasher), GR_OK);
    gr_hasher_add(hasher, text, n_text);
    m.file[i] = (gr_saved_file){.n_byte = n_text, .hash = gr_hasher_128(hasher)};
    gr_hasher_close(hasher);
    free(text);
    assert_int_equal(gr_manifest_print(&m, &text, &n_text), GR_OK);
    file_write(file_path(-1), text, n_text);
    free(text);
    gr_manifest_close(&m);
}

static void expect_unfit(int i, change *apply, const char *what) {
    saves(NEW, 0);
    file_change(i, apply);
    gr_checkpoint_found found = find();
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, quick_io(), folder, GR_ZERO_1, 0);
    checkpoint_fixture_visit(&x, 7, fixture_set, NULL);
    assert_int_equal(gr_checkpoint_load(x.checkpointer, &found), GR_CHECKPOINT);
    if (!strstr(gr_error_text(), what))
        fail_msg("\"%s\" is not in: %s", what, gr_error_text());
    assert_int_equal(checkpoint_fixture_differences(&x, 7), 0); /* nothing of it was used */
    checkpoint_fixture_close(&x);
    gr_checkpoint_found_close(&found);
    clean(NULL);
}

static void drop_first(gr_tensor *list, int *n) {
    memmove(list, list + 1, (size_t)-- * n * sizeof *list);
}

static void add_bias(gr_tensor *list, int *n) {
    list[(*n)++] = (gr_tensor){.name = "lm_head.bias.exp_avg.0", .dtype = GR_F32, .n_dim = 1, .dim = {9}};
}

static void shorten_first(gr_tensor *list, int *n) {
    (void)n;
    list[0].dim[0]--;
}

static void lengthen_first(gr_tensor *list, int *n) {
    (void)n;
    list[0].dim[0]++;
}

static void split_with_overlap(gr_tensor *list, int *n) {
    list[(*n)++] = (gr_tensor){.name = "model.embed_tokens.weight.exp_avg.50", .dtype = GR_F32, .n_dim = 1, .dim = {4}};
}

static void double_precision(gr_tensor *list, int *n) {
    (void)n;
    list[0].dtype = GR_F64;
}

static void other_first_element(gr_tensor *list, int *n) {
    (void)n;
    list[0].name = "model.embed_tokens.weight.exp_avg.00";
}

static void huge_first_element(gr_tensor *list, int *n) {
    (void)n;
    list[0].name = "model.embed_tokens.weight.exp_avg.99999999999999999999";
}

static void pieces_that_do_not_tile_the_moments_are_refused(void **state) {
    (void)state;
    const char *const first = "model.embed_tokens.weight.exp_avg";
    char text[128];
    snprintf(text, sizeof text, "%s: elements 0 to 53: expected once, got none", first);
    expect_unfit(2, drop_first, text);
    snprintf(text, sizeof text, "%s: elements 53 to 53: expected once, got none", first);
    expect_unfit(2, shorten_first, text);
    snprintf(text, sizeof text, "%s.0: expected F32 [1 to 54], got F32 [55]", first);
    expect_unfit(2, lengthen_first, text);
    snprintf(text, sizeof text, "%s: elements 50 to 53: expected once, got more than one", first);
    expect_unfit(2, split_with_overlap, text);
    snprintf(text, sizeof text, "%s.0: expected F32 [1 to 54], got F64 [54]", first);
    expect_unfit(2, double_precision, text);
    snprintf(text, sizeof text, "%s.00: expected no such tensor", first);
    expect_unfit(2, other_first_element, text);
    snprintf(text, sizeof text, "%s.99999999999999999999: expected no such tensor", first);
    expect_unfit(2, huge_first_element, text);
    expect_unfit(2, add_bias, "lm_head.bias.exp_avg.0: expected no such tensor");
}

static void weights_of_another_model_are_refused(void **state) {
    (void)state;
    expect_unfit(0, drop_first, "model.embed_tokens.weight: expected F32 [9, 6], got none");
    expect_unfit(0, shorten_first, "model.embed_tokens.weight: expected F32 [9, 6], got F32 [8, 6]");
    expect_unfit(0, add_bias, "lm_head.bias.exp_avg.0: expected no such tensor");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_manifest_cannot_lead_outside_its_folder, clean),
        cmocka_unit_test_teardown(a_manifest_of_wrong_numbers_is_refused, clean),
        cmocka_unit_test_teardown(another_version_is_refused_even_over_an_older_checkpoint, clean),
        cmocka_unit_test_teardown(links_and_pipes_are_no_files, clean),
        cmocka_unit_test_teardown(pieces_that_do_not_tile_the_moments_are_refused, clean),
        cmocka_unit_test_teardown(weights_of_another_model_are_refused, clean),
    };
    gr_log_set(GR_LOG_QUIET);
    fixture_folder_remove(folder);
    gr_err err = gr_comm_open(&comm, "self");
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    return failed;
}
