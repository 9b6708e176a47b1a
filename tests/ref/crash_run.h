/* crash_run.h: a run that saves after every step and resumes what it finds, with arithmetic in place of training: the
 * weights and moments after a step are a function of that step, so that a checkpoint can be judged alone. One process,
 * comm self. */
#ifndef GROUTER_CRASH_RUN_H
#define GROUTER_CRASH_RUN_H

#include "grouter/checkpoint.h"

enum { CRASH_STEPS = 5, CRASH_KEEP_LAST = 2 };

typedef struct crash_run crash_run;

crash_run *crash_run_open(void);
void crash_run_close(crash_run *r);
size_t crash_run_bytes(const crash_run *r); /* of weights and moments */

/* The life of one process: find, load, then the steps up to `last`, each followed by a save, whose outcome goes to
 * `saved`. Returns the error of the start only; a save that fails is the caller's to judge, as training goes
 * on. What is loaded must be the state of its step, to the byte: else 70. */
gr_err crash_run_live(crash_run *r, gr_io *io, const char *folder, int64_t last,
    void (*saved)(void *context, int64_t step, gr_err err), void *context);

/* What a run that died left in `folder` (of `root`, a folder for nothing else), judged through the system's io:
 * - the newest checkpoint that is found has at least step `acknowledged`, and the state of its step to the byte;
 * - at least `n_least` folders named step-* are whole, and, if all_whole, all are;
 * - the run goes on to the last step from there, every save succeeds, the last is found by the next start, and nothing
 *   is left but checkpoints.
 * Or, if refused is expected, the start is refused with 66: the only checkpoint is damaged, and was never acknowledged.
 * False with the reason. */
typedef struct crash_expected {
    int64_t acknowledged; /* 0: none */
    int n_least;
    bool all_whole, refused;
} crash_expected;
bool crash_run_recovers(crash_run *r, const char *root, const char *folder, const crash_expected *e, char why[512]);

#endif
