/* config.h: the run's configuration: strict JSON -> one plain struct. Key names are API (configs/README.md lists them).
 */
#ifndef GROUTER_CONFIG_H
#define GROUTER_CONFIG_H

#include "grouter/base.h"

#define GR_PATH_MAX 1024
#define GR_DATA_FILES_MAX 64

typedef enum gr_schedule { GR_SCHEDULE_COSINE, GR_SCHEDULE_WSD, GR_SCHEDULE_LINEAR, GR_SCHEDULE_CONSTANT } gr_schedule;
typedef enum gr_backend_kind { GR_BACKEND_AUTO, GR_BACKEND_CPU } gr_backend_kind;
typedef enum gr_comm_kind { GR_COMM_AUTO, GR_COMM_SELF, GR_COMM_MPI } gr_comm_kind;
/* Activations that are not kept for backward but computed again in it: of the FFN halves of all blocks, or of whole
 * blocks. */
typedef enum gr_recompute { GR_RECOMPUTE_NONE, GR_RECOMPUTE_EXPERTS, GR_RECOMPUTE_BLOCK } gr_recompute;
/* Order of the names in schema.c. */
typedef enum gr_train_dtype { GR_TRAIN_FP32, GR_TRAIN_BF16 } gr_train_dtype;
typedef enum gr_source { GR_SOURCE_TABLE } gr_source;

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
} gr_model_config;

typedef struct gr_data_file {
    char tokens[GR_PATH_MAX]; /* prefix of the .bin/.idx pair */
    char routes[GR_PATH_MAX]; /* route table of that token file */
    double weight;            /* share of the stream, > 0; relative */
} gr_data_file;

typedef struct gr_config {
    struct {
        char dir[GR_PATH_MAX];
        uint64_t seed;
    } run;
    gr_model_config model;
    struct {
        gr_source source;
    } routing;
    struct {
        gr_data_file train[GR_DATA_FILES_MAX], valid[GR_DATA_FILES_MAX];
        int n_train, n_valid;
        int seq_len; /* T */
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
        int expert_parallel_size; /* 0 = smallest that fits: 1 */
        int zero;                 /* ZeRO stage, 0 or 1 */
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

/* Reads `path`, applies `--set` assignments ("a.b=value", value as JSON or, for strings, bare text), fills defaults and
 * checks every value. All errors at once (up to 20 lines), each with source:line:column, key, value, allowed range and
 * the nearest known key for unknown ones: 64. */
GR_MUST gr_err gr_config_load(gr_config *out, const char *path, const char *const *set, int n_set);

/* The rules between keys that need the number of ranks (divisibility and the like), each with its equation: 64. */
GR_MUST gr_err gr_config_check_ranks(const gr_config *c, int n_rank);

/* What the other parts are asked for by: "auto", "cpu"; "auto", "self", "mpi"; ranks of an expert-parallel group, where
 * 0 means the smallest that fits. */
const char *gr_config_backend_name(const gr_config *c);
const char *gr_config_comm_name(const gr_config *c);
gr_dtype gr_config_dtype(const gr_config *c); /* GR_F32 or GR_BF16 */
int gr_config_expert_parallel(const gr_config *c);

/* What a changed key means when a run is resumed. */
typedef enum gr_on_resume {
    GR_RESUME_REFUSED, /* 64, unless overridden by name */
    GR_RESUME_WARNED,
    GR_RESUME_FREE,
} gr_on_resume;

/* Reads a config from text, as gr_config_load does from a file; `source` names it in errors. */
GR_MUST gr_err gr_config_parse(gr_config *out, const char *text, const char *source);

/* Calls visit for every key whose value differs, with both values as JSON, in the order of configs/README.md; array
 * elements as "data.train[0].weight", a changed number of elements as "data.train". 69 without memory. */
typedef void (*gr_config_visit)(const char *key, gr_on_resume rule, const char *before, const char *now, void *context);
GR_MUST gr_err gr_config_compare(const gr_config *before, const gr_config *now, gr_config_visit visit, void *context);

/* A key that may be overridden on resume: one of the config, or "data.train[N].content", what a file holds. Anything
 * else is 2 with the nearest key. */
GR_MUST gr_err gr_config_check_override(const char *key);

/* The resolved config as JSON text, every key present, loadable again; the caller frees *text. */
GR_MUST gr_err gr_config_text(const gr_config *c, char **text);

/* One line per key for configs/README.md and its test: "| `a.b` | type | unit | default | range | meaning |". */
void gr_config_print_keys(FILE *out);

#endif
