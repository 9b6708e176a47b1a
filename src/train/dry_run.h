/* dry_run.h: what a dry run has found, for its report. */
#ifndef GROUTER_TRAIN_DRY_RUN_H
#define GROUTER_TRAIN_DRY_RUN_H

#include "internal.h"

typedef struct gr_calibration {
    bool measured;
    char why_not[128];
    double micro_s, update_s; /* one micro-batch; one optimizer step */
    double prepare_s;         /* of the micro-batch: reading or making routes, and the plan */
} gr_calibration;

typedef struct gr_dry_report {
    const gr_config *config;
    int n_rank, R_ep;
    const char *backend, *dtype;
    int n_absent;      /* data files that are not here */
    bool has_products; /* this machine computes with the storage type */
    bool exact;        /* rows and pairs are the route tables' */
    bool grouter;      /* one is made: no routes and no experts */
    bool learned;      /* routes are made in the step: memory is that of the worst choice, rows are expected ones */
    gr_train_flops flops;
    gr_router_cost router;             /* online routing; 0: none, or not here */
    gr_memory_table memory;            /* of the rank that needs most */
    uint64_t memory_worst;             /* if all tokens chose experts of one rank; 0 when exact */
    double rows;                       /* that a rank sends in one dispatch of one layer, per step, mean over ranks */
    double rows_between;               /* of those, to ranks of other nodes */
    int node_ranks;                    /* of an expert-parallel group on one node; R_ep: all */
    double sent_worst, returned_worst; /* learned: rows if all tokens went to as many ranks as they can, or came here */
    size_t row_bytes;
    size_t weight_bytes; /* of an element on its way back from its owner */
    gr_optimizer_traffic update;
    gr_plan_limits limits; /* of training, of that rank */
    char placement[128];   /* "balanced by rank, 2 nodes x 4 ranks"; "" without one */
    bool packed;           /* limits hold for any choice of ranks for windows, rows are those of the first steps */
    uint64_t n_window;     /* training windows that are here; 0: unknown */
    gr_calibration time;
} gr_dry_report;

void gr_dry_report_print(const gr_dry_report *r, FILE *out);

#endif
