/* Central differences of every reference backward: what the backends are compared with must itself be right. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "ref.h"

#include <math.h>
#include <stdlib.h>

#define TOLERANCE 1e-6

/* Deterministic values in (-1, 1): a small generator of the test's own. */
static void fill(uint64_t seed, int64_t n, double *x) {
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (double)(state >> 11) / (double)(UINT64_C(1) << 52) - 1;
    }
}

static double *filled(uint64_t seed, int64_t n) {
    double *x = ref_alloc(n);
    fill(seed, n, x);
    return x;
}

static double dot(int64_t n, const double *a, const double *b) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* ||measured - gradient|| <= TOLERANCE ||measured||, measured[i] = (loss(x + h e_i) - loss(x - h e_i)) / 2h. */
static void check_gradient(double (*loss)(void *), void *context, int64_t n, double *x, const double *gradient) {
    const double h = 1e-5;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double saved = x[i];
        x[i] = saved + h;
        double above = loss(context);
        x[i] = saved - h;
        double below = loss(context);
        x[i] = saved;
        double measured = (above - below) / (2 * h);
        error += (measured - gradient[i]) * (measured - gradient[i]);
        norm += measured * measured;
    }
    assert_true(norm > 0);
    assert_true(sqrt(error) <= TOLERANCE * sqrt(norm));
}

/* Inputs, upstream gradient (also the weights of the scalar loss <out, dout>), output and gradients of one op. */
typedef struct op_case {
    double *in[4], *gradient[4];
    int64_t n[4];
    double *out, *dout;
    int64_t n_out;
    const ref_attention *attention;
} op_case;

static void open_case(op_case *c, int64_t n_out, int n_in, const int64_t *n) {
    *c = (op_case){.n_out = n_out, .out = ref_alloc(n_out), .dout = filled(99, n_out)};
    for (int i = 0; i < n_in; i++) {
        c->n[i] = n[i];
        c->in[i] = filled((uint64_t)i + 1, n[i]);
        c->gradient[i] = ref_alloc(n[i]);
    }
}

static void check_and_close(op_case *c, double (*loss)(void *)) {
    for (int i = 0; i < 4 && c->in[i]; i++)
        check_gradient(loss, c, c->n[i], c->in[i], c->gradient[i]);
    for (int i = 0; i < 4; i++) {
        free(c->in[i]);
        free(c->gradient[i]);
    }
    free(c->out);
    free(c->dout);
}

/* ---------------------------------------------------------------- linear, norms, rope */

static const int64_t linear_shape[3] = {3, 5, 4};

static double linear_loss(void *context) {
    op_case *c = context;
    ref_linear(linear_shape[0], linear_shape[1], linear_shape[2], c->in[0], c->in[1], c->out);
    return dot(c->n_out, c->out, c->dout);
}

static void linear_backward_is_the_derivative(void **state) {
    (void)state;
    op_case c;
    open_case(&c, 3 * 4, 2, (int64_t[]){3 * 5, 4 * 5});
    ref_linear_backward(3, 5, 4, c.in[0], c.in[1], c.dout, c.gradient[0], c.gradient[1]);
    check_and_close(&c, linear_loss);
}

static double norm_loss(void *context) {
    op_case *c = context;
    ref_norm(3, 7, 1e-2, c->in[0], c->in[1], c->out);
    return dot(c->n_out, c->out, c->dout);
}

static void norm_backward_is_the_derivative(void **state) {
    (void)state;
    op_case c;
    open_case(&c, 3 * 7, 2, (int64_t[]){3 * 7, 7});
    ref_norm_backward(3, 7, 1e-2, c.in[0], c.in[1], c.dout, c.gradient[0], c.gradient[1]);
    check_and_close(&c, norm_loss);
}

static ref_layer_norm layer_norm_of(const op_case *c) {
    return (ref_layer_norm){
        .n = 3, .width = 7, .eps = 1e-2, .x = c->in[0], .w = c->in[1], .b = c->in[2], .residual = c->in[3]};
}

static double layer_norm_loss(void *context) {
    op_case *c = context;
    ref_layer_norm s = layer_norm_of(c);
    ref_layer_norm_forward(&s, c->out);
    return dot(c->n_out, c->out, c->dout);
}

