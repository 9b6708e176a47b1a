/* weights_fixture.h: a small model with every kind of tensor, its experts dealt out in reverse over the ranks, so that
 * slots and logical ids differ everywhere. */
#ifndef GROUTER_WEIGHTS_FIXTURE_H
#define GROUTER_WEIGHTS_FIXTURE_H

#include <stdlib.h>
#include <string.h>

#include "grouter/model.h"

enum { FIXTURE_EXPERTS = 12 };

typedef struct weights_fixture {
    gr_expert_map map;
    uint16_t rank_of[FIXTURE_EXPERTS], slot_of[FIXTURE_EXPERTS], expert_at[FIXTURE_EXPERTS];
    gr_params params;
    float *flat; /* initial weights; norms changed too */
} weights_fixture;

static const gr_model_config fixture_config = {
    .vocab_size = 9,
    .hidden_size = 6,
    .num_hidden_layers = 2,
    .num_attention_heads = 3,
    .num_key_value_heads = 1,
    .head_dim = 2,
    .intermediate_size = 7,
    .moe_intermediate_size = 5,
    .num_experts = FIXTURE_EXPERTS,
    .num_experts_per_tok = 2,
    .shared_expert_intermediate_size = 3,
    .first_k_dense_replace = 1,
    .initializer_range = 0.02,
    .use_qk_norm = true,
};

static inline void fixture_open_sharded(
    weights_fixture *f, uint32_t n_rank, uint32_t rank, int dense_shards, int expert_shards) {
    f->map = (gr_expert_map){.E = FIXTURE_EXPERTS,
        .n_rank = n_rank,
        .E_local = FIXTURE_EXPERTS / n_rank,
        .rank_of = f->rank_of,
        .slot_of = f->slot_of,
        .expert_at = f->expert_at};
    for (uint32_t i = 0; i < FIXTURE_EXPERTS; i++) {
        uint32_t e = FIXTURE_EXPERTS - 1 - i;
        f->expert_at[i] = (uint16_t)e;
        f->rank_of[e] = (uint16_t)(i / f->map.E_local);
        f->slot_of[e] = (uint16_t)(i % f->map.E_local);
    }
    gr_err err = gr_params_open(&f->params, &fixture_config, &f->map, rank, dense_shards, expert_shards);
    GR_ASSERT(!err, "%s", gr_error_text());
    f->flat = malloc((size_t)f->params.n_element * sizeof *f->flat);
    GR_ASSERT(f->flat, "no memory");
    assert_int_equal(gr_params_init(&f->params, 1, gr_weights_whole(&f->params, f->flat)), GR_OK);
    for (int i = 0; i < f->params.n; i++)
        for (int64_t j = 0; f->params.list[i].kind == GR_PARAM_NORM && j < f->params.list[i].dim[0]; j++)
            f->flat[f->params.list[i].offset + j] += (float)i + 0.25f * (float)j;
}

static inline void fixture_open(weights_fixture *f, uint32_t n_rank, uint32_t rank) {
    fixture_open_sharded(f, n_rank, rank, 1, 1);
}

static inline void fixture_close(weights_fixture *f) {
    gr_params_close(&f->params);
    free(f->flat);
}

#endif
