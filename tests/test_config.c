/* The config: defaults, every kind of error with its place, --set, rules between keys, text that loads again. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/config.h"

#define FILE_NAME "test_config.json"

static const char minimal[] = "{\n"
                              "  \"run\": {\"dir\": \"out/run\"},\n"
                              "  \"model\": {\n"
                              "    \"vocab_size\": 257, \"hidden_size\": 64, \"num_hidden_layers\": 2,\n"
                              "    \"num_attention_heads\": 4,\n"
                              "    \"moe_intermediate_size\": 32,\n"
                              "    \"num_experts\": 8, \"num_experts_per_tok\": 2\n"
                              "  },\n"
                              "  \"data\": {\n"
                              "    \"train\": [{\"tokens\": \"a\", \"routes\": \"a.routes\"}],\n"
                              "    \"seq_len\": 128\n"
                              "  },\n"
                              "  \"optimizer\": {\"lr\": 0.001},\n"
                              "  \"train\": {\"steps\": 100, \"micro_batch_windows\": 2, \"global_batch_windows\": 8}\n"
                              "}\n";

static gr_config config; /* too large for the stack of every test */

/* minimal[] with the first `from` replaced by `to`; the caller frees. */
static char *edit(const char *from, const char *to) {
    const char *at = strstr(minimal, from);
    if (!at)
        fail_msg("%s is not in the config", from);
    char *text = malloc(sizeof minimal + strlen(to));
    assert_non_null(text);
    sprintf(text, "%.*s%s%s", (int)(at - minimal), minimal, to, at + strlen(from));
    return text;
}

