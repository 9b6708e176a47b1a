/* The report of a dry run, for people. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "dry_run.h"
#include "grouter/grouter.h"

/* "530,178,048" into text[32]; returns text. */
static const char *count_text(int64_t n, char text[32]) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRId64, n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

static void print_count(FILE *out, const char *name, int64_t n, const char *note) {
    char text[32];
    fprintf(out, "  %-24s %18s%s%s\n", name, count_text(n, text), *note ? "  " : "", note);
}

static void print_bytes(FILE *out, const char *name, double n_byte, const char *note) {
    char text[32];
    fprintf(out, "  %-24s %18s%s%s\n", name, gr_bytes_text((uint64_t)n_byte, text), *note ? "  " : "", note);
}

static void print_parameters(const gr_dry_report *r, const gr_model_count *n, FILE *out) {
    const gr_model_config *m = &r->config->model;
    char note[128];
    fprintf(out, "\nparameters\n");
    print_count(out, "matrices and embeddings", n->matrices, "");
    print_count(out, "with norm weights", n->matrices + n->norms, "");
    if (r->grouter) {
        snprintf(note, sizeof note, "scores for %d experts but not the embedding", m->num_labels);
        print_count(out, "active per token", n->active, note);
        return;
    }
    snprintf(note, sizeof note, "%.2f %% of matrices and embeddings; %d per layer",
        100.0 * (double)n->experts / (double)n->matrices, m->num_experts);
    print_count(out, "routed experts", n->experts, note);
    if (gr_model_routers(m))
        print_count(out, "routers", (int64_t)gr_model_routers(m) * m->num_experts * m->hidden_size, "");
    snprintf(note, sizeof note, "%d experts a layer, head%s but not input embedding", m->num_experts_per_tok,
        gr_model_routers(m) ? " and routers" : "");
    print_count(out, "active per token", n->active, note);
}

static bool is_online(const gr_dry_report *r) {
    return r->config->routing.source == GR_SOURCE_ONLINE;
}

/* What routing online adds to each step; a table's routes were paid for when it was made. */
static void print_routing_flops(const gr_dry_report *r, double tokens, FILE *out) {
    if (!is_online(r)) {
        fprintf(out, "  %-24s %18s  %s\n", "routing", r->learned ? "" : "0",
            r->learned ? "in the model's figures" : "in the run: done by `route` beforehand");
        return;
    }
    if (r->router.flops_per_token == 0) {
        fprintf(out, "  %-24s %18s  %s is not here\n", "routing", "-", r->config->online.grouter);
        return;
    }
    char active[32];
    double one = r->router.flops_per_token;
    fprintf(
        out, "  %-24s %18.4g  per token, forward: 2 x active + 4 x L x H x head_dim x keys of a row\n", "routing", one);
    fprintf(out, "  %-24s %18s  = 2 x %s + %.4g, of the Grouter\n", "", "", count_text(r->router.count.active, active),
        one - 2.0 * (double)r->router.count.active);
    fprintf(out, "  %-24s %18.4g  of the run: %.2f %% more than training alone\n", "",
        one * tokens * (double)r->config->train.steps, 100 * one / r->flops.model);
}

static void print_flop_count(const char *name, double n, const char *note, FILE *out) {
    fprintf(out, "  %-24s %18.4g  %s\n", name, n, note);
}

/* FLOPs per token of a model whose every weight costs `each`: 6 trained, 2 forward alone. The keys of an attention row
 * are half of T under a causal mask. */
static void print_formula(
    const char *name, double n, int each, const gr_model_config *m, int64_t n_active, const gr_config *c, FILE *out) {
    char active[32];
    bool scores = m->head == GR_HEAD_SCORES, attention = !scores || m->body == GR_BODY_ATTENTION;
    const char *half = scores && gr_mask_sees_ahead(m->mask) ? "" : " / 2";
    fprintf(out, "  %-24s %18.4g  %d x active", name, n, each);
    if (attention)
        fprintf(out, " + %d x L x H x head_dim x T%s", 2 * each, half);
    fprintf(out, "\n  %-24s %18s  = %d x %s", "", "", each, count_text(n_active, active));
    if (attention)
        fprintf(out, " + %d x %d x %d x %d x %d%s", 2 * each, m->num_hidden_layers, m->num_attention_heads, m->head_dim,
            c->data.seq_len, half);
    fprintf(out, "\n");
}

