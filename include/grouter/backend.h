/* backend.h: where arrays live and ops run. Chosen by name at run time: "cpu", or "cuda" where it is compiled in.
 *
 * Activations and the weights the ops read have the backend's storage type (`dtype`, `elem_size`); `act` in a shape
 * comment means that type. Statistics, gates, losses and gradients of weights are fp32 (or double where said).
 * Accumulation is fp32 at least; reductions are in fixed order, independent of the thread count (GEMM libraries
 * excepted).
 *
 * Each op takes a lane and one argument struct; forward/backward pairs share the struct. Ops of one lane run in order;
 * `wait` orders lanes. No op allocates after the first step. Shapes of 0 rows are legal and do nothing, but accumulated
 * outputs keep their value and overwritten outputs of non-empty shape are still written. Ops are queued, all by the
 * thread that opened the backend; every array is in the backend's memory but where a struct says "host memory".
 */
#ifndef GROUTER_BACKEND_H
#define GROUTER_BACKEND_H

#include "grouter/base.h"
#include "grouter/tiles.h"

typedef enum gr_lane { GR_LANE_COMPUTE, GR_LANE_COMM, GR_LANE_SIDE, GR_N_LANE } gr_lane;

typedef enum gr_write { GR_OVERWRITE, GR_ACCUMULATE } gr_write;

/* c[m,n] = op(a) op(b) (+ c). NT: a [m,k], b [n,k] (y = x W^T). NN: a [m,k], b [k,n] (dx = dy W).
 * TN: a [k,m], b [k,n] (dW = dy^T x). Row-major with leading dimensions in elements. */
typedef enum gr_layout { GR_NT, GR_NN, GR_TN } gr_layout;
typedef struct gr_gemm {
    gr_layout layout;
    gr_write write;
    int64_t m, n, k;
    const void *a;
    int64_t lda; /* act */
    const void *b;
    int64_t ldb; /* act */
    void *c;
    int64_t ldc; /* act, or fp32 when c_dtype says so */
    gr_dtype c_dtype;
} gr_gemm;

/* out[r,:] = in[index[r],:] */
typedef struct gr_gather {
    int64_t n_row, width;
    const void *in;        /* act [*, width] */
    const uint32_t *index; /* [n_row] */
    void *out;             /* act [n_row, width] */
} gr_gather;

/* out[r,:] = (base ? base[r,:] : 0) + sum_s sum_{j in list s of r} source[s][index[s][j],:], fp32, in that order.
 * List s of row r is index[s][offset[s][r] .. offset[s][r+1]). A NULL source is an empty list. out may be base. */
typedef struct gr_sum {
    int64_t n_row, width;
    const void *base;
    const void *source[2];
    const uint32_t *offset[2]; /* [n_row+1] */
    const uint32_t *index[2];
    void *out;
} gr_sum;

/* The router of a MoE layer, on tokens in windows of T. Logits l [n,E] become p = softmax(l) of each token;
 * lse = logsumexp(l). A token's experts S are its K largest logits, ties to the lower id, or given; ids ascend. Its
 * gates, for k in S:  g_k = scale * exp(l_k) / sum_{j in S} exp(l_j)  with `normalise`,  else  scale * p_k. Logits that
 * are not finite still give K distinct experts. Losses, with count_i the tokens of the token's window that have expert
 * i (a constant in backward): loss[0] += aux_scale * sum_t sum_i count_i p_ti     loss[1] += z_scale * sum_t lse_t^2
 * Backward, of dgate and both losses, with m = sum_{j in S} dg_j g_j and a = sum_i count_i p_i:
 *   dl_i = p_i (aux_scale (count_i - a) + 2 z_scale lse)
 *        + [i in S] g_i (dg_i - m / scale)  with `normalise`,  else  + [i in S] g_i dg_i - p_i m */
