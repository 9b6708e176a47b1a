/* model.h: the decoder and its parameter table. Written once for targets, sources and Grouters; they differ by config.
 */
#ifndef GROUTER_MODEL_H
#define GROUTER_MODEL_H

#include "grouter/backend.h"
#include "grouter/comm.h"
#include "grouter/config.h"
#include "grouter/moe.h"
#include "grouter/plan.h"
#include "grouter/staging.h"

/* ---------------------------------------------------------------- the parameter table
 * All parameters of this rank live in one flat fp32 range [dense | experts]; gradients and moments have the same
 * layout. Optimizer, checkpoints, initialisation and counts read this table and nothing else.
 *
 * Entries come in ascending offset. Contiguous, without gaps: q|k|v of a layer as one matrix [(H+2H_kv)*hd, D]; gate|up
 * of a dense MLP or shared expert as [2*width, D]; all gate|up of a layer's experts as [E_local][2F][D]; all down as
 * [E_local][D][F]. Each such group starts at a multiple of 64 bytes. Elements between groups belong to no parameter and
 * stay 0 in weights, gradients and moments. */

typedef enum gr_param_kind {
    GR_PARAM_EMBED,
    GR_PARAM_ATTENTION,
    GR_PARAM_NORM,
    GR_PARAM_DENSE,
    GR_PARAM_ROUTER, /* logits of a MoE layer's experts; there with learned gates */
    GR_PARAM_SHARED,
    GR_PARAM_EXPERT,
    GR_PARAM_HEAD,
    GR_PARAM_LINEAR, /* of a context-free Grouter's layers */
    GR_PARAM_SCORE,  /* of a Grouter: one row per expert it chooses among */
    GR_PARAM_BIAS    /* added per element: of layer norms; of a Grouter's scores, where only bias routing reads it */
} gr_param_kind;

typedef struct gr_param {
    char name[96]; /* Hugging Face name; of experts a format with one %u for the logical expert id */
    gr_param_kind kind;
    int n_dim;         /* 1 or 2 */
    int64_t dim[2];    /* [rows, columns] of one matrix, or [n] */
    uint32_t n_matrix; /* 1; experts: E_local, matrix i is the expert in slot i of this rank */
    int64_t offset;    /* first element in the flat range */
    int64_t stride;    /* elements between matrices */
    bool decay;        /* weight decay applies: matrices and embeddings, not norms */
    gr_group owner;    /* GR_WORLD: replicated, gradients summed over the world; GR_EDP: experts */
    bool frozen;       /* gets no gradient; the optimizer leaves it alone */
    float init_std;    /* 0: ones (norms) or zeros (biases) */
    int64_t zero_row;  /* this row of the matrix is 0 and stays it; -1: none */
    int64_t vector;    /* with n_dim 1: first element among all vectors, see gr_weights_gather; -1: a matrix */
} gr_param;

typedef struct gr_params {
    int n;
    gr_param *list;
    int64_t n_dense;          /* elements [0, n_dense) are replicated */
    int64_t n_element;        /* [n_dense, n_element) are this rank's experts */
    int64_t n_vector;         /* elements of all norms and biases, each from a multiple of 64 bytes on */
    const gr_expert_map *map; /* slots -> logical ids; borrowed */
    uint32_t ep_rank;
} gr_params;

/* Elements of one matrix. */
int64_t gr_param_size(const gr_param *p);
/* Name of matrix i (of experts with its logical id) into name[GR_TENSOR_NAME_MAX = 128]. */
const char *gr_param_name(const gr_params *params, const gr_param *p, uint32_t i, char name[128]);
/* Entry with exactly this stored name (experts: the format, "...mlp.experts.%u.up_proj.weight"); NULL if absent. */
const gr_param *gr_params_find(const gr_params *p, const char *name_format);

/* The config has been checked. 69 if the sizes do not fit 64 bits. */
/* n_dense is padded to a multiple of 16*dense_shards and the experts' part to one of 16*expert_shards, so that each
 * splits into equal shards (1, 1: no sharding). */
GR_MUST gr_err gr_params_open(gr_params *out, const gr_model_config *c, const gr_expert_map *map, uint32_t ep_rank,
    int dense_shards, int expert_shards);
