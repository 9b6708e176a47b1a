/* moe.h: one MoE layer's data path over a plan: dispatch, experts, combine. Backward uses the same plan, roles swapped.
 */
#ifndef GROUTER_MOE_H
#define GROUTER_MOE_H

#include "grouter/backend.h"
#include "grouter/comm.h"
#include "grouter/plan.h"
#include "grouter/staging.h"

/* One micro-batch's plan as the layers use it; the buffers are shared by all layers. */
typedef struct gr_moe {
    gr_backend *backend;
    gr_comm *comm;
    const gr_plan *plan;    /* host */
    gr_plan device;         /* the same as the ops read it (gr_moe_plan_add); equal to *plan with host_memory */
    const float *pair_gate; /* [n_pair], backend memory */
    int64_t D, F;
    void *send;         /* act [n_send, D] rows on their way out; later rows returned */
    void *partial;      /* act [M, D] sums of received rows on their way back */
    void *pair_out;     /* act [n_pair, D] per-pair results, summed by combine */
    void *a, *da;       /* act [n_pair, F] scratch of the experts */
    float *gate_send;   /* [n_send, K] learned gates on their way out; later their gradients returned */
    float *pair_dgate;  /* [n_pair] result of the experts' backward; NULL: gates are fixed */
    double exchange_ms; /* time spent in exchanges, added up; the caller resets it */
} gr_moe;

/* The plan with the arrays that ops read in the parcel; those of the host alone (send_rows, recv_rows, recv_token)
 * stay where they are. */
gr_plan gr_moe_plan_add(gr_parcel *p, const gr_plan *plan);
/* Takes the room that any plan within the limits needs there. */
void gr_moe_plan_take(const gr_backend *b, gr_arena *arena, const gr_plan_limits *limits);

/* Fills rows [N, N+M) of x (act [N+M, D], own tokens in rows [0,N)) with the rows other ranks send here. */
GR_MUST gr_err gr_moe_dispatch(gr_moe *m, void *x);

/* out[t] = base[t] + sum of own pairs' pair_out + sum of returned partial sums, own first, then by rank. base may be
 * NULL or out. */
GR_MUST gr_err gr_moe_combine(gr_moe *m, const void *base, void *out);

typedef struct gr_expert_weights {
    const void *w13, *w2; /* act [E_local, 2F, D], [E_local, D, F] */
    float *dw13, *dw2;    /* fp32 gradients; NULL for inference */
} gr_expert_weights;

/* Experts forward: x [N+M, D] -> pair_out; h act [n_pair, 2F] is saved for backward. */
GR_MUST gr_err gr_moe_experts_forward(gr_moe *m, const gr_expert_weights *w, const void *x, void *h);
/* Only h of the forward above, bit for bit: recomputation before backward. Overwrites pair_out. */
GR_MUST gr_err gr_moe_experts_recompute(gr_moe *m, const gr_expert_weights *w, const void *x, void *h);
/* Experts backward: dy [N+M, D] (dispatched), x, h -> gradients, pair_out = dx per pair, pair_dgate. Overwrites h. */
GR_MUST gr_err gr_moe_experts_backward(gr_moe *m, const gr_expert_weights *w, const void *x, const void *dy, void *h);

/* Learned gates travel as their tokens do, as rows of K floats: gate [N+M, K] has those of the own tokens in rows
 * [0,N); fills rows [N, N+M) and pair_gate [n_pair]. */
GR_MUST gr_err gr_moe_gates_dispatch(gr_moe *m, float *gate, float *pair_gate);
/* Back: pair_dgate -> dgate [N+M, K], of which rows [0,N) are then complete, 0 for no slot: each entry is one pair's.
 */
GR_MUST gr_err gr_moe_gates_combine(gr_moe *m, float *dgate);

#endif
