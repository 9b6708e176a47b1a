/* hf_config.c: config.json of a Qwen3-MoE as model{}. Keys that change what the model computes must be there or have a
 * value this program computes; all others (training, generation, versions) are not looked at. */
#include "config/errors.h"
#include "hf_parts.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_DEPTH_MAX 16
#define FAMILY "qwen3_moe"

typedef struct reader {
    const gr_json_node *root;
    const char *path;
    gr_config_errors errors;
    gr_config config; /* only its model */
} reader;

/* ---------------------------------------------------------------- errors and members */

/* A complaint at a node, or at the file where there is none. */
#define COMPLAIN(r, node, ...)                                                                                         \
    gr_config_complain(&(r)->errors,                                                                                   \
        (gr_place){.source = (r)->path, .line = (node) ? (node)->line : 0, .column = (node) ? (node)->column : 0},     \
        __VA_ARGS__)

/* What a value is, for people. */
static const char *found(const gr_json_node *node) {
    switch (node->kind) {
    case GR_JSON_NULL:
        return "null";
    case GR_JSON_BOOL:
        return node->boolean ? "true" : "false";
    case GR_JSON_NUMBER:
        return node->number;
    case GR_JSON_STRING:
        return node->string;
    case GR_JSON_ARRAY:
        return "an array";
    default:
        return "an object";
    }
}

/* Member of the file, NULL if absent or null: Hugging Face writes null for what is left open. */
static const gr_json_node *member(const reader *r, const char *name) {
    const gr_json_node *node = gr_json_get(r->root, name);
    return node && node->kind != GR_JSON_NULL ? node : NULL;
}

static const gr_json_node *required(reader *r, const char *name, const char *expected) {
    const gr_json_node *node = member(r, name);
    if (!node)
        COMPLAIN(r, r->root, "%s: expected %s, got none", name, expected);
    return node;
}

/* Stores a value under the rules of the key model.<key>; false if it is wrong. */
static bool value_read(reader *r, const gr_json_node *node, const char *key) {
    char full[64], expected[GR_EXPECTED_MAX];
    snprintf(full, sizeof full, "model.%s", key);
    int k = gr_key_find(full);
    GR_ASSERT(k >= 0, "%s", full);
    if (gr_key_store(&gr_keys[k], &r->config, node))
        return true;
    COMPLAIN(r, node, "%s: expected %s, got %.64s", node->key, gr_key_expected(&gr_keys[k], expected), found(node));
    return false;
}

/* False if the member is absent or wrong. */
static bool key_read(reader *r, const char *name, bool is_required) {
    const gr_json_node *node = is_required ? required(r, name, "a value") : member(r, name);
    return node && value_read(r, node, name);
}

/* Transformers before 5 writes num_experts, later ones num_local_experts. */
static void experts_read(reader *r) {
    const gr_json_node *node[2] = {member(r, "num_experts"), member(r, "num_local_experts")};
    int E = 0;
    for (int i = 0; i < 2; i++) {
        if (!node[i] || !value_read(r, node[i], "num_experts"))
            continue;
        if (E && E != r->config.model.num_experts)
            COMPLAIN(
                r, node[i], "num_local_experts: expected num_experts = %d, got %d", E, r->config.model.num_experts);
        E = r->config.model.num_experts;
    }
    if (!node[0] && !node[1])
        COMPLAIN(r, r->root, "num_experts or num_local_experts: expected a value, got none");
}

/* ---------------------------------------------------------------- rotary embedding */

/* rope_theta at the top (older files), or in rope_parameters or rope_scaling (newer ones). */
static void theta_read(reader *r, const gr_json_node *node, const gr_json_node **first) {
    double kept = r->config.model.rope_theta;
    if (value_read(r, node, "rope_theta") && *first && r->config.model.rope_theta != kept)
        COMPLAIN(r, node, "rope_theta: expected %g as in line %d, got %.64s", kept, (*first)->line, found(node));
    *first = node;
}