void gr_params_close(gr_params *p);

/* Elements [first, first+n) of the flat range. */
typedef struct gr_share {
    int64_t first, n;
} gr_share;

/* What this rank owns: an equal share of [0] the dense part, over the world, and of [1] its experts, over the ranks
 * that hold the same ones. Over all ranks each element of the model has exactly one owner. */
void gr_share_owned(const gr_params *p, const gr_comm *comm, gr_share owned[2]);

/* fp32 weights of a rank: [0] of the dense part, [1] of the experts. All it uses, or only what it owns. Borrowed. */
typedef struct gr_weights {
    gr_share share[2];
    float *at[2];        /* [share.n] */
    gr_backend *backend; /* whose memory that is; NULL: host memory */
} gr_weights;

/* flat [n_element]; host memory, as in the next one, until the caller sets the backend. */
gr_weights gr_weights_whole(const gr_params *p, float *flat);
/* The values of both shares lie one after the other. */
gr_weights gr_weights_shared(const gr_params *p, const gr_comm *comm, float *values);
/* Values of `share`, which lies within one part of what w has. */
float *gr_weights_at(const gr_weights *w, gr_share share);

/* Collective, for weights in shares that changed: act [n_element] of `dtype`, in which each rank has its own share, is
 * filled with everybody's; vectors [n_vector] with all norms and biases, bit for bit. Both in the weights' memory. */
GR_MUST gr_err gr_weights_gather(
    const gr_params *p, gr_comm *comm, const gr_weights *w, void *act, gr_dtype dtype, float *vectors);
/* The vectors alone; and of act alone, or of whole fp32 weights, one part that lies within the dense range or the
 * experts: data [part.n]. */
GR_MUST gr_err gr_weights_gather_vectors(const gr_params *p, gr_comm *comm, const gr_weights *w, float *vectors);
GR_MUST gr_err gr_weights_gather_part(const gr_params *p, gr_comm *comm, gr_share part, gr_dtype dtype, void *data);

/* Initial weights: N(0, init_std^2) by Philox keyed by (seed, tensor name, element), norms 1: equal in every layout.
 * Elements of no tensor become 0. 69 where they go through host memory and it is not there. */
GR_MUST gr_err gr_params_init(const gr_params *p, uint64_t seed, gr_weights weights);

/* Whole-model counts (all ranks), from the config alone. A Grouter's score bias is in none of them: it is frozen. Of a
 * source cut off at a router only what is left of it counts. */
typedef struct gr_model_count {
    int64_t matrices; /* all matrices and embeddings */
    int64_t norms;    /* weights of norms and, of layer norms, biases */
    int64_t experts;  /* routed expert matrices, part of matrices */
    int64_t active;   /* per token: matrices without the input embedding, with the head or scores, K of E experts */
    /* Forward + backward: 6*active + 12*L*H*head_dim*(keys of a row): T/2 where the mask is causal, as a language
     * model's is, T where it is not, 0 without attention. Documents see fewer: what they save is not in it. */
    double flops_per_token;
} gr_model_count;
void gr_model_count_config(const gr_model_config *c, int64_t T, gr_model_count *out);

/* How often one rank's rows travel in forward and backward of a micro-batch, over all layers. A dispatch sends each row
 * of the plan's send_rows, a combine returns each of its recv_rows; both are rows of hidden_size activations. */
typedef struct gr_model_transfers {
    int dispatch, combine;
    int gates;   /* out with the dispatched rows, and as often back: rows of num_experts_per_tok floats */
    int choices; /* num_experts_per_tok u16 of each own token to each other rank of the group */
} gr_model_transfers;
gr_model_transfers gr_model_transfers_count(const gr_model_config *c, gr_recompute recompute);

/* ---------------------------------------------------------------- the model */

typedef struct gr_model gr_model;

/* What backward goes into. */
typedef enum gr_trained {
    GR_TRAINED_ALL,
    GR_TRAINED_SCORES, /* of a Grouter: only its score matrix; everything else is frozen */
    GR_TRAINED_BIAS,   /* of a Grouter: nothing by gradient; its owner sets the bias */
} gr_trained;

