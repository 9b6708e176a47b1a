#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/model.h"

static const gr_model_config small = {
    .vocab_size = 37,
    .hidden_size = 20,
    .num_hidden_layers = 3,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .intermediate_size = 22,
    .moe_intermediate_size = 10,
    .num_experts = 8,
    .num_experts_per_tok = 2,
    .shared_expert_intermediate_size = 14,
    .first_k_dense_replace = 1,
    .rms_norm_eps = 1e-6,
    .rope_theta = 10000,
    .initializer_range = 0.02,
    .use_qk_norm = true,
};

/* Experts dealt out in reverse, so that slots and logical ids differ. */
typedef struct reversed {
    gr_expert_map map;
    uint16_t rank_of[8], slot_of[8], expert_at[8];
} reversed;

static void reversed_fill(reversed *r, uint32_t n_rank) {
    r->map = (gr_expert_map){.E = 8,
        .n_rank = n_rank,
        .E_local = 8 / n_rank,
        .rank_of = r->rank_of,
        .slot_of = r->slot_of,
        .expert_at = r->expert_at};
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t e = 7 - i;
        r->expert_at[i] = (uint16_t)e;
        r->rank_of[e] = (uint16_t)(i / r->map.E_local);
        r->slot_of[e] = (uint16_t)(i % r->map.E_local);
    }
}

static void mark(const gr_params *p, uint8_t *owner) {
    for (int i = 0; i < p->n; i++)
        for (uint32_t k = 0; k < p->list[i].n_matrix; k++)
            for (int64_t j = 0; j < gr_param_size(&p->list[i]); j++) {
                int64_t at = p->list[i].offset + k * p->list[i].stride + j;
                assert_true(at < p->n_element);
                assert_true(p->list[i].owner == GR_WORLD ? at < p->n_dense : at >= p->n_dense);
                owner[at]++;
            }
}

static void every_element_belongs_to_at_most_one_parameter(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    reversed_fill(&r, 2);
    assert_int_equal(gr_params_open(&p, &small, &r.map, 1, 1, 1), GR_OK);
    uint8_t *owner = calloc((size_t)p.n_element, 1);
    mark(&p, owner);
    int64_t padding = 0;
    for (int64_t i = 0; i < p.n_element; i++) {
        assert_true(owner[i] <= 1);
        padding += owner[i] == 0;
    }
    gr_model_count count;
    gr_model_count_config(&small, 16, &count);
    assert_int_equal(p.n_element - padding, count.matrices + count.norms - count.experts / 2);
    assert_int_equal(p.n_dense % 16, 0);
    assert_int_equal(p.n_element % 16, 0);
    free(owner);
    gr_params_close(&p);
}

static const gr_param *find(const gr_params *p, const char *name) {
    const gr_param *found = gr_params_find(p, name);
    assert_non_null(found);
    return found;
}

static void what_one_gemm_reads_is_contiguous_and_aligned(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    reversed_fill(&r, 1);
    assert_int_equal(gr_params_open(&p, &small, &r.map, 0, 1, 1), GR_OK);
    const gr_param *q = find(&p, "model.layers.2.self_attn.q_proj.weight");
    const gr_param *k = find(&p, "model.layers.2.self_attn.k_proj.weight");
    const gr_param *v = find(&p, "model.layers.2.self_attn.v_proj.weight");
    assert_int_equal(q->offset % 16, 0);
    assert_int_equal(k->offset, q->offset + gr_param_size(q));
    assert_int_equal(v->offset, k->offset + gr_param_size(k));
    const gr_param *gate = find(&p, "model.layers.0.mlp.gate_proj.weight");
    const gr_param *up = find(&p, "model.layers.0.mlp.up_proj.weight");
    assert_int_equal(gate->offset % 16, 0);
    assert_int_equal(up->offset, gate->offset + gr_param_size(gate));
    gate = find(&p, "model.layers.1.mlp.experts.%u.gate_proj.weight");
    up = find(&p, "model.layers.1.mlp.experts.%u.up_proj.weight");
    assert_int_equal(gate->offset % 16, 0);
    assert_int_equal(up->offset, gate->offset + 10 * 20);
    assert_int_equal(gate->stride, 2 * 10 * 20);
    assert_int_equal(gate->n_matrix, 8);
    assert_int_equal(find(&p, "model.layers.1.mlp.experts.%u.down_proj.weight")->offset % 16, 0);
    assert_null(gr_params_find(&p, "model.layers.0.mlp.experts.%u.gate_proj.weight"));
    assert_null(gr_params_find(&p, "model.layers.0.mlp.shared_expert.gate_proj.weight"));
    gr_params_close(&p);
}

