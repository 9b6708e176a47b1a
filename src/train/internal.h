/* internal.h: what the files of src/train share. */
#ifndef GROUTER_TRAIN_INTERNAL_H
#define GROUTER_TRAIN_INTERNAL_H

#include "grouter/checkpoint.h"
#include "grouter/eval.h"
#include "grouter/router.h"

typedef enum gr_run_kind {
    GR_RUN_ABSENT, /* no such folder */
    GR_RUN_OURS,   /* a run folder: it has config.resolved.json */
} gr_run_kind;

/* What stands at run.dir; anything but a run folder is refused (64) unless it may be renamed aside. Changes nothing. */
GR_MUST gr_err gr_run_folder_look(const gr_config *config, gr_run_folder folder, gr_run_kind *kind);

/* For a run that starts anew: whether run.dir can be made, 74 if not, and the lock of a run's folder that stands there
 * and will be renamed aside, since a run that is alive must not lose its folder; one that is no run's gets no lock file
 * of ours. The folder is made last, when all else has been checked, which takes long for a large model, so this comes
 * first; the file it is tried with is gone again. */
GR_MUST gr_err gr_run_folder_claim(const gr_config *config, int *lock);

/* Exclusive lock of the folder, held until the process ends: 64 naming the holder. *fd is its descriptor. */
GR_MUST gr_err gr_run_folder_lock(const gr_config *config, int *fd);

/* Makes the folder unless the run goes on in it; with GR_RUN_FRESH an existing one is renamed aside (said so). Then it
 * is locked (if *lock < 0) and config.resolved.json and environment.json are written. */
GR_MUST gr_err gr_run_folder_make(const gr_train_options *o, bool goes_on, const gr_backend *backend, int *lock);

/* The processor's name. */
void gr_cpu_name(char *name, size_t n);

/* "<run.dir>/<name>" into path[GR_PATH_MAX + 32]; returns path. */
const char *gr_run_path(const gr_config *config, const char *name, char path[GR_PATH_MAX + 32]);

/* Predicted bytes of one rank by use, largest first: every size comes from the layout that will place it. */
typedef struct gr_memory_item {
    char name[32]; /* not a pointer: ranks send each other their tables */
    uint64_t n_byte;
    unsigned remedies; /* what makes it smaller: bits of forecast.c */
    bool host;         /* whatever the backend is */
} gr_memory_item;
enum { GR_MEMORY_ITEMS = 15 };
typedef struct gr_memory_table {
    gr_memory_item item[GR_MEMORY_ITEMS];
    uint64_t total;
    uint64_t device; /* part of total that is not in host memory */
} gr_memory_table;

/* Facts about data, machine and what a Grouter is made from that a checkpoint records. */
#define GR_FACTS_MAX (GR_DATA_FILES_MAX + 10)
typedef struct gr_facts {
    gr_fact list[GR_FACTS_MAX];
    int n;
    char key[GR_FACTS_MAX][64], value[GR_FACTS_MAX][256];
} gr_facts;
GR_MUST gr_err gr_facts_make(gr_facts *f, const gr_config *config, const gr_feed *feed, const gr_comm *comm);

/* Lists every difference between the checkpoint and the run that is to go on from it; refused ones without an override
 * are 64, all at once. By rank 0. */
GR_MUST gr_err gr_resume_check(const gr_train_options *o, const gr_checkpoint_found *found, const gr_facts *facts);

void gr_stop_remember(int64_t step); /* the newest durable checkpoint; -1: none */
/* True on all ranks if any was asked. */
GR_MUST gr_err gr_stop_agreed(gr_comm *comm, bool *stop);

/* What a run minimises: the cross-entropy of a language model (train), the divergence of a Grouter from a source's
 * router (distill), the imbalance of a Grouter's choices (tune). Everything else of a run is the same for all. */
