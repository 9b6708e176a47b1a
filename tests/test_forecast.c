/* What a run is said to need is what it takes. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "train/internal.h"

static const gr_config config = {
    .model =
        {
            .vocab_size = 61,
            .hidden_size = 24,
            .num_hidden_layers = 3,
            .num_attention_heads = 4,
            .num_key_value_heads = 2,
            .head_dim = 6,
            .intermediate_size = 20,
            .moe_intermediate_size = 10,
            .num_experts = 8,
            .num_experts_per_tok = 2,
            .shared_expert_intermediate_size = 6,
            .first_k_dense_replace = 1,
            .rms_norm_eps = 1e-5,
            .rope_theta = 1000,
            .initializer_range = 0.2,
            .use_qk_norm = true,
        },
    .data = {.seq_len = 16},
    .optimizer = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8},
    .train = {.steps = 1,
        .micro_batch_windows = 2,
        .global_batch_windows = 8,
        .dtype = CHECK_DTYPE == GR_F32 ? GR_TRAIN_FP32 : GR_TRAIN_BF16},
    .parallel = {.expert_parallel_size = 2},
};

/* A rank of four, of which only its place is known. */
static gr_trainer shape_open_with(const gr_config *c, gr_comm *comm) {
    gr_trainer t = {.config = c, .comm = comm};
    assert_int_equal(gr_trainer_shape(&t), GR_OK);
    return t;
}

static gr_trainer shape_open(gr_comm *comm) {
    return shape_open_with(&config, comm);
}

static gr_comm *comm_open(void) {
    gr_comm *comm;
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    comm->size[GR_WORLD] = 4;
    comm->size[GR_EP] = comm->size[GR_EDP] = 2;
    return comm;
}

static uint64_t item(const gr_memory_table *m, const char *name) {
    for (int i = 0; i < GR_MEMORY_ITEMS; i++)
        if (strcmp(m->item[i].name, name) == 0)
            return m->item[i].n_byte;
    fail_msg("no item %s", name);
    return 0;
}

static uint64_t allocated; /* by the backend */
static gr_err (*alloc_of_backend)(gr_backend *b, size_t n_byte, const char *what, void **out);

static gr_err counted_alloc(gr_backend *b, size_t n_byte, const char *what, void **out) {
    allocated += n_byte;
    return alloc_of_backend(b, n_byte, what, out);
}

static const char *const masters = CHECK_DTYPE == GR_F32 ? "weights" : "fp32 master weights";

static void check_predicted_bytes(const gr_config *c) {
    gr_comm *comm = comm_open();
    gr_trainer t = shape_open_with(c, comm);
    gr_plan_limits limits = gr_forecast_limits(c, &t.map, 1.25);
    gr_memory_table predicted;
    assert_int_equal(gr_forecast_memory(&t, &limits, NULL, &predicted), GR_OK);

    alloc_of_backend = t.backend->alloc;
    t.backend->alloc = counted_alloc;
    allocated = 0;
    gr_model_options o = gr_trainer_model_options(&t, &limits);
    assert_int_equal(gr_model_open(&t.model, &o), GR_OK);
    uint64_t of_model = predicted.total - item(&predicted, "AdamW moments") - item(&predicted, "plans and routes") -
                        item(&predicted, "sums over ranks") - item(&predicted, "weights being saved");
    assert_int_equal(allocated, of_model);
    allocated = 0;
    gr_optimizer_options oo = gr_trainer_optimizer_options(&t, gr_model_params(t.model));
    assert_int_equal(gr_optimizer_open(&t.optimizer, &oo), GR_OK);
    assert_in_range(allocated, item(&predicted, "AdamW moments"), item(&predicted, "AdamW moments") + GR_ALIGN);
    bool shared = CHECK_DTYPE != GR_F32 && c->parallel.zero;
    uint64_t gradients = item(&predicted, "gradients");
    assert_int_equal(item(&predicted, "bf16 weights"), CHECK_DTYPE == GR_F32 ? 0 : gradients / 2);
    if (shared) /* what this rank keeps moments of; between a quarter, of what all four share, and half */
        assert_int_equal(item(&predicted, masters), item(&predicted, "AdamW moments") / 2);
    else
        assert_int_equal(item(&predicted, masters), gradients);
    assert_true((item(&predicted, "norms in fp32") > 0) == shared);
    gr_trainer_close(&t);
    gr_comm_close(comm, GR_OK);
}

static void predicted_bytes_are_those_that_model_and_optimizer_allocate(void **state) {
    (void)state;
    check_predicted_bytes(&config);
    gr_config sharded = config;
    sharded.parallel.zero = 1;
    check_predicted_bytes(&sharded);
    gr_config learned = config;
    learned.routing = learned.model.routing =
        (gr_routing){.source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1};
    check_predicted_bytes(&learned);
}

