/* Folding and expanding a whole Grouter: what is sampled, that the new scores are what the mapping says of the old
 * ones, that nothing else changes, and that a failure leaves nothing behind. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "check.h"
#include "grouter_case.h"
#include "router/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { T = 11, E_S = 6, D = 8, V = 19, K = 2, N_FILE = 2 };
static const uint64_t n_token[N_FILE] = {40 * T + 3, 7 * T + 1}; /* 40 and 7 windows */

static gr_backend *backend;
static gr_comm *comm;
static gr_grouter source;
static gr_tokens *tokens[N_FILE];

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

/* ---------------------------------------------------------------- a Grouter and two token files */

static gr_err write_tokens(const char *prefix, uint64_t n, uint64_t seed, uint32_t vocab) {
    gr_tokens_writer *w;
    GR_TRY(gr_tokens_writer_open(&w, prefix, vocab));
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t id = i == n - 1 ? vocab - 1 : gr_random_below(seed, 1, i, vocab - 1);
        GR_TRY(gr_tokens_writer_append(w, &id, 1));
    }
    GR_TRY(gr_tokens_writer_end(w));
    GR_TRY(gr_tokens_writer_commit(w));
    gr_tokens_writer_close(w);
    return GR_OK;
}

static gr_err make_source(void) {
    gr_grouter_spec spec = {.network = grouter_case_attention, .K = K, .scale = 2.5f, .made = "in a test"};
    spec.network.num_labels = E_S;
    GR_TRY(gr_grouter_make(&source, &spec));
    for (int i = 0; i < source.params.n; i++) {
        const gr_param *p = &source.params.list[i];
        for (int64_t k = 0; k < gr_param_size(p); k++)
            source.weights[p->offset + k] =
                (p->kind == GR_PARAM_NORM) + 0.5f * gr_random_normal(3, gr_stream_id(p->name), (uint64_t)k);
    }
    return gr_grouter_save(&source, "test_folding.source"); /* for its hash */
}

/* Also those that a failed run has left. */
static void remove_files(void) {
    static const char *const names[] = {
        "0.bin", "0.idx", "1.bin", "1.idx", "wide.bin", "wide.idx", "source", "a", "a.json", "b", "g", "m"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64];
        snprintf(path, sizeof path, "test_folding.%s", names[i]);
        unlink(path);
    }
    rmdir("test_folding.folder");
}

static int open_all(void **state) {
    (void)state;
    remove_files();
    check_set_threads(1);
    gr_log_set(GR_LOG_QUIET);
    GR_TRY(gr_backend_open(&backend, "cpu", GR_F32));
    GR_TRY(gr_comm_open(&comm, "self"));
    GR_TRY(write_tokens("test_folding.0", n_token[0], 1, V));
    GR_TRY(write_tokens("test_folding.1", n_token[1], 2, V));
    GR_TRY(write_tokens("test_folding.wide", 200, 3, V + 1));
    GR_TRY(gr_tokens_open(&tokens[0], "test_folding.0"));
    GR_TRY(gr_tokens_open(&tokens[1], "test_folding.1"));
    return make_source();
}

static int close_all(void **state) {
    (void)state;
    remove_files();
    gr_grouter_close(&source);
    gr_tokens_close(tokens[1]);
    gr_tokens_close(tokens[0]);
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
    return 0;
}

static gr_folding folding_of(gr_fold_method method, uint32_t E_T) {
    return (gr_folding){.source = &source,
        .comm = comm,
        .K = K,
        .scale = 1.5f,
        .seed = 5,
        .method = method,
        .E_T = E_T,
        .n_vector = 1000,
        .tokens = tokens,
        .n_file = N_FILE,
        .T = T,
        .backend = backend};
}

static void run(const gr_folding *f, gr_folding_result *r) {
    if (gr_folding_run(f, r))
        fail_msg("%s", gr_error_text());
}

static const float *tensor(const gr_grouter *g, const char *name) {
    return g->weights + gr_params_find(&g->params, name)->offset;
}

/* ---------------------------------------------------------------- which windows */

static void a_sample_takes_one_window_of_every_stretch(void **state) {
    (void)state;
    uint64_t differ = 0;
    for (uint64_t n = 1; n <= 50; n++) {
        for (uint64_t i = 0; i < n; i++) {
            const uint64_t each = 50 / n, rest = 50 % n, begin = i * each + (i < rest ? i : rest);
            const uint64_t w = gr_sample_window(1, 50, n, i);
            assert_in_range(w, begin, begin + each + (i < rest) - 1);
            differ += w != gr_sample_window(2, 50, n, i);
        }
    }
    assert_true(differ > 100);
    assert_int_equal(gr_sample_window(1, 50, 50, 49), 49);
}