static void print_flops(const gr_dry_report *r, FILE *out) {
    const gr_config *c = r->config;
    const gr_train_flops *f = &r->flops;
    double tokens = (double)c->train.global_batch_windows * c->data.seq_len, each = f->model + f->teacher;
    bool whole = gr_train_part(c) == GR_TRAINED_ALL;
    double forward = f->count.flops_per_token / 3;
    fprintf(out, "\nFLOPs, forward and backward\n");
    if (whole)
        print_formula("per token", f->model, 6, &c->model, f->count.active, c, out);
    else {
        print_formula("per token, forward", forward, 2, &c->model, f->count.active, c, out);
        print_flop_count("per token, backward", f->model - forward, "2 x scores, where scores are trained", out);
    }
    if (f->teacher > 0)
        print_formula("and of the teacher", f->teacher, 2, &f->teacher_config, f->teacher_count.active, c, out);
    char note[64];
    snprintf(note, sizeof note, "%.0f tokens", tokens);
    print_flop_count("per step", each * tokens, note, out);
    snprintf(note, sizeof note, "%lld steps", (long long)c->train.steps);
    print_flop_count("of the run", each * tokens * (double)c->train.steps, note, out);
    if (c->kind == GR_CONFIG_TRAIN)
        print_routing_flops(r, tokens, out);
}

static void print_memory(const gr_dry_report *r, FILE *out) {
    fprintf(out, "\nmemory of a rank: %s\n",
        r->grouter     ? "there are no plans"
        : r->learned   ? "plans at worst, since learned routes are known only in the step"
        : r->packed    ? "largest plans of the run, however its windows fall to ranks"
        : r->exact     ? "largest plans of the run, from the route tables"
        : is_online(r) ? "plans at uniform routing and 25 % more; buffers grow when a micro-batch needs more"
                       : "plans at uniform routing and 25 % more");
    for (int i = 0; i < GR_MEMORY_ITEMS; i++)
        if (r->memory.item[i].n_byte)
            print_bytes(out, r->memory.item[i].name, (double)r->memory.item[i].n_byte, "");
    print_bytes(out, "total", (double)r->memory.total, "");
    print_bytes(out, "needed", (double)gr_forecast_margin(r->memory.total), "2 % and 32 MiB more, for libraries");
    if (!r->exact && !r->learned && r->R_ep > 1)
        print_bytes(
            out, "total at worst", (double)r->memory_worst, "if all tokens of a group chose experts of one rank");
}

/* Which experts go together, and what bounds the plans of a rank. */
static void print_placement(const gr_dry_report *r, FILE *out) {
    const gr_config *c = r->config;
    if (!*r->placement)
        return;
    fprintf(out, "\nplacement: ");
    gr_print_plain(out, c->parallel.placement, strlen(c->parallel.placement));
    fprintf(out, ": %s\n", r->placement);
    if (r->limits.N == 0)
        return;
    double tokens = (double)c->train.global_batch_windows / r->n_rank * c->data.seq_len;
    char note[96];
    snprintf(note, sizeof note, "of a micro-batch, at most%s", r->packed ? ", whichever rank takes which window" : "");
    print_count(out, "rows received", (int64_t)r->limits.recv_max, note);
    print_count(out, "rows sent", (int64_t)r->limits.send_max, note);
    print_count(out, "pairs", (int64_t)r->limits.pair_max, note);
    fprintf(out, "  %-24s %18.3f  %s\n", "rows per token", r->rows / tokens,
        r->packed  ? "expected: of the first steps, at most 32, packed"
        : r->exact ? "from the route tables"
                   : "at uniform routing");
}

