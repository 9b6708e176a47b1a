/* Weights of which a rank has fp32 values only of what it owns: who owns what, how all ranks get the copies that the
 * ops read, and whole tensors for files, a piece at a time. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static gr_share share_of(gr_share part, int n_rank, int rank) {
    GR_ASSERT(part.n % n_rank == 0, "%lld elements in %d equal shards; gr_params_open pads for the groups it is told",
        (long long)part.n, n_rank);
    int64_t each = part.n / n_rank;
    return (gr_share){.first = part.first + rank * each, .n = each};
}

/* All of [0] the dense part, [1] the experts, and the group that shares it. */
static gr_share part_of(const gr_params *p, int part) {
    return part ? (gr_share){.first = p->n_dense, .n = p->n_element - p->n_dense} : (gr_share){.n = p->n_dense};
}

static gr_group group_of(int part) {
    return part ? GR_EDP : GR_WORLD;
}

void gr_share_owned(const gr_params *p, const gr_comm *comm, gr_share owned[2]) {
    for (int part = 0; part < 2; part++)
        owned[part] = share_of(part_of(p, part), comm->size[group_of(part)], comm->rank[group_of(part)]);
}

gr_share gr_share_common(gr_share a, gr_share b) {
    int64_t first = a.first > b.first ? a.first : b.first;
    int64_t end = a.first + a.n < b.first + b.n ? a.first + a.n : b.first + b.n;
    return (gr_share){.first = first, .n = end > first ? end - first : 0};
}

gr_weights gr_weights_whole(const gr_params *p, float *flat) {
    return (gr_weights){.share = {part_of(p, 0), part_of(p, 1)}, .at = {flat, flat ? flat + p->n_dense : NULL}};
}

gr_weights gr_weights_shared(const gr_params *p, const gr_comm *comm, float *values) {
    gr_weights w = {.backend = NULL};
    gr_share_owned(p, comm, w.share);
    w.at[0] = values;
    w.at[1] = values ? values + w.share[0].n : NULL;
    return w;
}

float *gr_weights_at(const gr_weights *w, gr_share share) {
    for (int part = 0; part < 2; part++) {
        gr_share common = gr_share_common(w->share[part], share);
        if (common.n == share.n && common.first == share.first)
            return w->at[part] + (share.first - w->share[part].first);
    }
    GR_ASSERT(
        false, "elements %lld to %lld are not all here", (long long)share.first, (long long)(share.first + share.n));
    return NULL;
}

/* ---------------------------------------------------------------- in whatever memory */

static gr_err copy(gr_backend *b, float *to, const float *from, int64_t n) {
    size_t n_byte = (size_t)n * sizeof *to;
    if (b)
        return b->copy(b, GR_LANE_COMPUTE, to, from, n_byte);
    memcpy(to, from, n_byte);
    return GR_OK;
}

gr_err gr_weights_clear(const gr_weights *w) {
    gr_backend *b = w->backend;
    for (int part = 0; part < 2; part++) {
        size_t n_byte = (size_t)w->share[part].n * sizeof(float);
        if (n_byte && b)
            GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, w->at[part], n_byte));
        else if (n_byte)
            memset(w->at[part], 0, n_byte);
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- the copies */

static gr_err fill_negative_zero(gr_backend *b, float *vectors, int64_t n) {
    gr_staging s = {.backend = b};
    void *room;
    gr_err err = gr_staging_room(&s, vectors, (size_t)n * sizeof *vectors, &room);
    for (int64_t i = 0; !err && i < n; i++)
        ((float *)room)[i] = -0.0f;
    if (!err)
        err = gr_staging_store(&s, vectors, (size_t)n * sizeof *vectors);
    gr_staging_close(&s);
    return err;
}

/* Each element has one owner, all others add -0, which changes no number, not even a zero's sign. */
gr_err gr_weights_gather_vectors(const gr_params *p, gr_comm *comm, const gr_weights *w, float *vectors) {
    if (comm->size[GR_WORLD] > 1)
        GR_TRY(fill_negative_zero(w->backend, vectors, p->n_vector));
    for (int i = 0; i < p->n; i++) {
        const gr_param *at = &p->list[i];
        if (at->vector < 0)
            continue;
        gr_share own = gr_share_common(w->share[0], (gr_share){.first = at->offset, .n = gr_param_size(at)});
        if (own.n)
            GR_TRY(copy(w->backend, vectors + at->vector + (own.first - at->offset), gr_weights_at(w, own), own.n));
    }
    comm->traffic = GR_TRAFFIC_WEIGHTS;
    return comm->sum(comm, GR_WORLD, GR_F32, vectors, (size_t)p->n_vector);
}

