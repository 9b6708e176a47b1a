/* host.h: kernels/ run on the CPU, as tests see it: C. */
#ifndef GROUTER_HOST_H
#define GROUTER_HOST_H

#ifdef __cplusplus
extern "C" {
#endif

/* In which order blocks, and the threads of a block, run from now on. */
typedef enum gr_host_order { GR_HOST_RISING, GR_HOST_FALLING } gr_host_order;
void gr_host_set_order(gr_host_order order);

/* Launches are handed to `queue` from now on, to be run when it likes; NULL: they run at once. `run` frees the work. */
void gr_host_queue_launches(void (*queue)(void *stream, void (*run)(void *work), void *work));

#ifdef __cplusplus
}
#endif

#endif
