/* grouter-train tune: a Grouter -> one that loads its experts evenly. */
#include "cmd.h"
#include "fidelity.h"
#include "training.h"

static void print_result(const gr_config *config, const gr_train_result *r) {
    char text[33];
    if (r->fidelity.n_token > 0) {
        if (r->fidelity_first.n_token > 0)
            printf("MaxVio %.4f -> %.4f\n", r->max_vio_first, r->max_vio);
        else
            printf("MaxVio %.4f\n", r->max_vio);
    }
    gr_fidelity_print(&r->fidelity_first, &r->fidelity, "the untuned Grouter");
    printf(
        "run folder %s: grouter.safetensors, metrics.jsonl, config.resolved.json, environment.json\n", config->run.dir);
    printf("router hash %s\n", gr_hash128_text(r->parameter_hash, text));
}

static gr_err run_tune(int argc, char **argv) {
    return gr_training_command(GR_CONFIG_TUNE, print_result, argc, argv);
}

const gr_command gr_cmd_tune = {
    .name = "tune",
    .summary = "balance a Grouter's load of the experts",
    .help =
        "usage: grouter-train tune CONFIG [--set KEY=VALUE]... [--override KEY]... [--fresh]\n"
        "       grouter-train tune CONFIG --dry-run [--ranks R] [--memory GIB]\n"
        "       mpirun -n R grouter-train tune CONFIG ...\n"
        "\n"
        "Tunes the Grouter tune.grouter until it loads its experts evenly: the score matrix by the gradient of the\n"
        "balance of each window (tune.mode scores), everything (full), or only the bias by the sign rule (bias; it\n"
        "takes effect with route --bias). Tuning moves the routes away from the teacher's: stop it early with\n"
        "tune.until_maxvio and eval.every_steps. Fills run.dir with the tuned grouter.safetensors; on data.valid it\n"
        "reports MaxVio, and how far the routes are from those of the untuned Grouter.\n"
        "\n" GR_TRAINING_OPTIONS "\n"
        "example:\n"
        "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train tune configs/quickstart/tune.json --set tune.until_maxvio=0.2\n",
    .run = run_tune,
};
