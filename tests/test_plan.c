/* test_plan.c: properties of plans on random and hostile tables, all ranks of a group simulated, and every list against
 * plain loops. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "grouter/plan.h"

/* ---------------------------------------------------------------- tables */

typedef enum hostility {
    RANDOM,
    RANDOM_HALF_UNUSED, /* variable_k: any slot may have gate 0 */
    ONE_EXPERT,         /* all tokens to one expert: its slot alone has a gate */
    LAST_EXPERTS,       /* all tokens to the same K experts, the last ones */
    EVEN_EXPERTS,       /* odd experts stay empty */
    NOTHING,            /* every gate 0 */
    N_HOSTILITY
} hostility;

typedef struct shape {
    uint32_t N, K, E, n_rank;
} shape;

static const shape shapes[] = {{16, 2, 8, 1}, {13, 3, 8, 2}, {8, 8, 8, 2}, {16, 2, 8, 4}, {9, 3, 14, 7}, {11, 7, 7, 7},
    {32, 4, 32, 8}, {10, 1, 8, 8}, {2, 6, 140, 70}, {1, 1, 1, 1}, {64, 8, 64, 4}};
enum { N_SHAPE = sizeof shapes / sizeof shapes[0] };

typedef struct table {
    shape s;
    gr_expert_map map;
    uint16_t *ids; /* [n_rank*N][K] */
    float *gates;
    gr_plan_limits limits; /* the smallest that hold for every rank */
} table;

static void *take(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    assert_non_null(p);
    return p;
}

/* K distinct ascending experts out of those that `kind` allows. */
static void draw_row(const shape *s, hostility kind, uint32_t t, uint16_t *ids) {
    uint32_t step = kind == EVEN_EXPERTS && s->E >= 2 * s->K ? 2 : 1, n = s->E / step, got = 0;
    for (uint32_t c = 0; c < n && got < s->K; c++) { /* selection sampling keeps them ascending */
        uint32_t left = n - c, wanted = s->K - got;
        bool chosen =
            kind == ONE_EXPERT || kind == LAST_EXPERTS ? left <= wanted : gr_random_below(7, t, c, left) < wanted;
        if (chosen)
            ids[got++] = (uint16_t)(c * step);
    }
}

static float draw_gate(hostility kind, uint32_t t, uint32_t k, uint32_t K) {
    float gate = (float)(1 + gr_random_below(9, t, k, 1000));
    switch (kind) {
    case RANDOM_HALF_UNUSED:
        return gr_random_below(8, t, k, 2) ? gate : 0;
    case ONE_EXPERT:
        return k == K - 1 ? gate : 0;
    case NOTHING:
        return 0;
    default:
        return gate;
    }
}

/* As a placement may: experts on any rank and slot. */
static void shuffle_map(gr_expert_map *m) {
    for (uint32_t at = 0; at < m->E; at++) {
        uint32_t e = (uint32_t)gr_bijection(11, m->E, at);
        m->expert_at[at] = (uint16_t)e;
        m->rank_of[e] = (uint16_t)(at / m->E_local);
        m->slot_of[e] = (uint16_t)(at % m->E_local);
    }
}

