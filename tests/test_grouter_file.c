/* A Grouter's file: what is saved is opened again, its hash names settings and tensors, and no damaged or lying file is
 * taken for one. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/router.h"
#include "grouter_case.h"

#define PATH "test_grouter_file.safetensors"

static gr_grouter_spec spec_of(const gr_model_config *network) {
    gr_grouter_spec s = {.network = *network, .K = 2, .scale = 2.5f};
    snprintf(s.made, sizeof s.made, "by \"hand\"");
    return s;
}

static const gr_model_config *const networks[] = {
    &grouter_case_attention, &grouter_case_linear, &grouter_case_residual_linear};
enum { N_NETWORK = 3 };

/* Weights that differ everywhere. */
static void make(gr_grouter *g, const gr_grouter_spec *spec) {
    if (gr_grouter_make(g, spec))
        fail_msg("%s", gr_error_text());
    for (int i = 0; i < g->params.n; i++)
        for (int64_t j = 0; j < gr_param_size(&g->params.list[i]); j++)
            g->weights[g->params.list[i].offset + j] = gr_random_normal(5, (uint64_t)i, (uint64_t)j);
}

static void save(gr_grouter *g) {
    if (gr_grouter_save(g, PATH))
        fail_msg("%s", gr_error_text());
}

static gr_hash128 save_new(const gr_grouter_spec *spec) {
    gr_grouter g;
    make(&g, spec);
    save(&g);
    gr_hash128 hash = g.hash;
    gr_grouter_close(&g);
    return hash;
}

static bool same_hash(gr_hash128 a, gr_hash128 b) {
    return a.hi == b.hi && a.lo == b.lo;
}

/* ---------------------------------------------------------------- what is saved is opened again */

static void check_round_trip(const gr_grouter_spec *spec) {
    gr_grouter g, again, described;
    make(&g, spec);
    save(&g);
    assert_true(gr_grouter_is(PATH));
    assert_int_equal(gr_grouter_open(&again, PATH), GR_OK);
    assert_int_equal(gr_grouter_describe(&described, PATH), GR_OK);
    assert_null(described.weights);
    const gr_grouter *both[] = {&again, &described};
    for (int i = 0; i < 2; i++) {
        const gr_grouter_spec *s = &both[i]->spec;
        gr_model_config c = s->network;
        c.initializer_range = spec->network.initializer_range; /* has no meaning any more */
        assert_memory_equal(&c, &spec->network, sizeof c);
        assert_true(s->K == spec->K && s->scale == spec->scale && strcmp(s->made, spec->made) == 0);
        assert_true(same_hash(both[i]->hash, g.hash));
        assert_int_equal(both[i]->params.n_element, g.params.n_element);
    }
    assert_memory_equal(again.weights, g.weights, (size_t)g.params.n_element * sizeof *g.weights);
    gr_grouter_close(&described);
    gr_grouter_close(&again);
    gr_grouter_close(&g);
}

static void every_body_and_mask_is_opened_as_it_was_saved(void **state) {
    (void)state;
    for (int b = 0; b < N_NETWORK; b++)
        for (int mask = 0; mask < GR_N_MASK; mask++)
            for (int position = 0; position < GR_N_POSITION; position++) {
                gr_grouter_spec s = spec_of(networks[b]);
                if ((mask == GR_MASK_NONE) != (s.network.body != GR_BODY_ATTENTION))
                    continue;
                s.network.mask = (gr_mask)mask;
                s.network.position = (gr_position)position;
                s.network.rms_norm_eps = 1.0 / 3 * 1e-5;
                s.scale = 1.0f / 3;
                check_round_trip(&s);
            }
}

static void how_it_was_made_survives_as_utf8(void **state) {
    (void)state;
    gr_grouter_spec s = spec_of(&grouter_case_linear);
    memset(s.made, 'a', sizeof s.made);
    memcpy(s.made + sizeof s.made - 3, "\xc3\xa9", 3); /* the longest there is */
    check_round_trip(&s);
    s.made[sizeof s.made - 2] = '\0'; /* cut off inside its last character */
    save_new(&s);
    gr_grouter g;
    assert_int_equal(gr_grouter_open(&g, PATH), GR_OK);
    s.made[sizeof s.made - 3] = '?';
    assert_string_equal(g.spec.made, s.made);
    gr_grouter_close(&g);
}

