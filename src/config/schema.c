/* The keys of the config. Adding one here and in config.h is all it takes. */
#include <string.h>

#include "schema.h"

const char *const gr_key_sections[GR_N_SECTION] = {"run", "distill", "tune", "model", "routing", "data", "optimizer",
    "train", "parallel", "checkpoint", "eval", "log"};

static const char *const sources[] = {"table", "online", "learned", NULL};
static const char *const gates[] = {"fixed", "learned", NULL};
static const char *const windows[] = {"batch", "corpus", NULL};
static const char *const schedules[] = {"cosine", "wsd", "linear", "constant", NULL};
static const char *const recomputes[] = {"none", "experts", "block", NULL};
static const char *const dtypes[] = {"fp32", "bf16", NULL};
static const char *const backends[] = {"auto", "cpu", "cuda", NULL};
static const char *const expert_kernels[] = {"auto", "cublas", "mma", "wgmma", NULL};
static const char *const attention_kernels[] = {"auto", "cublas", "flash", "cudnn", NULL};
static const char *const comms[] = {"auto", "self", "mpi", "nccl", NULL};

static const char *const bodies[] = {"attention", "linear", "residual-linear", NULL};
static const char *const masks[] = {"none", "causal", "bidirectional", "causal-doc", "bidirectional-doc", NULL};
static const char *const positions[] = {"none", "window", NULL};
static const char *const tune_modes[] = {"scores", "bias", "full", NULL};

/* Which commands a key is for. */
enum { TRAIN = 1 << GR_CONFIG_TRAIN, DISTILL = 1 << GR_CONFIG_DISTILL, TUNE = 1 << GR_CONFIG_TUNE };
#define FOR(kinds_) .kinds = (kinds_)
#define OPTIONAL_FOR(kinds_) .optional = (kinds_)

#define STEPS_MAX 1000000000000
#define WIDTH_MAX 1048576

#define AT(member) .offset = offsetof(gr_config, member)
#define AT_FILE(member) .offset = offsetof(gr_data_file, member)
#define INT(low_, high_) .type = GR_KEY_INT, .min = (low_), .max = (high_)
#define INT64(low_, high_) .type = GR_KEY_INT64, .min = (low_), .max = (high_)
#define NUMBER(open_, low_, high_) .type = GR_KEY_NUMBER, .open = (open_), .low = (low_), .high = (high_)
#define NAME(list) .type = GR_KEY_NAME, .names = (list)
#define PATH .type = GR_KEY_PATH, .min = 1, .max = GR_PATH_MAX - 1
#define FILES(list, count, least)                                                                                      \
    .type = GR_KEY_FILES, AT(list), .count_offset = offsetof(gr_config, count), .min = (least), .max = GR_DATA_FILES_MAX
#define NO_UNIT .unit = ""
#define WARNED .on_resume = GR_RESUME_WARNED
#define FREE .on_resume = GR_RESUME_FREE

