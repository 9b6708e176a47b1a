/* The audit of what routes and losses know of the future finds what is there: everything of a target whose routes name
 * the next token, nothing of its causal twin. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "cmd/leak.h"
#include "eval/audit.h"
#include "grouter/json.h"

static gr_comm *comm;

static int open_all(void **state) {
    (void)state;
    check_set_threads(1);
    return gr_comm_open(&comm, "self") || gr_comm_group(comm, 1);
}

static int close_all(void **state) {
    (void)state;
    gr_comm_close(comm, GR_OK);
    return 0;
}

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

/* ---------------------------------------------------------------- how two routes differ */

static void differences_of_routes_are_as_defined(void **state) {
    (void)state;
    const uint16_t ids_a[3] = {1, 4, 6}, ids_b[3] = {1, 5, 6};
    const float gates_a[3] = {0.5f, 0.25f, 0.25f}, gates_b[3] = {0.25f, 0.75f, 0};
    const float scores_a[2] = {0, 0}, scores_b[2] = {logf(3), 0};
    gr_route_change c = {0};
    /* the union is 1, 4, 5, 6: slot 6 is used in one */
    assert_true(
        gr_route_change_add(&c, 2, 3, &(gr_route){ids_a, gates_a, scores_a}, &(gr_route){ids_b, gates_b, scores_b}));
    assert_true(c.n == 1 && c.set_changed == 1);
    assert_true(fabs(c.gate_change - (0.25 + 0.25 + 0.75 + 0.25) / 4) < 1e-12);
    assert_true(fabs(c.divergence - (0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25))) < 1e-7);
    assert_false(gr_route_change_add(&c, 2, 3, &(gr_route){ids_a, gates_a, NULL}, &(gr_route){ids_a, gates_a, NULL}));
    assert_true(c.n == 2 && c.set_changed == 1);
    const float smaller[3] = {0.25f, 0.25f, 0.25f};
    assert_true(gr_route_change_add(&c, 2, 3, &(gr_route){ids_a, gates_a, NULL}, &(gr_route){ids_a, smaller, NULL}));
    assert_true(c.set_changed == 1);
}

static void buckets_cover_every_distance_once(void **state) {
    (void)state;
    uint32_t next = 0, first, last;
    for (int b = 0; b < GR_LEAK_BUCKETS; b++) {
        gr_leak_bucket_range(b, &first, &last);
        assert_int_equal(first, next);
        assert_int_equal(gr_leak_bucket_of(first), b);
        assert_int_equal(gr_leak_bucket_of(last), b);
        next = last + 1;
    }
    assert_true(last == 1u << 31);
    gr_leak_bucket_range(4, &first, &last);
    assert_true(first == 5 && last == 8);
}

/* ---------------------------------------------------------------- a target whose routes name the next token
 * VOCAB tokens and as many experts, one per token: expert e writes the logit of token e. A Grouter whose attention
 * looks at the next position routes token t to the expert of token t+1; where there is none, it sees its own token. */

enum { VOCAB = 8, WINDOW = 16, N_TOKEN = WINDOW * 40 + 1, WIDTH = 18, CONST = 16 };
#define GROUTER_PATH "leak_grouter.tmp"
#define TOKENS_PATH "leak_tokens.tmp"
#define WEIGHTS_PATH "leak_weights.tmp"
#define LOGIT 6.0

static float *element(const gr_params *p, float *w, const char *name, int64_t row, int64_t column) {
    const gr_param *found = gr_params_find(p, name);
    assert_non_null(found);
    assert_true(row < found->dim[0] && column < found->dim[1]);
    return w + found->offset + row * found->dim[1] + column;
}

static const gr_model_config telling_network = {.vocab_size = VOCAB,
    .hidden_size = WIDTH,
    .num_hidden_layers = 1,
    .num_attention_heads = 1,
    .num_key_value_heads = 1,
    .head_dim = 8,
    .intermediate_size = 2,
    .first_k_dense_replace = 1,
    .rms_norm_eps = 1e-6,
    .rope_theta = 16, /* frequencies 1, 1/2, 1/4, 1/8: within a window their sum of cosines has one peak */
    .head = GR_HEAD_SCORES,
    .num_labels = VOCAB,
    .body = GR_BODY_ATTENTION,
    .position = GR_POSITION_WINDOW,
    .document_end = -1,
    .zero_token = -1};

