/* The model's loss and every gradient against the double-precision reference, for every kind of layer. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "model_case.h"

static const gr_model_config plain = {
    .vocab_size = 61,
    .hidden_size = 24,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 4,
    .head_dim = 6,
    .intermediate_size = 20,
    .moe_intermediate_size = 10,
    .num_experts = 8,
    .num_experts_per_tok = 2,
    .rms_norm_eps = 1e-5,
    .rope_theta = 1000,
    .initializer_range = 0.2,
};

static void check(const model_case_options *o) {
    gr_backend *backend;
    gr_comm *comm;
    assert_int_equal(gr_backend_open(&backend, "cpu"), GR_OK);
    assert_int_equal(gr_comm_open(&comm, "self"), GR_OK);
    assert_int_equal(gr_comm_group(comm, 1), GR_OK);
    model_case_result r = model_case_run(backend, comm, o);
    gr_comm_close(comm, GR_OK);
    gr_backend_close(backend);
    if (!(r.loss_error <= 1e-5 && r.gradient_error <= 1e-5))
        fail_msg("loss error %.3g, gradient error %.3g in %s", r.loss_error, r.gradient_error, r.worst);
}

static void plain_model_equals_the_reference(void **state) {
    (void)state;
    check(&(model_case_options){.config = &plain, .n_window = 3, .T = 33, .only_expert = -1});
}

static void grouped_query_attention_with_qk_norm_equals_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.num_key_value_heads = 2;
    c.head_dim = 20;
    c.use_qk_norm = true;
    check(&(model_case_options){.config = &c, .n_window = 2, .T = 40, .only_expert = -1});
}

static void shared_expert_dense_layer_and_tied_head_equal_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.num_hidden_layers = 3;
    c.first_k_dense_replace = 1;
    c.shared_expert_intermediate_size = 14;
    c.tie_word_embeddings = true;
    check(&(model_case_options){.config = &c, .n_window = 2, .T = 17, .only_expert = -1});
}

static void unused_slots_and_one_hot_expert_equal_the_reference(void **state) {
    (void)state;
    check(&(model_case_options){.config = &plain, .n_window = 2, .T = 19, .unused_slots = true, .only_expert = 5});
}

static void every_expert_chosen_equals_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.num_experts_per_tok = c.num_experts;
    check(&(model_case_options){.config = &c, .n_window = 1, .T = 9, .only_expert = -1});
}

static void dense_model_equals_the_reference(void **state) {
    (void)state;
    gr_model_config c = plain;
    c.first_k_dense_replace = c.num_hidden_layers;
    check(&(model_case_options){.config = &c, .n_window = 1, .T = 12, .only_expert = -1});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_model_equals_the_reference),
        cmocka_unit_test(grouped_query_attention_with_qk_norm_equals_the_reference),
        cmocka_unit_test(shared_expert_dense_layer_and_tied_head_equal_the_reference),
        cmocka_unit_test(unused_slots_and_one_hot_expert_equal_the_reference),
        cmocka_unit_test(every_expert_chosen_equals_the_reference),
        cmocka_unit_test(dense_model_equals_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
