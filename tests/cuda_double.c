/* cuda_double.c: stands in for the CUDA runtime and cuBLAS in test programs of backend cuda: "device" memory is the
 * host's, and kernels are run by kernels/host.
 *
 * A stream does as little as it can as late as it can: work runs only once the host waits for it, and of other streams
 * only what an event asks for. With CUDA_DOUBLE=hasty in the environment all streams but the first do their work as
 * soon as it is queued. So an op that is not ordered after what it needs, on either side, reads what was there before.
 * Ends the process where a copy would make the host wait, or a wait would never end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_double.h"

#include "grouter/base.h"
#include "kernels/host/host.h"

_Noreturn void double_die(const char *what) {
    fprintf(stderr, "cuda_double: %s\n", what);
    abort();
}

void *double_memory(size_t n_byte) {
    void *p = aligned_alloc(256, (n_byte + 255) / 256 * 256 + 256);
    if (!p)
        double_die("no memory");
    return p;
}

/* ---------------------------------------------------------------- streams */

/* Work, or (run NULL) an order to wait until `stream` has done `at` things. */
typedef struct op {
    struct op *next;
    void (*run)(void *work);
    void *work;
    cudaStream_t stream;
    uint64_t at;
} op;

struct CUstream_st {
    struct CUstream_st *next;
    op *first, **last;
    uint64_t n_queued, n_done;
    double ms; /* that what is queued takes */
    bool is_hasty;
};

struct CUevent_st {
    cudaStream_t stream;
    uint64_t at;
    double ms;
};

int double_n_timed;

static cudaStream_t streams;

static void enqueue_op(cudaStream_t s, op o) {
    op *copy = malloc(sizeof *copy);
    if (!copy)
        double_die("no memory");
    *copy = o;
    *s->last = copy;
    s->last = &copy->next;
    s->n_queued++;
}

static void run_until(cudaStream_t s, uint64_t at);

/* `run` has to free the work. */
void double_enqueue(void *stream, void (*run)(void *work), void *work) {
    if (!stream)
        double_die("work for the default stream, which orders nothing here");
    enqueue_op(stream, (op){.run = run, .work = work});
    const char *manner = getenv("CUDA_DOUBLE");
    const cudaStream_t s = stream;
    if (s->is_hasty && manner && strcmp(manner, "hasty") == 0)
        run_until(s, s->n_queued);
}

static void run_until(cudaStream_t s, uint64_t at) {
    while (s->n_done < at) {
        op *o = s->first;
        if (!o)
            double_die("a wait for what was never queued");
        s->first = o->next;
        if (!s->first)
            s->last = &s->first;
        if (o->run)
            o->run(o->work);
        else
            run_until(o->stream, o->at);
        s->n_done++;
        free(o);
    }
}

static void run_all(void) {
    for (cudaStream_t s = streams; s; s = s->next)
        run_until(s, s->n_queued);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned int flags, int priority) {
    (void)priority;
    if (flags != cudaStreamNonBlocking)
        double_die("a stream that the default stream would order");
    cudaStream_t s = calloc(1, sizeof *s);
    if (!s)
        double_die("no memory");
    s->last = &s->first;
    s->is_hasty = streams != NULL;
    s->next = streams;
    *out = streams = s;
    gr_host_queue_launches(double_enqueue);
    return cudaSuccess;
}

void double_spend(cudaStream_t stream, double ms) {
    stream->ms += ms;
}

bool double_is_busy(cudaStream_t stream) {
    for (cudaStream_t s = streams; s; s = s->next)
        if (s == stream)
            return s->n_done < s->n_queued;
    return false;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
    run_until(s, s->n_queued);
    cudaStream_t *at = &streams;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    free(s);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out) {
    *out = calloc(1, sizeof **out);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned int flags) {
    (void)flags;
    return cudaEventCreate(out);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) {
    event->stream = s;
    event->at = s->n_queued;
    event->ms = s->ms;
    return cudaSuccess;
}

static bool is_done(cudaEvent_t event) {
    return !event->stream || event->stream->n_done >= event->at;
}

/* Each question takes the stream a step on. */
cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (is_done(event))
        return cudaSuccess;
    run_until(event->stream, event->stream->n_done + 1);
    return cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (!is_done(event))
        run_until(event->stream, event->at);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    if (!is_done(start) || !is_done(end))
        double_die("the time of what is not done");
    if (start->stream != end->stream)
        double_die("the time between two streams");
    double_n_timed++;
    *ms = (float)(end->ms - start->ms);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s) {
    if (s->n_done >= s->n_queued)
        return cudaSuccess;
    run_until(s, s->n_done + 1);
    return cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned int flags) {
    (void)flags;
    if (event->stream)
        enqueue_op(s, (op){.stream = event->stream, .at = event->at});
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    run_all();
    return cudaSuccess;
}

/* ---------------------------------------------------------------- memory */

#define TOTAL ((size_t)8 << 30)
enum { AREAS_MAX = 4096 };
static struct area {
    char *p;
    size_t n_byte;
    enum cudaMemoryType type;
} areas[AREAS_MAX];
static size_t n_used;

/* Whoever reads memory before it is written sees nonsense: pages of a file of it, which cost nothing until they are
 * written. */
enum { NONSENSE_SIZE = 1 << 20 };

static int nonsense_file(void) {
    static int file = -1;
    static char text[NONSENSE_SIZE];
    if (file >= 0)
        return file;
    memset(text, 0x7f, sizeof text);
    file = memfd_create("nonsense", MFD_CLOEXEC);
    if (file < 0 || write(file, text, sizeof text) != (ssize_t)sizeof text)
        double_die("no file of nonsense");
    return file;
}