const gr_key gr_keys[GR_N_KEY] = {
    {"run.dir", NO_UNIT, FREE, PATH, AT(run.dir), .meaning = "folder of this run: log, resolved config, weights"},
    {"run.seed", NO_UNIT, INT64(0, INT64_MAX), AT(run.seed), .fallback = "1234",
        .meaning = "initial weights and order of windows follow from it"},

    {"distill.teacher", NO_UNIT, FOR(DISTILL), FREE, PATH, AT(distill.teacher),
        .meaning = "the source: a run folder's `model.safetensors`, or a folder in Hugging Face's format (Qwen3-MoE)"},
    {"distill.teacher_layer", "layers", FOR(DISTILL), INT(0, 1023), AT(distill.teacher_layer), .fallback = "0",
        .meaning = "whose router is imitated; the source runs up to it and no further"},
    {"distill.temperature", NO_UNIT, FOR(DISTILL), NUMBER(GR_OPEN_LOW, 0, 1000), AT(distill.temperature),
        .fallback = "1", .meaning = "divides both sides' logits; the loss is multiplied by its square"},
    {"distill.experts_per_tok", "experts", FOR(DISTILL), INT(0, 64), AT(distill.experts_per_tok), .fallback = "0",
        .meaning = "K of the Grouter; 0 = the teacher's"},
    {"distill.scale", NO_UNIT, FOR(DISTILL), NUMBER(GR_CLOSED, 1e-6, 1e6), AT(distill.scale), .fallback = "1",
        .meaning = "what the Grouter's gates of a token add up to (the paper's code: 2.5)"},
    {"distill.scores_only", NO_UNIT, FOR(DISTILL), .type = GR_KEY_BOOL, AT(distill.scores_only), .fallback = "false",
        .meaning = "train the score matrix alone"},

    {"tune.grouter", NO_UNIT, FOR(TUNE), FREE, PATH, AT(tune.grouter), .meaning = "the Grouter to balance"},
    {"tune.mode", NO_UNIT, FOR(TUNE), NAME(tune_modes), AT(tune.mode), .fallback = "scores",
        .meaning = "what is changed: `scores` = the score matrix, `bias` = only the bias, by the sign rule, `full` = "
                   "everything"},
    {"tune.until_maxvio", NO_UNIT, FOR(TUNE), FREE, NUMBER(GR_CLOSED, 0, 4096), AT(tune.until_maxvio), .fallback = "0",
        .meaning = "stop once MaxVio over the validation windows is at most this, asked every "
                   "eval.every_steps; 0 = go through all steps"},

    {"model.vocab_size", "tokens", FOR(TRAIN | DISTILL), OPTIONAL_FOR(DISTILL), INT(2, 16777216), AT(model.vocab_size),
        .meaning = "V: token ids are below it (257 for the byte-level vocabulary)"},
    {"model.hidden_size", "elements", FOR(TRAIN | DISTILL), INT(1, 65536), AT(model.hidden_size),
        .meaning = "D: width of the model"},
    {"model.num_hidden_layers", "layers", FOR(TRAIN | DISTILL), OPTIONAL_FOR(DISTILL), INT(1, 1024),
        AT(model.num_hidden_layers), .meaning = "L"},
    {"model.num_attention_heads", "heads", FOR(TRAIN | DISTILL), OPTIONAL_FOR(DISTILL), INT(1, 1024),
        AT(model.num_attention_heads), .meaning = "H: query heads"},
    {"model.num_key_value_heads", "heads", FOR(TRAIN | DISTILL), INT(1, 1024), AT(model.num_key_value_heads),
        .derived = "model.num_attention_heads", .meaning = "key and value heads; divides the query heads"},
    {"model.head_dim", "elements", FOR(TRAIN | DISTILL), INT(2, 1024), AT(model.head_dim),
        .derived = "model.hidden_size / model.num_attention_heads", .meaning = "width of a head; even"},
    {"model.intermediate_size", "elements", FOR(TRAIN | DISTILL), INT(0, WIDTH_MAX), AT(model.intermediate_size),
        .fallback = "0", .meaning = "width of dense layers; needed when model.first_k_dense_replace > 0"},
    {"model.moe_intermediate_size", "elements", FOR(TRAIN), INT(1, WIDTH_MAX), AT(model.moe_intermediate_size),
        .meaning = "F: width of one expert"},
    {"model.num_experts", "experts", FOR(TRAIN), INT(1, 4096), AT(model.num_experts),
        .meaning = "E: experts per layer"},
    {"model.num_experts_per_tok", "experts", FOR(TRAIN), INT(1, 64), AT(model.num_experts_per_tok),
        .meaning = "K: experts a token uses; at most E"},
    {"model.shared_expert_intermediate_size", "elements", FOR(TRAIN), INT(0, WIDTH_MAX),
        AT(model.shared_expert_intermediate_size), .fallback = "0", .meaning = "width of the shared expert; 0 = none"},
    {"model.first_k_dense_replace", "layers", FOR(TRAIN), INT(0, 1024), AT(model.first_k_dense_replace),
        .fallback = "0", .meaning = "so many first layers are dense instead of experts"},
    {"model.rms_norm_eps", NO_UNIT, FOR(TRAIN | DISTILL), NUMBER(GR_OPEN_LOW, 0, 0.1), AT(model.rms_norm_eps),
        .fallback = "1e-6", .meaning = "added to the mean square in RMSNorm"},
    {"model.rope_theta", NO_UNIT, FOR(TRAIN | DISTILL), NUMBER(GR_CLOSED, 1, 1e12), AT(model.rope_theta),
        .fallback = "10000", .meaning = "base of the rotary embedding"},
    {"model.initializer_range", NO_UNIT, FOR(TRAIN | DISTILL), NUMBER(GR_OPEN_LOW, 0, 1), AT(model.initializer_range),
        .fallback = "0.02", .meaning = "standard deviation of the initial weights"},
    {"model.tie_word_embeddings", NO_UNIT, FOR(TRAIN), .type = GR_KEY_BOOL, AT(model.tie_word_embeddings),
        .fallback = "false", .meaning = "the head uses the embedding's weights"},
    {"model.use_qk_norm", NO_UNIT, FOR(TRAIN), .type = GR_KEY_BOOL, AT(model.use_qk_norm), .fallback = "false",
        .meaning = "RMSNorm on queries and keys of each head"},
    {"model.norm_topk_prob", NO_UNIT, FOR(TRAIN), .type = GR_KEY_BOOL, AT(model.norm_topk_prob), .fallback = "true",
        .meaning = "learned gates: softmax over the K chosen experts; `false`: over all, not adding up to the scale"},
    {"model.body", NO_UNIT, FOR(DISTILL), NAME(bodies), AT(model.body), .fallback = "attention",
        .meaning = "what lies between a Grouter's embedding and its scores: `attention` = blocks, `linear` = nothing, "
                   "`residual-linear` = layers without context"},
    {"model.mask", NO_UNIT, FOR(DISTILL), NAME(masks), AT(model.mask), .fallback = "causal",
        .meaning = "what a Grouter's attention sees: `bidirectional` masks use future tokens; `none` without "
                   "attention"},
    {"model.position", NO_UNIT, FOR(DISTILL), NAME(positions), AT(model.position), .fallback = "window",
        .meaning = "does a Grouter know positions: `window` = 0..T-1 by rotary embedding"},
    {"model.document_end", "token", FOR(DISTILL), INT(-1, 16777215), AT(model.document_end), .fallback = "-1",
        .meaning = "the token that ends a document, for the `-doc` masks; -1 = none"},
    {"model.zero_token", "token", FOR(DISTILL), INT(-1, 16777215), AT(model.zero_token), .fallback = "-1",
        .meaning = "this token's embedding is zero and stays it; -1 = none"},

    {"routing.source", NO_UNIT, FOR(TRAIN), NAME(sources), AT(routing.source), .fallback = "table",
        .meaning = "where routes come from: `table` = route tables made before training; `online` = a frozen Grouter "
                   "while the run goes on, the same bits; `learned` = a router in each layer, trained with the model"},
    {"routing.gates", NO_UNIT, FOR(TRAIN), NAME(gates), AT(routing.gates),
        .derived = "`learned` with learned routes, else `fixed`",
        .meaning =
            "`fixed` = those of tables or Grouter; `learned` = a router in each layer makes them, of given experts "
            "too"},
    {"routing.grouter", NO_UNIT, FOR(TRAIN), .type = GR_KEY_PATH, .min = 0, .max = GR_PATH_MAX - 1, AT(online.grouter),
        .derived = "required with `online`, else none",
        .meaning =
            "the Grouter that routes with `routing.source` = `online`; with `table`: 1,000 rows of each table are "
            "compared with it at the start"},
    {"routing.threshold", NO_UNIT, FOR(TRAIN), NUMBER(GR_CLOSED, 0, 1e6), AT(online.threshold), .fallback = "0",
        .meaning = "of that Grouter, dynamic activation: a token's gates from the largest on, while they add up to at "
                   "most this; 0 = all K"},
    {"routing.bias", NO_UNIT, FOR(TRAIN), .type = GR_KEY_BOOL, AT(online.bias), .fallback = "false",
        .meaning = "of that Grouter, bias routing: experts by score + bias, gates by score"},
    {"routing.scale", NO_UNIT, FOR(TRAIN), NUMBER(GR_OPEN_LOW, 0, 1000), AT(routing.scale), .fallback = "1",
        .meaning = "factor of learned gates: what a token's K gates add up to"},
    {"routing.aux_loss_coef", NO_UNIT, FOR(TRAIN), NUMBER(GR_CLOSED, 0, 100), AT(routing.aux_loss_coef),
        .fallback = "0", .meaning = "learned routers: weight of the load balancing loss, per window; 0 = none"},
    {"routing.z_loss_coef", NO_UNIT, FOR(TRAIN), NUMBER(GR_CLOSED, 0, 100), AT(routing.z_loss_coef), .fallback = "0",
        .meaning = "learned gates: weight of the mean squared log-sum-exp of the router's logits; 0 = none"},

    {"data.train", "files", FILES(data.train, data.n_train, 1), .meaning = "training token files with their routes"},
    {"data.train[].tokens", NO_UNIT, FREE, PATH, AT_FILE(tokens),
        .meaning = "token file: path of the .bin/.idx pair or llm.c .bin"},
    {"data.train[].routes", NO_UNIT, FOR(TRAIN), FREE, PATH, AT_FILE(routes), .derived = "required with tables",
        .meaning = "route table of that token file; only with `routing.source` = `table`"},
    {"data.train[].weight", NO_UNIT, WARNED, NUMBER(GR_OPEN_LOW, 0, 1e9), AT_FILE(weight), .fallback = "1",
        .meaning = "share of the stream, relative to the other files"},
    {"data.valid", "files", FREE, FILES(data.valid, data.n_valid, 0), .fallback = "[]",
        .meaning = "validation token files with their routes"},
    {"data.valid[].tokens", NO_UNIT, FREE, PATH, AT_FILE(tokens), .meaning = "as data.train[].tokens"},
    {"data.valid[].routes", NO_UNIT, FOR(TRAIN), FREE, PATH, AT_FILE(routes), .derived = "required with tables",
        .meaning = "as data.train[].routes"},
    {"data.seq_len", "tokens", INT(1, 1048576), AT(data.seq_len),
        .meaning = "T: tokens of a window; the route tables must have the same"},
    {"data.windows", NO_UNIT, FOR(TRAIN), NAME(windows), AT(data.windows), .fallback = "batch",
        .meaning =
            "with a placement, who gets which window: `batch` = each global batch keeps its windows, a rank takes "
            "those "
            "that suit its experts; `corpus` = a rank takes those of its own group of the placement, as in the paper"},

    {"optimizer.lr", NO_UNIT, WARNED, NUMBER(GR_OPEN_LOW, 0, 10), AT(optimizer.lr), .meaning = "peak learning rate"},
    {"optimizer.lr_min", NO_UNIT, WARNED, NUMBER(GR_CLOSED, 0, 10), AT(optimizer.lr_min), .fallback = "0",
        .meaning = "learning rate at the end of the decay"},
    {"optimizer.schedule", NO_UNIT, WARNED, NAME(schedules), AT(optimizer.schedule), .fallback = "cosine",
        .meaning = "course of the learning rate after warm-up"},
    {"optimizer.warmup_steps", "steps", WARNED, INT64(0, STEPS_MAX), AT(optimizer.warmup_steps), .fallback = "0",
        .meaning = "linear rise to optimizer.lr"},
    {"optimizer.decay_steps", "steps", WARNED, INT64(0, STEPS_MAX), AT(optimizer.decay_steps), .fallback = "0",
        .meaning = "step at which the decay ends, warm-up included; 0 = train.steps"},
    {"optimizer.beta1", NO_UNIT, WARNED, NUMBER(GR_OPEN_HIGH, 0, 1), AT(optimizer.beta1), .fallback = "0.9",
        .meaning = "AdamW: decay of the first moment"},
    {"optimizer.beta2", NO_UNIT, WARNED, NUMBER(GR_OPEN_HIGH, 0, 1), AT(optimizer.beta2), .fallback = "0.999",
        .meaning = "AdamW: decay of the second moment"},
    {"optimizer.eps", NO_UNIT, WARNED, NUMBER(GR_OPEN_LOW, 0, 0.1), AT(optimizer.eps), .fallback = "1e-8",
        .meaning = "AdamW: added to the root of the second moment"},
    {"optimizer.weight_decay", NO_UNIT, WARNED, NUMBER(GR_CLOSED, 0, 10), AT(optimizer.weight_decay), .fallback = "0.1",
        .meaning = "decoupled weight decay; not on norms"},
    {"optimizer.clip", NO_UNIT, WARNED, NUMBER(GR_CLOSED, 0, 1e6), AT(optimizer.clip), .fallback = "1",
        .meaning = "largest global gradient norm; 0 = no clipping"},

    {"train.steps", "steps", FREE, INT64(1, STEPS_MAX), AT(train.steps), .meaning = "optimizer updates of the run"},
    {"train.micro_batch_windows", "windows", FREE, INT(1, 65536), AT(train.micro_batch_windows),
        .meaning = "B: windows of one rank in one forward-backward"},
    {"train.global_batch_windows", "windows", INT(1, 16777216), AT(train.global_batch_windows),
        .meaning = "windows of one step over all ranks; a multiple of B x ranks"},
    {"train.recompute", NO_UNIT, FREE, NAME(recomputes), AT(train.recompute), .fallback = "none",
        .meaning = "activations made again in backward instead of kept: `experts` = of the FFN halves, `block` = all; "
                   "same bits, less memory, more time"},
    {"train.dtype", NO_UNIT, FOR(TRAIN), NAME(dtypes), AT(train.dtype), .fallback = "fp32",
        .meaning =
            "storage of activations and of the weights that the ops read; with `bf16` the optimizer still updates "
            "fp32 weights, which checkpoints hold; the CPU needs AVX-512"},

    {"parallel.backend", NO_UNIT, FREE, NAME(backends), AT(parallel.backend), .fallback = "auto",
        .meaning =
            "where arrays live and ops run: `auto` = `cuda` where it is compiled in and a GPU is there, else `cpu`"},
    {"parallel.expert_kernels", NO_UNIT, FOR(TRAIN), FREE, NAME(expert_kernels), AT(parallel.expert_kernels),
        .fallback = "auto",
        .meaning = "what computes experts on backend `cuda` in bf16 where D and F are multiples of 8: `cublas` = the "
                   "library's products, `mma` = own kernels, `wgmma` = own kernels for compute capability 9.0, `auto` "
                   "= the last of these that the GPU has; all else is `cublas`"},
    {"parallel.attention_kernels", NO_UNIT, FOR(TRAIN), FREE, NAME(attention_kernels), AT(parallel.attention_kernels),
        .fallback = "auto",
        .meaning = "what computes attention on backend `cuda` in bf16: `cublas` = the library's products and kernels "
                   "between them, `flash` = own kernels that keep no scores, for heads of a multiple of 8 up to 128, "
                   "`cudnn` = cuDNN 9.16 or later, for heads up to 256 without documents, `auto` = the last of these "
                   "that is there; what one cannot do is done by the one before it"},
    {"parallel.product_plans", NO_UNIT, FOR(TRAIN), FREE, .type = GR_KEY_PATH, .min = 0, .max = GR_PATH_MAX - 1,
        AT(parallel.product_plans), .derived = "none",
        .meaning = "algorithms of matrix products on backend `cuda`, from `bench step --tune-products` on the same GPU "
                   "and cuBLAS; none, and for products that are not in it = the library's first suggestion"},
    {"parallel.comm", NO_UNIT, FREE, NAME(comms), AT(parallel.comm), .fallback = "auto",
        .meaning =
            "how ranks talk: `auto` = `mpi` under a launcher of more than one rank, else `self`; on GPUs it is `nccl` "
            "where the program was built with it; `mpi` takes their data through host memory, so ranks may share a "
            "GPU"},
    {"parallel.expert_parallel_size", "ranks", FOR(TRAIN), FREE, INT(0, 4096), AT(parallel.expert_parallel_size),
        .fallback = "0",
        .meaning = "ranks that share one set of experts; divides ranks and E; 0 = smallest that fits (1)"},
    {"parallel.placement", NO_UNIT, FOR(TRAIN), FREE, .type = GR_KEY_PATH, .min = 0, .max = GR_PATH_MAX - 1,
        AT(parallel.placement), .derived = "none",
        .meaning = "which experts each rank of an expert-parallel group holds, from `place`; none = consecutive ones"},
    {"parallel.zero", NO_UNIT, FREE, INT(0, 1), AT(parallel.zero), .fallback = "1",
        .meaning = "ZeRO stage: 1 = a rank keeps the optimizer state of its share of the weights, with `bf16` also "
                   "their fp32 values, 0 = of all it holds"},

    {"checkpoint.every_steps", "steps", FREE, INT64(0, STEPS_MAX), AT(checkpoint.every_steps), .fallback = "0",
        .meaning = "a checkpoint every so many steps; 0 = only at the end and when asked to stop"},
    {"checkpoint.keep_last", "checkpoints", FREE, INT64(2, 1000000), AT(checkpoint.keep_last), .fallback = "2",
        .meaning = "newest checkpoints kept"},
    {"checkpoint.keep_every", "steps", FREE, INT64(0, STEPS_MAX), AT(checkpoint.keep_every), .fallback = "0",
        .meaning = "checkpoints of multiples of so many steps are kept for ever; 0 = none"},

    {"eval.every_steps", "steps", FREE, INT64(0, STEPS_MAX), AT(eval.every_steps), .fallback = "0",
        .meaning = "validation loss every so many steps; 0 = only at the end"},
    {"eval.windows", "windows", FREE, INT64(0, STEPS_MAX), AT(eval.windows), .fallback = "0",
        .meaning = "validation windows of one evaluation; 0 = all"},

    {"log.every_steps", "steps", FREE, INT64(1, STEPS_MAX), AT(log.every_steps), .fallback = "10",
        .meaning = "a line for people every so many steps (metrics.jsonl has every step)"},
};