static void a_window_of_a_stretch_is_uniform(void **state) {
    (void)state;
    int seen[5] = {0};
    for (uint64_t seed = 0; seed < 5000; seed++)
        seen[gr_sample_window(seed, 50, 10, 3) - 15]++;
    for (int i = 0; i < 5; i++)
        assert_in_range(seen[i], 1000 - 150, 1000 + 150); /* 5 standard deviations */
}

/* ---------------------------------------------------------------- what the new scores are */

/* Both Grouters on the same windows. */
typedef struct comparison {
    const gr_folding_result *r;
    gr_affinity before, after;
    double error; /* largest of the folded scores */
} comparison;

static void count(gr_affinity *a, const float *scores, uint32_t E) {
    uint16_t ids[T * K];
    float gates[T * K];
    gr_select(&(gr_selection){.E = E, .K = K, .scale = 1, .threshold = 1}, T, scores, ids, gates);
    assert_int_equal(gr_affinity_add(a, ids, gates, T, K), GR_OK);
}

static void compare_scores(comparison *c, const float *old, const float *new) {
    const gr_mapping *m = &c->r->made;
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t g = 0; g < m->n_group; g++) {
            double sum = 0, size = m->fold == GR_FOLD_MEAN ? m->offset[g + 1] - m->offset[g] : 1;
            for (uint32_t at = m->offset[g]; at < m->offset[g + 1]; at++)
                sum += (double)old[t * E_S + m->member[at]] / size;
            c->error = fmax(c->error, fabs(sum - (double)new[t * m->E_T + g]));
        }
}

/* Every window that a sample of all of them has, in order of the files, by networks of our own. */
static void compare(comparison *c) {
    const uint32_t E_T = c->r->made.E_T;
    gr_network *old, *new;
    assert_int_equal(gr_affinity_open(&c->before, E_S), GR_OK);
    assert_int_equal(gr_affinity_open(&c->after, E_T), GR_OK);
    assert_int_equal(gr_network_open(&old, &source, backend, T), GR_OK);
    assert_int_equal(gr_network_open(&new, &c->r->grouter, backend, T), GR_OK);
    for (int file = 0; file < N_FILE; file++)
        for (uint64_t w = 0; w < (n_token[file] - 1) / T; w++) {
            uint32_t ids[T + 1];
            const float *a, *b;
            assert_int_equal(gr_window_read(tokens[file], w, T, V, ids), GR_OK);
            assert_int_equal(gr_network_scores(old, ids, &a, NULL), GR_OK);
            assert_int_equal(gr_network_scores(new, ids, &b, NULL), GR_OK);
            compare_scores(c, a, b);
            count(&c->before, a, E_S);
            count(&c->after, b, E_T);
        }
    gr_network_close(new);
    gr_network_close(old);
}

static void check_rest_is_the_source(const gr_grouter *g) {
    for (int i = 0; i < g->params.n; i++) {
        const gr_param *p = &g->params.list[i];
        if (strncmp(p->name, "score.", 6) != 0)
            assert_memory_equal(
                g->weights + p->offset, tensor(&source, p->name), (size_t)gr_param_size(p) * sizeof(float));
    }
    assert_int_equal(g->spec.K, K);
    assert_true(g->spec.scale == 1.5f);
    assert_int_equal(g->spec.network.hidden_size, D);
}

static void check_fold(gr_fold_method method, gr_fold_kind kind, uint32_t E_T) {
    gr_folding f = folding_of(method, E_T);
    f.fold = kind;
    gr_folding_result r;
    run(&f, &r);
    comparison c = {.r = &r};
    compare(&c);
    if (!(c.error <= 1e-5))
        fail_msg("%s to %u: scores differ by %g", gr_fold_method_name(method), E_T, c.error);
    check_rest_is_the_source(&r.grouter);
    assert_int_equal(r.grouter.spec.network.num_labels, E_T);
    assert_non_null(strstr(r.grouter.spec.made, gr_fold_method_name(method)));
    for (uint32_t g = 0; g < r.made.n_group; g++) {
        double sum = 0, size = kind == GR_FOLD_MEAN ? r.made.offset[g + 1] - r.made.offset[g] : 1;
        for (uint32_t at = r.made.offset[g]; at < r.made.offset[g + 1]; at++)
            sum += (double)tensor(&source, "score.bias")[r.made.member[at]] / size;
        assert_true(fabs(sum - (double)tensor(&r.grouter, "score.bias")[g]) < 1e-6);
    }
    /* Loads and groups are those of counts taken independently. */
    assert_int_equal(r.n_window, 47);
    assert_int_equal(r.n_window_all, 47);
    assert_true(r.max_vio_before == gr_load_violation(c.before.load, E_S));
    assert_true(r.max_vio_after == gr_load_violation(c.after.load, E_T));
    gr_mapping expected;
    const bool blind = method == GR_FOLD_RANDOM || method == GR_FOLD_BLOCK;
    assert_int_equal(gr_mapping_group(&expected, &(gr_grouping){.method = method,
                                                     .fold = kind,
                                                     .E_S = E_S,
                                                     .E_T = E_T,
                                                     .seed = f.seed,
                                                     .affinity = blind ? NULL : &c.before}),
        GR_OK);
    assert_memory_equal(expected.member, r.made.member, E_S * sizeof *expected.member);
    assert_int_equal(r.made.n_token, blind ? 0 : 47 * T);
    assert_memory_equal(&r.made.router, &source.hash, sizeof source.hash);
    gr_mapping_close(&expected);
    gr_affinity_close(&c.after);
    gr_affinity_close(&c.before);
    gr_folding_close(&r);
}