typedef struct gr_trainer gr_trainer;
typedef struct gr_objective {
    /* Bytes it allocates besides the model's. NULL: none. */
    gr_err (*measure)(const gr_trainer *t, size_t *n_byte);
    /* Once the model is there, weights not yet loaded from a checkpoint: what it needs, and the fp32 weights that a new
     * run starts with (the caller spreads them). Not collective. */
    gr_err (*open)(gr_trainer *t);
    /* Forward and backward of one micro-batch; gradients are scaled by 1/(tokens of the global batch). The losses of
     * this rank's tokens are added to the model's sums (gr_model_sums) or, where all are read at once, to *loss_sum.
     */
    gr_err (*micro_batch)(gr_trainer *t, const gr_micro *micro, double *loss_sum, gr_phases *phases);
    /* After the update of a step, with the loads of its global batch. NULL: nothing. */
    gr_err (*after_update)(gr_trainer *t);
    /* Fills `last`, of Grouters also `fidelity` and record.max_vio_valid; sets `done` once the aim is reached. */
    gr_err (*evaluate)(gr_trainer *t);
    gr_err (*save)(gr_trainer *t, gr_train_result *result); /* the results of the run */
    void (*close)(gr_trainer *t);
} gr_objective;
/* Model FLOPs of a step per token: forward and backward of what is trained, and the forward of a distillation's
 * teacher. What is frozen has no gradient of its own, and below the score matrix alone there is no backward. 66. */
typedef struct gr_train_flops {
    double model, teacher;
    gr_model_count count, teacher_count;
    gr_model_config teacher_config; /* with distill */
} gr_train_flops;
GR_MUST gr_err gr_train_flops_get(const gr_config *config, gr_train_flops *out);
gr_trained gr_train_part(const gr_config *config); /* what is trained */

extern const gr_objective gr_objective_train, gr_objective_distill, gr_objective_tune;
const gr_objective *gr_objective_of(const gr_config *config);

/* bias.c: what reading windows by group does to the batches of the run, against the plain order (paper: 11(c) of its
 * critique). Of the first steps, at most 32. */
typedef struct gr_feed_bias {
    double total_variation;                /* 1/2 sum over windows |chance to be read - share of the data| */
    double importance_min, importance_max; /* share of the data over chance to be read, of any window */
    int64_t n_batch;
    double unigram[2]; /* KL of a global batch's tokens from the corpus's, nats: mean over batches; by group, plain */
    double expert[2];  /* chi^2 per degree of freedom of its expert loads: likewise */
} gr_feed_bias;
/* Of a training feed that reads by group. By one rank: it reads tokens (65) and all else is the same everywhere. */
GR_MUST gr_err gr_feed_bias_get(gr_feed *f, gr_feed_bias *out);

/* What a rank sends and computes in a step, in one dispatch of one layer. */
typedef struct gr_step_rows {
    uint64_t n_row, n_pair, pair_most; /* rows sent; pairs of all micro-batches, and of the one with most */
} gr_step_rows;

/* A run from start to end. */
struct gr_trainer {
    const gr_train_options *o;
    const gr_config *config; /* of o */
    gr_comm *comm;           /* of o */
    bool elsewhere;          /* a dry run for another machine: of the backend only sizes are asked */
    gr_backend *backend;
    bool placed; /* there is a placement */
    gr_placement placement;
    gr_feed_bias bias; /* rank 0; n_batch 0: windows are not read by group */
    gr_expert_map map;
    gr_feed *feed, *valid; /* valid NULL without data.valid */
    gr_model *model;
    gr_optimizer *optimizer;
    gr_metrics *metrics;
    gr_checkpointer *checkpointer;
    gr_checkpoint_found found; /* what the run goes on from */
    gr_facts facts;
    char *config_text;
    char checkpoints[GR_PATH_MAX + 32]; /* their folder */
    int lock;                           /* descriptor, -1 = none; rank 0 */
    gr_run_state state;                 /* after the last step */
    int failed_saves;                   /* in a row */
    double peak_flops;                  /* of all ranks together */
    double flops_per_token;             /* model FLOPs */
    gr_memory_table memory;
    uint64_t room_before; /* gr_trainer_room before the arenas existed */

    gr_micro ready;     /* prepared ahead: the next micro-batch */
    bool is_last_micro; /* of its step: the one that is computed */
    double tokens_per_step;
    int n_load;                  /* 1: routes are the same in all layers; with learned routes the MoE layers */
    uint64_t *load;              /* [n_load, E] pairs per expert in this step's global batch */
    gr_step_rows *traffic;       /* [R] of this step; NULL without tables or where nothing moves */
    double loss_sum;             /* of this step; 0 where the model has it */
    uint64_t n_download, n_sync; /* of the backend, before this step */
    gr_staging staging;          /* of weights that host code works on */
    gr_step_record record;
    gr_eval_loss first, last;

