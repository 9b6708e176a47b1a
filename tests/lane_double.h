/* lane_double.h: a backend for tests of what moves data, without a device: its memory is closed to host code, and its
 * lanes are queues from which nothing runs before the host waits. Then one lane runs as far as it may before another
 * does, so that work which was not told to wait for other work finds that it has not been done. It has no ops. */
#ifndef GROUTER_TESTS_LANE_DOUBLE_H
#define GROUTER_TESTS_LANE_DOUBLE_H

#include "grouter/backend.h"

GR_MUST gr_err lane_double_open(gr_backend **out);

/* Which lane runs first from now on. */
void lane_double_prefer(gr_backend *b, gr_lane lane);

/* Work of somebody else's on a lane, given as lane_native gives it: `step` is called until it says that it is done,
 * with the backend's memory open. */
void lane_double_push(void *stream, bool (*step)(void *of), void *of);

/* Runs what can run; true when nothing is left on the lane. */
bool lane_double_query(void *stream);

/* Whether p[n_byte] lies in one allocation of the lane's backend, and that the lane is `lane`. */
bool lane_double_holds(void *stream, const void *p, size_t n_byte);
bool lane_double_is(void *stream, gr_lane lane);

#endif
