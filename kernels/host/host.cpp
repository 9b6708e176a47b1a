/* host.cpp: blocks and threads of kernels on the CPU: see cuda_runtime.h beside it. */
#include "cuda_runtime.h"
#include "host.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace gr_host {

void (*queue)(void *stream, void (*run)(void *work), void *work);

static const int THREADS_MAX = 1024, WARP = 32;
static const size_t STACK = 64 << 10;

/* Where a fiber stands. */
enum state { IDLE, READY, AT_BLOCK_BARRIER, AT_WARP };

/* Fibers live as long as the process: one is started by setcontext, which asks the system, and goes on by longjmp,
 * which does not. */
struct fiber {
    bool started;
    jmp_buf here;
    state at;
    dim3 index;
};

/* A warp's words of the operation under way and of the last one, which a slow lane may still have to read. */
struct warp {
    uint64_t word[2][WARP];
    unsigned turn;
    int n_there;
    collective what;
};

/* A thread's copies on their way, in order: those of commit c until some wait lets it arrive. */
static const int COPIES_MAX = 64, ROOM_GUARD = 256;

struct copy {
    void *to;
    const void *from;
    size_t n_byte;
    unsigned commit;
};

struct copies {
    copy list[COPIES_MAX];
    int first, n;
    unsigned n_commit;
};

static struct {
    gr_host_order order;
    char *stacks;
    fiber thread[THREADS_MAX];
    warp warps[THREADS_MAX / WARP];
    int n_thread, current, n_at_barrier;
    char *room; /* its end is followed by ROOM_GUARD bytes */
    size_t n_room;
    copies copy[THREADS_MAX];
    const void *given[THREADS_MAX];
    jmp_buf scheduler;
    void (*body)(const void *arguments);
    const void *arguments;
} host;

[[noreturn]] static void die(const char *what) {
    fprintf(stderr, "kernels/host: block (%u,%u), thread %d: %s\n", blockIdx.x, blockIdx.y, host.current, what);
    abort();
}

int lane(void) {
    return host.current % WARP;
}

/* Until somebody makes this fiber ready. */
static void wait_as(state at) {
    fiber *f = &host.thread[host.current];
    f->at = at;
    if (_setjmp(f->here) == 0)
        _longjmp(host.scheduler, 1);
}

static void release(int first, int n, state at) {
    for (int i = first; i < first + n; i++)
        if (host.thread[i].at == at)
            host.thread[i].at = READY;
}

uint64_t exchange(collective what, unsigned lanes, uint64_t value, int from) {
    const int first = host.current / WARP * WARP, here = lane();
    warp *w = &host.warps[host.current / WARP];
    if (lanes != 0xffffffffu || first + WARP > host.n_thread)
        die("only whole warps are known here");
    if (w->n_there > 0 && w->what != what)
        die("lanes of a warp do different things");
    const unsigned turn = w->turn;
    w->what = what;
    w->word[turn % 2][here] = value;
    if (++w->n_there == WARP) {
        w->n_there = 0;
        w->turn++;
        release(first, WARP, AT_WARP);
    } else
        wait_as(AT_WARP);
    return w->word[turn % 2][from >= 0 && from < WARP ? from : here];
}

/* ---------------------------------------------------------------- shared memory and copies to it */

void *room(void) {
    return host.room;
}

static void open_room(size_t n_byte) {
    if (n_byte > (size_t)GR_HOST_ROOM_MAX)
        die("more shared memory than a block can have");
    if (!host.room)
        host.room = (char *)aligned_alloc(GR_HOST_ROOM_ALIGN, GR_HOST_ROOM_MAX + ROOM_GUARD);
    if (!host.room)
        die("no memory for shared memory");
    host.n_room = n_byte;
    memset(host.room, 0xff, n_byte);
    memset(host.room + n_byte, 0x5a, ROOM_GUARD);
}

static void check_room(void) {
    for (int i = 0; i < ROOM_GUARD; i++)
        if (host.room[host.n_room + (size_t)i] != 0x5a)
            die("wrote behind the shared memory of the launch");
}

void copy_later(void *to, const void *from, size_t n_byte) {
    copies *c = &host.copy[host.current];
    if (c->n == COPIES_MAX)
        die("more copies on their way than there is room for here");
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16)
        die("an asynchronous copy that is not at 16 bytes");
    memset(to, 0xff, 16);
    c->list[(c->first + c->n++) % COPIES_MAX] = {to, from, n_byte, c->n_commit};
}

void copies_commit(void) {
    host.copy[host.current].n_commit++;
}

