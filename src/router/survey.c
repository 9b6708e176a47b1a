/* survey.c: what a Grouter chooses on sampled windows, and what its score rows see, over all ranks. The sample is cut
 * into parts, and ranks have whole parts: no result depends on how many ranks there are. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PART_MAX = 256 }; /* more ranks than parts would idle */

uint64_t gr_sample_window(uint64_t seed, uint64_t n_window, uint64_t n_sample, uint64_t i) {
    GR_ASSERT(i < n_sample && n_sample <= n_window, "window %llu of %llu sampled from %llu", (unsigned long long)i,
        (unsigned long long)n_sample, (unsigned long long)n_window);
    const uint64_t each = n_window / n_sample, rest = n_window % n_sample, length = each + (i < rest);
    const uint64_t word = gr_random_u64(seed, gr_stream_id("sampled windows"), i);
    return i * each + (i < rest ? i : rest) + (uint64_t)((unsigned __int128)word * length >> 64);
}

/* First of the n things in shares of equal length, the first ones longer by one. */
static uint64_t share_begin(uint64_t n, uint64_t n_share, uint64_t share) {
    const uint64_t rest = n % n_share;
    return share * (n / n_share) + (share < rest ? share : rest);
}

gr_err gr_survey_open(gr_survey *s, const gr_folding *f) {
    *s = (gr_survey){
        .comm = f->comm, .backend = f->backend, .tokens = f->tokens, .n_file = f->n_file, .T = f->T, .seed = f->seed};
    for (int i = 0; i < f->n_file; i++)
        s->n_all += gr_window_count(gr_tokens_count(f->tokens[i]), f->T);
    if (s->n_all == 0)
        return gr_fail(GR_DATA,
            "%s: expected at least the %u tokens of one window and the one after it, got %llu%s; use smaller windows "
            "or "
            "longer files",
            gr_tokens_prefix(f->tokens[0]), f->T, (unsigned long long)gr_tokens_count(f->tokens[0]),
            f->n_file > 1 ? " and no more in any other file" : "");
    s->n_window = f->n_window == 0 || f->n_window > s->n_all ? s->n_all : f->n_window;
    s->n_part = s->n_window < PART_MAX ? (uint32_t)s->n_window : PART_MAX;
    return GR_OK;
}

/* ---------------------------------------------------------------- one pass over this rank's parts */

typedef struct pass {
    const gr_survey *s;
    const gr_grouter *g;
    gr_affinity *choices;
    gr_vectors *vectors; /* or NULL */
    gr_network *network;
    uint32_t *window; /* [T+1] */
    uint16_t *ids;    /* [T,K] */
    float *gates;     /* [T,K] */
    gr_progress progress;
    uint64_t n_done;
} pass;

static gr_err pass_open(pass *p) {
    const gr_survey *s = p->s;
    const size_t n_pair = (size_t)s->T * p->g->spec.K; /* at most 2^31 * 64 */
    GR_TRY(gr_network_open(&p->network, p->g, s->backend, s->T));
    GR_TRY(gr_alloc((void **)&p->window, (size_t)s->T + 1, sizeof *p->window, "window tokens"));
    GR_TRY(gr_alloc((void **)&p->ids, n_pair, sizeof *p->ids, "window expert ids"));
    return gr_alloc((void **)&p->gates, n_pair, sizeof *p->gates, "window gates");
}

static void pass_close(pass *p) {
    free(p->gates);
    free(p->ids);
    free(p->window);
    gr_network_close(p->network);
}

static gr_err check_finite(const gr_tokens *t, uint64_t window, size_t n, const float *scores) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(scores[i]))
            return gr_fail(GR_NONFINITE,
                "window %llu of %s: expected finite scores, got %g; the Grouter is damaged or its training diverged",
                (unsigned long long)window, gr_tokens_prefix(t), (double)scores[i]);
    return GR_OK;
}

static gr_err visit_window(pass *p, uint64_t i, gr_reservoir *kept) {
    const gr_survey *s = p->s;
    const gr_grouter_spec *spec = &p->g->spec;
    const uint32_t E = (uint32_t)spec->network.num_labels;
    const float *scores, *features;
    int file = 0;
    uint64_t window = gr_sample_window(s->seed, s->n_all, s->n_window, i), n;
    for (; window >= (n = gr_window_count(gr_tokens_count(s->tokens[file]), s->T)); file++)
        window -= n;
    GR_TRY(gr_window_read(s->tokens[file], window, s->T, (uint32_t)spec->network.vocab_size, p->window));
    GR_TRY(gr_network_scores(p->network, p->window, &scores, &features));
    GR_TRY(check_finite(s->tokens[file], window, (size_t)s->T * E, scores));
    gr_select(&(gr_selection){.E = E, .K = spec->K, .scale = spec->scale, .threshold = spec->scale}, s->T, scores,
        p->ids, p->gates);
    GR_TRY(gr_affinity_add(p->choices, p->ids, NULL, s->T, spec->K));
    if (kept)
        gr_reservoir_add(kept, s->T, features);
    p->n_done += s->T;
    gr_progress_update(&p->progress, p->n_done);
    return GR_OK;
}

