/* Being asked to stop. The signals are blocked in every thread and taken by one that only waits for them: a handler
 * would run on the stack of whatever it interrupts, and the matrix product kernels that oneDNN generates keep data
 * beyond the stack pointer (seen with 2.6.3: a signal in dnnl_sgemm corrupted the heap). Flag and counter are the
 * process's, as signals are. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

static sigset_t awaited;
static atomic_bool asked;
static _Atomic int64_t durable_step = -1;

/* Asked twice: no time for a save. */
_Noreturn static void leave_at_once(void) {
    char text[128];
    int64_t step = durable_step;
    int n = step < 0 ? snprintf(text, sizeof text, "stopped at once; no checkpoint of this run is durable yet\n")
                     : snprintf(text, sizeof text,
                           "stopped at once; the newest durable checkpoint is that of step %lld\n", (long long)step);
    ssize_t ignored = write(STDERR_FILENO, text, (size_t)n);
    (void)ignored;
    _exit(GR_PREEMPTED);
}

static void *wait_for_signals(void *none) {
    int number;
    while (sigwait(&awaited, &number) == 0)
        if (atomic_exchange(&asked, true))
            leave_at_once();
    return none;
}

gr_err gr_stop_listen(void) {
    sigemptyset(&awaited);
    const int numbers[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaddset(&awaited, numbers[i]);
    pthread_t thread;
    int failed = pthread_sigmask(SIG_BLOCK, &awaited, NULL);
    if (!failed)
        failed = pthread_create(&thread, NULL, wait_for_signals, NULL);
    if (failed)
        return gr_fail(GR_RESOURCE, "signals: the thread that waits for them cannot be started: %s", strerror(failed));
    pthread_detach(thread);
    return GR_OK;
}

void gr_stop_remember(int64_t step) {
    durable_step = step;
}

gr_err gr_stop_agreed(gr_comm *comm, bool *stop) {
    uint64_t n_asked = asked;
    GR_TRY(comm->sum(comm, GR_WORLD, GR_U64, &n_asked, 1));
    *stop = n_asked > 0;
    return GR_OK;
}
