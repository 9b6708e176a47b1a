/* Reading checkpoints: their configs, their values, and parts of them. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

#include "hf_fixture.h"

#define WORK "test_hf.work"

static gr_hf *open_fixture(const char *which) {
    char folder[HF_FOLDER_MAX];
    gr_hf *hf;
    snprintf(folder, sizeof folder, HF_FIXTURES "/%s", which);
    if (gr_hf_open(&hf, folder) != GR_OK)
        fail_msg("%s", gr_error_text());
    return hf;
}

/* All weights of a checkpoint, in the table of one rank. */
static void load_whole(hf_table *t, const char *path) {
    gr_hf *hf;
    if (gr_hf_open(&hf, path) != GR_OK)
        fail_msg("%s", gr_error_text());
    hf_table_open(t, &gr_hf_get(hf)->model, 1, 0);
    if (gr_hf_load(hf, &t->params, gr_weights_whole(&t->params, t->flat)) != GR_OK)
        fail_msg("%s", gr_error_text());
    gr_hf_close(hf);
}

/* ---------------------------------------------------------------- configs */

static void the_config_becomes_a_model(void **state) {
    (void)state;
    gr_hf *hf = open_fixture("tied_dense");
    const gr_model_config *m = &gr_hf_get(hf)->model;
    assert_int_equal(m->vocab_size, 29);
    assert_int_equal(m->hidden_size, 24);
    assert_int_equal(m->num_hidden_layers, 3);
    assert_int_equal(m->num_attention_heads, 3);
    assert_int_equal(m->num_key_value_heads, 1);
    assert_int_equal(m->head_dim, 8); /* not in the file: hidden_size / num_attention_heads */
    assert_int_equal(m->intermediate_size, 20);
    assert_int_equal(m->moe_intermediate_size, 8);
    assert_int_equal(m->num_experts, 5);
    assert_int_equal(m->num_experts_per_tok, 3);
    assert_int_equal(m->shared_expert_intermediate_size, 0);
    assert_int_equal(m->first_k_dense_replace, 1);
    assert_true(m->rms_norm_eps == 1e-5 && m->rope_theta == 10000 && m->initializer_range == 0.02);
    assert_true(m->tie_word_embeddings && m->use_qk_norm && !m->norm_topk_prob);
    assert_true(m->routing.source == GR_SOURCE_LEARNED && m->routing.gates == GR_GATES_LEARNED);
    assert_true(m->routing.scale == 1 && !gr_hf_get(hf)->is_run);
    gr_hf_close(hf);
}

static void old_and_new_spellings_mean_the_same(void **state) {
    (void)state;
    gr_hf *old = open_fixture("bf16"), *new = open_fixture("f32");
    assert_memory_equal(&gr_hf_get(old)->model, &gr_hf_get(new)->model, sizeof(gr_model_config));
    assert_true(gr_hf_get(old)->model.rope_theta == 1e6 && gr_hf_get(old)->model.norm_topk_prob);
    gr_hf_close(old);
    gr_hf_close(new);
}

static void a_json_file_stands_for_its_folder(void **state) {
    (void)state;
    static const char *const paths[] = {"/config.json", "/model.safetensors.index.json", "/"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char path[HF_FOLDER_MAX];
        gr_hf *hf;
        snprintf(path, sizeof path, HF_FIXTURES "/f16_sharded%s", paths[i]);
        assert_int_equal(gr_hf_open(&hf, path), GR_OK);
        assert_int_equal(gr_hf_get(hf)->n_shard, 3);
        gr_hf_close(hf);
    }
}

/* ---------------------------------------------------------------- values */

static void every_tensor_is_where_the_table_says(void **state) {
    (void)state;
    hf_table t;
    gr_safetensors *file;
    gr_whole *list;
    int n;
    load_whole(&t, HF_FIXTURES "/f32");
    assert_int_equal(gr_safetensors_open(&file, HF_FIXTURES "/f32/model.safetensors"), GR_OK);
    assert_int_equal(gr_wholes_make(&t.params, &list, &n), GR_OK);
    assert_int_equal(n, gr_safetensors_count(file));
    int64_t n_covered = 0, n_zero = 0;
    for (int i = 0; i < n; i++) {
        const gr_tensor *found = gr_safetensors_find(file, list[i].name);
        assert_non_null(found);
        assert_memory_equal(t.flat + gr_whole_offset(&t.params, &list[i]), found->data, found->n_byte);
        n_covered += (int64_t)found->n_byte / 4;
    }
    for (int64_t i = 0; i < t.params.n_element; i++)
        n_zero += t.flat[i] == 0;
    assert_int_equal(n_covered + n_zero, t.params.n_element); /* the rest is zero, not left as it was */
    free(list);
    gr_safetensors_close(file);
    hf_table_close(&t);
}

