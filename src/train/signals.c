/* Being asked to stop: SIGUSR1, SIGUSR2, SIGTERM and SIGINT raise a flag that the run looks at between steps. The flag
 * and the parting words are the process's, as signals are. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

static volatile sig_atomic_t asked;
static char parting[GR_PATH_MAX + 128];

static void on_signal(int number) {
    (void)number;
    if (asked) { /* asked twice: no time for a save */
        ssize_t ignored = write(STDERR_FILENO, parting, strlen(parting));
        (void)ignored;
        _exit(GR_PREEMPTED);
    }
    asked = 1;
}

void gr_stop_listen(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    const int numbers[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
    gr_stop_remember(-1);
}

void gr_stop_remember(int64_t step) {
    char text[sizeof parting];
    if (step < 0)
        snprintf(text, sizeof text, "stopped at once; no checkpoint of this run is durable yet\n");
    else
        snprintf(text, sizeof text, "stopped at once; the newest durable checkpoint is that of step %lld\n",
            (long long)step);
    memcpy(parting, text, sizeof parting);
}

gr_err gr_stop_agreed(gr_comm *comm, bool *stop) {
    uint64_t n_asked = asked != 0;
    GR_TRY(comm->sum(comm, GR_WORLD, GR_U64, &n_asked, 1));
    *stop = n_asked > 0;
    return GR_OK;
}
