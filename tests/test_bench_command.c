/* The benchmarks as commands: what they write is JSON with every key and CSV with as many cells in every line, and data
 * that were made for a step are gone afterwards. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "grouter/json.h"

#define JSON "test_bench_command.json"
#define CSV "test_bench_command.csv"
#define CONFIG "test_bench_command.config.json"
#define RUN "test_bench_command.run"
enum { ARGS_MAX = 32 };

static gr_err bench(const char *arguments) {
    char text[512], *argv[ARGS_MAX] = {"bench"};
    int argc = 1;
    snprintf(text, sizeof text, "%s", arguments);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    return gr_cmd_bench.run(argc, argv);
}

/* ---------------------------------------------------------------- what was written */

static gr_json *read_json(void) {
    char *text;
    size_t n;
    gr_json *doc;
    assert_int_equal(gr_file_read(JSON, 1 << 20, GR_DATA, &text, &n), GR_OK);
    assert_int_equal(gr_json_parse(&doc, text, n, JSON, 1 << 20, 8, GR_DATA), GR_OK);
    free(text);
    return doc;
}

static double number_of(const gr_json_node *object, const char *key) {
    double x = NAN;
    if (!gr_json_f64(gr_json_get(object, key), &x))
        fail_msg("expected a number as %s", key);
    return x;
}

/* Keys of a space-separated list. */
static void has_keys(const gr_json_node *object, const char *keys) {
    char text[1024];
    snprintf(text, sizeof text, "%s", keys);
    int n = 0;
    for (char *key = strtok(text, " "); key; key = strtok(NULL, " "), n++)
        if (!gr_json_get(object, key))
            fail_msg("no key %s in %s", key, JSON);
    if (object->n_child != n)
        fail_msg("expected %d keys in %s, got %d", n, JSON, object->n_child);
}

static int count_cells(const char *line) {
    int n = 1;
    bool quoted = false;
    for (const char *c = line; *c && *c != '\n'; c++) {
        quoted ^= *c == '"';
        n += *c == ',' && !quoted;
    }
    return n;
}

static void check_csv(int n_row, int n_cell) {
    char *text;
    size_t n;
    int lines = 0;
    assert_int_equal(gr_file_read(CSV, 1 << 20, GR_DATA, &text, &n), GR_OK);
    for (const char *line = text; *line; line = strchr(line, '\n') + 1, lines++)
        assert_int_equal(count_cells(line), n_cell);
    assert_int_equal(lines, n_row + 1);
    free(text);
}

/* ---------------------------------------------------------------- kernels, layer */

static void kernels_write_json_and_csv(void **state) {
    (void)state;
    assert_int_equal(
        bench("kernels --only rope,gemm --tokens 32 --repeat 2 --seed 4 --json " JSON " --csv " CSV), GR_OK);
    gr_json *doc = read_json();
    const gr_json_node *root = gr_json_root(doc), *kernels = gr_json_get(root, "kernels");
    has_keys(root, "bench backend dtype shape tokens seq_len ranks threads seed peak_flops_per_s copy_bytes_per_s "
                   "launch_us kernels");
    assert_int_equal(kernels->n_child, 10);
    for (const gr_json_node *k = kernels->child; k; k = k->next) {
        has_keys(k, "op variant sizes median_us low_us high_us best_us runs flops bytes tflops_per_s gb_per_s share "
                    "share_of error best_tflops_per_s flops_formula bytes_formula");
        const double s = number_of(k, "median_us") * 1e-6;
        assert_true(fabs(number_of(k, "tflops_per_s") * s * 1e12 / fmax(1, number_of(k, "flops")) - 1) < 1e-6 ||
                    number_of(k, "flops") == 0);
        assert_true(fabs(number_of(k, "gb_per_s") * s * 1e9 / number_of(k, "bytes") - 1) < 1e-6);
    }
    assert_true(number_of(root, "tokens") == 32 && number_of(root, "seq_len") == 32 && number_of(root, "seed") == 4);
    gr_json_close(doc);
    check_csv(10, 12 + 18);
}

static void a_layer_writes_json_and_csv(void **state) {
    (void)state;
    assert_int_equal(bench("layer --width 32 --expert-width 24 --experts 8 --top-k 2 --tokens 64 --repeat 2 --cv 0.4 "
                           "--json " JSON " --csv " CSV),
        GR_OK);
    gr_json *doc = read_json();
    const gr_json_node *root = gr_json_root(doc), *parts = gr_json_get(root, "parts");
    has_keys(root,
        "bench backend expert_kernels dtype ranks threads shape tokens_per_rank width expert_width experts top_k load "
        "routes repeats seed load_cv load_max imbalance pairs rows_sent peak_flops_per_s bytes bytes_kept plan_ms "
        "error norm_out norm_dx norm_dw13 norm_dw2 parts");
    assert_string_equal(gr_json_get(root, "load")->string, "skewed");
    assert_int_equal(parts->n_child, 3);
    for (const gr_json_node *p = parts->child; p; p = p->next)
        has_keys(p, "part median_ms low_ms high_ms flops tflops_per_s share");
    const gr_json_node *both = parts->child->next->next; /* 18 x 128 x 32 x 24 */
    assert_true(number_of(both, "flops") == 1769472);
    assert_true(fabs(number_of(both, "tflops_per_s") * number_of(both, "median_ms") * 1e9 / 1769472 - 1) < 1e-6);
    gr_json_close(doc);
    check_csv(3, 30 + 7);
}