typedef enum gr_choice { GR_CHOICE_GIVEN, GR_CHOICE_TOP_K } gr_choice;
typedef struct gr_router_op {
    gr_choice choice;
    bool normalise;
    int64_t n, T, E, K; /* T divides n */
    float scale;        /* > 0 */
    double aux_scale, z_scale;
    float *p;        /* [n,E] logits in, probabilities out; backward reads them */
    float *lse;      /* [n] saved by forward */
    uint16_t *ids;   /* [n,K] below E; read or written as `choice` says */
    float *gate;     /* [n,K] saved by forward */
    uint32_t *count; /* [n/T,E] saved by forward */
    uint64_t *load;  /* [E] += tokens of all windows, or NULL */
    double *loss;    /* [2] += aux and z, in token order, or NULL */
    /* backward only */
    const float *dgate; /* [n,K] */
    void *dlogits;      /* act [n,E]: result */
} gr_router_op;

/* Gates of pairs from those of their rows: pair_gate[p] = gate[pair_row[p], pair_slot[p]]. Backward: dgate is zeroed,
 * then dgate[pair_row[p], pair_slot[p]] = dpair_gate[p]; no two pairs have the same place. */
typedef struct gr_pair_gates {
    int64_t n_row, K, n_pair;
    const uint32_t *pair_row; /* [n_pair] */
    const uint8_t *pair_slot; /* [n_pair] */
    const float *gate;        /* [n_row,K] */
    float *pair_gate;         /* [n_pair] */
    const float *dpair_gate;  /* [n_pair] */
    float *dgate;             /* [n_row,K] */
} gr_pair_gates;

/* Grouped SwiGLU experts over pairs: for pair p of expert e with row r = pair_row[p] (NULL: r = p) and gate g (NULL:
 * 1): h = x_r W13_e^T = [h1 | h3],  a = g * silu(h1) * h3,  y_p = a W2_e^T. Backward (design "backward is the same
 * plan"): da' = dy_r W2_e, dh1 = g da' h3 silu'(h1), dh3 = g da' silu(h1), dW2_e += dy^T a, dW13_e += dh^T x, dx_p = dh
 * W13_e. Experts without pairs leave their gradients as they are.
 *
 * The tiles and what follows them are for kernels that do all experts in one launch: made of the same offsets by
 * gr_tiles_build. A caller that has none gives NULL, and may get another implementation then. */
typedef struct gr_ffn {
    int32_t n_expert;
    int64_t D, F, n_pair;
    const uint32_t *expert_offset; /* [n_expert+1], host memory; NULL with n_expert 1: all pairs */
    const uint32_t *pair_row;      /* [n_pair] */
    const float *pair_gate;        /* [n_pair] */
    const void *x;                 /* act [rows, D] */
    const void *w13;               /* act [n_expert, 2F, D]: gate rows, then up rows */
    const void *w2;                /* act [n_expert, D, F] */
    void *h;                       /* act [n_pair, 2F]: saved by forward; backward overwrites it with dh */
    void *a;                       /* act [n_pair, F] scratch */
    void *y;                       /* act [n_pair, D]: forward's result; NULL: forward only makes h, using dx as room */
    /* backward only */
    const void *dy;    /* act [rows, D] */
    void *da;          /* act [n_pair, F] scratch */
    float *dw13, *dw2; /* fp32, accumulated */
    void *dx;          /* act [n_pair, D]: result */
    float *dgate;      /* [n_pair] or NULL: <da', silu(h1) h3> */

    const gr_row_tile *tiles; /* [n_tile] or NULL, with the next three */
    int64_t n_tile;
    const uint32_t *expert_order;  /* [n_expert] */
    const uint32_t *device_offset; /* [n_expert+1]: expert_offset in the backend's memory */
} gr_ffn;

/* What computes gr_ffn on backend cuda: products of the library, one expert after the other on several queues, or own
 * kernels for all experts in one launch, by mma.sync (compute capability 8.0 and up) or by wgmma (9.0). AUTO: the last
 * of these that the device has. Own kernels take bf16, tiles, D and F that are multiples of 8, and arrays at 16 bytes;
 * other calls go to the library, whatever was asked for. */
