#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <unistd.h>

#include "grouter/data.h"
#include "weights_fixture.h"

static const char *const path = "test_weights.safetensors";

static gr_comm *self_open(void) {
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "self"), GR_OK);
    return c;
}

static gr_hash128 save(const weights_fixture *f, const char *to, const char *config) {
    gr_hash128 hash = {0};
    gr_comm *c = self_open();
    assert_int_equal(gr_params_save(&f->params, c, gr_weights_whole(&f->params, f->flat), to,
                         config ? &(gr_metadata){"grouter_config", config} : NULL, &hash),
        GR_OK);
    gr_comm_close(c, GR_OK);
    return hash;
}

static void what_was_saved_is_loaded_bit_for_bit(void **state) {
    (void)state;
    weights_fixture f;
    fixture_open(&f, 1, 0);
    save(&f, path, NULL);
    size_t n_byte = (size_t)f.params.n_element * sizeof *f.flat;
    float *again = malloc(n_byte);
    memset(again, 0xff, n_byte);
    assert_int_equal(gr_params_load(&f.params, path, gr_weights_whole(&f.params, again)), GR_OK);
    assert_memory_equal(again, f.flat, n_byte);
    free(again);
    fixture_close(&f);
    unlink(path);
}

static void tensors_are_whole_named_by_logical_expert_and_in_table_order(void **state) {
    (void)state;
    weights_fixture f;
    fixture_open(&f, 1, 0);
    save(&f, path, "{\"a\": 1}");
    gr_safetensors *file;
    assert_int_equal(gr_safetensors_open(&file, path), GR_OK);
    assert_string_equal(gr_safetensors_metadata(file, "format"), "pt");
    assert_string_equal(gr_safetensors_metadata(file, "grouter_config"), "{\"a\": 1}");
    assert_string_equal(gr_safetensors_at(file, 0)->name, "model.embed_tokens.weight");
    int n = gr_safetensors_count(file);
    assert_string_equal(gr_safetensors_at(file, n - 1)->name, "model.layers.1.mlp.experts.11.down_proj.weight");
    assert_string_equal(gr_safetensors_at(file, n - 2)->name, "model.layers.1.mlp.experts.10.down_proj.weight");
    const gr_tensor *t = gr_safetensors_find(file, "model.layers.1.mlp.experts.2.up_proj.weight");
    const gr_param *p = gr_params_find(&f.params, "model.layers.1.mlp.experts.%u.up_proj.weight");
    assert_true(t->dtype == GR_F32 && t->n_dim == 2 && t->dim[0] == 5 && t->dim[1] == 6);
    assert_memory_equal(t->data, f.flat + p->offset + f.slot_of[2] * p->stride, t->n_byte);
    t = gr_safetensors_find(file, "model.norm.weight");
    assert_true(t->n_dim == 1 && t->dim[0] == 6);
    gr_safetensors_close(file);
    fixture_close(&f);
    unlink(path);
}

static void the_hash_needs_no_file_and_sees_every_bit(void **state) {
    (void)state;
    weights_fixture f;
    fixture_open(&f, 1, 0);
    gr_hash128 a = save(&f, path, NULL), b = save(&f, NULL, "{}");
    assert_true(a.lo == b.lo && a.hi == b.hi);
    for (int i = 0; i < f.params.n; i++) {
        const gr_param *p = &f.params.list[i];
        float *last = &f.flat[p->offset + (p->n_matrix - 1) * p->stride + gr_param_size(p) - 1];
        *last = -*last;
        gr_hash128 c = save(&f, NULL, NULL);
        assert_true(c.lo != a.lo && c.hi != a.hi);
        *last = -*last;
    }
    fixture_close(&f);
    unlink(path);
}

static void a_folder_that_is_not_there_is_a_storage_error(void **state) {
    (void)state;
    weights_fixture f;
    fixture_open(&f, 1, 0);
    gr_comm *c = self_open();
    gr_hash128 hash;
    assert_int_equal(gr_params_save(&f.params, c, gr_weights_whole(&f.params, f.flat),
                         "test_weights.absent/x.safetensors", NULL, &hash),
        GR_STORAGE);
    gr_comm_close(c, GR_OK);
    fixture_close(&f);
}

/* ---------------------------------------------------------------- files that do not fit */

/* Saves the model's tensors with one of them changed, then loads the file. */
typedef void change(gr_tensor *list, int *n);