static void a_tied_head_has_no_tensor_of_its_own(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    gr_model_config c = small;
    c.tie_word_embeddings = true;
    reversed_fill(&r, 1);
    assert_int_equal(gr_params_open(&p, &c, &r.map, 0, 1, 1), GR_OK);
    assert_null(gr_params_find(&p, "lm_head.weight"));
    gr_params_close(&p);
}

static void norms_do_not_decay_and_everything_else_does(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    reversed_fill(&r, 1);
    assert_int_equal(gr_params_open(&p, &small, &r.map, 0, 1, 1), GR_OK);
    for (int i = 0; i < p.n; i++)
        assert_int_equal(p.list[i].decay, strstr(p.list[i].name, "norm") == NULL);
    gr_params_close(&p);
}

static void slots_are_named_by_their_logical_expert(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    char name[128];
    reversed_fill(&r, 2);
    assert_int_equal(gr_params_open(&p, &small, &r.map, 1, 1, 1), GR_OK);
    const gr_param *up = find(&p, "model.layers.2.mlp.experts.%u.up_proj.weight");
    assert_string_equal(gr_param_name(&p, up, 1, name), "model.layers.2.mlp.experts.2.up_proj.weight");
    gr_params_close(&p);
}

static void initial_weights_do_not_depend_on_the_layout(void **state) {
    (void)state;
    reversed one, two;
    gr_params whole, half;
    reversed_fill(&one, 1);
    reversed_fill(&two, 2);
    assert_int_equal(gr_params_open(&whole, &small, &one.map, 0, 1, 1), GR_OK);
    assert_int_equal(gr_params_open(&half, &small, &two.map, 1, 1, 1), GR_OK);
    float *a = calloc((size_t)whole.n_element, sizeof *a), *b = calloc((size_t)half.n_element, sizeof *b);
    assert_int_equal(gr_params_init(&whole, 7, gr_weights_whole(&whole, a)), GR_OK);
    assert_int_equal(gr_params_init(&half, 7, gr_weights_whole(&half, b)), GR_OK);
    assert_memory_equal(a, b, (size_t)whole.n_dense * sizeof *a);
    const gr_param *in_whole = find(&whole, "model.layers.1.mlp.experts.%u.down_proj.weight");
    const gr_param *in_half = find(&half, "model.layers.1.mlp.experts.%u.down_proj.weight");
    for (uint32_t slot = 0; slot < half.map->E_local; slot++) {
        uint32_t e = half.map->expert_at[half.map->E_local + slot];
        assert_memory_equal(a + in_whole->offset + one.slot_of[e] * in_whole->stride,
            b + in_half->offset + slot * in_half->stride, (size_t)gr_param_size(in_half) * sizeof *a);
    }
    free(a);
    free(b);
    gr_params_close(&whole);
    gr_params_close(&half);
}

static double deviation(const float *w, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)w[i] * w[i];
    return sqrt(sum / (double)n);
}

static void initial_weights_have_the_stated_deviation(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    gr_model_config c = small;
    c.hidden_size = 256;
    c.moe_intermediate_size = 64;
    reversed_fill(&r, 1);
    assert_int_equal(gr_params_open(&p, &c, &r.map, 0, 1, 1), GR_OK);
    float *w = malloc((size_t)p.n_element * sizeof *w);
    memset(w, 0xff, (size_t)p.n_element * sizeof *w);
    assert_int_equal(gr_params_init(&p, 1, gr_weights_whole(&p, w)), GR_OK);
    uint8_t *owner = calloc((size_t)p.n_element, 1);
    mark(&p, owner);
    for (int64_t i = 0; i < p.n_element; i++)
        assert_true(owner[i] || w[i] == 0);
    double residual = 0.02 / sqrt(2.0 * 3);
    for (int i = 0; i < p.n; i++) {
        const gr_param *e = &p.list[i];
        bool adds = strstr(e->name, "o_proj") || strstr(e->name, "down_proj");
        double expected = e->kind == GR_PARAM_NORM ? 1 : adds ? residual : 0.02;
        for (uint32_t k = 0; k < e->n_matrix; k++) {
            double found = deviation(w + e->offset + k * e->stride, gr_param_size(e));
            /* 5 standard errors of a deviation estimated from n values */
            double tolerance = expected * (1e-6 + 5 / sqrt(2.0 * (double)gr_param_size(e)));
            assert_true(fabs(found - expected) < tolerance);
        }
    }
    free(owner);
    free(w);
    gr_params_close(&p);
}

