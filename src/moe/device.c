/* device.c: a plan on its way to where ops read it. */
#include "grouter/moe.h"

void gr_moe_plan_take(const gr_backend *b, gr_arena *arena, const gr_plan_limits *limits) {
    size_t N = limits->N, send = limits->send_max, recv = limits->recv_max, pair = limits->pair_max;
    gr_parcel_take(b, arena, send, sizeof(uint32_t));                                   /* send_token */
    gr_parcel_take(b, arena, limits->E_local + 1, sizeof(uint32_t));                    /* expert_offset */
    gr_parcel_take(b, arena, pair, sizeof(uint32_t));                                   /* pair_row */
    gr_parcel_take(b, arena, pair, sizeof(uint8_t));                                    /* pair_slot */
    gr_parcel_take(b, arena, N + recv + 1, sizeof(uint32_t));                           /* row_pair_offset */
    gr_parcel_take(b, arena, pair, sizeof(uint32_t));                                   /* row_pair */
    gr_parcel_take(b, arena, N + 1, sizeof(uint32_t));                                  /* token_return_offset */
    gr_parcel_take(b, arena, send, sizeof(uint32_t));                                   /* token_return */
    gr_parcel_take(b, arena, gr_tiles_max(pair, limits->E_local), sizeof(gr_row_tile)); /* tiles */
    gr_parcel_take(b, arena, limits->E_local, sizeof(uint32_t));                        /* expert_order */
}

/* Parcels give memory that ops read; gr_plan has one type for both kinds. */
static void *add(gr_parcel *p, const void *from, size_t n, size_t elem_size) {
    return (void *)(uintptr_t)gr_parcel_add(p, from, n * elem_size);
}

gr_plan gr_moe_plan_add(gr_parcel *p, const gr_plan *plan) {
    size_t n_row = (size_t)plan->N + plan->n_recv;
    gr_plan there = *plan;
    there.send_token = add(p, plan->send_token, plan->n_send, sizeof *plan->send_token);
    there.expert_offset = add(p, plan->expert_offset, (size_t)plan->E_local + 1, sizeof *plan->expert_offset);
    there.pair_row = add(p, plan->pair_row, plan->n_pair, sizeof *plan->pair_row);
    there.pair_slot = add(p, plan->pair_slot, plan->n_pair, sizeof *plan->pair_slot);
    there.row_pair_offset = add(p, plan->row_pair_offset, n_row + 1, sizeof *plan->row_pair_offset);
    there.row_pair = add(p, plan->row_pair, plan->n_pair, sizeof *plan->row_pair);
    there.token_return_offset =
        add(p, plan->token_return_offset, (size_t)plan->N + 1, sizeof *plan->token_return_offset);
    there.token_return = add(p, plan->token_return, plan->n_send, sizeof *plan->token_return);
    there.tiles = add(p, plan->tiles, plan->n_tile, sizeof *plan->tiles);
    there.expert_order = add(p, plan->expert_order, plan->E_local, sizeof *plan->expert_order);
    return there;
}
