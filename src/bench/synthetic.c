/* synthetic.c: makes and removes the data of a step that is only measured. */
#include "synthetic.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/router.h"

enum { CHUNK = 4096, STREAM = 21 };

static bool is_here(const char *prefix, const char *end) {
    char path[GR_PATH_MAX + 8];
    snprintf(path, sizeof path, "%s%s", prefix, end);
    return gr_path_exists(path);
}

static bool any_here(const gr_config *c) {
    for (int i = 0; i < c->data.n_train; i++) {
        const gr_data_file *f = &c->data.train[i];
        if (is_here(f->tokens, "") || is_here(f->tokens, ".bin") || (*f->routes && gr_path_exists(f->routes)))
            return true;
    }
    return false;
}

/* Id k about as frequent as 1/(k+1): the logarithm of k+1 is uniform. */
static uint32_t token_at(const gr_config *c, uint64_t i) {
    const double u = (double)(gr_random_u64(c->run.seed, STREAM, i) >> 11) * 0x1p-53;
    const double id = exp(u * log((double)c->model.vocab_size + 1)) - 1;
    return id < c->model.vocab_size ? (uint32_t)id : (uint32_t)c->model.vocab_size - 1;
}

static uint64_t count_tokens(const gr_config *c) {
    return (uint64_t)c->train.global_batch_windows * (uint64_t)c->data.seq_len + 1;
}

static gr_err write_tokens(const gr_config *c, const char *prefix) {
    gr_tokens_writer *w;
    uint32_t chunk[CHUNK];
    const uint64_t n = count_tokens(c);
    GR_TRY(gr_tokens_writer_open(&w, prefix, (uint32_t)c->model.vocab_size));
    gr_err e = GR_OK;
    for (uint64_t at = 0; at < n && !e; at += CHUNK) {
        const size_t part = n - at < CHUNK ? (size_t)(n - at) : CHUNK;
        for (size_t i = 0; i < part; i++)
            chunk[i] = token_at(c, at + i);
        e = gr_tokens_writer_append(w, chunk, part);
    }
    if (!e)
        e = gr_tokens_writer_end(w);
    if (!e)
        e = gr_tokens_writer_commit(w);
    gr_tokens_writer_close(w);
    return e;
}

typedef struct route_room {
    uint32_t *tokens; /* [T+1] */
    uint16_t *ids;    /* [T*K] */
    float *gates;     /* [T*K] */
} route_room;

static gr_err write_windows(const gr_config *c, gr_router *router, gr_routes_writer *w, const route_room *room) {
    const uint32_t T = (uint32_t)c->data.seq_len;
    for (uint64_t window = 0; window < (uint64_t)c->train.global_batch_windows; window++) {
        for (uint32_t t = 0; t <= T; t++)
            room->tokens[t] = token_at(c, window * T + t);
        GR_TRY(gr_router_route(router, window, T, room->tokens, room->ids, room->gates));
        GR_TRY(gr_routes_writer_window(w, window, room->tokens, room->ids, room->gates));
    }
    return gr_routes_writer_commit(w);
}

static gr_err write_routes(const gr_config *c, const char *path) {
    const size_t n = (size_t)c->data.seq_len * (size_t)c->model.num_experts_per_tok;
    gr_router *router = NULL;
    gr_routes_writer *w = NULL;
    route_room room = {0};
    gr_routes_info info = {0};
    gr_err e = gr_router_make_random(
        &router, c->run.seed, (uint32_t)c->model.num_experts, (uint32_t)c->model.num_experts_per_tok, 1);
    if (!e) {
        gr_router_describe(router, &info);
        info.T = (uint32_t)c->data.seq_len;
        info.n_token = count_tokens(c);
        info.n_window = gr_window_count(info.n_token, info.T);
        snprintf(info.provenance, sizeof info.provenance, "bench step: uniform");
        e = gr_routes_writer_open(&w, path, &info);
    }
    if (!e)
        e = gr_alloc((void **)&room.tokens, (size_t)c->data.seq_len + 1, sizeof *room.tokens, "a window");
    if (!e)
        e = gr_alloc((void **)&room.ids, n, sizeof *room.ids, "routes of a window");
    if (!e)
        e = gr_alloc((void **)&room.gates, n, sizeof *room.gates, "gates of a window");
    if (!e)
        e = write_windows(c, router, w, &room);
    free(room.gates);
    free(room.ids);
    free(room.tokens);
    gr_routes_writer_close(w);
    gr_router_close(router);
    return e;
}

/* The config's one training file from now on. */
static gr_err take_over(const gr_synthetic *s, gr_config *c) {
    gr_data_file *f = &c->data.train[0];
    const size_t n = strlen(s->folder);
    const bool table = c->routing.source == GR_SOURCE_TABLE;
    if (n + sizeof "/tokens.routes" > sizeof f->routes)
        return gr_fail(GR_CONFIG, "run.dir: expected at most %d bytes with .bench-<process>/tokens.routes, got more",
            GR_PATH_MAX - 1);
    c->data.n_train = 1;
    *f = (gr_data_file){.weight = 1};
    memcpy(f->tokens, s->folder, n);
    memcpy(f->tokens + n, "/tokens", sizeof "/tokens");
    if (table) {
        memcpy(f->routes, s->folder, n);
        memcpy(f->routes + n, "/tokens.routes", sizeof "/tokens.routes");
    }
    return GR_OK;
}

static gr_err make_files(const gr_config *c, const char *folder) {
    const gr_data_file *f = &c->data.train[0];
    GR_TRY(gr_folder_make(folder));
    GR_TRY(write_tokens(c, f->tokens));
    return *f->routes ? write_routes(c, f->routes) : GR_OK;
}

gr_err gr_synthetic_open(gr_synthetic *s, gr_config *config, gr_comm *comm) {
    const bool first = comm->rank[GR_WORLD] == 0;
    int n = 0;
    *s = (gr_synthetic){0};
    if (first && !any_here(config))
        n = snprintf(s->folder, sizeof s->folder, "%s.bench-%ld", config->run.dir, (long)getpid());
    gr_err e = GR_OK;
    if (n >= (int)sizeof s->folder) {
        s->folder[0] = '\0';
        e = gr_fail(GR_CONFIG, "run.dir: expected a path with room for .bench-<process>, got one of %zu bytes",
            strlen(config->run.dir));
    }
    GR_TRY(gr_comm_agree(comm, e));
    GR_TRY(comm->bcast(comm, GR_WORLD, s->folder, sizeof s->folder, 0));
    if (!*s->folder)
        return GR_OK;
    GR_TRY(gr_comm_agree(comm, take_over(s, config)));
    return gr_comm_agree(comm, first ? make_files(config, s->folder) : GR_OK);
}

void gr_synthetic_close(gr_synthetic *s, const gr_comm *comm) {
    if (!*s->folder || comm->rank[GR_WORLD] != 0)
        return;
    DIR *folder = opendir(s->folder);
    for (const struct dirent *entry; folder && (entry = readdir(folder));) {
        char path[GR_PATH_MAX + 264];
        snprintf(path, sizeof path, "%s/%s", s->folder, entry->d_name);
        if (strncmp(entry->d_name, "tokens.", 7) == 0) /* ours, and counts that were made beside them */
            unlink(path);
    }
    if (folder)
        closedir(folder);
    rmdir(s->folder);
}