typedef enum gr_experts {
    GR_EXPERTS_AUTO,
    GR_EXPERTS_CUBLAS,
    GR_EXPERTS_MMA,
    GR_EXPERTS_WGMMA,
    GR_N_EXPERTS
} gr_experts;

/* out[i,:] = table[id[i],:]; backward: dtable[id[i],:] += dout[i,:] in ascending i. */
typedef struct gr_embed {
    int64_t n, width, n_vocab;
    const uint32_t *id; /* [n] */
    const void *table;  /* act [n_vocab, width] */
    void *out;          /* act [n, width] */
    const void *dout;   /* act [n, width] */
    float *dtable;      /* fp32 [n_vocab, width], accumulated */
} gr_embed;

/* y = x * rstd * w per row, rstd = 1/sqrt(mean(x^2)+eps). Rows start every ldx / ldy elements.
 * Backward: dx (+)= rstd * (w dy - x rstd^2 mean(w dy x)); dw += sum_i dy x rstd. dx may be dy. */
typedef struct gr_norm {
    int64_t n_row, width;
    int64_t ldx, ldy;
    float eps;
    const void *x;  /* act */
    const float *w; /* [width] fp32 */
    void *y;        /* act */
    float *rstd;    /* [n_row]: saved by forward */
    const void *dy; /* act, layout of y */
    void *dx;       /* act, layout of x */
    gr_write dx_write;
    float *dw; /* [width], accumulated */
} gr_norm;

/* Norm and rotation of queries and keys: y = turn(x * rstd * w) per head, rstd = 1/sqrt(mean(x^2) + eps) over the head,
 * turned as gr_rope does; the result is rounded once. Each row has n_q heads, whose weights are wq, then n_k with wk.
 * Backward, with d = dy turned back: dx = rstd * (w d - x rstd^2 mean(w d x)); dw += sum of d x rstd over the heads.
 * dx may be dy where ldx is ldy. */
typedef struct gr_head_norm {
    int64_t n_row, T;
    int64_t n_q, n_k, head_dim; /* either number may be 0: its arrays are not touched then */
    int64_t ldx, ldy;           /* elements between rows */
    float eps;
    const float *cosine, *sine; /* [T, head_dim/2]; both NULL: heads are not turned, T is of no account */
    const void *x;              /* act: heads side by side at the start of each row */
    const float *wq, *wk;       /* [head_dim] fp32 */
    void *y;                    /* act */
    float *rstd;                /* [n_row, n_q+n_k]: saved by forward */
    const void *dy;             /* act, layout of y */
    void *dx;                   /* act, layout of x; overwritten */
    float *dwq, *dwk;           /* [head_dim], accumulated */
} gr_head_norm;

/* y = relu((x - mean) * rstd * w + b) (+ residual) per row, mean and rstd = 1/sqrt(variance + eps) over the row; a
 * NaN in x makes its row of y and dx NaN.
 * Backward, with g = dy where the relu's argument is > 0, else 0, and n = (x - mean) * rstd:
 * dx = rstd * (w g - mean(w g) - n mean(w g n)); dw += sum_i g n; db += sum_i g. The residual's gradient is dy. */
typedef struct gr_layer_norm {
    int64_t n_row, width; /* rows are packed */
    float eps;
    const void *x;        /* act [n_row, width] */
    const float *w, *b;   /* [width] fp32 */
    const void *residual; /* act [n_row, width] or NULL */
    void *y;              /* act [n_row, width] */
    float *mean, *rstd;   /* [n_row]: saved by forward */
    const void *dy;       /* act [n_row, width] */
    void *dx;             /* act [n_row, width], overwritten; not dy */
    float *dw, *db;       /* [width], accumulated */
} gr_layer_norm;