int gr_key_find(const char *name) {
    for (int i = 0; i < GR_N_KEY; i++)
        if (strcmp(gr_keys[i].name, name) == 0)
            return i;
    return -1;
}

const char *gr_config_kind_name(gr_config_kind kind) {
    static const char *const names[GR_N_CONFIG_KIND] = {"train", "distill", "tune"};
    return names[kind];
}

bool gr_key_is_section(const char *name) {
    for (int i = 0; i < GR_N_SECTION; i++)
        if (strcmp(gr_key_sections[i], name) == 0)
            return true;
    return false;
}

bool gr_key_is_member(const gr_key *list, const gr_key *key) {
    size_t n = strlen(list->name);
    return strncmp(key->name, list->name, n) == 0 && strncmp(key->name + n, "[].", 3) == 0;
}

const char *gr_config_expert_kernels_name(const gr_config *c) {
    return expert_kernels[c->parallel.expert_kernels];
}

const char *gr_config_attention_kernels_name(const gr_config *c) {
    return attention_kernels[c->parallel.attention_kernels];
}

const char *gr_config_backend_name(const gr_config *c) {
    return backends[c->parallel.backend];
}

gr_dtype gr_config_dtype(const gr_config *c) {
    return c->train.dtype == GR_TRAIN_BF16 ? GR_BF16 : GR_F32;
}