static void rope_object_read(reader *r, const char *name, const gr_json_node **first) {
    const gr_json_node *object = member(r, name);
    double factor;
    if (object && object->kind != GR_JSON_OBJECT)
        COMPLAIN(r, object, "%s: expected an object or null, got %.64s", name, found(object));
    for (const gr_json_node *c = object ? object->child : NULL; c && object->kind == GR_JSON_OBJECT; c = c->next)
        if (strcmp(c->key, "rope_theta") == 0) {
            theta_read(r, c, first);
        } else if (strcmp(c->key, "rope_type") == 0 || strcmp(c->key, "type") == 0) {
            if (c->kind != GR_JSON_STRING || strcmp(c->string, "default") != 0)
                COMPLAIN(r, c, "%s.%s: expected \"default\" (no scaling of the rotary embedding), got %.64s", name,
                    c->key, found(c));
        } else if (strcmp(c->key, "partial_rotary_factor") == 0) {
            if (!gr_json_f64(c, &factor) || factor != 1)
                COMPLAIN(r, c, "%s.%s: expected 1, got %.64s", name, c->key, found(c));
        } else {
            COMPLAIN(
                r, c, "%s.%.64s: expected only rope_theta and rope_type \"default\", got it as well", name, c->key);
        }
}

static void rope_read(reader *r) {
    const gr_json_node *first = NULL, *top = member(r, "rope_theta");
    if (top)
        theta_read(r, top, &first);
    rope_object_read(r, "rope_parameters", &first);
    rope_object_read(r, "rope_scaling", &first);
    if (!first)
        COMPLAIN(r, r->root, "rope_theta: expected a number at the top level or in rope_parameters, got none");
}

/* ---------------------------------------------------------------- which layers have experts */

static bool is_listed(const gr_json_node *list, int64_t layer) {
    int64_t v;
    for (const gr_json_node *c = list ? list->child : NULL; c; c = c->next)
        if (gr_json_i64(c, &v) && v == layer)
            return true;
    return false;
}

/* Layer l (from 0) is dense if it is in mlp_only_layers or decoder_sparse_step does not divide l + 1. Ours are dense in
 * the beginning only. */
static void dense_layers_read(reader *r) {
    const gr_json_node *list = member(r, "mlp_only_layers"), *step_node = member(r, "decoder_sparse_step");
    int64_t step = 1, v;
    bool good = !list || list->kind == GR_JSON_ARRAY;
    for (const gr_json_node *c = list && good ? list->child : NULL; c; c = c->next)
        good = good && gr_json_i64(c, &v);
    if (!good) {
        COMPLAIN(r, list, "mlp_only_layers: expected an array of layer numbers, got something else");
        return;
    }
    if (step_node && (!gr_json_i64(step_node, &step) || step < 1)) {
        COMPLAIN(r, step_node, "decoder_sparse_step: expected an integer of 1 or more, got %.64s", found(step_node));
        return;
    }
    int n_dense = 0;
    bool past = false;
    for (int l = 0; l < r->config.model.num_hidden_layers; l++) {
        bool dense = is_listed(list, l) || (l + 1) % step != 0;
        if (dense && past) {
            COMPLAIN(r, step > 1 ? step_node : list,
                "decoder_sparse_step = %lld and mlp_only_layers: expected dense layers before all layers of experts, "
                "got layer %d dense behind layer %d with experts",
                (long long)step, l, l - 1);
            return;
        }
        past = past || !dense;
        n_dense += dense;
    }
    r->config.model.first_k_dense_replace = n_dense;
    if (n_dense)
        key_read(r, "intermediate_size", true);
}

/* ---------------------------------------------------------------- what this program does not compute */