/* What routers add: gates out and their gradients back with every row, and the choices of a token to its group. */
static void print_router_messages(const gr_dry_report *r, int n_transfer, FILE *out) {
    const gr_config *c = r->config;
    int n_router = gr_model_routers(&c->model), K = c->model.num_experts_per_tok;
    char note[160];
    if (n_router == 0 || r->R_ep == 1)
        return;
    double gates = n_router * K * (double)sizeof(float);
    snprintf(note, sizeof note, "%d bytes a row, out and back in %d layers", K * (int)sizeof(float), n_router);
    print_bytes(out, "gates", 2 * r->rows * gates, note);
    if (!r->learned)
        return;
    double tokens = (double)c->train.global_batch_windows / r->n_rank * c->data.seq_len;
    snprintf(note, sizeof note, "%d bytes a token to %d ranks in %d layers", K * (int)sizeof(uint16_t), r->R_ep - 1,
        n_router);
    print_bytes(out, "choices", tokens * K * (double)sizeof(uint16_t) * (r->R_ep - 1) * n_router, note);
    double n_return = 2.0 * n_router, width = (double)r->row_bytes;
    double worst = r->sent_worst * (width * (n_transfer - n_return) + gates);
    worst += r->returned_worst * (width * n_return + gates);
    print_bytes(out, "rows and gates at worst", worst, "if all own tokens left for all ranks, and all others came");
}

/* What online routing adds: the routes of a token to its group. */
static void print_route_messages(const gr_dry_report *r, FILE *out) {
    const gr_config *c = r->config;
    char note[160];
    int n_byte = 2 * c->model.num_experts_per_tok * (int)sizeof(uint16_t);
    double tokens = (double)c->train.global_batch_windows / r->n_rank * c->data.seq_len;
    if (!is_online(r) || r->R_ep == 1)
        return;
    snprintf(note, sizeof note, "%d bytes a token to %d ranks", n_byte, r->R_ep - 1);
    print_bytes(out, "routes", tokens * n_byte * (r->R_ep - 1), note);
}

/* Which links the rows travel on. */
static void print_links(const gr_dry_report *r, double bytes, FILE *out) {
    char note[96];
    int n_node = r->R_ep / r->node_ranks;
    double between = r->rows > 0 ? bytes * r->rows_between / r->rows : 0;
    snprintf(note, sizeof note, "%d rank%s of a group on a node", r->node_ranks, r->node_ranks == 1 ? "" : "s");
    print_bytes(out, "  within a node", bytes - between, note);
    const char *unsaid = *r->placement ? "" : ": no placement says otherwise";
    snprintf(note, sizeof note, "%d node%s", n_node, n_node == 1 ? unsaid : "s");
    print_bytes(out, "  between nodes", between, note);
}

static void print_messages(const gr_dry_report *r, FILE *out) {
    const gr_model_config *m = &r->config->model;
    gr_model_transfers transfers = gr_model_transfers_count(m, r->config->train.recompute);
    int n_transfer = transfers.dispatch + transfers.combine;
    char note[160];
    double bytes = r->rows * (double)r->row_bytes * n_transfer;
    fprintf(out, "\nmessages of a rank, per step: bytes sent\n");
    snprintf(note, sizeof note, "%s: %.0f rows x %zu bytes x %d transfers over %d layers",
        r->exact ? "from the route tables" : "at uniform routing", r->rows, r->row_bytes, n_transfer,
        transfers.combine / 2);
    if (!r->grouter)
        print_bytes(out, "dispatch and combine", bytes, r->R_ep > 1 ? note : "experts are whole on each rank");
    if (!r->grouter && r->R_ep > 1)
        print_links(r, bytes, out);
    print_router_messages(r, n_transfer, out);
    print_route_messages(r, out);
    snprintf(
        note, sizeof note, "each element once to its sum (%zu bytes), once back (%zu)", sizeof(float), r->weight_bytes);
    print_bytes(out, "gradients and weights", r->update.gradients + r->update.weights, note);
}