void copies_wait(int but) {
    copies *c = &host.copy[host.current];
    for (; c->n > 0; c->n--) {
        const copy *x = &c->list[c->first];
        if (x->commit + (unsigned)but >= c->n_commit)
            return;
        memset(x->to, 0, 16);
        memcpy(x->to, x->from, x->n_byte);
        c->first = (c->first + 1) % COPIES_MAX;
    }
}

const void *const *hand_over(const void *p) {
    host.given[host.current] = p;
    exchange(SYNC_WARP, 0xffffffffu, 0, lane());
    return host.given + host.current / WARP * WARP;
}

/* One thread of block after block. */
static void enter(void) {
    for (;;) {
        wait_as(IDLE);
        host.body(host.arguments);
    }
}

static void start_fiber(int i) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = host.stacks + (size_t)i * STACK;
    context.uc_stack.ss_size = STACK;
    context.uc_link = NULL;
    makecontext(&context, enter, 0);
    host.current = i;
    if (_setjmp(host.scheduler) == 0)
        setcontext(&context);
    host.thread[i].started = true;
}

static void start_thread(int i) {
    fiber *f = &host.thread[i];
    const unsigned u = (unsigned)i;
    if (!f->started)
        start_fiber(i);
    f->at = READY;
    f->index = dim3(u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y);
}

static int place(int i, int n) {
    return host.order == GR_HOST_RISING ? i : n - 1 - i;
}

static void resume(fiber *f) {
    if (_setjmp(host.scheduler) == 0)
        _longjmp(f->here, 1);
}

/* Gives each ready thread of a warp its turn; how many had one. */
static int run_warp(int first, int n_lane) {
    int n_run = 0;
    for (int i = 0; i < n_lane; i++) {
        host.current = first + place(i, n_lane);
        fiber *f = &host.thread[host.current];
        if (f->at != READY)
            continue;
        n_run++;
        threadIdx = f->index;
        resume(f);
    }
    return n_run;
}

/* Each warp goes on for as long as it can, so that what it does too early meets warps that are far behind; whether any
 * did. */
static bool run_round(void) {
    const int n_warp = (host.n_thread + WARP - 1) / WARP;
    bool ran = false;
    for (int i = 0; i < n_warp; i++) {
        const int first = place(i, n_warp) * WARP, left = host.n_thread - first;
        while (run_warp(first, left < WARP ? left : WARP) > 0)
            ran = true;
    }
    return ran;
}

static void run_block(void) {
    host.n_at_barrier = 0;
    for (warp &w : host.warps)
        w.n_there = 0;
    open_room(host.n_room);
    for (int i = 0; i < host.n_thread; i++)
        start_thread(i);
    while (run_round()) {
    }
    for (int i = 0; i < host.n_thread; i++)
        if (host.thread[i].at != IDLE) {
            host.current = i;
            die("waits for threads that returned or took another way");
        } else if (host.copy[i].n > 0) {
            host.current = i;
            die("returned before its copies had arrived");
        }
    check_room();
}

void run(dim3 blocks, dim3 threads, size_t n_room, void (*body)(const void *arguments), const void *arguments) {
    const uint64_t n_thread = (uint64_t)threads.x * threads.y * threads.z;
    if (n_thread < 1 || n_thread > (uint64_t)THREADS_MAX)
        die("a block of 1 to 1024 threads");
    if (blocks.x < 1 || blocks.x > 0x7fffffffu || blocks.y < 1 || blocks.y > 65535 || blocks.z != 1)
        die("a grid of 1 to 2^31 - 1 times 1 to 65535 blocks");
    if (!host.stacks)
        host.stacks = (char *)malloc(THREADS_MAX * STACK);
    if (!host.stacks)
        die("no memory for stacks");
    host.n_thread = (int)n_thread;
    host.n_room = n_room;
    host.body = body;
    host.arguments = arguments;
    gridDim = blocks;
    blockDim = threads;
    const int n_block = (int)(blocks.x * blocks.y);
    for (int i = 0; i < n_block; i++) {
        const unsigned at = (unsigned)place(i, n_block);
        blockIdx = dim3(at % blocks.x, at / blocks.x);
        run_block();
    }
}

} // namespace gr_host

void __syncthreads(void) {
    using namespace gr_host;
    if (++host.n_at_barrier < host.n_thread)
        return wait_as(AT_BLOCK_BARRIER);
    host.n_at_barrier = 0;
    release(0, host.n_thread, AT_BLOCK_BARRIER);
}

void gr_host_set_order(gr_host_order order) {
    gr_host::host.order = order;
}

void gr_host_queue_launches(void (*queue)(void *stream, void (*run)(void *work), void *work)) {
    gr_host::queue = queue;
}
