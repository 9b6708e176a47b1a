/* Strict JSON: what is accepted, what is refused and where, positions, numbers, duplicates, large headers. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "grouter/json.h"

enum { MAX_BYTE = 1 << 20, MAX_DEPTH = 8 };

static gr_json *parse(const char *text) {
    gr_json *doc;
    gr_err err = gr_json_parse(&doc, text, strlen(text), "t", MAX_BYTE, MAX_DEPTH, GR_CONFIG);
    if (err)
        fail_msg("%s refused: %s", text, gr_error_text());
    return doc;
}

static void assert_refused_bytes(const char *text, size_t n, const char *error) {
    gr_json *doc;
    assert_int_equal(gr_json_parse(&doc, text, n, "t", MAX_BYTE, MAX_DEPTH, GR_DATA), GR_DATA);
    assert_null(doc);
    if (!strstr(gr_error_text(), error))
        fail_msg("%s\n  error:    %s\n  expected: %s", text, gr_error_text(), error);
}

static void assert_refused(const char *text, const char *error) {
    assert_refused_bytes(text, strlen(text), error);
}

static void test_tree_has_kinds_values_and_document_order(void **state) {
    (void)state;
    gr_json *doc = parse("{\"b\":[1,-2.5e3,\"x\",true,false,null,{},[]],\"a\":{\"c\":{\"d\":0}},\"\":\"\"}");
    const gr_json_node *root = gr_json_root(doc);
    assert_int_equal(root->kind, GR_JSON_OBJECT);
    assert_int_equal(root->n_child, 3);
    const gr_json_node *list = root->child;
    assert_string_equal(list->key, "b");
    assert_int_equal(list->n_child, 8);
    static const gr_json_kind kinds[] = {GR_JSON_NUMBER, GR_JSON_NUMBER, GR_JSON_STRING, GR_JSON_BOOL, GR_JSON_BOOL,
        GR_JSON_NULL, GR_JSON_OBJECT, GR_JSON_ARRAY};
    const gr_json_node *c = list->child;
    for (int i = 0; i < 8; i++, c = c->next) {
        assert_int_equal(c->kind, kinds[i]);
        assert_null(c->key);
    }
    assert_null(c);
    assert_string_equal(list->child->next->number, "-2.5e3");
    assert_true(list->child->next->next->next->boolean);
    const gr_json_node *d = gr_json_get(gr_json_get(gr_json_get(root, "a"), "c"), "d");
    assert_string_equal(d->number, "0");
    assert_string_equal(gr_json_get(root, "")->string, "");
    assert_null(gr_json_get(root, "A")); /* keys are exact */
    assert_null(gr_json_get(list, "a"));
    assert_null(gr_json_get(NULL, "a"));
    gr_json_close(doc);
    gr_json_close(NULL);
}

static void test_every_node_knows_its_line_and_column(void **state) {
    (void)state;
    gr_json *doc = parse("\n { \"a\" :\n   7,\r\n\t\"b\":[\n[ ],  \"\xc3\xa9\", 3]}\n");
    const gr_json_node *root = gr_json_root(doc), *a = root->child, *b = a->next, *inner = b->child;
    const gr_json_node *nodes[] = {root, a, b, inner, inner->next, inner->next->next};
    static const int places[][2] = {{2, 2}, {3, 4}, {4, 6}, {5, 1}, {5, 7}, {5, 13}};
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        assert_int_equal(nodes[i]->line, places[i][0]);
        assert_int_equal(nodes[i]->column, places[i][1]);
    }
    gr_json_close(doc);
}

static void test_scalars_are_documents_and_text_needs_no_terminator(void **state) {
    (void)state;
    gr_json *doc;
    assert_int_equal(gr_json_parse(&doc, "123456", 3, "t", MAX_BYTE, MAX_DEPTH, GR_DATA), GR_OK);
    assert_string_equal(gr_json_root(doc)->number, "123");
    gr_json_close(doc);
    assert_int_equal(gr_json_parse(&doc, "true,", 4, "t", MAX_BYTE, MAX_DEPTH, GR_DATA), GR_OK);
    assert_true(gr_json_root(doc)->boolean);
    gr_json_close(doc);
    assert_refused_bytes("123", 0, "t:1:1: expected a JSON value, got the end of the text");
    assert_refused_bytes("true", 3, "t:1:1: expected a JSON value, got 't'");
}