static void unsupported_refuse(reader *r) {
    static const char *const switches[] = {"attention_bias", "use_sliding_window"};
    static const char *const counts[] = {"shared_expert_intermediate_size", "n_shared_experts", "num_shared_experts"};
    static const char *const objects[] = {"quantization_config", "compression_config"};
    const gr_json_node *node;
    int64_t v;
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        if ((node = member(r, switches[i])) && !(node->kind == GR_JSON_BOOL && !node->boolean))
            COMPLAIN(r, node, "%s: expected false, got %.64s, which is not supported", switches[i], found(node));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if ((node = member(r, counts[i])) && !(gr_json_i64(node, &v) && v == 0))
            COMPLAIN(r, node, "%s: expected none or 0, got %.64s, which is not supported", counts[i], found(node));
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
        if ((node = member(r, objects[i])))
            COMPLAIN(r, node, "%s: expected weights in F32, BF16 or F16, got quantized ones; convert them", objects[i]);
    node = member(r, "hidden_act");
    if (node && (node->kind != GR_JSON_STRING || strcmp(node->string, "silu") != 0))
        COMPLAIN(r, node, "hidden_act: expected \"silu\", got %.64s, which is not supported", found(node));
    node = member(r, "layer_types");
    for (const gr_json_node *c = node ? node->child : NULL; c; c = c->next)
        if (c->kind != GR_JSON_STRING || strcmp(c->string, "full_attention") != 0)
            COMPLAIN(
                r, c, "layer_types: expected \"full_attention\" only, got %.64s, which is not supported", found(c));
}

/* ---------------------------------------------------------------- all of it */

static void sizes_read(reader *r) {
    static const char *const sizes[] = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob", "rms_norm_eps"};
    gr_model_config *m = &r->config.model;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        key_read(r, sizes[i], true);
    experts_read(r);
    if (!key_read(r, "head_dim", false) && m->num_attention_heads > 0)
        m->head_dim = m->hidden_size / m->num_attention_heads;
    m->initializer_range = 0.02;
    key_read(r, "initializer_range", false);
    key_read(r, "tie_word_embeddings", false);
    m->use_qk_norm = true;
    m->routing = (gr_routing){.source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1};
}

/* Rules between values that are legal alone. */
static void rules_check(reader *r) {
    const gr_model_config *m = &r->config.model;
    if (m->head_dim < 2 || m->head_dim % 2 != 0)
        COMPLAIN(r, member(r, "head_dim"),
            "head_dim (or hidden_size / num_attention_heads = %d / %d): expected an even number of 2 or more, got %d",
            m->hidden_size, m->num_attention_heads, m->head_dim);
    if (m->num_attention_heads % m->num_key_value_heads != 0)
        COMPLAIN(r, member(r, "num_key_value_heads"),
            "num_key_value_heads: expected a divisor of num_attention_heads = %d, got %d", m->num_attention_heads,
            m->num_key_value_heads);
    if (m->num_experts_per_tok > m->num_experts)
        COMPLAIN(r, member(r, "num_experts_per_tok"), "num_experts_per_tok: expected at most num_experts = %d, got %d",
            m->num_experts, m->num_experts_per_tok);
    if (m->first_k_dense_replace > 0 && m->intermediate_size == 0)
        COMPLAIN(r, member(r, "intermediate_size"), "intermediate_size: expected the width of the dense layers, got 0");
}

static void config_read(reader *r) {
    const gr_json_node *type = required(r, "model_type", "\"" FAMILY "\"");
    if (type && (type->kind != GR_JSON_STRING || strcmp(type->string, FAMILY) != 0)) {
        COMPLAIN(r, type, "model_type: expected \"" FAMILY "\", got %.64s, which is not supported", found(type));
        return; /* another family's keys mean other things */
    }
    sizes_read(r);
    rope_read(r);
    dense_layers_read(r);
    unsupported_refuse(r);
    if (r->errors.n == 0)
        rules_check(r);
}

gr_err gr_hf_config_parse(gr_hf_info *out, const char *text, size_t n, const char *path) {
    gr_json *json;
    GR_TRY(gr_json_parse(&json, text, n, path, GR_HF_CONFIG_BYTE_MAX, CONFIG_DEPTH_MAX, GR_CHECKPOINT));
    void *memory;
    gr_err err = gr_alloc(&memory, 1, sizeof(reader), "config of a checkpoint");
    if (!err) {
        reader *r = memory;
        r->root = gr_json_root(json);
        r->path = path;
        config_read(r);
        err = gr_config_fail_with(GR_CHECKPOINT, &r->errors);
        if (!err)
            *out = (gr_hf_info){.model = r->config.model};
        free(r);
    }
    gr_json_close(json);
    return err;
}
