/* place: where experts live and which rank reads which window, from route tables. */
#include "cmd/cmd.h"
#include "cmd/placed.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { TABLES_MAX = 64, SAMPLE_DEFAULT = 65536 };
static const double ENTROPY_DEFAULT = 6.85 / 7, LOAD_DEFAULT = 1.05;

/* ---------------------------------------------------------------- arguments */

enum { ROUTES, NODES, RANKS, OUT, METHOD, GRANULARITY, ENTROPY, LOAD_MAX, SAMPLE, SEED, N_OPTION };
static const char *const option_name[N_OPTION] = {"--routes", "--nodes", "--ranks-per-node", "--out", "--method",
    "--granularity", "--entropy", "--load-max", "--sample", "--seed"};

typedef struct place_args {
    const char *text[N_OPTION]; /* as given; ROUTES: the first */
    const char *routes[TABLES_MAX];
    int n_routes;
    gr_place_options o;
} place_args;

static gr_err need(const place_args *a, int option) {
    if (a->text[option])
        return GR_OK;
    return gr_fail(GR_USAGE, "place: expected %s, got none; see --help", option_name[option]);
}

static gr_err parse_u64(const place_args *a, int option, uint64_t min, uint64_t max, uint64_t *out) {
    return a->text[option] ? gr_option_u64(option_name[option], a->text[option], min, max, out) : GR_OK;
}

static gr_err parse_f64(const place_args *a, int option, double min, double max, double *out) {
    return a->text[option] ? gr_option_f64(option_name[option], a->text[option], min, max, out) : GR_OK;
}

/* One of two names: 0 or 1. */
static gr_err parse_name(const place_args *a, int option, const char *first, const char *second, int *out) {
    const char *text = a->text[option];
    *out = text && strcmp(text, second) == 0;
    if (!text || *out || strcmp(text, first) == 0)
        return GR_OK;
    return gr_fail(GR_USAGE, "%s: expected %s or %s, got \"%.60s\"; choose one of the two", option_name[option], first,
        second, text);
}

static gr_err parse_values(place_args *a) {
    uint64_t nodes = 1, ranks = 0;
    int method, grain;
    a->o.entropy_max = ENTROPY_DEFAULT;
    a->o.load_max = LOAD_DEFAULT;
    a->o.n_sample = SAMPLE_DEFAULT;
    GR_TRY(parse_u64(a, NODES, 1, UINT32_MAX, &nodes));
    GR_TRY(parse_u64(a, RANKS, 1, UINT32_MAX, &ranks));
    GR_TRY(
        parse_name(a, METHOD, gr_place_method_name(GR_PLACE_BALANCED), gr_place_method_name(GR_PLACE_PAPER), &method));
    GR_TRY(parse_name(
        a, GRANULARITY, gr_place_grain_name(GR_PLACE_BY_RANK), gr_place_grain_name(GR_PLACE_BY_NODE), &grain));
    GR_TRY(parse_f64(a, ENTROPY, 0, 1, &a->o.entropy_max));
    GR_TRY(parse_f64(a, LOAD_MAX, 1, GR_PLACEMENT_RANKS_MAX, &a->o.load_max));
    GR_TRY(parse_u64(a, SAMPLE, 1, UINT32_MAX, &a->o.n_sample));
    GR_TRY(parse_u64(a, SEED, 0, UINT64_MAX, &a->o.seed));
    a->o.n_node = (uint32_t)nodes;
    a->o.node_ranks = (uint32_t)ranks;
    a->o.method = (gr_place_method)method;
    a->o.grain = (gr_place_grain)grain;
    if (a->text[LOAD_MAX] && a->o.method == GR_PLACE_PAPER)
        return gr_fail(GR_USAGE, "--load-max: expected only with --method balanced, got it with paper; leave it out");
    return GR_OK;
}

static gr_err parse(int argc, char **argv, place_args *a) {
    gr_option options[N_OPTION];
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    options[ROUTES] =
        (gr_option){.name = option_name[ROUTES], .value = a->routes, .max = TABLES_MAX, .n_seen = &a->n_routes};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, NULL, 0, NULL));
    a->text[ROUTES] = a->routes[0];
    GR_TRY(need(a, ROUTES));
    GR_TRY(need(a, RANKS));
    GR_TRY(need(a, OUT));
    return parse_values(a);
}

/* ---------------------------------------------------------------- the result */

static void print_load(const gr_placement *p) {
    const double load = p->score[p->n_score - 1].load;
    if (p->method == GR_PLACE_PAPER)
        printf("load: not capped; no placement has a fullest rank below %.4f of the mean\n", p->load_bound);
    else if (load <= p->load_max)
        printf(
            "load: within %.4g of the mean; no placement has a fullest rank below %.4f\n", p->load_max, p->load_bound);
    else
        printf("load: %.4f of the mean is the least that was reached, above the %.4g asked for; no placement has a "
               "fullest rank below %.4f\n",
            load, p->load_max, p->load_bound);
}