/* ---------------------------------------------------------------- the hash */

static void the_hash_is_that_of_settings_and_of_every_tensor(void **state) {
    (void)state;
    gr_hash128 seen[64];
    int n = 0;
    gr_grouter_spec s = spec_of(&grouter_case_attention), first = s;
    seen[n++] = save_new(&s);
    snprintf(s.made, sizeof s.made, "otherwise");
    assert_true(same_hash(save_new(&s), seen[0]));
#define CHANGED(change)                                                                                                \
    s = first;                                                                                                         \
    s.change;                                                                                                          \
    seen[n++] = save_new(&s)
    CHANGED(K = 3);
    CHANGED(scale = 2);
    CHANGED(network.mask = GR_MASK_CAUSAL);
    CHANGED(network.position = GR_POSITION_NONE);
    CHANGED(network.rms_norm_eps = 2e-5);
    CHANGED(network.rope_theta = 101);
    CHANGED(network.document_end = 5);
    CHANGED(network.zero_token = -1);
    gr_grouter g;
    make(&g, &first);
    for (int i = 0; i < g.params.n; i++) {
        float *last = g.weights + g.params.list[i].offset + gr_param_size(&g.params.list[i]) - 1, before = *last;
        *last += 1;
        save(&g);
        *last = before;
        seen[n++] = g.hash;
    }
    gr_grouter_close(&g);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            assert_false(same_hash(seen[i], seen[j]));
}

static void weights_in_a_padded_table_are_written_as_the_same_file(void **state) {
    (void)state;
    gr_grouter g, again;
    gr_params padded;
    gr_hash128 hash;
    gr_grouter_spec s = spec_of(&grouter_case_attention);
    make(&g, &s);
    save(&g);
    assert_int_equal(gr_params_open(&padded, &s.network, &g.map, 0, 4, 4), GR_OK);
    assert_true(padded.n_element > g.params.n_element);
    float *weights = calloc((size_t)padded.n_element, sizeof *weights);
    assert_non_null(weights);
    memcpy(weights, g.weights, (size_t)g.params.n_element * sizeof *weights);
    assert_int_equal(gr_grouter_write(&s, &padded, weights, PATH, &hash), GR_OK);
    assert_true(same_hash(hash, g.hash));
    assert_int_equal(gr_grouter_open(&again, PATH), GR_OK);
    gr_grouter_close(&again);
    free(weights);
    gr_params_close(&padded);
    gr_grouter_close(&g);
}

/* ---------------------------------------------------------------- files that are none */

static void expect_refused(gr_err code, const char *what) {
    gr_grouter g;
    gr_router *r;
    gr_err e = gr_grouter_open(&g, PATH);
    if (e != code || !strstr(gr_error_text(), what) || !strstr(gr_error_text(), PATH))
        fail_msg("expected %d with \"%s\", got %d: %s", code, what, e, gr_error_text());
    assert_true(gr_router_open(&r, PATH) == code && !r);
}

/* Writes PATH again with other metadata (NULL: without) and tensors. */
static void write_file(const char *key, const char *text, const gr_tensor *list, int n) {
    gr_safetensors_writer *w;
    gr_metadata metadata = {.key = key, .value = text};
    assert_int_equal(gr_safetensors_writer_open(&w, PATH, list, n, &metadata, text != NULL), GR_OK);
    for (int i = 0; i < n; i++)
        assert_int_equal(gr_safetensors_writer_append(w, list[i].data, list[i].n_byte), GR_OK);
    assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
    gr_safetensors_writer_close(w);
}

/* A good file in memory, to be written again with one thing changed. */
typedef struct good {
    gr_safetensors *file;
    gr_tensor list[64];
    int n;
    const char *text;
} good;

static void good_open(good *f) {
    gr_grouter_spec s = spec_of(&grouter_case_attention);
    save_new(&s);
    assert_int_equal(gr_safetensors_open(&f->file, PATH), GR_OK);
    f->n = gr_safetensors_count(f->file);
    assert_true(f->n < 63);
    for (int i = 0; i < f->n; i++)
        f->list[i] = *gr_safetensors_at(f->file, i);
    f->text = gr_safetensors_metadata(f->file, "grouter");
    assert_non_null(f->text);
}