gr_err gr_weights_gather(
    const gr_params *p, gr_comm *comm, const gr_weights *w, void *act, gr_dtype dtype, float *vectors) {
    uint8_t *experts = (uint8_t *)act + (size_t)p->n_dense * gr_dtype_size(dtype);
    comm->traffic = GR_TRAFFIC_WEIGHTS;
    GR_TRY(comm->all_gather(comm, GR_WORLD, dtype, act, (size_t)w->share[0].n));
    comm->traffic = GR_TRAFFIC_WEIGHTS;
    GR_TRY(comm->all_gather(comm, GR_EDP, dtype, experts, (size_t)w->share[1].n));
    return gr_weights_gather_vectors(p, comm, w, vectors);
}

gr_err gr_weights_gather_part(const gr_params *p, gr_comm *comm, gr_share part, gr_dtype dtype, void *data) {
    const int i = part.first >= p->n_dense;
    const gr_share all = part_of(p, i);
    const gr_group g = group_of(i);
    const gr_piece piece = {.shard = (size_t)share_of(all, comm->size[g], 0).n,
        .first = (size_t)(part.first - all.first),
        .n = (size_t)part.n};
    comm->traffic = GR_TRAFFIC_WEIGHTS;
    return comm->gather_piece(comm, g, dtype, data, piece);
}

/* ---------------------------------------------------------------- reading whole tensors */

static bool has_all(const gr_params *p, const gr_weights *w, int part) {
    return w->share[part].n == part_of(p, part).n;
}

gr_err gr_weights_reader_open(gr_weights_reader *r, const gr_params *p, gr_comm *comm, const gr_weights *weights) {
    *r = (gr_weights_reader){.params = p, .comm = comm, .weights = *weights, .staging = {.backend = weights->backend}};
    if (has_all(p, weights, 0) && has_all(p, weights, 1))
        return GR_OK;
    void *memory;
    GR_TRY(gr_alloc(&memory, 2 * (size_t)comm->size[GR_WORLD], sizeof *r->rows, "elements of each rank"));
    r->rows = memory;
    if (comm->rank[GR_EDP] != 0)
        return GR_OK;
    GR_TRY(gr_alloc(&memory, GR_WEIGHTS_PIECE, sizeof *r->buffer, "a piece of a tensor"));
    r->buffer = memory;
    return GR_OK;
}

void gr_weights_reader_close(gr_weights_reader *r) {
    gr_staging_close(&r->staging);
    free(r->rows);
    free(r->buffer);
    *r = (gr_weights_reader){0};
}

/* Values of `share`, which this rank has, in host memory. */
static gr_err values_fetch(gr_weights_reader *r, gr_share share, const void **values) {
    return gr_staging_fetch(&r->staging, gr_weights_at(&r->weights, share), (size_t)share.n * sizeof(float), values);
}

/* What each member of the group has of `wanted` to its first one. */
static gr_err piece_gather(gr_weights_reader *r, int part, gr_share wanted) {
    gr_comm *comm = r->comm;
    gr_group g = group_of(part);
    int n_rank = comm->size[g];
    uint32_t *send_rows = r->rows, *recv_rows = r->rows + n_rank;
    memset(r->rows, 0, 2 * (size_t)n_rank * sizeof *r->rows);
    gr_share own = gr_share_common(r->weights.share[part], wanted);
    send_rows[0] = (uint32_t)own.n;
    for (int k = 0; comm->rank[g] == 0 && k < n_rank; k++)
        recv_rows[k] = (uint32_t)gr_share_common(share_of(part_of(r->params, part), n_rank, k), wanted).n;
    const void *values = NULL;
    if (own.n)
        GR_TRY(values_fetch(r, own, &values));
    gr_exchange x = {.group = g,
        .dtype = GR_F32,
        .width = 1,
        .send = values,
        .send_rows = send_rows,
        .recv = r->buffer,
        .recv_rows = recv_rows};
    GR_TRY(comm->exchange_start(comm, &x));
    return comm->exchange_wait(comm);
}

gr_err gr_weights_read(gr_weights_reader *r, const gr_whole *w, int64_t first, int64_t n, const float **data) {
    int part = w->param->owner == GR_EDP;
    int64_t offset = gr_whole_offset(r->params, w);
    GR_ASSERT(n <= GR_WEIGHTS_PIECE && first + n <= gr_param_size(w->param), "%lld elements", (long long)n);
    *data = NULL;
    if (offset < 0)
        return GR_OK;
    gr_share wanted = {.first = offset + first, .n = n};
    if (has_all(r->params, &r->weights, part)) {
        const void *values;
        GR_TRY(values_fetch(r, wanted, &values));
        *data = values;
        return GR_OK;
    }
    GR_TRY(piece_gather(r, part, wanted));
    *data = r->buffer;
    return GR_OK;
}

size_t gr_weights_save_memory(const gr_params *p, const gr_comm *comm, bool shared) {
    gr_weights w = shared ? gr_weights_shared(p, comm, NULL) : gr_weights_whole(p, NULL);
    size_t piece = (size_t)GR_WEIGHTS_PIECE * sizeof(float);
    return (has_all(p, &w, 0) && has_all(p, &w, 1) ? 0 : piece) + (comm->size[GR_EP] > 1 ? piece : 0);
}
