/* Opening backend cuda: what it says where there is no driver or GPU for it, and its description, which needs neither.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "backend/cuda.h"

#include <string.h>

static void check_refusal(gr_err err, gr_err code, const char *found, const char *advice) {
    assert_int_equal(err, code);
    assert_non_null(strstr(gr_error_text(), "backend cuda: expected"));
    assert_non_null(strstr(gr_error_text(), found));
    assert_non_null(strstr(gr_error_text(), advice));
}

static void each_lack_has_its_message(void **state) {
    (void)state;
    check_refusal(gr_cuda_refuse(cudaErrorInsufficientDriver, 0, 0, 0), GR_RESOURCE, "no NVIDIA driver", "backend=cpu");
    check_refusal(
        gr_cuda_refuse(cudaErrorInsufficientDriver, 0, 0, 12040), GR_RESOURCE, "one for CUDA 12.4", "install a newer");
    check_refusal(
        gr_cuda_refuse(cudaErrorNoDevice, 0, 0, 99000), GR_RESOURCE, "a driver and none", "CUDA_VISIBLE_DEVICES");
    check_refusal(gr_cuda_refuse(cudaSuccess, 0, 0, 99000), GR_RESOURCE, "a driver and none", "nvidia-smi");
    check_refusal(gr_cuda_refuse(cudaSuccess, 2, 7, 99000), GR_RESOURCE, "at most 7.x", "backend=cpu");
    check_refusal(gr_cuda_refuse(cudaErrorSystemDriverMismatch, 0, 0, 99000), GR_RESOURCE,
        "cudaErrorSystemDriverMismatch", "nvidia-smi");
}

static void errors_are_the_machines_or_ours(void **state) {
    (void)state;
    assert_int_equal(gr_cuda_check(cudaSuccess, "it"), GR_OK);
    assert_int_equal(gr_cuda_check(cudaErrorInvalidValue, "rope"), GR_BUG);
    assert_non_null(strstr(gr_error_text(), "rope"));
    assert_non_null(strstr(gr_error_text(), "report this"));
    assert_int_equal(gr_cuda_check(cudaErrorIllegalAddress, "rope"), GR_BUG);
    assert_int_equal(gr_cuda_check(cudaErrorECCUncorrectable, "upload"), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "cudaErrorECCUncorrectable"));
    assert_int_equal(gr_cuda_check(cudaErrorMemoryAllocation, "scratch"), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "fewer windows"));
}

static void memory_that_is_not_there_names_its_use_and_what_is_free(void **state) {
    (void)state;
    assert_int_equal(
        gr_cuda_refuse_memory("run arena", (size_t)90 << 30, (size_t)70 << 30, (size_t)80 << 30), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "run arena: expected 90.00 GiB"));
    assert_non_null(strstr(gr_error_text(), "70.00 of 80.00 GiB are free"));
}

/* Here without a GPU: the whole way to the message. With one: it opens. */
static void opening_needs_a_gpu_and_says_so(void **state) {
    (void)state;
    gr_backend *b;
    gr_err err = gr_backend_open(&b, "cuda", GR_BF16);
    assert_int_equal(err == GR_OK, gr_cuda_is_here());
    if (err)
        check_refusal(err, GR_RESOURCE, "found", "backend=cpu");
    else
        assert_string_equal(b->name, "cuda");
    gr_backend_close(b);
}

static void auto_is_cuda_where_a_gpu_is(void **state) {
    (void)state;
    gr_backend *b;
    assert_int_equal(gr_backend_open(&b, "auto", GR_F32), GR_OK);
    assert_string_equal(b->name, gr_cuda_is_here() ? "cuda" : "cpu");
    gr_backend_close(b);
}

static void a_description_needs_no_gpu(void **state) {
    (void)state;
    gr_backend *b;
    assert_int_equal(gr_backend_describe(&b, "cuda", GR_BF16), GR_OK);
    assert_string_equal(b->name, "cuda");
    assert_int_equal(b->elem_size, 2);
    assert_int_equal(b->dtype, GR_BF16);
    assert_false(b->host_memory);
    assert_true(b->logits_room > 0);
    gr_backend_close(b);
}

static void every_op_is_there(void **state) {
    (void)state;
    gr_backend b = {0};
    gr_cuda_set_ops(&b);
    assert_true(b.gemm && b.gather_rows && b.sum_rows && b.gather_f32 && b.sum_f32 && b.router_forward);
    assert_true(b.router_backward && b.pair_gates_forward && b.pair_gates_backward && b.ffn_forward && b.ffn_backward);
    assert_true(b.embed_forward && b.embed_backward && b.norm_forward && b.norm_backward && b.layer_norm_forward);
    assert_true(b.head_norm_forward && b.head_norm_backward);
    assert_true(b.layer_norm_backward && b.rope && b.attention_forward && b.attention_backward && b.cross_entropy);
    assert_true(b.divergence && b.sum_squares && b.decide && b.adamw && b.round_weights && b.peak);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_lack_has_its_message),
        cmocka_unit_test(errors_are_the_machines_or_ours),
        cmocka_unit_test(memory_that_is_not_there_names_its_use_and_what_is_free),
        cmocka_unit_test(opening_needs_a_gpu_and_says_so),
        cmocka_unit_test(auto_is_cuda_where_a_gpu_is),
        cmocka_unit_test(a_description_needs_no_gpu),
        cmocka_unit_test(every_op_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
