/* config.h: the run's configuration: strict JSON -> one plain struct. Key names are API (configs/README.md lists them).
 */
#ifndef GROUTER_CONFIG_H
#define GROUTER_CONFIG_H

#include "grouter/base.h"

#define GR_PATH_MAX 1024
#define GR_DATA_FILES_MAX 64

typedef enum gr_schedule { GR_SCHEDULE_COSINE, GR_SCHEDULE_WSD, GR_SCHEDULE_LINEAR, GR_SCHEDULE_CONSTANT } gr_schedule;
/* What computes experts on backend cuda: see gr_backend_set_experts. */
typedef enum gr_expert_kernels {
    GR_EXPERT_KERNELS_AUTO,
    GR_EXPERT_KERNELS_CUBLAS,
    GR_EXPERT_KERNELS_MMA,
    GR_EXPERT_KERNELS_WGMMA
} gr_expert_kernels;
/* What computes attention there: see gr_backend_set_attention. */
typedef enum gr_config_attention {
    GR_CONFIG_ATTENTION_AUTO,
    GR_CONFIG_ATTENTION_CUBLAS,
    GR_CONFIG_ATTENTION_FLASH,
    GR_CONFIG_ATTENTION_CUDNN
} gr_config_attention;
typedef enum gr_backend_kind { GR_BACKEND_AUTO, GR_BACKEND_CPU, GR_BACKEND_CUDA } gr_backend_kind;
typedef enum gr_comm_kind { GR_COMM_AUTO, GR_COMM_SELF, GR_COMM_MPI, GR_COMM_NCCL } gr_comm_kind;
/* Activations that are not kept for backward but computed again in it: of the FFN halves of all blocks, or of whole
 * blocks. */
typedef enum gr_recompute { GR_RECOMPUTE_NONE, GR_RECOMPUTE_EXPERTS, GR_RECOMPUTE_BLOCK } gr_recompute;
/* Order of the names in schema.c. */
typedef enum gr_train_dtype { GR_TRAIN_FP32, GR_TRAIN_BF16 } gr_train_dtype;
/* Where the experts of a token come from, and where its gates. With learned experts the gates are learned too. */
typedef enum gr_source {
    GR_SOURCE_TABLE,
    GR_SOURCE_ONLINE, /* a frozen Grouter, while the run goes on */
    GR_SOURCE_LEARNED,
    GR_SOURCE_NONE, /* no experts: a Grouter is trained */
} gr_source;
typedef enum gr_gates { GR_GATES_FIXED, GR_GATES_LEARNED } gr_gates;
/* Which windows a rank gets with a placement: those of its global batch that suit its experts, or those of its group.
 */
typedef enum gr_windows { GR_WINDOWS_BATCH, GR_WINDOWS_CORPUS } gr_windows;

/* routing{} */
typedef struct gr_routing {
    gr_source source;
    gr_gates gates;
    double scale;                      /* of learned gates: with norm_topk_prob what a token's gates add up to */
    double aux_loss_coef, z_loss_coef; /* 0 = none */
} gr_routing;

/* What the last layer feeds. */
typedef enum gr_head {
    GR_HEAD_TOKENS, /* logits of the next token: a language model */
    GR_HEAD_SCORES, /* scores of experts: a Grouter. Its layers are dense: first_k_dense_replace = num_hidden_layers */
    GR_HEAD_ROUTER, /* logits of the last layer's router: a source that ends there, without experts in that layer */
} gr_head;

/* What lies between a Grouter's embedding and its scores. */
typedef enum gr_body {
    GR_BODY_ATTENTION,       /* num_hidden_layers pre-norm blocks and a final norm */
    GR_BODY_LINEAR,          /* nothing */
    GR_BODY_RESIDUAL_LINEAR, /* num_hidden_layers times [linear, layer norm, ReLU], intermediate_size wide inside */
} gr_body;

/* model{}: Hugging Face names where Hugging Face has one. */
typedef struct gr_model_config {
    int vocab_size, hidden_size, num_hidden_layers;
    int num_attention_heads, num_key_value_heads, head_dim;
    int intermediate_size;                /* width of dense layers; required when first_k_dense_replace > 0 */
    int moe_intermediate_size;            /* F */
    int num_experts, num_experts_per_tok; /* E, K */
    int shared_expert_intermediate_size;  /* 0 = no shared expert */
    int first_k_dense_replace;            /* the first k layers are dense */
    double rms_norm_eps, rope_theta;
    double initializer_range; /* standard deviation of the initial weights */
    bool tie_word_embeddings, use_qk_norm;
    gr_head head;
    /* Of a Grouter only; language models see the whole window before them, at positions 0..T-1 of the window. */
    int num_labels; /* rows of its score matrix: the experts it chooses among */
    gr_body body;
    gr_mask mask; /* NONE exactly when the body is not ATTENTION */
    gr_position position;
    int document_end;    /* token that ends a document, for the DOC masks; -1: none */
    int zero_token;      /* its embedding is zero and stays it; -1: none */
    bool norm_topk_prob; /* learned gates: softmax over the chosen experts, else over all */
    gr_routing routing;  /* routing{} once more: with learned gates every MoE layer has a router */
} gr_model_config;

typedef struct gr_data_file {
    char tokens[GR_PATH_MAX]; /* prefix of the .bin/.idx pair */
    char routes[GR_PATH_MAX]; /* route table of that token file; "" unless routing.source is table */
    double weight;            /* share of the stream, > 0; relative */
} gr_data_file;

