/* inspect_routes.c: verifies a whole route table and measures it. */
#include "cmd/inspect.h"
#include "grouter/routes.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BAR_COLUMNS = 40, BARS_MAX = 64, GRID_COLUMNS = 16 };

typedef struct table_scan {
    gr_routes *routes;
    gr_tokens *tokens; /* NULL: token hashes are not checked */
    size_t file_bytes;
    uint32_t *window; /* [T+1], NULL without tokens */
    uint16_t *ids;    /* [T*K] */
    float *gates;     /* [T*K] */
    uint32_t *counts; /* [E] of one window */
    uint64_t *load;   /* [E] of one window, then of all */
    uint64_t *total;  /* [E] */
    double violation_sum, violation_max;
    double entropy_sum; /* nats, over tokens */
} table_scan;

static gr_err scan_open(table_scan *s, const char *path, const char *tokens) {
    gr_map file = {0};
    GR_TRY(gr_routes_open(&s->routes, path));
    GR_TRY(gr_map_open(&file, path, GR_DATA));
    s->file_bytes = file.n;
    gr_map_close(&file);
    const gr_routes_info *i = gr_routes_get(s->routes);
    if (tokens) {
        GR_TRY(gr_tokens_open(&s->tokens, tokens));
        GR_TRY(gr_routes_match(s->routes, s->tokens, i->T, i->E, i->K));
        GR_TRY(gr_alloc((void **)&s->window, (size_t)i->T + 1, sizeof *s->window, "window tokens"));
    }
    const size_t n_pair = (size_t)i->T * i->K;
    GR_TRY(gr_alloc((void **)&s->ids, n_pair, sizeof *s->ids, "window expert ids"));
    GR_TRY(gr_alloc((void **)&s->gates, n_pair, sizeof *s->gates, "window gates"));
    GR_TRY(gr_alloc((void **)&s->counts, i->E, sizeof *s->counts, "window histogram"));
    GR_TRY(gr_alloc((void **)&s->load, i->E, sizeof *s->load, "window loads"));
    return gr_alloc((void **)&s->total, i->E, sizeof *s->total, "expert loads");
}

static void scan_close(table_scan *s) {
    free(s->total);
    free(s->load);
    free(s->counts);
    free(s->gates);
    free(s->ids);
    free(s->window);
    gr_tokens_close(s->tokens);
    gr_routes_close(s->routes);
}

/* -sum p ln p over one token's gates normalised to sum 1; unused slots add nothing. */
static double gate_entropy(const float *gates, uint32_t K) {
    double sum = 0, entropy = 0;
    for (uint32_t k = 0; k < K; k++)
        sum += (double)gates[k];
    for (uint32_t k = 0; k < K; k++) {
        double p = (double)gates[k] / sum;
        if (p > 0)
            entropy -= p * log(p);
    }
    return entropy;
}

static gr_err scan_window(table_scan *s, uint64_t w) {
    const gr_routes_info *i = gr_routes_get(s->routes);
    if (s->tokens)
        GR_TRY(gr_window_read(s->tokens, w, i->T, UINT32_MAX, s->window));
    GR_TRY(gr_routes_read(s->routes, w, s->window, s->ids, s->gates));
    gr_routes_histogram(s->routes, w, s->counts);
    for (uint32_t e = 0; e < i->E; e++) {
        s->load[e] = s->counts[e];
        s->total[e] += s->counts[e];
    }
    double violation = gr_load_violation(s->load, i->E);
    s->violation_sum += violation;
    s->violation_max = fmax(s->violation_max, violation);
    for (size_t t = 0; t < i->T; t++)
        s->entropy_sum += gate_entropy(s->gates + t * i->K, i->K);
    return GR_OK;
}

static gr_err scan_run(table_scan *s) {
    const gr_routes_info *i = gr_routes_get(s->routes);
    gr_progress progress;
    gr_progress_start(&progress, "verifying", "B", s->file_bytes);
    const double bytes_per_window = (double)s->file_bytes / (double)i->n_window;
    for (uint64_t w = 0; w < i->n_window; w++) {
        GR_TRY(scan_window(s, w));
        gr_progress_update(&progress, (uint64_t)((double)(w + 1) * bytes_per_window));
    }
    GR_TRY(gr_routes_check_hash(s->routes));
    gr_progress_finish(&progress, s->file_bytes);
    return GR_OK;
}

