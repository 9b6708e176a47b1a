/* Whole-model counts from the config alone: what --dry-run prints and every utilisation is computed from. */
#include "grouter/model.h"

int gr_model_routers(const gr_model_config *c) {
    return c->routing.gates == GR_GATES_LEARNED ? c->num_hidden_layers - c->first_k_dense_replace : 0;
}

void gr_model_count_config(const gr_model_config *c, int64_t T, gr_model_count *out) {
    int64_t D = c->hidden_size, hd = c->head_dim, L = c->num_hidden_layers;
    int64_t n_dense = c->first_k_dense_replace < L ? c->first_k_dense_replace : L, n_moe = L - n_dense;
    int64_t embedding = c->vocab_size * D;
    int64_t attention = L * 2 * (c->num_attention_heads + c->num_key_value_heads) * hd * D; /* q, o; k, v */
    int64_t dense = n_dense * 3 * D * c->intermediate_size;
    int64_t shared = n_moe * 3 * D * c->shared_expert_intermediate_size;
    int64_t one_expert_per_layer = n_moe * 3 * D * c->moe_intermediate_size;
    int64_t routers = gr_model_routers(c) * c->num_experts * D;
    int64_t everywhere = attention + dense + shared + routers;

    *out = (gr_model_count){0};
    out->experts = one_expert_per_layer * c->num_experts;
    out->matrices = everywhere + out->experts + (c->tie_word_embeddings ? 1 : 2) * embedding;
    out->norms = L * (2 * D + (c->use_qk_norm ? 2 * hd : 0)) + D;
    out->active = everywhere + one_expert_per_layer * c->num_experts_per_tok + embedding;
    out->flops_per_token =
        6.0 * (double)out->active + 12.0 * (double)(L * c->num_attention_heads * hd) * (double)T / 2.0;
}
