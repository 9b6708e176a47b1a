/* internal.h: what the files of src/train share. */
#ifndef GROUTER_TRAIN_INTERNAL_H
#define GROUTER_TRAIN_INTERNAL_H

#include "grouter/eval.h"

/* Refuses an existing run folder unless it may be renamed aside (64). Changes nothing. */
GR_MUST gr_err gr_run_folder_check(const gr_config *config, gr_run_folder folder);

/* Renames an existing folder aside if asked (printed), makes the new one (another process that got there first: 64),
 * writes config.resolved.json and environment.json. */
GR_MUST gr_err gr_run_folder_make(
    const gr_config *config, gr_run_folder folder, const gr_comm *comm, const gr_backend *backend);

/* "<run.dir>/<name>" into path[GR_PATH_MAX + 32]; returns path. */
const char *gr_run_path(const gr_config *config, const char *name, char path[GR_PATH_MAX + 32]);

/* Predicted bytes of one rank by use, largest first: every size comes from the layout that will place it. */
typedef struct gr_memory_item {
    const char *name;
    uint64_t n_byte;
    unsigned remedies; /* what makes it smaller: bits of forecast.c */
} gr_memory_item;
enum { GR_MEMORY_ITEMS = 9 };
typedef struct gr_memory_table {
    gr_memory_item item[GR_MEMORY_ITEMS];
    uint64_t total;
} gr_memory_table;

/* A run from start to end. */
typedef struct gr_trainer {
    const gr_config *config;
    gr_comm *comm;
    gr_backend *backend;
    gr_expert_map map;
    gr_feed *feed, *valid; /* valid NULL without data.valid */
    gr_model *model;
    gr_optimizer *optimizer;
    gr_metrics *metrics;
    double peak_flops; /* of all ranks together */
    gr_memory_table memory;
    uint64_t resident_before; /* this process's bytes before the arenas existed */

    gr_micro ready; /* prepared ahead: the next micro-batch */
    double tokens_per_step;
    uint64_t *load; /* [E] pairs per expert in this step's global batch */
    gr_step_record record;
    gr_eval_loss first, last;
} gr_trainer;

/* start.c: everything a step needs. Errors are agreed by all ranks. close accepts a half-opened trainer. */
GR_MUST gr_err gr_trainer_open(gr_trainer *t, gr_run_folder folder);
void gr_trainer_close(gr_trainer *t);

/* The stages of opening, in order: groups, experts' places, backend; then data, routes and the largest plans, without
 * their memory; then all memory; then the best GEMM rate. A dry run stops between them. */
GR_MUST gr_err gr_trainer_shape(gr_trainer *t);
GR_MUST gr_err gr_trainer_survey(gr_trainer *t);
GR_MUST gr_err gr_trainer_allocate(gr_trainer *t);
GR_MUST gr_err gr_trainer_peak(gr_trainer *t);
gr_model_options gr_trainer_model_options(const gr_trainer *t, const gr_plan_limits *limits);
gr_optimizer_options gr_trainer_optimizer_options(const gr_trainer *t, const gr_params *params);

/* forecast.c: what a run will need, before anything is allocated. */

/* Memory of this rank with these limits (valid may be NULL), from a trainer that has its shape. */
GR_MUST gr_err gr_forecast_memory(
    const gr_trainer *t, const gr_plan_limits *train, const gr_plan_limits *valid, gr_memory_table *out);
/* With what libraries take besides: 2 % and 32 MiB. */
uint64_t gr_forecast_margin(uint64_t n_byte);
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

/* Rows and pairs without route tables: as many as uniform routing gives on average, times `spare`; at most as many as
 * when all tokens of a group choose experts of one rank. */
gr_plan_limits gr_forecast_limits(const gr_config *config, const gr_expert_map *map, double spare);
gr_plan_limits gr_forecast_limits_worst(const gr_config *config, const gr_expert_map *map);
/* Rows a rank sends per micro-batch at uniform routing. */
double gr_forecast_rows(const gr_config *config, const gr_expert_map *map);

/* "1.50 GiB" into text; returns text. */
const char *gr_bytes_text(uint64_t n_byte, char text[32]);

#endif