/* Rotary embedding in place, half-split: dims i and i + hd/2 of each head turn by angle position*theta^(-2i/hd);
 * position = row % T; the last of an odd number stays. Backward turns back. */
typedef struct gr_rope {
    int64_t n_row, T, n_head, head_dim;
    int64_t ld;                 /* elements between rows */
    const float *cosine, *sine; /* [T, head_dim/2] */
    void *x;                    /* act: n_head heads of head_dim at the start of each row */
    bool inverse;               /* backward */
} gr_rope;

/* Attention over packed windows of T tokens, n_window of them; query head j uses key/value head j / (H/H_kv).
 * o = softmax(q k^T / sqrt(head_dim)) v, causal or over the whole window, in either case of no more than the row's
 * document if documents are given; lse saved for backward. In blocks: scratch of scores has a bound, whatever T. */
typedef enum gr_attend { GR_ATTEND_CAUSAL, GR_ATTEND_BIDIRECTIONAL } gr_attend;
/* Positions in the window: row t sees keys of [first[t], end[t]) only; first <= t < end, neither ever falls in a
 * window. Both NULL: one document. What is not finite in a token may also reach rows that do not see it, in o and in
 * gradients: some kernels multiply it by 0. */
typedef struct gr_documents {
    const uint32_t *first, *end; /* [n_window*T] */
} gr_documents;
typedef struct gr_attention {
    gr_attend mask;
    gr_documents documents;
    int64_t n_window, T, H, H_kv, head_dim;
    int64_t ldq, ldk, ldv, ldo; /* elements between token rows; dq, dk, dv, dout use ldq, ldk, ldv, ldo */
    const void *q, *k, *v;      /* act [n_window*T, heads*head_dim] */
    void *o;                    /* act [n_window*T, H*head_dim] */
    float *lse;                 /* [n_window, H, T] log-sum-exp of the scaled scores */
    const void *dout;
    void *dq, *dk, *dv; /* overwritten */
} gr_attention;

/* What computes gr_attention on backend cuda: products of cuBLAS with kernels between them, own kernels that keep no
 * scores, or cuDNN. AUTO: the last of these that is there; cuDNN's engines only where they give the same bits at every
 * call. Own kernels take bf16, heads of a multiple of 8 up to 128 and rows at 16 bytes, cuDNN heads of up to 256 but no
 * documents; calls that a way does not take go to the one before it, whatever was asked for. */
typedef enum gr_attention_kernels {
    GR_ATTENTION_AUTO,
    GR_ATTENTION_CUBLAS,
    GR_ATTENTION_FLASH,
    GR_ATTENTION_CUDNN
} gr_attention_kernels;

/* Head and cross-entropy in chunks of tokens, never N x V logits: l_i = logsumexp(x_i W^T) - (x_i W^T)[target_i].
 * *loss_sum += sum over tokens with target >= 0 (double, token order). With token_loss: token_loss_i = l_i, 0 where
 * ignored. With dx: dx = scale * dl/dx (rows of ignored tokens are zeroed) and dw += scale * dl/dW. dx NULL: loss only.
 */
typedef struct gr_cross_entropy {
    int64_t n, D, V;
    const void *x;         /* act [n, D] */
    const void *w;         /* act [V, D] */
    const int32_t *target; /* [n], -1 = ignored */
    float scale;
    double *loss_sum;   /* backend memory */
    double *token_loss; /* [n] backend memory, or NULL */
    void *dx;           /* act [n, D] or NULL */
    float *dw;          /* fp32 [V, D], accumulated */
    void *logits;       /* scratch: act [gr_logits_chunk(b, n, V), V] */
} gr_cross_entropy;
/* Tokens per chunk: as many as keep a chunk's logits within logits_room bytes of fp32, at least 16, at most n. */
typedef struct gr_backend gr_backend;
int64_t gr_logits_chunk(const gr_backend *b, int64_t n, int64_t V);