static void counts_match_the_published_models(void **state) {
    (void)state;
    gr_model_config tiny = {.vocab_size = 151680,
        .hidden_size = 384,
        .num_hidden_layers = 8,
        .num_attention_heads = 8,
        .num_key_value_heads = 8,
        .head_dim = 48,
        .moe_intermediate_size = 344,
        .num_experts = 128,
        .num_experts_per_tok = 8,
        .shared_expert_intermediate_size = 344};
    gr_model_config mini = {.vocab_size = 151680,
        .hidden_size = 1024,
        .num_hidden_layers = 16,
        .num_attention_heads = 16,
        .num_key_value_heads = 4,
        .head_dim = 128,
        .moe_intermediate_size = 384,
        .num_experts = 128,
        .num_experts_per_tok = 8,
        .use_qk_norm = true};
    gr_model_count count;
    gr_model_count_config(&tiny, 4096, &count);
    assert_int_equal(count.matrices, 530178048);
    assert_int_equal(count.matrices + count.norms, 530184576);
    gr_model_count_config(&mini, 4096, &count);
    assert_int_equal(count.matrices, 2810445824);
    assert_int_equal(count.matrices + count.norms, 2810483712);
    assert_int_equal(count.experts, 2415919104); /* 85.962 % of the matrices */
    int64_t active = 16 * (2 * (16 + 4) * 128 * 1024 + 8 * 3 * 1024 * 384) + 151680 * 1024;
    assert_int_equal(count.active, active);
    assert_true(count.flops_per_token == 6.0 * (double)active + 12.0 * 16 * 16 * 128 * 2048);
}

static void a_tied_head_is_counted_once_but_used_as_active(void **state) {
    (void)state;
    gr_model_config tied = small;
    tied.tie_word_embeddings = true;
    gr_model_count a, b;
    gr_model_count_config(&small, 16, &a);
    gr_model_count_config(&tied, 16, &b);
    assert_int_equal(a.matrices - b.matrices, 37 * 20);
    assert_int_equal(a.active, b.active);
}

static void routers_are_matrices_of_every_layer_with_experts(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    gr_model_config c = small;
    c.routing = (gr_routing){.source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1};
    gr_model_count with, without;
    gr_model_count_config(&c, 16, &with);
    gr_model_count_config(&small, 16, &without);
    int64_t n_moe = c.num_hidden_layers - c.first_k_dense_replace, size = c.num_experts * c.hidden_size;
    assert_int_equal(with.matrices - without.matrices, n_moe * size);
    assert_int_equal(with.active - without.active, n_moe * size);
    assert_int_equal(gr_model_routers(&c), n_moe);
    assert_int_equal(gr_model_routers(&small), 0);
    reversed_fill(&r, 1);
    assert_int_equal(gr_params_open(&p, &c, &r.map, 0, 1, 1), GR_OK);
    for (int l = 0; l < c.num_hidden_layers; l++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight", l);
        const gr_param *g = gr_params_find(&p, name);
        assert_true((g != NULL) == (l >= c.first_k_dense_replace));
        if (!g)
            continue;
        assert_int_equal(g->kind, GR_PARAM_ROUTER);
        assert_int_equal(g->owner, GR_WORLD);
        assert_true(g->decay && g->init_std == (float)c.initializer_range);
        assert_true(g->dim[0] == c.num_experts && g->dim[1] == c.hidden_size);
    }
    gr_params_close(&p);
}

static void a_model_beyond_64_bits_is_refused(void **state) {
    (void)state;
    reversed r;
    gr_params p;
    gr_model_config c = small;
    c.hidden_size = INT32_MAX;
    c.vocab_size = INT32_MAX;
    reversed_fill(&r, 1);
    assert_int_equal(gr_params_open(&p, &c, &r.map, 0, 1, 1), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "hidden_size"));
    assert_null(p.list);
}

/* ---------------------------------------------------------------- Grouters */

static const gr_model_config attention_grouter = {
    .vocab_size = 37,
    .hidden_size = 20,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .intermediate_size = 22,
    .first_k_dense_replace = 2,
    .initializer_range = 0.02,
    .use_qk_norm = true,
    .head = GR_HEAD_SCORES,
    .num_labels = 9,
    .mask = GR_MASK_CAUSAL,
    .document_end = -1,
    .zero_token = 5,
};

