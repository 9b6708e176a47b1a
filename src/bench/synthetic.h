/* synthetic.h: data files for a config whose own are not here. */
#ifndef GROUTER_BENCH_SYNTHETIC_H
#define GROUTER_BENCH_SYNTHETIC_H

#include "grouter/comm.h"
#include "grouter/config.h"

typedef struct gr_synthetic {
    char folder[GR_PATH_MAX]; /* "": none was made */
} gr_synthetic;

/* If none of the files of data.train is here: makes a token file of exactly one global batch, so that every step is an
 * epoch, and with routing.source table uniform routes of it, in <run.dir>.bench-<process of rank 0>, and puts them in
 * place of data.train. Collective: rank 0 makes them, all ranks must see them. 64 if the name gets too long, 74. */
GR_MUST gr_err gr_synthetic_open(gr_synthetic *s, gr_config *config, gr_comm *comm);
/* Rank 0 removes the folder and what is in it; accepts a zeroed one. */
void gr_synthetic_close(gr_synthetic *s, const gr_comm *comm);

#endif
