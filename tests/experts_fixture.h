/* experts_fixture.h: a call of grouped experts that kernels for all of them in one launch can do. */
#ifndef GROUTER_EXPERTS_FIXTURE_H
#define GROUTER_EXPERTS_FIXTURE_H

#include "grouter/backend.h"

static gr_ffn whole_call(void) {
    static uint8_t memory[4096] __attribute__((aligned(64)));
    return (gr_ffn){.n_expert = 2,
        .D = 16,
        .F = 8,
        .n_pair = 3,
        .x = memory,
        .w13 = memory,
        .w2 = memory,
        .h = memory,
        .a = memory,
        .y = memory,
        .tiles = (const gr_row_tile *)memory,
        .n_tile = 2,
        .expert_order = (const uint32_t *)memory,
        .device_offset = (const uint32_t *)memory};
}

#endif
