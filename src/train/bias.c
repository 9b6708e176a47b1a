/* bias.c: what reading windows by group does to what is trained on.
 *
 * Of a file with n windows, m[r] of them in the group of rank r, the plain order reads each with the chance 1/n; by
 * group it reads those of r with 1/(R m[r]), since every rank takes as many windows of a batch. With the file's weight
 * w, total variation = sum over files of w * 1/2 sum over r of |1/R - m[r]/n|,   importance weight = n / (R m[r]). Both
 * are 0 and 1 where groups are equal. How far single batches lie from the corpus is measured on the first ones, in
 * either order: a batch of either is a sample, so neither is 0. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "feed.h"

enum { BIAS_STEPS = 32, SAMPLE_WINDOWS = 4096 }; /* batches looked at; windows of a file that stand for the corpus */

typedef struct bias {
    gr_feed *f;
    uint32_t V;
    double *unigram;       /* [V] share of each token in the corpus, none of them 0 */
    double *expert;        /* [E] share of each expert in its pairs */
    uint64_t *token_count; /* [V] of one batch or file */
    uint64_t *load;        /* [E] */
    uint32_t *token;       /* [T+1] */
} bias;

static gr_err bias_open(bias *b, gr_feed *f) {
    *b = (bias){.f = f, .V = (uint32_t)f->config->model.vocab_size};
    GR_TRY(gr_alloc((void **)&b->unigram, b->V, sizeof *b->unigram, "token counts"));
    GR_TRY(gr_alloc((void **)&b->expert, f->E, sizeof *b->expert, "expert loads"));
    GR_TRY(gr_alloc((void **)&b->token_count, b->V, sizeof *b->token_count, "token counts"));
    GR_TRY(gr_alloc((void **)&b->load, f->E, sizeof *b->load, "expert loads"));
    return gr_alloc((void **)&b->token, (size_t)f->T + 1, sizeof *b->token, "window");
}

static void bias_close(bias *b) {
    free(b->token);
    free(b->load);
    free(b->token_count);
    free(b->expert);
    free(b->unigram);
}

/* ---------------------------------------------------------------- shares of groups */

static void weigh_groups(const gr_feed *f, gr_feed_bias *out) {
    const uint32_t R = f->map->n_rank;
    out->importance_min = INFINITY;
    for (int i = 0; i < f->n_source; i++) {
        const feed_source *s = &f->source[i];
        for (uint32_t r = 0; r < R; r++) {
            double share = (double)(s->first_member[r + 1] - s->first_member[r]) / (double)s->placed->n_window;
            out->total_variation += 0.5 * f->stream_file[i].weight * fabs(1.0 / R - share);
            out->importance_min = fmin(out->importance_min, 1 / (R * share));
            out->importance_max = fmax(out->importance_max, 1 / (R * share));
        }
    }
}

/* ---------------------------------------------------------------- the corpus */

static void counts_clear(bias *b) {
    memset(b->token_count, 0, b->V * sizeof *b->token_count);
    memset(b->load, 0, b->f->E * sizeof *b->load);
}

static gr_err add_tokens(bias *b, const feed_place *p) {
    GR_TRY(gr_window_read(b->f->source[p->source].tokens, p->window, b->f->T, b->V, b->token));
    for (uint32_t t = 0; t < b->f->T; t++)
        b->token_count[b->token[t]]++;
    return GR_OK;
}

/* Tokens of windows evenly over the file, each seen once more than it was so that none has share 0; experts of all. */
static gr_err add_file(bias *b, int i) {
    const gr_feed *f = b->f;
    const feed_source *s = &f->source[i];
    uint64_t n = s->placed->n_window, n_sample = n < SAMPLE_WINDOWS ? n : SAMPLE_WINDOWS;
    double weight = f->stream_file[i].weight, n_pair = 0;
    counts_clear(b);
    for (uint64_t k = 0; k < n_sample; k++)
        GR_TRY(add_tokens(b, &(feed_place){.source = i, .window = k * n / n_sample}));
    for (uint32_t v = 0; v < b->V; v++)
        b->unigram[v] += weight * (double)(b->token_count[v] + 1) / ((double)n_sample * f->T + b->V);
    gr_routes_load(s->routes, b->load);
    for (uint32_t e = 0; e < f->E; e++)
        n_pair += (double)b->load[e];
    for (uint32_t e = 0; e < f->E; e++)
        b->expert[e] += n_pair > 0 ? weight * (double)b->load[e] / n_pair : 0;
    return GR_OK;
}

/* ---------------------------------------------------------------- batches */

static double divergence(const bias *b, double n_token) {
    double sum = 0;
    for (uint32_t v = 0; v < b->V; v++) {
        double p = (double)b->token_count[v] / n_token;
        sum += p > 0 ? p * log(p / b->unigram[v]) : 0;
    }
    return sum;
}

/* An expert that the corpus does not use has no degree of freedom. */
static double chi_square(const bias *b) {
    double n_pair = 0, sum = 0, freedom = -1;
    for (uint32_t e = 0; e < b->f->E; e++)
        n_pair += (double)b->load[e];
    for (uint32_t e = 0; e < b->f->E; e++) {
        double expected = n_pair * b->expert[e], off = (double)b->load[e] - expected;
        if (expected <= 0)
            continue;
        sum += off * off / expected;
        freedom++;
    }
    return freedom > 0 ? sum / freedom : 0;
}

static gr_err add_batch(bias *b, uint64_t cursor, bool plain, double *unigram, double *expert) {
    gr_feed *f = b->f;
    counts_clear(b);
    for (uint64_t at = 0; at < f->batch.n; at++) {
        feed_place p = plain ? gr_feed_stream_place(f, cursor + at) : gr_feed_place(f, cursor, at);
        GR_TRY(add_tokens(b, &p));
        gr_routes_histogram(f->source[p.source].routes, p.window, f->window_load);
        for (uint32_t e = 0; e < f->E; e++)
            b->load[e] += f->window_load[e];
    }
    *unigram += divergence(b, (double)f->batch.n * f->T);
    *expert += chi_square(b);
    return GR_OK;
}

static gr_err measure(bias *b, gr_feed_bias *out) {
    const gr_feed *f = b->f;
    int64_t n_step = f->config->train.steps - f->start.step;
    weigh_groups(f, out);
    for (int i = 0; i < f->n_source; i++)
        GR_TRY(add_file(b, i));
    out->n_batch = n_step < BIAS_STEPS ? n_step : BIAS_STEPS;
    for (int plain = 0; plain < 2 && out->n_batch > 0; plain++) {
        for (int64_t step = 0; step < out->n_batch; step++)
            GR_TRY(add_batch(b, f->start.cursor + (uint64_t)step * f->batch.n, plain != 0, &out->unigram[plain],
                &out->expert[plain]));
        out->unigram[plain] /= (double)out->n_batch;
        out->expert[plain] /= (double)out->n_batch;
    }
    return GR_OK;
}

gr_err gr_feed_bias_get(gr_feed *f, gr_feed_bias *out) {
    bias b;
    *out = (gr_feed_bias){0};
    gr_err e = bias_open(&b, f);
    if (!e)
        e = measure(&b, out);
    bias_close(&b);
    return e;
}
