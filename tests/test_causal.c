/* For causal Grouters, however made and used, no bit of a route depends on a later token; bidirectional ones are found
 * out. Routes are asked for where `route` and online routing ask for them. Distilled and tuned ones: unit_leak.sh. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>
#include <unistd.h>

#include "check.h"
#include "grouter/fold.h"
#include "grouter/router.h"
#include "grouter_case.h"

static gr_backend *backend;

static int open_all(void **state) {
    (void)state;
    check_set_threads(1);
    return gr_backend_open(&backend, "cpu", GR_F32);
}

static int close_all(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

enum { K = 2, T = 41, LABELS = 6 };
#define GROUTER_PATH "causal_grouter.tmp"

static void make_random(gr_grouter *g, const gr_model_config *network) {
    gr_grouter_spec spec = {.network = *network, .K = K, .scale = 2.5f};
    spec.network.num_labels = LABELS;
    assert_int_equal(gr_grouter_make(g, &spec), GR_OK);
    assert_int_equal(gr_params_init(&g->params, 5, gr_weights_whole(&g->params, g->weights)), GR_OK);
    const gr_param *bias = gr_params_find(&g->params, "score.bias");
    for (int e = 0; e < LABELS; e++)
        g->weights[bias->offset + e] = 0.3f * (float)(e % 3);
}

/* As the command fold makes it: score rows are added in groups. */
static void fold_to(gr_grouter *folded, const gr_grouter *g, uint32_t E_T) {
    gr_mapping mapping;
    const gr_grouping how = {
        .method = GR_FOLD_RANDOM, .fold = GR_FOLD_SUM, .E_S = LABELS, .E_T = E_T, .seed = 3, .router = g->hash};
    assert_int_equal(gr_mapping_group(&mapping, &how), GR_OK);
    gr_grouter_spec spec = g->spec;
    spec.network.num_labels = (int)E_T;
    assert_int_equal(gr_grouter_make(folded, &spec), GR_OK);
    for (int i = 0; i < g->params.n; i++) {
        const gr_param *from = &g->params.list[i], *to = &folded->params.list[i];
        float *out = folded->weights + to->offset;
        if (from->kind == GR_PARAM_SCORE)
            gr_mapping_fold(&mapping, (uint32_t)from->dim[1], g->weights + from->offset, out);
        else if (strcmp(from->name, "score.bias") == 0)
            gr_mapping_fold(&mapping, 1, g->weights + from->offset, out);
        else
            memcpy(out, g->weights + from->offset, (size_t)gr_param_size(from) * sizeof *out);
    }
    gr_mapping_close(&mapping);
}

typedef struct routed {
    uint16_t ids[T * K];
    float gates[T * K], scores[T * LABELS];
} routed;

static void route(gr_router *r, const uint32_t *token, routed *out) {
    assert_int_equal(gr_router_route(r, 0, T, token, out->ids, out->gates), GR_OK);
    memcpy(out->scores, gr_router_scores(r), (size_t)T * gr_router_get(r)->E * sizeof(float));
}

/* Documents of many lengths; tokens 3 end them. */
static void draw_window(uint32_t *token) {
    for (uint32_t t = 0; t <= T; t++)
        token[t] = gr_random_below(8, 1, t, 5) == 0 ? 3 : gr_random_below(8, 2, t, 19);
}

/* Changes every token in turn, also into one that ends a document; returns rows before it that differ in a bit. */
static int count_changed(gr_router *r) {
    static routed before, after;
    uint32_t token[T + 1], E = gr_router_get(r)->E;
    int n = 0;
    draw_window(token);
    route(r, token, &before);
    for (uint32_t j = 1; j < T; j++)
        for (uint32_t replacement = 3; replacement <= 10; replacement += 7) {
            uint32_t saved = token[j];
            token[j] = replacement;
            route(r, token, &after);
            for (uint32_t t = 0; t < j; t++)
                n += memcmp(before.ids + t * K, after.ids + t * K, K * sizeof(uint16_t)) != 0 ||
                     memcmp(before.gates + t * K, after.gates + t * K, K * sizeof(float)) != 0 ||
                     memcmp(before.scores + t * E, after.scores + t * E, E * sizeof(float)) != 0;
            token[j] = saved;
        }
    return n;
}

/* Each way to use it. */
static void check_router_file(bool sees_ahead, const char *what) {
    for (int use = 0; use < 4; use++) {
        gr_router *r;
        assert_int_equal(gr_router_open(&r, GROUTER_PATH), GR_OK);
        if (use & 1)
            assert_int_equal(gr_router_use_bias(r), GR_OK);
        if (use & 2)
            assert_int_equal(gr_router_use_threshold(r, 1.3f), GR_OK);
        assert_int_equal(gr_router_prepare(r, backend, T), GR_OK);
        int n = count_changed(r);
        if ((n > 0) != sees_ahead)
            fail_msg(
                "%s, mask %s, use %d: %d earlier rows changed", what, gr_mask_name(gr_router_get(r)->mask), use, n);
        gr_router_close(r);
    }
    unlink(GROUTER_PATH);
}

static void check_grouter(const gr_model_config *network) {
    gr_grouter g, folded;
    bool ahead = gr_mask_sees_ahead(network->mask);
    assert_int_equal(gr_mask_warning(network->mask) != NULL, ahead);
    make_random(&g, network);
    assert_int_equal(gr_grouter_save(&g, GROUTER_PATH), GR_OK);
    check_router_file(ahead, "random");
    fold_to(&folded, &g, 3);
    assert_int_equal(gr_grouter_save(&folded, GROUTER_PATH), GR_OK);
    check_router_file(ahead, "folded");
    gr_grouter_close(&folded);
    gr_grouter_close(&g);
}

static void a_changed_token_leaves_every_earlier_route_of_a_causal_grouter(void **state) {
    (void)state;
    check_grouter(&grouter_case_linear);
    check_grouter(&grouter_case_residual_linear);
    for (int mask = GR_MASK_CAUSAL; mask < GR_N_MASK; mask++) { /* the bidirectional ones must be found out */
        gr_model_config c = grouter_case_attention;
        c.mask = (gr_mask)mask;
        check_grouter(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_changed_token_leaves_every_earlier_route_of_a_causal_grouter),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
