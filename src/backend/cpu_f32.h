/* cpu_f32.h: activations are stored as fp32. See cpu_ops.h. */
#ifndef GROUTER_BACKEND_CPU_F32_H
#define GROUTER_BACKEND_CPU_F32_H

#include "cpu.h"

typedef float gr_act;

#define GR_CPU(name) gr_cpu_##name##_f32
#define GR_ACT_DTYPE GR_F32

static inline float gr_act_load(gr_act x) {
    return x;
}

static inline gr_act gr_act_store(float x) {
    return x;
}

/* Activations are floats already: the array itself is the room, and nothing is left to round. */
enum { GR_ACT_ROOM = 0 };

static inline float *gr_act_floats(gr_act *array, float *room) {
    (void)room;
    return array;
}

static inline gr_act *gr_act_operand(float *array, gr_act *room) {
    (void)room;
    return array;
}

#endif
