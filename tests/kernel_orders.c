/* kernel_orders.c: the bits of kernels do not depend on the order in which blocks and threads run. Linked with the
 * kernels on the CPU (kernels_backend.c), whose order is chosen when the backend is opened. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"

#include "grouter/backend.h"

#include <stdlib.h>
#include <string.h>

/* Runs an op, then appends what it wrote to `out`; returns the bytes. */
typedef size_t (*runner)(gr_backend *b, uint8_t *out);

enum { OUT_MAX = 1 << 22 };

static size_t run_in(const char *order, runner run, uint8_t *out) {
    gr_backend *b;
    assert_int_equal(setenv("GR_HOST_ORDER", order, 1), 0);
    assert_int_equal(check_backend_open(&b, GR_F32), 0);
    const size_t n = run(b, out);
    gr_backend_close(b);
    return n;
}

static void check_orders(runner run) {
    uint8_t *rising = malloc(OUT_MAX), *falling = malloc(OUT_MAX);
    assert_true(rising && falling);
    const size_t n = run_in("rising", run, rising);
    assert_true(n > 0 && n <= OUT_MAX);
    assert_int_equal(run_in("falling", run, falling), n);
    assert_memory_equal(rising, falling, n);
    free(rising);
    free(falling);
}

/* Moves an array to the end of what was written; frees it. */
static size_t keep(uint8_t *out, size_t at, void *array, size_t n_byte) {
    memcpy(out + at, array, n_byte);
    free(array);
    return at + n_byte;
}

static size_t keep_floats(uint8_t *out, size_t at, float *array, int64_t n) {
    return keep(out, at, array, (size_t)n * sizeof *array);
}

/* ---------------------------------------------------------------- norms */

enum { ROWS = 700, WIDTH = 44 };

