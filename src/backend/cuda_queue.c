/* cuda_queue.c: streams of backend cuda, their order, and the host's waits for them. */
#include "cuda.h"

#include <time.h>

gr_err gr_cuda_queues_open(gr_cuda *s) {
    int least, greatest;
    GR_TRY(gr_cuda_check((int)cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream priorities"));
    for (int q = 0; q < GR_CUDA_QUEUES; q++) {
        /* What other ranks wait for goes first; routes of a later micro-batch have time. */
        const int priority = q == GR_LANE_COMM ? greatest : least;
        GR_TRY(gr_cuda_check(
            (int)cudaStreamCreateWithPriority(&s->queue[q], cudaStreamNonBlocking, priority), "opening a stream"));
        GR_TRY(gr_cuda_check((int)cudaEventCreateWithFlags(&s->mark[q], cudaEventDisableTiming), "opening an event"));
    }
    return GR_OK;
}

void gr_cuda_queues_close(gr_cuda *s) {
    for (int q = GR_CUDA_QUEUES - 1; q >= 0; q--) {
        if (s->mark[q])
            cudaEventDestroy(s->mark[q]);
        if (s->queue[q])
            cudaStreamDestroy(s->queue[q]);
    }
}

/* `waiting` goes on after what `queue` has now. */
static int order(gr_cuda *s, int waiting, int queue) {
    const cudaError_t status = cudaEventRecord(s->mark[queue], s->queue[queue]);
    return status ? (int)status : (int)cudaStreamWaitEvent(s->queue[waiting], s->mark[queue], 0);
}

gr_err gr_cuda_wait(gr_backend *b, gr_lane waiting, gr_lane for_lane) {
    return waiting == for_lane ? GR_OK
                               : gr_cuda_check(order(b->state, (int)waiting, (int)for_lane), "waiting for a lane");
}

void *gr_cuda_lane_native(gr_backend *b, gr_lane lane) {
    return ((gr_cuda *)b->state)->queue[lane];
}

gr_err gr_cuda_fork(gr_cuda *s, gr_lane lane, int n_worker) {
    int status = (int)cudaEventRecord(s->mark[lane], s->queue[lane]);
    for (int w = 0; w < n_worker && !status; w++)
        status = (int)cudaStreamWaitEvent(s->queue[GR_N_LANE + w], s->mark[lane], 0);
    return gr_cuda_check(status, "starting workers");
}

gr_err gr_cuda_join(gr_cuda *s, gr_lane lane, int n_worker) {
    int status = 0;
    for (int w = 0; w < n_worker && !status; w++)
        status = order(s, (int)lane, GR_N_LANE + w);
    return gr_cuda_check(status, "waiting for workers");
}

/* Asks `watch` every 50 us, which is less than what a wait costs that has to sleep. */
static gr_err watched_wait(gr_backend *b, cudaEvent_t event) {
    const double start = gr_time_s();
    const struct timespec pause = {.tv_nsec = 50000};
    cudaError_t status;
    while ((status = cudaEventQuery(event)) == cudaErrorNotReady) {
        GR_TRY(b->watch(b->watched, gr_time_s() - start));
        (void)nanosleep(&pause, NULL); /* woken early, it asks early */
    }
    return gr_cuda_check((int)status, "waiting for the GPU");
}

gr_err gr_cuda_wait_event(gr_backend *b, cudaEvent_t event) {
    b->n_sync++;
    if (b->watch)
        return watched_wait(b, event);
    return gr_cuda_check((int)cudaEventSynchronize(event), "waiting for the GPU");
}

gr_err gr_cuda_wait_queue(gr_backend *b, int queue) {
    gr_cuda *s = b->state;
    GR_TRY(gr_cuda_check((int)cudaEventRecord(s->mark[queue], s->queue[queue]), "waiting for the GPU"));
    return gr_cuda_wait_event(b, s->mark[queue]);
}

/* One wait: of COMPUTE, once it has been told to follow the others. */
gr_err gr_cuda_sync(gr_backend *b) {
    GR_TRY(gr_cuda_wait(b, GR_LANE_COMPUTE, GR_LANE_COMM));
    GR_TRY(gr_cuda_wait(b, GR_LANE_COMPUTE, GR_LANE_SIDE));
    return gr_cuda_wait_queue(b, GR_LANE_COMPUTE);
}

gr_err gr_cuda_sync_lane(gr_backend *b, gr_lane lane) {
    return gr_cuda_wait_queue(b, (int)lane);
}
