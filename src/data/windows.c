/* windows.c: windows of a token file and the order in which training visits them. The order is a pure function of
 * (seed, files, weights, index): nothing is stored, so any rank and any resumed run computes the same one. */
#include "grouter/data.h"

#include <inttypes.h>

uint64_t gr_window_count(uint64_t n_token, uint32_t T) {
    GR_ASSERT(T >= 1, "window of %" PRIu32 " tokens", T);
    return n_token == 0 ? 0 : (n_token - 1) / T;
}

gr_err gr_window_read(const gr_tokens *t, uint64_t window, uint32_t T, uint32_t n_vocab, uint32_t *ids) {
    uint64_t n_window = gr_window_count(gr_tokens_count(t), T);
    GR_ASSERT(window < n_window, "window %" PRIu64 " of %" PRIu64, window, n_window);
    return gr_tokens_read(t, window * T, (size_t)T + 1, n_vocab, ids);
}

void gr_stream_open(gr_stream *s, uint64_t seed, gr_stream_file *file, int n_file) {
    double sum = 0;
    GR_ASSERT(n_file >= 1, "%d files", n_file);
    for (int f = 0; f < n_file; f++) {
        GR_ASSERT(file[f].n_window >= 1 && file[f].weight > 0, "file %d: %" PRIu64 " windows, weight %g", f,
            file[f].n_window, file[f].weight);
        sum += file[f].weight;
    }
    for (int f = 0; f < n_file; f++) {
        file[f].weight /= sum;
        file[f].taken = 0;
    }
    *s = (gr_stream){.seed = seed, .index = 0, .n_file = n_file, .file = file};
}

/* Megatron's blend: the file that is furthest behind its share; ties to the lowest. */
static int file_choose(const gr_stream *s) {
    double n = s->index == 0 ? 1.0 : (double)s->index;
    double largest = 0;
    int chosen = -1;
    for (int f = 0; f < s->n_file; f++) {
        double behind = s->file[f].weight * n - (double)s->file[f].taken;
        if (chosen < 0 || behind > largest) {
            largest = behind;
            chosen = f;
        }
    }
    return chosen;
}

gr_window_ref gr_stream_next(gr_stream *s) {
    int f = file_choose(s);
    gr_stream_file *file = &s->file[f];
    uint64_t epoch = file->taken / file->n_window, position = file->taken % file->n_window;
    uint64_t key = gr_random_u64(s->seed, gr_stream_id("window order") + (uint64_t)f, epoch);
    file->taken++;
    s->index++;
    return (gr_window_ref){.file = f, .epoch = epoch, .window = gr_bijection(key, file->n_window, position)};
}

void gr_stream_seek(gr_stream *s, uint64_t index) {
    if (index < s->index) { /* else the state on the way to `index` is the present one */
        for (int f = 0; f < s->n_file; f++)
            s->file[f].taken = 0;
        s->index = 0;
    }
    if (s->n_file == 1) {
        s->file[0].taken = s->index = index;
        return;
    }
    for (; s->index < index; s->index++)
        s->file[file_choose(s)].taken++;
}
