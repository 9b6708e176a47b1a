/* Checkpoints that must be refused: configs, indexes and files that lie. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>

#include "hf_fixture.h"

#define WORK "test_hf_hostile.work"

/* ---------------------------------------------------------------- configs that must be refused */

typedef struct change {
    const char *from, *to, *error;
} change;

static void expect_each_refused(const char *which, const char *file, const change *list, size_t n) {
    for (size_t i = 0; i < n; i++) {
        hf_copy(which, WORK);
        hf_edit(WORK, file, list[i].from, list[i].to);
        hf_expect_refused(WORK, list[i].error);
    }
    hf_remove(WORK);
}

static void configs_this_program_cannot_compute_are_refused_by_name(void **state) {
    (void)state;
    static const change list[] = {
        {"\"qwen3_moe\"", "\"qwen3\"", "config.json:18:17: model_type: expected \"qwen3_moe\", got qwen3"},
        {"\"attention_bias\": false", "\"attention_bias\": true", "attention_bias: expected false, got true"},
        {"\"use_sliding_window\": false", "\"use_sliding_window\": true", "use_sliding_window: expected false"},
        {"\"silu\"", "\"gelu\"", "hidden_act: expected \"silu\", got gelu"},
        {"\"default\"", "\"yarn\"", "rope_parameters.rope_type: expected \"default\""},
        {"\"rope_type\": \"default\"", "\"factor\": 4.0", "rope_parameters.factor: expected only rope_theta"},
        {"\"rope_parameters\": {", "\"rope_scaling\": {\"type\": \"linear\"}, \"rope_parameters\": {",
            "rope_scaling.type: expected \"default\""},
        {"\"use_cache\"", "\"rope_theta\": 5.0, \"use_cache\"", "rope_theta: expected 5 as in line"},
        {"\"use_cache\"", "\"num_experts\": 7, \"use_cache\"", "num_local_experts: expected num_experts = 7, got 6"},
        {"\"use_cache\"", "\"shared_expert_intermediate_size\": 8, \"use_cache\"",
            "shared_expert_intermediate_size: expected none or 0, got 8"},
        {"\"use_cache\"", "\"n_shared_experts\": 1, \"use_cache\"", "n_shared_experts: expected none or 0, got 1"},
        {"\"use_cache\"", "\"quantization_config\": {}, \"use_cache\"", "quantization_config: expected weights in F32"},
        {"\"use_cache\"", "\"layer_types\": [\"full_attention\", \"sliding_attention\"], \"use_cache\"",
            "layer_types: expected \"full_attention\" only, got sliding_attention"},
        {"\"mlp_only_layers\": []", "\"mlp_only_layers\": [1]", "got layer 1 dense behind layer 0 with experts"},
        {"\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 2", "decoder_sparse_step = 2 and mlp_only_layers"},
    };
    expect_each_refused("f32", "config.json", list, sizeof list / sizeof *list);
}

static void configs_that_are_wrong_are_refused(void **state) {
    (void)state;
    static const change list[] = {
        {"\"vocab_size\"", "\"vocab\"", "config.json:1:1: vocab_size: expected a value, got none"},
        {"\"num_local_experts\"", "\"n\"", "num_experts or num_local_experts: expected a value, got none"},
        {"\"norm_topk_prob\"", "\"n\"", "norm_topk_prob: expected a value, got none"},
        {"\"rope_theta\"", "\"rope_type\"", "duplicate"},
        {"\"rope_parameters\"", "\"r\"", "rope_theta: expected a number at the top level or in rope_parameters"},
        {"\"hidden_size\": 16", "\"hidden_size\": \"16\"", "hidden_size: expected an integer in [1, 65536], got 16"},
        {"\"hidden_size\": 16", "\"hidden_size\": 16.0", "hidden_size: expected an integer"},
        {"\"hidden_size\": 16", "\"hidden_size\": null", "hidden_size: expected a value, got none"},
        {"\"hidden_size\": 16", "\"hidden_size\": 99999999999999999999", "hidden_size: expected an integer"},
        {"\"norm_topk_prob\": true", "\"norm_topk_prob\": 1", "norm_topk_prob: expected true or false, got 1"},
        {"\"rope_theta\": 1000000.0", "\"rope_theta\": 1e999", "rope_theta: expected a number in"},
        {"\"rope_theta\": 1000000.0", "\"rope_theta\": NaN", "config.json:"},
        {"\"head_dim\": 8", "\"head_dim\": 7", "expected an even number of 2 or more, got 7"},
        {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "expected a divisor of num_attention_heads = 4"},
        {"\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 7", "expected at most num_experts = 6, got 7"},
        {"\"mlp_only_layers\": []", "\"mlp_only_layers\": [\"0\"]", "mlp_only_layers: expected an array of layer"},
        {"\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 0", "decoder_sparse_step: expected an integer of 1"},
        {"{", "", "config.json:"},
        {"{", "[{", "config.json:"},
    };
    expect_each_refused("f32", "config.json", list, sizeof list / sizeof *list);
}