/* Divergence of a student's softmax from a teacher's, of n tokens with E scores each, with p = softmax(teacher/t) and
 * q = softmax(student/t) at temperature t: d_i = t^2 sum_e p_e (ln p_e - ln q_e) (Hinton et al. 2015; KL of teacher
 * from student). *loss_sum += sum of d_i (double, token order). With dstudent: dstudent = scale * t * (q - p); it may
 * be student. */
typedef struct gr_divergence {
    int64_t n, E;
    const float *teacher, *student; /* [n, E] fp32 */
    float temperature, scale;
    double *loss_sum; /* backend memory */
    float *dstudent;  /* [n, E] or NULL */
} gr_divergence;

/* What becomes of a step, from sums over its global batch: norm = sqrt(*squares); grad_scale = clip / norm where
 * 0 < clip < norm, else 1. It is skipped unless *loss is finite and the square of grad_scale * norm fits fp32, as the
 * second moments must; NaN fails both. In double; the ops that obey read the decision in the backend's memory. */
typedef struct gr_decision {
    double norm;
    float grad_scale;
    uint32_t skipped; /* 1: weights and moments stay as they are; else 0 */
} gr_decision;
typedef struct gr_decide {
    double clip; /* 0: off */
    const double *squares, *loss;
    gr_decision *out;
} gr_decide;

/* AdamW with decoupled decay (Loshchilov & Hutter) on ranges of flat arrays: m, v moments, the decision's grad_scale
 * applied to g first. step counts from 1 the steps that are not skipped; it is of no account in one that is: then
 * nothing is written. p -= lr*(mhat/(sqrt(vhat)+eps) + weight_decay*p), the last term where the range decays. All in a
 * few launches, however many the ranges. */
#define GR_ADAMW_ALIGN 16 /* elements: a range begins at a multiple of it */
typedef struct gr_adamw_range {
    int64_t first, n;
    bool decay;
} gr_adamw_range;
typedef struct gr_adamw {
    int64_t n, step;
    float lr, beta1, beta2, eps, weight_decay;
    const gr_decision *decision;
    const gr_adamw_range *range; /* [n_range] host memory: within the arrays, apart from each other */
    int64_t n_range;
    float *p, *m, *v; /* [n] fp32 */
    const float *g;   /* [n] */
    void *p_act;      /* [n] storage-type copy of p to refresh, NULL when weights are stored as fp32 */
} gr_adamw;

/* Algorithms of matrix products that were chosen by the clock, as a file has them (src/backend/device_plans.h). */
typedef struct gr_product_plans gr_product_plans;

