/* double_scratch.c: attention on backend cuda takes the scratch that is said of it, by each way, and no more. Over the
 * doubles of the CUDA runtime, cuBLAS and cuDNN. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "backend/cuda.h"

#include <string.h>

/* What the lane's ops have taken so far. */
static size_t taken(const gr_backend *b) {
    const gr_cuda *s = b->state;
    return s->scratch[GR_LANE_COMPUTE].size;
}

static void *memory_of(gr_backend *b, int64_t n, size_t size) {
    void *p;
    assert_int_equal(b->alloc(b, (size_t)n * size, "test", &p), GR_OK);
    return p;
}

/* Both passes on zeros; a is the shape. */
static void attend(gr_backend *b, gr_attention a, size_t *forward, size_t *backward) {
    const int64_t N = a.n_window * a.T, O = a.H * a.head_dim, A = O + 2 * a.H_kv * a.head_dim;
    uint8_t *qkv = memory_of(b, N * A, b->elem_size), *dqkv = memory_of(b, N * A, b->elem_size);
    void *o = memory_of(b, N * O, b->elem_size), *dout = memory_of(b, N * O, b->elem_size);
    a.ldq = a.ldk = a.ldv = A;
    a.ldo = O;
    *forward = b->attention_scratch(b, &a, false); /* without arrays, as whoever forecasts asks */
    *backward = b->attention_scratch(b, &a, true);
    const size_t at_k = (size_t)O * b->elem_size, at_v = (size_t)(O + a.H_kv * a.head_dim) * b->elem_size;
    a.q = qkv;
    a.k = qkv + at_k;
    a.v = qkv + at_v;
    a.o = o;
    a.lse = memory_of(b, N * a.H, sizeof(float));
    assert_int_equal(b->attention_forward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(taken(b), *forward);
    a.dout = dout;
    a.dq = dqkv;
    a.dk = dqkv + at_k;
    a.dv = dqkv + at_v;
    assert_int_equal(b->attention_backward(b, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(b->sync(b), GR_OK);
    void *all[] = {qkv, dqkv, o, dout, a.lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        b->release(b, all[i]);
}

/* Of a backend of its own: scratch stays as large as it once was. */
static size_t check(gr_dtype dtype, const char *way, gr_attention shape) {
    gr_backend *b;
    size_t forward, backward;
    assert_int_equal(gr_backend_open(&b, "cuda", dtype), GR_OK);
    assert_int_equal(gr_backend_set_attention(b, way), GR_OK);
    attend(b, shape, &forward, &backward);
    assert_int_equal(taken(b), backward > forward ? backward : forward);
    gr_backend_close(b);
    return backward;
}

static const gr_attention usual = {.n_window = 3, .T = 64, .H = 4, .H_kv = 2, .head_dim = 16};

static void each_way_takes_the_scratch_that_is_said(void **state) {
    (void)state;
    const size_t plain = check(GR_BF16, "cublas", usual), flash = check(GR_BF16, "flash", usual);
    const size_t library = check(GR_BF16, "cudnn", usual);
    assert_true(flash > 0 && flash < plain && flash < library);
    assert_int_equal(check(GR_BF16, "auto", usual), library);
    assert_true(check(GR_F32, "auto", usual) > 0);
}

/* The double's room is six such heads: a window of four at a time, not three. */
static void a_library_takes_scratch_for_one_part_alone(void **state) {
    (void)state;
    gr_attention one = usual, long_ones = usual, longer = usual;
    one.n_window = 1;
    assert_int_equal(check(GR_BF16, "cudnn", usual), check(GR_BF16, "cudnn", one));
    long_ones.T = 128; /* one key/value head at a time */
    longer.T = 132;    /* none: own kernels */
    assert_true(check(GR_BF16, "cudnn", long_ones) < 3 * check(GR_BF16, "cudnn", usual));
    assert_int_equal(check(GR_BF16, "cudnn", longer), check(GR_BF16, "flash", longer));
}

static void what_flash_does_not_take_is_said_of_the_products(void **state) {
    (void)state;
    gr_attention odd = usual;
    odd.head_dim = 12;
    assert_int_equal(check(GR_BF16, "auto", odd), check(GR_BF16, "cublas", odd));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_way_takes_the_scratch_that_is_said),
        cmocka_unit_test(a_library_takes_scratch_for_one_part_alone),
        cmocka_unit_test(what_flash_does_not_take_is_said_of_the_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
