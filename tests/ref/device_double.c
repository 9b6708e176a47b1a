#include "device_double.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { REGIONS_MAX = 256, PENDING_MAX = 4096, USES_MAX = 1 << 14 };

typedef struct region {
    uint8_t *p;
    size_t n;
    bool device; /* else of alloc_host */
} region;

/* A copy that has been asked for and not been made yet. */
typedef struct pending {
    gr_lane lane;
    void *to;
    uint8_t *data;
    size_t n;
} pending;

/* An array that an op of COMPUTE has been given. */
typedef struct use {
    const uint8_t *p;
    uint64_t op;
} use;

typedef struct device_double {
    gr_backend *inner;
    region regions[REGIONS_MAX];
    int n_region;
    pending uploads[PENDING_MAX], downloads[PENDING_MAX];
    int n_upload, n_download;
    uint64_t n_op;              /* on COMPUTE */
    uint64_t waited[GR_N_LANE]; /* ops of COMPUTE that the lane comes after */
    use uses[USES_MAX];         /* the last ones, by use % USES_MAX */
    uint64_t n_use;
} device_double;

static _Noreturn __attribute__((format(printf, 1, 2))) void die(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fputs("device double: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

/* ---------------------------------------------------------------- memory */

static size_t whole_pages(size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (n + page) / page * page; /* at least one */
}

/* Does one of the regions hold all n bytes? None lie anywhere in it, its end included. */
static bool is_in(const device_double *d, const void *p, size_t n, bool device) {
    for (int i = 0; i < d->n_region; i++) {
        const region *r = &d->regions[i];
        size_t at = (size_t)((uintptr_t)p - (uintptr_t)r->p); /* large below the region */
        if (r->device == device && at <= r->n && n <= r->n - at)
            return true;
    }
    return false;
}

static void check_device(const device_double *d, const char *what, const void *p, size_t n) {
    if (!is_in(d, p, n, true))
        die("%s: %zu bytes at %p are not in its memory", what, n, p);
}

static void check_host(const device_double *d, const char *what, const void *p) {
    if (is_in(d, p, 1, true))
        die("%s: expected host memory, got its own", what);
}

static void set_access(device_double *d, int access) {
    for (int i = 0; i < d->n_region; i++)
        if (d->regions[i].device && mprotect(d->regions[i].p, d->regions[i].n, access))
            die("mprotect of %zu bytes", d->regions[i].n);
}

static gr_err add_region(device_double *d, size_t n_byte, bool device, void **out) {
    size_t n = whole_pages(n_byte);
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || d->n_region == REGIONS_MAX)
        die("%zu bytes in region %d", n, d->n_region);
    d->regions[d->n_region++] = (region){.p = p, .n = n, .device = device};
    if (device && mprotect(p, n, PROT_NONE))
        die("mprotect of %zu bytes", n);
    *out = p;
    return GR_OK;
}

/* No op uses memory that was given back, nor what comes to lie there. */
static void forget_uses(device_double *d, const region *r) {
    for (int i = 0; i < USES_MAX; i++)
        if (d->uses[i].p >= r->p && d->uses[i].p < r->p + r->n)
            d->uses[i] = (use){0};
}

static void remove_region(device_double *d, void *p) {
    for (int i = 0; p && i < d->n_region; i++)
        if (d->regions[i].p == p) {
            forget_uses(d, &d->regions[i]);
            munmap(p, d->regions[i].n);
            d->regions[i] = d->regions[--d->n_region];
            return;
        }
    if (p)
        die("release of %p, which is not its memory", p);
}

static gr_err double_alloc(gr_backend *b, size_t n_byte, const char *what, void **out) {
    (void)what;
    return add_region(b->state, n_byte, true, out);
}

static gr_err double_alloc_host(gr_backend *b, size_t n_byte, const char *what, void **out) {
    (void)what;
    return add_region(b->state, n_byte, false, out);
}

/* A script may say how little there is. */
static uint64_t double_room(gr_backend *b) {
    (void)b;
    const char *room = getenv("DEVICE_DOUBLE_ROOM");
    return room ? strtoull(room, NULL, 10) : UINT64_MAX;
}

static void double_release(gr_backend *b, void *p) {
    remove_region(b->state, p);
}

static bool double_owns(const gr_backend *b, const void *p) {
    return is_in(b->state, p, 1, true);
}

/* ---------------------------------------------------------------- copies */

static void pending_add(pending *list, int *n_list, gr_lane lane, void *to, const void *from, size_t n) {
    if (*n_list == PENDING_MAX)
        die("more than %d copies wait", PENDING_MAX);
    pending *p = &list[(*n_list)++];
    *p = (pending){.lane = lane, .to = to, .data = malloc(n ? n : 1), .n = n};
    memcpy(p->data, from, n);
}

/* Makes the uploads of a lane, or with GR_N_LANE all. */
static void flush(device_double *d, gr_lane lane) {
    int left = 0;
    set_access(d, PROT_READ | PROT_WRITE);
    for (int i = 0; i < d->n_upload; i++) {
        pending *p = &d->uploads[i];
        if (lane != GR_N_LANE && p->lane != lane) {
            d->uploads[left++] = *p;
            continue;
        }
        memcpy(p->to, p->data, p->n);
        free(p->data);
    }
    d->n_upload = left;
    set_access(d, PROT_NONE);
}

/* A copy beside COMPUTE must come after the ops that were given the array before. */
static void check_order(device_double *d, gr_lane lane, const char *what, const uint8_t *p, size_t n) {
    uint64_t first = d->n_use > USES_MAX ? d->n_use - USES_MAX : 0;
    for (uint64_t i = first; lane != GR_LANE_COMPUTE && i < d->n_use; i++) {
        const use *u = &d->uses[i % USES_MAX];
        if (u->op > d->waited[lane] && u->p >= p && u->p < p + n)
            die("%s on lane %d of what op %llu of COMPUTE uses; it has waited for %llu", what, (int)lane,
                (unsigned long long)u->op, (unsigned long long)d->waited[lane]);
    }
}

static gr_err double_upload(gr_backend *b, gr_lane lane, void *to, const void *from_host, size_t n_byte) {
    device_double *d = b->state;
    if (n_byte == 0)
        return GR_OK;
    check_device(d, "upload", to, n_byte);
    check_host(d, "upload", from_host);
    check_order(d, lane, "upload", to, n_byte);
    pending_add(d->uploads, &d->n_upload, lane, to, from_host, n_byte);
    if (lane == GR_LANE_COMPUTE)
        flush(d, lane);
    return GR_OK;
}

static gr_err double_download(gr_backend *b, gr_lane lane, void *to_host, const void *from, size_t n_byte) {
    device_double *d = b->state;
    if (n_byte == 0)
        return GR_OK;
    check_device(d, "download", from, n_byte);
    check_host(d, "download", to_host);
    if (lane != GR_LANE_COMPUTE && d->waited[lane] < d->n_op)
        die("download on lane %d, which has waited for %llu of %llu ops", (int)lane,
            (unsigned long long)d->waited[lane], (unsigned long long)d->n_op);
    flush(d, lane);
    b->n_download++;
    set_access(d, PROT_READ);
    if (is_in(d, to_host, n_byte, false)) {
        pending_add(d->downloads, &d->n_download, lane, to_host, from, n_byte);
        memset(to_host, 0xFF, n_byte);
    } else {
        memcpy(to_host, from, n_byte);
        b->n_sync++;
    }
    set_access(d, PROT_NONE);
    return GR_OK;
}

static gr_err double_wait(gr_backend *b, gr_lane waiting, gr_lane for_lane) {
    device_double *d = b->state;
    if (for_lane != GR_LANE_COMPUTE)
        flush(d, for_lane);
    else
        d->waited[waiting] = d->n_op;
    return GR_OK;
}

/* Makes the downloads of a lane, or with GR_N_LANE all. */
static void arrive(device_double *d, gr_lane lane) {
    int left = 0;
    for (int i = 0; i < d->n_download; i++) {
        pending *p = &d->downloads[i];
        if (lane != GR_N_LANE && p->lane != lane) {
            d->downloads[left++] = *p;
            continue;
        }
        memcpy(p->to, p->data, p->n);
        free(p->data);
    }
    d->n_download = left;
}

static gr_err double_sync(gr_backend *b) {
    device_double *d = b->state;
    b->n_sync++;
    flush(d, GR_N_LANE);
    arrive(d, GR_N_LANE);
    for (int lane = 0; lane < GR_N_LANE; lane++)
        d->waited[lane] = d->n_op;
    return GR_OK;
}

static gr_err double_sync_lane(gr_backend *b, gr_lane lane) {
    device_double *d = b->state;
    b->n_sync++;
    flush(d, lane);
    arrive(d, lane);
    return GR_OK;
}

static void *double_lane_native(gr_backend *b, gr_lane lane) {
    (void)b;
    (void)lane;
    return NULL;
}

/* ---------------------------------------------------------------- ops */

static void begin(device_double *d, gr_lane lane, const char *what, const void *const *array, size_t n) {
    if (lane != GR_LANE_COMPUTE)
        die("%s on lane %d", what, (int)lane);
    d->n_op++;
    for (size_t i = 0; i < n; i++) {
        if (!array[i])
            continue;
        check_device(d, what, array[i], 0);
        d->uses[d->n_use++ % USES_MAX] = (use){.p = array[i], .op = d->n_op};
    }
    set_access(d, PROT_READ | PROT_WRITE);
}

/* An op of one argument struct; the rest are its arrays. */
#define OP(op, type, ...)                                                                                              \
    static gr_err double_##op(gr_backend *b, gr_lane lane, const type *a) {                                            \
        device_double *d = b->state;                                                                                   \
        const void *const array[] = {__VA_ARGS__};                                                                     \
        begin(d, lane, #op, array, sizeof array / sizeof *array);                                                      \
        gr_err e = d->inner->op(d->inner, lane, a);                                                                    \
        set_access(d, PROT_NONE);                                                                                      \
        return e;                                                                                                      \
    }

#define SUM_ARRAYS                                                                                                     \
    a->base, a->source[0], a->source[1], a->source[0] ? a->offset[0] : NULL, a->source[1] ? a->offset[1] : NULL,       \
        a->source[0] ? a->index[0] : NULL, a->source[1] ? a->index[1] : NULL, a->out
#define ROUTER_ARRAYS a->p, a->lse, a->ids, a->gate, a->count, a->load, a->loss
#define PAIR_ARRAYS a->pair_row, a->pair_slot
#define FFN_ARRAYS a->pair_row, a->pair_gate, a->x, a->w13, a->w2, a->h, a->a
#define NORM_ARRAYS a->x, a->w, a->rstd
#define HEAD_NORM_ARRAYS a->cosine, a->sine, a->x, a->wq, a->wk, a->rstd
#define LAYER_NORM_ARRAYS a->x, a->w, a->b, a->mean, a->rstd
#define ATTENTION_ARRAYS a->documents.first, a->documents.end, a->q, a->k, a->v, a->o, a->lse

OP(gemm, gr_gemm, a->a, a->b, a->c)
OP(gather_rows, gr_gather, a->in, a->index, a->out)
OP(gather_f32, gr_gather, a->in, a->index, a->out)
OP(sum_rows, gr_sum, SUM_ARRAYS)
OP(sum_f32, gr_sum, SUM_ARRAYS)
OP(router_forward, gr_router_op, ROUTER_ARRAYS)
OP(router_backward, gr_router_op, ROUTER_ARRAYS, a->dgate, a->dlogits)
OP(pair_gates_forward, gr_pair_gates, PAIR_ARRAYS, a->gate, a->pair_gate)
OP(pair_gates_backward, gr_pair_gates, PAIR_ARRAYS, a->dpair_gate, a->dgate)
OP(ffn_forward, gr_ffn, FFN_ARRAYS, a->y, a->dx)
OP(ffn_backward, gr_ffn, FFN_ARRAYS, a->dy, a->da, a->dw13, a->dw2, a->dx, a->dgate)
OP(embed_forward, gr_embed, a->id, a->table, a->out)
OP(embed_backward, gr_embed, a->id, a->dout, a->dtable)
OP(norm_forward, gr_norm, NORM_ARRAYS, a->y)
OP(norm_backward, gr_norm, NORM_ARRAYS, a->dy, a->dx, a->dw)
OP(head_norm_forward, gr_head_norm, HEAD_NORM_ARRAYS, a->y)
OP(head_norm_backward, gr_head_norm, HEAD_NORM_ARRAYS, a->dy, a->dx, a->dwq, a->dwk)
OP(layer_norm_forward, gr_layer_norm, LAYER_NORM_ARRAYS, a->residual, a->y)
OP(layer_norm_backward, gr_layer_norm, LAYER_NORM_ARRAYS, a->dy, a->dx, a->dw, a->db)
OP(rope, gr_rope, a->cosine, a->sine, a->x)
OP(attention_forward, gr_attention, ATTENTION_ARRAYS)
OP(attention_backward, gr_attention, ATTENTION_ARRAYS, a->dout, a->dq, a->dk, a->dv)
OP(cross_entropy, gr_cross_entropy, a->x, a->w, a->target, a->loss_sum, a->token_loss, a->dx, a->dw, a->logits)
OP(divergence, gr_divergence, a->teacher, a->student, a->loss_sum, a->dstudent)
OP(decide, gr_decide, a->squares, a->loss, a->out)
OP(adamw, gr_adamw, a->decision, a->p, a->m, a->v, a->g, a->p_act)

static gr_err double_sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out) {
    device_double *d = b->state;
    begin(d, lane, "sum_squares", (const void *const[]){x, out}, 2);
    gr_err e = d->inner->sum_squares(d->inner, lane, x, n, out);
    set_access(d, PROT_NONE);
    return e;
}