static gr_model_config grouter_of(gr_body body) {
    gr_model_config c = attention_grouter;
    if (body == GR_BODY_ATTENTION)
        return c;
    c.body = body;
    c.mask = GR_MASK_NONE;
    c.num_hidden_layers = c.first_k_dense_replace = body == GR_BODY_LINEAR ? 0 : 3;
    c.num_attention_heads = c.num_key_value_heads = c.head_dim = 0;
    c.use_qk_norm = false;
    return c;
}

static void check_names(gr_body body, int n, const char *const *name) {
    gr_model_config c = grouter_of(body);
    gr_params p;
    assert_int_equal(gr_params_open(&p, &c, NULL, 0, 1, 1), GR_OK);
    assert_int_equal(p.n, n);
    for (int i = 0; i < n; i++)
        assert_string_equal(p.list[i].name, name[i]);
    gr_params_close(&p);
}

static void a_grouters_parameters_have_these_names_in_this_order(void **state) {
    (void)state;
    check_names(GR_BODY_LINEAR, 3, (const char *const[]){"model.embed_tokens.weight", "score.weight", "score.bias"});
    check_names(GR_BODY_RESIDUAL_LINEAR, 12,
        (const char *const[]){"model.embed_tokens.weight", "model.layers.0.linear.weight",
            "model.layers.0.layer_norm.weight", "model.layers.0.layer_norm.bias", "model.layers.1.linear.weight",
            "model.layers.1.layer_norm.weight", "model.layers.1.layer_norm.bias", "model.layers.2.linear.weight",
            "model.layers.2.layer_norm.weight", "model.layers.2.layer_norm.bias", "score.weight", "score.bias"});
    gr_model_config c = attention_grouter;
    gr_params p;
    assert_int_equal(gr_params_open(&p, &c, NULL, 0, 1, 1), GR_OK);
    assert_int_equal(p.n, 1 + 2 * 11 + 3);
    assert_string_equal(p.list[p.n - 3].name, "model.norm.weight");
    assert_string_equal(p.list[p.n - 2].name, "score.weight");
    assert_string_equal(p.list[p.n - 1].name, "score.bias");
    assert_null(gr_params_find(&p, "lm_head.weight"));
    gr_params_close(&p);
}

static void a_grouters_parameters_follow_each_other_and_are_counted(void **state) {
    (void)state;
    for (int body = GR_BODY_ATTENTION; body <= GR_BODY_RESIDUAL_LINEAR; body++) {
        gr_model_config c = grouter_of((gr_body)body);
        gr_params p;
        gr_model_count count;
        int64_t end = 0, matrices = 0, vectors = 0;
        assert_int_equal(gr_params_open(&p, &c, NULL, 0, 1, 1), GR_OK);
        for (int i = 0; i < p.n; i++) {
            assert_true(p.list[i].offset >= end);
            end = p.list[i].offset + gr_param_size(&p.list[i]);
            *(p.list[i].n_dim == 2 ? &matrices : &vectors) += gr_param_size(&p.list[i]);
            assert_int_equal(p.list[i].decay, p.list[i].n_dim == 2);
            assert_int_equal(p.list[i].frozen, p.list[i].kind == GR_PARAM_BIAS && i == p.n - 1);
            assert_int_equal(p.list[i].zero_row, i == 0 ? c.zero_token : -1);
        }
        assert_true(p.n_element >= end && p.n_element == p.n_dense);
        gr_model_count_config(&c, 16, &count);
        assert_int_equal(count.matrices, matrices);
        assert_int_equal(count.norms, vectors - c.num_labels);
        assert_int_equal(count.experts, 0);
        assert_int_equal(count.active, matrices - 37 * 20);
        gr_params_close(&p);
    }
}

static void a_grouter_starts_with_no_biases_and_a_zero_token(void **state) {
    (void)state;
    gr_model_config c = grouter_of(GR_BODY_RESIDUAL_LINEAR);
    gr_params p;
    assert_int_equal(gr_params_open(&p, &c, NULL, 0, 1, 1), GR_OK);
    float *w = malloc((size_t)p.n_element * sizeof *w);
    memset(w, 0xff, (size_t)p.n_element * sizeof *w);
    assert_int_equal(gr_params_init(&p, 1, gr_weights_whole(&p, w)), GR_OK);
    for (int i = 0; i < p.n; i++)
        for (int64_t j = 0; j < gr_param_size(&p.list[i]); j++) {
            float x = w[p.list[i].offset + j];
            bool zero = p.list[i].kind == GR_PARAM_BIAS || (i == 0 && j / 20 == c.zero_token);
            assert_true(zero ? x == 0 : p.list[i].kind == GR_PARAM_NORM ? x == 1 : x != 0 && fabsf(x) < 0.2f);
        }
    free(w);
    gr_params_close(&p);
}