static void print_result(const gr_placement *p, const char *path, double took_s) {
    uint64_t n_window = 0;
    char took[16];
    for (int i = 0; i < p->n_table; i++)
        n_window += p->table[i].n_window;
    printf("%s: E = %" PRIu32 ", K = %" PRIu32 ", %" PRIu32 " ranks (%" PRIu32 " x %" PRIu32 "), %s by %s\n", path,
        p->E, p->K, p->R, p->n_node, p->node_ranks, gr_place_method_name(p->method), gr_place_grain_name(p->grain));
    printf("windows: %" PRIu64 " of %" PRIu32 " tokens in %d table%s\n", n_window, p->T, p->n_table,
        p->n_table > 1 ? "s" : "");
    gr_placed_print_scores(p);
    print_load(p);
    const double rows = p->score[p->n_score - 1].rows, usual = p->score[0].rows;
    if (usual > 0)
        printf("rows: %.1f %% fewer than round-robin\n", 100 * (1 - rows / usual));
    printf("placement hash: %016" PRIx64 "\n", gr_placement_hash(p));
    printf("placed in %s\n", gr_duration_text(took_s, took));
}

/* ---------------------------------------------------------------- the command */

static gr_err open_tables(const place_args *a, gr_routes **table) {
    for (int i = 0; i < a->n_routes; i++) {
        GR_TRY(gr_output_check(a->text[OUT], a->routes[i]));
        GR_TRY(gr_routes_open(&table[i], a->routes[i]));
    }
    return GR_OK;
}

/* A place where nothing can be written is found before the work, not after it. */
static gr_err check_output(const char *path) {
    gr_out *o = NULL;
    GR_TRY(gr_out_open(&o, path));
    gr_out_close(o);
    return GR_OK;
}

static gr_err make(const place_args *a, gr_placement *p) {
    const double start_s = gr_time_s();
    GR_TRY(check_output(a->text[OUT]));
    GR_TRY(gr_place(&a->o, p));
    GR_TRY(gr_placement_write(p, a->text[OUT]));
    print_result(p, a->text[OUT], gr_time_s() - start_s);
    return GR_OK;
}

static gr_err run(int argc, char **argv) {
    place_args a = {0};
    gr_routes *table[TABLES_MAX] = {0};
    gr_placement p = {0};
    GR_TRY(parse(argc, argv, &a));
    gr_err e = open_tables(&a, table);
    a.o.table = table;
    a.o.n_table = a.n_routes;
    if (!e)
        e = make(&a, &p);
    gr_placement_close(&p);
    for (int i = 0; i < TABLES_MAX; i++)
        gr_routes_close(table[i]);
    return e;
}

const gr_command gr_cmd_place = {
    .name = "place",
    .summary = "which rank holds which expert and reads which window",
    .help =
        "usage: grouter-train place --routes TABLE [--routes MORE]... --ranks-per-node P [--nodes N] --out FILE\n"
        "                           [--method balanced|paper] [--granularity rank|node] [--load-max X] [--entropy X]\n"
        "                           [--sample N] [--seed S]\n"
        "\n"
        "Decides from route tables which of N x P ranks holds which experts, equally many each, and which rank reads\n"
        "which window, so that few rows travel: a row is a token sent to a rank that has one or more of its experts.\n"
        "Prints, over all windows, rows, expert pairs and rows between nodes per token, and the fullest rank's "
        "experts'\n"
        "pairs (load) and windows over the mean, of other ways to place too. Every record is verified.\n"
        "\n"
        "  --routes TABLE           route table; repeatable: tables of one router, E, K and T\n"
        "  --ranks-per-node P       ranks on each node; N x P divides the number of experts\n"
        "  --nodes N                nodes (default 1); rank r is on node r / P\n"
        "  --method balanced|paper  balanced (default): fewest rows with equally many windows on every rank and its\n"
        "                           load capped; paper: clusters of windows, the experts that fit them best, and each\n"
        "                           window where most of its tokens have an expert: nothing is capped\n"
        "  --granularity rank|node  what clusters are made for (default rank). node: first for nodes; paper: experts\n"
        "                           and windows of a node go round its ranks; balanced: fewest rows between nodes\n"
        "                           first, then between ranks\n"
        "  --load-max X             of the fullest rank over the mean, 1 or more (default 1.05); if no placement that\n"
        "                           is found has less, the least that is found, said so\n"
        "  --entropy X              windows whose experts have a higher entropy, as a share of log2 E, are left out "
        "of\n"
        "                           the clusters (default 0.97857, the paper's 6.85 of 7 bits)\n"
        "  --sample N               windows behind clusters and search (default 65536); figures are of all windows\n"
        "  --seed S                 of the sample, the clusters and the random placement (default 0)\n"
        "  --out FILE               written complete or not at all\n"
        "\n"
        "example:\n"
        "  grouter-train place --routes data/train.routes --ranks-per-node 4 --out data/train.placement\n"
        "  grouter-train inspect data/train.placement --svg placement.svg\n",
    .run = run,
};