static void layer_norm_backward_is_the_derivative(void **state) {
    (void)state;
    for (int n_in = 3; n_in <= 4; n_in++) { /* without and with a residual */
        op_case c;
        open_case(&c, 3 * 7, n_in, (int64_t[]){3 * 7, 7, 7, 3 * 7});
        ref_layer_norm s = layer_norm_of(&c);
        ref_layer_norm_backward(&s, c.dout, c.gradient[0], c.gradient[1], c.gradient[2]);
        for (int i = 0; n_in == 4 && i < 3 * 7; i++)
            c.gradient[3][i] = c.dout[i];
        check_and_close(&c, layer_norm_loss);
    }
}

static void layer_norm_cuts_what_is_below_zero_and_then_adds(void **state) {
    (void)state;
    double x[2] = {3, 1}, w[2] = {2, 1}, b[2] = {0.5, 0.25}, residual[2] = {10, 20}, y[2];
    ref_layer_norm s = {.n = 1, .width = 2, .eps = 0, .x = x, .w = w, .b = b, .residual = residual};
    ref_layer_norm_forward(&s, y);
    assert_true(fabs(y[0] - 12.5) < 1e-14 && y[1] == 20);
}

static double rope_loss(void *context) {
    op_case *c = context;
    for (int64_t i = 0; i < c->n_out; i++)
        c->out[i] = c->in[0][i];
    ref_rope(6, 3, 2, 6, 100, false, c->out);
    return dot(c->n_out, c->out, c->dout);
}

static void rope_inverse_is_the_derivative(void **state) {
    (void)state;
    op_case c;
    open_case(&c, 6 * 2 * 6, 1, (int64_t[]){6 * 2 * 6});
    for (int64_t i = 0; i < c.n_out; i++)
        c.gradient[0][i] = c.dout[i];
    ref_rope(6, 3, 2, 6, 100, true, c.gradient[0]);
    check_and_close(&c, rope_loss);
}

static void rope_turns_the_second_position_by_one_radian(void **state) {
    (void)state;
    double x[4] = {5, 7, 1, 0}; /* two rows of one head of 2 */
    ref_rope(2, 2, 1, 2, 10000, false, x);
    assert_true(fabs(x[0] - 5) < 1e-15 && fabs(x[1] - 7) < 1e-15);
    assert_true(fabs(x[2] - cos(1)) < 1e-15 && fabs(x[3] - sin(1)) < 1e-15);
}

/* ---------------------------------------------------------------- attention */

static double attention_loss(void *context) {
    op_case *c = context;
    ref_attention_forward(c->attention, c->out, NULL);
    return dot(c->n_out, c->out, c->dout);
}

static void check_attention(bool causal, int64_t H, int64_t H_kv, const uint32_t *first, const uint32_t *end) {
    int64_t n_q = 2 * 4 * H * 3, n_kv = 2 * 4 * H_kv * 3;
    op_case c;
    open_case(&c, n_q, 3, (int64_t[]){n_q, n_kv, n_kv});
    ref_attention s = {.causal = causal,
        .first = first,
        .end = end,
        .n_window = 2,
        .T = 4,
        .H = H,
        .H_kv = H_kv,
        .head_dim = 3,
        .q = c.in[0],
        .k = c.in[1],
        .v = c.in[2]};
    c.attention = &s;
    ref_attention_backward(&s, c.dout, c.gradient[0], c.gradient[1], c.gradient[2]);
    check_and_close(&c, attention_loss);
}

static void attention_backward_is_the_derivative(void **state) {
    (void)state;
    check_attention(true, 4, 2, NULL, NULL);
    check_attention(true, 3, 1, NULL, NULL);
    check_attention(false, 2, 2, NULL, NULL);
    static const uint32_t first[8] = {0, 0, 2, 2, 0, 1, 1, 1}, end[8] = {2, 2, 4, 4, 1, 4, 4, 4};
    check_attention(true, 4, 2, first, end);
    check_attention(false, 2, 2, first, end);
}

