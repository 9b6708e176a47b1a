/* Values that are legal alone and wrong together: each rule is one equation, reported with its numbers. */
#include <string.h>

#include "errors.h"

typedef struct checker {
    gr_config_errors *errors;
    gr_place whole; /* for keys without a place of their own */
} checker;

/* Complains unless `holds`, at the first of the space-separated `keys` that was given; says nothing if one of them is
 * wrong on its own. */
static void rule(checker *c, bool holds, const char *keys, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void rule(checker *c, bool holds, const char *keys, const char *fmt, ...) {
    if (holds)
        return;
    gr_place place = {0};
    for (size_t n; *keys; keys += n + strspn(keys + n, " ")) {
        char name[64];
        n = strcspn(keys, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, keys);
        int k = gr_key_find(name);
        GR_ASSERT(k >= 0, "rule about the unknown key %s", name);
        if (c->errors->state[k] == GR_KEY_WRONG)
            return;
        if (!place.source)
            place = c->errors->place[k];
    }
    va_list args;
    va_start(args, fmt);
    gr_config_complain_v(c->errors, place.source ? place : c->whole, fmt, args);
    va_end(args);
}

static bool divides(int64_t divisor, int64_t n) {
    return divisor > 0 && n % divisor == 0;
}

/* A Grouter's network: of a config for distill. */
static void check_grouter(checker *c, const gr_model_config *m) {
    bool attention = m->body == GR_BODY_ATTENTION;
    rule(c, attention == (m->mask != GR_MASK_NONE), "model.mask model.body",
        "model.mask must be \"none\" exactly when model.body is not \"attention\": only attention sees other tokens");
    rule(c, !attention || (m->num_hidden_layers > 0 && m->num_attention_heads > 0 && m->intermediate_size > 0),
        "model.num_hidden_layers model.num_attention_heads model.intermediate_size",
        "model.body = \"attention\" needs model.num_hidden_layers, model.num_attention_heads and "
        "model.intermediate_size, got %d, %d and %d",
        m->num_hidden_layers, m->num_attention_heads, m->intermediate_size);
    rule(c, m->body != GR_BODY_RESIDUAL_LINEAR || (m->num_hidden_layers > 0 && m->intermediate_size > 0),
        "model.num_hidden_layers model.intermediate_size",
        "model.body = \"residual-linear\" needs model.num_hidden_layers and model.intermediate_size, got %d and %d",
        m->num_hidden_layers, m->intermediate_size);
    rule(c, m->body != GR_BODY_LINEAR || m->num_hidden_layers == 0, "model.num_hidden_layers",
        "model.body = \"linear\" has no layers, but model.num_hidden_layers = %d; leave it out", m->num_hidden_layers);
    bool doc = m->mask == GR_MASK_CAUSAL_DOC || m->mask == GR_MASK_BIDIRECTIONAL_DOC;
    rule(c, !doc || m->document_end >= 0, "model.document_end model.mask",
        "model.mask ends at documents: give model.document_end, the token that ends one (256 for bytes)");
}

static void check_attention(checker *c, const gr_model_config *m) {
    int explicit_head_dim = gr_key_find("model.head_dim");
    if (c->errors->state[explicit_head_dim] == GR_KEY_ABSENT)
        rule(c, divides(m->num_attention_heads, m->hidden_size) && m->head_dim % 2 == 0 && m->head_dim > 0,
            "model.hidden_size model.num_attention_heads",
            "model.head_dim = model.hidden_size / model.num_attention_heads = %d / %d must be an even integer; change "
            "one of them or give model.head_dim",
            m->hidden_size, m->num_attention_heads);
    else
        rule(c, m->head_dim % 2 == 0, "model.head_dim",
            "model.head_dim = %d must be even: rotary embedding turns pairs of elements", m->head_dim);
    rule(c, divides(m->num_key_value_heads, m->num_attention_heads),
        "model.num_key_value_heads model.num_attention_heads",
        "model.num_attention_heads = %d must be a multiple of model.num_key_value_heads = %d", m->num_attention_heads,
        m->num_key_value_heads);
}

static void check_experts(checker *c, const gr_model_config *m) {
    rule(c, m->num_experts_per_tok <= m->num_experts, "model.num_experts_per_tok model.num_experts",
        "model.num_experts_per_tok = %d must be at most model.num_experts = %d", m->num_experts_per_tok,
        m->num_experts);
    rule(c, m->first_k_dense_replace <= m->num_hidden_layers, "model.first_k_dense_replace model.num_hidden_layers",
        "model.first_k_dense_replace = %d must be at most model.num_hidden_layers = %d", m->first_k_dense_replace,
        m->num_hidden_layers);
    rule(c, m->first_k_dense_replace == 0 || m->intermediate_size > 0,
        "model.intermediate_size model.first_k_dense_replace",
        "model.intermediate_size = 0, but model.first_k_dense_replace = %d: give the width of the dense layers",
        m->first_k_dense_replace);
}

static void check_online(checker *c, const gr_config *g) {
    bool given = *g->online.grouter != '\0', online = g->routing.source == GR_SOURCE_ONLINE;
    rule(c, given || !online, "routing.grouter routing.source",
        "routing.grouter = \"\", but routing.source = \"online\": give the Grouter that routes");
    rule(c, !given || g->routing.source != GR_SOURCE_LEARNED, "routing.grouter routing.source",
        "routing.grouter = \"%.200s\", but routing.source = \"learned\": no Grouter routes then; leave it out",
        g->online.grouter);
    rule(c, given || g->online.threshold == 0, "routing.threshold routing.grouter",
        "routing.threshold = %g needs routing.grouter: tables were made with a threshold or without",
        g->online.threshold);
    rule(c, given || !g->online.bias, "routing.bias routing.grouter",
        "routing.bias = true needs routing.grouter: tables were made with bias or without");
}

/* What only learned gates use must not look as if it had an effect. */
static void check_routing(checker *c, const gr_routing *r) {
    bool learned = r->gates == GR_GATES_LEARNED;
    rule(c, learned || r->source != GR_SOURCE_LEARNED, "routing.gates routing.source",
        "routing.gates = \"fixed\", but routing.source = \"learned\": fixed gates come from tables or a Grouter; leave "
        "it out");
    rule(c, learned || r->scale == 1, "routing.scale routing.gates",
        "routing.scale = %g needs learned gates; fixed ones have that of their tables or Grouter", r->scale);
    rule(c, learned || r->z_loss_coef == 0, "routing.z_loss_coef routing.gates",
        "routing.z_loss_coef = %g needs learned gates", r->z_loss_coef);
    rule(c, r->source == GR_SOURCE_LEARNED || r->aux_loss_coef == 0, "routing.aux_loss_coef routing.source",
        "routing.aux_loss_coef = %g needs routing.source = \"learned\": a loss cannot balance given experts",
        r->aux_loss_coef);
}

/* A placement fits routes that are known beforehand; its windows are those of their tables. */
static void check_placement(checker *c, const gr_config *g) {
    bool given = *g->parallel.placement != '\0', corpus = g->data.windows == GR_WINDOWS_CORPUS;
    rule(c, !given || g->routing.source != GR_SOURCE_LEARNED, "parallel.placement routing.source",
        "parallel.placement = \"%.200s\", but routing.source = \"learned\": no placement can fit routes that are "
        "learned "
        "on the way; leave it out",
        g->parallel.placement);
    rule(c, !corpus || given, "data.windows parallel.placement",
        "data.windows = \"corpus\" needs parallel.placement: it says which windows each rank reads");
    rule(c, !corpus || g->routing.source == GR_SOURCE_TABLE, "data.windows routing.source",
        "data.windows = \"corpus\" needs routing.source = \"table\": a placement groups the windows of route tables");
}

/* An aim that is never looked at would never end the run. */
static void check_tune(checker *c, const gr_config *g) {
    rule(c, g->tune.until_maxvio == 0 || (g->data.n_valid > 0 && g->eval.every_steps > 0),
        "tune.until_maxvio eval.every_steps data.valid",
        "tune.until_maxvio = %g is asked of data.valid every eval.every_steps: give both", g->tune.until_maxvio);
}

static void check_optimizer(checker *c, const gr_config *g) {
    rule(c, g->optimizer.lr_min <= g->optimizer.lr, "optimizer.lr_min optimizer.lr",
        "optimizer.lr_min = %g must be at most optimizer.lr = %g", g->optimizer.lr_min, g->optimizer.lr);
    /* decay_steps 0 follows train.steps: a trial run of a few steps may then end within its warm-up. */
    rule(c, g->optimizer.decay_steps == 0 || g->optimizer.warmup_steps <= g->optimizer.decay_steps,
        "optimizer.warmup_steps optimizer.decay_steps",
        "optimizer.warmup_steps = %lld must be at most optimizer.decay_steps = %lld",
        (long long)g->optimizer.warmup_steps, (long long)g->optimizer.decay_steps);
}

static void check_batch(checker *c, const gr_config *g) {
    int R_ep = gr_config_expert_parallel(g);
    int K = g->model.num_experts_per_tok ? g->model.num_experts_per_tok : 1; /* unknown yet for distill and tune */
    int64_t B = g->train.micro_batch_windows, pairs = R_ep * B * g->data.seq_len * K;
    rule(c, divides(B, g->train.global_batch_windows), "train.global_batch_windows train.micro_batch_windows",
        "train.global_batch_windows = %d must be a multiple of train.micro_batch_windows = %d",
        g->train.global_batch_windows, g->train.micro_batch_windows);
    /* One rank may get all pairs of its group; plans number them in 32 bits. */
    rule(c, pairs <= INT32_MAX,
        "train.micro_batch_windows data.seq_len model.num_experts_per_tok parallel.expert_parallel_size",
        "parallel.expert_parallel_size * train.micro_batch_windows * data.seq_len * model.num_experts_per_tok = "
        "%d * %d * %d * %d = %lld must be at most %d; use smaller micro-batches",
        R_ep, g->train.micro_batch_windows, g->data.seq_len, K, (long long)pairs, INT32_MAX);
}

static void check_parallel(checker *c, const gr_config *g) {
    int R_ep = g->parallel.expert_parallel_size;
    if (g->kind != GR_CONFIG_TRAIN)
        return;
    rule(c, R_ep == 0 || divides(R_ep, g->model.num_experts), "parallel.expert_parallel_size model.num_experts",
        "parallel.expert_parallel_size = %d must divide model.num_experts = %d", R_ep, g->model.num_experts);
    rule(c, g->parallel.comm != GR_COMM_SELF || R_ep <= 1, "parallel.expert_parallel_size parallel.comm",
        "parallel.expert_parallel_size = %d needs as many ranks, but parallel.comm = \"self\" is one; use \"mpi\"",
        R_ep);
}

void gr_config_check(gr_config_errors *e, const gr_config *g, const char *source) {
    checker c = {.errors = e, .whole = {.source = source}};
    if (g->kind == GR_CONFIG_DISTILL)
        check_grouter(&c, &g->model);
    if (g->kind == GR_CONFIG_TRAIN || (g->kind == GR_CONFIG_DISTILL && g->model.body == GR_BODY_ATTENTION))
        check_attention(&c, &g->model);
    if (g->kind == GR_CONFIG_TRAIN) {
        check_experts(&c, &g->model);
        check_routing(&c, &g->routing);
        check_online(&c, g);
        check_placement(&c, g);
    }
    if (g->kind == GR_CONFIG_TUNE)
        check_tune(&c, g);
    check_optimizer(&c, g);
    check_batch(&c, g);
    check_parallel(&c, g);
    rule(&c, g->eval.every_steps == 0 || g->data.n_valid > 0, "eval.every_steps data.valid",
        "eval.every_steps = %lld, but data.valid lists no files", (long long)g->eval.every_steps);
}

int gr_config_expert_parallel(const gr_config *c) {
    return c->parallel.expert_parallel_size ? c->parallel.expert_parallel_size : 1;
}

gr_err gr_config_check_ranks(const gr_config *g, int n_rank) {
    gr_config_errors errors = {0};
    checker c = {.errors = &errors, .whole = {.source = "config"}};
    int R_ep = gr_config_expert_parallel(g);
    int64_t B = g->train.micro_batch_windows, unit = B * n_rank, global = g->train.global_batch_windows;
    int64_t lower = global / unit * unit;
    check_parallel(&c, g);
    rule(&c, divides(R_ep, n_rank), "parallel.expert_parallel_size",
        "parallel.expert_parallel_size = %d must divide the number of ranks = %d", R_ep, n_rank);
    rule(&c, divides(unit, global), "train.global_batch_windows train.micro_batch_windows",
        "train.global_batch_windows = %lld must be a multiple of train.micro_batch_windows * ranks = %lld * %d = %lld; "
        "the next are %lld and %lld",
        (long long)global, (long long)B, n_rank, (long long)unit, (long long)(lower ? lower : unit),
        (long long)(lower ? lower + unit : 2 * unit));
    return gr_config_fail(&errors);
}