static void grouter_counts_match_the_published_one(void **state) {
    (void)state;
    gr_model_config c = {.vocab_size = 151936,
        .hidden_size = 512,
        .num_hidden_layers = 3,
        .num_attention_heads = 8,
        .num_key_value_heads = 8,
        .head_dim = 64,
        .intermediate_size = 2736,
        .first_k_dense_replace = 3,
        .head = GR_HEAD_SCORES,
        .num_labels = 128,
        .mask = GR_MASK_BIDIRECTIONAL};
    int64_t embedding = 77791232, blocks = 3 * 5251072, score = 65536;
    gr_model_count count;
    gr_model_count_config(&c, 4096, &count);
    assert_int_equal(count.matrices, embedding + blocks + score); /* 93.6 million */
    assert_int_equal(count.norms, 7 * 512);
    assert_int_equal(count.active, blocks + score);
    double matrices = 6.0 * (double)(blocks + score), whole = 12.0 * 3 * 8 * 64 * 4096;
    assert_true(count.flops_per_token == matrices + whole);
    c.mask = GR_MASK_BIDIRECTIONAL_DOC;
    gr_model_count_config(&c, 4096, &count);
    assert_true(count.flops_per_token == matrices + whole);
    for (int mask = GR_MASK_CAUSAL; mask < GR_N_MASK; mask += 2) { /* causal, and causal within documents */
        c.mask = (gr_mask)mask;
        gr_model_count_config(&c, 4096, &count);
        assert_true(count.flops_per_token == matrices + whole / 2);
    }
}

/* Five layers, 4096 wide inside: 1024 x 4096 twice and 4096 x 4096 three times. */
static void linear_grouters_count_no_attention(void **state) {
    (void)state;
    gr_model_config c = {.vocab_size = 102400,
        .hidden_size = 1024,
        .num_hidden_layers = 5,
        .intermediate_size = 4096,
        .first_k_dense_replace = 5,
        .head = GR_HEAD_SCORES,
        .num_labels = 64,
        .body = GR_BODY_RESIDUAL_LINEAR};
    gr_model_count count;
    gr_model_count_config(&c, 4096, &count);
    assert_int_equal(count.active, 2 * 1024 * 4096 + 3 * 4096 * 4096 + 64 * 1024);
    assert_int_equal(count.matrices, count.active + 102400 * 1024);
    assert_int_equal(count.norms, 2 * (4 * 4096 + 1024));
    assert_true(count.flops_per_token == 6.0 * (double)count.active);
    c.body = GR_BODY_LINEAR;
    c.num_hidden_layers = c.first_k_dense_replace = 0;
    gr_model_count_config(&c, 4096, &count);
    assert_int_equal(count.active, 64 * 1024);
    assert_int_equal(count.norms, 0);
    assert_true(count.flops_per_token == 6.0 * 64 * 1024);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element_belongs_to_at_most_one_parameter),
        cmocka_unit_test(what_one_gemm_reads_is_contiguous_and_aligned),
        cmocka_unit_test(a_tied_head_has_no_tensor_of_its_own),
        cmocka_unit_test(norms_do_not_decay_and_everything_else_does),
        cmocka_unit_test(slots_are_named_by_their_logical_expert),
        cmocka_unit_test(initial_weights_do_not_depend_on_the_layout),
        cmocka_unit_test(initial_weights_have_the_stated_deviation),
        cmocka_unit_test(counts_match_the_published_models),
        cmocka_unit_test(a_tied_head_is_counted_once_but_used_as_active),
        cmocka_unit_test(routers_are_matrices_of_every_layer_with_experts),
        cmocka_unit_test(a_model_beyond_64_bits_is_refused),
        cmocka_unit_test(a_grouters_parameters_have_these_names_in_this_order),
        cmocka_unit_test(a_grouters_parameters_follow_each_other_and_are_counted),
        cmocka_unit_test(a_grouter_starts_with_no_biases_and_a_zero_token),
        cmocka_unit_test(grouter_counts_match_the_published_one),
        cmocka_unit_test(linear_grouters_count_no_attention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