typedef struct gr_model_options {
    const gr_model_config *config;
    gr_backend *backend;
    gr_comm *comm;                /* groups formed */
    const gr_expert_map *map;     /* borrowed; a Grouter needs none */
    const gr_plan_limits *limits; /* N = B*T own tokens and the largest rows and pairs of any micro-batch; with
                                     routing.source learned of any choice (gr_plan_limits_worst) */
    int64_t T;
    bool train; /* false: no gradients, no saved activations beyond one layer */
    gr_trained trained;
    /* Of the training model; gradients are bit-identical in all three. NONE keeps every layer's activations. EXPERTS
     * keeps one FFN half (received rows, hidden units of experts, shared expert and dense layers) for all layers:
     * backward makes it again from the residual stream. BLOCK keeps only the residual stream before each layer and one
     * whole block. Both dispatch every MoE layer's rows but the last one's once more: each row then travels 5 times
     * instead of 4. */
    gr_recompute recompute;
    bool shared_weights; /* the fp32 weights are only those this rank owns; the ops read the rounded copy, so the
                            storage type must not be fp32 */
} gr_model_options;

/* Builds the parameter table, allocates weights, gradients (train) and activations: 69 before anything else if they do
 * not fit. Weights are zero until gr_params_init or a checkpoint fills them, followed by gr_model_weights_changed. */
GR_MUST gr_err gr_model_open(gr_model **out, const gr_model_options *o);
/* The same model without its memory: only its parameter table and gr_model_memory_get may be asked for, and of the
 * options' comm only ranks and sizes are read. 69 if a size does not fit the address space. */
GR_MUST gr_err gr_model_measure(gr_model **out, const gr_model_options *o);
void gr_model_close(gr_model *m); /* accepts NULL */

/* Bytes by use, as the layouts that place the model count them; their sum, but for `attention`, is what it allocates.
 */
typedef struct gr_model_memory {
    size_t weights, gradients;
    size_t weights_act; /* copy of the weights in the backend's storage type; 0 for fp32 */
    size_t vectors;     /* norms and biases in fp32; 0 unless the weights are in shares */
    size_t activations; /* residual streams and what backward needs of each layer */
    size_t logits;      /* one chunk of the head's */
    size_t scratch;     /* shared by the layers: rows and pairs in flight, gradients of activations */
    size_t tables;      /* rotation angles, indices */
    size_t attention;   /* what the backend takes for attention besides, at most: gr_backend.attention_scratch */
    size_t plans;       /* host memory: with routing.source learned one plan per layer and the group's choices; borders
                           of documents; without host_memory, room to pack a micro-batch */
} gr_model_memory;
gr_model_memory gr_model_memory_get(const gr_model *m);

/* Before a micro-batch whose plan may need more than the options' limits, as routes that are made while the run goes on
 * may: then the activations are released and placed anew, larger, and it is said. They hold nothing between two
 * micro-batches, so no bit changes. Plan NULL: nothing. 69. */
GR_MUST gr_err gr_model_make_room(gr_model *m, const gr_plan *plan);

const gr_params *gr_model_params(const gr_model *m);
gr_weights gr_model_masters(gr_model *m); /* fp32, whole or in shares, backend memory */
float *gr_model_weights(gr_model *m);     /* the same as one flat range [n_element]; NULL if in shares */
float *gr_model_gradients(gr_model *m);   /* [n_element] */
/* The rounded copy [n_element] that the ops read, except norms and biases; NULL where weights are stored as fp32. It
 * always equals the rounded weights: the optimizer, which is given it, keeps it so. */
void *gr_model_weights_act(gr_model *m);
/* Norms and biases [n_vector] of weights in shares, kept likewise; NULL where weights are whole. */
float *gr_model_vectors(gr_model *m);
/* To be called after anything but the optimizer wrote the weights: rounds all of them. Collective over the world if
 * they are in shares. */
GR_MUST gr_err gr_model_weights_changed(gr_model *m);

/* One micro-batch of this rank. */
typedef struct gr_batch {
    const uint32_t *token;  /* [N] */
    const int32_t *target;  /* [N], -1 = ignored; NULL for a Grouter */
    const gr_plan *plan;    /* host; serves every layer, forward and backward; NULL with routing.source learned and
                               for a Grouter */
    const float *pair_gate; /* [n_pair], host; fixed gates */
    const uint16_t *ids;    /* [N,K] host; experts of the own tokens, for learned gates of a table's experts */
} gr_batch;

