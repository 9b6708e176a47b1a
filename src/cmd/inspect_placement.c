/* inspect_placement.c: a placement as text, JSON and picture. */
#include "cmd/inspect.h"
#include "cmd/placed.h"

#include <inttypes.h>

enum { EXPERTS_SHOWN = 24 };

void gr_placed_print_scores(const gr_placement *p) {
    printf("%-14s %11s %12s %15s %8s %8s\n", "", "rows/token", "pairs/token", "node rows/token", "load", "windows");
    for (int i = 0; i < p->n_score; i++) {
        const gr_place_score *s = &p->score[i];
        printf(
            "%-14s %11.4f %12.4f %15.4f %8.4f %8.4f\n", s->name, s->rows, s->pairs, s->node_rows, s->load, s->windows);
    }
}

/* ---------------------------------------------------------------- text */

static void print_ranks(const gr_placement *p) {
    const uint32_t E_local = p->E / p->R;
    printf("experts by rank, with load over the mean:\n");
    for (uint32_t r = 0; r < p->R; r++) {
        printf("%5" PRIu32 " %7.4f ", r, p->rank_load[r]);
        for (uint32_t i = 0; i < E_local && i < EXPERTS_SHOWN; i++)
            printf(" %u", (unsigned)p->expert_at[(size_t)r * E_local + i]);
        printf(E_local > EXPERTS_SHOWN ? " and %" PRIu32 " more\n" : "\n", E_local - EXPERTS_SHOWN);
    }
}

static void print_tables(const gr_placement *p) {
    for (int i = 0; i < p->n_table; i++) {
        printf("table: ");
        gr_report_plain(p->table[i].path);
        printf(", hash %016" PRIx64 ", %" PRIu64 " windows\n", p->table[i].table_hash, p->table[i].n_window);
    }
}

/* ---------------------------------------------------------------- JSON */

static void print_json_ranks(gr_report *r, const gr_placement *p) {
    const uint32_t E_local = p->E / p->R;
    gr_report_key(r, "experts_by_rank");
    for (uint32_t rank = 0; rank < p->R; rank++) {
        printf(rank ? ", [" : "[[");
        for (uint32_t i = 0; i < E_local; i++)
            printf("%s%u", i ? ", " : "", (unsigned)p->expert_at[(size_t)rank * E_local + i]);
        printf("]");
    }
    printf("]");
    gr_report_key(r, "rank_load");
    for (uint32_t rank = 0; rank < p->R; rank++)
        printf("%s%.9g", rank ? ", " : "[", p->rank_load[rank]);
    printf("]");
}

static void print_json_scores(gr_report *r, const gr_placement *p) {
    gr_report_key(r, "scores");
    for (int i = 0; i < p->n_score; i++) {
        const gr_place_score *s = &p->score[i];
        printf("%s\n    {\"name\": ", i ? "," : "[");
        gr_report_literal(s->name);
        printf(", \"rows\": %.9g, \"pairs\": %.9g, \"node_rows\": %.9g, \"load\": %.9g, \"windows\": %.9g}", s->rows,
            s->pairs, s->node_rows, s->load, s->windows);
    }
    printf("]");
    gr_report_key(r, "tables");
    for (int i = 0; i < p->n_table; i++) {
        printf("%s\n    {\"path\": ", i ? "," : "[");
        gr_report_literal(p->table[i].path);
        printf(
            ", \"hash\": \"%016" PRIx64 "\", \"windows\": %" PRIu64 "}", p->table[i].table_hash, p->table[i].n_window);
    }
    printf("]");
}

/* ---------------------------------------------------------------- all of it */

static void print_placement(const gr_placement *p, const char *path, bool json) {
    char router[33], hash[17];
    gr_report r;
    snprintf(hash, sizeof hash, "%016" PRIx64, gr_placement_hash(p));
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "placement");
    gr_report_text(&r, "file", "placement", path);
    gr_report_text(&r, "method", "method", gr_place_method_name(p->method));
    gr_report_text(&r, "granularity", "granularity", gr_place_grain_name(p->grain));
    gr_report_count(&r, "nodes", "nodes", p->n_node);
    gr_report_count(&r, "ranks_per_node", "ranks per node", p->node_ranks);
    gr_report_count(&r, "experts", "experts E", p->E);
    gr_report_count(&r, "experts_per_token", "experts per token K", p->K);
    gr_report_count(&r, "tokens_per_window", "tokens per window T", p->T);
    gr_report_count(&r, "seed", "seed", p->seed);
    gr_report_count(&r, "sampled_tokens", "sampled tokens", p->n_sampled);
    gr_report_number(&r, "load_max", p->method == GR_PLACE_BALANCED ? "load asked for, at most" : NULL, p->load_max);
    gr_report_number(&r, "load_bound", "load, bound of every placement", p->load_bound);
    gr_report_text(&r, "router_hash", "router hash", gr_hash128_text(p->router, router));
    gr_report_text(&r, "placement_hash", "placement hash", hash);
    if (json) {
        print_json_ranks(&r, p);
        print_json_scores(&r, p);
    } else {
        gr_placed_print_scores(p);
        print_ranks(p);
        print_tables(p);
        printf("verified: checksum and every field; the tables themselves were not read\n");
    }
    gr_report_end(&r);
}

gr_err gr_inspect_placement(const char *path, const char *svg, bool json) {
    gr_placement p;
    GR_TRY(gr_placement_read(&p, path));
    gr_err e = svg ? gr_placed_draw(&p, svg) : GR_OK;
    if (!e)
        print_placement(&p, path, json);
    gr_placement_close(&p);
    return e;
}
