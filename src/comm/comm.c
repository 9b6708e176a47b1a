/* comm.c: chooses a comm by name; what holds for every kind. */
#include "comm/kinds.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ranks of a variable like "4"; 0 if it is absent or no plain number. */
static int env_count(const char *name) {
    const char *text = getenv(name);
    if (!text || *text < '0' || *text > '9')
        return 0;
    char *end;
    long n = strtol(text, &end, 10);
    return *end == '\0' && n <= INT_MAX ? (int)n : 0;
}

/* mpirun's own variables come first: under it the resource manager's describe its daemons. SLURM_NTASKS is not asked,
 * since a plain batch shell has it too; SLURM_STEP_NUM_TASKS belongs to processes that srun started. */
int gr_comm_launched(void) {
    static const char *const variable[] = {
        "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof variable / sizeof variable[0]; i++) {
        int n = env_count(variable[i]);
        if (n > 0)
            return n;
    }
    return 0;
}

/* What moves device memory between ranks of their own devices. */
#ifdef GR_WITH_NCCL
static const bool has_nccl = true;
static gr_err open_nccl(gr_mover **out, gr_comm *c, gr_backend *b) {
    return gr_comm_nccl_open(out, c, b, &GR_COMM_NCCL_LIMITS);
}

const char *gr_comm_names(void) {
    return "self mpi nccl";
}

const char *gr_comm_library(void) {
    static char text[256];
    snprintf(text, sizeof text, "%s + %s", gr_comm_mpi_library(), gr_comm_nccl_library());
    return text;
}
#else
static const bool has_nccl = false;
static gr_err open_nccl(gr_mover **out, gr_comm *c, gr_backend *b) {
    (void)out, (void)c, (void)b;
    return gr_comm_check("nccl");
}

const char *gr_comm_names(void) {
    return "self mpi";
}

const char *gr_comm_library(void) {
    return gr_comm_mpi_library();
}
#endif

gr_err gr_comm_check(const char *name) {
    static const char *const names[] = {"auto", "self", "mpi", "nccl"};
    size_t n = sizeof names / sizeof names[0], i = 0;
    while (i < n && strcmp(name, names[i]) != 0)
        i++;
    if (i == n)
        return gr_fail(
            GR_CONFIG, "parallel.comm: expected auto, self, mpi or nccl, got \"%s\"; choose one of these", name);
    if (strcmp(name, "nccl") == 0 && !has_nccl)
        return gr_fail(GR_CONFIG,
            "parallel.comm: expected one of auto %s, which this program was built with, got \"nccl\"; build it where "
            "NCCL is (see README), or use mpi",
            gr_comm_names());
    return GR_OK;
}

gr_err gr_comm_open(gr_comm **out, const char *name) {
    *out = NULL;
    GR_TRY(gr_comm_check(name));
    int n_announced = gr_comm_launched();
    bool automatic = strcmp(name, "auto") == 0;
    if (strcmp(name, "self") == 0 || (automatic && n_announced <= 1))
        return gr_comm_self_open(out);
    GR_TRY(gr_comm_mpi_open(out, n_announced, &GR_COMM_MPI_LIMITS));
    (*out)->automatic = automatic;
    if (strcmp(name, "nccl") == 0)
        (*out)->name = "nccl";
    return GR_OK;
}

gr_err gr_comm_group(gr_comm *c, int R_ep) {
    int n_rank = c->size[GR_WORLD];
    if (R_ep < 1 || n_rank % R_ep != 0)
        return gr_fail(GR_CONFIG,
            "parallel.expert_parallel_size: expected a divisor of the number of ranks (%d), got %d; "
            "change it or start another number of ranks",
            n_rank, R_ep);
    GR_TRY(c->group(c, R_ep));
    return c->device ? gr_device_group(c) : GR_OK;
}

/* Where rank r's shard begins, counted from the piece's first element, as far as it lies within the piece. */
static size_t owned_begin(gr_piece p, size_t r) {
    size_t begin = r * p.shard;
    begin = begin > p.first ? begin - p.first : 0;
    return begin < p.n ? begin : p.n;
}

