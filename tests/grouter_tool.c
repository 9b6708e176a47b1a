/* grouter_tool.c: for scripts: a small Grouter of random weights.
 *   grouter_tool OUT SEED EXPERTS TOP_K SCALE MASK
 * Byte-level vocabulary, 1 block of width 16; MASK "none" gives a context-free one. Its bias
 * makes bias routing choose among the first half of the experts alone. */
#include "grouter/grouter.h"

#include <stdlib.h>
#include <string.h>

static gr_mask mask_of(const char *name) {
    for (int m = 0; m < GR_N_MASK; m++)
        if (strcmp(gr_mask_name((gr_mask)m), name) == 0)
            return (gr_mask)m;
    fprintf(stderr, "no mask %s\n", name);
    exit(2);
}

static gr_grouter_spec spec_of(char **argv) {
    gr_mask mask = mask_of(argv[6]);
    gr_model_config network = {.vocab_size = GR_BYTE_VOCAB,
        .hidden_size = 16,
        .num_labels = (int)strtol(argv[3], NULL, 10),
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000,
        .initializer_range = 0.5,
        .head = GR_HEAD_SCORES,
        .body = mask == GR_MASK_NONE ? GR_BODY_LINEAR : GR_BODY_ATTENTION,
        .mask = mask,
        .position = GR_POSITION_WINDOW,
        .document_end = GR_BYTE_EOD,
        .zero_token = -1};
    if (mask != GR_MASK_NONE) {
        network.num_hidden_layers = network.first_k_dense_replace = 1;
        network.num_attention_heads = network.num_key_value_heads = 2;
        network.head_dim = 8;
        network.intermediate_size = 32;
    }
    return (gr_grouter_spec){.network = network,
        .K = (uint32_t)strtoul(argv[4], NULL, 10),
        .scale = strtof(argv[5], NULL),
        .made = "a test"};
}

int main(int argc, char **argv) {
    if (argc != 7)
        return 2;
    gr_grouter g;
    gr_grouter_spec spec = spec_of(argv);
    gr_err e = gr_grouter_make(&g, &spec);
    if (!e)
        e = gr_params_init(&g.params, strtoull(argv[2], NULL, 10), gr_weights_whole(&g.params, g.weights));
    if (!e) {
        float *bias = g.weights + gr_params_find(&g.params, "score.bias")->offset;
        for (int i = 0; i < spec.network.num_labels; i++)
            bias[i] = i < spec.network.num_labels / 2 ? 100.0f : 0.0f;
        e = gr_grouter_save(&g, argv[1]);
        gr_grouter_close(&g);
    }
    if (e)
        gr_error_print(stderr, e);
    return e;
}