/* Milliseconds of the host by phase, added to by every call; the caller resets them. A backend that works behind the
 * host is not waited for: then they are of giving out work. */
typedef struct gr_phases {
    double forward_ms, backward_ms, exchange_ms;
} gr_phases;

/* Forward and backward; gradients are accumulated, scaled by loss_scale = 1/(tokens of the global batch).
 * *loss_sum += sum of this rank's token losses in nats: cross-entropy alone, while gradients are also those of the
 * routers' losses (see gr_model_sums). NULL: it is kept for gr_model_sums_get, and with routes that are given nothing
 * waits for the backend. Collective over the expert-parallel group. */
GR_MUST gr_err gr_model_step(gr_model *m, const gr_batch *b, float loss_scale, double *loss_sum, gr_phases *phases);
/* From now on `done` is called in every gr_model_step of a language model as soon as nothing more is added to a part of
 * the gradients: by ops of lane COMPUTE that are queued already. Parts are of the dense range or of the experts, come
 * in the same order on all ranks and are all there is, each once. `done` may call collectives. NULL: nobody is told. */
typedef gr_err gr_part_call(void *of, gr_share part);
void gr_model_gradients_watch(gr_model *m, gr_part_call *done, void *of);
/* The weights that the ops read have been updated where they are owned, and are still to be gathered: by `gather`, part
 * by part in the order in which forward needs them, beside COMPUTE (gr_comm.beside). It is called for the first part
 * now, and for each next one as the forward of the next gr_model_step or gr_model_loss comes to the one before; ops of
 * lane COMPUTE then wait for the part they read. Settle: for all parts that are left; whoever else reads the weights
 * calls it before. All ranks do the same. */
GR_MUST gr_err gr_model_weights_await(gr_model *m, gr_part_call *gather, void *of);
GR_MUST gr_err gr_model_weights_settle(gr_model *m);
/* Forward only. */
GR_MUST gr_err gr_model_loss(gr_model *m, const gr_batch *b, double *loss_sum, gr_phases *phases);
/* The same with the loss of each token besides: token_loss [N] in nats, 0 where ignored, host memory; or NULL. */
GR_MUST gr_err gr_model_token_losses(
    gr_model *m, const gr_batch *b, double *loss_sum, double *token_loss, gr_phases *phases);
GR_MUST gr_err gr_model_zero_gradients(gr_model *m); /* and the sums below */

/* What gr_model_step has added up since gr_model_zero_gradients over the windows of this rank: token losses, where its
 * loss_sum was NULL, and losses of the routers of the MoE layers, multiplied by their coefficients and loss_scale, so
 * that their sum over the world is that of the global batch (Switch, ST-MoE; statistics per window, so that any layout
 * has the same):
 *   aux  sum over layers of aux_loss_coef * E/(K T^2) * mean over windows of sum_i count_i * sum_t p_ti
 *   z    sum over layers of z_loss_coef * mean over tokens of logsumexp(logits)^2 */
typedef struct gr_model_sums {
    double loss, aux_loss, z_loss;
} gr_model_sums;
/* load [gr_model_routers(m), E] (or NULL): tokens per expert of each MoE layer. Waits for the backend. */
GR_MUST gr_err gr_model_sums_get(gr_model *m, gr_model_sums *sums, uint64_t *load);
/* The sums alone to backend memory, by an op of lane COMPUTE: to [GR_MODEL_SUMS] in the struct's order. */
#define GR_MODEL_SUMS 3
GR_MUST gr_err gr_model_sums_copy(gr_model *m, double *to);
/* The loads alone. Waits for the backend if load is not page-locked. */
GR_MUST gr_err gr_model_load_get(gr_model *m, uint64_t *load);
/* Where `loss` is added up, for objectives that compute their own: backend memory. */
double *gr_model_loss_sum(gr_model *m);
/* MoE layers with a router; 0 with fixed gates. */
int gr_model_routers(const gr_model_config *c);

