/* model_windows.h: what model_case.c trains on. */
#ifndef GROUTER_MODEL_WINDOWS_H
#define GROUTER_MODEL_WINDOWS_H

#include "model_case.h"

/* The windows of all ranks, rank-major, so that rank r's are [r*N, (r+1)*N). */
typedef struct windows {
    int64_t n;
    uint32_t *token;
    int32_t *target;
    uint16_t *ids;
    float *gates;
} windows;

/* Of n_part parts, random in every step. Ends the process without memory. */
windows windows_make(const model_case_options *o, int n_part, int step);
void windows_free(windows *w);

#endif