static void attention_sees_its_document_only(void **state) {
    (void)state;
    double q[4] = {0}, k[4] = {1, 2, 3, 4}, v[4] = {1, 10, 100, 1000}, o[4];
    static const uint32_t first[4] = {0, 0, 0, 3}, end[4] = {3, 3, 3, 4};
    ref_attention s = {
        .first = first, .end = end, .n_window = 1, .T = 4, .H = 1, .H_kv = 1, .head_dim = 1, .q = q, .k = k, .v = v};
    ref_attention_forward(&s, o, NULL);
    assert_true(fabs(o[0] - 37) < 1e-13 && fabs(o[2] - 37) < 1e-13 && fabs(o[3] - 1000) < 1e-12);
    s.causal = true;
    ref_attention_forward(&s, o, NULL);
    assert_true(fabs(o[0] - 1) < 1e-14 && fabs(o[1] - 5.5) < 1e-14 && fabs(o[3] - 1000) < 1e-12);
}

static void causal_attention_ignores_the_future(void **state) {
    (void)state;
    double q[6] = {1, 2, 3, 4, 5, 6}, k[6] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, v[6] = {7, 8, 1, 2, 3, 4}, o[6], lse[3];
    ref_attention s = {.causal = true, .n_window = 1, .T = 3, .H = 1, .H_kv = 1, .head_dim = 2, .q = q, .k = k, .v = v};
    ref_attention_forward(&s, o, lse);
    assert_true(fabs(o[0] - 7) < 1e-15 && fabs(o[1] - 8) < 1e-15);
    assert_true(fabs(lse[0] - 0.5 / sqrt(2)) < 1e-15);
}

/* ---------------------------------------------------------------- experts */

static const uint32_t ffn_offset[4] = {0, 2, 2, 5};
static const uint32_t ffn_row[5] = {1, 2, 0, 1, 3};

static ref_ffn ffn_of(const op_case *c) {
    return (ref_ffn){.n_expert = 3,
        .D = 4,
        .F = 3,
        .offset = ffn_offset,
        .pair_row = ffn_row,
        .x = c->in[0],
        .w13 = c->in[1],
        .w2 = c->in[2],
        .pair_gate = c->in[3]};
}

/* The loss weighs pair p's output by dout of the row it read: the contract of the shared backward. */
static double ffn_loss(void *context) {
    op_case *c = context;
    ref_ffn s = ffn_of(c);
    double loss = 0;
    ref_ffn_forward(&s, c->out);
    for (int p = 0; p < 5; p++)
        loss += dot(4, c->out + p * 4, c->dout + ffn_row[p] * 4);
    return loss;
}

static void ffn_backward_is_the_derivative(void **state) {
    (void)state;
    op_case c;
    double dx[5 * 4] = {0};
    open_case(&c, 5 * 4, 4, (int64_t[]){4 * 4, 3 * 6 * 4, 3 * 4 * 3, 5});
    ref_ffn s = ffn_of(&c);
    ref_ffn_backward(&s, c.dout, dx, c.gradient[1], c.gradient[2], c.gradient[3]);
    for (int p = 0; p < 5; p++) {
        for (int j = 0; j < 4; j++)
            c.gradient[0][ffn_row[p] * 4 + (uint32_t)j] += dx[p * 4 + j];
    }
    check_and_close(&c, ffn_loss);
}

/* ---------------------------------------------------------------- loss, embedding, optimizer */

static const int32_t loss_target[4] = {2, -1, 0, 4};

static double cross_entropy_loss(void *context) {
    op_case *c = context;
    return 0.3 * ref_cross_entropy(4, 3, 5, c->in[0], c->in[1], loss_target);
}

static void cross_entropy_backward_is_the_derivative(void **state) {
    (void)state;
    op_case c;
    open_case(&c, 1, 2, (int64_t[]){4 * 3, 5 * 3});
    ref_cross_entropy_backward(4, 3, 5, c.in[0], c.in[1], loss_target, 0.3, c.gradient[0], c.gradient[1]);
    for (int j = 0; j < 3; j++)
        assert_true(c.gradient[0][3 + j] == 0); /* the ignored token */
    check_and_close(&c, cross_entropy_loss);
}