static size_t run_norm(gr_backend *b, uint8_t *out) {
    float *x = check_random(1, ROWS * WIDTH), *w = check_random(2, WIDTH), *dy = check_random(3, ROWS * WIDTH);
    float *y = check_poisoned(ROWS * WIDTH), *rstd = check_poisoned(ROWS), *dx = check_poisoned(ROWS * WIDTH);
    float *dw = check_zeros(WIDTH);
    const gr_norm a = {.n_row = ROWS,
        .width = WIDTH,
        .ldx = WIDTH,
        .ldy = WIDTH,
        .eps = 1e-6f,
        .x = x,
        .w = w,
        .y = y,
        .rstd = rstd,
        .dy = dy,
        .dx = dx,
        .dw = dw};
    assert_int_equal(b->norm_forward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(b->norm_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(x), free(w), free(dy);
    size_t n = keep_floats(out, 0, y, ROWS * WIDTH);
    n = keep_floats(out, n, rstd, ROWS);
    n = keep_floats(out, n, dx, ROWS * WIDTH);
    return keep_floats(out, n, dw, WIDTH);
}

static size_t run_heads(gr_backend *b, int64_t hd, uint8_t *out) {
    enum { N_ROW = 150, N_Q = 3, N_K = 2 };
    const int64_t width = (N_Q + N_K) * hd, n = N_ROW * width;
    float *x = check_random(1, n), *wq = check_random(2, hd), *wk = check_random(3, hd), *dy = check_random(4, n);
    float *y = check_poisoned(n), *rstd = check_poisoned(N_ROW * (N_Q + N_K)), *dx = check_poisoned(n);
    float *dwq = check_zeros(hd), *dwk = check_zeros(hd), *cosine, *sine;
    check_angles(N_ROW, hd, 100, &cosine, &sine);
    const gr_head_norm a = {.n_row = N_ROW,
        .T = N_ROW,
        .n_q = N_Q,
        .n_k = N_K,
        .head_dim = hd,
        .ldx = width,
        .ldy = width,
        .eps = 1e-6f,
        .cosine = cosine,
        .sine = sine,
        .x = x,
        .wq = wq,
        .wk = wk,
        .y = y,
        .rstd = rstd,
        .dy = dy,
        .dx = dx,
        .dwq = dwq,
        .dwk = dwk};
    assert_int_equal(b->head_norm_forward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(b->head_norm_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(x), free(wq), free(wk), free(dy), free(cosine), free(sine);
    size_t at = keep_floats(out, 0, y, n);
    at = keep_floats(out, at, rstd, N_ROW * (N_Q + N_K));
    at = keep_floats(out, at, dx, n);
    at = keep_floats(out, at, dwq, hd);
    return keep_floats(out, at, dwk, hd);
}

/* Heads that lanes of a warp hold, and others. */
static size_t run_head_norm(gr_backend *b, uint8_t *out) {
    const size_t n = run_heads(b, 64, out);
    return n + run_heads(b, 45, out + n);
}

static size_t run_layer_norm(gr_backend *b, uint8_t *out) {
    float *x = check_random(1, ROWS * WIDTH), *w = check_random(2, WIDTH), *bias = check_random(4, WIDTH);
    float *dy = check_random(3, ROWS * WIDTH), *y = check_poisoned(ROWS * WIDTH), *dx = check_poisoned(ROWS * WIDTH);
    float *mean = check_poisoned(ROWS), *rstd = check_poisoned(ROWS), *dw = check_zeros(WIDTH),
          *db = check_zeros(WIDTH);
    const gr_layer_norm a = {.n_row = ROWS,
        .width = WIDTH,
        .eps = 1e-6f,
        .x = x,
        .w = w,
        .b = bias,
        .y = y,
        .mean = mean,
        .rstd = rstd,
        .dy = dy,
        .dx = dx,
        .dw = dw,
        .db = db};
    assert_int_equal(b->layer_norm_forward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(b->layer_norm_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(x), free(w), free(bias), free(dy);
    size_t n = keep_floats(out, 0, y, ROWS * WIDTH);
    n = keep_floats(out, n, mean, ROWS);
    n = keep_floats(out, n, rstd, ROWS);
    n = keep_floats(out, n, dx, ROWS * WIDTH);
    n = keep_floats(out, n, dw, WIDTH);
    return keep_floats(out, n, db, WIDTH);
}

static void norms_have_the_same_bits_in_any_order(void **state) {
    (void)state;
    check_orders(run_norm);
    check_orders(run_head_norm);
    check_orders(run_layer_norm);
}

/* ---------------------------------------------------------------- embedding */

/* Many rows of few ids, whose lists are made by atomics that come in another order. */
static size_t run_embed(gr_backend *b, uint8_t *out) {
    enum { V = 13 };
    uint32_t id[ROWS];
    for (uint32_t i = 0; i < ROWS; i++)
        id[i] = i * i % V;
    float *dout = check_random(1, ROWS * WIDTH), *dtable = check_random(2, V * WIDTH);
    const gr_embed a = {.n = ROWS, .width = WIDTH, .n_vocab = V, .id = id, .dout = dout, .dtable = dtable};
    assert_int_equal(b->embed_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(dout);
    return keep_floats(out, 0, dtable, V * WIDTH);
}

static void the_embeddings_gradient_has_the_same_bits_in_any_order(void **state) {
    (void)state;
    check_orders(run_embed);
}

/* ---------------------------------------------------------------- attention */

static size_t run_attention(gr_backend *b, uint8_t *out) {
    enum { T = 75, H = 4, H_KV = 2, HD = 12, N = 2 * T, Q = H * HD, KV = H_KV * HD };
    float *q = check_random(1, N * Q), *k = check_random(2, N * KV), *v = check_random(3, N * KV);
    float *dout = check_random(4, N * Q), *o = check_poisoned(N * Q), *lse = check_poisoned(N * H);
    float *dq = check_poisoned(N * Q), *dk = check_poisoned(N * KV), *dv = check_poisoned(N * KV);
    const gr_attention a = {.mask = GR_ATTEND_CAUSAL,
        .n_window = 2,
        .T = T,
        .H = H,
        .H_kv = H_KV,
        .head_dim = HD,
        .ldq = Q,
        .ldk = KV,
        .ldv = KV,
        .ldo = Q,
        .q = q,
        .k = k,
        .v = v,
        .o = o,
        .lse = lse,
        .dout = dout,
        .dq = dq,
        .dk = dk,
        .dv = dv};
    assert_int_equal(b->attention_forward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(b->attention_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(q), free(k), free(v), free(dout);
    size_t n = keep_floats(out, 0, o, N * Q);
    n = keep_floats(out, n, lse, N * H);
    n = keep_floats(out, n, dq, N * Q);
    n = keep_floats(out, n, dk, N * KV);
    return keep_floats(out, n, dv, N * KV);
}

static void attention_has_the_same_bits_in_any_order(void **state) {
    (void)state;
    check_orders(run_attention);
}

/* ---------------------------------------------------------------- losses and routers */

static size_t run_cross_entropy(gr_backend *b, uint8_t *out) {
    enum { N = 61, D = 8, V = 257 };
    int32_t target[N];
    for (int32_t i = 0; i < N; i++)
        target[i] = i % 7 == 3 ? -1 : i * i % V;
    float *x = check_random(1, N * D), *w = check_random(2, V * D), *dx = check_poisoned(N * D),
          *dw = check_zeros(V * D);
    float *logits = check_poisoned(N * V);
    double sum = 0;
    const gr_cross_entropy a = {.n = N,
        .D = D,
        .V = V,
        .x = x,
        .w = w,
        .target = target,
        .scale = 0.5f,
        .loss_sum = &sum,
        .dx = dx,
        .dw = dw,
        .logits = logits};
    assert_int_equal(b->cross_entropy(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(x), free(w), free(logits);
    memcpy(out, &sum, sizeof sum);
    size_t n = keep_floats(out, sizeof sum, dx, N * D);
    return keep_floats(out, n, dw, V * D);
}

static size_t run_router(gr_backend *b, uint8_t *out) {
    enum { N = 60, E = 67, K = 5, N_WINDOW = 3 };
    double loss[2] = {0, 0};
    uint64_t load[E] = {0};
    uint32_t count[N_WINDOW * E];
    uint16_t ids[N * K];
    float *p = check_random(1, N * E), *lse = check_poisoned(N), *gate = check_poisoned(N * K);
    float *dgate = check_random(2, N * K), *dlogits = check_poisoned(N * E);
    const gr_router_op a = {.choice = GR_CHOICE_TOP_K,
        .normalise = true,
        .n = N,
        .T = N / N_WINDOW,
        .E = E,
        .K = K,
        .scale = 1,
        .aux_scale = 0.01,
        .z_scale = 0.001,
        .p = p,
        .lse = lse,
        .ids = ids,
        .gate = gate,
        .count = count,
        .load = load,
        .loss = loss,
        .dgate = dgate,
        .dlogits = dlogits};
    assert_int_equal(b->router_forward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(b->router_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(dgate);
    size_t n = keep_floats(out, 0, p, N * E);
    n = keep_floats(out, n, lse, N);
    n = keep_floats(out, n, gate, N * K);
    n = keep_floats(out, n, dlogits, N * E);
    memcpy(out + n, loss, sizeof loss);
    memcpy(out + n + sizeof loss, load, sizeof load);
    memcpy(out + n + sizeof loss + sizeof load, count, sizeof count);
    return n + sizeof loss + sizeof load + sizeof count;
}

static size_t run_divergence(gr_backend *b, uint8_t *out) {
    enum { N = 61, E = 37 };
    float *teacher = check_random(1, N * E), *student = check_random(2, N * E);
    double sum = 0;
    const gr_divergence a = {.n = N,
        .E = E,
        .teacher = teacher,
        .student = student,
        .temperature = 2,
        .scale = 0.1f,
        .loss_sum = &sum,
        .dstudent = student};
    assert_int_equal(b->divergence(b, GR_LANE_COMPUTE, &a), GR_OK);
    free(teacher);
    memcpy(out, &sum, sizeof sum);
    return keep_floats(out, sizeof sum, student, N * E);
}

static void losses_and_routers_have_the_same_bits_in_any_order(void **state) {
    (void)state;
    check_orders(run_cross_entropy);
    check_orders(run_router);
    check_orders(run_divergence);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_have_the_same_bits_in_any_order),
        cmocka_unit_test(the_embeddings_gradient_has_the_same_bits_in_any_order),
        cmocka_unit_test(attention_has_the_same_bits_in_any_order),
        cmocka_unit_test(losses_and_routers_have_the_same_bits_in_any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
