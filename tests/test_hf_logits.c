/* The model on Hugging Face's weights against Hugging Face's own arithmetic: logits of every router and of the head. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

#include "check.h"
#include "hf_fixture.h"
#include "model/internal.h"

#define BOUND 1e-5 /* norm-wise, both sides in fp32 */

typedef struct expected {
    gr_safetensors *file;
    int64_t B, T, N;
    const uint8_t *token;        /* i32 [B,T] */
    const uint8_t *router, *out; /* f32 [L',N,E], [N,V] */
} expected;

static void expected_open(expected *x, const char *folder) {
    char path[HF_PATH_MAX];
    snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    assert_int_equal(gr_safetensors_open(&x->file, path), GR_OK);
    const gr_tensor *token = gr_safetensors_find(x->file, "token");
    assert_true(token && token->dtype == GR_I32 && token->n_dim == 2);
    x->B = token->dim[0];
    x->T = token->dim[1];
    x->N = x->B * x->T;
    x->token = token->data;
    x->router = gr_safetensors_find(x->file, "router_logits")->data;
    x->out = gr_safetensors_find(x->file, "logits")->data;
}

static double *floats(const uint8_t *p, int64_t n) {
    double *d = malloc((size_t)n * sizeof *d);
    assert_non_null(d);
    for (int64_t i = 0; i < n; i++) {
        gr_span s = {p + 4 * i, 4};
        float f;
        assert_true(gr_take_f32(&s, &f));
        d[i] = (double)f;
    }
    return d;
}

/* The routers keep p = softmax(l) and logsumexp(l). */
static void compare_routers(const gr_model *m, const expected *x, const char *name) {
    int64_t n = x->N * m->config.num_experts;
    float *logits = check_poisoned(n);
    for (int l = m->config.first_k_dense_replace; l < m->config.num_hidden_layers; l++) {
        const router_saved *r = router_of(m, l);
        for (int64_t i = 0; i < n; i++)
            logits[i] = logf(r->p[i]) + r->lse[i / m->config.num_experts];
        double *theirs = floats(x->router + 4 * (l - m->config.first_k_dense_replace) * n, n);
        double error = check_error(n, logits, theirs);
        free(theirs);
        if (!(error <= BOUND))
            fail_msg("%s: router of layer %d: error %g", name, l, error);
    }
    free(logits);
}

/* The head's logits never stay in memory: they are made again from its input and weights. */
static void compare_head(const gr_model *m, const expected *x, const char *name) {
    int64_t V = m->config.vocab_size, D = m->D;
    float *logits = check_poisoned(x->N * V);
    const float *final = m->final, *w = m->weights.at[0] + m->head;
    for (int64_t i = 0; i < x->N; i++)
        for (int64_t v = 0; v < V; v++) {
            double sum = 0;
            for (int64_t d = 0; d < D; d++)
                sum += (double) final[i * D + d] * (double)w[v * D + d];
            logits[i * V + v] = (float)sum;
        }
    double *theirs = floats(x->out, x->N * V), error = check_error(x->N * V, logits, theirs);
    free(theirs);
    free(logits);
    if (!(error <= BOUND))
        fail_msg("%s: head: error %g", name, error);
}

static double expected_loss(const expected *x, int64_t V, const int32_t *target) {
    double *logits = floats(x->out, x->N * V), loss = 0;
    for (int64_t i = 0; i < x->N; i++) {
        double sum = 0;
        for (int64_t v = 0; v < V; v++)
            sum += exp(logits[i * V + v]);
        loss += log(sum) - logits[i * V + target[i]];
    }
    free(logits);
    return loss;
}

static void compare(gr_backend *backend, gr_comm *comm, const char *which) {
    char folder[HF_FOLDER_MAX];
    gr_hf *hf;
    gr_expert_map map;
    gr_model *m;
    expected x;
    snprintf(folder, sizeof folder, HF_FIXTURES "/%s", which);
    expected_open(&x, folder);
    assert_int_equal(gr_hf_open(&hf, folder), GR_OK);
    const gr_model_config *c = &gr_hf_get(hf)->model;
    assert_int_equal(gr_expert_map_open(&map, (uint32_t)c->num_experts, 1), GR_OK);
    gr_plan_limits limits = gr_plan_limits_worst((uint32_t)x.N, (uint32_t)c->num_experts_per_tok, &map);
    gr_model_options o = {
        .config = c, .backend = backend, .comm = comm, .map = &map, .limits = &limits, .T = x.T, .train = true};
    assert_int_equal(gr_model_open(&m, &o), GR_OK);
    assert_int_equal(gr_hf_load(hf, gr_model_params(m), gr_model_masters(m)), GR_OK);
    uint32_t token[64];
    int32_t target[64];
    assert_true(x.N <= 64);
    for (int64_t i = 0; i < x.N; i++) {
        token[i] = gr_load_u32(x.token + 4 * i);
        target[i] = (int32_t)((7 * i + 3) % c->vocab_size);
    }
    double loss = 0, theirs = expected_loss(&x, c->vocab_size, target);
    gr_phases phases = {0};
    assert_int_equal(gr_model_loss(m, &(gr_batch){.token = token, .target = target}, &loss, &phases), GR_OK);
    compare_routers(m, &x, which);
    compare_head(m, &x, which);
    if (!(fabs(loss - theirs) <= BOUND * theirs))
        fail_msg("%s: loss %.9g, expected %.9g", which, loss, theirs);
    gr_model_close(m);
    gr_expert_map_close(&map);
    gr_hf_close(hf);
    gr_safetensors_close(x.file);
}

static void routers_and_head_give_the_logits_of_transformers(void **state) {
    (void)state;
    static const char *const cases[] = {"f32", "bf16", "f16_sharded", "tied_dense"};
    gr_backend *backend;
    gr_comm *comm;
    assert_int_equal(gr_backend_open(&backend, "cpu", GR_F32), GR_OK);
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    assert_int_equal(gr_comm_group(comm, 1), GR_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        compare(backend, comm, cases[i]);
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(routers_and_head_give_the_logits_of_transformers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
