/* feed_order.c: which window is at which position of a global batch.
 *
 * Positions run over micro-batches, then ranks, then the windows of a rank: position = (bin * R_ep + rank in its group)
 * * B + b with bin = micro-batch * groups + group. Without a placement position `at` of the batch at `cursor` has the
 * window at index cursor + at of the stream. With one, either the same windows change places within the batch, or each
 * place in a group has a stream of its own over the windows of its group of the placement. Every rank computes the same
 * order from the same counts. */
#include <stdlib.h>
#include <string.h>

#include "feed.h"

#define GOAL 1.03 /* imbalance below which packing looks no further */

/* Are there windows whose counts the placement has, and more than one rank to share them? */
static bool is_placed(const gr_feed *f) {
    return f->placement && f->routing == GR_SOURCE_TABLE && f->map->n_rank > 1;
}

bool gr_feed_packs(const gr_feed *f) {
    return is_placed(f) && f->config->data.windows == GR_WINDOWS_BATCH;
}

/* ---------------------------------------------------------------- before packing */

static feed_place valid_place(const gr_feed *f, uint64_t index) {
    feed_place p = {.ignored = index >= f->n_window};
    uint64_t left = p.ignored ? 0 : index;
    while (left >= f->stream_file[p.source].n_window)
        left -= f->stream_file[p.source++].n_window;
    p.window = left;
    return p;
}

feed_place gr_feed_stream_place(gr_feed *f, uint64_t index) {
    gr_stream_seek(&f->stream, index);
    gr_window_ref ref = gr_stream_next(&f->stream);
    return (feed_place){.source = ref.file, .window = ref.window};
}

/* A batch takes the next n_bin*B windows of each group's stream, bin after bin. */
static feed_place group_place(gr_feed *f, uint64_t cursor, uint64_t at) {
    uint32_t R = f->map->n_rank, B = f->B, rank = (uint32_t)(at / B % R);
    uint64_t bin = at / ((uint64_t)R * B);
    gr_stream *s = &f->group_stream[rank];
    gr_stream_seek(s, cursor / R + bin * B + at % B);
    gr_window_ref ref = gr_stream_next(s);
    const feed_source *src = &f->source[ref.file];
    return (feed_place){.source = ref.file, .window = src->member[src->first_member[rank] + ref.window]};
}

feed_place gr_feed_place(gr_feed *f, uint64_t cursor, uint64_t at) {
    if (f->kind == GR_FEED_VALID)
        return valid_place(f, cursor + at);
    return f->group_stream ? group_place(f, cursor, at) : gr_feed_stream_place(f, cursor + at);
}

uint64_t gr_feed_group_first(const gr_feed *f, uint64_t micro) {
    uint64_t first_rank = (uint64_t)(f->comm->rank[GR_WORLD] - f->comm->rank[GR_EP]);
    return gr_stream_index(0, micro, (uint64_t)f->comm->size[GR_WORLD], f->B, first_rank, 0);
}

/* ---------------------------------------------------------------- packing */

void gr_feed_batch_list(gr_feed *f, uint64_t cursor) {
    feed_batch *b = &f->batch;
    const size_t R = f->map->n_rank;
    if (b->listed && b->cursor == cursor)
        return;
    b->listed = true;
    b->packed = false;
    b->cursor = cursor;
    for (size_t at = 0; at < b->n; at++) {
        b->place[at] = gr_feed_place(f, cursor, at);
        const feed_source *s = &f->source[b->place[at].source];
        memcpy(b->touch + at * R, s->touches + b->place[at].window * R, R * sizeof *b->touch);
        gr_feed_pairs(f, &b->place[at], b->pairs + at * R);
    }
}

gr_err gr_feed_batch_pack(gr_feed *f, uint64_t cursor) {
    feed_batch *b = &f->batch;
    gr_feed_batch_list(f, cursor);
    if (b->packed)
        return GR_OK;
    const gr_packing p = {
        .n_bin = b->n_bin, .R = f->map->n_rank, .B = f->B, .touch = b->touch, .pairs = b->pairs, .goal = GOAL};
    GR_TRY(gr_packing_run(&p, b->order, &b->report));
    for (uint32_t at = 0; !gr_feed_packs(f) && at < b->n; at++)
        b->order[at] = at; /* read by group: only the report is wanted */
    b->packed = true;
    return GR_OK;
}