static void test_strings_are_decoded(void **state) {
    (void)state;
    gr_json *doc =
        parse("[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\",\"\\u00e9\\u20AC\\ud83d\\ude00\",\"\xf0\x9f\x98\x80\",\"\x7f\"]");
    const gr_json_node *c = gr_json_root(doc)->child;
    assert_string_equal(c->string, "\"\\/\b\f\n\r\t");
    assert_string_equal(c->next->string, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    assert_string_equal(c->next->next->string, "\xf0\x9f\x98\x80");
    gr_json_close(doc);
}

static void test_malformed_text_is_refused_with_its_place(void **state) {
    (void)state;
    static const struct {
        const char *text, *error;
    } bad[] = {
        {"", "t:1:1: expected a JSON value, got the end of the text"},
        {" \n ", "t:2:2: expected a JSON value"},
        {"{\"a\":1} x", "t:1:9: expected nothing after the JSON value, got 'x'"},
        {"1 2", "t:1:3: expected nothing after"},
        {"[1,]", "t:1:4: expected a JSON value, got ']'"},
        {"[,1]", "t:1:2: expected a JSON value, got ','"},
        {"[1 2]", "t:1:4: expected ',' or ']', got '2'"},
        {"[1}", "t:1:3: expected ',' or ']', got '}'"},
        {"[[1]", "t:1:5: expected ',' or ']', got the end"},
        {"{\"a\":1,}", "t:1:8: expected a key in double quotes, got '}'"},
        {"{\"a\" 1}", "t:1:6: expected ':' after the key, got '1'"},
        {"{\"a\":}", "t:1:6: expected a JSON value, got '}'"},
        {"{a:1}", "t:1:2: expected a key in double quotes, got 'a'"},
        {"{\"a\":1\n\"b\":2}", "t:2:1: expected ',' or '}', got '\"'"},
        {"{\"a\":1]", "t:1:7: expected ',' or '}', got ']'"},
        {"{,}", "t:1:2: expected a key"},
        {"]", "t:1:1: expected a JSON value"},
        {"// c\n1", "t:1:1: expected a JSON value, got '/'"},
        {"\v1", "t:1:1: expected a JSON value, got byte 0x0b"},
        {"True", "expected a JSON value, got 'T'"},
        {"nul", "expected a JSON value, got 'n'"},
        {"truex", "t:1:5: expected nothing after"},
        {"NaN", "got 'N'"},
        {"-Infinity", "t:1:2: expected a digit, got 'I'"},
        {"Infinity", "got 'I'"},
        {"01", "t:1:1: number with a leading zero"},
        {"-01", "number with a leading zero"},
        {"[+1]", "t:1:2: expected a JSON value, got '+'"},
        {".5", "expected a JSON value, got '.'"},
        {"1.", "expected a digit after the decimal point"},
        {"1.e5", "expected a digit after the decimal point, got 'e'"},
        {"1e", "expected a digit of the exponent"},
        {"1e+", "expected a digit of the exponent"},
        {"0x10", "t:1:2: expected nothing after the JSON value, got 'x'"},
        {"-", "expected a digit, got the end"},
        {"1000000000000000000000000000000000000000000000000000000000000000", "number of 64 characters"},
        {"\"abc", "t:1:1: string without a closing quote"},
        {"\"a\nb\"", "t:1:3: control character 0x0a in a string"},
        {"\"a\x1f\"", "t:1:3: control character 0x1f"},
        {"\"\\x\"", "unknown escape"},
        {"\"\\", "unknown escape"},
        {"\"\\u12g4\"", "four hexadecimal digits"},
        {"\"\\u12", "four hexadecimal digits"},
        {"\"\\u0000\"", "t:1:2: U+0000 is not allowed"},
        {"\"\\ud800\"", "lone surrogate \\ud800"},
        {"\"\\ud800\\u0041\"", "lone surrogate"},
        {"\"\\udc00\"", "lone surrogate \\udc00"},
        {"'a'", "expected a JSON value"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_refused(bad[i].text, bad[i].error);
}

static void test_bad_encodings_are_refused(void **state) {
    (void)state;
    assert_refused("\xef\xbb\xbf{}", "t:1:1: byte order mark");
    static const char *const bad[] = {"\"\x80\"", "\"\xc0\xaf\"", "\"\xc1\xbf\"", "\"\xc3\"", "\"\xe0\x9f\xbf\"",
        "\"\xe2\x82\"", "\"\xed\xa0\x80\"", "\"\xf0\x8f\xbf\xbf\"", "\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"",
        "\"\xff\"", "\"\xe2\x82"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_refused(bad[i], "t:1:2: invalid UTF-8");
    assert_refused("[\xc3\xa9]", "expected a JSON value, got byte 0xc3");
    assert_refused_bytes("\"a\0b\"", 5, "control character 0x00");
    assert_refused_bytes("[1]\0", 4, "expected nothing after the JSON value, got byte 0x00");
    assert_refused_bytes("[1\0]", 4, "expected ',' or ']', got byte 0x00");
    gr_json_close(parse("[\"\xc2\x80\",\"\xdf\xbf\",\"\xe0\xa0\x80\",\"\xed\x9f\xbf\",\"\xee\x80\x80\","
                        "\"\xf0\x90\x80\x80\",\"\xf4\x8f\xbf\xbf\"]"));
}

static void test_depth_and_size_are_limited(void **state) {
    (void)state;
    gr_json_close(parse("[[[[[[[{}]]]]]]]"));
    assert_refused("[[[[[[[[{}]]]]]]]]", "t:1:9: nested deeper than 8 levels");
    gr_json *doc;
    assert_int_equal(gr_json_parse(&doc, "[1, 2]", 6, "t", 6, MAX_DEPTH, GR_DATA), GR_OK);
    gr_json_close(doc);
    assert_int_equal(gr_json_parse(&doc, "[1, 2]", 6, "t", 5, MAX_DEPTH, GR_DATA), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "expected at most 5 bytes of JSON, got 6"));
}

static void test_duplicate_keys_name_both_lines(void **state) {
    (void)state;
    assert_refused("{\n \"a\":1,\n \"b\":{},\n \"a\":2}", "t:4:2: duplicate key \"a\": also on line 2, column 2");
    assert_refused("{\"x\":[{\"k\":1,\"\\u006b\":1}]}", "duplicate key \"k\"");
    assert_refused(
        "{\"b\":1,\"a\":1,\"c\":1,\"a\":1,\"b\":1}", "t:1:20: duplicate key \"a\""); /* the first in the text */
    assert_refused("{\"a\\nb\":1,\"a\\nb\":2}", "duplicate key \"a b\"");
    assert_refused("{\"\":1,\"\":2}", "duplicate key \"\"");
    gr_json_close(parse("{\"a\":{\"a\":1},\"A\":[{\"a\":1},{\"a\":1}]}"));
}

static void test_integers_never_pass_through_double(void **state) {
    (void)state;
    gr_json *doc = parse("[9223372036854775807,-9223372036854775808,9007199254740993,0,-0,"
                         "9223372036854775808,1.0,1e3,1E3,\"5\",true]");
    static const int64_t expected[] = {INT64_MAX, INT64_MIN, 9007199254740993, 0, 0};
    const gr_json_node *c = gr_json_root(doc)->child;
    for (int i = 0; i < 11; i++, c = c->next) {
        int64_t v = 42;
        assert_int_equal(gr_json_i64(c, &v), i < 5);
        assert_true(v == (i < 5 ? expected[i] : 42));
    }
    int64_t v;
    assert_false(gr_json_i64(NULL, &v));
    gr_json_close(doc);
}

static void test_doubles_are_exact_and_finite(void **state) {
    (void)state;
    gr_json *doc = parse("[0.1,-2.5e-3,12,1.7976931348623157e308,1e999,-1e999,\"1\"]");
    static const double expected[] = {0.1, -2.5e-3, 12, 1.7976931348623157e308};
    const gr_json_node *c = gr_json_root(doc)->child;
    for (int i = 0; i < 7; i++, c = c->next) {
        double v = 42;
        assert_int_equal(gr_json_f64(c, &v), i < 4);
        assert_true(v == (i < 4 ? expected[i] : 42));
    }
    gr_json_close(doc);
}

static void test_escaped_text_parses_back(void **state) {
    (void)state;
    char text[256], out[6 * sizeof text + 1], literal[6 * sizeof text + 3];
    for (int i = 0; i < 127; i++)
        text[i] = (char)(i + 1);
    strcpy(text + 127, "\xf0\x9f\x98\x80");
    snprintf(literal, sizeof literal, "\"%s\"", gr_json_escape(text, out));
    gr_json *doc = parse(literal);
    assert_string_equal(gr_json_root(doc)->string, text);
    gr_json_close(doc);
}

/* The shape of a safetensors header: quadratic duplicate detection would take minutes here. */
static void test_large_objects_parse_in_linear_time(void **state) {
    (void)state;
    enum { N = 200000 };
    size_t n = 0, room = (size_t)N * 100;
    char *text = malloc(room);
    assert_non_null(text);
    text[n++] = '{';
    for (int i = 0; i < N; i++)
        n += (size_t)snprintf(text + n, room - n,
            "%s\"model.layers.%d.w\":{\"dtype\":\"F32\",\"data_offsets\":[%d,%d]}", i ? "," : "", i, i * 4, i * 4 + 4);
    text[n++] = '}';
    gr_json *doc;
    double start = gr_time_s();
    assert_int_equal(gr_json_parse(&doc, text, n, "t", room, MAX_DEPTH, GR_CHECKPOINT), GR_OK);
    assert_true(gr_time_s() - start < 60);
    assert_int_equal(gr_json_root(doc)->n_child, N);
    gr_json_close(doc);
    free(text);
}

/* Any prefix and any single changed byte gives a document or an error of the given code, never a crash. */
static void test_truncated_and_mutated_texts_are_handled(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1,-2.5e3,\"\\u00e9\\ud83d\\ude00\",true,null],\"b\":{\"c\":\"\xc3\xa9\"}}";
    char changed[sizeof text];
    gr_json *doc;
    for (size_t i = 0; i + 1 < sizeof text; i++) {
        assert_int_equal(gr_json_parse(&doc, text, i, "t", MAX_BYTE, MAX_DEPTH, GR_DATA), GR_DATA);
        for (int byte = 0; byte < 256; byte++) {
            memcpy(changed, text, sizeof text);
            changed[i] = (char)byte;
            gr_err err = gr_json_parse(&doc, changed, sizeof text - 1, "t", MAX_BYTE, MAX_DEPTH, GR_DATA);
            assert_true(err == GR_OK || err == GR_DATA);
            gr_json_close(doc);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree_has_kinds_values_and_document_order),
        cmocka_unit_test(test_every_node_knows_its_line_and_column),
        cmocka_unit_test(test_scalars_are_documents_and_text_needs_no_terminator),
        cmocka_unit_test(test_strings_are_decoded),
        cmocka_unit_test(test_malformed_text_is_refused_with_its_place),
        cmocka_unit_test(test_bad_encodings_are_refused),
        cmocka_unit_test(test_depth_and_size_are_limited),
        cmocka_unit_test(test_duplicate_keys_name_both_lines),
        cmocka_unit_test(test_integers_never_pass_through_double),
        cmocka_unit_test(test_doubles_are_exact_and_finite),
        cmocka_unit_test(test_escaped_text_parses_back),
        cmocka_unit_test(test_large_objects_parse_in_linear_time),
        cmocka_unit_test(test_truncated_and_mutated_texts_are_handled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