static gr_err double_round_weights(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n) {
    device_double *d = b->state;
    begin(d, lane, "round_weights", (const void *const[]){from, to}, 2);
    gr_err e = d->inner->round_weights(d->inner, lane, from, to, n);
    set_access(d, PROT_NONE);
    return e;
}

static gr_err double_fill_zero(gr_backend *b, gr_lane lane, void *p, size_t n_byte) {
    device_double *d = b->state;
    if (n_byte == 0)
        return GR_OK;
    check_device(d, "fill_zero", p, n_byte);
    begin(d, lane, "fill_zero", (const void *const[]){p}, 1);
    gr_err e = d->inner->fill_zero(d->inner, lane, p, n_byte);
    set_access(d, PROT_NONE);
    return e;
}

/* COMM's is of rows between ranks. */
static gr_err double_copy(gr_backend *b, gr_lane lane, void *to, const void *from, size_t n_byte) {
    device_double *d = b->state;
    if (n_byte == 0)
        return GR_OK;
    check_device(d, "copy", to, n_byte);
    check_device(d, "copy", from, n_byte);
    if (lane != GR_LANE_COMPUTE && d->waited[lane] < d->n_op)
        die("copy on lane %d, which has not waited for COMPUTE", (int)lane);
    begin(d, GR_LANE_COMPUTE, "copy", (const void *const[]){to, from}, 2);
    gr_err e = d->inner->copy(d->inner, lane, to, from, n_byte);
    set_access(d, PROT_NONE);
    if (lane != GR_LANE_COMPUTE)
        d->waited[lane] = d->n_op;
    return e;
}