static gr_err load(const char *text, const char *const *set, int n_set) {
    FILE *f = fopen(FILE_NAME, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    gr_err err = gr_config_load(&config, GR_CONFIG_TRAIN, FILE_NAME, set, n_set);
    unlink(FILE_NAME);
    return err;
}

static void assert_error_contains(gr_err err, const char *what, const char *expected) {
    if (err != GR_CONFIG)
        fail_msg("%s: accepted, expected %s", what, expected);
    if (!strstr(gr_error_text(), expected))
        fail_msg("%s\n  error:    %s\n  expected: %s", what, gr_error_text(), expected);
}

static int count_error_lines(void) {
    int n = 1;
    for (const char *p = gr_error_text(); *p; p++)
        n += *p == '\n';
    return n;
}

static void assert_edit_refused(const char *from, const char *to, const char *expected) {
    char *text = edit(from, to);
    assert_error_contains(load(text, NULL, 0), to, expected);
    if (count_error_lines() != 1)
        fail_msg("%s: expected one error, got:\n%s", to, gr_error_text());
    free(text);
}

static void assert_edit_accepted(const char *from, const char *to) {
    char *text = edit(from, to);
    if (load(text, NULL, 0))
        fail_msg("%s refused: %s", to, gr_error_text());
    free(text);
}

static void assert_set_refused(const char *assignment, const char *expected) {
    assert_error_contains(load(minimal, &assignment, 1), assignment, expected);
    if (count_error_lines() != 1)
        fail_msg("%s: expected one error, got:\n%s", assignment, gr_error_text());
}

static void assert_set_accepted(const char *assignment) {
    if (load(minimal, &assignment, 1))
        fail_msg("--set %s refused: %s", assignment, gr_error_text());
}

static void test_absent_keys_take_their_defaults(void **state) {
    (void)state;
    assert_int_equal(load(minimal, NULL, 0), GR_OK);
    assert_string_equal(config.run.dir, "out/run");
    assert_int_equal(config.run.seed, 1234);
    assert_int_equal(config.model.num_key_value_heads, 4);
    assert_int_equal(config.model.head_dim, 16);
    assert_int_equal(config.model.intermediate_size, 0);
    assert_true(config.model.rms_norm_eps == 1e-6 && config.model.rope_theta == 10000);
    assert_true(config.model.initializer_range == 0.02);
    assert_false(config.model.tie_word_embeddings || config.model.use_qk_norm);
    assert_int_equal(config.routing.source, GR_SOURCE_TABLE);
    assert_int_equal(config.routing.gates, GR_GATES_FIXED);
    assert_true(config.routing.scale == 1 && config.routing.aux_loss_coef == 0 && config.routing.z_loss_coef == 0);
    assert_true(config.model.norm_topk_prob);
    assert_int_equal(config.data.n_train, 1);
    assert_string_equal(config.data.train[0].tokens, "a");
    assert_string_equal(config.data.train[0].routes, "a.routes");
    assert_true(config.data.train[0].weight == 1);
    assert_int_equal(config.data.n_valid, 0);
    assert_true(config.optimizer.lr == 0.001 && config.optimizer.lr_min == 0 && config.optimizer.eps == 1e-8);
    assert_true(config.optimizer.beta1 == 0.9 && config.optimizer.beta2 == 0.999);
    assert_true(config.optimizer.weight_decay == 0.1 && config.optimizer.clip == 1);
    assert_int_equal(config.optimizer.schedule, GR_SCHEDULE_COSINE);
    assert_int_equal(config.parallel.backend, GR_BACKEND_AUTO);
    assert_int_equal(config.parallel.comm, GR_COMM_AUTO);
    assert_int_equal(config.parallel.zero, 1);
    assert_int_equal(config.log.every_steps, 10);
}

static void test_wrong_values_name_place_key_range_and_value(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *error;
    } bad[] = {
        {"\"num_experts\": 8", "\"num_experts\": \"many\"",
            FILE_NAME ":7:20: model.num_experts: expected an integer in [1, 4096], got \"many\""},
        {"\"num_experts\": 8", "\"num_experts\": 4097", "expected an integer in [1, 4096], got 4097"},
        {"\"num_experts\": 8", "\"num_experts\": -1", "got -1"},
        {"\"num_experts\": 8", "\"num_experts\": 8.0", "without point or exponent, got 8.0"},
        {"\"num_experts\": 8", "\"num_experts\": 8e0", "without point or exponent, got 8e0"},
        {"\"num_experts\": 8", "\"num_experts\": 9223372036854775808", "got 9223372036854775808"},
        {"\"num_experts\": 8", "\"num_experts\": 4294967304", "got 4294967304"},
        {"\"steps\": 100", "\"steps\": 1e9", "train.steps: expected an integer"},
        {"\"num_experts\": 8", "\"num_experts\": null", "got null"},
        {"\"num_experts\": 8", "\"num_experts\": [8]", "got an array of 1"},
        {"\"num_experts\": 8", "\"num_experts\": {}", "got an object"},
        {"\"lr\": 0.001", "\"lr\": 0", "optimizer.lr: expected a number in (0, 10], got 0"},
        {"\"lr\": 0.001", "\"lr\": 1e999", "got 1e999"},
        {"\"lr\": 0.001", "\"lr\": \"0.001\"", "got \"0.001\""},
        {"\"lr\": 0.001", "\"lr\": 0.001, \"beta1\": 1", "optimizer.beta1: expected a number in [0, 1), got 1"},
        {"\"lr\": 0.001", "\"lr\": 0.001, \"schedule\": \"Cosine\"",
            "optimizer.schedule: expected \"cosine\" or \"wsd\" or \"linear\" or \"constant\", got \"Cosine\""},
        {"\"num_experts\": 8", "\"num_experts\": 8, \"use_qk_norm\": 1", "expected true or false, got 1"},
        {"\"out/run\"", "\"\"", "run.dir: expected a path of 1 to 1023 bytes"},
        {"\"out/run\"", "\"a\\nb\"", "without control characters"},
        {"\"out/run\"", "7", "run.dir: expected a path"},
        {"{\"dir\": \"out/run\"}", "\"out\"", "2:10: run: expected an object of keys, got \"out\""},
        {"[{\"tokens\": \"a\", \"routes\": \"a.routes\"}]", "[]", "data.train: expected an array of 1 to 64 objects"},
        {"[{\"tokens\": \"a\", \"routes\": \"a.routes\"}]", "\"a\"", "data.train: expected an array"},
        {"{\"tokens\": \"a\", \"routes\": \"a.routes\"}", "7", "10:15: data.train[0]: expected an object, got 7"},
        {"\"tokens\": \"a\"", "\"tokens\": 1", "data.train[0].tokens: expected a path"},
        {"\"tokens\": \"a\"", "\"tokens\": \"a\", \"weight\": 0",
            "data.train[0].weight: expected a number in (0, 1e+09]"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_edit_refused(bad[i].from, bad[i].to, bad[i].error);
    assert_error_contains(load("[]", NULL, 0), "[]", FILE_NAME ":1:1: expected an object of sections");
}

static void test_unknown_keys_suggest_what_was_meant(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *error;
    } bad[] = {
        {"\"num_experts\": 8", "\"num_experts\": 8, \"num_expert\": 8",
            "unknown key \"model.num_expert\": did you mean \"model.num_experts\"?"},
        {"\"lr\": 0.001", "\"lr\": 0.001, \"wramup_steps\": 1", "did you mean \"optimizer.warmup_steps\"?"},
        {"\"lr\": 0.001", "\"lr\": 0.001, \"seed\": 1", "unknown key \"optimizer.seed\": did you mean \"run.seed\"?"},
        {"\"lr\": 0.001", "\"lr\": 0.001, \"colour\": 1",
            "unknown key \"optimizer.colour\": the keys there are lr, lr_min, schedule, warmup_steps"},
        {"\"lr\": 0.001", "\"lr\": 0.001, \"LR_MIN\": 1", "unknown key \"optimizer.LR_MIN\""},
        {"\"run\": {", "\"optimiser\": 3, \"run\": {", "2:16: unknown key \"optimiser\": did you mean \"optimizer\"?"},
        {"\"run\": {", "\"zzzz\": {}, \"run\": {", "unknown key \"zzzz\": the sections are run, model, routing, data"},
        {"\"run\": {", "\"seed\": 1, \"run\": {", "unknown key \"seed\": did you mean \"run.seed\"?"},
        {"\"tokens\": \"a\"", "\"tokens\": \"a\", \"wieght\": 1",
            "unknown key \"data.train[0].wieght\": did you mean \"data.train[].weight\"?"},
        {"\"tokens\": \"a\"", "\"tokens\": \"a\", \"colour\": 1", "the keys there are tokens, routes, weight"},
        {"\"seq_len\": 128", "\"seq_len\": 128, \"train[].tokens\": 1", "unknown key \"data.train[].tokens\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_edit_refused(bad[i].from, bad[i].to, bad[i].error);
}

static void test_missing_keys_are_named_at_their_section(void **state) {
    (void)state;
    assert_edit_refused("\"moe_intermediate_size\": 32,\n", "\n",
        FILE_NAME ":3:12: missing key \"model.moe_intermediate_size\": expected an integer in [1, 1048576]");
    assert_edit_refused("\"optimizer\": {\"lr\": 0.001},\n", "\n",
        FILE_NAME ":1:1: missing key \"optimizer.lr\": expected a number in (0, 10]");
    assert_edit_refused(
        "\"tokens\": \"a\", ", "", FILE_NAME ":10:15: missing key \"data.train[0].tokens\": expected a path");
}

static void test_duplicate_keys_name_both_lines(void **state) {
    (void)state;
    assert_edit_refused("\"seq_len\": 128", "\"seq_len\": 128,\n\"seq_len\": 64",
        FILE_NAME ":12:1: duplicate key \"seq_len\": also on line 11");
}

static void test_all_errors_are_reported_at_once(void **state) {
    (void)state;
    assert_error_contains(load("{\"model\": {\"vocab_size\": 1, \"hiden_size\": 3}, \"run\": {\"seed\": -1}}", NULL, 0),
        "many", "model.vocab_size: expected");
    static const char *const also[] = {"did you mean \"model.hidden_size\"", "run.seed: expected",
        "missing key \"run.dir\"", "missing key \"data.train\"", "missing key \"train.global_batch_windows\""};
    for (size_t i = 0; i < sizeof also / sizeof *also; i++)
        assert_non_null(strstr(gr_error_text(), also[i]));
}

static void test_at_most_twenty_lines_are_reported(void **state) {
    (void)state;
    char text[4000] = "{";
    for (int i = 0; i < 60; i++)
        sprintf(text + strlen(text), "\"zzz%d\":0,", i);
    sprintf(text + strlen(text), "\"zzz\":0}");
    assert_error_contains(load(text, NULL, 0), "61 unknown and 14 missing keys", "\n... and 56 more errors");
    assert_int_equal(count_error_lines(), 20);
}

static void test_absent_malformed_and_large_files_are_refused(void **state) {
    (void)state;
    gr_err err = gr_config_load(&config, GR_CONFIG_TRAIN, "no/such/config.json", NULL, 0);
    assert_error_contains(err, "absent file", "no/such/config.json");
    assert_error_contains(load("{\"run\": {", NULL, 0), "cut short", FILE_NAME ":1:10: expected a key");
    assert_error_contains(load("", NULL, 0), "empty", FILE_NAME ":1:1:");
    char *text = malloc((1 << 20) + 2);
    assert_non_null(text);
    memset(text, ' ', (1 << 20) + 1);
    text[(1 << 20) + 1] = '\0';
    assert_error_contains(load(text, NULL, 0), "1 MiB and a byte", FILE_NAME);
    free(text);
}

/* Any damage gives a config or 64 with a reason. */
static void test_damaged_configs_are_handled(void **state) {
    (void)state;
    static const char changes[] = {'"', '{', '}', ',', '9', '-', '\x01', '\xff'};
    char text[sizeof minimal];
    for (size_t i = 0; i + 1 < sizeof minimal; i++) {
        memcpy(text, minimal, sizeof minimal);
        for (size_t j = 0; j < sizeof changes; j++) {
            text[i] = changes[j];
            gr_err err = load(text, NULL, 0);
            assert_true(err == GR_OK || (err == GR_CONFIG && strstr(gr_error_text(), FILE_NAME)));
        }
        text[i] = '\0';
        gr_err err = load(text, NULL, 0);
        assert_int_equal(err, i + 2 == sizeof minimal ? GR_OK : GR_CONFIG); /* the last byte is a newline */
    }
}

static void test_set_overrides_values_by_the_key_s_type(void **state) {
    (void)state;
    const char *const set[] = {"optimizer.lr=3e-4", "run.dir=out/b=c", "optimizer.schedule=wsd",
        "parallel.comm=\"self\"", "model.use_qk_norm=true", "train.steps= 7 ", "run.seed=9223372036854775807",
        "train.recompute=experts", "parallel.zero=0"};
    assert_int_equal(load(minimal, set, 9), GR_OK);
    assert_true(config.optimizer.lr == 3e-4);
    assert_string_equal(config.run.dir, "out/b=c");
    assert_int_equal(config.optimizer.schedule, GR_SCHEDULE_WSD);
    assert_int_equal(config.parallel.comm, GR_COMM_SELF);
    assert_string_equal(gr_config_comm_name(&config), "self");
    assert_string_equal(gr_config_backend_name(&config), "auto");
    assert_true(config.model.use_qk_norm);
    assert_int_equal(config.train.steps, 7);
    assert_true(config.run.seed == INT64_MAX);
    assert_int_equal(config.train.recompute, GR_RECOMPUTE_EXPERTS);
    assert_int_equal(config.parallel.zero, 0);
}

static void test_set_supplies_what_the_file_lacks(void **state) {
    (void)state;
    char *text = edit("\"optimizer\": {\"lr\": 0.001},", "");
    const char *const set[] = {"optimizer.lr=1"};
    assert_int_equal(load(text, set, 1), GR_OK);
    free(text);
}

static void test_set_reaches_existing_and_next_data_files(void **state) {
    (void)state;
    const char *const set[] = {"data.train[0].weight=2.5", "data.train[1].tokens=b", "data.train[1].routes=b.routes",
        "data.valid[0].tokens=v", "data.valid[0].routes=v.routes"};
    assert_int_equal(load(minimal, set, 5), GR_OK);
    assert_int_equal(config.data.n_train, 2);
    assert_string_equal(config.data.train[0].tokens, "a");
    assert_true(config.data.train[0].weight == 2.5);
    assert_string_equal(config.data.train[1].routes, "b.routes");
    assert_true(config.data.train[1].weight == 1);
    assert_int_equal(config.data.n_valid, 1);
    const char *const whole[] = {"data.train=[{\"tokens\":\"x\",\"routes\":\"y\"}]", "data.train[0].weight=3"};
    assert_int_equal(load(minimal, whole, 2), GR_OK);
    assert_string_equal(config.data.train[0].tokens, "x");
    assert_true(config.data.train[0].weight == 3);
    assert_set_refused("data.train[1].tokens=b", "--set: missing key \"data.train[1].routes\"");
    assert_set_refused("data.train[2].tokens=b", "data.train[2].tokens: expected an index up to 1, got 2");
    assert_set_refused("data.train[0].token=b", "did you mean \"data.train[].tokens\"?");
}

static void test_wrong_assignments_are_refused(void **state) {
    (void)state;
    assert_set_refused("train.recompute=all", "expected \"none\" or \"experts\" or \"block\", got \"all\"");
    assert_set_refused("optimizer.lr=abc", "--set: optimizer.lr: expected a number in (0, 10], got \"abc\"");
    assert_set_refused("optimizer.lr=", "--set: optimizer.lr: expected a number in (0, 10], got \"\"");
    assert_set_refused("optimizer.lr=0.1 0.2", "got \"0.1 0.2\"");
    assert_set_refused("optimizer.lr=inf", "got \"inf\"");
    assert_set_refused("train.steps=1e3", "without point or exponent, got 1e3");
    assert_set_refused("run.dir=", "--set: run.dir: expected a path");
    assert_set_refused("run.dir=a\xff", "--set: run.dir: expected a value in UTF-8");
    assert_set_refused("optimizer.schedule=step", "--set: optimizer.schedule: expected \"cosine\"");
    assert_set_refused("optimzer.lr=1", "--set: unknown key \"optimzer.lr\": did you mean \"optimizer.lr\"?");
    assert_edit_refused(
        "\"run\": {", "\"optimizer.lr\": 1, \"run\": {", "expected it inside the object of its section");
    assert_set_refused("optimizer={}", "optimizer: expected a key of this section, such as optimizer.lr, got");
    assert_set_refused("data.train[].weight=1", "expected KEY=VALUE");
    assert_set_refused("data.train.weight=1", "did you mean \"data.train[].weight\"?");
    assert_set_refused("run[0].dir=1", "unknown key \"run[0].dir\"");
    assert_set_refused("optimizer.lr", "got \"optimizer.lr\"");
    assert_set_refused("=1", "expected KEY=VALUE");
    assert_set_refused("", "expected KEY=VALUE");
    const char *const twice[] = {"optimizer.lr=1", "optimizer.lr_min=0", "optimizer.lr=2"};
    assert_error_contains(load(minimal, twice, 3), "twice", "--set: optimizer.lr: set twice");
}

static void test_rules_between_keys_show_the_equation_with_numbers(void **state) {
    (void)state;
    assert_edit_refused("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9",
        FILE_NAME ":7:46: model.num_experts_per_tok = 9 must be at most model.num_experts = 8");
    assert_edit_refused("\"hidden_size\": 64", "\"hidden_size\": 66", "= 66 / 4 must be an even integer");
    assert_edit_refused("\"hidden_size\": 64", "\"hidden_size\": 60", "= 60 / 4 must be an even integer");
    assert_edit_refused(
        "\"hidden_size\": 64", "\"hidden_size\": 64, \"head_dim\": 15", "model.head_dim = 15 must be even");
    assert_edit_accepted("\"hidden_size\": 64", "\"hidden_size\": 63, \"head_dim\": 32");
    assert_edit_refused("\"hidden_size\": 64", "\"hidden_size\": 64, \"num_key_value_heads\": 3",
        "model.num_attention_heads = 4 must be a multiple of model.num_key_value_heads = 3");
    assert_edit_refused("\"hidden_size\": 64", "\"hidden_size\": 64, \"first_k_dense_replace\": 1",
        "model.intermediate_size = 0, but model.first_k_dense_replace = 1");
    assert_edit_refused("\"hidden_size\": 64",
        "\"hidden_size\": 64, \"intermediate_size\": 8, \"first_k_dense_replace\": 3",
        "model.first_k_dense_replace = 3 must be at most model.num_hidden_layers = 2");
    assert_edit_refused("\"global_batch_windows\": 8", "\"global_batch_windows\": 7",
        "train.global_batch_windows = 7 must be a multiple of train.micro_batch_windows = 2");
}

static void test_rules_of_training_show_the_equation_with_numbers(void **state) {
    (void)state;
    assert_set_refused("optimizer.lr_min=1", "--set: optimizer.lr_min = 1 must be at most optimizer.lr = 0.001");
    assert_set_refused("eval.every_steps=5", "eval.every_steps = 5, but data.valid lists no files");
    assert_set_refused("parallel.expert_parallel_size=3", "= 3 must divide model.num_experts = 8");
    const char *const decay[] = {"optimizer.warmup_steps=20", "optimizer.decay_steps=10"};
    assert_error_contains(load(minimal, decay, 2), "decay", "= 20 must be at most optimizer.decay_steps = 10");
    const char *const alone[] = {"parallel.comm=self", "parallel.expert_parallel_size=2"};
    assert_error_contains(load(minimal, alone, 2), "self", "parallel.comm = \"self\" is one; use \"mpi\"");
    const char *const large[] = {
        "train.micro_batch_windows=16384", "train.global_batch_windows=16384", "data.seq_len=131072"};
    assert_error_contains(
        load(minimal, large, 3), "pairs", "16384 * 131072 * 2 = 4294967296 must be at most 2147483647");
    const char *const group[] = {"train.micro_batch_windows=1024", "train.global_batch_windows=4096",
        "data.seq_len=262144", "parallel.expert_parallel_size=4"};
    assert_error_contains(
        load(minimal, group, 4), "group", "4 * 1024 * 262144 * 2 = 2147483648 must be at most 2147483647");
}

static void test_a_wrong_value_breaks_no_rule_as_well(void **state) {
    (void)state;
    assert_edit_refused("\"num_experts\": 8", "\"num_experts\": 0", "model.num_experts: expected");
    assert_edit_refused(
        "\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "model.num_attention_heads: expected");
    assert_edit_refused(
        "\"micro_batch_windows\": 2", "\"micro_batch_windows\": 0", "train.micro_batch_windows: expected");
    assert_edit_refused("\"steps\": 100", "\"steps\": 0", "train.steps: expected");
    assert_edit_refused("\"lr\": 0.001", "\"lr\": -1", "optimizer.lr: expected");
    assert_edit_refused("{\"lr\": 0.001}", "{\"lr\": 0.001, \"lr_min\": 20}", "optimizer.lr_min: expected");
}

static void test_rules_of_ranks_show_the_equation_with_numbers(void **state) {
    (void)state;
    assert_set_accepted("parallel.expert_parallel_size=2");
    assert_int_equal(gr_config_check_ranks(&config, 2), GR_OK);
    assert_int_equal(gr_config_check_ranks(&config, 4), GR_OK);
    assert_error_contains(gr_config_check_ranks(&config, 1), "1 rank",
        "parallel.expert_parallel_size = 2 must divide the number of ranks = 1");
    assert_error_contains(gr_config_check_ranks(&config, 8), "8 ranks",
        "train.global_batch_windows = 8 must be a multiple of train.micro_batch_windows * ranks = 2 * 8 = 16; "
        "the next are 16 and 32");
    assert_int_equal(gr_config_expert_parallel(&config), 2);
    assert_set_accepted("parallel.expert_parallel_size=0");
    assert_int_equal(gr_config_expert_parallel(&config), 1);
    assert_int_equal(gr_config_check_ranks(&config, 1), GR_OK);
}

static void test_the_text_of_a_config_loads_again_as_the_same(void **state) {
    (void)state;
    const char *const set[] = {"optimizer.lr=0.1000000000000000055", "optimizer.eps=1.2345678901234567e-9",
        "run.dir=\"q\\\"\\\\\\u00e9/x\"", "optimizer.schedule=linear", "data.train[0].weight=0.3333333333333333",
        "data.train[1].tokens=b", "data.train[1].routes=c", "data.valid[0].tokens=v", "data.valid[0].routes=w",
        "model.tie_word_embeddings=true", "run.seed=9223372036854775807", "model.rms_norm_eps=5e-324"};
    assert_int_equal(load(minimal, set, 12), GR_OK);
    gr_config *first = malloc(sizeof *first);
    assert_non_null(first);
    memcpy(first, &config, sizeof config);
    char *text, *again;
    assert_int_equal(gr_config_text(first, &text), GR_OK);
    if (load(text, NULL, 0))
        fail_msg("%s\nrefused: %s", text, gr_error_text());
    assert_memory_equal(&config, first, sizeof config);
    assert_int_equal(gr_config_text(&config, &again), GR_OK);
    assert_string_equal(again, text);
    free(again);
    free(text);
    free(first);
}

static void test_every_key_is_printed_with_its_range(void **state) {
    (void)state;
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    assert_non_null(out);
    gr_config_print_keys(out);
    assert_int_equal(fclose(out), 0);
    assert_non_null(strstr(text, "| `model.num_experts` | train | integer | experts | required | [1, 4096] | "));
    assert_non_null(strstr(text, "| `optimizer.beta1` | all | number |  | `0.9` | [0, 1) | "));
    assert_non_null(strstr(text, "| `log.every_steps` | all | integer | steps | `10` | "));
    assert_null(strstr(text, "(null)"));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_absent_keys_take_their_defaults),
        cmocka_unit_test(test_wrong_values_name_place_key_range_and_value),
        cmocka_unit_test(test_unknown_keys_suggest_what_was_meant),
        cmocka_unit_test(test_missing_keys_are_named_at_their_section),
        cmocka_unit_test(test_duplicate_keys_name_both_lines),
        cmocka_unit_test(test_all_errors_are_reported_at_once),
        cmocka_unit_test(test_at_most_twenty_lines_are_reported),
        cmocka_unit_test(test_absent_malformed_and_large_files_are_refused),
        cmocka_unit_test(test_damaged_configs_are_handled),
        cmocka_unit_test(test_set_overrides_values_by_the_key_s_type),
        cmocka_unit_test(test_set_supplies_what_the_file_lacks),
        cmocka_unit_test(test_set_reaches_existing_and_next_data_files),
        cmocka_unit_test(test_wrong_assignments_are_refused),
        cmocka_unit_test(test_rules_between_keys_show_the_equation_with_numbers),
        cmocka_unit_test(test_rules_of_training_show_the_equation_with_numbers),
        cmocka_unit_test(test_a_wrong_value_breaks_no_rule_as_well),
        cmocka_unit_test(test_rules_of_ranks_show_the_equation_with_numbers),
        cmocka_unit_test(test_the_text_of_a_config_loads_again_as_the_same),
        cmocka_unit_test(test_every_key_is_printed_with_its_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
