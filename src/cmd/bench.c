/* bench: parts of a step, and whole ones, measured. */
#include "bench.h"

#include <string.h>

#include "cmd.h"

typedef struct benchmark {
    const char *name;
    gr_err (*run)(int argc, char **argv);
} benchmark;

static const benchmark benchmarks[] = {{"kernels", gr_cmd_bench_kernels}, {"layer", gr_cmd_bench_layer},
    {"exchange", gr_cmd_bench_exchange}, {"step", gr_cmd_bench_step}};
enum { N_BENCHMARK = sizeof benchmarks / sizeof *benchmarks };

GR_MUST static gr_err fail_unknown(const char *what) {
    gr_nearest nearest = {.to = what};
    for (int i = 0; i < N_BENCHMARK; i++)
        gr_nearest_offer(&nearest, benchmarks[i].name);
    return gr_fail(GR_USAGE, "bench: expected kernels, layer, exchange or step as what to measure, got \"%s\"%s%s%s",
        what, nearest.name ? ": did you mean " : "", nearest.name ? nearest.name : "", nearest.name ? "?" : "");
}

static gr_err run(int argc, char **argv) {
    char name[32];
    const bool named = argc > 1 && argv[1][0] != '-';
    if (!named) /* there are no options of all benchmarks */
        GR_TRY(gr_options_parse(argc, argv, NULL, 0, NULL, 0, NULL));
    if (!named)
        return gr_fail(GR_USAGE,
            "bench: expected what to measure, kernels, layer, exchange or step, got nothing; see grouter-train bench "
            "--help");
    for (int i = 0; i < N_BENCHMARK; i++) {
        if (strcmp(argv[1], benchmarks[i].name) != 0)
            continue;
        snprintf(name, sizeof name, "bench %s", benchmarks[i].name); /* heads the messages */
        argv[1] = name;
        return benchmarks[i].run(argc - 1, argv + 1);
    }
    return fail_unknown(argv[1]);
}