/* The file with the first `from` of its settings replaced is refused so. */
static void expect_edit(const good *f, const char *from, const char *to, const char *what) {
    char text[4096];
    const char *at = strstr(f->text, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - f->text), f->text, to, at + strlen(from));
    write_file("grouter", text, f->list, f->n);
    expect_refused(GR_DATA, what);
}

static void settings_that_are_wrong_are_named(void **state) {
    (void)state;
    static const char *const edits[][3] = {
        {"\"version\": 1", "\"version\": 2", "version: expected an integer in [1, 1], got 2"},
        {"\"version\": 1, ", "", "version: expected an integer in [1, 1], got none"},
        {"\"experts\": 5", "\"experts\": 0", "experts: expected an integer in [1, 4096], got 0"},
        {"\"experts\": 5", "\"experts\": 4097", "experts: expected"},
        {"\"experts\": 5", "\"experts\": 5.5", "experts: expected an integer in [1, 4096], got 5.5"},
        {"\"experts\": 5", "\"experts\": \"5\"", "experts: expected"},
        {"\"experts\": 5", "\"experts\": [5]", "experts: expected an integer in [1, 4096], got another type"},
        {"\"top_k\": 2", "\"top_k\": 65", "top_k: expected an integer in [1, 64], got 65"},
        {"\"top_k\": 2", "\"top_k\": 6", "expected 1 to min(64, 5 experts) experts per token, got 6"},
        {"\"scale\": 2.5", "\"scale\": 0", "scale: expected a positive number, got 0"},
        {"\"scale\": 2.5", "\"scale\": 1e300", "expected a scale from 1e-06 to 1e+06"},
        {"\"scale\": 2.5", "\"scale\": 1e999", "scale"},
        {"\"body\": \"attention\"", "\"body\": \"conv\"",
            "body: expected attention or linear or residual-linear, got conv"},
        {"\"body\": \"attention\"", "\"body\": \"linear\"", "expected a mask exactly with body attention"},
        {"\"mask\": \"bidirectional\"", "\"mask\": \"none\"", "expected a mask exactly with body attention"},
        {"\"mask\": \"bidirectional\"", "\"mask\": 1", "mask: expected none or causal"},
        {"\"position\": \"window\"", "\"position\": \"document\"", "position: expected none or window, got document"},
        {"\"vocab_size\": 19", "\"vocab_size\": 3", "expected document_end and zero_token below the vocabulary of 3"},
        {"\"vocab_size\": 19", "\"vocab_size\": 16777217", "vocab_size: expected an integer in [2, 16777216]"},
        {"\"hidden_size\": 8", "\"hidden_size\": 0", "hidden_size: expected"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", "expected layers, heads and an intermediate size"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1025", "num_hidden_layers: expected"},
        {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "query heads that are a multiple"},
        {"\"head_dim\": 4", "\"head_dim\": 3", "an even head_dim, got 2, 2 and 3"},
        {"\"document_end\": 3", "\"document_end\": -2", "document_end: expected"},
        {"\"rms_norm_eps\": ", "\"rms_norm_eps\": 70000", "rms_norm_eps: expected a number in (0, 0.1]"},
        {"\"rms_norm_eps\": ", "\"rms_norm_eps\": -", "rms_norm_eps: expected a positive number"},
        {"\"rope_theta\": 100", "\"rope_theta\": 0.5", "rope_theta: expected a number in [1, 1e+12], got 0.5"},
        {"\"made\": ", "\"made\": 1, \"x\": ", "made: expected a text of at most 255 bytes, got 1"},
        {"\"hash\": \"", "\"hash\": \"0", "hash: expected a text of at most 32 bytes"},
        {"{\"version\"", "{\"more\": 1, \"version\"", "expected the 20 known ones, got 21"},
        {"{\"version\"", "{\"version\": 1, \"version\"", "version"}, /* twice */
        {"{\"version\"", "[{\"version\"", ""},
    };
    good f;
    good_open(&f);
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++)
        expect_edit(&f, edits[i][0], edits[i][1], edits[i][2]);
    expect_edit(&f, strstr(f.text, "\"hash\""), "\"hash\": \"12ab\"}", "hash: expected 32 hexadecimal digits");
    expect_edit(&f, f.text, "[]", "settings: expected an object");
    expect_edit(&f, f.text, "", "");
    gr_safetensors_close(f.file);
}