static void half_precision_is_the_rounded_original(void **state) {
    (void)state;
    hf_table full, bf16, f16;
    load_whole(&full, HF_FIXTURES "/f32");
    load_whole(&bf16, HF_FIXTURES "/bf16");
    load_whole(&f16, HF_FIXTURES "/f16_sharded");
    for (int64_t i = 0; i < full.params.n_element; i++) {
        float x = full.flat[i];
        assert_true(bf16.flat[i] == gr_f32_from_bf16(gr_bf16_from_f32(x)));
        assert_true(fabsf(f16.flat[i] - x) <= 0x1p-11f * fabsf(x) + 0x1p-25f);
    }
    hf_table_close(&full);
    hf_table_close(&bf16);
    hf_table_close(&f16);
}

static void shards_are_as_one_file(void **state) {
    (void)state;
    hf_table sharded, single;
    hf_copy("f16_sharded", WORK);
    load_whole(&sharded, WORK);
    hf_join(WORK, hf_shards, 3, "model.safetensors");
    assert_int_equal(unlink(WORK "/model.safetensors.index.json"), 0);
    load_whole(&single, WORK);
    assert_memory_equal(sharded.flat, single.flat, (size_t)single.params.n_element * sizeof(float));
    hf_table_close(&sharded);
    hf_table_close(&single);
    hf_remove(WORK);
}

static void a_rank_gets_its_experts(void **state) {
    (void)state;
    hf_table whole, part;
    load_whole(&whole, HF_FIXTURES "/f16_sharded");
    gr_hf *hf = open_fixture("f16_sharded");
    hf_table_open(&part, &gr_hf_get(hf)->model, 3, 1);
    assert_int_equal(gr_hf_load(hf, &part.params, gr_weights_whole(&part.params, part.flat)), GR_OK);
    for (int i = 0; i < part.params.n; i++) {
        const gr_param *p = &part.params.list[i], *q = gr_params_find(&whole.params, p->name);
        for (uint32_t k = 0; k < p->n_matrix; k++) {
            uint32_t e = p->owner == GR_WORLD ? 0 : part.map.expert_at[part.map.E_local + k];
            assert_memory_equal(part.flat + p->offset + k * p->stride, whole.flat + q->offset + e * q->stride,
                (size_t)gr_param_size(p) * sizeof(float));
        }
    }
    gr_hf_close(hf);
    hf_table_close(&whole);
    hf_table_close(&part);
}

/* ---------------------------------------------------------------- parts */

/* Leaves in a table what `keep` says, as a model cut off at a layer has it. */
static void table_keep(gr_params *p, bool (*keep)(const char *name)) {
    int n = 0;
    for (int i = 0; i < p->n; i++)
        if (keep(p->list[i].name))
            p->list[n++] = p->list[i];
    p->n = n;
}

static bool is_before_the_first_experts(const char *name) {
    return strcmp(name, "model.embed_tokens.weight") == 0 ||
           (strncmp(name, "model.layers.0.", 15) == 0 && !strstr(name, "experts"));
}

static void a_part_opens_only_the_files_that_hold_it(void **state) {
    (void)state;
    hf_table whole, part;
    load_whole(&whole, HF_FIXTURES "/f16_sharded");
    hf_copy("f16_sharded", WORK);
    hf_write(WORK "/model-00003-of-00003.safetensors", "garbage", 7); /* layer 0 is in the other two */
    gr_hf *hf;
    assert_int_equal(gr_hf_open(&hf, WORK), GR_OK);
    hf_table_open(&part, &gr_hf_get(hf)->model, 1, 0);
    assert_int_equal(gr_hf_load(hf, &part.params, gr_weights_whole(&part.params, part.flat)),
        GR_CHECKPOINT); /* all of it is not to be had */
    table_keep(&part.params, is_before_the_first_experts);
    assert_int_equal(part.params.n, 1 + 9); /* 4 norms, q k v o, router */
    if (gr_hf_load(hf, &part.params, gr_weights_whole(&part.params, part.flat)) != GR_OK)
        fail_msg("%s", gr_error_text());
    for (int i = 0; i < part.params.n; i++) {
        const gr_param *p = &part.params.list[i];
        assert_memory_equal(part.flat + p->offset, whole.flat + p->offset, (size_t)gr_param_size(p) * sizeof(float));
    }
    gr_hf_close(hf);
    hf_table_close(&whole);
    hf_table_close(&part);
    hf_remove(WORK);
}