gr_err gr_feed_group(gr_feed *f, uint64_t cursor, uint64_t micro, const feed_place **place) {
    const feed_batch *b = &f->batch;
    uint64_t first = gr_feed_group_first(f, micro);
    if (b->order)
        GR_TRY(gr_feed_batch_pack(f, cursor));
    for (uint32_t j = 0; j < f->map->n_rank * f->B; j++)
        f->group[j] = b->order ? b->place[b->order[first + j]] : gr_feed_place(f, cursor, first + j);
    *place = f->group;
    return GR_OK;
}

/* ---------------------------------------------------------------- opening */

/* Windows of a file by the rank they are placed on. */
static gr_err list_members(gr_feed *f, feed_source *s) {
    const gr_placed_table *t = s->placed;
    const uint32_t R = f->map->n_rank;
    GR_TRY(gr_alloc((void **)&s->member, t->n_window, sizeof *s->member, "windows by group"));
    GR_TRY(gr_alloc((void **)&s->first_member, (size_t)R + 1, sizeof *s->first_member, "windows by group"));
    uint64_t n = 0;
    for (uint32_t r = 0; r < R; r++) {
        s->first_member[r] = n;
        for (uint64_t w = 0; w < t->n_window; w++)
            if (t->rank[w] == r)
                s->member[n++] = w;
        if (n == s->first_member[r])
            return gr_fail(GR_DATA,
                "%s: expected windows of %s on each of its %u ranks, to be read by group, got none on rank %u; place "
                "again with balanced windows, or set data.windows to batch",
                f->config->parallel.placement, gr_routes_path(s->routes), R, r);
    }
    s->first_member[R] = n;
    return GR_OK;
}

static gr_err open_groups(gr_feed *f) {
    const uint32_t R = f->map->n_rank;
    const size_t n_source = (size_t)f->n_source;
    for (int i = 0; i < f->n_source; i++)
        GR_TRY(list_members(f, &f->source[i]));
    GR_TRY(gr_alloc((void **)&f->group_file, R * n_source, sizeof *f->group_file, "windows by group"));
    GR_TRY(gr_alloc((void **)&f->group_stream, R, sizeof *f->group_stream, "windows by group"));
    for (uint32_t r = 0; r < R; r++) {
        gr_stream_file *file = f->group_file + r * n_source;
        for (size_t i = 0; i < n_source; i++)
            file[i] = (gr_stream_file){.n_window = f->source[i].first_member[r + 1] - f->source[i].first_member[r],
                .weight = f->stream_file[i].weight};
        uint64_t seed = gr_random_u64(f->config->run.seed, gr_stream_id("windows of a group"), r);
        gr_stream_open(&f->group_stream[r], seed, file, f->n_source);
    }
    return GR_OK;
}

static gr_err open_batch(gr_feed *f) {
    feed_batch *b = &f->batch;
    const size_t R = f->map->n_rank;
    const char *what = "global batch";
    b->n = (uint32_t)f->config->train.global_batch_windows;
    b->n_bin = b->n / (f->map->n_rank * f->B);
    GR_TRY(gr_alloc((void **)&b->place, b->n, sizeof *b->place, what));
    GR_TRY(gr_alloc((void **)&b->touch, b->n * R, sizeof *b->touch, what));
    GR_TRY(gr_alloc((void **)&b->pairs, b->n * R, sizeof *b->pairs, what));
    GR_TRY(gr_alloc((void **)&b->value, b->n, sizeof *b->value, what));
    return gr_alloc((void **)&b->order, b->n, sizeof *b->order, what);
}

gr_err gr_feed_order_open(gr_feed *f) {
    size_t n_group = (size_t)f->map->n_rank * f->B;
    GR_TRY(gr_alloc((void **)&f->group, n_group, sizeof *f->group, "windows of a group"));
    if (!is_placed(f))
        return GR_OK;
    if (f->config->data.windows == GR_WINDOWS_CORPUS)
        GR_TRY(open_groups(f));
    return open_batch(f);
}

void gr_feed_order_close(gr_feed *f) {
    for (int i = 0; f->source && i < f->n_source; i++) {
        free(f->source[i].first_member);
        free(f->source[i].member);
    }
    free(f->batch.order);
    free(f->batch.value);
    free(f->batch.pairs);
    free(f->batch.touch);
    free(f->batch.place);
    free(f->group_stream);
    free(f->group_file);
    free(f->group);
}
