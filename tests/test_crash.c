/* No crash, power loss or storage error loses a checkpoint that was reported durable: a small run is stopped or
 * disturbed at each of its file calls, and a new process must find, resume and go on. By default at every 10th call,
 * else at every Nth of --every N; --seed N chooses which, and how power losses fall out. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broken_io.h"
#include "crash_run.h"
#include "lying_disk.h"
#include "lying_io.h"

enum { POWER_SEEDS = 3, LASTING_SAVES = 2, COMPLAINTS_SHOWN = 10 };

typedef struct disturbance {
    const char *name;
    lying_fault fault;
    int error;
    int n_seed;
} disturbance;

static const disturbance crashes[] = {
    {"kill before the call", LYING_KILL, 0, 1},
    {"kill after half a write", LYING_KILL_HALF, 0, 1},
    {"power loss", LYING_POWER_LOSS, 0, POWER_SEEDS},
};

static const disturbance errors[] = {
    {"ENOSPC once", LYING_ERROR, ENOSPC, 1},
    {"ENOSPC for two saves", LYING_ERROR_ON, ENOSPC, 1},
    {"EIO once", LYING_ERROR, EIO, 1},
    {"EIO for two saves", LYING_ERROR_ON, EIO, 1},
    {"EINTR", LYING_ERROR, EINTR, 1},
    {"short transfer once", LYING_SHORT, 0, 1},
    {"short transfers for two saves", LYING_SHORT_ON, 0, 1},
    {"one wrong bit written", LYING_ROT, 0, 1},
};

enum { N_CRASH = sizeof crashes / sizeof *crashes, N_ERROR = sizeof errors / sizeof *errors };

typedef struct point {
    const disturbance *what;
    uint64_t at, seed;
    broken_kind broken;
} point;

/* What a child has seen, in memory it shares: it outlives its death. */
typedef struct witness {
    int64_t acknowledged;
    int n_acknowledged;
    uint64_t n_call;
    uint8_t trace[LYING_TRACE_MAX];
    char complaint[512];
} witness;

static witness *seen;
static crash_run *run;
static char root[64], folder[80];
static uint64_t every = 10; /* calls: of these, one is tried */
static uint64_t first_seed = 1;

static const disturbance undisturbed = {"nothing", LYING_NONE, 0, 1};

/* ---- the run that is disturbed */

typedef struct life {
    const point *p;
    gr_io *io;
    int n_struck; /* saves that ended since the fault struck */
} life;

/* EINTR and short transfers are no errors: the save must succeed. */
static bool may_fail(const life *l) {
    const disturbance *d = l->p->what;
    switch (d->fault) {
    case LYING_ERROR:
        return d->error != EINTR && lying_io_struck(l->io) && l->n_struck < 1;
    case LYING_ERROR_ON:
        return lying_io_struck(l->io) && l->n_struck < LASTING_SAVES;
    case LYING_ROT:
        return lying_io_struck(l->io);
    default:
        return false;
    }
}

static void witness_save(void *context, int64_t step, gr_err err) {
    life *l = context;
    if (!err) {
        seen->acknowledged = step;
        seen->n_acknowledged++;
    } else if (!may_fail(l)) {
        snprintf(seen->complaint, sizeof seen->complaint, "saving step %lld: error %d: %.400s", (long long)step,
            (int)err, gr_error_text());
    } else if (err != GR_STORAGE) {
        snprintf(seen->complaint, sizeof seen->complaint, "saving step %lld: expected error 74, got %d: %.400s",
            (long long)step, (int)err, gr_error_text());
    }
    if (!lying_io_struck(l->io))
        return;
    if (l->p->what->fault == LYING_ROT)
        _exit(0); /* what retention has just done shows best now */
    if (++l->n_struck == LASTING_SAVES)
        lying_io_heal(l->io);
}

