/* training.h: what the commands that train have in common. Internal to src/cmd. */
#ifndef GROUTER_CMD_TRAINING_H
#define GROUTER_CMD_TRAINING_H

#include "grouter/train.h"

/* Parses "CONFIG [--set KEY=VALUE]... [--override KEY]... [--fresh] [--dry-run [--ranks R] [--memory GIB]]", runs it
 * and prints the result with `print` on rank 0. argv[0] is the command's name. */
typedef void (*gr_result_print)(const gr_config *config, const gr_train_result *result);
GR_MUST gr_err gr_training_command(gr_config_kind kind, gr_result_print print, int argc, char **argv);

/* The options' part of the help. */
#define GR_TRAINING_OPTIONS                                                                                            \
    "  --set KEY=VALUE   override one config key, e.g. --set optimizer.lr=3e-4; repeatable\n"                          \
    "  --override KEY    go on although this key differs from the checkpoint's; repeatable\n"                          \
    "  --fresh           rename an existing run folder aside and start over\n"                                         \
    "  --dry-run         check everything, print parameters, FLOPs, memory, messages, disk and time, and stop\n"       \
    "  --ranks R         with --dry-run: answer for R ranks; data files may be absent, they are then not checked\n"    \
    "  --memory GIB      with --dry-run: refuse (69) what does not fit GIB of memory per rank; likewise\n"

#endif
