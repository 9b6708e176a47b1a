/* Whole-model counts from the config alone: what --dry-run prints and every utilisation is computed from. */
#include "internal.h"

int gr_model_routers(const gr_model_config *c) {
    int n_cut = c->head == GR_HEAD_ROUTER; /* its router only makes logits: no choice, no plan */
    return c->routing.gates == GR_GATES_LEARNED ? c->num_hidden_layers - n_cut - c->first_k_dense_replace : 0;
}

static void count_blocks(const gr_model_config *c, gr_model_count *out) {
    int64_t D = c->hidden_size, hd = c->head_dim, L = c->num_hidden_layers;
    int64_t n_cut = c->head == GR_HEAD_ROUTER; /* a last layer of which only the router is there */
    int64_t n_dense = c->first_k_dense_replace < L ? c->first_k_dense_replace : L, n_moe = L - n_dense - n_cut;
    int64_t attention = L * 2 * (c->num_attention_heads + c->num_key_value_heads) * hd * D; /* q, o; k, v */
    int64_t dense = n_dense * 3 * D * c->intermediate_size;
    int64_t shared = n_moe * 3 * D * c->shared_expert_intermediate_size;
    int64_t one_expert_per_layer = n_moe * 3 * D * c->moe_intermediate_size;
    int64_t routers = (gr_model_routers(c) + n_cut) * c->num_experts * D;
    int64_t everywhere = attention + dense + shared + routers;
    out->experts = one_expert_per_layer * c->num_experts;
    out->matrices = everywhere + out->experts;
    out->norms = L * (2 * D + (c->use_qk_norm ? 2 * hd : 0)) + (n_cut ? 0 : D);
    out->active = everywhere + one_expert_per_layer * c->num_experts_per_tok;
}

static void count_linear_layers(const gr_model_config *c, gr_model_count *out) {
    for (int l = 0; l < c->num_hidden_layers && is_linear_body(c); l++) {
        out->matrices += gr_linear_width(c, l) * gr_linear_width(c, l + 1);
        out->norms += 2 * gr_linear_width(c, l + 1);
    }
    out->active = out->matrices;
}

void gr_model_count_config(const gr_model_config *c, int64_t T, gr_model_count *out) {
    int64_t D = c->hidden_size, embedding = c->vocab_size * D;
    bool scores = c->head == GR_HEAD_SCORES;
    int64_t head = scores ? c->num_labels * D : c->head == GR_HEAD_ROUTER ? 0 : embedding;
    *out = (gr_model_count){0};
    if (is_context_free(c))
        count_linear_layers(c, out);
    else
        count_blocks(c, out);
    out->matrices += embedding + (scores || !c->tie_word_embeddings ? head : 0);
    out->active += head;
    out->flops_per_token = 6.0 * (double)out->active;
    if (is_context_free(c))
        return;
    double keys = sees_ahead(c) ? (double)T : (double)T / 2.0;
    int64_t width = (int64_t)c->num_hidden_layers * c->num_attention_heads * c->head_dim;
    out->flops_per_token += 12.0 * (double)width * keys;
}

/* Backward mirrors forward: rows of the plan go out and come back in both. Recomputation dispatches once more where
 * something follows the layer: the last one's rows are still there. */
gr_model_transfers gr_model_transfers_count(const gr_model_config *c, gr_recompute recompute) {
    int n_cut = c->head == GR_HEAD_ROUTER, n_moe = c->num_hidden_layers - n_cut - c->first_k_dense_replace;
    if (n_moe <= 0 || c->head == GR_HEAD_SCORES)
        return (gr_model_transfers){0};
    int again = recompute == GR_RECOMPUTE_NONE ? 0 : n_moe - 1;
    int n_router = gr_model_routers(c);
    return (gr_model_transfers){.dispatch = 2 * n_moe + again,
        .combine = 2 * n_moe,
        .gates = n_router,
        .choices = c->routing.source == GR_SOURCE_LEARNED ? n_router : 0};
}