static gr_err visit_windows(pass *p, uint32_t part, gr_reservoir *kept) {
    const uint64_t end = share_begin(p->s->n_window, p->s->n_part, part + 1);
    for (uint64_t i = share_begin(p->s->n_window, p->s->n_part, part); i < end; i++)
        GR_TRY(visit_window(p, i, kept));
    return GR_OK;
}

static gr_err visit_part(pass *p, uint32_t part) {
    gr_vectors *v = p->vectors;
    if (!v)
        return visit_windows(p, part, NULL);
    gr_reservoir kept;
    gr_err e = gr_reservoir_open(&kept, gr_reservoir_quota(v->n_max, part, p->s->n_part), v->D, p->s->seed, part);
    if (!e)
        e = visit_windows(p, part, &kept);
    if (!e) {
        memcpy(v->x + v->n * v->D, kept.x, kept.n * v->D * sizeof *v->x);
        v->n += kept.n;
    }
    gr_reservoir_close(&kept);
    return e;
}

static uint32_t first_part(const gr_survey *s, int rank) {
    return (uint32_t)share_begin(s->n_part, (uint64_t)s->comm->size[GR_WORLD], (uint64_t)rank);
}

static gr_err visit_share(pass *p) {
    const gr_survey *s = p->s;
    const int rank = s->comm->rank[GR_WORLD];
    const uint32_t begin = first_part(s, rank), end = first_part(s, rank + 1);
    const uint64_t n_window = share_begin(s->n_window, s->n_part, end) - share_begin(s->n_window, s->n_part, begin);
    GR_TRY(pass_open(p));
    gr_progress_start(&p->progress,
        s->comm->size[GR_WORLD] > 1 ? "routing the sample (rank 0's share)" : "routing the sample", "ktokens", 1e3,
        n_window * s->T);
    for (uint32_t part = begin; part < end; part++)
        GR_TRY(visit_part(p, part));
    gr_progress_finish(&p->progress, p->n_done);
    return GR_OK;
}

/* ---------------------------------------------------------------- vectors on rank 0 */

/* How many vectors the parts of `rank` give. */
static size_t count_vectors(const gr_survey *s, size_t n_max, int rank) {
    size_t n = 0;
    for (uint32_t part = first_part(s, rank); part < first_part(s, rank + 1); part++) {
        const uint64_t n_window =
            share_begin(s->n_window, s->n_part, part + 1) - share_begin(s->n_window, s->n_part, part);
        const size_t quota = gr_reservoir_quota(n_max, part, s->n_part);
        n += quota / s->T < n_window ? quota : (size_t)(n_window * s->T);
    }
    return n;
}

gr_err gr_vectors_open(gr_vectors *v, const gr_survey *s, size_t n_max, uint32_t D) {
    size_t n = 0, n_number;
    *v = (gr_vectors){.n_max = n_max, .D = D};
    const int rank = s->comm->rank[GR_WORLD];
    for (int r = rank; r < (rank == 0 ? s->comm->size[GR_WORLD] : rank + 1); r++)
        n += count_vectors(s, n_max, r);
    if (!gr_mul_size(n > 0 ? n : 1, D, &n_number))
        return gr_fail(GR_RESOURCE, "sample: %zu vectors of %u numbers do not fit memory", n, D);
    return gr_alloc((void **)&v->x, n_number, sizeof *v->x, "sample of vectors");
}

void gr_vectors_close(gr_vectors *v) {
    free(v->x);
    *v = (gr_vectors){0};
}

/* Rank 0 receives those of the others behind its own, in rank order, which is the order of the parts. */
static gr_err gather(const gr_survey *s, gr_vectors *v, uint32_t *send, uint32_t *recv) {
    gr_comm *c = s->comm;
    const int rank = c->rank[GR_WORLD];
    size_t n_received = 0;
    for (int r = 1; rank == 0 && r < c->size[GR_WORLD]; r++)
        n_received += recv[r] = (uint32_t)count_vectors(s, v->n_max, r);
    if (rank > 0)
        send[0] = (uint32_t)v->n;
    GR_TRY(c->exchange_start(c, &(gr_exchange){.group = GR_WORLD,
                                    .dtype = GR_F32,
                                    .width = v->D,
                                    .send = v->x,
                                    .send_rows = send,
                                    .recv = v->x + v->n * v->D,
                                    .recv_rows = recv}));
    GR_TRY(c->exchange_wait(c));
    v->n += n_received;
    return GR_OK;
}

static gr_err gather_vectors(const gr_survey *s, gr_vectors *v) {
    const size_t n_rank = (size_t)s->comm->size[GR_WORLD];
    uint32_t *rows;
    gr_err e = gr_alloc((void **)&rows, 2 * n_rank, sizeof *rows, "vectors by rank");
    e = gr_comm_agree(s->comm, e);
    if (!e)
        e = gather(s, v, rows, rows + n_rank);
    free(rows);
    return e;
}

/* ---------------------------------------------------------------- interface */

gr_err gr_survey_run(const gr_survey *s, const gr_grouter *g, gr_affinity *choices, gr_vectors *vectors) {
    pass p = {.s = s, .g = g, .choices = choices, .vectors = vectors};
    gr_err e = visit_share(&p);
    pass_close(&p);
    GR_TRY(gr_comm_agree(s->comm, e));
    GR_TRY(s->comm->sum(s->comm, GR_WORLD, GR_U64, choices->block, choices->n_block));
    return vectors ? gather_vectors(s, vectors) : GR_OK;
}