static void print_disk(const gr_dry_report *r, const gr_model_count *n, FILE *out) {
    const gr_config *c = r->config;
    int64_t kept = gr_forecast_checkpoints(c);
    char note[160];
    fprintf(out, "\ndisk\n");
    snprintf(note, sizeof note, "%lld of weights and moments in fp32, and 5 %%", (long long)kept);
    print_bytes(out, "checkpoints", gr_forecast_disk(c, kept), note);
    print_bytes(out, "final weights", (double)(n->matrices + n->norms) * sizeof(float), "");

    if (r->learned || r->grouter)
        return;
    uint64_t T = (uint64_t)c->data.seq_len;
    uint64_t n_window = r->n_window ? r->n_window : (uint64_t)c->train.steps * (uint64_t)c->train.global_batch_windows;
    gr_routes_info info = {.E = (uint32_t)c->model.num_experts,
        .K = (uint32_t)c->model.num_experts_per_tok,
        .T = (uint32_t)T,
        .scale = 1,
        .n_window = n_window,
        .n_token = n_window * T + 1};
    uint64_t n_byte;
    char bytes[32];
    if (gr_routes_size(&info, &n_byte)) {
        fprintf(out, "  %-24s %18s  %s\n", "route tables", "-", gr_error_text());
        return;
    }
    double per_token = (double)n_byte / (double)(n_window * T);
    if (is_online(r)) {
        snprintf(note, sizeof note, "routed online; tables would take %.2f bytes per token, %s", per_token,
            gr_bytes_text(n_byte, bytes));
        print_bytes(out, "route tables", 0, note);
        return;
    }
    snprintf(note, sizeof note, "%.2f bytes per token, %s", per_token,
        r->n_window ? "for all training windows" : "if no window of the run is seen twice");
    print_bytes(out, "route tables", (double)n_byte, note);
}

static void print_data(const gr_dry_report *r, FILE *out) {
    double used = (double)r->config->train.steps * r->config->train.global_batch_windows;
    fprintf(out, "\ndata: %.0f windows of %d tokens in %lld steps", used, r->config->data.seq_len,
        (long long)r->config->train.steps);
    if (r->n_window)
        fprintf(out, ", %.2f epochs of %" PRIu64 " windows", used / (double)r->n_window, r->n_window);
    fprintf(out, "\n");
}

static void print_time(const gr_dry_report *r, FILE *out) {
    const gr_calibration *t = &r->time;
    if (!t->measured) {
        fprintf(out, "\ntime: not measured: %s\n", t->why_not);
        return;
    }
    int n_micro = r->config->train.global_batch_windows / (r->config->train.micro_batch_windows * r->n_rank);
    double step_s = n_micro * t->micro_s + t->update_s;
    char text[2][16];
    fprintf(out, "\ntime of 1000 steps: %s, of the run: %s, without evaluation and checkpoints\n",
        gr_duration_text(1000 * step_s, text[0]), gr_duration_text((double)r->config->train.steps * step_s, text[1]));
    fprintf(out, "  measured here: %d micro-batch%s of %.0f ms and one update of %.0f ms per step\n", n_micro,
        n_micro == 1 ? "" : "es", 1e3 * t->micro_s, 1e3 * t->update_s);
    fprintf(out, "  of a micro-batch, %.1f ms are for %s\n", 1e3 * t->prepare_s,
        is_online(r) ? "routing and plan"
        : r->learned ? "reading windows; routing is in the model"
                     : "reading routes and plan");
}

void gr_dry_report_print(const gr_dry_report *r, FILE *out) {
    const gr_model_count *n = &r->flops.count;
    fprintf(out, "%d rank%s, expert parallel %d, data parallel %d, backend %s, %s\n", r->n_rank,
        r->n_rank == 1 ? "" : "s", r->R_ep, r->n_rank / r->R_ep, r->backend, r->dtype);
    print_parameters(r, n, out);
    print_flops(r, out);
    print_memory(r, out);
    print_placement(r, out);
    print_messages(r, out);
    print_disk(r, n, out);
    print_data(r, out);
    print_time(r, out);
}
