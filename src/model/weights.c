/* Whole tensors by name: weights of any layout into one safetensors file (weights_load.c: back).
 *
 * Order of the file, whatever the layout of the ranks: the table's order, experts by logical id: so a file of one rank
 * and a file of eight are the same bytes. Tensors reach the writing rank a piece at a time, by way of the member of its
 * expert-parallel group that holds them: nobody holds a second copy of anything. */
#include "grouter/data.h"
#include "grouter/model.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- pieces on their way to rank 0 */

typedef struct route {
    gr_weights_reader reader;
    uint32_t *rows; /* [2][R_ep] elements sent and received; NULL where rank 0 needs nobody */
    float *buffer;  /* on rank 0: [GR_WEIGHTS_PIECE] from another rank */
} route;

static void route_close(route *r) {
    gr_weights_reader_close(&r->reader);
    free(r->rows);
    free(r->buffer);
}

static bool takes_part(const gr_comm *comm) {
    return comm->rank[GR_WORLD] < comm->size[GR_EP];
}

/* After an error route_close is still due. */
static gr_err route_open(route *r, const gr_params *p, gr_comm *comm, const gr_weights *weights) {
    size_t n_rank = (size_t)comm->size[GR_EP];
    void *memory;
    GR_TRY(gr_weights_reader_open(&r->reader, p, comm, weights));
    if (n_rank == 1 || !takes_part(comm))
        return GR_OK;
    GR_TRY(gr_alloc(&memory, 2 * n_rank, sizeof *r->rows, "elements of each rank"));
    r->rows = memory;
    if (comm->rank[GR_WORLD] != 0)
        return GR_OK;
    GR_TRY(gr_alloc(&memory, GR_WEIGHTS_PIECE, sizeof *r->buffer, "a piece of a tensor"));
    r->buffer = memory;
    return GR_OK;
}

/* Every rank calls it for every piece; *data is valid on rank 0. */
static gr_err piece_fetch(route *r, const gr_whole *w, int64_t first, int64_t n, const float **data) {
    gr_comm *comm = r->reader.comm;
    GR_TRY(gr_weights_read(&r->reader, w, first, n, data));
    int holder = w->param->owner == GR_EDP ? r->reader.params->map->rank_of[w->expert] : 0;
    if (holder == 0 || !r->rows)
        return GR_OK;
    size_t n_rank = (size_t)comm->size[GR_EP];
    memset(r->rows, 0, 2 * n_rank * sizeof *r->rows);
    if (comm->rank[GR_EP] == holder)
        r->rows[0] = (uint32_t)n;
    if (r->buffer)
        r->rows[n_rank + (size_t)holder] = (uint32_t)n;
    gr_exchange x = {.group = GR_EP,
        .dtype = GR_F32,
        .width = 1,
        .send = *data,
        .send_rows = r->rows,
        .recv = r->buffer,
        .recv_rows = r->rows + n_rank};
    GR_TRY(comm->exchange_start(comm, &x));
    GR_TRY(comm->exchange_wait(comm));
    *data = r->buffer;
    return GR_OK;
}

/* ---------------------------------------------------------------- saving */

typedef struct sink {
    gr_safetensors_writer *writer; /* NULL: only the hash */
    gr_hasher *hasher;
} sink;

static void sink_close(sink *s) {
    gr_safetensors_writer_close(s->writer);
    gr_hasher_close(s->hasher);
}

static gr_err sink_open(sink *s, const char *path, const gr_metadata *more, const gr_whole *list, int n) {
    *s = (sink){0};
    GR_TRY(gr_hasher_open(&s->hasher));
    if (!path)
        return GR_OK;
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof(gr_tensor), "tensor list"));
    gr_tensor *tensors = memory;
    for (int i = 0; i < n; i++) {
        const gr_param *p = list[i].param;
        tensors[i] = (gr_tensor){
            .name = list[i].name, .dtype = GR_F32, .n_dim = p->n_dim, .dim = {p->dim[0], p->n_dim > 1 ? p->dim[1] : 0}};
    }
    gr_metadata metadata[2] = {{"format", "pt"}, more ? *more : (gr_metadata){0}};
    gr_err err = gr_safetensors_writer_open(&s->writer, path, tensors, n, metadata, more ? 2 : 1);
    free(tensors);
    return err;
}

static gr_err sink_write(sink *s, const float *data, int64_t n) {
    size_t n_byte = (size_t)n * sizeof *data;
    gr_hasher_add(s->hasher, data, n_byte);
    return s->writer ? gr_safetensors_writer_append(s->writer, data, n_byte) : GR_OK;
}

/* Every rank's part; s is NULL on all but rank 0. A failure of the file (err) is kept until every piece has been sent,
 * so that nobody waits. */
static gr_err tensors_write(route *r, sink *s, gr_err err, const gr_whole *list, int n) {
    for (int i = 0; i < n; i++) {
        int64_t size = gr_param_size(list[i].param);
        if (s && !err)
            gr_hasher_add(s->hasher, list[i].name, strlen(list[i].name));
        for (int64_t first = 0; first < size; first += GR_WEIGHTS_PIECE) {
            int64_t n_piece = size - first < GR_WEIGHTS_PIECE ? size - first : GR_WEIGHTS_PIECE;
            const float *data;
            GR_TRY(piece_fetch(r, &list[i], first, n_piece, &data));
            if (s && !err)
                err = sink_write(s, data, n_piece);
        }
    }
    return err;
}

static gr_err root_save(
    route *r, const char *path, const gr_metadata *more, const gr_whole *list, int n, gr_hash128 *hash) {
    sink s;
    gr_err err = sink_open(&s, path, more, list, n);
    err = tensors_write(r, &s, err, list, n);
    if (!err && s.writer)
        err = gr_safetensors_writer_commit(s.writer);
    if (!err)
        *hash = gr_hasher_128(s.hasher);
    sink_close(&s);
    return err;
}

gr_err gr_params_save(const gr_params *p, gr_comm *comm, gr_weights weights, const char *path, const gr_metadata *more,
    gr_hash128 *hash) {
    route r = {0};
    gr_whole *list = NULL;
    int n = 0;
    gr_err err = route_open(&r, p, comm, &weights);
    if (!err)
        err = gr_wholes_make(p, &list, &n);
    err = gr_comm_agree(comm, err); /* before anybody waits for the elements of a rank without memory */
    if (!err) {
        err = comm->rank[GR_WORLD] == 0 ? root_save(&r, path, more, list, n, hash)
                                        : tensors_write(&r, NULL, GR_OK, list, n);
        err = gr_comm_agree(comm, err);
    }
    route_close(&r);
    free(list);
    return err;
}
