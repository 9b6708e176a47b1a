/* The command table, the printing of errors and the exit status. Nothing else exits. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "grouter/config.h"

static const gr_command *const commands[] = {
    &gr_cmd_tokens,
    &gr_cmd_route,
    &gr_cmd_place,
    &gr_cmd_train,
    &gr_cmd_distill,
    &gr_cmd_tune,
    &gr_cmd_fold,
    &gr_cmd_eval,
    &gr_cmd_bench,
    &gr_cmd_inspect,
};
enum { N_COMMAND = sizeof commands / sizeof *commands };

static const char exit_codes[] =
    "exit codes:\n"
    "  0   done\n"
    "  2   command line wrong\n"
    "  64  config wrong, ranks that do not fit the experts, or run.dir is no run folder, in use, or of another run\n"
    "  65  token file, route table, router, mapping or placement malformed, absent, changed, or not a pair\n"
    "  66  weights or checkpoints unusable or not of this config\n"
    "  69  memory, disk or a device is not there\n"
    "  70  a bug in grouter-train\n"
    "  71  loss or gradients were not finite beyond what is tolerated\n"
    "  73  another rank or the communication between ranks was lost\n"
    "  74  storage failed: I/O error, full disk or quota, read-only or unwritable place\n"
    "  85  asked to stop by a signal; a checkpoint holds the run: run the command again\n";

static void print_help(FILE *out) {
    fputs("usage: grouter-train COMMAND [arguments]\n"
          "       mpirun -n R grouter-train COMMAND [arguments]\n"
          "\n"
          "Trains Mixture-of-Experts models whose routing is fixed before training.\n"
          "\n"
          "commands:\n",
        out);
    for (int i = 0; i < N_COMMAND; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n"
          "  grouter-train COMMAND --help   options and an example\n"
          "  grouter-train --version        version, compiler, backends, libraries\n"
          "  grouter-train --config-keys    every key of a config, as the table in configs/README.md\n"
          "\n",
        out);
    fputs(exit_codes, out);
}

GR_MUST static gr_err fail_unknown(const char *name) {
    static const char *const options[] = {"--help", "--version", "--config-keys"};
    gr_nearest nearest = {.to = name};
    for (int i = 0; i < N_COMMAND; i++)
        gr_nearest_offer(&nearest, commands[i]->name);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        gr_nearest_offer(&nearest, options[i]);
    if (nearest.name)
        return gr_fail(GR_USAGE, "unknown command \"%s\": did you mean \"%s\"?", name, nearest.name);
    return gr_fail(GR_USAGE, "unknown command \"%s\"; see grouter-train --help", name);
}

/* True if an argument before "--" asks for help. */
static bool wants_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0)
            return true;
    return false;
}

GR_MUST static gr_err run_command(int argc, char **argv) {
    for (int i = 0; i < N_COMMAND; i++) {
        if (strcmp(argv[0], commands[i]->name) != 0)
            continue;
        if (!wants_help(argc, argv))
            return commands[i]->run(argc, argv);
        printf("%s\n%s", commands[i]->help, exit_codes);
        return GR_OK;
    }
    return fail_unknown(argv[0]);
}

GR_MUST static gr_err run(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return gr_fail(GR_USAGE, "expected a command, got none");
    }
    const char *name = argv[1];
    bool help = strcmp(name, "--help") == 0, version = strcmp(name, "--version") == 0;
    if (!help && !version && strcmp(name, "--config-keys") != 0)
        return run_command(argc - 1, argv + 1);
    if (argc > 2)
        return gr_fail(GR_USAGE, "%s: expected nothing after it, got \"%s\"", name, argv[2]);
    if (help)
        print_help(stdout);
    else if (version)
        gr_version_print(stdout);
    else
        gr_config_print_keys(stdout);
    return GR_OK;
}

/* Results that did not reach their reader are a failure. */
GR_MUST static gr_err finish_output(void) {
    bool failed_before = ferror(stdout);
    errno = 0;
    if (fflush(stdout) == 0 && !failed_before)
        return GR_OK;
    return gr_fail(
        GR_STORAGE, "standard output: results were lost: %s", errno ? strerror(errno) : "an earlier write failed");
}

int main(int argc, char **argv) {
    setlocale(LC_ALL, "C");
    signal(SIGPIPE, SIG_IGN); /* a reader that left is an error of writing, not the end of a run, */
    signal(SIGXFSZ, SIG_IGN); /* and so is a file that has reached the limit of its size */
    gr_err err = run(argc, argv);
    if (!err)
        err = finish_output();
    if (!err)
        return 0;
    fflush(stdout);
    gr_error_print(stderr, err);
    fflush(stderr);
    _exit((int)err); /* exit handlers of MPI would wait for the other ranks */
}