struct gr_backend {
    const char *name;
    gr_dtype dtype; /* storage type of activations: GR_F32 or GR_BF16 */
    size_t elem_size;
    size_t logits_room;                             /* see gr_logits_chunk */
    gr_experts experts;                             /* gr_backend_set_experts */
    gr_experts experts_best;                        /* what AUTO stands for; AUTO where there is no choice (the CPU) */
    gr_attention_kernels attention, attention_best; /* likewise */
    bool host_memory;                               /* host code may read and write the backend's memory directly */
    uint64_t n_download; /* copies to the host so far, and waits of the host: both 0 with host_memory */
    uint64_t n_sync;
    gr_err (*alloc)(gr_backend *b, size_t n_byte, const char *what, void **out); /* zeroed, 64-byte aligned; 69 */
    void (*release)(gr_backend *b, void *p);
    uint64_t (*room)(gr_backend *b); /* bytes that alloc can still give; NULL: as many as the host has */
    /* Whether p lies in memory of `alloc` that host code must not touch: never, where host_memory. */
    bool (*owns)(const gr_backend *b, const void *p);
    /* Zeroed host memory between which and the device copies are fastest (page-locked); 69. */
    gr_err (*alloc_host)(gr_backend *b, size_t n_byte, const char *what, void **out);
    void (*release_host)(gr_backend *b, void *p); /* accepts NULL */
    /* from_host may be changed as soon as it returns. */
    gr_err (*upload)(gr_backend *b, gr_lane lane, void *to, const void *from_host, size_t n_byte);
    /* to_host is filled once sync, or sync_lane of this lane, has returned; the host waits already here unless to_host
     * is of alloc_host. */
    gr_err (*download)(gr_backend *b, gr_lane lane, void *to_host, const void *from, size_t n_byte);
    gr_err (*fill_zero)(gr_backend *b, gr_lane lane, void *p, size_t n_byte);
    gr_err (*copy)(gr_backend *b, gr_lane lane, void *to, const void *from, size_t n_byte);
    gr_err (*wait)(
        gr_backend *b, gr_lane waiting, gr_lane for_lane); /* work queued on `waiting` starts after for_lane's */
    void *(*lane_native)(gr_backend *b, gr_lane lane);     /* the device's queue, NULL on the CPU */
    gr_err (*sync)(gr_backend *b);                         /* host waits for all lanes */
    gr_err (*sync_lane)(gr_backend *b, gr_lane lane);      /* and for one */
    /* Asked again and again while the host waits for the device, with the time it has waited; an error ends the wait
     * and is returned. NULL: nobody is. Set by the comm whose work is on lane COMM, which a lost peer could hold up for
     * ever.
     */
    gr_err (*watch)(void *watched, double waited_s);
    void *watched;

    gr_err (*gemm)(gr_backend *b, gr_lane lane, const gr_gemm *a);
    gr_err (*gather_rows)(gr_backend *b, gr_lane lane, const gr_gather *a);
    gr_err (*sum_rows)(gr_backend *b, gr_lane lane, const gr_sum *a);
    gr_err (*gather_f32)(
        gr_backend *b, gr_lane lane, const gr_gather *a); /* these two on fp32 rows, whatever `dtype` */
    gr_err (*sum_f32)(gr_backend *b, gr_lane lane, const gr_sum *a);
    gr_err (*router_forward)(gr_backend *b, gr_lane lane, const gr_router_op *a);
    gr_err (*router_backward)(gr_backend *b, gr_lane lane, const gr_router_op *a);
    gr_err (*pair_gates_forward)(gr_backend *b, gr_lane lane, const gr_pair_gates *a);
    gr_err (*pair_gates_backward)(gr_backend *b, gr_lane lane, const gr_pair_gates *a);
    gr_err (*ffn_forward)(gr_backend *b, gr_lane lane, const gr_ffn *a);
    gr_err (*ffn_backward)(gr_backend *b, gr_lane lane, const gr_ffn *a);
    gr_err (*embed_forward)(gr_backend *b, gr_lane lane, const gr_embed *a);
    gr_err (*embed_backward)(gr_backend *b, gr_lane lane, const gr_embed *a);
    gr_err (*norm_forward)(gr_backend *b, gr_lane lane, const gr_norm *a);
    gr_err (*norm_backward)(gr_backend *b, gr_lane lane, const gr_norm *a);
    gr_err (*head_norm_forward)(gr_backend *b, gr_lane lane, const gr_head_norm *a);
    gr_err (*head_norm_backward)(gr_backend *b, gr_lane lane, const gr_head_norm *a);
    gr_err (*layer_norm_forward)(gr_backend *b, gr_lane lane, const gr_layer_norm *a);
    gr_err (*layer_norm_backward)(gr_backend *b, gr_lane lane, const gr_layer_norm *a);
    gr_err (*rope)(gr_backend *b, gr_lane lane, const gr_rope *a);
    gr_err (*attention_forward)(gr_backend *b, gr_lane lane, const gr_attention *a);
    gr_err (*attention_backward)(gr_backend *b, gr_lane lane, const gr_attention *a);
    /* At most so many bytes of the backend's memory that `alloc` gave nobody are taken by the two above with a's shape
     * and leading dimensions (arrays may be NULL) and kept; ops after each other share them. NULL: none. Needs no
     * device: a description has it too. */
    size_t (*attention_scratch)(const gr_backend *b, const gr_attention *a, bool backward);
    gr_err (*cross_entropy)(gr_backend *b, gr_lane lane, const gr_cross_entropy *a);
    gr_err (*divergence)(gr_backend *b, gr_lane lane, const gr_divergence *a);
    gr_err (*sum_squares)(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out); /* *out += */
    gr_err (*decide)(gr_backend *b, gr_lane lane, const gr_decide *a);
    gr_err (*adamw)(gr_backend *b, gr_lane lane, const gr_adamw *a);
    /* to[n] (act) = from[n] rounded to nearest, ties to even: what p_act holds after adamw. */
    gr_err (*round_weights)(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n);
    /* NULL where products have one algorithm: see gr_backend_set_plans, gr_backend_tune, gr_backend_save_plans. */
    gr_err (*use_plans)(gr_backend *b, const gr_product_plans *plans, const char *path);
    gr_err (*tune)(gr_backend *b, bool on);
    gr_err (*save_plans)(gr_backend *b, gr_out *out);
    /* Best multiply-add rate of a large GEMM with this process's threads, in FLOP/s; takes well under a second. */
    gr_err (*peak)(gr_backend *b, double *flops_per_s);
    void (*close)(gr_backend *b);
    void *state;
};