static void folded_scores_are_sums_or_means_of_the_groups_scores(void **state) {
    (void)state;
    for (int method = 0; method < GR_FOLD_EXPAND; method++)
        for (int kind = 0; kind < GR_N_FOLD_KIND; kind++) {
            check_fold((gr_fold_method)method, (gr_fold_kind)kind, 3);
            check_fold((gr_fold_method)method, (gr_fold_kind)kind, 2);
            check_fold((gr_fold_method)method, (gr_fold_kind)kind, E_S);
        }
    check_fold(GR_FOLD_AFFINITY, GR_FOLD_SUM, 4); /* groups of 2, 2, 1, 1 */
    check_fold(GR_FOLD_BALANCE, GR_FOLD_MEAN, 5);
}

static void folding_to_as_many_experts_keeps_every_bit_of_the_scores(void **state) {
    (void)state;
    gr_folding f = folding_of(GR_FOLD_BLOCK, E_S);
    gr_folding_result r;
    run(&f, &r);
    assert_memory_equal(tensor(&r.grouter, "score.weight"), tensor(&source, "score.weight"), E_S * D * sizeof(float));
    assert_true(r.max_vio_before == r.max_vio_after);
    gr_folding_close(&r);
}

static void a_part_of_the_windows_is_enough(void **state) {
    (void)state;
    gr_folding f = folding_of(GR_FOLD_AFFINITY, 3);
    f.n_window = 20;
    gr_folding_result r;
    run(&f, &r);
    assert_int_equal(r.n_window, 20);
    assert_int_equal(r.n_window_all, 47);
    assert_int_equal(r.made.n_token, 20 * T);
    gr_folding_close(&r);
}

static void a_mapping_applied_again_gives_the_same_grouter(void **state) {
    (void)state;
    gr_folding f = folding_of(GR_FOLD_AFFINITY, 3);
    gr_folding_result first;
    run(&f, &first);
    gr_mapping m;
    assert_int_equal(gr_folding_save(&first, "test_folding.a", "test_folding.a.json"), GR_OK);
    assert_int_equal(gr_mapping_load(&m, "test_folding.a.json"), GR_OK);
    assert_int_equal(gr_mapping_match(&m, "m", &source, "g"), GR_OK);
    f.mapping = &m;
    f.n_file = 0;
    f.backend = NULL;
    gr_folding_result again;
    run(&f, &again);
    assert_true(isnan(again.max_vio_before) && isnan(again.max_vio_after));
    assert_int_equal(gr_folding_save(&again, "test_folding.b", NULL), GR_OK);
    assert_memory_equal(&again.grouter.hash, &first.grouter.hash, sizeof first.grouter.hash);
    assert_string_equal(again.grouter.spec.made, first.grouter.spec.made);

    assert_int_equal(gr_mapping_match(&m, "m", &first.grouter, "g"), GR_DATA); /* made for the source */
    char hash[33];
    assert_error_names(gr_hash128_text(source.hash, hash));
    assert_error_names(gr_hash128_text(first.grouter.hash, hash));
    gr_folding_close(&again);
    gr_folding_close(&first);
    gr_mapping_close(&m);
}

/* ---------------------------------------------------------------- expanding */