static void cross_entropy_of_equal_logits_is_log_v(void **state) {
    (void)state;
    double x[2] = {0, 0}, w[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    assert_true(fabs(ref_cross_entropy(1, 2, 5, x, w, (int32_t[]){3}) - log(5)) < 1e-15);
}

static const uint32_t embed_id[4] = {2, 0, 2, 1};

static double embed_loss(void *context) {
    op_case *c = context;
    ref_embed(4, 3, embed_id, c->in[0], c->out);
    return dot(c->n_out, c->out, c->dout);
}

static void embed_backward_is_the_derivative(void **state) {
    (void)state;
    op_case c;
    open_case(&c, 4 * 3, 1, (int64_t[]){3 * 3});
    ref_embed_backward(4, 3, embed_id, c.dout, c.gradient[0]);
    check_and_close(&c, embed_loss);
}

/* At step 1 the bias corrections cancel the moments' factors: the update is lr (sign(g) + decay p). */
static void adamw_first_step_moves_by_the_learning_rate(void **state) {
    (void)state;
    ref_adamw o = {
        .lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 0, .weight_decay = 0.1, .grad_scale = 0.5, .step = 1};
    double g[2] = {3, -0.2}, p[2] = {1, 2}, m[2] = {0}, v[2] = {0};
    ref_adamw_update(&o, 2, g, p, m, v);
    assert_true(fabs(p[0] - (1 - 0.01 * (1 + 0.1))) < 1e-14);
    assert_true(fabs(p[1] - (2 - 0.01 * (-1 + 0.2))) < 1e-14);
    assert_true(fabs(m[0] - 0.15) < 1e-15 && fabs(v[0] - 0.05 * 2.25) < 1e-15);
}

/* In the logits of a router, its counts held fixed, as a gradient has them. */
typedef struct router_case {
    ref_router op;
    uint16_t ids[12];
    double dgate[12];
} router_case;

static double router_loss(void *context) {
    router_case *c = context;
    double gates[12], loss[2] = {0, 0};
    ref_router op = c->op;
    op.choose = false; /* the choice made before the step of a difference quotient */
    ref_router_forward(&op, c->ids, gates, loss);
    return dot(12, gates, c->dgate) + loss[0] + loss[1];
}

static void router_gradient_matches_finite_differences(void **state) {
    (void)state;
    for (int normalise = 0; normalise < 2; normalise++) {
        router_case c = {.op = {.choose = true,
                             .normalise = normalise,
                             .n = 6,
                             .T = 3,
                             .E = 5,
                             .K = 2,
                             .scale = 2.5,
                             .aux = 0.7,
                             .z = 0.2}};
        double *logits = filled(3, 30), *gradient = ref_alloc(30), gates[12], loss[2] = {0, 0};
        c.op.logits = logits;
        fill(4, 12, c.dgate);
        ref_router_forward(&c.op, c.ids, gates, loss);
        ref_router_backward(&c.op, c.ids, c.dgate, gradient);
        check_gradient(router_loss, &c, 30, logits, gradient);
        free(logits);
        free(gradient);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_backward_is_the_derivative),
        cmocka_unit_test(norm_backward_is_the_derivative),
        cmocka_unit_test(layer_norm_backward_is_the_derivative),
        cmocka_unit_test(layer_norm_cuts_what_is_below_zero_and_then_adds),
        cmocka_unit_test(rope_inverse_is_the_derivative),
        cmocka_unit_test(rope_turns_the_second_position_by_one_radian),
        cmocka_unit_test(attention_backward_is_the_derivative),
        cmocka_unit_test(causal_attention_ignores_the_future),
        cmocka_unit_test(attention_sees_its_document_only),
        cmocka_unit_test(ffn_backward_is_the_derivative),
        cmocka_unit_test(cross_entropy_backward_is_the_derivative),
        cmocka_unit_test(cross_entropy_of_equal_logits_is_log_v),
        cmocka_unit_test(embed_backward_is_the_derivative),
        cmocka_unit_test(adamw_first_step_moves_by_the_learning_rate),
        cmocka_unit_test(router_gradient_matches_finite_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