static size_t whole_nonsense(size_t n_byte) {
    return (n_byte / NONSENSE_SIZE + 1) * NONSENSE_SIZE;
}

static char *nonsense(size_t n_byte) {
    const size_t size = whole_nonsense(n_byte);
    char *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        double_die("no memory");
    for (size_t at = 0; at < size; at += NONSENSE_SIZE)
        if (mmap(p + at, NONSENSE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, nonsense_file(), 0) ==
            MAP_FAILED)
            double_die("no memory");
    return p;
}

static cudaError_t area_open(void **out, size_t n_byte, enum cudaMemoryType type) {
    for (int i = 0; i < AREAS_MAX; i++) {
        if (areas[i].p)
            continue;
        *out = areas[i].p = nonsense(n_byte);
        areas[i].n_byte = n_byte;
        areas[i].type = type;
        n_used += type == cudaMemoryTypeDevice ? n_byte : 0;
        return cudaSuccess;
    }
    return cudaErrorMemoryAllocation;
}

/* All streams first, as cudaFree does. */
static cudaError_t area_close(void *p) {
    run_all();
    for (int i = 0; i < AREAS_MAX && p; i++) {
        if (areas[i].p != p)
            continue;
        n_used -= areas[i].type == cudaMemoryTypeDevice ? areas[i].n_byte : 0;
        munmap(p, whole_nonsense(areas[i].n_byte));
        areas[i] = (struct area){0};
        return cudaSuccess;
    }
    return p ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total) {
    *n_total = TOTAL;
    *n_free = TOTAL - n_used;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t n_byte) {
    return area_open(out, n_byte, cudaMemoryTypeDevice);
}

cudaError_t cudaFree(void *p) {
    return area_close(p);
}

cudaError_t cudaHostAlloc(void **out, size_t n_byte, unsigned int flags) {
    (void)flags;
    return area_open(out, n_byte, cudaMemoryTypeHost);
}

cudaError_t cudaFreeHost(void *p) {
    return area_close(p);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *p) {
    *out = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered};
    for (int i = 0; i < AREAS_MAX; i++)
        if (areas[i].p && (const char *)p >= areas[i].p && (const char *)p < areas[i].p + areas[i].n_byte)
            out->type = areas[i].type;
    return cudaSuccess;
}

/* A copy of from, or `value` where there is no from: n_row rows of n_byte, of which `to` has one every ld bytes. */
typedef struct transfer {
    char *to;
    const char *from;
    int value;
    size_t n_byte, ld, n_row;
} transfer;

/* Whole pages of zeros are new ones. */
static void set(char *to, int value, size_t n_byte) {
    const size_t page = 4096, before = -(uintptr_t)to % page;
    if (value != 0 || n_byte < NONSENSE_SIZE) {
        memset(to, value, n_byte);
        return;
    }
    const size_t whole = (n_byte - before) / page * page;
    memset(to, 0, before);
    if (mmap(to + before, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        double_die("no memory");
    memset(to + before + whole, 0, n_byte - before - whole);
}

static void run_transfer(void *work) {
    const transfer *t = work;
    for (size_t r = 0; r < t->n_row; r++) {
        if (t->from)
            memcpy(t->to, t->from, t->n_byte);
        else
            set(t->to + r * t->ld, t->value, t->n_byte);
    }
    free(work);
}

static cudaError_t enqueue_transfer(cudaStream_t s, transfer t) {
    transfer *copy = double_memory(sizeof t);
    *copy = t;
    double_enqueue(s, run_transfer, copy);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_byte, enum cudaMemcpyKind kind, cudaStream_t s) {
    struct cudaPointerAttributes a, b;
    cudaPointerGetAttributes(&a, to);
    cudaPointerGetAttributes(&b, from);
    if ((kind == cudaMemcpyHostToDevice && b.type != cudaMemoryTypeHost) ||
        (kind == cudaMemcpyDeviceToHost && a.type != cudaMemoryTypeHost))
        double_die("a copy that would make the host wait: its memory is not pinned");
    if ((kind != cudaMemcpyDeviceToHost && a.type != cudaMemoryTypeDevice) ||
        (kind != cudaMemcpyHostToDevice && b.type != cudaMemoryTypeDevice))
        double_die("a copy between host and device under another name");
    return enqueue_transfer(s, (transfer){.to = to, .from = from, .n_byte = n_byte, .n_row = 1});
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n_byte, cudaStream_t s) {
    return enqueue_transfer(s, (transfer){.to = p, .value = value, .n_byte = n_byte, .n_row = 1});
}

cudaError_t cudaMemset2DAsync(void *p, size_t ld, int value, size_t width, size_t n_row, cudaStream_t s) {
    return enqueue_transfer(s, (transfer){.to = p, .value = value, .n_byte = width, .ld = ld, .n_row = n_row});
}

/* ---------------------------------------------------------------- the device */

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n) {
    *n = 2;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = device == 0 ? 8 : 9;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = 163 << 10;
        return cudaSuccess;
    default:
        double_die("an attribute that is not known here");
    }
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "double %d", device);
    out->major = device == 0 ? 8 : 9;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    return device >= 0 && device < 2 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}

#define NAME(error)                                                                                                    \
    case error:                                                                                                        \
        return #error
const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        NAME(cudaErrorInvalidValue);
        NAME(cudaErrorIllegalAddress);
        NAME(cudaErrorMemoryAllocation);
        NAME(cudaErrorECCUncorrectable);
        NAME(cudaErrorSystemDriverMismatch);
    default:
        return "another error";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    return cudaGetErrorName(error);
}
