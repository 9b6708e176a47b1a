/* mpi_4_placement.c: four ranks train the same with a placement and without: experts on other ranks, windows of a
 * global batch on others too, losses, weights and gradients equal to rounding. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "placement_fixture.h"
#include "train/internal.h"

enum { E = 8, K = 2, T = 16, V = 257, N_WINDOW = 150, STEPS = 20, GLOBAL = 16 };
static const char *const tokens_path = "mpi_placed.tmp", *const routes_path = "mpi_placed.tmp.routes",
                         *const placement_path = "mpi_placed.tmp.place", *const tensors_path = "mpi_placed.tmp.%s%d";
static gr_comm *comm;

static void barrier(void) {
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
}

static bool is_first(void) {
    return comm->rank[GR_WORLD] == 0;
}

/* Windows like some experts, so that a placement moves them. */
static void make_routes(uint64_t window, uint16_t *ids, float *gates) {
    uint32_t liked = gr_random_below(5, 0, window, E);
    for (uint32_t t = 0; t < T; t++) {
        uint64_t at = window * T + t;
        uint32_t a = gr_random_below(6, 0, at, 3) ? liked : gr_random_below(7, 0, at, E);
        uint32_t b = (a + 1 + gr_random_below(8, 0, at, E - 1)) % E;
        ids[t * K] = (uint16_t)(a < b ? a : b);
        ids[t * K + 1] = (uint16_t)(a < b ? b : a);
        gates[t * K] = 0.75f;
        gates[t * K + 1] = 0.25f;
    }
}

static void make_data(void) {
    uint32_t n_token = N_WINDOW * T + 1, *tokens = placement_fixture_take(n_token, sizeof *tokens);
    for (uint32_t i = 0; i < n_token; i++)
        tokens[i] = gr_random_below(9, 0, i, V);
    gr_tokens_writer *w;
    assert_int_equal(gr_tokens_writer_open(&w, tokens_path, V), GR_OK);
    assert_int_equal(gr_tokens_writer_document(w, tokens, n_token), GR_OK);
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);
    gr_routes_info info = {.E = E,
        .K = K,
        .T = T,
        .scale = 1,
        .n_window = N_WINDOW,
        .n_token = n_token,
        .router = {.lo = 7, .hi = 9},
        .provenance = "a test"};
    gr_routes_writer *r;
    assert_int_equal(gr_routes_writer_open(&r, routes_path, &info), GR_OK);
    for (uint64_t i = 0; i < N_WINDOW; i++) {
        uint16_t ids[T * K];
        float gates[T * K];
        make_routes(i, ids, gates);
        assert_int_equal(gr_routes_writer_window(r, i, tokens + i * T, ids, gates), GR_OK);
    }
    assert_int_equal(gr_routes_writer_commit(r), GR_OK);
    gr_routes_writer_close(r);
    free(tokens);
}

static void make_placement(uint32_t R_ep) {
    gr_placement p;
    placement_fixture_make(&p, &(placement_fixture){.routes = &routes_path,
                                   .tokens = &tokens_path,
                                   .n_table = 1,
                                   .n_vocab = V,
                                   .n_node = 1,
                                   .node_ranks = R_ep,
                                   .seed = 3,
                                   .equal = true});
    assert_int_equal(gr_placement_write(&p, placement_path), GR_OK);
    gr_placement_close(&p);
}

static void make_config(gr_config *c, uint32_t R_ep, bool placed) {
    char text[2048];
    snprintf(text, sizeof text,
        "{\"run\": {\"dir\": \"none\", \"seed\": 7},"
        "\"model\": {\"vocab_size\": %d, \"hidden_size\": 24, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
        "\"head_dim\": 6, \"moe_intermediate_size\": 10, \"num_experts\": %d, \"num_experts_per_tok\": %d,"
        "\"initializer_range\": 0.1},"
        "\"data\": {\"train\": [{\"tokens\": \"%s\", \"routes\": \"%s\"}], \"seq_len\": %d},"
        "\"optimizer\": {\"lr\": 1e-3, \"warmup_steps\": 4},"
        "\"train\": {\"steps\": %d, \"micro_batch_windows\": 2, \"global_batch_windows\": %d},"
        "\"parallel\": {\"expert_parallel_size\": %u, \"zero\": 0, \"placement\": \"%s\"}}",
        V, E, K, tokens_path, routes_path, T, STEPS, GLOBAL, R_ep, placed ? placement_path : "");
    if (gr_config_parse(c, GR_CONFIG_TRAIN, text, "test"))
        fail_msg("%s", gr_error_text());
}

/* What a run leaves: losses here, weights and the last gradients in files of whole tensors. */
typedef struct outcome {
    double loss[STEPS];
    uint64_t n_send; /* of this rank, all steps */
} outcome;

static void save(gr_trainer *t, float *flat, const char *what, bool placed) {
    char path[64];
    gr_hash128 hash;
    const gr_params *params = gr_model_params(t->model);
    snprintf(path, sizeof path, tensors_path, what, placed);
    assert_int_equal(gr_params_save(params, comm, gr_weights_whole(params, flat), path, NULL, &hash), GR_OK);
}

