/* The report of a dry run says how many bytes a step sends over each kind of link. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "train/dry_run.h"

static const gr_config config = {
    .model =
        {
            .vocab_size = 61,
            .hidden_size = 24,
            .num_hidden_layers = 3,
            .num_attention_heads = 4,
            .num_key_value_heads = 2,
            .head_dim = 6,
            .intermediate_size = 20,
            .moe_intermediate_size = 10,
            .num_experts = 8,
            .num_experts_per_tok = 2,
            .first_k_dense_replace = 1,
        },
    .data = {.seq_len = 16},
    .train = {.steps = 1, .micro_batch_windows = 2, .global_batch_windows = 8},
    .parallel = {.expert_parallel_size = 4},
};

/* 100 rows of 1 KiB in 8 transfers, 25 of them to ranks of other nodes. */
static gr_dry_report report(int node_ranks, double rows_between) {
    return (gr_dry_report){.config = &config,
        .n_rank = 4,
        .R_ep = 4,
        .node_ranks = node_ranks,
        .backend = "cpu",
        .dtype = "F32",
        .exact = true,
        .rows = 100,
        .rows_between = rows_between,
        .row_bytes = 1024,
        .weight_bytes = 4,
        .update = {.gradients = 1024, .weights = 2048}};
}

static void expect_lines(const gr_dry_report *r, const char *const *line, int n) {
    char *text = NULL;
    size_t n_byte;
    FILE *out = open_memstream(&text, &n_byte);
    assert_non_null(out);
    gr_dry_report_print(r, out);
    fclose(out);
    for (int i = 0; i < n; i++)
        if (!strstr(text, line[i]))
            fail_msg("expected \"%s\" in:\n%s", line[i], text);
    free(text);
}

static void rows_are_shown_by_link(void **state) {
    (void)state;
    gr_dry_report two = report(2, 25), one = report(4, 0), none = report(1, 100);
    static const char *const on_two[] = {
        "\n  dispatch and combine             800.00 KiB  from the route tables: 100 rows x 1024 bytes x 8 transfers",
        "\n    within a node                  600.00 KiB  2 ranks of a group on a node\n",
        "\n    between nodes                  200.00 KiB  2 nodes\n",
        "\n  gradients and weights              3.00 KiB  each element once to its sum (4 bytes), once back (4)\n"};
    static const char *const on_one[] = {
        "\n    within a node                  800.00 KiB  4 ranks of a group on a node\n",
        "\n    between nodes                    0.00 KiB  1 node: no placement says otherwise\n"};
    static const char *const on_none[] = {
        "\n    within a node                    0.00 KiB  1 rank of a group on a node\n",
        "\n    between nodes                  800.00 KiB  4 nodes\n"};
    expect_lines(&two, on_two, 4);
    expect_lines(&one, on_one, 2);
    expect_lines(&none, on_none, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_shown_by_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
