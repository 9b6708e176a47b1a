/* routes_tool.c: for scripts and measurements: a route table with structure.
 *   routes_tool OUT WINDOWS TOKENS_PER_WINDOW EXPERTS TOP_K SEED [HOT]
 * HOT: share of tokens that have expert 0 whatever their topic. */
#include "place_fixture.h"

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8)
        return 2;
    const topic_shape s = {.n_window = strtoull(argv[2], NULL, 10),
        .T = (uint32_t)strtoul(argv[3], NULL, 10),
        .E = (uint32_t)strtoul(argv[4], NULL, 10),
        .K = (uint32_t)strtoul(argv[5], NULL, 10),
        .seed = strtoull(argv[6], NULL, 10),
        .n_topic = 24,
        .hot = argc == 8 ? strtod(argv[7], NULL) : 0};
    const gr_err e = topic_table(argv[1], &s);
    if (e)
        gr_error_print(stderr, e);
    return e;
}