static char *load_changed(change *apply) {
    weights_fixture f;
    fixture_open(&f, 1, 0);
    gr_tensor list[128];
    static char names[128][128];
    int n = 0;
    for (int i = 0; i < f.params.n; i++) {
        const gr_param *p = &f.params.list[i];
        for (uint32_t k = 0; k < p->n_matrix; k++, n++) {
            gr_param_name(&f.params, p, k, names[n]);
            list[n] = (gr_tensor){.name = names[n], .dtype = GR_F32, .n_dim = p->n_dim};
            memcpy(list[n].dim, p->dim, sizeof p->dim);
        }
    }
    apply(list, &n);
    gr_safetensors_writer *w;
    assert_int_equal(gr_safetensors_writer_open(&w, path, list, n, NULL, 0), GR_OK);
    for (int i = 0; i < n; i++) {
        static const uint8_t zeros[4096];
        size_t size = gr_dtype_size(list[i].dtype);
        for (int d = 0; d < list[i].n_dim; d++)
            size *= (size_t)list[i].dim[d];
        assert_int_equal(gr_safetensors_writer_append(w, zeros, size), GR_OK);
    }
    assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
    gr_safetensors_writer_close(w);

    size_t n_byte = (size_t)f.params.n_element * sizeof *f.flat;
    float *kept = malloc(n_byte);
    memcpy(kept, f.flat, n_byte);
    assert_int_equal(gr_params_load(&f.params, path, gr_weights_whole(&f.params, f.flat)), GR_CHECKPOINT);
    assert_memory_equal(kept, f.flat, n_byte);
    free(kept);
    fixture_close(&f);
    unlink(path);
    return strdup(gr_error_text());
}

static void expect(change *apply, const char *what) {
    char *error = load_changed(apply);
    if (!strstr(error, what))
        fail_msg("\"%s\" is not in: %s", what, error);
    assert_non_null(strstr(error, path));
    free(error);
}

static void drop_last(gr_tensor *list, int *n) {
    (void)list;
    (*n)--;
}

static void add_bias(gr_tensor *list, int *n) {
    list[(*n)++] = (gr_tensor){.name = "lm_head.bias", .dtype = GR_F32, .n_dim = 1, .dim = {9}};
}

static void transpose_first(gr_tensor *list, int *n) {
    (void)n;
    list[0].dim[0] = 6;
    list[0].dim[1] = 9;
}

static void first_as_bf16(gr_tensor *list, int *n) {
    (void)n;
    list[0].dtype = GR_BF16;
}

static void flatten_first(gr_tensor *list, int *n) {
    (void)n;
    list[0].n_dim = 1;
    list[0].dim[0] = 54;
}

static void rename_all(gr_tensor *list, int *n) {
    static char names[128][16];
    for (int i = 0; i < *n; i++) {
        snprintf(names[i], sizeof names[i], "w%d", i);
        list[i].name = names[i];
    }
}

static void tensors_that_do_not_fit_are_named_with_both_shapes(void **state) {
    (void)state;
    expect(drop_last, "model.layers.1.mlp.experts.0.down_proj.weight: expected F32 [6, 5], got none");
    expect(add_bias, "lm_head.bias: expected no such tensor, got F32 [9]");
    expect(transpose_first, "model.embed_tokens.weight: expected F32 [9, 6], got F32 [6, 9]");
    expect(first_as_bf16, "model.embed_tokens.weight: expected F32 [9, 6], got BF16 [9, 6]");
    expect(flatten_first, "model.embed_tokens.weight: expected F32 [9, 6], got F32 [54]");
}

static void a_wholly_different_file_is_told_in_twenty_lines(void **state) {
    (void)state;
    char *error = load_changed(rename_all);
    int n_line = 0;
    for (const char *p = error; *p; p++)
        n_line += *p == '\n';
    assert_int_equal(n_line, 20);
    assert_non_null(strstr(error, "differs in 122 tensors"));
    free(error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_saved_is_loaded_bit_for_bit),
        cmocka_unit_test(tensors_are_whole_named_by_logical_expert_and_in_table_order),
        cmocka_unit_test(the_hash_needs_no_file_and_sees_every_bit),
        cmocka_unit_test(a_folder_that_is_not_there_is_a_storage_error),
        cmocka_unit_test(tensors_that_do_not_fit_are_named_with_both_shapes),
        cmocka_unit_test(a_wholly_different_file_is_told_in_twenty_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