static void train(gr_trainer *t, outcome *out) {
    for (int64_t step = 0; step < STEPS; step++) {
        gr_phases phases = {0};
        gr_update update;
        double loss = 0;
        assert_int_equal(gr_model_zero_gradients(t->model), GR_OK);
        for (uint64_t micro = 0; micro < gr_feed_micro_batches(t->feed); micro++) {
            gr_micro m;
            assert_int_equal(gr_feed_prepare(t->feed, (uint64_t)step * GLOBAL, micro, &m), GR_OK);
            assert_int_equal(gr_objective_of(t->config)->micro_batch(t, &m, &loss, &phases), GR_OK);
            out->n_send += m.batch.plan->n_send;
        }
        assert_int_equal(comm->sum(comm, GR_WORLD, GR_F64, &loss, 1), GR_OK);
        out->loss[step] = loss / t->tokens_per_step;
        assert_int_equal(gr_optimizer_step(t->optimizer, step, out->loss[step], gr_model_masters(t->model),
                             gr_model_gradients(t->model), &update),
            GR_OK);
    }
}

static outcome run(uint32_t R_ep, bool placed) {
    gr_config *config = placement_fixture_take(1, sizeof *config);
    outcome out = {0};
    make_config(config, R_ep, placed);
    gr_trainer t = {.config = config, .comm = comm, .lock = -1};
    if (gr_trainer_shape(&t) || gr_trainer_survey(&t) || gr_trainer_allocate(&t))
        fail_msg("%s", gr_error_text());
    assert_int_equal(gr_feed_micro_batches(t.feed), 2);
    train(&t, &out);
    save(&t, gr_model_weights(t.model), "weights", placed);
    save(&t, gr_model_gradients(t.model), "gradients", placed);
    gr_trainer_close(&t);
    free(config);
    return out;
}

static float value_of(const gr_tensor *t, size_t i) {
    float v;
    memcpy(&v, t->data + 4 * i, sizeof v);
    return v;
}

/* The largest difference of any tensor, norm-wise. */
static double difference(const char *what) {
    gr_safetensors *with, *without;
    char path[64];
    double worst = 0;
    snprintf(path, sizeof path, tensors_path, what, 0);
    assert_int_equal(gr_safetensors_open(&without, path), GR_OK);
    snprintf(path, sizeof path, tensors_path, what, 1);
    assert_int_equal(gr_safetensors_open(&with, path), GR_OK);
    assert_int_equal(gr_safetensors_count(with), gr_safetensors_count(without));
    for (int i = 0; i < gr_safetensors_count(without); i++) {
        const gr_tensor *a = gr_safetensors_at(without, i), *b = gr_safetensors_find(with, a->name);
        double off = 0, size = 0;
        assert_non_null(b);
        assert_int_equal(a->n_byte, b->n_byte);
        for (size_t k = 0; k < a->n_byte / 4; k++) {
            off += pow((double)value_of(a, k) - (double)value_of(b, k), 2);
            size += pow((double)value_of(a, k), 2);
        }
        assert_true(size > 0);
        worst = fmax(worst, sqrt(off / size));
    }
    gr_safetensors_close(with);
    gr_safetensors_close(without);
    return worst;
}

static void a_placement_changes_nothing_but_roundings(uint32_t R_ep) {
    if (is_first())
        make_placement(R_ep);
    barrier();
    outcome without = run(R_ep, false), with = run(R_ep, true);
    for (int step = 0; step < STEPS; step++)
        assert_true(fabs(with.loss[step] - without.loss[step]) <= 1e-5 * without.loss[step]);
    uint64_t rows[2] = {without.n_send, with.n_send};
    assert_int_equal(comm->sum(comm, GR_WORLD, GR_U64, rows, 2), GR_OK);
    assert_true(rows[1] < rows[0]);
    if (is_first()) {
        double weights = difference("weights"), gradients = difference("gradients");
        print_message("R_ep %u: weights differ by %.2g, gradients by %.2g; rows %d -> %d\n", R_ep, weights, gradients,
            (int)rows[0], (int)rows[1]);
        assert_true(weights <= 1e-5 && gradients <= 1e-5);
        assert_true(weights > 0); /* sums in another order */
    }
    barrier();
}

static void two_groups_of_two_train_the_same(void **state) {
    (void)state;
    a_placement_changes_nothing_but_roundings(2);
}

static void one_group_of_four_trains_the_same(void **state) {
    (void)state;
    a_placement_changes_nothing_but_roundings(4);
}

static int open_all(void **state) {
    (void)state;
    if (gr_comm_open(&comm, "mpi"))
        return 1;
    if (is_first())
        make_data();
    barrier();
    return 0;
}

static int close_all(void **state) {
    (void)state;
    barrier();
    if (is_first()) {
        glob_t found;
        if (glob("mpi_placed.tmp*", 0, NULL, &found) == 0)
            for (size_t i = 0; i < found.gl_pathc; i++)
                unlink(found.gl_pathv[i]);
        globfree(&found);
    }
    gr_comm_close(comm, GR_OK);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_groups_of_two_train_the_same),
        cmocka_unit_test(one_group_of_four_trains_the_same),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