const char *gr_config_comm_name(const gr_config *c) {
    return comms[c->parallel.comm];
}

/* ---------------------------------------------------------------- values */

static bool in_range(const gr_key *key, double v) {
    bool above = key->open == GR_OPEN_LOW ? v > key->low : v >= key->low;
    bool below = key->open == GR_OPEN_HIGH ? v < key->high : v <= key->high;
    return above && below;
}

static bool store_integer(const gr_key *key, char *to, const gr_json_node *node) {
    int64_t v;
    if (!gr_json_i64(node, &v) || v < key->min || v > key->max)
        return false;
    if (key->type == GR_KEY_INT)
        *(int *)to = (int)v;
    else
        *(int64_t *)to = v;
    return true;
}

static bool store_name(const gr_key *key, char *to, const gr_json_node *node) {
    if (node->kind != GR_JSON_STRING)
        return false;
    for (int i = 0; key->names[i]; i++)
        if (strcmp(key->names[i], node->string) == 0) {
            *(int *)to = i;
            return true;
        }
    return false;
}

static bool store_path(const gr_key *key, char *to, const gr_json_node *node) {
    if (node->kind != GR_JSON_STRING)
        return false;
    size_t n = strlen(node->string);
    if (n < (size_t)key->min || n > (size_t)key->max)
        return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)node->string[i] < 0x20 || node->string[i] == 0x7f)
            return false;
    memset(to, 0, GR_PATH_MAX);
    memcpy(to, node->string, n);
    return true;
}

