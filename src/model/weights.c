/* Whole tensors by name: any array in the parameters' layout into one safetensors file (weights_load.c: back).
 *
 * Order of the file, whatever the layout of the ranks: the table's order, experts by logical id: so a file of one rank
 * and a file of eight are the same bytes. Experts reach the writing rank one table entry at a time; it holds the
 * matrices of one entry (one projection of one layer), never a second copy of the model. */
#include "grouter/data.h"
#include "grouter/model.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- gathering experts on rank 0 */

typedef struct gather {
    const gr_params *p;
    gr_comm *comm;
    const float *flat;
    uint32_t *rows; /* [2][R_ep] counts sent and received */
    float *send;    /* own matrices of one entry, packed */
    float *recv;    /* on rank 0: the matrices of ranks 1.. in rank order */
} gather;

static void gather_close(gather *g) {
    free(g->rows);
    free(g->send);
    free(g->recv);
}

/* After an error gather_close is still due. */
static gr_err gather_open(gather *g) {
    const gr_params *p = g->p;
    const gr_comm *comm = g->comm;
    size_t largest = 0, n_rank = (size_t)comm->size[GR_EP];
    for (int i = 0; i < p->n; i++)
        if (p->list[i].owner == GR_EDP && (size_t)gr_param_size(&p->list[i]) > largest)
            largest = (size_t)gr_param_size(&p->list[i]);
    if (n_rank == 1 || largest == 0)
        return GR_OK;
    bool root = comm->rank[GR_EP] == 0;
    size_t own = largest * p->map->E_local;
    void *rows, *buffer;
    GR_TRY(gr_alloc(&rows, 2 * n_rank, sizeof *g->rows, "row counts"));
    g->rows = rows;
    GR_TRY(
        gr_alloc(&buffer, root ? own * (n_rank - 1) : own, sizeof *g->send, "one projection's experts of one layer"));
    *(root ? &g->recv : &g->send) = buffer;
    return GR_OK;
}

/* Sends this rank's matrices of the entry to rank 0, or receives everybody's. A row is a row of a matrix. */
static gr_err gather_entry(gather *g, const gr_param *p) {
    size_t n_rank = (size_t)g->comm->size[GR_EP], size = (size_t)gr_param_size(p);
    if (n_rank == 1)
        return GR_OK;
    uint32_t *send_rows = g->rows, *recv_rows = g->rows + n_rank;
    uint32_t n_row = (uint32_t)p->dim[0] * p->n_matrix;
    if (g->recv)
        for (size_t r = 1; r < n_rank; r++)
            recv_rows[r] = n_row;
    else
        send_rows[0] = n_row;
    for (uint32_t i = 0; g->send && i < p->n_matrix; i++)
        memcpy(g->send + i * size, g->flat + p->offset + i * p->stride, size * sizeof *g->send);
    gr_exchange x = {.group = GR_EP,
        .dtype = GR_F32,
        .width = (uint32_t)p->dim[1],
        .send = g->send,
        .send_rows = send_rows,
        .recv = g->recv,
        .recv_rows = recv_rows};
    GR_TRY(g->comm->exchange_start(g->comm, &x));
    return g->comm->exchange_wait(g->comm);
}

/* Where rank 0 finds a tensor once its entry has been gathered. */
static const float *gathered(const gather *g, const gr_whole *w) {
    const gr_param *p = w->param;
    if (p->owner == GR_WORLD)
        return g->flat + p->offset;
    const gr_expert_map *map = g->p->map;
    uint32_t rank = map->rank_of[w->expert], slot = map->slot_of[w->expert];
    if (rank == 0)
        return g->flat + p->offset + slot * p->stride;
    return g->recv + ((rank - 1) * map->E_local + slot) * (size_t)gr_param_size(p);
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

static gr_err sink_write(sink *s, const gr_whole *w, const float *data) {
    size_t n_byte = (size_t)gr_param_size(w->param) * sizeof *data;
    gr_hasher_add(s->hasher, w->name, strlen(w->name));
    gr_hasher_add(s->hasher, data, n_byte);
    return s->writer ? gr_safetensors_writer_append(s->writer, data, n_byte) : GR_OK;
}

/* Rank 0's part. A failure of the file is kept until every other rank has been heard, so that none of them waits. */
static gr_err tensors_write(gather *g, sink *s, gr_err err, const gr_whole *list, int n) {
    const gr_param *current = NULL;
    for (int i = 0; i < n; i++) {
        if (list[i].param != current && list[i].param->owner == GR_EDP)
            GR_TRY(gather_entry(g, list[i].param));
        current = list[i].param;
        if (!err)
            err = sink_write(s, &list[i], gathered(g, &list[i]));
    }
    if (!err && s->writer)
        err = gr_safetensors_writer_commit(s->writer);
    return err;
}

static gr_err root_save(
    gather *g, const char *path, const gr_metadata *more, const gr_whole *list, int n, gr_hash128 *hash) {
    sink s;
    gr_err err = sink_open(&s, path, more, list, n);
    err = tensors_write(g, &s, err, list, n);
    if (!err)
        *hash = gr_hasher_128(s.hasher);
    sink_close(&s);
    return err;
}

/* The other ranks' part. */
static gr_err entries_send(gather *g) {
    for (int i = 0; i < g->p->n; i++)
        if (g->p->list[i].owner == GR_EDP)
            GR_TRY(gather_entry(g, &g->p->list[i]));
    return GR_OK;
}

gr_err gr_params_save(
    const gr_params *p, gr_comm *comm, const float *flat, const char *path, const gr_metadata *more, gr_hash128 *hash) {
    bool root = comm->rank[GR_WORLD] == 0, takes_part = comm->rank[GR_WORLD] < comm->size[GR_EP];
    gather g = {.p = p, .comm = comm, .flat = flat};
    gr_whole *list = NULL;
    int n = 0;
    gr_err err = takes_part ? gather_open(&g) : GR_OK;
    if (!err && root)
        err = gr_wholes_make(p, &list, &n);
    err = gr_comm_agree(comm, err); /* before anybody waits for the rows of a rank without memory */
    if (!err) {
        if (root)
            err = root_save(&g, path, more, list, n, hash);
        else if (takes_part)
            err = entries_send(&g);
        err = gr_comm_agree(comm, err);
    }
    gather_close(&g);
    free(list);
    return err;
}
