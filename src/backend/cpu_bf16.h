/* cpu_bf16.h: activations are stored as bf16, the upper half of an fp32. See cpu_ops.h. */
#ifndef GROUTER_BACKEND_CPU_BF16_H
#define GROUTER_BACKEND_CPU_BF16_H

#include "cpu.h"

/* A struct, so that arithmetic on what is stored does not compile. */
typedef struct gr_act {
    uint16_t bits;
} gr_act;

#define GR_CPU(name) gr_cpu_##name##_bf16
#define GR_ACT_DTYPE GR_BF16

static inline float gr_act_load(gr_act x) {
    union {
        uint32_t u;
        float f;
    } wide = {.u = (uint32_t)x.bits << 16};
    return wide.f;
}

/* To nearest, ties to even; NaN stays NaN. Both results are computed and one is taken, so that loops become vector
 * code. */
static inline gr_act gr_act_store(float x) {
    union {
        float f;
        uint32_t u;
    } wide = {.f = x};
    const uint32_t rounded = (wide.u + 0x7fffu + (wide.u >> 16 & 1u)) >> 16, quiet = wide.u >> 16 | 0x40u;
    return (gr_act){.bits = (uint16_t)(x == x ? rounded : quiet)};
}

/* Sums and probabilities are floats in room of their own and rounded once when they are complete. */
enum { GR_ACT_ROOM = 1 };

static inline float *gr_act_floats(const gr_act *array, float *room) {
    (void)array;
    return room;
}

static inline gr_act *gr_act_operand(const float *array, gr_act *room) {
    (void)array;
    return room;
}

#endif