/* ---------------------------------------------------------------- step */

static void write_config(void) {
    FILE *f = fopen(CONFIG, "w");
    assert_non_null(f);
    fputs("{\"run\": {\"dir\": \"" RUN "\"}, \"model\": {\"vocab_size\": 97, \"hidden_size\": 16, "
          "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"head_dim\": 8, \"moe_intermediate_size\": 8, "
          "\"num_experts\": 4, \"num_experts_per_tok\": 2}, \"data\": {\"train\": [{\"tokens\": \"absent\", "
          "\"routes\": \"absent.routes\"}], \"valid\": [{\"tokens\": \"absent\", \"routes\": \"absent.routes\"}], "
          "\"seq_len\": 16}, \"optimizer\": {\"lr\": 1e-3}, \"train\": {\"steps\": 1000, \"micro_batch_windows\": 2, "
          "\"global_batch_windows\": 4}}\n",
        f);
    assert_int_equal(fclose(f), 0);
}

static void a_step_writes_json_and_csv_and_leaves_nothing_else(void **state) {
    (void)state;
    char folder[64];
    write_config();
    assert_int_equal(bench("step " CONFIG " --steps 3 --warm 1 --json " JSON " --csv " CSV), GR_OK);
    gr_json *doc = read_json();
    const gr_json_node *root = gr_json_root(doc), *phases = gr_json_get(root, "phases");
    has_keys(root,
        "bench config backend dtype ranks threads expert_parallel synthetic steps parameters active "
        "flops_per_token tokens_per_step tokens_per_s model_flops_per_s peak_flops_per_s share bytes_measured "
        "bytes_predicted bytes_sent loss_first loss_last phases");
    /* active: 2 (4 x 2 x 8 x 16 + 2 x 3 x 16 x 8) + 97 x 16; attention 12 L H head_dim T / 2 */
    assert_true(number_of(root, "active") == 2 * (1024 + 768) + 1552);
    assert_true(number_of(root, "flops_per_token") == 6 * 5136 + 12 * 2 * 16 * 8);
    assert_true(number_of(root, "tokens_per_step") == 64 && number_of(root, "synthetic") == 1);
    assert_true(fabs(number_of(root, "tokens_per_s") * number_of(phases->child, "median_ms") / 64e3 - 1) < 1e-6);
    assert_true(fabs(number_of(root, "loss_first") - log(97)) < 0.5); /* of initial weights: hardly anything is known */
    assert_int_equal(phases->n_child, 7);
    assert_string_equal(gr_json_get(phases->child, "phase")->string, "step");
    gr_json_close(doc);
    check_csv(7, 22 + 4);
    snprintf(folder, sizeof folder, RUN ".bench-%ld", (long)getpid());
    assert_false(gr_path_exists(folder) || gr_path_exists(RUN) || gr_path_exists("absent.bin"));
}

/* ---------------------------------------------------------------- what is refused */

static void expect_refused(const char *arguments, gr_err code, const char *part) {
    assert_int_equal(bench(arguments), code);
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static void wrong_arguments_are_refused(void **state) {
    (void)state;
    expect_refused("kernals", GR_USAGE, "did you mean kernels?");
    expect_refused("kernels --shape small --config x", GR_USAGE, "expected --shape or --config, got both");
    expect_refused("layer --cv 0.1 --hot 2", GR_USAGE, "expected one of --cv, --hot and --routes, got --cv and --hot");
    expect_refused("layer --tokens 8 --expert-kernels mna", GR_CONFIG, "expected auto, cublas, mma or wgmma");
    expect_refused("layer --routes x --top-k 2", GR_USAGE, "--top-k: expected only without --routes");
    expect_refused("step", GR_USAGE, "expected a config file, got none");
    expect_refused("step " CONFIG " --steps 0", GR_USAGE, "--steps: expected an integer in [1, 100000]");
    expect_refused("layer --json " JSON " --csv " JSON, GR_USAGE, "expected another file than that of --json");
}

static int remove_files(void **state) {
    (void)state;
    unlink(JSON);
    unlink(CSV);
    unlink(CONFIG);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_write_json_and_csv),
        cmocka_unit_test(a_layer_writes_json_and_csv),
        cmocka_unit_test(a_step_writes_json_and_csv_and_leaves_nothing_else),
        cmocka_unit_test(wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, remove_files);
}
