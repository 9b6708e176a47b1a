/* lane_double.c: see lane_double.h. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lane_double.h"

enum { OPS_MAX = 4096, AREAS_MAX = 32 };

typedef struct op {
    bool (*step)(void *of);
    void *of;
} op;

typedef struct lane {
    struct state *state;
    op ops[OPS_MAX];
    size_t begin, end; /* numbers of the first op that is queued and of the next one to come */
} lane;

typedef struct area {
    uint8_t *p;
    size_t n_byte, n_mapped;
} area;

typedef struct state {
    lane lanes[GR_N_LANE];
    area areas[AREAS_MAX];
    gr_lane preferred;
} state;

/* ---------------------------------------------------------------- memory */

static void protect_all(const state *s, int protection) {
    for (int i = 0; i < AREAS_MAX; i++)
        if (s->areas[i].p)
            GR_ASSERT(mprotect(s->areas[i].p, s->areas[i].n_mapped, protection) == 0, "area %d", i);
}

static gr_err allocate(gr_backend *b, size_t n_byte, const char *what, void **out) {
    state *s = b->state;
    int i = 0;
    while (i < AREAS_MAX && s->areas[i].p)
        i++;
    GR_ASSERT(i < AREAS_MAX && n_byte > 0, "%s: %zu bytes", what, n_byte);
    size_t n_mapped = (n_byte + 4095) / 4096 * 4096;
    void *p = mmap(NULL, n_mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return gr_fail(GR_RESOURCE, "%s: no memory", what);
    s->areas[i] = (area){.p = p, .n_byte = n_byte, .n_mapped = n_mapped};
    *out = p;
    return GR_OK;
}

static area *area_of(state *s, const void *p) {
    const uint8_t *at = p;
    for (int i = 0; i < AREAS_MAX; i++) {
        area *a = &s->areas[i];
        if (a->p && at >= a->p && at < a->p + a->n_byte)
            return a;
    }
    return NULL;
}

static void release(gr_backend *b, void *p) {
    area *a = p ? area_of(b->state, p) : NULL;
    if (!a)
        return;
    munmap(a->p, a->n_mapped);
    *a = (area){0};
}

static bool owns(const gr_backend *b, const void *p) {
    return area_of(b->state, p) != NULL;
}

static gr_err alloc_host(gr_backend *b, size_t n_byte, const char *what, void **out) {
    (void)b;
    return gr_alloc(out, n_byte, 1, what);
}

static void release_host(gr_backend *b, void *p) {
    (void)b;
    free(p);
}

/* ---------------------------------------------------------------- lanes */

void lane_double_push(void *stream, bool (*step)(void *of), void *of) {
    lane *l = stream;
    GR_ASSERT(l->end - l->begin < OPS_MAX, "%d ops are queued", OPS_MAX);
    l->ops[l->end++ % OPS_MAX] = (op){.step = step, .of = of};
}

/* Every op of one lane that can run. */
static bool run_lane(lane *l) {
    bool moved = false;
    while (l->begin < l->end) {
        op *o = &l->ops[l->begin % OPS_MAX];
        if (!o->step(o->of))
            return moved;
        l->begin++;
        moved = true;
    }
    return moved;
}

static bool run(state *s) {
    bool moved = true, idle = true;
    protect_all(s, PROT_READ | PROT_WRITE);
    while (moved) {
        moved = run_lane(&s->lanes[s->preferred]);
        for (int i = GR_N_LANE - 1; i >= 0 && !moved; i--)
            moved = run_lane(&s->lanes[i]);
    }
    protect_all(s, PROT_NONE);
    for (int i = 0; i < GR_N_LANE; i++)
        idle = idle && s->lanes[i].begin == s->lanes[i].end;
    return idle;
}

bool lane_double_query(void *stream) {
    lane *l = stream;
    run(l->state);
    return l->begin == l->end;
}

bool lane_double_holds(void *stream, const void *p, size_t n_byte) {
    lane *l = stream;
    const area *a = area_of(l->state, p);
    return a && n_byte <= a->n_byte - (size_t)((const uint8_t *)p - a->p);
}

bool lane_double_is(void *stream, gr_lane which) {
    lane *l = stream;
    return l == &l->state->lanes[which];
}

void lane_double_prefer(gr_backend *b, gr_lane which) {
    state *s = b->state;
    s->preferred = which;
}

typedef struct copy_op {
    void *to;
    const void *from; /* NULL: zeros */
    size_t n_byte;
} copy_op;

static bool step_copy(void *of) {
    copy_op *c = of;
    if (c->from)
        memcpy(c->to, c->from, c->n_byte);
    else
        memset(c->to, 0, c->n_byte);
    free(c);
    return true;
}

typedef struct wait_op {
    const lane *on;
    size_t until;
} wait_op;

static bool step_wait(void *of) {
    wait_op *w = of;
    if (w->on->begin < w->until)
        return false;
    free(w);
    return true;
}

static gr_err push_copy(gr_backend *b, gr_lane which, void *to, const void *from, size_t n_byte) {
    state *s = b->state;
    void *p;
    GR_TRY(gr_alloc(&p, 1, sizeof(copy_op), "copy"));
    *(copy_op *)p = (copy_op){.to = to, .from = from, .n_byte = n_byte};
    lane_double_push(&s->lanes[which], step_copy, p);
    return GR_OK;
}

static void must_hold(gr_backend *b, const void *p, size_t n_byte) {
    state *s = b->state;
    GR_ASSERT(lane_double_holds(&s->lanes[0], p, n_byte), "%zu bytes at %p are not all of one allocation", n_byte, p);
}

static void must_be_host(gr_backend *b, const void *p) {
    GR_ASSERT(!area_of(b->state, p), "%p is not host memory", p);
}

static gr_err upload(gr_backend *b, gr_lane which, void *to, const void *from_host, size_t n_byte) {
    must_hold(b, to, n_byte);
    must_be_host(b, from_host);
    return push_copy(b, which, to, from_host, n_byte);
}

static gr_err download(gr_backend *b, gr_lane which, void *to_host, const void *from, size_t n_byte) {
    must_hold(b, from, n_byte);
    must_be_host(b, to_host);
    b->n_download++;
    return push_copy(b, which, to_host, from, n_byte);
}

static gr_err copy(gr_backend *b, gr_lane which, void *to, const void *from, size_t n_byte) {
    must_hold(b, to, n_byte);
    must_hold(b, from, n_byte);
    return push_copy(b, which, to, from, n_byte);
}

static gr_err fill_zero(gr_backend *b, gr_lane which, void *p, size_t n_byte) {
    must_hold(b, p, n_byte);
    return push_copy(b, which, p, NULL, n_byte);
}

static gr_err wait_lane(gr_backend *b, gr_lane waiting, gr_lane for_lane) {
    state *s = b->state;
    void *p;
    GR_TRY(gr_alloc(&p, 1, sizeof(wait_op), "wait"));
    *(wait_op *)p = (wait_op){.on = &s->lanes[for_lane], .until = s->lanes[for_lane].end};
    lane_double_push(&s->lanes[waiting], step_wait, p);
    return GR_OK;
}

static void *lane_native(gr_backend *b, gr_lane which) {
    state *s = b->state;
    return &s->lanes[which];
}

static gr_err sync_lanes(gr_backend *b) {
    double start_s = gr_time_s();
    b->n_sync++;
    while (!run(b->state)) {
        if (b->watch)
            GR_TRY(b->watch(b->watched, gr_time_s() - start_s));
        sched_yield();
    }
    return GR_OK;
}

static void close_double(gr_backend *b) {
    state *s = b->state;
    for (int i = 0; i < AREAS_MAX; i++)
        if (s->areas[i].p)
            munmap(s->areas[i].p, s->areas[i].n_mapped);
    free(s);
    free(b);
}

gr_err lane_double_open(gr_backend **out) {
    void *p, *memory;
    GR_TRY(gr_alloc(&p, 1, sizeof(gr_backend), "backend"));
    gr_backend *b = p;
    *b = (gr_backend){.name = "lanes",
        .dtype = GR_F32,
        .elem_size = sizeof(float),
        .alloc = allocate,
        .release = release,
        .owns = owns,
        .alloc_host = alloc_host,
        .release_host = release_host,
        .upload = upload,
        .download = download,
        .copy = copy,
        .fill_zero = fill_zero,
        .wait = wait_lane,
        .lane_native = lane_native,
        .sync = sync_lanes,
        .close = close_double};
    gr_err e = gr_alloc(&memory, 1, sizeof(state), "lanes");
    if (e) {
        free(b);
        return e;
    }
    state *s = b->state = memory;
    for (int i = 0; i < GR_N_LANE; i++)
        s->lanes[i].state = s;
    *out = b;
    return GR_OK;
}
