/* grouter-train distill: a trained source -> a Grouter that routes like it. */
#include "cmd.h"
#include "fidelity.h"
#include "training.h"

static void print_result(const gr_config *config, const gr_train_result *r) {
    char text[33];
    gr_fidelity_print(&r->fidelity_first, &r->fidelity, "the teacher");
    if (r->fidelity.n_token > 0)
        printf("MaxVio of its choices %.4f\n", r->max_vio);
    printf(
        "run folder %s: grouter.safetensors, metrics.jsonl, config.resolved.json, environment.json\n", config->run.dir);
    printf("router hash %s\n", gr_hash128_text(r->parameter_hash, text));
}

static gr_err run_distill(int argc, char **argv) {
    return gr_training_command(GR_CONFIG_DISTILL, print_result, argc, argv);
}

const gr_command gr_cmd_distill = {
    .name = "distill",
    .summary = "make a Grouter from a trained Mixture-of-Experts model",
    .help =
        "usage: grouter-train distill CONFIG [--set KEY=VALUE]... [--override KEY]... [--fresh]\n"
        "       grouter-train distill CONFIG --dry-run [--ranks R] [--memory GIB]\n"
        "       mpirun -n R grouter-train distill CONFIG ...\n"
        "\n"
        "Trains a Grouter, the network that CONFIG's model{} describes, to score experts as the router of layer\n"
        "distill.teacher_layer of distill.teacher does (KL over all experts), from token files alone. The source is\n"
        "a run's model.safetensors or a folder in Hugging Face's format (Qwen3-MoE); only what that router needs is\n"
        "read. Fills run.dir: grouter.safetensors (network and settings), metrics.jsonl and the rest as train does;\n"
        "goes on, stops and saves as train does. On data.valid it reports the divergence, how often the K experts\n"
        "are the same, the share of experts in common and the cosine of the gates.\n"
        "\n" GR_TRAINING_OPTIONS "\n"
        "Masks that see ahead (model.mask bidirectional, bidirectional-doc) make routes that depend on future\n"
        "tokens; `grouter-train eval --leak` measures it.\n"
        "\n"
        "example:\n"
        "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train distill configs/quickstart/distill.json\n",
    .run = run_distill,
};