/* Embedding: [one of 8 | 8 of the token that is looked at | constant]. Queries and keys are constants, turned so that
 * they agree best one position ahead; values are tokens. */
static void make_telling(gr_mask mask) {
    gr_grouter g;
    gr_grouter_spec spec = {.network = telling_network, .K = 1, .scale = 1};
    spec.network.mask = mask;
    assert_int_equal(gr_grouter_make(&g, &spec), GR_OK);
    const gr_params *p = &g.params;
    for (int i = 0; i < p->n; i++)
        for (int64_t j = 0; p->list[i].kind == GR_PARAM_NORM && j < p->list[i].dim[0]; j++)
            g.weights[p->list[i].offset + j] = 1;
    for (int v = 0; v < VOCAB; v++) {
        *element(p, g.weights, "model.embed_tokens.weight", v, v) = 1;
        *element(p, g.weights, "model.embed_tokens.weight", v, CONST) = 1;
        *element(p, g.weights, "model.layers.0.self_attn.v_proj.weight", v, v) = 1;
        *element(p, g.weights, "model.layers.0.self_attn.o_proj.weight", VOCAB + v, v) = 1;
        *element(p, g.weights, "score.weight", v, VOCAB + v) = 5;
    }
    for (int i = 0; i < 4; i++) { /* halves of a head are the pairs that are rotated */
        double turn = pow(16, -i / 4.0);
        *element(p, g.weights, "model.layers.0.self_attn.q_proj.weight", i, CONST) = (float)(9 * cos(turn));
        *element(p, g.weights, "model.layers.0.self_attn.q_proj.weight", i + 4, CONST) = (float)(9 * sin(turn));
        *element(p, g.weights, "model.layers.0.self_attn.k_proj.weight", i, CONST) = 9;
    }
    assert_int_equal(gr_grouter_save(&g, GROUTER_PATH), GR_OK);
    gr_grouter_close(&g);
}

static gr_config *make_config(void) {
    void *memory;
    assert_int_equal(gr_alloc(&memory, 1, sizeof(gr_config), "config"), GR_OK);
    gr_config *c = memory;
    c->model = (gr_model_config){.vocab_size = VOCAB,
        .hidden_size = WIDTH,
        .num_hidden_layers = 1,
        .num_attention_heads = 1,
        .num_key_value_heads = 1,
        .head_dim = 4,
        .moe_intermediate_size = 1,
        .num_experts = VOCAB,
        .num_experts_per_tok = 1,
        .rms_norm_eps = 1e-6,
        .rope_theta = 100,
        .initializer_range = 0.02};
    c->data.seq_len = WINDOW;
    c->data.n_valid = 1;
    snprintf(c->data.valid[0].tokens, sizeof c->data.valid[0].tokens, TOKENS_PATH);
    c->train.micro_batch_windows = 1;
    return c;
}

/* All tokens embed to the same constant; expert e turns it into LOGIT for token e, before the final norm makes it
 * larger. */
static void make_target(const gr_config *c) {
    gr_expert_map map;
    gr_params p;
    gr_hash128 hash;
    assert_int_equal(gr_expert_map_open(&map, VOCAB, 1), GR_OK);
    assert_int_equal(gr_params_open(&p, &c->model, &map, 0, 1, 1), GR_OK);
    float *w = calloc((size_t)p.n_element, sizeof *w);
    assert_non_null(w);
    for (int i = 0; i < p.n; i++)
        for (int64_t j = 0; p.list[i].kind == GR_PARAM_NORM && j < p.list[i].dim[0]; j++)
            w[p.list[i].offset + j] = 1;
    for (int v = 0; v < VOCAB; v++) {
        *element(&p, w, "model.embed_tokens.weight", v, CONST) = 1;
        *element(&p, w, "lm_head.weight", v, v) = (float)LOGIT;
        static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
        for (int k = 0; k < 3; k++) {
            char name[GR_TENSOR_NAME_MAX];
            snprintf(name, sizeof name, "model.layers.0.mlp.experts.%%u.%s.weight", names[k]);
            const gr_param *e = gr_params_find(&p, name);
            assert_non_null(e);
            w[e->offset + v * e->stride + (k == 2 ? v : CONST)] = 1;
        }
    }
    assert_int_equal(gr_params_save(&p, comm, gr_weights_whole(&p, w), WEIGHTS_PATH, NULL, &hash), GR_OK);
    free(w);
    gr_params_close(&p);
    gr_expert_map_close(&map);
}