/* Opens "auto", "cpu" or "cuda" with activations stored as GR_F32 or GR_BF16. auto: cuda where it is compiled in and a
 * GPU is there, else cpu; `name` of the result says which. 64 for a name that is not compiled in; 69 naming fp32 where
 * this machine cannot compute with dtype, and where cuda finds no driver or no GPU. Of several GPUs the processes of a
 * machine take one each, in turn, by the number that mpirun or srun gave them there. */
GR_MUST gr_err gr_backend_open(gr_backend **out, const char *name, gr_dtype dtype);
/* The backend of a machine that is not here, for sizes: its fields may be read, no op may be called. auto is what
 * gr_backend_open would take; "cuda" can be described by any binary. */
GR_MUST gr_err gr_backend_describe(gr_backend **out, const char *name, gr_dtype dtype);
/* Chooses what computes grouped experts: "auto" (where nothing was chosen), "cublas", "mma" or "wgmma". A backend
 * without a choice accepts all. 64 for other names; 69 for what the device or the machine lacks. */
GR_MUST gr_err gr_backend_set_experts(gr_backend *b, const char *name);
/* Likewise what computes attention: "auto", "cublas", "flash" or "cudnn". */
GR_MUST gr_err gr_backend_set_attention(gr_backend *b, const char *name);
/* From now on products use the algorithms of that file, and others, which are counted, the library's first suggestion;
 * nothing is timed, so bits repeat. Before the first product. "": no file. Any backend reads and checks it: 65. One
 * without a choice then leaves it; backend cuda refuses (65) a file of another GPU, cuBLAS or dtype, and one with an
 * algorithm that cuBLAS does not accept for its product. */
GR_MUST gr_err gr_backend_set_plans(gr_backend *b, const char *path);
/* While it is on, each product that is met first is timed with several algorithms, and the fastest is kept. Results are
 * right to rounding throughout; bits differ from run to run. 69 where there is no choice. */
GR_MUST gr_err gr_backend_tune(gr_backend *b, bool on);
/* What was kept, as a file for gr_backend_set_plans: written, not committed. 69: nothing was; 74. */
GR_MUST gr_err gr_backend_save_plans(gr_backend *b, gr_out *out);
void gr_backend_close(gr_backend *b); /* accepts NULL */
const char *gr_backend_names(void);   /* compiled in, for --version */
const char *gr_backend_library(void); /* "oneDNN v2.6.3 ..." */

#endif