static void all_errors_of_a_config_are_told_at_once(void **state) {
    (void)state;
    hf_copy("f32", WORK);
    hf_edit(WORK, "config.json", "\"vocab_size\"", "\"v\"");
    hf_edit(WORK, "config.json", "\"silu\"", "\"relu\"");
    hf_expect_refused(WORK, "vocab_size: expected a value");
    assert_non_null(strstr(gr_error_text(), "hidden_act"));
    hf_remove(WORK);
}

static void a_model_of_too_many_tensors_is_refused_before_they_are_listed(void **state) {
    (void)state;
    hf_copy("f32", WORK);
    hf_edit(WORK, "config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1024");
    hf_edit(WORK, "config.json", "\"num_local_experts\": 6", "\"num_local_experts\": 4096");
    hf_expect_refused(WORK, "expected at most 1000000 tensors of experts");
    hf_remove(WORK);
}

/* ---------------------------------------------------------------- files that must be refused */

static void tensors_that_do_not_fit_are_refused(void **state) {
    (void)state;
    static const change list[] = {
        {"\"shape\":[40,16]", "\"shape\":[16,40]", "expected F32, BF16 or F16 [40, 16], got F32 [16, 40]"},
        {"\"shape\":[40,16]", "\"shape\":[640]  ", "[40, 16], got F32 [640]"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"I32\"", "expected F32, BF16 or F16 [40, 16], got I32 [40, 16]"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F99\"", "dtype: expected one this program knows"},
        {"lm_head.weight", "lm_head.weighs", "lm_head.weight: expected F32, BF16 or F16 [40, 16], got none"},
        {"lm_head.weight", "lm_head.weighs", "lm_head.weighs: expected no such tensor, got F32 [40, 16]"},
    };
    expect_each_refused("f32", "model.safetensors", list, sizeof list / sizeof *list);
}

static void an_index_may_name_only_files_of_its_folder(void **state) {
    (void)state;
    static const change list[] = {
        {"\"model-00001-of-00003.safetensors\"", "\"../model-00001-of-00003.safetensors\"", "expected the plain name"},
        {"\"model-00001-of-00003.safetensors\"", "\"/etc/passwd.safetensors\"", "expected the plain name"},
        {"\"model-00001-of-00003.safetensors\"", "\"..safetensors\"", "expected the plain name"},
        {"\"model-00001-of-00003.safetensors\"", "\".safetensors\"", "expected the plain name"},
        {"\"model-00001-of-00003.safetensors\"", "\"a\\u0001.safetensors\"", "expected the plain name"},
        {"\"model-00001-of-00003.safetensors\"", "\"config.json\"", "expected the plain name"},
        {"\"model-00001-of-00003.safetensors\"", "7", "expected a file name, got another type"},
        {"\"model-00001-of-00003.safetensors\"", "\"other.safetensors\"", "lm_head.weight: expected only in other"},
        {"\"weight_map\"", "\"weight\"", "weight_map: expected an object"},
        {"\"lm_head.weight\"", "\"lm_head.weighs\"", "lm_head.weighs: expected no such tensor, got one in model-0000"},
        {"\"lm_head.weight\"", "\"lm_head.weighs\"", "lm_head.weight: expected F32, BF16 or F16 [40, 16], got none"},
        {"\"lm_head.weight\"", "\"model.norm.weight\"", "duplicate"},
    };
    expect_each_refused("f16_sharded", "model.safetensors.index.json", list, sizeof list / sizeof *list);
}