static const char help[] =
    "usage: grouter-train bench kernels [--shape NAME | --config CONFIG] [--tokens N] [--only OP,...] [--backend B]\n"
    "                                   [--dtype fp32|bf16] [--repeat N] [--seed S] [--json FILE] [--csv FILE]\n"
    "       grouter-train bench layer [--shape NAME] [--width D] [--expert-width F] [--experts E] [--top-k K]\n"
    "                                 [--tokens N] [--cv X | --hot X | --routes TABLE] [--save-routes TABLE]\n"
    "                                 [--backend B] [--expert-kernels X] [--dtype fp32|bf16] [--repeat N] [--seed S]\n"
    "                                 [--json FILE] [--csv FILE]\n"
    "       grouter-train bench step CONFIG [--set KEY=VALUE]... [--steps N] [--warm N] [--tune-products FILE]\n"
    "                                [--json FILE] [--csv FILE]\n"
    "       grouter-train bench exchange [--routes TABLE [--placement FILE] | --experts E --top-k K --seq-len T]\n"
    "                                    [--width D] [--windows B] [--dtype fp32|bf16] [--repeat N] [--seed S]\n"
    "                                    [--json FILE]\n"
    "       mpirun -n R grouter-train bench ...\n"
    "\n"
    "Times are medians with quartiles, after runs that are not counted, and mean something while no more ranks than\n"
    "cores run, and nothing else. Formulas are printed with the figures. Results are checked before they are timed; a\n"
    "mismatch is 70.\n"
    "\n"
    "kernels: every op of the backend alone, on random data that is not in the caches, sampled results compared with\n"
    "loops in double. TFLOP/s and GB/s by the printed formulas, and the share of what the same process reaches in a "
    "large\n"
    "matrix product or a large copy. Several ranks run the same ops at the same time; the figures are rank 0's.\n"
    "  --shape NAME        small (default on a CPU), tiny-qwen3, mini-qwen3 (default elsewhere), mini-ds-v2-lite,\n"
    "                      mini-gpt-oss or qwen3-30b-a3b\n"
    "  --config CONFIG     the sizes, windows, backend and dtype of a config for train instead\n"
    "  --tokens N          default 512 on a CPU, 8192 elsewhere; of a config those of a micro-batch\n"
    "  --only OP,...       these ops alone, such as gemm,ffn_forward\n"
    "\n"
    "layer: the experts of one layer forward and backward, with dispatch and combine, on all ranks together: ms,\n"
    "6, 12 and 18 x pairs x D x F over time, the share of the ranks' best matrix products, memory.\n"
    "  --shape NAME        as above: D, F, experts and top-k, each of which can be given apart\n"
    "  --tokens N          of a rank (default 512 on a CPU, 8192 elsewhere); with a table in whole windows\n"
    "  --cv X              loads of the experts with this standard deviation over their mean (default 0)\n"
    "  --hot X             one expert with X times the mean load\n"
    "  --routes TABLE      windows of this route table, with its experts and top-k\n"
    "  --save-routes TABLE the routes that were made, for other programs\n"
    "  --expert-kernels X  auto (default), cublas, mma or wgmma: of backend cuda in bf16\n"
    "\n"
    "step: whole training steps of a config without its run folder: tokens/s, model FLOP/s, share of peak, phases,\n"
    "memory. Where none of the files of data.train is there, synthetic tokens and uniform routes are made in\n"
    "<run.dir>.bench-<process>, which all ranks must see, and removed at the end.\n"
    "  --steps N           steps that are counted (default 10)\n"
    "  --warm N            steps before them (default 2)\n"
    "  --tune-products FILE  on backend cuda: in the steps before, each product of matrices is timed with several\n"
    "                      algorithms of cuBLAS; the fastest are written, for parallel.product_plans\n"
    "\n"
    "exchange: dispatch and combine of one layer, forward and the mirrored backward, without the experts between\n"
    "them, on 2 ranks at least. The same rows go the same way with the same code; what differs is what is known of\n"
    "their routes, and what a row stands for:\n"
    "  router   the layer's router chooses (product, top-k, softmax; in backward their gradients), then as counts\n"
    "  counts   routes are given in the layer: it sorts pairs by expert, exchanges how many come from whom, waits,\n"
    "           sends ids or gates with the rows\n"
    "  plan     routes were known before the step: only rows travel\n"
    "  pair     a row for each expert of a token on another rank\n"
    "  rank     a row for each other rank with experts of a token; their results come back as one sum\n"
    "Prints rows, bytes (MB: 10^6), times (the slowest rank's), and what is saved from one to the next, as "
    "differences\n"
    "of runs that followed each other.\n"
    "  --routes TABLE      windows of this route table; without it routes are uniform\n"
    "  --placement FILE    of that table, for R ranks: besides, experts where it puts them, and the same windows on\n"
    "                      the ranks that leave the fewest rows (batch), or for each rank windows of its own (corpus)\n"
    "  --experts E         experts (default 16)\n"
    "  --top-k K           experts per token (default 2)\n"
    "  --seq-len T         tokens per window (default 256)\n"
    "  --width D           numbers in a row, at least as many as experts (default 128)\n"
    "  --windows B         windows of a rank (default 8)\n"
    "\n"
    "options of several, as the usage says:\n"
    "  --backend B         auto (default), or one that --version lists\n"
    "  --dtype fp32|bf16   of activations (default fp32)\n"
    "  --repeat N          runs of each that are timed (default 50; layer 20; kernels: as many as fit 0.4 s)\n"
    "  --seed S            of data and routes, or of which windows of the table (default 0)\n"
    "  --json FILE         the figures once more\n"
    "  --csv FILE          likewise, a line each\n"
    "\n"
    "example:\n"
    "  grouter-train bench kernels --only gemm,ffn_forward,ffn_backward\n"
    "  grouter-train bench layer --shape tiny-qwen3 --cv 0.3\n"
    "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train bench step configs/bench/small.json\n"
    "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train bench exchange --experts 128 --top-k 8 --width 512\n";

const gr_command gr_cmd_bench = {
    .name = "bench",
    .summary = "measure the ops, a layer, the exchange between ranks, or whole training steps",
    .help = help,
    .run = run,
};
