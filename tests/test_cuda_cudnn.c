/* test_cuda_cudnn.c: cuDNN has deterministic engines for the graphs that attention is to it, on GPUs that it is only
 * told about. Skipped where cuDNN is not there, or too old to be told. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "backend/cuda_cudnn.h"
#include "backend/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static gr_cudnn cudnn;

/* What cuDNN asks of a GPU. */
#define GPU(name, version, n_sm, shared)                                                                               \
    "{\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], \"regsPerBlock\": 65536, "      \
    "\"multiProcessorCount\": " n_sm ", \"warpSize\": 32, \"maxSharedMemoryPerBlock\": 49152, "                        \
    "\"maxSharedMemoryPerBlockOptin\": " shared                                                                        \
    ", \"reservedSharedMemoryPerBlock\": 1024, \"maxRegistersPerSM\": 65536, \"maxCtasPerSM\": 32, "                   \
    "\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": 2048, \"pciDeviceId\": 0, \"isTccDriver\": 0, "                \
    "\"supportCoopLaunch\": 1, \"totalGlobalMem\": 85000000000, \"smClockRateKHz\": 1400000, "                         \
    "\"memClockRateKHz\": 1593000, \"l2CacheSize\": 41943040, \"cudaDeviceId\": 0, \"deviceVer\": " version            \
    ", \"driverVer\": 13000, \"deviceName\": \"" name "\"}"
static const char h100[] = GPU("NVIDIA H100 80GB HBM3", "900", "132", "232448");
static const char a100[] = GPU("NVIDIA A100-SXM4-80GB", "800", "108", "166912");

/* The driver's stand-in comes first: a library of its name is not looked for again. */
static int load(void **state) {
    (void)state;
    assert_non_null(dlopen(CUDA_DRIVER_DOUBLE, RTLD_NOW | RTLD_GLOBAL));
    if (gr_cudnn_load(&cudnn)) {
        printf("skipped: %s\n", gr_error_text());
        exit(77);
    }
    return 0;
}

static gr_cudnn_target describe(const char *gpu) {
    gr_cudnn_target t = {0};
    assert_int_equal(cudnn.cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &t.device), 0);
    assert_int_equal(cudnn.cudnnBackendSetAttribute(t.device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                         CUDNN_TYPE_CHAR, (int64_t)strlen(gpu), gpu),
        0);
    assert_int_equal(cudnn.cudnnBackendFinalize(t.device), 0);
    return t;
}

/* The bytes of scratch that its plan takes; -1 where there is none. */
static int64_t scratch_of(const char *gpu, gr_cudnn_shape shape) {
    static gr_cudnn_plan plan;
    const gr_cudnn_target t = describe(gpu);
    gr_cudnn_plan_open(&cudnn, &t, &shape, &plan);
    const int64_t n_byte = plan.plan ? (int64_t)plan.scratch : -1;
    gr_cudnn_plan_close(&cudnn, &plan);
    cudnn.cudnnBackendDestroyDescriptor(t.device);
    return n_byte;
}

/* q, k and v share a row. */
static gr_cudnn_shape shape_of(bool backward, bool causal, int64_t T, int64_t H, int64_t H_kv, int64_t head_dim) {
    const int64_t ld = (H + 2 * H_kv) * head_dim;
    return (gr_cudnn_shape){.backward = backward,
        .causal = causal,
        .n_window = 2,
        .T = T,
        .H = H,
        .H_kv = H_kv,
        .head_dim = head_dim,
        .ldq = ld,
        .ldk = ld,
        .ldv = ld,
        .ldo = H * head_dim};
}

static void forward_has_an_engine_that_keeps_no_scores(void **state) {
    (void)state;
    const int64_t n_byte = scratch_of(h100, shape_of(false, true, 2048, 8, 2, 128));
    assert_true(n_byte >= 0 && n_byte < 1024);
}

/* A gradient per score, in bf16, and as much again only for rows. */
static void backward_has_an_engine_that_keeps_scores(void **state) {
    (void)state;
    const int64_t of_scores = INT64_C(2) * 8 * 2048 * 2048 * 2,
                  n_byte = scratch_of(h100, shape_of(true, true, 2048, 8, 2, 128));
    assert_true(n_byte >= of_scores && n_byte <= of_scores + of_scores / 4);
}

/* What the forecast of memory counts with: heads alone and in groups, windows that fill tiles or do not. A choice among
 * engines takes a second. */
static void backward_takes_what_it_is_said_to(void **state) {
    (void)state;
    static const struct {
        const char *gpu;
        int64_t T, H_kv, head_dim;
    } all[] = {{h100, 65, 8, 48}, {h100, 4096, 1, 128}, {a100, 130, 1, 64}};
    const gr_attend_means means = {.room = (size_t)1 << 40, .shared_max = SIZE_MAX};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const gr_cudnn_shape s = shape_of(true, true, all[i].T, 8, all[i].H_kv, all[i].head_dim);
        const gr_attention a = {.n_window = s.n_window,
            .T = s.T,
            .H = s.H,
            .H_kv = all[i].H_kv,
            .head_dim = s.head_dim,
            .ldq = s.ldq,
            .ldk = s.ldk,
            .ldv = s.ldv,
            .ldo = s.ldo};
        const int64_t said = (int64_t)gr_attend_scratch(&means, GR_BF16, &a, true);
        assert_in_range(scratch_of(all[i].gpu, s), all[i].gpu == h100 ? said - said / 8 : said / 2, said);
    }
}

static void windows_of_any_length_have_engines_on_the_older_gpu(void **state) {
    (void)state;
    assert_true(scratch_of(a100, shape_of(true, false, 130, 4, 4, 40)) > 0);
}

static void what_has_no_engine_has_no_plan(void **state) {
    (void)state;
    assert_int_equal(scratch_of(a100, shape_of(true, true, 257, 2, 2, 256)), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_has_an_engine_that_keeps_no_scores),
        cmocka_unit_test(backward_has_an_engine_that_keeps_scores),
        cmocka_unit_test(backward_takes_what_it_is_said_to),
        cmocka_unit_test(windows_of_any_length_have_engines_on_the_older_gpu),
        cmocka_unit_test(what_has_no_engine_has_no_plan),
    };
    return cmocka_run_group_tests(tests, load, NULL);
}
