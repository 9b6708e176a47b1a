/* internal.h: what the files of src/train share. */
#ifndef GROUTER_TRAIN_INTERNAL_H
#define GROUTER_TRAIN_INTERNAL_H

#include "grouter/train.h"

/* Refuses an existing run folder unless it may be renamed aside (64). Changes nothing. */
GR_MUST gr_err gr_run_folder_check(const gr_config *config, gr_run_folder folder);

/* Renames an existing folder aside if asked (printed), makes the new one (another process that got there first: 64),
 * writes config.resolved.json and environment.json. */
GR_MUST gr_err gr_run_folder_make(
    const gr_config *config, gr_run_folder folder, const gr_comm *comm, const gr_backend *backend);

/* "<run.dir>/<name>" into path[GR_PATH_MAX + 32]; returns path. */
const char *gr_run_path(const gr_config *config, const char *name, char path[GR_PATH_MAX + 32]);

#endif