bool gr_key_store(const gr_key *key, void *base, const gr_json_node *node) {
    char *to = (char *)base + key->offset;
    double number;
    switch (key->type) {
    case GR_KEY_INT:
    case GR_KEY_INT64:
        return store_integer(key, to, node);
    case GR_KEY_NUMBER:
        if (!gr_json_f64(node, &number) || !in_range(key, number))
            return false;
        *(double *)to = number;
        return true;
    case GR_KEY_BOOL:
        if (node->kind != GR_JSON_BOOL)
            return false;
        *(bool *)to = node->boolean;
        return true;
    case GR_KEY_NAME:
        return store_name(key, to, node);
    case GR_KEY_PATH:
        return store_path(key, to, node);
    case GR_KEY_FILES:
        break;
    }
    return false;
}

void gr_key_store_fallback(const gr_key *key, void *base) {
    const char *text = key->fallback;
    gr_json_kind kind = key->type == GR_KEY_BOOL                               ? GR_JSON_BOOL
                        : key->type == GR_KEY_NAME || key->type == GR_KEY_PATH ? GR_JSON_STRING
                                                                               : GR_JSON_NUMBER;
    gr_json_node node = {.kind = kind, .string = text, .number = text, .boolean = strcmp(text, "true") == 0};
    GR_ASSERT(gr_key_store(key, base, &node), "%s: default %s is not legal", key->name, text);
}