static void shards_that_are_not_as_the_index_says_are_refused(void **state) {
    (void)state;
    hf_copy("f16_sharded", WORK);
    assert_int_equal(truncate(WORK "/model-00002-of-00003.safetensors", 9000), 0);
    hf_expect_refused(WORK, "model-00002-of-00003.safetensors");
    assert_int_equal(unlink(WORK "/model-00002-of-00003.safetensors"), 0);
    hf_expect_refused(WORK, "model-00002-of-00003.safetensors: expected a file, got: No such file");
    hf_copy("f16_sharded", WORK);
    hf_join(WORK, hf_shards, 2, hf_shards[0]); /* the second's tensors are in both */
    hf_expect_refused(
        WORK, "expected only in model-00002-of-00003.safetensors, as the index says, got it here as well");
    hf_copy("f16_sharded", WORK);
    hf_join(WORK, hf_shards + 1, 1, hf_shards[0]);    /* the first's tensors are in none */
    hf_expect_refused(WORK, "differs in 57 tensors"); /* 29 that belong elsewhere, 28 missing */
    hf_remove(WORK);
}

static void links_out_of_the_folder_and_what_is_no_file_are_refused(void **state) {
    (void)state;
    hf_copy("f32", WORK);
    assert_int_equal(rename(WORK "/model.safetensors", WORK "/weights"), 0);
    assert_int_equal(symlink("weights", WORK "/model.safetensors"), 0); /* within the folder */
    gr_hf *hf;
    assert_int_equal(gr_hf_open(&hf, WORK), GR_OK);
    gr_hf_close(hf);
    assert_int_equal(rename(WORK "/weights", "test_hf_hostile.outside"), 0);
    assert_int_equal(unlink(WORK "/model.safetensors"), 0);
    assert_int_equal(symlink("../test_hf_hostile.outside", WORK "/model.safetensors"), 0);
    hf_expect_refused(WORK, "got a link out of it");
    assert_int_equal(unlink(WORK "/model.safetensors"), 0);
    assert_int_equal(mkfifo(WORK "/model.safetensors", 0666), 0);
    hf_expect_refused(WORK, "expected a regular file");
    assert_int_equal(unlink(WORK "/model.safetensors"), 0);
    assert_int_equal(mkdir(WORK "/model.safetensors", 0777), 0);
    hf_expect_refused(WORK, "expected a regular file");
    assert_int_equal(rmdir(WORK "/model.safetensors"), 0);
    hf_expect_refused(WORK, "expected either model.safetensors or model.safetensors.index.json, got neither");
    hf_write(WORK "/model.safetensors", "", 0);
    hf_write(WORK "/model.safetensors.index.json", "{}", 2);
    hf_expect_refused(WORK, "got both");
    unlink("test_hf_hostile.outside");
    hf_remove(WORK);
    hf_expect_refused(WORK, "cannot be opened");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configs_this_program_cannot_compute_are_refused_by_name),
        cmocka_unit_test(configs_that_are_wrong_are_refused),
        cmocka_unit_test(all_errors_of_a_config_are_told_at_once),
        cmocka_unit_test(a_model_of_too_many_tensors_is_refused_before_they_are_listed),
        cmocka_unit_test(tensors_that_do_not_fit_are_refused),
        cmocka_unit_test(an_index_may_name_only_files_of_its_folder),
        cmocka_unit_test(shards_that_are_not_as_the_index_says_are_refused),
        cmocka_unit_test(links_out_of_the_folder_and_what_is_no_file_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