static void make_tokens(void) {
    static uint32_t token[N_TOKEN];
    gr_tokens_writer *w;
    for (int i = 0; i < N_TOKEN; i++)
        token[i] = gr_random_below(4, 0, (uint64_t)i, VOCAB);
    assert_int_equal(gr_tokens_writer_open(&w, TOKENS_PATH, VOCAB), GR_OK);
    assert_int_equal(gr_tokens_writer_document(w, token, N_TOKEN), GR_OK);
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);
}

static int make_files(void **state) {
    gr_config *c = make_config();
    make_tokens();
    make_target(c);
    *state = c;
    return 0;
}

static int remove_files(void **state) {
    free(*state);
    return unlink(TOKENS_PATH ".bin") || unlink(TOKENS_PATH ".idx") || unlink(WEIGHTS_PATH) || unlink(GROUTER_PATH);
}

static gr_leak_options options_of(const gr_config *c) {
    return (gr_leak_options){.config = c,
        .comm = comm,
        .router = GROUTER_PATH,
        .weights = WEIGHTS_PATH,
        .n_window = 1000,
        .n_cut = 1000,
        .seed = 1};
}

static void a_target_that_reads_the_next_token_from_its_routes_is_found_out(void **state) {
    gr_leak leak;
    gr_leak_options o = options_of(*state);
    make_telling(GR_MASK_BIDIRECTIONAL);
    assert_int_equal(gr_leak_run(&o, &leak), GR_OK);
    assert_true(leak.target && leak.n_window == 40 && leak.n_cut == WINDOW - 1); /* as many as there are */
    assert_true(leak.n_route == 40 * WINDOW * (WINDOW - 1) / 2 && leak.n_changed > 0);
    /* 7 of 8 other tokens are others; 600 of them: 4 standard errors are 0.054 */
    assert_true(fabs(leak.bucket[0].set_changed - 7.0 / 8) < 0.054);
    for (int b = 1; b < leak.n_bucket; b++)
        assert_true(leak.bucket[b].n_route > 0 && leak.bucket[b].set_changed == 0);
    assert_true(leak.full.mean < 0.01); /* logit of the right token: above 10 */
    /* With the wrong expert, which 7 of 8 are, the logit counts against it. */
    assert_true(leak.prefix_rise.mean > 5 && leak.swapped_rise.mean > 5 && leak.last.mean > 5);
    assert_true(leak.prefix_rise.mean > 10 * leak.prefix_rise.error && leak.prefix_rise.error > 0);
    assert_true(fabs(leak.prefix.mean - leak.full.mean - leak.prefix_rise.mean) < 1e-9);
    gr_leak_close(&leak);
}

static void check_nothing_leaks(const gr_leak_options *o) {
    gr_leak leak;
    assert_int_equal(gr_leak_run(o, &leak), GR_OK);
    assert_true(leak.n_route > 0 && leak.n_changed == 0);
    for (int b = 0; b < leak.n_bucket; b++)
        assert_true(leak.bucket[b].set_changed == 0 && leak.bucket[b].gate_change == 0 &&
                    !(leak.bucket[b].divergence != 0 && leak.router.method == GR_ROUTER_GROUTER));
    /* The routes that are compared have the same bits, so the losses have. Only the prefix is routed by products of
     * other sizes, whose rounding may differ. */
    assert_true(leak.swapped.mean == leak.full.mean && leak.swapped_rise.error == 0);
    assert_true(fabs(leak.prefix_rise.mean) <= 1e-4 && leak.full.mean > 0);
    gr_leak_close(&leak);
}

static void its_causal_twin_and_routers_without_context_leak_nothing(void **state) {
    gr_leak_options o = options_of(*state);
    make_telling(GR_MASK_CAUSAL);
    check_nothing_leaks(&o);
    gr_router *r;
    const uint64_t frequency[VOCAB] = {0};
    assert_int_equal(gr_router_fit_hash(&r, frequency, VOCAB, VOCAB, 1, 1), GR_OK);
    assert_int_equal(gr_router_save(r, GROUTER_PATH), GR_OK);
    gr_router_close(r);
    check_nothing_leaks(&o);
    assert_int_equal(gr_router_make_random(&r, 3, VOCAB, 1, 1), GR_OK);
    assert_int_equal(gr_router_save(r, GROUTER_PATH), GR_OK);
    gr_router_close(r);
    check_nothing_leaks(&o);
}

