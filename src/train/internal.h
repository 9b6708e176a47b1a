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

    gr_micro ready; /* prepared ahead: the next micro-batch */
    double tokens_per_step;
    uint64_t *load; /* [E] pairs per expert in this step's global batch */
    gr_step_record record;
    gr_eval_loss first, last;
} gr_trainer;

/* start.c: everything a step needs. Errors are agreed by all ranks. close accepts a half-opened trainer. */
GR_MUST gr_err gr_trainer_open(gr_trainer *t, gr_run_folder folder);
void gr_trainer_close(gr_trainer *t);

#endif