/* Storage type F32. A Grouter (GR_HEAD_SCORES): scores [N, num_labels] fp32 of the batch's tokens, without the bias. A
 * source cut off at a router (GR_HEAD_ROUTER): that router's logits [N, num_experts]. And, if asked for, the rows that
 * the last matrix multiplies, [N, D] fp32. Backend memory of the model, valid until its next call. */
GR_MUST gr_err gr_model_scores(
    gr_model *m, const gr_batch *b, float **scores, const float **features, gr_phases *phases);
/* Accumulates the gradients of what is trained for the batch of the last gr_model_scores, from dscores [N, num_labels]
 * (backend memory; may be the scores' own). */
GR_MUST gr_err gr_model_scores_backward(gr_model *m, const float *dscores, gr_phases *phases);

/* ---------------------------------------------------------------- whole tensors by name (safetensors) */

/* One tensor of the whole model, on whichever rank it lives. */
typedef struct gr_whole {
    const gr_param *param;
    uint32_t expert; /* logical id; 0 for replicated tensors */
    char name[GR_TENSOR_NAME_MAX];
} gr_whole;

/* All of them: the table's order, experts by logical id. The caller frees *list. */
GR_MUST gr_err gr_wholes_make(const gr_params *p, gr_whole **list, int *n);
/* By name, and the one of a name in such a list; NULL if there is none. */
void gr_wholes_sort(gr_whole *list, int n);
const gr_whole *gr_wholes_find(const gr_whole *sorted, int n, const char *name);
/* Its first element in this rank's flat range; -1: another rank's expert. */
int64_t gr_whole_offset(const gr_params *p, const gr_whole *w);

/* Whole tensors from weights of any layout, a piece at a time, so that no second copy of the model is needed. They
 * arrive on the member of the first expert-parallel group that holds them; dense ones on rank 0. */
typedef struct gr_weights_reader {
    const gr_params *params;
    gr_comm *comm;
    gr_weights weights;
    gr_staging staging;
    uint32_t *rows; /* [2][world] elements sent and received */
    float *buffer;  /* [GR_WEIGHTS_PIECE] unless this rank holds all it gives */
} gr_weights_reader;
#define GR_WEIGHTS_PIECE ((int64_t)1 << 18) /* elements: 1 MiB */
/* 69. After an error gr_weights_reader_close is still due. */
GR_MUST gr_err gr_weights_reader_open(
    gr_weights_reader *r, const gr_params *p, gr_comm *comm, const gr_weights *weights);
void gr_weights_reader_close(gr_weights_reader *r); /* accepts a zeroed one */
/* Elements [first, first+n) of a tensor, n at most GR_WEIGHTS_PIECE. Collective over the ranks whose shares make up the
 * tensor: of dense ones the world, of an expert the ranks that hold it; others may call it and nothing happens. *data
 * is valid where it arrives, until the next call; elsewhere NULL or of no use. */
GR_MUST gr_err gr_weights_read(gr_weights_reader *r, const gr_whole *w, int64_t first, int64_t n, const float **data);
/* Bytes that saving takes for a while: of the pieces read, and of those that travel to rank 0. */
size_t gr_weights_save_memory(const gr_params *p, const gr_comm *comm, bool shared);

/* Collective over the world, errors (69, 74) are agreed by all ranks: rank 0 writes all tensors as F32, whole, in the
 * table's order with experts by logical id: the same bytes from any layout.
 * Metadata: "format" "pt" and, unless it is NULL, `more` (used on rank 0). *hash (rank 0): XXH3-128
 * over each tensor's name and bytes in that order. path NULL: only the hash. */
GR_MUST gr_err gr_params_save(
    const gr_params *p, gr_comm *comm, gr_weights weights, const char *path, const gr_metadata *more, gr_hash128 *hash);
/* Every rank reads what its weights have room for; elements of no tensor become 0. Missing, extra, wrongly shaped or
 * typed (not F32) tensors: 66 with a table of expected/found, before anything is copied. Values NULL: they are only
 * compared. */
GR_MUST gr_err gr_params_load(const gr_params *p, const char *path, gr_weights weights);
/* The same of several files that hold each tensor once between them. */
GR_MUST gr_err gr_params_load_files(const gr_params *p, const char *const *path, int n_path, gr_weights weights);

#endif
