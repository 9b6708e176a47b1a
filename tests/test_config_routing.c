/* routing{}: where routes and gates come from, and which keys then make sense. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/config.h"

#define FILE_NAME "test_config_routing.json"

static gr_config config; /* too large for the stack of every test */

/* A config whose only training file has these members besides its tokens. */
static gr_err load(const char *members, const char *const *set, int n_set) {
    FILE *f = fopen(FILE_NAME, "w");
    assert_non_null(f);
    assert_true(fprintf(f,
                    "{\n"
                    "\"run\": {\"dir\": \"out/run\"},\n"
                    "\"model\": {\"vocab_size\": 257, \"hidden_size\": 64, \"num_hidden_layers\": 2,\n"
                    "          \"num_attention_heads\": 4, \"moe_intermediate_size\": 32, \"num_experts\": 8,\n"
                    "          \"num_experts_per_tok\": 2},\n"
                    "\"data\": {\"train\": [{\"tokens\": \"a\"%s}], \"seq_len\": 128},\n"
                    "\"optimizer\": {\"lr\": 0.001},\n"
                    "\"train\": {\"steps\": 100, \"micro_batch_windows\": 2, \"global_batch_windows\": 8}\n"
                    "}\n",
                    members) > 0);
    assert_int_equal(fclose(f), 0);
    gr_err err = gr_config_load(&config, GR_CONFIG_TRAIN, FILE_NAME, set, n_set);
    unlink(FILE_NAME);
    return err;
}

static const char routes[] = ", \"routes\": \"a.routes\"";

#define REFUSED(members, expected, ...)                                                                                \
    do {                                                                                                               \
        const char *const set_[] = {__VA_ARGS__};                                                                      \
        assert_int_equal(load(members, set_, sizeof set_ / sizeof *set_), GR_CONFIG);                                  \
        if (!strstr(gr_error_text(), expected) || strchr(gr_error_text(), '\n'))                                       \
            fail_msg("got %s, expected only %s", gr_error_text(), expected);                                           \
    } while (0)

static void learned_routes_take_no_tables_and_have_learned_gates(void **state) {
    (void)state;
    const char *const set[] = {"routing.source=learned", "routing.aux_loss_coef=0.01", "data.valid[0].tokens=v"};
    assert_int_equal(load("", set, 3), GR_OK);
    assert_int_equal(config.routing.gates, GR_GATES_LEARNED);
    assert_memory_equal(&config.routing, &config.model.routing, sizeof config.routing);
    assert_true(!*config.data.train[0].routes && !*config.data.valid[0].routes);
    REFUSED("", "routing.gates = \"fixed\", but routing.source = \"learned\"", "routing.source=learned",
        "routing.gates=fixed");
    REFUSED(routes, FILE_NAME ":6:20: data.train[0].routes: expected none", "routing.source=learned");
}

static void routes_are_required_with_tables(void **state) {
    (void)state;
    REFUSED("", FILE_NAME ":6:20: missing key \"data.train[0].routes\"", "routing.source=table");
    REFUSED(routes, "missing key \"data.valid[0].routes\"", "data.valid[0].tokens=v");
    REFUSED("", "routing.source: expected", "routing.source=lerned"); /* and nothing about routes */
}

static void the_text_of_a_config_with_learned_routes_loads_again(void **state) {
    (void)state;
    const char *const set[] = {"routing.source=learned", "routing.scale=2.5", "model.norm_topk_prob=false"};
    assert_int_equal(load("", set, 3), GR_OK);
    gr_config *first = malloc(sizeof *first);
    char *text;
    assert_non_null(first);
    memcpy(first, &config, sizeof config);
    assert_int_equal(gr_config_text(first, &text), GR_OK);
    assert_null(strstr(text, "routes"));
    if (gr_config_parse(&config, GR_CONFIG_TRAIN, text, "text"))
        fail_msg("%s\nrefused: %s", text, gr_error_text());
    assert_memory_equal(&config, first, sizeof config);
    free(text);
    free(first);
}

static void keys_of_learned_gates_are_refused_with_fixed_ones(void **state) {
    (void)state;
    REFUSED(routes, "routing.scale = 2.5 needs learned gates", "routing.scale=2.5");
    REFUSED(routes, "routing.z_loss_coef = 0.001 needs learned gates", "routing.z_loss_coef=0.001");
    REFUSED(routes, "routing.aux_loss_coef = 0.01 needs routing.source = \"learned\"", "routing.aux_loss_coef=0.01");
    REFUSED(routes, "a loss cannot balance given experts", "routing.aux_loss_coef=0.01", "routing.gates=learned");
    const char *const gates[] = {"routing.gates=learned", "routing.scale=2.5", "routing.z_loss_coef=0.001"};
    assert_int_equal(load(routes, gates, 3), GR_OK);
    assert_int_equal(config.routing.source, GR_SOURCE_TABLE);
}

