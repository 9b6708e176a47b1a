/* How alike two routers are, as a few lines for people. */
#include "fidelity.h"

static void print_mean(const char *name, double first, double n_first, double last, double n_last) {
    printf("  %-28s", name);
    if (n_first > 0)
        printf("%.6f -> ", first / n_first);
    printf("%.6f\n", last / n_last);
}

void gr_fidelity_print(const gr_fidelity *first, const gr_fidelity *last, const char *against) {
    if (!(last->n_token > 0))
        return;
    printf("against %s, on %.0f held-out tokens:\n", against, last->n_token);
    print_mean("divergence (nats per token)", first->divergence, first->n_token, last->divergence, last->n_token);
    print_mean("same experts", first->exact, first->n_token, last->exact, last->n_token);
    print_mean("experts in common", first->overlap, first->n_token, last->overlap, last->n_token);
    print_mean("cosine of gates", first->cosine, first->n_token, last->cosine, last->n_token);
}
