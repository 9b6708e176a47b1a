/* The CPU backend as such: opening by name, memory, copies. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

#include <string.h>

static gr_backend *backend;

static int open_backend(void **state) {
    (void)state;
    return gr_backend_open(&backend, "cpu", GR_F32);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

static void backends_open_by_name_and_unknown_names_are_refused(void **state) {
    (void)state;
    gr_backend *b;
    assert_int_equal(gr_backend_open(&b, "auto", GR_F32), 0);
    assert_true(strcmp(b->name, "cpu") == 0 || strcmp(b->name, "cuda") == 0);
    gr_backend_close(b);
    assert_int_equal(gr_backend_open(&b, "gpu", GR_F32), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "\"gpu\""));
    assert_null(b);
    gr_backend_close(NULL);
}

/* The CPU has one way to compute experts and accepts the names of all. */
static void expert_kernels_are_chosen_by_name(void **state) {
    (void)state;
    static const char *const names[] = {"auto", "cublas", "mma", "wgmma"};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(gr_backend_set_experts(backend, names[i]), GR_OK);
        assert_int_equal(backend->experts, i);
    }
    assert_int_equal(gr_backend_set_experts(backend, "mna"), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "\"mna\""));
    gr_backend device = {.experts_best = GR_EXPERTS_MMA};
    assert_int_equal(gr_backend_set_experts(&device, "mma"), GR_OK);
    assert_int_equal(gr_backend_set_experts(&device, "wgmma"), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "at most \"mma\""));
    assert_int_equal(device.experts, GR_EXPERTS_MMA);
    assert_int_equal(gr_backend_set_experts(backend, "auto"), GR_OK);
}

static void attention_kernels_are_chosen_by_name(void **state) {
    (void)state;
    static const char *const names[] = {"auto", "cublas", "flash", "cudnn"};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(gr_backend_set_attention(backend, names[i]), GR_OK);
        assert_int_equal(backend->attention, i);
    }
    assert_int_equal(gr_backend_set_attention(backend, "flesh"), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "\"flesh\""));
    gr_backend device = {.attention_best = GR_ATTENTION_FLASH};
    assert_int_equal(gr_backend_set_attention(&device, "flash"), GR_OK);
    assert_int_equal(gr_backend_set_attention(&device, "cudnn"), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "at most \"flash\""));
    assert_int_equal(device.attention, GR_ATTENTION_FLASH);
    assert_int_equal(gr_backend_set_attention(backend, "auto"), GR_OK);
}

static void every_op_is_there(void **state) {
    (void)state;
    const gr_backend *b = backend;
    assert_true(b->alloc && b->release && b->upload && b->download && b->fill_zero && b->copy && b->wait);
    assert_true(b->lane_native && b->sync && b->gemm && b->gather_rows && b->sum_rows && b->ffn_forward);
    assert_true(b->ffn_backward && b->embed_forward && b->embed_backward && b->norm_forward && b->norm_backward);
    assert_true(b->head_norm_forward && b->head_norm_backward);
    assert_true(b->rope && b->attention_forward && b->attention_backward && b->cross_entropy && b->sum_squares);
    assert_true(b->sync_lane && b->decide && b->adamw && b->round_weights && b->peak && b->close);
}

static void memory_is_zeroed_and_aligned(void **state) {
    (void)state;
    const size_t size[] = {0, 1, 4097, (5 << 20) + 3};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        void *p;
        assert_int_equal(backend->alloc(backend, size[i], "test", &p), 0);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t j = 0; j < size[i]; j++)
            assert_int_equal(((unsigned char *)p)[j], 0);
        memset(p, 0xFF, size[i]); /* the next area may be the same memory */
        backend->release(backend, p);
    }
}

static void memory_that_is_not_there_is_an_error_naming_its_use(void **state) {
    (void)state;
    void *p;
    assert_int_equal(backend->alloc(backend, SIZE_MAX - 5, "weights", &p), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "weights"));
    assert_int_equal(backend->alloc(backend, (size_t)1 << 50, "weights", &p), GR_RESOURCE);
    assert_null(p);
}

static void copies_arrive_whole(void **state) {
    (void)state;
    enum { N = (3 << 20) + 5 };
    void *p, *q;
    assert_int_equal(backend->alloc(backend, N, "test", &p), 0);
    assert_int_equal(backend->alloc(backend, N, "test", &q), 0);
    for (size_t i = 0; i < N; i++)
        ((unsigned char *)p)[i] = (unsigned char)(i * 31 >> 3);
    assert_int_equal(backend->copy(backend, GR_LANE_COMPUTE, q, p, N), 0);
    assert_memory_equal(p, q, N);
    assert_int_equal(backend->fill_zero(backend, GR_LANE_COMPUTE, q, N - 1), 0);
    for (size_t i = 0; i < N - 1; i++)
        assert_int_equal(((unsigned char *)q)[i], 0);
    assert_int_equal(((unsigned char *)q)[N - 1], ((unsigned char *)p)[N - 1]);
    backend->release(backend, p);
    backend->release(backend, q);
}

static void chunks_of_logits_stay_within_32_mib(void **state) {
    (void)state;
    assert_int_equal(gr_logits_chunk(backend, 4096, 257), 4096);
    assert_int_equal(gr_logits_chunk(backend, 40000, 257), 32640);
    assert_int_equal(gr_logits_chunk(backend, 4096, 151936), 55);
    assert_int_equal(gr_logits_chunk(backend, 4096, 10000000), 16);
    assert_int_equal(gr_logits_chunk(backend, 3, 10000000), 3);
    assert_int_equal(gr_logits_chunk(backend, 0, 257), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backends_open_by_name_and_unknown_names_are_refused),
        cmocka_unit_test(expert_kernels_are_chosen_by_name),
        cmocka_unit_test(attention_kernels_are_chosen_by_name),
        cmocka_unit_test(every_op_is_there),
        cmocka_unit_test(memory_is_zeroed_and_aligned),
        cmocka_unit_test(memory_that_is_not_there_is_an_error_naming_its_use),
        cmocka_unit_test(copies_arrive_whole),
        cmocka_unit_test(chunks_of_logits_stay_within_32_mib),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