/* Which command a config is for; each has keys that the others do not know. */
typedef enum gr_config_kind { GR_CONFIG_TRAIN, GR_CONFIG_DISTILL, GR_CONFIG_TUNE, GR_N_CONFIG_KIND } gr_config_kind;
const char *gr_config_kind_name(gr_config_kind kind); /* "train", "distill", "tune" */

/* What `tune` changes. */
typedef enum gr_tune_mode {
    GR_TUNE_SCORES, /* the score matrix */
    GR_TUNE_BIAS,   /* the bias, by the sign rule */
    GR_TUNE_FULL,   /* everything */
} gr_tune_mode;

typedef struct gr_config {
    gr_config_kind kind;
    struct {
        char dir[GR_PATH_MAX];
        uint64_t seed;
    } run;
    gr_model_config model;
    gr_routing routing;
    struct {
        char
            grouter[GR_PATH_MAX]; /* "": none; routes with source online, is compared with the tables of source table */
        double threshold;         /* of dynamic activation; 0 = off */
        bool bias;                /* bias routing */
    } online;                     /* the keys of routing{} that are about a Grouter */
    struct {
        char teacher[GR_PATH_MAX]; /* weights of the source */
        int teacher_layer;
        double temperature;
        int experts_per_tok; /* K of the Grouter; 0 = the teacher's */
        double scale;        /* what its gates sum to */
        bool scores_only;
    } distill;
    struct {
        char grouter[GR_PATH_MAX]; /* what is tuned */
        gr_tune_mode mode;
        double until_maxvio; /* stop once MaxVio is at most this; 0 = never */
    } tune;
    struct {
        gr_data_file train[GR_DATA_FILES_MAX], valid[GR_DATA_FILES_MAX];
        int n_train, n_valid;
        int seq_len; /* T */
        gr_windows windows;
    } data;
    struct {
        double lr, lr_min;
        gr_schedule schedule;
        int64_t warmup_steps, decay_steps;            /* decay_steps 0 = train.steps */
        double beta1, beta2, eps, weight_decay, clip; /* clip 0 = off */
    } optimizer;
    struct {
        int64_t steps;
        int micro_batch_windows, global_batch_windows;
        gr_recompute recompute;
        gr_train_dtype dtype;
    } train;
    struct {
        gr_backend_kind backend;
        gr_comm_kind comm;
        gr_expert_kernels expert_kernels;
        gr_config_attention attention_kernels;
        char product_plans[GR_PATH_MAX]; /* "": none */
        int expert_parallel_size;        /* 0 = smallest that fits: 1 */
        int zero;                        /* ZeRO stage, 0 or 1 */
        char placement[GR_PATH_MAX];     /* "": none */
    } parallel;
    struct {
        int64_t every_steps; /* 0 = only at the end */
        int64_t windows;     /* 0 = all */
    } eval;
    struct {
        int64_t every_steps; /* 0 = only at the end and when asked to stop */
        int64_t keep_last, keep_every;
    } checkpoint;
    struct {
        int64_t every_steps;
    } log;
} gr_config;

/* Reads `path` as a config for one command, applies `--set` assignments ("a.b=value", value as JSON or, for strings,
 * bare text), fills defaults and checks every value. All errors at once (up to 20 lines), each with source:line:column,
 * key, value, allowed range and the nearest known key for unknown ones: 64. */
GR_MUST gr_err gr_config_load(gr_config *out, gr_config_kind kind, const char *path, const char *const *set, int n_set);

/* The rules between keys that need the number of ranks (divisibility and the like), each with its equation: 64. */
GR_MUST gr_err gr_config_check_ranks(const gr_config *c, int n_rank);

/* What the other parts are asked for by: "auto", "cpu"; "auto", "self", "mpi"; ranks of an expert-parallel group, where
 * 0 means the smallest that fits. */
const char *gr_config_backend_name(const gr_config *c);
const char *gr_config_comm_name(const gr_config *c);
const char *gr_config_expert_kernels_name(const gr_config *c); /* "auto", "cublas", ... */
const char *gr_config_attention_kernels_name(const gr_config *c);
gr_dtype gr_config_dtype(const gr_config *c); /* GR_F32 or GR_BF16 */
int gr_config_expert_parallel(const gr_config *c);

/* What a changed key means when a run is resumed. */
typedef enum gr_on_resume {
    GR_RESUME_REFUSED, /* 64, unless overridden by name */
    GR_RESUME_WARNED,
    GR_RESUME_FREE,
} gr_on_resume;

/* Reads a config from text, as gr_config_load does from a file; `source` names it in errors. */
GR_MUST gr_err gr_config_parse(gr_config *out, gr_config_kind kind, const char *text, const char *source);

/* Calls visit for every key whose value differs, with both values as JSON, in the order of configs/README.md; array
 * elements as "data.train[0].weight", a changed number of elements as "data.train". 69 without memory. */
typedef void (*gr_config_visit)(const char *key, gr_on_resume rule, const char *before, const char *now, void *context);
GR_MUST gr_err gr_config_compare(const gr_config *before, const gr_config *now, gr_config_visit visit, void *context);

/* A key that may be overridden on resume: one of the config, or what a file holds: "data.train[N].content",
 * "parallel.placement.content", "distill.teacher.content", "tune.grouter.content". Anything else is 2 with the nearest
 * key. */
GR_MUST gr_err gr_config_check_override(const char *key);

/* The resolved config as JSON text, every key present, loadable again; the caller frees *text. */
GR_MUST gr_err gr_config_text(const gr_config *c, char **text);

/* One line per key for configs/README.md and its test: "| `a.b` | for | type | unit | default | range | on resume |
 * meaning |". */
void gr_config_print_keys(FILE *out);

#endif
