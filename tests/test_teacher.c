/* A source cut off at a router gives that router's logits as Hugging Face's own arithmetic does, and reads, allocates
 * and counts no more than that takes; sources without such a router are refused. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

#include "check.h"
#include "grouter/teacher.h"
#include "grouter_case.h"
#include "hf_fixture.h"

#define BOUND 1e-5 /* norm-wise, both sides in fp32 */
#define FOLDER "test_teacher.hf"
#define RUN "test_teacher.safetensors"

static gr_backend *backend;
static gr_err (*alloc_of_backend)(gr_backend *b, size_t n_byte, const char *what, void **out);
static size_t n_allocated;

static gr_err count_alloc(gr_backend *b, size_t n_byte, const char *what, void **out) {
    n_allocated += n_byte;
    return alloc_of_backend(b, n_byte, what, out);
}

static int open_backend(void **state) {
    (void)state;
    if (gr_backend_open(&backend, "cpu", GR_F32))
        return 1;
    alloc_of_backend = backend->alloc;
    backend->alloc = count_alloc;
    return 0;
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

/* ---------------------------------------------------------------- logits */

typedef struct expected {
    gr_safetensors *file;
    int64_t N, T;
    uint32_t token[64];
} expected;

static void expected_open(expected *x, const char *which) {
    char path[HF_PATH_MAX];
    snprintf(path, sizeof path, HF_FIXTURES "/%s/expected.safetensors", which);
    assert_int_equal(gr_safetensors_open(&x->file, path), GR_OK);
    const gr_tensor *token = gr_safetensors_find(x->file, "token");
    x->T = token->dim[1];
    x->N = token->dim[0] * x->T;
    assert_true(x->N <= 64);
    for (int64_t i = 0; i < x->N; i++)
        x->token[i] = gr_load_u32((const uint8_t *)token->data + 4 * i);
}

/* Of the i-th layer that has experts: [N, E]. */
static double *expected_logits(const expected *x, int i, int64_t E) {
    const uint8_t *p = (const uint8_t *)gr_safetensors_find(x->file, "router_logits")->data + 4 * i * x->N * E;
    double *d = malloc((size_t)(x->N * E) * sizeof *d);
    assert_non_null(d);
    for (int64_t j = 0; j < x->N * E; j++) {
        gr_span s = {p + 4 * j, 4};
        float f;
        assert_true(gr_take_f32(&s, &f));
        d[j] = (double)f;
    }
    return d;
}

static gr_teacher *teacher_open(const char *path, int layer, const expected *x) {
    gr_teacher *t;
    gr_teacher_options o = {.path = path, .layer = layer, .backend = backend, .N = x->N, .T = x->T};
    if (gr_teacher_open(&t, &o))
        fail_msg("%s, layer %d: %s", path, layer, gr_error_text());
    return t;
}

static void check_layer(const char *path, const char *name, const expected *x, int layer) {
    gr_model_config c;
    gr_phases phases = {0};
    const float *logits;
    assert_int_equal(gr_teacher_describe(path, layer, &c), GR_OK);
    assert_int_equal(c.num_hidden_layers, layer + 1);
    gr_teacher *t = teacher_open(path, layer, x);
    double *theirs = expected_logits(x, layer - c.first_k_dense_replace, c.num_experts);
    for (int call = 0; call < 2; call++) {
        assert_int_equal(gr_teacher_logits(t, &(gr_batch){.token = x->token}, &logits, &phases), GR_OK);
        double error = check_error(x->N * c.num_experts, logits, theirs);
        if (!(error <= BOUND))
            fail_msg("%s, layer %d: error %g", name, layer, error);
    }
    free(theirs);
    gr_teacher_close(t);
}

static void logits_of_every_layer_are_those_of_transformers(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int first, last;
    } cases[] = {{"f32", 0, 2}, {"bf16", 0, 2}, {"f16_sharded", 0, 2}, {"tied_dense", 1, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[HF_PATH_MAX];
        expected x;
        snprintf(path, sizeof path, HF_FIXTURES "/%s", cases[i].name);
        expected_open(&x, cases[i].name);
        for (int layer = cases[i].first; layer <= cases[i].last; layer++)
            check_layer(path, cases[i].name, &x, layer);
        gr_safetensors_close(x.file);
    }
}

static void a_grouter_gives_its_scores(void **state) {
    (void)state;
    grouter_case c;
    gr_comm *comm;
    gr_grouter g;
    gr_teacher *t;
    const float *logits;
    gr_phases phases = {0};
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    grouter_case_options o = {
        .config = &grouter_case_attention, .backend = backend, .comm = comm, .n_window = 2, .T = 9};
    grouter_case_open(&c, &o);
    assert_int_equal(
        gr_grouter_make(&g, &(gr_grouter_spec){.network = grouter_case_attention, .K = 2, .scale = 1}), GR_OK);
    memcpy(g.weights, gr_model_weights(c.model), (size_t)g.params.n_element * sizeof *g.weights);
    gr_teacher_options teacher = {.grouter = &g, .backend = backend, .N = 18, .T = 9};
    size_t n_byte;
    assert_int_equal(gr_teacher_measure(&teacher, &n_byte), GR_OK);
    n_allocated = 0;
    assert_int_equal(gr_teacher_open(&t, &teacher), GR_OK);
    assert_int_equal(n_byte, n_allocated);
    float *scores = grouter_case_scores(&c);
    assert_int_equal(gr_teacher_logits(t, &(gr_batch){.token = c.token}, &logits, &phases), GR_OK);
    assert_memory_equal(logits, scores, (size_t)c.n_score * sizeof *scores);
    free(scores);
    gr_teacher_close(t);
    gr_grouter_close(&g);
    grouter_case_close(&c);
    gr_comm_close(comm, GR_OK);
}

/* ---------------------------------------------------------------- no more than it takes */

static void no_file_is_read_that_the_router_does_not_need(void **state) {
    (void)state;
    expected x;
    gr_teacher *t;
    gr_model_config c;
    hf_copy("f16_sharded", FOLDER);
    expected_open(&x, "f16_sharded");
    assert_int_equal(unlink(FOLDER "/model-00003-of-00003.safetensors"), 0);
    check_layer(FOLDER, "two files of three", &x, 0);
    check_layer(FOLDER, "two files of three", &x, 1);
    assert_int_equal(gr_teacher_describe(FOLDER, 2, &c), GR_OK); /* the index knows */
    gr_teacher_options o = {.path = FOLDER, .layer = 2, .backend = backend, .N = x.N, .T = x.T};
    assert_int_equal(gr_teacher_open(&t, &o), GR_CHECKPOINT);
    assert_null(t);
    assert_non_null(strstr(gr_error_text(), "model-00003-of-00003.safetensors: expected a file"));
    gr_safetensors_close(x.file);
    hf_remove(FOLDER);
}

/* Every tensor that is left of a source cut off at layer `layer`, without its names. */
static void check_counts(const char *path, int layer, const char *absent) {
    gr_model_config c;
    gr_model_count count;
    hf_table t;
    int64_t matrices = 0, norms = 0;
    assert_int_equal(gr_teacher_describe(path, layer, &c), GR_OK);
    gr_model_count_config(&c, 12, &count);
    hf_table_open(&t, &c, 1, 0);
    for (int i = 0; i < t.params.n; i++) {
        const gr_param *p = &t.params.list[i];
        *(p->n_dim == 1 ? &norms : &matrices) += gr_param_size(p) * p->n_matrix;
        if (strstr(p->name, absent) || strstr(p->name, "lm_head") || strcmp(p->name, "model.norm.weight") == 0)
            fail_msg("layer %d has %s", layer, p->name);
    }
    hf_table_close(&t);
    assert_int_equal(count.matrices, matrices);
    assert_int_equal(count.norms, norms);
    int64_t experts = (int64_t)(c.num_experts - c.num_experts_per_tok) * 3 * c.hidden_size * c.moe_intermediate_size;
    int64_t active = matrices - (int64_t)c.vocab_size * c.hidden_size - (layer - c.first_k_dense_replace) * experts;
    assert_int_equal(count.active, active);
    double attention = 12.0 * (layer + 1) * c.num_attention_heads * c.head_dim * 12 / 2;
    assert_true(count.flops_per_token == 6.0 * (double)active + attention);
}

static void the_cut_source_has_no_experts_in_its_last_layer_and_no_head(void **state) {
    (void)state;
    check_counts(HF_FIXTURES "/f32", 0, "experts");
    check_counts(HF_FIXTURES "/f32", 1, "layers.1.mlp.experts");
    check_counts(HF_FIXTURES "/tied_dense", 1, "experts");
    check_counts(HF_FIXTURES "/tied_dense", 2, "layers.2.mlp.experts");
}

static void it_allocates_what_was_measured(void **state) {
    (void)state;
    static const char *const names[] = {"f32", "tied_dense"};
    for (int i = 0; i < 2; i++)
        for (int layer = i; layer < 3; layer++) {
            char path[HF_PATH_MAX];
            gr_teacher *t;
            size_t n_byte;
            snprintf(path, sizeof path, HF_FIXTURES "/%s", names[i]);
            gr_teacher_options o = {.path = path, .layer = layer, .backend = backend, .N = 60, .T = 20};
            assert_int_equal(gr_teacher_measure(&o, &n_byte), GR_OK);
            n_allocated = 0;
            assert_int_equal(gr_teacher_open(&t, &o), GR_OK);
            gr_teacher_close(t);
            if (layer == i) /* with layers of experts before it, plans lie in host memory */
                assert_int_equal(n_byte, n_allocated);
            else
                assert_true(n_byte > n_allocated && n_byte < n_allocated + 16384);
        }
}

/* ---------------------------------------------------------------- identity */

static void identity(char text[33], int layer) {
    if (gr_teacher_identity(FOLDER, layer, text))
        fail_msg("%s", gr_error_text());
}

static void its_identity_is_that_of_the_files_it_needs(void **state) {
    (void)state;
    char before[3][33], now[33];
    hf_copy("f16_sharded", FOLDER);
    identity(before[0], 0);
    identity(before[2], 2);
    assert_string_not_equal(before[0], before[2]);
    hf_copy("f16_sharded", FOLDER);
    identity(now, 0);
    assert_string_equal(now, before[0]); /* a copy is the same source */

    size_t n;
    char *data = hf_read(FOLDER "/model-00003-of-00003.safetensors", &n);
    data[n - 1] = (char)(data[n - 1] ^ 1);
    hf_write(FOLDER "/model-00003-of-00003.safetensors", data, n);
    free(data);
    identity(now, 0);
    assert_string_equal(now, before[0]);
    identity(now, 2);
    assert_string_not_equal(now, before[2]);
    assert_int_equal(unlink(FOLDER "/model-00003-of-00003.safetensors"), 0);
    identity(now, 0);
    assert_string_equal(now, before[0]);
    assert_int_equal(gr_teacher_identity(FOLDER, 2, now), GR_CHECKPOINT);

    hf_edit(FOLDER, "config.json", "\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 1e-05");
    identity(now, 0);
    assert_string_not_equal(now, before[0]);
    hf_remove(FOLDER);
}

/* ---------------------------------------------------------------- what is refused */

static void expect_refused(const char *path, int layer, const char *what) {
    gr_model_config c;
    gr_teacher *t;
    size_t n_byte;
    gr_teacher_options o = {.path = path, .layer = layer, .backend = backend, .N = 8, .T = 8};
    gr_err e = gr_teacher_describe(path, layer, &c);
    if (e != GR_CHECKPOINT || !strstr(gr_error_text(), what))
        fail_msg("expected 66 with \"%s\", got %d: %s", what, e, gr_error_text());
    assert_int_equal(gr_teacher_open(&t, &o), GR_CHECKPOINT);
    assert_null(t);
    assert_int_equal(gr_teacher_measure(&o, &n_byte), GR_CHECKPOINT);
}

static void layers_without_a_router_are_refused(void **state) {
    (void)state;
    expect_refused(
        HF_FIXTURES "/f32", 3, "expected distill.teacher_layer among its layers with experts, 0 to 2, got 3");
    expect_refused(HF_FIXTURES "/f32", -1, "0 to 2, got -1");
    expect_refused(HF_FIXTURES "/tied_dense", 0, "1 to 2, got 0");
    expect_refused("test_teacher.none", 0, "test_teacher.none");
}

/* The weights of a run of this program with that routing{} and so many dense layers of two. */
static void write_run(const char *routing, const char *data, int n_dense) {
    char text[2048];
    gr_config *c = malloc(sizeof *c);
    gr_hash128 hash;
    gr_comm *comm;
    hf_table t;
    snprintf(text, sizeof text,
        "{\"run\": {\"dir\": \"r\"}, \"model\": {\"vocab_size\": 40, \"hidden_size\": 8, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 2, \"intermediate_size\": 8, \"first_k_dense_replace\": %d, "
        "\"moe_intermediate_size\": 8, \"num_experts\": 4, \"num_experts_per_tok\": 2}, \"routing\": %s, "
        "\"data\": {\"train\": [%s], \"seq_len\": 8}, \"optimizer\": {\"lr\": 1e-3}, "
        "\"train\": {\"steps\": 1, \"micro_batch_windows\": 1, \"global_batch_windows\": 1}}",
        n_dense, routing, data);
    assert_non_null(c);
    if (gr_config_parse(c, GR_CONFIG_TRAIN, text, "run"))
        fail_msg("%s", gr_error_text());
    hf_table_open(&t, &c->model, 1, 0);
    assert_int_equal(gr_params_init(&t.params, 1, gr_weights_whole(&t.params, t.flat)), GR_OK);
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    assert_int_equal(gr_params_save(&t.params, comm, gr_weights_whole(&t.params, t.flat), RUN,
                         &(gr_metadata){.key = "grouter_config", .value = text}, &hash),
        GR_OK);
    gr_comm_close(comm, GR_OK);
    hf_table_close(&t);
    free(c);
}

static void only_learned_routers_teach(void **state) {
    (void)state;
    const char *table = "{\"tokens\": \"t\", \"routes\": \"r\"}", *tokens = "{\"tokens\": \"t\"}";
    gr_model_config c;
    write_run("{\"source\": \"learned\"}", tokens, 1);
    assert_int_equal(gr_teacher_describe(RUN, 1, &c), GR_OK);
    assert_true(c.head == GR_HEAD_ROUTER && c.vocab_size == 40 && c.num_experts == 4 && c.num_experts_per_tok == 2);
    expect_refused(RUN, 0, "1 to 1, got 0");
    write_run("{}", table, 0);
    expect_refused(
        RUN, 0, "expected a source with learned routers in all layers up to 0, got one trained with a route");
    write_run("{\"gates\": \"learned\"}", table, 0);
    assert_int_equal(gr_teacher_describe(RUN, 0, &c), GR_OK); /* the first router depends on no choice */
    expect_refused(RUN, 1, "in all layers up to 1, got one trained with experts of a route table; train it with");
    write_run("{\"source\": \"learned\"}", tokens, 2);
    expect_refused(RUN, 0, "expected a source with layers of experts, got 2 dense layers");
    gr_grouter g;
    assert_int_equal(gr_grouter_make(&g, &(gr_grouter_spec){.network = grouter_case_linear, .K = 1, .scale = 1}), 0);
    assert_int_equal(gr_grouter_save(&g, RUN), GR_OK);
    gr_grouter_close(&g);
    expect_refused(RUN, 0, "expected \"grouter_config\", got none");
    unlink(RUN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_of_every_layer_are_those_of_transformers),
        cmocka_unit_test(a_grouter_gives_its_scores),
        cmocka_unit_test(no_file_is_read_that_the_router_does_not_need),
        cmocka_unit_test(the_cut_source_has_no_experts_in_its_last_layer_and_no_head),
        cmocka_unit_test(it_allocates_what_was_measured),
        cmocka_unit_test(its_identity_is_that_of_the_files_it_needs),
        cmocka_unit_test(layers_without_a_router_are_refused),
        cmocka_unit_test(only_learned_routers_teach),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