static void print_bars(const uint64_t *load, uint32_t E) {
    uint64_t most = 1, total = 0;
    for (uint32_t e = 0; e < E; e++) {
        most = load[e] > most ? load[e] : most;
        total += load[e];
    }
    printf("load per expert (pairs, relative to the mean):\n");
    for (uint32_t e = 0; e < E; e++) {
        int n = (int)((double)load[e] / (double)most * BAR_COLUMNS + 0.5);
        printf("%5" PRIu32 " %-*.*s %12" PRIu64 " %6.3f\n", e, BAR_COLUMNS, n,
            "########################################", load[e], (double)load[e] * E / (double)total);
    }
}

static void print_grid(const uint64_t *load, uint32_t E) {
    uint64_t total = 0;
    for (uint32_t e = 0; e < E; e++)
        total += load[e];
    printf("load per expert relative to the mean, %d experts a line:\n", GRID_COLUMNS);
    for (uint32_t e = 0; e < E; e++) {
        if (e % GRID_COLUMNS == 0)
            printf("%5" PRIu32 ":", e);
        bool ends = e % GRID_COLUMNS == GRID_COLUMNS - 1 || e == E - 1;
        printf(" %5.2f%s", (double)load[e] * E / (double)total, ends ? "\n" : "");
    }
}

static void print_load(gr_report *r, const uint64_t *load, uint32_t E) {
    if (!r->json) {
        if (E <= BARS_MAX)
            print_bars(load, E);
        else
            print_grid(load, E);
        return;
    }
    gr_report_key(r, "load");
    for (uint32_t e = 0; e < E; e++)
        printf("%s%" PRIu64, e ? ", " : "[", load[e]);
    printf("]");
}

static void print_header(gr_report *r, const gr_routes_info *i) {
    static const char *const mask[GR_N_MASK] = {"none (the token or position alone)", "causal", "bidirectional",
        "causal within documents", "bidirectional within documents"};
    static const char *const position[GR_N_POSITION] = {"none", "within the window"};
    char hash[33], table_hash[17];
    snprintf(table_hash, sizeof table_hash, "%016" PRIx64, i->table_hash);
    gr_report_count(r, "experts", "experts E", i->E);
    gr_report_count(r, "experts_per_token", "experts per token K", i->K);
    gr_report_count(r, "tokens_per_window", "tokens per window T", i->T);
    gr_report_number(r, "scale", "scale", (double)i->scale);
    gr_report_bool(r, "variable_k", "variable K", i->variable_k);
    gr_report_text(r, "mask", "mask", mask[i->mask]);
    gr_report_text(r, "position", "position", position[i->position]);
    gr_report_count(r, "windows", "windows", i->n_window);
    gr_report_count(r, "tokens", "tokens of the token file", i->n_token);
    gr_report_text(r, "provenance", "provenance", i->provenance);
    gr_report_text(r, "router_hash", "router hash", gr_hash128_text(i->router, hash));
    gr_report_text(r, "table_hash", "table hash", table_hash);
}

static void print_scan(const table_scan *s, const char *tokens, bool json) {
    const gr_routes_info *i = gr_routes_get(s->routes);
    const double n_routed = (double)i->n_window * i->T;
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "route table");
    gr_report_text(&r, "file", "route table", gr_routes_path(s->routes));
    print_header(&r, i);
    gr_report_bool(&r, "tokens_checked", NULL, tokens != NULL);
    gr_report_number(&r, "bytes_per_token", "bytes per token", (double)s->file_bytes / n_routed);
    gr_report_number(&r, "max_vio_global", "MaxVioGlobal", gr_load_violation(s->total, i->E));
    gr_report_number(&r, "max_vio_window_mean", NULL, s->violation_sum / (double)i->n_window);
    gr_report_number(&r, "max_vio_window_max", NULL, s->violation_max);
    gr_report_number(&r, "gate_entropy", NULL, s->entropy_sum / n_routed);
    if (!json) {
        printf("MaxVio per window: mean %.4f, max %.4f\n", s->violation_sum / (double)i->n_window, s->violation_max);
        printf("gate entropy: %.4f nats per token (ln K = %.4f)\n", s->entropy_sum / n_routed, log((double)i->K));
    }
    print_load(&r, s->total, i->E);
    if (!json && tokens)
        printf("verified: every row, histogram and hash of %" PRIu64 " windows, and the tokens of %s\n", i->n_window,
            tokens);
    else if (!json)
        printf("verified: every row, histogram and record hash of %" PRIu64
               " windows; token hashes not checked, give --tokens PREFIX\n",
            i->n_window);
    gr_report_end(&r);
}

gr_err gr_inspect_routes(const char *path, const char *tokens, bool json) {
    table_scan s = {0};
    gr_err err = scan_open(&s, path, tokens);
    if (!err)
        err = scan_run(&s);
    if (!err)
        print_scan(&s, tokens, json);
    scan_close(&s);
    return err;
}