static void expanding_keeps_the_old_rows_and_adds_others_at_right_angles(void **state) {
    (void)state;
    gr_folding f = folding_of(GR_FOLD_EXPAND, D);
    gr_folding_result r;
    run(&f, &r);
    const float *W = tensor(&r.grouter, "score.weight"), *bias = tensor(&r.grouter, "score.bias");
    assert_memory_equal(W, tensor(&source, "score.weight"), E_S * D * sizeof(float));
    assert_memory_equal(bias, tensor(&source, "score.bias"), E_S * sizeof(float));
    for (uint32_t e = E_S; e < D; e++) {
        double length = 0;
        for (uint32_t i = 0; i < e; i++) {
            double dot = 0;
            for (uint32_t d = 0; d < D; d++)
                dot += (double)W[i * D + d] * (double)W[e * D + d];
            assert_true(fabs(dot) < 1e-5);
        }
        for (uint32_t d = 0; d < D; d++)
            length += (double)W[e * D + d] * (double)W[e * D + d];
        assert_true(fabs(sqrt(length) - r.expansion.radius) < 1e-5);
        assert_true(bias[e] == 0);
    }
    check_rest_is_the_source(&r.grouter);
    assert_int_equal(r.n_vector, 47 * T); /* fewer than asked for: all */
    assert_true(r.expansion.n_bad >= 47 * T / 5);
    assert_int_equal(r.made.method, GR_FOLD_EXPAND);
    assert_int_equal(gr_mapping_match(&r.made, "m", &source, "g"), GR_DATA);
    assert_error_names("does not hold the new score rows");
    gr_folding_close(&r);
    f.n_vector = 100;
    run(&f, &r);
    assert_int_equal(r.n_vector, 100);
    gr_folding_close(&r);
}

/* ---------------------------------------------------------------- refusals */

static void refused(gr_folding f, gr_err code, const char *part) {
    gr_folding_result r;
    assert_int_equal(gr_folding_run(&f, &r), code);
    assert_error_names(part);
}

static void what_does_not_go_together_is_refused_before_sampling(void **state) {
    (void)state;
    gr_folding f = folding_of(GR_FOLD_AFFINITY, 3);
    f.K = 4;
    refused(f, GR_CONFIG, "3 target experts) experts per token, got 4");
    f = folding_of(GR_FOLD_EXPAND, D + 1);
    refused(f, GR_CONFIG, "at most 8 (the router's width)");
    f = folding_of(GR_FOLD_EXPAND, D);
    f.fold = GR_FOLD_MEAN;
    refused(f, GR_CONFIG, "got mean for more");
    f = folding_of(GR_FOLD_AFFINITY, D);
    refused(f, GR_CONFIG, "use method expand for more");
    f = folding_of(GR_FOLD_AFFINITY, 3);
    f.n_file = 0;
    refused(f, GR_CONFIG, "got none; only random and block need none");
    f = folding_of(GR_FOLD_AFFINITY, 3);
    f.T = 1000;
    refused(f, GR_DATA, "expected at least the 1000 tokens of one window");
}

static void tokens_and_weights_that_are_unusable_are_named(void **state) {
    (void)state;
    gr_tokens *wide;
    assert_int_equal(gr_tokens_open(&wide, "test_folding.wide"), GR_OK);
    gr_folding f = folding_of(GR_FOLD_AFFINITY, 3);
    f.tokens = &wide;
    f.n_file = 1;
    f.T = 199;
    refused(f, GR_DATA, "test_folding.wide.bin: token 199: expected an id from 0 to 18");
    gr_tokens_close(wide);

    float *row = source.weights + gr_params_find(&source.params, "score.weight")->offset, kept = *row;
    *row = NAN;
    refused(folding_of(GR_FOLD_AFFINITY, 3), GR_NONFINITE, "expected finite scores, got nan");
    f = folding_of(GR_FOLD_BLOCK, 3);
    f.n_file = 0;
    refused(f, GR_NONFINITE, "one that is not for new expert 0");
    *row = kept;
}

static void a_failed_save_leaves_neither_file(void **state) {
    (void)state;
    gr_folding f = folding_of(GR_FOLD_BLOCK, 3);
    gr_folding_result r;
    run(&f, &r);
    assert_int_equal(mkdir("test_folding.folder", 0777), 0);
    assert_int_equal(gr_folding_save(&r, "test_folding.g", "test_folding.folder"), GR_STORAGE);
    assert_false(gr_path_exists("test_folding.g"));
    assert_int_equal(gr_folding_save(&r, "test_folding.folder", "test_folding.m"), GR_STORAGE);
    assert_false(gr_path_exists("test_folding.m"));
    gr_folding_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sample_takes_one_window_of_every_stretch),
        cmocka_unit_test(a_window_of_a_stretch_is_uniform),
        cmocka_unit_test(folded_scores_are_sums_or_means_of_the_groups_scores),
        cmocka_unit_test(folding_to_as_many_experts_keeps_every_bit_of_the_scores),
        cmocka_unit_test(a_part_of_the_windows_is_enough),
        cmocka_unit_test(a_mapping_applied_again_gives_the_same_grouter),
        cmocka_unit_test(expanding_keeps_the_old_rows_and_adds_others_at_right_angles),
        cmocka_unit_test(what_does_not_go_together_is_refused_before_sampling),
        cmocka_unit_test(tokens_and_weights_that_are_unusable_are_named),
        cmocka_unit_test(a_failed_save_leaves_neither_file),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
