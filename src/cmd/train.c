/* grouter-train train: config -> run folder with metrics and weights. */
#include <math.h>

#include "cmd.h"
#include "training.h"

/* "5.5751 -> 1.7702", or the last alone when the run did not begin here. */
static void print_losses(double first, double last, const char *unit) {
    if (isnan(last))
        return;
    printf("validation loss ");
    if (!isnan(first))
        printf("%.4f -> ", first);
    printf("%.4f nats per %s\n", last, unit);
}

static void print_result(const gr_config *config, const gr_train_result *r) {
    print_losses(r->loss_valid_first, r->loss_valid, "token");
    print_losses(r->nats_per_byte_valid_first, r->nats_per_byte_valid, "byte");
    printf(
        "run folder %s: model.safetensors, metrics.jsonl, config.resolved.json, environment.json\n", config->run.dir);
    char text[33];
    printf("parameter hash %s\n", gr_hash128_text(r->parameter_hash, text));
}

static gr_err run_train(int argc, char **argv) {
    return gr_training_command(GR_CONFIG_TRAIN, print_result, argc, argv);
}

const gr_command gr_cmd_train = {
    .name = "train",
    .summary = "train a Mixture-of-Experts model from token files and route tables",
    .help =
        "usage: grouter-train train CONFIG [--set KEY=VALUE]... [--override KEY]... [--fresh]\n"
        "       grouter-train train CONFIG --dry-run [--ranks R] [--memory GIB]\n"
        "       mpirun -n R grouter-train train CONFIG ...\n"
        "\n"
        "Trains the model that CONFIG (JSON; every key is listed in configs/README.md) describes and fills the run\n"
        "folder run.dir: metrics.jsonl (one object per step), model.safetensors (final weights, Hugging Face names),\n"
        "config.resolved.json and environment.json. The last line on stdout is the hash of the final weights.\n"
        "\n" GR_TRAINING_OPTIONS "\n"
        "The same command again goes on from the newest checkpoint in run.dir (checkpoint.every_steps), on any number "
        "of\n"
        "ranks. On SIGUSR1, SIGUSR2, SIGTERM or SIGINT the step is finished, a checkpoint saved, and the exit code is "
        "85.\n"
        "Pin threads per rank with OMP_NUM_THREADS.\n"
        "\n"
        "example:\n"
        "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train train configs/quickstart/train.json --set train.steps=100\n"
        "  grouter-train train configs/paper/mini-qwen3.json --dry-run --ranks 8 --memory 141\n",
    .run = run_train,
};