static gr_err double_peak(gr_backend *b, double *flops_per_s) {
    device_double *d = b->state;
    return d->inner->peak(d->inner, flops_per_s);
}

/* ---------------------------------------------------------------- opening */

static void double_close(gr_backend *b) {
    device_double *d = b->state;
    if (d->n_region)
        die("%d areas of memory are left at closing", d->n_region);
    for (int i = 0; i < d->n_upload; i++)
        free(d->uploads[i].data);
    for (int i = 0; i < d->n_download; i++)
        free(d->downloads[i].data);
    gr_backend_close(d->inner);
    free(d);
    free(b);
}

static const gr_backend calls = {.name = "double",
    .alloc = double_alloc,
    .release = double_release,
    .room = double_room,
    .owns = double_owns,
    .alloc_host = double_alloc_host,
    .release_host = double_release,
    .upload = double_upload,
    .download = double_download,
    .fill_zero = double_fill_zero,
    .copy = double_copy,
    .wait = double_wait,
    .lane_native = double_lane_native,
    .sync = double_sync,
    .sync_lane = double_sync_lane,
    .gemm = double_gemm,
    .gather_rows = double_gather_rows,
    .sum_rows = double_sum_rows,
    .gather_f32 = double_gather_f32,
    .sum_f32 = double_sum_f32,
    .router_forward = double_router_forward,
    .router_backward = double_router_backward,
    .pair_gates_forward = double_pair_gates_forward,
    .pair_gates_backward = double_pair_gates_backward,
    .ffn_forward = double_ffn_forward,
    .ffn_backward = double_ffn_backward,
    .embed_forward = double_embed_forward,
    .embed_backward = double_embed_backward,
    .norm_forward = double_norm_forward,
    .norm_backward = double_norm_backward,
    .head_norm_forward = double_head_norm_forward,
    .head_norm_backward = double_head_norm_backward,
    .layer_norm_forward = double_layer_norm_forward,
    .layer_norm_backward = double_layer_norm_backward,
    .rope = double_rope,
    .attention_forward = double_attention_forward,
    .attention_backward = double_attention_backward,
    .cross_entropy = double_cross_entropy,
    .divergence = double_divergence,
    .sum_squares = double_sum_squares,
    .decide = double_decide,
    .adamw = double_adamw,
    .round_weights = double_round_weights,
    .peak = double_peak,
    .close = double_close};

gr_err device_double_open(gr_backend **out, gr_backend *inner) {
    *out = NULL;
    void *b = NULL, *d = NULL;
    gr_err e = gr_alloc(&b, 1, sizeof(gr_backend), "device double");
    if (!e)
        e = gr_alloc(&d, 1, sizeof(device_double), "device double");
    if (e) {
        free(b);
        gr_backend_close(inner);
        return e;
    }
    gr_backend *opened = b;
    *opened = calls;
    opened->dtype = inner->dtype;
    opened->elem_size = inner->elem_size;
    opened->logits_room = inner->logits_room;
    opened->state = d;
    ((device_double *)d)->inner = inner;
    *out = opened;
    return GR_OK;
}