static void another_shape_is_refused_before_anything_is_copied(void **state) {
    (void)state;
    hf_table t;
    gr_hf *hf = open_fixture("f32");
    gr_model_config c = gr_hf_get(hf)->model;
    c.vocab_size++;
    c.shared_expert_intermediate_size = 4;
    hf_table_open(&t, &c, 1, 0);
    assert_int_equal(gr_hf_load(hf, &t.params, gr_weights_whole(&t.params, t.flat)), GR_CHECKPOINT);
    assert_non_null(strstr(gr_error_text(), "lm_head.weight: expected F32, BF16 or F16 [41, 16], got F32 [40, 16]"));
    assert_non_null(
        strstr(gr_error_text(), "shared_expert.up_proj.weight: expected F32, BF16 or F16 [4, 16], got none"));
    for (int64_t i = 0; i < t.params.n_element; i++)
        assert_true(isnan(t.flat[i]));
    gr_hf_close(hf);
    hf_table_close(&t);
}

/* ---------------------------------------------------------------- weights of a run */

static const char run_config[] =
    "{\"run\": {\"dir\": \"r\"}, \"model\": {\"vocab_size\": 9, \"hidden_size\": 6, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 3, \"moe_intermediate_size\": 5, \"num_experts\": 4, \"num_experts_per_tok\": 2, "
    "\"shared_expert_intermediate_size\": 3}, \"data\": {\"train\": [{\"tokens\": \"a\", \"routes\": \"b\"}], "
    "\"seq_len\": 8}, \"optimizer\": {\"lr\": 1e-3}, \"train\": {\"steps\": 1, \"micro_batch_windows\": 1, "
    "\"global_batch_windows\": 1}}";

/* Saves initial weights of run_config with `metadata` as their config into WORK; t holds them. */
static void run_save(hf_table *t, const char *metadata) {
    gr_comm *comm;
    gr_hash128 hash;
    gr_config *c = calloc(1, sizeof *c);
    assert_non_null(c);
    assert_int_equal(gr_config_parse(c, GR_CONFIG_TRAIN, run_config, "run"), GR_OK);
    hf_table_open(t, &c->model, 1, 0);
    assert_int_equal(gr_params_init(&t->params, 1, gr_weights_whole(&t->params, t->flat)), GR_OK);
    hf_remove(WORK);
    assert_int_equal(mkdir(WORK, 0777), 0);
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    assert_int_equal(gr_params_save(&t->params, comm, gr_weights_whole(&t->params, t->flat), WORK "/model.safetensors",
                         metadata ? &(gr_metadata){"grouter_config", metadata} : NULL, &hash),
        GR_OK);
    gr_comm_close(comm, GR_OK);
    free(c);
}

static void weights_of_a_run_are_read_by_the_config_they_carry(void **state) {
    (void)state;
    static const char *const paths[] = {WORK, WORK "/model.safetensors"};
    hf_table saved;
    run_save(&saved, run_config);
    for (int i = 0; i < 2; i++) {
        hf_table again;
        gr_hf *hf;
        assert_int_equal(gr_hf_open(&hf, paths[i]), GR_OK);
        assert_true(gr_hf_get(hf)->is_run && gr_hf_get(hf)->model.routing.gates == GR_GATES_FIXED);
        assert_string_equal(gr_hf_shard_name(hf, 0), "model.safetensors");
        gr_hf_close(hf);
        load_whole(&again, paths[i]);
        assert_memory_equal(again.flat, saved.flat, (size_t)saved.params.n_element * sizeof(float));
        hf_table_close(&again);
    }
    hf_table_close(&saved);
    hf_remove(WORK);
}

static void weights_without_a_config_are_refused(void **state) {
    (void)state;
    hf_table t;
    run_save(&t, NULL);
    hf_expect_refused(WORK "/model.safetensors", "metadata: expected \"grouter_config\", got none");
    hf_expect_refused(WORK, "config.json: expected a file");
    hf_table_close(&t);
    run_save(&t, "{\"run\": 1}");
    hf_expect_refused(WORK, "metadata grouter_config:1:9: run:");
    hf_table_close(&t);
    hf_remove(WORK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_config_becomes_a_model),
        cmocka_unit_test(old_and_new_spellings_mean_the_same),
        cmocka_unit_test(a_json_file_stands_for_its_folder),
        cmocka_unit_test(every_tensor_is_where_the_table_says),
        cmocka_unit_test(half_precision_is_the_rounded_original),
        cmocka_unit_test(shards_are_as_one_file),
        cmocka_unit_test(a_rank_gets_its_experts),
        cmocka_unit_test(a_part_opens_only_the_files_that_hold_it),
        cmocka_unit_test(another_shape_is_refused_before_anything_is_copied),
        cmocka_unit_test(weights_of_a_run_are_read_by_the_config_they_carry),
        cmocka_unit_test(weights_without_a_config_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