gr_piece gr_piece_owned(gr_piece p, int r) {
    size_t begin = owned_begin(p, (size_t)r), end = owned_begin(p, (size_t)r + 1);
    return (gr_piece){.shard = p.shard, .first = begin, .n = end - begin};
}

/* ---------------------------------------------------------------- device memory */

/* Each rank's own part of attaching; NCCL's is collective and agreed. */
static gr_err attach(gr_comm *c, gr_backend *b) {
    gr_mover *m = NULL;
    bool nccl = strcmp(c->name, "nccl") == 0 || (c->automatic && has_nccl && b->lane_native(b, GR_LANE_COMM));
    if (c->size[GR_WORLD] > 1)
        GR_TRY(nccl ? open_nccl(&m, c, b) : gr_comm_staged_open(&m, c, b, GR_COMM_STAGE));
    return gr_device_open(c, b, m);
}

gr_err gr_comm_attach(gr_comm *c, gr_backend *b) {
    gr_comm_detach(c, GR_OK);
    uint64_t n_device = b->host_memory ? 0 : 1, n_rank = (uint64_t)c->size[GR_WORLD];
    GR_TRY(c->sum(c, GR_WORLD, GR_U64, &n_device, 1));
    if (n_device == 0 && strcmp(c->name, "nccl") != 0)
        return GR_OK;
    gr_err e;
    if (n_device == 0)
        e = gr_fail(GR_CONFIG,
            "parallel.comm: expected auto, self or mpi, since NCCL moves memory of GPUs and the backend is %s, got "
            "\"nccl\"; use mpi, or parallel.backend \"cuda\"",
            b->name);
    else if (n_device < n_rank)
        e = gr_fail(GR_RESOURCE,
            "parallel.backend: expected one kind on all %llu ranks, got %llu with a device (this one has %s); name the "
            "backend that all have",
            (unsigned long long)n_rank, (unsigned long long)n_device, b->name);
    else
        e = attach(c, b);
    return gr_comm_agree(c, e);
}

void gr_comm_detach(gr_comm *c, gr_err status) {
    if (c && c->device)
        gr_device_close(c, status == GR_OK || status == c->agreed);
}

/* ---------------------------------------------------------------- agreement and the end */

/* The codes travel through `sum`, a fixed number of ranks at a time, so that agreeing allocates nothing: it must work
 * after running out of memory. All ranks see the same sums, hence leave together. */
gr_err gr_comm_agree(gr_comm *c, gr_err mine) {
    enum { BLOCK = 256 };
    int me = c->rank[GR_WORLD], n_rank = c->size[GR_WORLD];
    for (int first = 0; first < n_rank; first += BLOCK) {
        uint64_t code[BLOCK] = {0};
        int n = n_rank - first < BLOCK ? n_rank - first : BLOCK;
        if (me >= first && me < first + n)
            code[me - first] = (uint64_t)mine;
        GR_TRY(c->sum(c, GR_WORLD, GR_U64, code, (size_t)n));
        for (int i = 0; i < n; i++) {
            if (!code[i])
                continue;
            c->agreed = (gr_err)code[i];
            c->agreed_rank = first + i;
            return first + i == me ? mine : gr_fail_silently(c->agreed);
        }
    }
    c->agreed = GR_OK; /* an error that was survived says nothing about a later one */
    return GR_OK;
}

void gr_comm_close(gr_comm *c, gr_err status) {
    if (!c)
        return;
    gr_comm_detach(c, status);
    if (status) /* while all ranks still wait for each other: mpirun ends the rest once the first of them has left */
        gr_error_print(stderr, status);
    c->close(c, status == GR_OK || status == c->agreed);
}

const char *gr_traffic_name(gr_traffic t) {
    static const char *const names[GR_N_TRAFFIC] = {
        "other", "dispatch", "combine", "gates", "routes", "gradients", "weights"};
    return names[t];
}

size_t gr_comm_memory(const gr_comm *c) {
    int n_rank = c->size[GR_WORLD];
    size_t stage = c->device && strcmp(c->name, "mpi") == 0 ? GR_COMM_STAGE : 0;
    return n_rank > 1 ? gr_comm_mpi_scratch(&GR_COMM_MPI_LIMITS, n_rank) + stage : 0;
}