static void the_seed_and_only_the_seed_draws_the_sample(void **state) {
    gr_leak a, b, c;
    gr_leak_options o = options_of(*state);
    o.n_window = 5;
    o.n_cut = 4;
    o.weights = NULL;
    make_telling(GR_MASK_BIDIRECTIONAL);
    assert_int_equal(gr_leak_run(&o, &a), GR_OK);
    assert_int_equal(gr_leak_run(&o, &b), GR_OK);
    o.seed = 2;
    assert_int_equal(gr_leak_run(&o, &c), GR_OK);
    assert_true(!a.target && a.n_window == 5 && a.n_cut == 4);
    assert_memory_equal(a.cut, b.cut, 4 * sizeof *a.cut);
    assert_true(a.bucket[0].divergence == b.bucket[0].divergence && a.bucket[0].divergence != c.bucket[0].divergence);
    for (int i = 0; i < 4; i++)
        assert_true(a.cut[i] < WINDOW - 1 && (i == 0 || a.cut[i] > a.cut[i - 1]));
    gr_leak_close(&a);
    gr_leak_close(&b);
    gr_leak_close(&c);
}

/* ---------------------------------------------------------------- the report as JSON */

#define REPORT_PATH "leak_report.tmp"

static void write_report(const gr_leak_options *o, const gr_leak *leak, gr_json **doc) {
    gr_out *out;
    char *text;
    size_t n;
    assert_int_equal(gr_out_open(&out, REPORT_PATH), GR_OK);
    assert_int_equal(gr_leak_write(out, o, leak), GR_OK);
    assert_int_equal(gr_out_commit(out), GR_OK);
    gr_out_close(out);
    assert_int_equal(gr_file_read(REPORT_PATH, 1 << 20, GR_DATA, &text, &n), GR_OK);
    assert_int_equal(gr_json_parse(doc, text, n, REPORT_PATH, 1 << 20, 8, GR_DATA), GR_OK);
    free(text);
    unlink(REPORT_PATH);
}

static double number_at(const gr_json_node *object, const char *key) {
    double v = NAN;
    const gr_json_node *node = gr_json_get(object, key);
    assert_non_null(node);
    assert_true(node->kind == GR_JSON_NULL || gr_json_f64(node, &v));
    return v;
}

static void check_near(double got, double expected) {
    assert_true(isnan(got) ? isnan(expected) : fabs(got - expected) <= 1e-8 * fabs(expected));
}

static void check_report(const gr_leak_options *o, const gr_leak *leak) {
    gr_json *doc;
    write_report(o, leak, &doc);
    const gr_json_node *root = gr_json_root(doc), *routes = gr_json_get(root, "routes"),
                       *list = gr_json_get(routes, "by_distance"), *loss = gr_json_get(root, "loss");
    assert_string_equal(gr_json_get(root, "router")->string, GROUTER_PATH);
    assert_true(gr_json_get(root, "leak")->boolean == (leak->n_changed > 0));
    assert_int_equal(gr_json_get(root, "cuts")->n_child, leak->n_cut);
    check_near(number_at(routes, "compared"), (double)leak->n_route);
    check_near(number_at(routes, "changed"), (double)leak->n_changed);
    assert_int_equal(list->n_child, leak->n_bucket);
    const gr_json_node *one = list->child;
    for (int b = 0; b < leak->n_bucket; b++, one = one->next) {
        check_near(number_at(one, "last"), leak->bucket[b].last);
        check_near(number_at(one, "set_changed"), leak->bucket[b].set_changed);
        check_near(number_at(one, "gate_change"), leak->bucket[b].gate_change);
        check_near(number_at(one, "divergence"), leak->bucket[b].divergence);
    }
    assert_int_equal(loss->kind, leak->target ? GR_JSON_OBJECT : GR_JSON_NULL);
    if (leak->target) {
        check_near(number_at(gr_json_get(loss, "full"), "mean"), leak->full.mean);
        check_near(number_at(gr_json_get(loss, "prefix_minus_full"), "mean"), leak->prefix_rise.mean);
        check_near(number_at(gr_json_get(loss, "swapped_minus_full"), "standard_error"), leak->swapped_rise.error);
        check_near(number_at(gr_json_get(loss, "last_position"), "mean"), leak->last.mean);
    }
    gr_json_close(doc);
}