static void online_routes_need_a_grouter_and_take_no_tables(void **state) {
    (void)state;
    const char *const set[] = {"routing.source=online", "routing.grouter=g", "routing.threshold=0.5",
        "routing.bias=true", "data.valid[0].tokens=v"};
    assert_int_equal(load("", set, 5), GR_OK);
    assert_int_equal(config.routing.gates, GR_GATES_FIXED);
    assert_string_equal(config.online.grouter, "g");
    assert_true(config.online.threshold == 0.5 && config.online.bias && !*config.data.train[0].routes);
    REFUSED("", "routing.grouter = \"\", but routing.source = \"online\"", "routing.source=online");
    REFUSED(routes, "data.train[0].routes: expected none with routing.source = \"online\"", "routing.source=online",
        "routing.grouter=g");
    REFUSED(
        "", "routing.grouter = \"g\", but routing.source = \"learned\"", "routing.source=learned", "routing.grouter=g");
    REFUSED("", "routing.aux_loss_coef = 0.01 needs", "routing.source=online", "routing.grouter=g",
        "routing.aux_loss_coef=0.01", "routing.gates=learned");
}

static void ways_to_use_a_grouter_need_one(void **state) {
    (void)state;
    REFUSED(routes, "routing.threshold = 0.5 needs routing.grouter", "routing.threshold=0.5");
    REFUSED(routes, "routing.bias = true needs routing.grouter", "routing.bias=true");
    REFUSED(routes, "routing.threshold: expected a number in [0, ", "routing.threshold=-1");
    const char *const checked[] = {"routing.grouter=g", "routing.bias=true"};
    assert_int_equal(load(routes, checked, 2), GR_OK); /* what tables are compared with */
    char *text;
    assert_int_equal(gr_config_text(&config, &text), GR_OK);
    assert_non_null(strstr(text, "\"grouter\": \"g\""));
    assert_int_equal(gr_config_parse(&config, GR_CONFIG_TRAIN, text, "text"), GR_OK);
    assert_true(config.online.bias);
    free(text);
}

static void a_placement_needs_routes_that_are_known_and_groups_of_their_windows(void **state) {
    (void)state;
    const char *const placed[] = {"parallel.placement=p"}, *const corpus[] = {
                                                               "parallel.placement=p", "data.windows=corpus"};
    assert_int_equal(load(routes, NULL, 0), GR_OK);
    assert_true(!*config.parallel.placement && config.data.windows == GR_WINDOWS_BATCH);
    assert_int_equal(load(routes, placed, 1), GR_OK);
    assert_string_equal(config.parallel.placement, "p");
    assert_int_equal(load(routes, corpus, 2), GR_OK);
    assert_int_equal(config.data.windows, GR_WINDOWS_CORPUS);
    const char *const online[] = {"parallel.placement=p", "routing.source=online", "routing.grouter=g"};
    assert_int_equal(load("", online, 3), GR_OK); /* its experts alone */
    REFUSED(routes, "data.windows = \"corpus\" needs parallel.placement", "data.windows=corpus");
    REFUSED(routes, "data.windows: expected \"batch\" or \"corpus\", got \"all\"", "data.windows=all");
    REFUSED("", "data.windows = \"corpus\" needs routing.source = \"table\"", "routing.source=online",
        "routing.grouter=g", "parallel.placement=p", "data.windows=corpus");
    REFUSED("", "parallel.placement = \"p\", but routing.source = \"learned\"", "routing.source=learned",
        "parallel.placement=p");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learned_routes_take_no_tables_and_have_learned_gates),
        cmocka_unit_test(routes_are_required_with_tables),
        cmocka_unit_test(the_text_of_a_config_with_learned_routes_loads_again),
        cmocka_unit_test(keys_of_learned_gates_are_refused_with_fixed_ones),
        cmocka_unit_test(online_routes_need_a_grouter_and_take_no_tables),
        cmocka_unit_test(ways_to_use_a_grouter_need_one),
        cmocka_unit_test(a_placement_needs_routes_that_are_known_and_groups_of_their_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
