/* inspect_hf.c: the model of a checkpoint's folder, all headers of its files verified. */
#include "cmd/inspect.h"
#include "grouter/hf.h"

#include <inttypes.h>

static void sizes_print(gr_report *r, const gr_model_config *m) {
    gr_report_count(r, "vocab_size", "vocabulary V", (uint64_t)m->vocab_size);
    gr_report_count(r, "hidden_size", "width D", (uint64_t)m->hidden_size);
    gr_report_count(r, "num_hidden_layers", "layers L", (uint64_t)m->num_hidden_layers);
    gr_report_count(r, "first_k_dense_replace", "of them dense, first", (uint64_t)m->first_k_dense_replace);
    if (m->first_k_dense_replace)
        gr_report_count(r, "intermediate_size", "width of dense layers", (uint64_t)m->intermediate_size);
    gr_report_count(r, "num_attention_heads", "heads H", (uint64_t)m->num_attention_heads);
    gr_report_count(r, "num_key_value_heads", "key and value heads", (uint64_t)m->num_key_value_heads);
    gr_report_count(r, "head_dim", "width of a head", (uint64_t)m->head_dim);
    gr_report_count(r, "num_experts", "experts E", (uint64_t)m->num_experts);
    gr_report_count(r, "num_experts_per_tok", "experts per token K", (uint64_t)m->num_experts_per_tok);
    gr_report_count(r, "moe_intermediate_size", "width of an expert F", (uint64_t)m->moe_intermediate_size);
    gr_report_count(r, "shared_expert_intermediate_size", m->shared_expert_intermediate_size ? "shared expert" : NULL,
        (uint64_t)m->shared_expert_intermediate_size);
    gr_report_number(r, "rms_norm_eps", "norm epsilon", m->rms_norm_eps);
    gr_report_number(r, "rope_theta", "rope theta", m->rope_theta);
    gr_report_bool(r, "use_qk_norm", "norms of queries and keys", m->use_qk_norm);
    gr_report_bool(r, "tie_word_embeddings", "head tied to the embedding", m->tie_word_embeddings);
}

static void counts_print(gr_report *r, const gr_hf_info *i, const gr_hf_contents *c) {
    const gr_model_config *m = &i->model;
    gr_model_count count;
    gr_model_count_config(m, 1, &count);
    bool has_router = m->routing.gates == GR_GATES_LEARNED;
    gr_report_bool(r, "has_router", "learned routers", has_router);
    if (has_router)
        gr_report_bool(r, "norm_topk_prob", "gates normalised over the chosen experts", m->norm_topk_prob);
    gr_report_count(r, "parameters", "parameters", (uint64_t)c->n_element);
    gr_report_count(r, "parameters_active", "active per token (with head and routers, without input embedding)",
        (uint64_t)count.active);
    gr_report_count(r, "tensors", "tensors", (uint64_t)c->n_tensor);
    gr_report_count(r, "bytes", "bytes of tensors", c->n_byte);
    for (int d = 0; d < GR_N_DTYPE; d++) {
        char key[32], label[32];
        snprintf(key, sizeof key, "tensors_%s", gr_dtype_name((gr_dtype)d));
        snprintf(label, sizeof label, "tensors of %s", gr_dtype_name((gr_dtype)d));
        if (c->n_of[d])
            gr_report_count(r, key, label, (uint64_t)c->n_of[d]);
    }
}

static void files_print(gr_report *r, const gr_hf *hf) {
    int n = gr_hf_get(hf)->n_shard;
    if (r->json)
        gr_report_key(r, "files");
    else
        printf("files: %d\n", n);
    for (int i = 0; i < n; i++) {
        printf(r->json ? (i ? ", " : "[") : "  ");
        if (r->json)
            gr_report_literal(gr_hf_shard_name(hf, i));
        else
            printf("%s\n", gr_hf_shard_name(hf, i));
    }
    if (r->json)
        printf("]");
}

gr_err gr_inspect_hf(const char *path, bool json) {
    gr_hf *hf;
    gr_hf_contents contents;
    GR_TRY(gr_hf_open(&hf, path));
    gr_err err = gr_hf_verify(hf, &contents);
    if (!err) {
        const gr_hf_info *i = gr_hf_get(hf);
        gr_report r;
        gr_report_begin(&r, json);
        gr_report_text(&r, "kind", NULL, "checkpoint");
        gr_report_text(&r, "file", "checkpoint", path);
        gr_report_text(&r, "family", "family", i->is_run ? "a run of grouter-train" : "Hugging Face Qwen3-MoE");
        sizes_print(&r, &i->model);
        counts_print(&r, i, &contents);
        files_print(&r, hf);
        if (!json)
            printf("verified: name, shape and type of every tensor\n");
        gr_report_end(&r);
    }
    gr_hf_close(hf);
    return err;
}
