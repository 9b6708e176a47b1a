/* placement_format.h: what the writer and the reader of placements share. Internal to src/place. */
#ifndef GROUTER_PLACEMENT_FORMAT_H
#define GROUTER_PLACEMENT_FORMAT_H

#include "grouter/placement.h"

#define GR_PLACEMENT_MAGIC "GRPLACE"
#define GR_PLACEMENT_FORMAT "grouter-placement"
#define GR_PLACEMENT_VERSION 1u

enum {
    GR_PLACEMENT_HEAD = 16,          /* magic, version, bytes of JSON */
    GR_PLACEMENT_JSON_MAX = 1 << 24, /* 4096 experts and ranks are below 200 KB, a table below 25 KB */
};

#endif