static bool touches(const table *a, uint32_t token, uint32_t rank) {
    for (uint32_t k = 0; k < a->s.K; k++)
        if (a->gates[token * a->s.K + k] > 0 && a->map.rank_of[a->ids[token * a->s.K + k]] == rank)
            return true;
    return false;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static void count_limits(table *a) {
    const shape *s = &a->s;
    a->limits = (gr_plan_limits){.N = s->N, .K = s->K, .n_rank = s->n_rank, .E_local = s->E / s->n_rank};
    for (uint32_t r = 0; r < s->n_rank; r++) {
        uint64_t send = 0, recv = 0, pair = 0;
        for (uint32_t t = 0; t < s->n_rank * s->N; t++) {
            for (uint32_t to = 0; to < s->n_rank; to++)
                if ((t / s->N == r) != (to == r) && touches(a, t, to))
                    send += to != r, recv += to == r;
            for (uint32_t k = 0; k < s->K; k++)
                pair += a->gates[t * s->K + k] > 0 && a->map.rank_of[a->ids[t * s->K + k]] == r;
        }
        a->limits.send_max = larger(a->limits.send_max, send);
        a->limits.recv_max = larger(a->limits.recv_max, recv);
        a->limits.pair_max = larger(a->limits.pair_max, pair);
    }
}

static void table_open(table *a, shape s, hostility kind, bool shuffled) {
    *a = (table){.s = s};
    assert_int_equal(gr_expert_map_open(&a->map, s.E, s.n_rank), 0);
    if (shuffled)
        shuffle_map(&a->map);
    uint32_t n_token = s.n_rank * s.N;
    a->ids = take((size_t)n_token * s.K, sizeof *a->ids);
    a->gates = take((size_t)n_token * s.K, sizeof *a->gates);
    for (uint32_t t = 0; t < n_token; t++) {
        draw_row(&s, kind, t, a->ids + t * s.K);
        for (uint32_t k = 0; k < s.K; k++)
            a->gates[t * s.K + k] = draw_gate(kind, t, k, s.K);
    }
    count_limits(a);
}

static void table_close(table *a) {
    free(a->ids);
    free(a->gates);
    gr_expert_map_close(&a->map);
}

/* ---------------------------------------------------------------- plans, each list in memory of its own */

typedef struct built {
    gr_plan plan;
    gr_plan_builder *builder;
    void *arena;
    void *list[11];
} built;

static void built_open(built *b, const table *a, const gr_plan_limits *limits) {
    gr_arena arena = {0};
    gr_plan_layout(&arena, limits, &a->map, &b->plan, &b->builder);
    assert_null(b->plan.send_rows);
    assert_null(b->builder);
    b->arena = aligned_alloc(GR_ALIGN, (arena.peak + GR_ALIGN - 1) / GR_ALIGN * GR_ALIGN);
    assert_non_null(b->arena);
    memset(b->arena, 0xA5, arena.peak); /* builders must not count on zeroed memory */
    arena = (gr_arena){.base = b->arena, .size = arena.peak};
    gr_plan_layout(&arena, limits, &a->map, &b->plan, &b->builder);
    gr_plan *p = &b->plan; /* heap blocks of exact size let the address sanitizer see every list's end */
    b->list[0] = p->send_token = take(limits->send_max, 4);
    b->list[1] = p->recv_token = take(limits->recv_max + 1, 4);
    b->list[2] = p->expert_offset = take(limits->E_local + 1, 4);
    b->list[3] = p->pair_row = take(limits->pair_max, 4);
    b->list[4] = p->pair_slot = take(limits->pair_max, 1);
    b->list[5] = p->row_pair_offset = take(limits->N + limits->recv_max + 2, 4);
    b->list[6] = p->row_pair = take(limits->pair_max, 4);
    b->list[7] = p->token_return_offset = take(limits->N + 1, 4);
    b->list[8] = p->token_return = take(limits->send_max, 4);
    b->list[9] = p->tiles = take(gr_tiles_max(limits->pair_max, limits->E_local), sizeof *p->tiles);
    b->list[10] = p->expert_order = take(limits->E_local, 4);
}

static void built_close(built *b) {
    for (size_t i = 0; i < sizeof b->list / sizeof b->list[0]; i++)
        free(b->list[i]);
    free(b->arena);
}

static built *build_all(const table *a) {
    built *all = take(a->s.n_rank, sizeof *all);
    for (uint32_t r = 0; r < a->s.n_rank; r++) {
        built_open(&all[r], a, &a->limits);
        assert_int_equal(gr_plan_build(&all[r].plan, all[r].builder, &a->limits, &a->map, r, a->ids, a->gates), GR_OK);
    }
    return all;
}

static void close_all(built *all, const table *a) {
    for (uint32_t r = 0; r < a->s.n_rank; r++)
        built_close(&all[r]);
    free(all);
}

/* Token, numbered over the group, of a row of this plan. */
static uint32_t token_of_row(const gr_plan *p, uint32_t row) {
    return row < p->N ? p->rank * p->N + row : p->recv_token[row - p->N];
}

static void for_every_table(void (*check)(const table *a, built *all)) {
    for (uint32_t i = 0; i < N_SHAPE; i++)
        for (hostility kind = 0; kind < N_HOSTILITY; kind++)
            for (int shuffled = 0; shuffled < 2; shuffled++) {
                table a;
                table_open(&a, shapes[i], kind, shuffled);
                built *all = build_all(&a);
                check(&a, all);
                close_all(all, &a);
                table_close(&a);
            }
}

/* ---------------------------------------------------------------- properties */

static void check_bijection(const table *a, built *all) {
    const shape *s = &a->s;
    size_t n = (size_t)s->n_rank * s->N * s->K;
    uint32_t *seen = take(n, sizeof *seen);
    for (uint32_t r = 0; r < s->n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        for (uint32_t e = 0; e < p->E_local; e++)
            for (uint32_t i = p->expert_offset[e]; i < p->expert_offset[e + 1]; i++) {
                assert_true(p->pair_row[i] < p->N + p->n_recv);
                assert_true(p->pair_slot[i] < p->K);
                size_t entry = (size_t)token_of_row(p, p->pair_row[i]) * s->K + p->pair_slot[i];
                assert_int_equal(a->ids[entry], a->map.expert_at[r * p->E_local + e]);
                seen[entry]++;
            }
    }
    for (size_t i = 0; i < n; i++)
        assert_int_equal(seen[i], a->gates[i] > 0);
    free(seen);
}

static void check_conservation(const table *a, built *all) {
    for (uint32_t from = 0; from < a->s.n_rank; from++) {
        const gr_plan *x = &all[from].plan;
        uint32_t sent = 0;
        assert_int_equal(x->send_rows[from], 0);
        assert_int_equal(x->recv_rows[from], 0);
        for (uint32_t to = 0; to < a->s.n_rank; sent += x->send_rows[to], to++) {
            const gr_plan *y = &all[to].plan;
            assert_int_equal(x->send_rows[to], y->recv_rows[from]);
            uint32_t first = 0;
            for (uint32_t r = 0; r < from; r++)
                first += y->recv_rows[r];
            for (uint32_t i = 0; i < x->send_rows[to]; i++) {
                uint32_t token = x->send_token[sent + i];
                assert_int_equal(from * x->N + token, y->recv_token[first + i]);
                assert_true(touches(a, from * x->N + token, to));
                assert_true(i == 0 || token > x->send_token[sent + i - 1]);
            }
        }
        assert_int_equal(sent, x->n_send);
        uint32_t received = 0;
        for (uint32_t r = 0; r < a->s.n_rank; r++)
            received += x->recv_rows[r];
        assert_int_equal(received, x->n_recv);
    }
}

static void check_order(const table *a, built *all) {
    for (uint32_t r = 0; r < a->s.n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        assert_int_equal(p->expert_offset[0], 0);
        assert_int_equal(p->expert_offset[p->E_local], p->n_pair);
        for (uint32_t e = 0; e < p->E_local; e++) {
            assert_true(p->expert_offset[e] <= p->expert_offset[e + 1]);
            for (uint32_t i = p->expert_offset[e] + 1; i < p->expert_offset[e + 1]; i++)
                assert_true(p->pair_row[i - 1] < p->pair_row[i]);
        }
        for (uint32_t i = 1; i < p->n_recv; i++)
            assert_true(p->recv_token[i - 1] < p->recv_token[i]);
        uint32_t n = 0; /* pairs in tiles; test_tiles.c has the rest */
        for (const gr_row_tile *t = p->tiles; t < p->tiles + p->n_tile; n += t++->n_row)
            assert_true(
                t->first >= p->expert_offset[t->expert] && t->first + t->n_row <= p->expert_offset[t->expert + 1]);
        assert_int_equal(n, p->n_pair);
        assert_true(p->n_tile == 0 || p->tiles[0].expert == p->expert_order[0]);
    }
}

static void check_row_lists(const table *a, built *all) {
    for (uint32_t r = 0; r < a->s.n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        uint32_t n_row = p->N + p->n_recv;
        assert_int_equal(p->row_pair_offset[0], 0);
        assert_int_equal(p->row_pair_offset[n_row], p->n_pair);
        for (uint32_t row = 0; row < n_row; row++) {
            assert_true(p->row_pair_offset[row] <= p->row_pair_offset[row + 1]);
            assert_true(row < p->N || p->row_pair_offset[row] < p->row_pair_offset[row + 1]);
            for (uint32_t i = p->row_pair_offset[row]; i < p->row_pair_offset[row + 1]; i++) {
                assert_int_equal(p->pair_row[p->row_pair[i]], row);
                assert_true(i == p->row_pair_offset[row] || p->row_pair[i - 1] < p->row_pair[i]);
            }
        }
    }
}

static void check_return_lists(const table *a, built *all) {
    for (uint32_t r = 0; r < a->s.n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        assert_int_equal(p->token_return_offset[0], 0);
        assert_int_equal(p->token_return_offset[p->N], p->n_send);
        for (uint32_t t = 0; t < p->N; t++)
            for (uint32_t i = p->token_return_offset[t]; i < p->token_return_offset[t + 1]; i++) {
                assert_int_equal(p->send_token[p->token_return[i]], t);
                /* sent rows are by rank, so ascending rows are ascending ranks */
                assert_true(i == p->token_return_offset[t] || p->token_return[i - 1] < p->token_return[i]);
            }
    }
}

static void check_gates(const table *a, built *all) {
    for (uint32_t r = 0; r < a->s.n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        float *gate = take(p->n_pair, sizeof *gate);
        gr_plan_gates(p, a->gates, gate);
        for (uint32_t i = 0; i < p->n_pair; i++)
            assert_true(gate[i] == a->gates[token_of_row(p, p->pair_row[i]) * a->s.K + p->pair_slot[i]]);
        free(gate);
    }
}

/* What a pair adds: an integer that no other (token, expert) has, so sums are exact in any order. */
static uint64_t pair_value(uint32_t token, uint32_t expert) {
    return ((uint64_t)token + 1) * 1000003 + (uint64_t)(expert + 1) * (expert + 1) * 7919;
}

/* Sums of each received row, in the order received: partial[M]. */
static uint64_t *partial_sums(const table *a, const gr_plan *p, uint32_t first_row, uint32_t n_row) {
    uint64_t *sum = take(n_row, sizeof *sum);
    for (uint32_t i = 0; i < n_row; i++)
        for (uint32_t j = p->row_pair_offset[first_row + i]; j < p->row_pair_offset[first_row + i + 1]; j++) {
            uint32_t token = token_of_row(p, first_row + i);
            sum[i] += pair_value(token, a->ids[token * p->K + p->pair_slot[p->row_pair[j]]]);
        }
    return sum;
}

static void check_combine(const table *a, built *all) {
    const shape *s = &a->s;
    for (uint32_t r = 0; r < s->n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        uint64_t *out = partial_sums(a, p, 0, p->N);
        uint64_t *returned = take(p->n_send, sizeof *returned);
        for (uint32_t to = 0, at = 0; to < s->n_rank; at += p->send_rows[to], to++) {
            const gr_plan *q = &all[to].plan;
            uint64_t *partial = partial_sums(a, q, q->N, q->n_recv);
            uint32_t first = 0;
            for (uint32_t i = 0; i < r; i++)
                first += q->recv_rows[i];
            for (uint32_t i = 0; i < p->send_rows[to]; i++)
                returned[at + i] = partial[first + i];
            free(partial);
        }
        for (uint32_t t = 0; t < p->N; t++) {
            for (uint32_t i = p->token_return_offset[t]; i < p->token_return_offset[t + 1]; i++)
                out[t] += returned[p->token_return[i]];
            uint64_t direct = 0;
            uint32_t token = r * p->N + t;
            for (uint32_t k = 0; k < s->K; k++)
                if (a->gates[token * s->K + k] > 0)
                    direct += pair_value(token, a->ids[token * s->K + k]);
            assert_true(out[t] == direct);
        }
        free(returned);
        free(out);
    }
}

/* A builder that was used for another table before gives the same plan. */
static void check_determinism(const table *a, built *all) {
    table other;
    table_open(&other, a->s, NOTHING, false);
    for (uint32_t r = 0; r < a->s.n_rank; r++) {
        const gr_plan *p = &all[r].plan;
        built b;
        built_open(&b, a, &a->limits);
        gr_plan *q = &b.plan;
        assert_int_equal(gr_plan_build(q, b.builder, &a->limits, &other.map, 0, other.ids, other.gates), 0);
        assert_int_equal(q->n_pair + q->n_send + q->n_recv, 0);
        assert_int_equal(gr_plan_build(q, b.builder, &a->limits, &a->map, r, a->ids, a->gates), 0);
        assert_true(p->n_pair == q->n_pair && p->n_send == q->n_send && p->n_recv == q->n_recv && p->rank == q->rank);
        assert_memory_equal(p->send_rows, q->send_rows, p->n_rank * 4);
        assert_memory_equal(p->recv_rows, q->recv_rows, p->n_rank * 4);
        assert_memory_equal(p->send_token, q->send_token, p->n_send * 4);
        assert_memory_equal(p->recv_token, q->recv_token, p->n_recv * 4);
        assert_memory_equal(p->expert_offset, q->expert_offset, (p->E_local + 1) * 4);
        assert_memory_equal(p->pair_row, q->pair_row, p->n_pair * 4);
        assert_memory_equal(p->pair_slot, q->pair_slot, p->n_pair);
        assert_memory_equal(p->row_pair_offset, q->row_pair_offset, (p->N + p->n_recv + 1) * 4);
        assert_memory_equal(p->row_pair, q->row_pair, p->n_pair * 4);
        assert_memory_equal(p->token_return_offset, q->token_return_offset, (p->N + 1) * 4);
        assert_memory_equal(p->token_return, q->token_return, p->n_send * 4);
        built_close(&b);
    }
    table_close(&other);
}

/* With one row or pair less than needed, exactly the ranks that need it fail, and the sanitizer sees no write beyond.
 */
static void check_limits(const table *a, built *all) {
    for (int which = 0; which < 3; which++) {
        gr_plan_limits limits = a->limits;
        uint64_t *limit = which == 0 ? &limits.send_max : which == 1 ? &limits.recv_max : &limits.pair_max;
        if (*limit == 0)
            continue;
        --*limit;
        for (uint32_t r = 0; r < a->s.n_rank; r++) {
            const gr_plan *p = &all[r].plan;
            uint32_t need = which == 0 ? p->n_send : which == 1 ? p->n_recv : p->n_pair;
            built b;
            built_open(&b, a, &limits);
            gr_err err = gr_plan_build(&b.plan, b.builder, &limits, &a->map, r, a->ids, a->gates);
            assert_int_equal(err, need > *limit ? GR_DATA : GR_OK);
            static const char *const name[] = {"sent rows", "received rows", "pairs"};
            if (err)
                assert_non_null(strstr(gr_error_text(), name[which]));
            built_close(&b);
        }
    }
}

static void every_pair_is_computed_once_on_its_experts_rank(void **state) {
    (void)state;
    for_every_table(check_bijection);
}

static void what_one_rank_sends_another_receives_in_the_same_order(void **state) {
    (void)state;
    for_every_table(check_conservation);
}

static void pairs_are_by_expert_then_row(void **state) {
    (void)state;
    for_every_table(check_order);
}

static void every_rows_pairs_are_listed_ascending(void **state) {
    (void)state;
    for_every_table(check_row_lists);
}

static void every_tokens_returns_are_listed_by_rank(void **state) {
    (void)state;
    for_every_table(check_return_lists);
}

static void gates_follow_their_pairs(void **state) {
    (void)state;
    for_every_table(check_gates);
}

static void combine_over_ranks_equals_the_direct_sum(void **state) {
    (void)state;
    for_every_table(check_combine);
}

static void a_plan_depends_on_its_routes_alone(void **state) {
    (void)state;
    for_every_table(check_determinism);
}

static void exceeding_a_limit_is_a_data_error(void **state) {
    (void)state;
    for_every_table(check_limits);
}

static void the_default_map_puts_blocks_of_experts_on_ranks(void **state) {
    (void)state;
    gr_expert_map m;
    assert_int_equal(gr_expert_map_open(&m, 12, 3), 0);
    assert_int_equal(m.E_local, 4);
    for (uint32_t e = 0; e < 12; e++) {
        assert_int_equal(m.rank_of[e], e / 4);
        assert_int_equal(m.slot_of[e], e % 4);
        assert_int_equal(m.expert_at[m.rank_of[e] * m.E_local + m.slot_of[e]], e);
    }
    gr_expert_map_close(&m);
    gr_expert_map_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_is_computed_once_on_its_experts_rank),
        cmocka_unit_test(what_one_rank_sends_another_receives_in_the_same_order),
        cmocka_unit_test(pairs_are_by_expert_then_row),
        cmocka_unit_test(every_rows_pairs_are_listed_ascending),
        cmocka_unit_test(every_tokens_returns_are_listed_by_rank),
        cmocka_unit_test(gates_follow_their_pairs),
        cmocka_unit_test(combine_over_ranks_equals_the_direct_sum),
        cmocka_unit_test(a_plan_depends_on_its_routes_alone),
        cmocka_unit_test(exceeding_a_limit_is_a_data_error),
        cmocka_unit_test(the_default_map_puts_blocks_of_experts_on_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