static void a_setting_changed_without_its_hash_is_seen(void **state) {
    (void)state;
    good f;
    good_open(&f);
    expect_edit(&f, "\"top_k\": 2", "\"top_k\": 3", "hash of settings and tensors: expected ");
    expect_edit(&f, "bidirectional", "causal", "the file is damaged: copy it or make the Grouter again");
    expect_edit(&f, "\"scale\": 2.5", "\"scale\": 2", "hash of settings and tensors");
    gr_safetensors_close(f.file);
}

static void weights_of_something_else_are_no_grouter(void **state) {
    (void)state;
    good f;
    good_open(&f);
    write_file("format", NULL, f.list, f.n);
    expect_refused(GR_DATA, "expected a Grouter (safetensors with the metadata \"grouter\"), got weights of something");
    write_file("grouter_config", "{}", f.list, f.n);
    expect_refused(GR_DATA, "make one with 'grouter-train distill'");
    gr_safetensors_close(f.file);
}

static void tensors_that_are_wrong_are_listed(void **state) {
    (void)state;
    good f;
    good_open(&f);
    gr_tensor list[64];
    write_file("grouter", f.text, f.list, f.n - 1);
    expect_refused(GR_CHECKPOINT, f.list[f.n - 1].name);
    assert_non_null(strstr(gr_error_text(), "got none"));

    memcpy(list, f.list, sizeof list);
    list[f.n] = f.list[0];
    list[f.n].name = "more";
    write_file("grouter", f.text, list, f.n + 1);
    expect_refused(GR_CHECKPOINT, "more: expected no such tensor");

    int embed = 0;
    while (strcmp(f.list[embed].name, "model.embed_tokens.weight") != 0)
        embed++;
    memcpy(list, f.list, sizeof list);
    list[embed].dim[0] = f.list[embed].dim[1];
    list[embed].dim[1] = f.list[embed].dim[0];
    write_file("grouter", f.text, list, f.n);
    expect_refused(GR_CHECKPOINT, "model.embed_tokens.weight: expected F32 [19, 8], got F32 [8, 19]");

    memcpy(list, f.list, sizeof list);
    list[embed].dtype = GR_BF16;
    list[embed].n_byte /= 2;
    write_file("grouter", f.text, list, f.n);
    expect_refused(GR_CHECKPOINT, "expected F32 [19, 8], got BF16 [19, 8]");
    gr_safetensors_close(f.file);
}

/* 16 M tokens of width 65536 would be 4 TiB: no memory is asked for what the file cannot hold. */
static void settings_that_promise_a_huge_network_are_compared_first(void **state) {
    (void)state;
    good f;
    char text[4096];
    good_open(&f);
    const char *at = strstr(f.text, "\"vocab_size\": 19, \"hidden_size\": 8,"),
               *rest = strchr(strchr(at, ',') + 1, ',');
    snprintf(
        text, sizeof text, "%.*s\"vocab_size\": 16777216, \"hidden_size\": 65536%s", (int)(at - f.text), f.text, rest);
    write_file("grouter", text, f.list, f.n);
    expect_refused(GR_CHECKPOINT, "model.embed_tokens.weight: expected F32 [16777216, 65536], got F32 [19, 8]");
    gr_safetensors_close(f.file);
}

static uint8_t *read_all(size_t *n) {
    char *data;
    assert_int_equal(gr_file_read(PATH, 1 << 24, GR_DATA, &data, n), GR_OK);
    return (uint8_t *)data;
}