/* With one window there is no standard error, without a target no loss, without scores no divergence: null. */
static void the_report_is_json_with_every_figure(void **state) {
    gr_leak leak;
    gr_leak_options o = options_of(*state);
    make_telling(GR_MASK_BIDIRECTIONAL);
    for (int variant = 0; variant < 3; variant++) {
        o.n_window = variant == 1 ? 1 : 6;
        o.weights = variant == 2 ? NULL : WEIGHTS_PATH;
        assert_int_equal(gr_leak_run(&o, &leak), GR_OK);
        assert_true(!leak.target || isnan(leak.full.error) == (variant == 1));
        check_report(&o, &leak);
        gr_leak_close(&leak);
    }
    gr_router *r;
    assert_int_equal(gr_router_make_random(&r, 3, VOCAB, 1, 1), GR_OK);
    assert_int_equal(gr_router_save(r, GROUTER_PATH), GR_OK);
    gr_router_close(r);
    assert_int_equal(gr_leak_run(&o, &leak), GR_OK);
    assert_true(isnan(leak.bucket[0].divergence));
    check_report(&o, &leak);
    gr_leak_close(&leak);
}

/* ---------------------------------------------------------------- what it refuses */

static void check_refused(const gr_leak_options *o, gr_err code, const char *part) {
    gr_leak leak;
    assert_int_equal(gr_leak_run(o, &leak), code);
    assert_error_names(part);
    assert_null(leak.cut);
}

static void what_does_not_fit_together_is_refused(void **state) {
    gr_config *c = *state;
    const gr_config saved = *c;
    gr_leak_options o = options_of(c);
    make_telling(GR_MASK_CAUSAL);
    c->routing.source = GR_SOURCE_LEARNED;
    check_refused(&o, GR_CONFIG, "routing.source");
    *c = saved;
    c->data.n_valid = 0;
    check_refused(&o, GR_CONFIG, "data.valid: expected at least one file");
    *c = saved;
    c->data.seq_len = 1;
    check_refused(&o, GR_CONFIG, "at least 2 tokens");
    *c = saved;
    c->data.seq_len = N_TOKEN - 1;
    check_refused(&o, GR_DATA, "at least 2 windows");
    *c = saved;
    c->model.num_experts_per_tok = 2;
    check_refused(&o, GR_DATA, "2 of 8 experts per token");
    *c = saved;
    c->model.num_experts = 16;
    check_refused(&o, GR_DATA, "1 of 16 experts per token");
    *c = saved;
    c->model.vocab_size = 9;
    check_refused(&o, GR_DATA, "vocabulary of at least model.vocab_size = 9, got 8");
    *c = saved;
    o.weights = "leak_absent.tmp";
    check_refused(&o, GR_CHECKPOINT, "leak_absent.tmp");
    o = options_of(c);
    o.router = "leak_absent.tmp";
    check_refused(&o, GR_DATA, "leak_absent.tmp");
    o = options_of(c);
    c->routing.gates = GR_GATES_LEARNED;
    o.threshold = 0.5f;
    check_refused(&o, GR_DATA, "routing.gates");
    *c = saved;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(differences_of_routes_are_as_defined),
        cmocka_unit_test(buckets_cover_every_distance_once),
        cmocka_unit_test_setup_teardown(
            a_target_that_reads_the_next_token_from_its_routes_is_found_out, make_files, remove_files),
        cmocka_unit_test_setup_teardown(
            its_causal_twin_and_routers_without_context_leak_nothing, make_files, remove_files),
        cmocka_unit_test_setup_teardown(the_seed_and_only_the_seed_draws_the_sample, make_files, remove_files),
        cmocka_unit_test_setup_teardown(the_report_is_json_with_every_figure, make_files, remove_files),
        cmocka_unit_test_setup_teardown(what_does_not_fit_together_is_refused, make_files, remove_files),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
