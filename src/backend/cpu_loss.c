/* cpu_loss.c: head and cross-entropy, a chunk of tokens at a time. */
#include "cpu_ops.h"

#include <math.h>
#include <string.h>

/* Exponentials summed in fp32 before the sum goes on in double: a vocabulary may be large. */
#define SUM_BLOCK 2048

static float largest_of(int64_t n, const gr_act *z) {
    float largest = gr_act_load(z[0]);
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; j++)
        largest = gr_act_load(z[j]) > largest ? gr_act_load(z[j]) : largest;
    return largest;
}

/* e = exp(z - shift), which may lie where z does; returns the sum. */
static double exponentials(int64_t n, float shift, const gr_act *z, float *e) {
    double total = 0;
    for (int64_t at = 0; at < n; at += SUM_BLOCK) {
        const int64_t end = at + SUM_BLOCK < n ? at + SUM_BLOCK : n;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = at; j < end; j++) {
            e[j] = gr_cpu_exp(gr_act_load(z[j]) - shift);
            sum += e[j];
        }
        total += (double)sum;
    }
    return total;
}

/* Loss of one token; its logits become scale * (softmax - onehot), zeros for an ignored token. */
static double token_loss(const gr_cross_entropy *a, int32_t target, gr_act *z, float *room) {
    if (target < 0) {
        memset(z, 0, (size_t)a->V * sizeof *z);
        return 0;
    }
    float *e = gr_act_floats(z, room);
    const float shift = largest_of(a->V, z), hit = gr_act_load(z[target]);
    const double sum = exponentials(a->V, shift, z, e);
    const float factor = (float)((double)a->scale / sum);
    if (a->dx) {
#pragma omp simd
        for (int64_t j = 0; j < a->V; j++) {
            e[j] *= factor;
            z[j] = gr_act_store(e[j]);
        }
        z[target] = gr_act_store(e[target] - a->scale);
    }
    return log(sum) + ((double)shift - (double)hit);
}

/* Scratch of the op. */
typedef struct loss_scratch {
    double *loss; /* [chunk] of each token */
    float *room;  /* [n_thread, V], NULL where logits are floats */
} loss_scratch;

static void token_losses(const gr_cpu *cpu, const gr_cross_entropy *a, int64_t first, int64_t n, loss_scratch s) {
    int next_thread = 0;
#pragma omp parallel num_threads(cpu->n_thread)
    {
        int thread;
#pragma omp atomic capture
        thread = next_thread++;
        float *room = s.room ? s.room + thread * a->V : NULL;
#pragma omp for
        for (int64_t i = 0; i < n; i++)
            s.loss[i] = token_loss(a, a->target[first + i], (gr_act *)a->logits + i * a->V, room);
    }
}

/* Tokens [first, first + n): losses and, if asked for, gradients. */
static int chunk_loss(const gr_cpu *cpu, const gr_cross_entropy *a, int64_t first, int64_t n, loss_scratch s) {
    const gr_act *x = (const gr_act *)a->x + first * a->D;
    const gr_gemm head = {.layout = GR_NT,
        .m = n,
        .n = a->V,
        .k = a->D,
        .a = x,
        .lda = a->D,
        .b = a->w,
        .ldb = a->D,
        .c = a->logits,
        .ldc = a->V,
        .c_dtype = GR_ACT_DTYPE};
    int status = GR_CPU(gemm)(cpu, &head);
    token_losses(cpu, a, first, n, s);
    if (!a->dx)
        return status;
    const gr_gemm to_x = {.layout = GR_NN,
        .m = n,
        .n = a->D,
        .k = a->V,
        .a = a->logits,
        .lda = a->V,
        .b = a->w,
        .ldb = a->D,
        .c = (gr_act *)a->dx + first * a->D,
        .ldc = a->D,
        .c_dtype = GR_ACT_DTYPE};
    const gr_gemm to_w = {.layout = GR_TN,
        .write = GR_ACCUMULATE,
        .m = a->V,
        .n = a->D,
        .k = n,
        .a = a->logits,
        .lda = a->V,
        .b = x,
        .ldb = a->D,
        .c = a->dw,
        .ldc = a->D,
        .c_dtype = GR_F32};
    return status | GR_CPU(gemm)(cpu, &to_x) | GR_CPU(gemm)(cpu, &to_w);
}

gr_err GR_CPU(cross_entropy)(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    (void)lane;
    const gr_cpu *cpu = b->state;
    const int64_t chunk = gr_logits_chunk(b, a->n, a->V);
    const size_t n_loss = (size_t)chunk * sizeof(double),
                 n_room = GR_ACT_ROOM * (size_t)cpu->n_thread * (size_t)a->V * sizeof(float);
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, n_loss + n_room, &memory));
    loss_scratch s = {.loss = memory, .room = n_room ? (float *)((char *)memory + n_loss) : NULL};
    double sum = 0;
    for (int64_t first = 0; first < a->n; first += chunk) {
        const int64_t n = a->n - first < chunk ? a->n - first : chunk;
        GR_TRY(gr_cpu_gemm_check(chunk_loss(cpu, a, first, n, s)));
        for (int64_t i = 0; i < n; i++)
            sum += s.loss[i];
        if (a->token_loss)
            memcpy(a->token_loss + first, s.loss, (size_t)n * sizeof *s.loss);
    }
    *a->loss_sum += sum;
    return GR_OK;
}