const char *gr_key_expected(const gr_key *key, char text[GR_EXPECTED_MAX]) {
    size_t n = 0;
    switch (key->type) {
    case GR_KEY_INT:
    case GR_KEY_INT64:
        snprintf(text, GR_EXPECTED_MAX, "an integer in [%lld, %lld]", (long long)key->min, (long long)key->max);
        break;
    case GR_KEY_NUMBER:
        snprintf(text, GR_EXPECTED_MAX, "a number in %c%g, %g%c", key->open == GR_OPEN_LOW ? '(' : '[', key->low,
            key->high, key->open == GR_OPEN_HIGH ? ')' : ']');
        break;
    case GR_KEY_BOOL:
        snprintf(text, GR_EXPECTED_MAX, "true or false");
        break;
    case GR_KEY_NAME:
        for (int i = 0; key->names[i]; i++)
            n += (size_t)snprintf(text + n, GR_EXPECTED_MAX - n, "%s\"%s\"", i ? " or " : "", key->names[i]);
        break;
    case GR_KEY_PATH:
        snprintf(text, GR_EXPECTED_MAX, "a path of %lld to %lld bytes without control characters", (long long)key->min,
            (long long)key->max);
        break;
    case GR_KEY_FILES:
        snprintf(text, GR_EXPECTED_MAX, "an array of %lld to %lld objects {\"tokens\": path, \"routes\": path}",
            (long long)key->min, (long long)key->max);
        break;
    }
    return text;
}