/* Ends with a power loss where nothing ended it before: what an error left unsynced, and nobody noticed, shows. */
_Noreturn static void live(const point *p) {
    gr_io *lying = lying_io_open(&(lying_options){.under = gr_io_system(),
        .root = root,
        .fault = p->what->fault,
        .at = p->at,
        .error = p->what->error,
        .seed = p->seed});
    gr_io *io = p->broken ? broken_io_open(p->broken, lying, CRASH_KEEP_LAST) : lying;
    life l = {.p = p, .io = lying};
    gr_err err = crash_run_live(run, io, folder, CRASH_STEPS, witness_save, &l);
    if (err && !may_fail(&l))
        snprintf(seen->complaint, sizeof seen->complaint, "starting: error %d: %.400s", (int)err, gr_error_text());
    seen->n_call = lying_io_calls(lying);
    memcpy(seen->trace, lying_io_trace(lying), sizeof seen->trace);
    if (p->what->fault == LYING_NONE)
        _exit(0);
    lying_io_lose_power(lying);
}

/* ---- judging */

/* Waits for a child that is killed or exits with 0; anything else is a complaint of its own. */
static void child_wait(pid_t child) {
    int status = 0;
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    bool as_planned = WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0;
    if (!as_planned && !seen->complaint[0])
        snprintf(seen->complaint, sizeof seen->complaint, "a process ended with status %#x", (unsigned)status);
}

static void child_live(const point *p) {
    pid_t child = fork();
    if (child == 0)
        live(p);
    child_wait(child);
}

static void child_recover(const point *p) {
    crash_expected e = {.acknowledged = seen->acknowledged,
        .n_least = seen->n_acknowledged < CRASH_KEEP_LAST ? seen->n_acknowledged : CRASH_KEEP_LAST,
        .all_whole = p->what->fault != LYING_ROT,
        .refused = p->what->fault == LYING_ROT && seen->acknowledged == 0};
    pid_t child = fork();
    if (child == 0)
        _exit(!crash_run_recovers(run, root, folder, &e, seen->complaint));
    child_wait(child);
}

/* Lives through the points one after the other, then recovers. */
static bool survives(const point *p, int n) {
    lying_folder_clear(root);
    *seen = (witness){0};
    for (int i = 0; i < n && !seen->complaint[0]; i++)
        child_live(&p[i]);
    if (!seen->complaint[0])
        child_recover(&p[n - 1]);
    return !seen->complaint[0];
}

static void complain(const point *p, int n, int n_before) {
    if (n_before >= COMPLAINTS_SHOWN)
        return;
    for (int i = 0; i < n; i++)
        print_message("%s%s at call %llu, seed %llu", i ? ", then " : "", p[i].what->name, (unsigned long long)p[i].at,
            (unsigned long long)p[i].seed);
    print_message(": acknowledged step %lld; %s\n", (long long)seen->acknowledged, seen->complaint);
}

/* Calls of an undisturbed run. */
static uint64_t calls(broken_kind broken, uint8_t trace[LYING_TRACE_MAX]) {
    assert_true(survives(&(point){.what = &undisturbed, .broken = broken}, 1));
    assert_int_equal(seen->acknowledged, CRASH_STEPS);
    assert_in_range(seen->n_call, 1, LYING_TRACE_MAX);
    memcpy(trace, seen->trace, LYING_TRACE_MAX);
    return seen->n_call;
}

typedef struct tally {
    int n_point, n_bad;
} tally;

/* At every call, or every Nth, that the disturbance can strike. */
static tally enumerate(const disturbance *d, broken_kind broken, bool stop_at_first) {
    static uint8_t trace[LYING_TRACE_MAX];
    uint64_t n_call = calls(broken, trace), n_strike = 0;
    uint64_t stride = broken && every > 10 ? 10 : every; /* or a broken writer might not be caught */
    tally t = {0};
    for (uint64_t at = 0; at < n_call; at++) {
        if (!lying_fault_strikes(d->fault, d->error, trace[at]) || (n_strike++ + first_seed) % stride)
            continue;
        for (int i = 0; i < d->n_seed && !(stop_at_first && t.n_bad); i++) {
            point p = {.what = d, .at = at, .broken = broken};
            /* power losses meet every kind of seed at each call, the other disturbances one */
            p.seed =
                POWER_SEEDS * (first_seed * LYING_TRACE_MAX + at) + (d->n_seed > 1 ? (uint64_t)i : at % POWER_SEEDS);
            t.n_point++;
            if (survives(&p, 1))
                continue;
            if (!stop_at_first)
                complain(&p, 1, t.n_bad);
            t.n_bad++;
        }
    }
    return t;
}