/* Masters and moments of one of `n_rank` ranks. */
static uint64_t optimizer_state(int n_rank, int R_ep, uint64_t *weights) {
    gr_config c = config;
    c.parallel.zero = 1;
    gr_comm *comm = comm_open();
    comm->size[GR_WORLD] = n_rank;
    comm->size[GR_EP] = R_ep;
    comm->size[GR_EDP] = n_rank / R_ep;
    c.parallel.expert_parallel_size = R_ep;
    gr_trainer t = shape_open_with(&c, comm);
    gr_plan_limits limits = gr_forecast_limits(&c, &t.map, 1);
    gr_memory_table m;
    assert_int_equal(gr_forecast_memory(&t, &limits, NULL, &m), GR_OK);
    *weights = item(&m, masters);
    if (CHECK_DTYPE != GR_F32)
        *weights += item(&m, "bf16 weights") + item(&m, "norms in fp32");
    uint64_t state = item(&m, "AdamW moments") + (CHECK_DTYPE == GR_F32 ? 0 : item(&m, masters));
    gr_trainer_close(&t);
    gr_comm_close(comm, GR_OK);
    return state;
}

/* Whatever the experts' groups are: each element of the model has one owner. Padding: 64 bytes a rank, thrice. */
static void what_a_rank_keeps_falls_with_the_number_of_ranks(void **state) {
    (void)state;
    uint64_t alone_weights, weights, last_weights;
    uint64_t alone = optimizer_state(1, 1, &alone_weights);
    for (int wide = 0; wide < 2; wide++) {
        last_weights = alone_weights;
        for (int n_rank = 2; n_rank <= 4; n_rank *= 2) {
            uint64_t kept = optimizer_state(n_rank, wide ? n_rank : 1, &weights);
            assert_in_range(kept, alone / (uint64_t)n_rank, alone / (uint64_t)n_rank + (uint64_t)(6 * GR_ALIGN));
            if (CHECK_DTYPE != GR_F32)
                assert_true(weights < last_weights);
            last_weights = weights;
        }
    }
}

/* Learned routes need a plan of each layer with experts; with tables one serves all, and one is prepared ahead. */
static void learned_routes_are_predicted_to_need_a_plan_per_layer(void **state) {
    (void)state;
    uint64_t plans[2];
    for (int i = 0; i < 2; i++) {
        gr_config c = config;
        c.model.num_hidden_layers = i ? 11 : 6;
        c.routing = c.model.routing = (gr_routing){.source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1};
        gr_comm *comm = comm_open();
        gr_trainer t = shape_open_with(&c, comm);
        gr_plan_limits worst = gr_forecast_limits_worst(&c, &t.map);
        gr_memory_table m;
        assert_int_equal(gr_forecast_memory(&t, &worst, NULL, &m), GR_OK);
        plans[i] = item(&m, "plans and routes");
        gr_trainer_close(&t);
        gr_comm_close(comm, GR_OK);
    }
    assert_true(plans[1] > plans[0] && plans[1] < 2 * plans[0]);
    assert_true(plans[1] - plans[0] > 5 * 64 * 2 * 9); /* pairs at worst, 9 bytes each in the plan's lists alone */
}

/* Of a rank on a GPU that is not here, with windows of T and a head of 64. */
static gr_memory_table of_gpu(gr_config_attention way, int T) {
    gr_config c = config;
    gr_memory_table m;
    c.parallel.backend = GR_BACKEND_CUDA;
    c.parallel.attention_kernels = way;
    c.model.head_dim = 64;
    c.data.seq_len = T;
    gr_comm *comm = comm_open();
    gr_trainer t = {.config = &c, .comm = comm, .elsewhere = true};
    assert_int_equal(gr_trainer_shape(&t), GR_OK);
    const gr_plan_limits limits = gr_forecast_limits(&c, &t.map, 1);
    assert_int_equal(gr_forecast_memory(&t, &limits, NULL, &m), GR_OK);
    gr_trainer_close(&t);
    gr_comm_close(comm, GR_OK);
    return m;
}

/* Two windows, four query heads on two. By cuDNN in bf16: a score is two bytes, a row a float, dk and dv are there for
 * each query head; by blocks of cuBLAS: scores of 512 rows, twice, and fp32 dk and dv of a window. */