    gr_teacher *teacher; /* distill, tune: what the Grouter is measured against */
    gr_grouter untuned;  /* tune: where it started */
    void *own;           /* of the objective */
    gr_fidelity fidelity_first, fidelity;
    double max_vio_first, max_vio_last;
    bool done; /* the objective's aim is reached: the run ends with this step */
};

/* start.c: everything a step needs. Errors are agreed by all ranks. close accepts a half-opened trainer. */
GR_MUST gr_err gr_trainer_open(gr_trainer *t);
void gr_trainer_close(gr_trainer *t);

/* step.c: one step, 0-based, from t->ready; fills t->record. */
GR_MUST gr_err gr_trainer_step(gr_trainer *t, int64_t step);

/* Do gradients and weights travel part by part while layers are computed? Only where that needs no wait of the host: by
 * parts one owner after the other has work, which a host that waits for it would feel. */
bool gr_trainer_exchanges_beside(const gr_trainer *t);

/* The stages of opening, in order: groups, experts' places, backend; then data, routes and the largest plans, without
 * their memory; then all memory; then the best GEMM rate. A dry run stops between them. */
GR_MUST gr_err gr_trainer_shape(gr_trainer *t);
GR_MUST gr_err gr_trainer_survey(gr_trainer *t);
/* Bytes that are still free where the arenas lie: of the device, with what others use of it, else 2^64 - 1 less what
 * this process has in memory. Only differences mean something. */
uint64_t gr_trainer_room(const gr_trainer *t);
GR_MUST gr_err gr_trainer_allocate(gr_trainer *t);
GR_MUST gr_err gr_trainer_peak(gr_trainer *t);
/* What part of a window the routes of the run are made from. */
gr_mask gr_trainer_mask(const gr_trainer *t);
gr_model_options gr_trainer_model_options(const gr_trainer *t, const gr_plan_limits *limits);
gr_optimizer_options gr_trainer_optimizer_options(const gr_trainer *t, const gr_params *params);

/* forecast.c: what a run will need, before anything is allocated. */

/* Memory of this rank with these limits (valid may be NULL), from a trainer that has its shape. */
GR_MUST gr_err gr_forecast_memory(
    const gr_trainer *t, const gr_plan_limits *train, const gr_plan_limits *valid, gr_memory_table *out);
/* With what libraries take besides: 2 % and 32 MiB. */
uint64_t gr_forecast_margin(uint64_t n_byte);
/* Memory of its own that the backend has has room for this rank: 69 likewise. */
GR_MUST gr_err gr_forecast_fit_device(const gr_memory_table *memory, gr_backend *backend);
/* Collective: all ranks of each host fit what their host has left, by MemAvailable, the cgroup limit and RLIMIT_AS: 69
 * with the three largest items and what to change. */
GR_MUST gr_err gr_forecast_fit_host(const gr_memory_table *memory, gr_comm *comm);
/* One rank fits n_byte: 69 likewise. */
GR_MUST gr_err gr_forecast_fit(const gr_memory_table *memory, uint64_t n_byte);

/* Checkpoints on disk at once, one more than is kept while the next is written, and bytes of all of them and 5 %. */
int64_t gr_forecast_checkpoints(const gr_config *config);
double gr_forecast_disk(const gr_config *config, int64_t n_checkpoint);
/* The disk of run.dir has room for them, or, where there are checkpoints already, for one more: 69. */
GR_MUST gr_err gr_forecast_fit_disk(const gr_config *config);

/* Online routing: what the Grouter takes; all 0 if its file is not here. */
GR_MUST gr_err gr_forecast_grouter(gr_router_cost *out, const gr_config *config);

#define GR_FORECAST_SPARE 1.25 /* over uniform routing, for routes that are not known yet */
/* Rows and pairs without route tables: as many as uniform routing gives on average, times `spare`; at most as many as
 * when all tokens of a group choose experts of one rank. */
gr_plan_limits gr_forecast_limits(const gr_config *config, const gr_expert_map *map, double spare);
gr_plan_limits gr_forecast_limits_worst(const gr_config *config, const gr_expert_map *map);
/* Rows a rank sends per micro-batch at uniform routing. */
double gr_forecast_rows(const gr_config *config, const gr_expert_map *map);

/* "1.50 GiB" into text; returns text. */
const char *gr_bytes_text(uint64_t n_byte, char text[32]);

#endif
