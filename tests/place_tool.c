/* place_tool.c: for scripts: a placement made without `place`, so that they test how it is used and nothing else.
 * place_tool OUT NODES RANKS_PER_NODE SEED equal|free VOCAB TOKENS ROUTES [TOKENS ROUTES]... */
#include "placement_fixture.h"

enum { TABLES_MAX = 8 };

static uint32_t number(const char *text) {
    return (uint32_t)strtoul(text, NULL, 10);
}

int main(int argc, char **argv) {
    const char *tokens[TABLES_MAX], *routes[TABLES_MAX];
    int n = (argc - 7) / 2;
    if (argc < 9 || n > TABLES_MAX || (argc - 7) % 2) {
        fprintf(stderr, "place_tool OUT NODES RANKS_PER_NODE SEED equal|free VOCAB TOKENS ROUTES...\n");
        return GR_USAGE;
    }
    for (int i = 0; i < n; i++) {
        tokens[i] = argv[7 + 2 * i];
        routes[i] = argv[8 + 2 * i];
    }
    const placement_fixture f = {.routes = routes,
        .tokens = tokens,
        .n_table = n,
        .n_node = number(argv[2]),
        .node_ranks = number(argv[3]),
        .seed = number(argv[4]),
        .equal = strcmp(argv[5], "equal") == 0,
        .n_vocab = number(argv[6])};
    gr_placement p;
    gr_log_set(GR_LOG_QUIET);
    placement_fixture_make(&p, &f);
    gr_err e = gr_placement_write(&p, argv[1]);
    gr_placement_close(&p);
    if (e)
        gr_error_print(stderr, e);
    return (int)e;
}