static void a_gpu_takes_scratch_for_attention(void **state) {
    (void)state;
    const uint64_t rows = 2 * 4 * 4096, scores = rows * 4096 * 2;
    const gr_memory_table automatic = of_gpu(GR_CONFIG_ATTENTION_AUTO, 4096);
    const gr_memory_table flash = of_gpu(GR_CONFIG_ATTENTION_FLASH, 4096);
    const uint64_t n_auto = item(&automatic, "scratch of attention"), n_flash = item(&flash, "scratch of attention");
    assert_int_equal(automatic.device - n_auto, flash.device - n_flash);
    if (CHECK_DTYPE == GR_F32) {
        assert_int_equal(n_auto, n_flash);
        assert_int_equal(n_auto, 2 * (2 * 512 * 4096 * 4) + 2 * (2 * 4096 * 64 * 4));
        return;
    }
    assert_int_equal(n_auto, scores + rows * 4 + 2 * rows * 64 * 2 + 256);
    assert_int_equal(n_flash, 2 * rows * 4);
    const gr_memory_table longer = of_gpu(GR_CONFIG_ATTENTION_CUDNN, 16384); /* two heads at a time */
    assert_int_equal(
        item(&longer, "scratch of attention"), (UINT64_C(1) << 30) + 2 * 16384 * 4 + 2 * (2 * 16384 * 64 * 2) + 256);
    assert_int_equal(gr_forecast_fit(&automatic, gr_forecast_margin(automatic.total) - 1), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "set parallel.attention_kernels to flash"));
}

static void items_come_largest_first_and_add_up(void **state) {
    (void)state;
    gr_comm *comm = comm_open();
    gr_trainer t = shape_open(comm);
    gr_plan_limits limits = gr_forecast_limits(&config, &t.map, 1);
    gr_memory_table m;
    assert_int_equal(gr_forecast_memory(&t, &limits, &limits, &m), GR_OK);
    uint64_t total = m.item[0].n_byte;
    for (int i = 1; i < GR_MEMORY_ITEMS; i++) {
        assert_true(m.item[i - 1].n_byte >= m.item[i].n_byte);
        total += m.item[i].n_byte;
    }
    assert_int_equal(m.total, total);
    gr_trainer_close(&t);
    gr_comm_close(comm, GR_OK);
}

/* 2 of 8 experts, of which the other rank has 4: no expert there in C(4,2) of C(8,2) cases, 6 of 28. */
static void uniform_routing_sends_the_rows_that_counting_gives(void **state) {
    (void)state;
    gr_comm *comm = comm_open();
    gr_trainer t = shape_open(comm);
    const double N = 32;
    double rows = N * (1 - 6.0 / 28.0);
    assert_true(fabs(gr_forecast_rows(&config, &t.map) - rows) < 1e-9);
    gr_plan_limits l = gr_forecast_limits(&config, &t.map, 1);
    assert_int_equal(l.send_max, ceil(rows));
    assert_int_equal(l.recv_max, ceil(rows));
    assert_int_equal(l.pair_max, N * 2);
    l = gr_forecast_limits(&config, &t.map, 1000); /* never above the worst case */
    gr_plan_limits worst = gr_forecast_limits_worst(&config, &t.map);
    assert_int_equal(worst.send_max, N);
    assert_int_equal(worst.pair_max, 2 * N * 2);
    assert_memory_equal(&l, &worst, sizeof l);
    gr_trainer_close(&t);
    gr_comm_close(comm, GR_OK);
}

static void what_does_not_fit_is_refused_with_its_largest_items(void **state) {
    (void)state;
    gr_memory_table m = {.item = {{"weights", 3ull << 30, 16}, {"gradients", 2ull << 30, 16}, {"plans", 1 << 20, 1}},
        .total = (5ull << 30) + (1 << 20)};
    assert_int_equal(gr_forecast_fit(&m, gr_forecast_margin(m.total)), GR_OK);
    assert_int_equal(gr_forecast_fit(&m, gr_forecast_margin(m.total) - 1), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "weights 3.00 GiB, gradients 2.00 GiB, plans 1.00 MiB"));
    assert_non_null(strstr(gr_error_text(), "lower train.micro_batch_windows, make the model smaller"));
}

/* Every byte of memory is more than a machine has, and no margin wraps around. */
static void sizes_beyond_64_bits_do_not_wrap(void **state) {
    (void)state;
    assert_int_equal(gr_forecast_margin(UINT64_MAX), UINT64_MAX);
    assert_int_equal(gr_forecast_margin(UINT64_MAX - 1), UINT64_MAX);
    gr_memory_table m = {.item = {{"weights", UINT64_MAX, 16}, {"a", 0, 0}, {"b", 0, 0}}, .total = UINT64_MAX};
    gr_comm *comm;
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    assert_int_equal(gr_forecast_fit_host(&m, comm), GR_RESOURCE);
    gr_comm_close(comm, GR_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predicted_bytes_are_those_that_model_and_optimizer_allocate),
        cmocka_unit_test(what_a_rank_keeps_falls_with_the_number_of_ranks),
        cmocka_unit_test(learned_routes_are_predicted_to_need_a_plan_per_layer),
        cmocka_unit_test(a_gpu_takes_scratch_for_attention),
        cmocka_unit_test(items_come_largest_first_and_add_up),
        cmocka_unit_test(uniform_routing_sends_the_rows_that_counting_gives),
        cmocka_unit_test(what_does_not_fit_is_refused_with_its_largest_items),
        cmocka_unit_test(sizes_beyond_64_bits_do_not_wrap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