static void write_all(const uint8_t *data, size_t n) {
    FILE *f = fopen(PATH, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void a_file_cut_short_anywhere_is_refused(void **state) {
    (void)state;
    gr_grouter_spec s = spec_of(&grouter_case_linear);
    save_new(&s);
    size_t n;
    uint8_t *data = read_all(&n);
    for (size_t cut = 0; cut < n; cut += cut < 16 || cut > n - 16 ? 1 : 7) {
        gr_grouter g;
        gr_router *r;
        write_all(data, cut);
        gr_err e = gr_grouter_open(&g, PATH);
        assert_true(e == GR_CHECKPOINT || e == GR_DATA);
        assert_non_null(strstr(gr_error_text(), PATH));
        assert_true(gr_router_open(&r, PATH) != GR_OK);
    }
    free(data);
}

/* Some bytes say nothing about it: how it was made, other metadata, spaces. All others are covered by the hash. */
static void no_flipped_bit_changes_a_grouter_unseen(void **state) {
    (void)state;
    gr_grouter_spec s = spec_of(&grouter_case_linear);
    gr_hash128 hash = save_new(&s);
    size_t n, n_seen = 0;
    uint8_t *data = read_all(&n);
    for (size_t i = 0; i < n; i++) {
        gr_grouter g;
        data[i] ^= (uint8_t)(1u << i % 8);
        write_all(data, n);
        gr_err e = gr_grouter_open(&g, PATH);
        data[i] ^= (uint8_t)(1u << i % 8);
        n_seen += e != GR_OK;
        if (e == GR_OK && !same_hash(g.hash, hash))
            fail_msg("byte %zu: another Grouter is opened", i);
        if (e != GR_OK && e != GR_CHECKPOINT && e != GR_DATA)
            fail_msg("byte %zu: %d: %s", i, e, gr_error_text());
        gr_grouter_close(&g);
    }
    assert_true(n_seen > n - 128);
    free(data);
}

static void specs_that_no_file_could_hold_are_not_made(void **state) {
    (void)state;
    gr_grouter g;
    gr_grouter_spec s = spec_of(&grouter_case_attention), first = s;
#define REFUSED(change)                                                                                                \
    s = first;                                                                                                         \
    s.change;                                                                                                          \
    assert_int_equal(gr_grouter_make(&g, &s), GR_DATA);                                                                \
    assert_null(g.weights)
    REFUSED(K = 0);
    REFUSED(K = 6);
    REFUSED(scale = 0);
    REFUSED(network.num_labels = 0);
    REFUSED(network.vocab_size = 1);
    REFUSED(network.zero_token = 19);
    REFUSED(network.rms_norm_eps = 0);
    REFUSED(network.rope_theta = 0);
    REFUSED(network.mask = GR_MASK_NONE);
    REFUSED(network.head_dim = 5);
    s = first;
    s.network.mask = GR_MASK_CAUSAL_DOC;
    s.network.document_end = -1;
    assert_int_equal(gr_grouter_make(&g, &s), GR_DATA);
}

/* ---------------------------------------------------------------- as a router */

static void a_router_is_recognised_by_its_first_bytes(void **state) {
    (void)state;
    gr_router *r;
    gr_grouter_spec s = spec_of(&grouter_case_attention);
    gr_hash128 hash = save_new(&s);
    assert_int_equal(gr_router_open(&r, PATH), GR_OK);
    const gr_router_info *i = gr_router_get(r);
    assert_true(i->method == GR_ROUTER_GROUTER && i->V == 19 && i->E == 5 && i->K == 2 && i->scale == 2.5f);
    assert_true(i->mask == GR_MASK_BIDIRECTIONAL && i->position == GR_POSITION_WINDOW && !i->variable_k);
    assert_true(same_hash(i->hash, hash));
    gr_router_close(r);
    assert_int_equal(gr_router_make_random(&r, 1, 8, 2, 1), GR_OK);
    assert_int_equal(gr_router_save(r, PATH), GR_OK);
    gr_router_close(r);
    assert_false(gr_grouter_is(PATH));
    assert_int_equal(gr_router_open(&r, PATH), GR_OK);
    assert_int_equal(gr_router_get(r)->method, GR_ROUTER_RANDOM);
    assert_int_equal(gr_router_use_bias(r), GR_USAGE);
    assert_int_equal(gr_router_use_threshold(r, 0.5f), GR_USAGE);
    gr_router_close(r);
    unlink(PATH);
    assert_false(gr_grouter_is(PATH));
    assert_int_equal(gr_router_open(&r, PATH), GR_DATA);
}

static void each_way_to_use_a_grouter_has_a_hash_of_its_own(void **state) {
    (void)state;
    gr_router *r;
    gr_grouter_spec s = spec_of(&grouter_case_attention);
    gr_hash128 seen[5];
    seen[0] = save_new(&s);
    for (int i = 1; i < 5; i++) {
        assert_int_equal(gr_router_open(&r, PATH), GR_OK);
        if (i & 1)
            assert_int_equal(gr_router_use_bias(r), GR_OK);
        if (i >= 2)
            assert_int_equal(gr_router_use_threshold(r, i == 4 ? 1.5f : 1), GR_OK);
        assert_int_equal(gr_router_get(r)->variable_k, i >= 2);
        seen[i] = gr_router_get(r)->hash;
        for (int j = 0; j < i; j++)
            assert_false(same_hash(seen[i], seen[j]));
        assert_int_equal(gr_router_use_threshold(r, 0), GR_USAGE);
        assert_int_equal(gr_router_use_threshold(r, 2.5f), GR_USAGE);
        gr_router_close(r);
    }
}

static void a_grouter_routes_only_tokens_it_knows_and_scores_that_are_numbers(void **state) {
    (void)state;
    enum { T = 4 };
    gr_backend *backend;
    gr_grouter g;
    gr_router *r;
    uint16_t ids[2 * T];
    float gates[2 * T];
    uint32_t token[T + 1] = {1, 2, 18, 5, 1000}, counts[5]; /* the label is not looked at */
    gr_grouter_spec s = spec_of(&grouter_case_linear);
    make(&g, &s);
    int64_t at = gr_params_find(&g.params, "model.embed_tokens.weight")->offset + 5 * 8;
    g.weights[at] = 3e38f;
    g.weights[gr_params_find(&g.params, "score.weight")->offset + 3 * 8] = 1e5f;
    save(&g);
    assert_int_equal(gr_backend_open(&backend, "cpu", GR_F32), GR_OK);
    assert_int_equal(gr_router_open(&r, PATH), GR_OK);
    assert_int_equal(gr_router_prepare(r, backend, T), GR_OK);
    assert_int_equal(gr_router_route(r, 2, T, token, ids, gates), GR_NONFINITE);
    assert_non_null(strstr(gr_error_text(), "token 11: expected finite scores from the Grouter, got "));
    assert_non_null(strstr(gr_error_text(), "for expert 3"));
    token[2] = 19;
    assert_int_equal(gr_router_route(r, 2, T, token, ids, gates), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "token 10: expected an id below the Grouter's vocabulary of 19, got 19"));
    token[2] = token[3] = 7;
    assert_int_equal(gr_router_route(r, 2, T, token, ids, gates), GR_OK);
    gr_routes_info info = {.T = T};
    gr_router_describe(r, &info);
    assert_int_equal(gr_routes_check_rows(&info, "rows", ids, gates, counts), GR_OK);
    gr_router_close(r);
    gr_backend_close(backend);
    gr_grouter_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_body_and_mask_is_opened_as_it_was_saved),
        cmocka_unit_test(how_it_was_made_survives_as_utf8),
        cmocka_unit_test(the_hash_is_that_of_settings_and_of_every_tensor),
        cmocka_unit_test(weights_in_a_padded_table_are_written_as_the_same_file),
        cmocka_unit_test(settings_that_are_wrong_are_named),
        cmocka_unit_test(a_setting_changed_without_its_hash_is_seen),
        cmocka_unit_test(weights_of_something_else_are_no_grouter),
        cmocka_unit_test(tensors_that_are_wrong_are_listed),
        cmocka_unit_test(settings_that_promise_a_huge_network_are_compared_first),
        cmocka_unit_test(a_file_cut_short_anywhere_is_refused),
        cmocka_unit_test(no_flipped_bit_changes_a_grouter_unseen),
        cmocka_unit_test(specs_that_no_file_could_hold_are_not_made),
        cmocka_unit_test(a_router_is_recognised_by_its_first_bytes),
        cmocka_unit_test(each_way_to_use_a_grouter_has_a_hash_of_its_own),
        cmocka_unit_test(a_grouter_routes_only_tokens_it_knows_and_scores_that_are_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