static void enumerate_all(const disturbance *list, int n) {
    static uint8_t trace[LYING_TRACE_MAX];
    uint64_t n_call = calls(BROKEN_NOT, trace);
    int n_bad = 0;
    for (int i = 0; i < n; i++) {
        double start_s = gr_time_s();
        tally t = enumerate(&list[i], BROKEN_NOT, false);
        print_message("%s: %llu calls, %d points, %d bad, %.1f s\n", list[i].name, (unsigned long long)n_call,
            t.n_point, t.n_bad, gr_time_s() - start_s);
        n_bad += t.n_bad;
    }
    assert_int_equal(n_bad, 0);
}

/* ---- tests */

static void kills_and_power_losses_lose_no_acknowledged_save(void **state) {
    (void)state;
    enumerate_all(crashes, N_CRASH);
}

static void errors_cost_no_older_save_and_training_goes_on(void **state) {
    (void)state;
    enumerate_all(errors, N_ERROR);
}

static void a_second_crash_while_resuming_loses_nothing_either(void **state) {
    (void)state;
    static uint8_t trace[LYING_TRACE_MAX];
    uint32_t n_call = (uint32_t)calls(BROKEN_NOT, trace);
    int n = every == 1 ? 200 : 20, n_bad = 0;
    double start_s = gr_time_s();
    uint64_t stream = gr_stream_id("pairs of crashes");
    for (int i = 0; i < n; i++) {
        point p[2];
        for (uint64_t k = 0; k < 2; k++) {
            uint64_t draw = ((uint64_t)i * 2 + k) * 3;
            /* half of the second crashes come early: while resuming, not in the saves that follow */
            uint32_t n_at = k == 1 && i % 2 ? n_call / CRASH_STEPS : n_call;
            p[k] = (point){.what = &crashes[gr_random_below(first_seed, stream, draw, N_CRASH)],
                .at = gr_random_below(first_seed, stream, draw + 1, n_at),
                .seed = gr_random_u64(first_seed, stream, draw + 2)};
        }
        if (survives(p, 2))
            continue;
        complain(p, 2, n_bad);
        n_bad++;
    }
    print_message("pairs of crashes: %d points, %d bad, %.1f s\n", n, n_bad, gr_time_s() - start_s);
    assert_int_equal(n_bad, 0);
}

static void every_broken_writer_is_caught(void **state) {
    (void)state;
    static const disturbance rot = {"one wrong bit written", LYING_ROT, 0, 1};
    for (broken_kind kind = BROKEN_NOT + 1; kind < BROKEN_N; kind++) {
        int n_point = 0, n_bad = 0;
        for (int i = 0; i <= N_CRASH && n_bad == 0; i++) {
            tally t = enumerate(i < N_CRASH ? &crashes[i] : &rot, kind, true);
            n_point += t.n_point;
            n_bad += t.n_bad;
            if (n_bad)
                print_message("%s: caught at point %d (%s): %s\n", broken_name(kind), n_point,
                    i < N_CRASH ? crashes[i].name : rot.name, seen->complaint);
        }
        assert_int_equal(n_bad, 1);
    }
}

static int setup(void **state) {
    (void)state;
    strcpy(root, "crash.XXXXXX");
    if (!mkdtemp(root))
        return -1;
    snprintf(folder, sizeof folder, "%s/checkpoints", root);
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    gr_log_set(GR_LOG_QUIET);
    run = crash_run_open();
    print_message(
        "%zu bytes of weights and moments, seed %llu\n", crash_run_bytes(run), (unsigned long long)first_seed);
    return seen == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state) {
    (void)state;
    crash_run_close(run);
    munmap(seen, sizeof *seen);
    lying_folder_remove(root);
    return 0;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--every") && i + 1 < argc)
            every = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            first_seed = strtoull(argv[++i], NULL, 10);
        else
            return fprintf(stderr, "usage: test_crash [--every N] [--seed N]\n"), 2;
    }
    if (every == 0)
        return fprintf(stderr, "--every: expected 1 or more\n"), 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kills_and_power_losses_lose_no_acknowledged_save),
        cmocka_unit_test(errors_cost_no_older_save_and_training_goes_on),
        cmocka_unit_test(a_second_crash_while_resuming_loses_nothing_either),
        cmocka_unit_test(every_broken_writer_is_caught),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
