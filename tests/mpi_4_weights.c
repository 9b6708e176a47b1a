/* mpi_4_weights.c: four ranks write the file that one rank writes, and read their own share of it back, whether they
 * hold the weights they use or only those they own. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <unistd.h>

#include "weights_fixture.h"

static const char *const path = "mpi_4_weights.safetensors", *const alone_path = "mpi_4_weights.alone.safetensors";
static gr_comm *comm;

static void write_alone(gr_hash128 *hash) {
    weights_fixture whole;
    gr_comm *self;
    fixture_open(&whole, 1, 0);
    assert_int_equal(gr_comm_open(&self, "self"), GR_OK);
    assert_int_equal(gr_params_save(&whole.params, self, gr_weights_whole(&whole.params, whole.flat), alone_path,
                         &(gr_metadata){"grouter_config", "{}"}, hash),
        GR_OK);
    gr_comm_close(self, GR_OK);
    fixture_close(&whole);
}

static void assert_same_files(void) {
    char *a, *b;
    size_t n_a, n_b;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_BUG, &a, &n_a), GR_OK);
    assert_int_equal(gr_file_read(alone_path, 1 << 20, GR_BUG, &b, &n_b), GR_OK);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    free(a);
    free(b);
    unlink(alone_path);
}

static void any_layout_writes_the_same_file_and_reads_its_share(void **state) {
    (void)state;
    weights_fixture f;
    gr_hash128 hash = {0}, alone = {0};
    fixture_open(&f, 2, (uint32_t)comm->rank[GR_EP]);
    assert_int_equal(gr_params_save(&f.params, comm, gr_weights_whole(&f.params, f.flat), path,
                         &(gr_metadata){"grouter_config", "{}"}, &hash),
        GR_OK);
    if (comm->rank[GR_WORLD] == 0) {
        write_alone(&alone);
        assert_true(hash.lo == alone.lo && hash.hi == alone.hi);
        assert_same_files();
    }
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
    size_t n_byte = (size_t)f.params.n_element * sizeof *f.flat;
    float *again = malloc(n_byte);
    assert_int_equal(gr_params_load(&f.params, path, gr_weights_whole(&f.params, again)), GR_OK);
    assert_memory_equal(again, f.flat, n_byte);
    free(again);
    fixture_close(&f);
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
    if (comm->rank[GR_WORLD] == 0)
        unlink(path);
}

/* This rank's share of whole weights. */
static gr_weights shared_of(const gr_params *p, const float *flat) {
    gr_weights w = gr_weights_shared(p, comm, malloc((size_t)p->n_element * sizeof *flat));
    assert_non_null(w.at[0]);
    for (int part = 0; part < 2; part++)
        memcpy(w.at[part], flat + w.share[part].first, (size_t)w.share[part].n * sizeof *flat);
    return w;
}

static void check_shares(int R_ep) {
    weights_fixture f;
    gr_hash128 hash = {0}, alone = {0};
    assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
    fixture_open_sharded(&f, (uint32_t)R_ep, (uint32_t)comm->rank[GR_EP], comm->size[GR_WORLD], comm->size[GR_EDP]);
    gr_weights own = shared_of(&f.params, f.flat), again = shared_of(&f.params, f.flat);
    assert_int_equal(gr_params_save(&f.params, comm, own, path, &(gr_metadata){"grouter_config", "{}"}, &hash), GR_OK);
    if (comm->rank[GR_WORLD] == 0) {
        write_alone(&alone);
        assert_true(hash.lo == alone.lo && hash.hi == alone.hi);
        assert_same_files();
    }
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
    for (int part = 0; part < 2; part++)
        memset(again.at[part], 0xff, (size_t)again.share[part].n * sizeof(float));
    assert_int_equal(gr_params_load(&f.params, path, again), GR_OK);
    for (int part = 0; part < 2; part++)
        assert_memory_equal(again.at[part], own.at[part], (size_t)own.share[part].n * sizeof(float));
    free(again.at[0]);
    free(own.at[0]);
    fixture_close(&f);
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
    if (comm->rank[GR_WORLD] == 0)
        unlink(path);
}

static void shares_make_the_same_file_and_come_back_from_it(void **state) {
    (void)state;
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2)
        check_shares(R_ep);
    assert_int_equal(gr_comm_group(comm, 2), GR_OK);
}

/* A norm of -0 is as much a value as any other, though no sum of other ranks' zeros gives it. */
static void gathered_vectors_have_the_bits_of_their_owners(void **state) {
    (void)state;
    weights_fixture f;
    fixture_open_sharded(&f, 2, (uint32_t)comm->rank[GR_EP], comm->size[GR_WORLD], comm->size[GR_EDP]);
    for (int i = 0; i < f.params.n; i++)
        for (int64_t j = 0; f.params.list[i].n_dim == 1 && j < f.params.list[i].dim[0]; j += 2)
            f.flat[f.params.list[i].offset + j] = -0.0f;
    gr_weights own = shared_of(&f.params, f.flat);
    float *vectors = malloc((size_t)f.params.n_vector * sizeof *vectors);
    uint16_t *act = calloc((size_t)f.params.n_element, sizeof *act);
    for (int part = 0; part < 2; part++)
        for (int64_t i = 0; i < own.share[part].n; i++)
            act[own.share[part].first + i] = gr_bf16_from_f32(own.at[part][i]);
    assert_int_equal(gr_weights_gather(&f.params, comm, &own, act, GR_BF16, vectors), GR_OK);
    for (int i = 0; i < f.params.n; i++) {
        const gr_param *p = &f.params.list[i];
        if (p->n_dim == 1)
            assert_memory_equal(vectors + p->vector, f.flat + p->offset, (size_t)p->dim[0] * sizeof *vectors);
    }
    for (int64_t i = 0; i < f.params.n_element; i++)
        assert_int_equal(act[i], gr_bf16_from_f32(f.flat[i]));
    free(act);
    free(vectors);
    free(own.at[0]);
    fixture_close(&f);
}

/* Of names and bytes in the file's order, from whole weights of one rank. */
static gr_hash128 hash_of_whole(const gr_params *p, const float *flat) {
    gr_whole *list;
    gr_hasher *hasher;
    int n;
    assert_int_equal(gr_wholes_make(p, &list, &n), GR_OK);
    assert_int_equal(gr_hasher_open(&hasher), GR_OK);
    for (int i = 0; i < n; i++) {
        gr_hasher_add(hasher, list[i].name, strlen(list[i].name));
        gr_hasher_add(hasher, flat + gr_whole_offset(p, &list[i]), (size_t)gr_param_size(list[i].param) * sizeof *flat);
    }
    gr_hash128 hash = gr_hasher_128(hasher);
    gr_hasher_close(hasher);
    free(list);
    return hash;
}

/* What a file of them brings back, piece by piece. */
static void check_file(const gr_params *p, gr_comm *c, const gr_weights *w, const float *values, bool shared) {
    const char *large = "mpi_4_weights.large";
    gr_hash128 hash;
    size_t n_byte = (size_t)(w->share[0].n + w->share[1].n) * sizeof *values;
    float *again = malloc(n_byte);
    memset(again, 0xff, n_byte);
    assert_int_equal(gr_params_save(p, c, *w, large, NULL, &hash), GR_OK);
    assert_int_equal(
        gr_params_load(p, large, shared ? gr_weights_shared(p, c, again) : gr_weights_whole(p, again)), GR_OK);
    assert_memory_equal(values, again, n_byte);
    free(again);
    assert_int_equal(c->barrier(c, GR_WORLD), GR_OK);
    if (c->rank[GR_WORLD] == 0)
        remove(large);
}

/* Weights of each layout are initialised where they are: two pieces and a bit for embedding and head. */
static gr_hash128 hash_of_large(gr_comm *c, bool shared) {
    gr_model_config config = fixture_config;
    gr_expert_map map;
    gr_params p;
    gr_hash128 hash = {0};
    config.vocab_size = (int)(2 * GR_WEIGHTS_PIECE / config.hidden_size) + 7;
    assert_int_equal(gr_expert_map_open(&map, FIXTURE_EXPERTS, (uint32_t)c->size[GR_EP]), GR_OK);
    assert_int_equal(
        gr_params_open(&p, &config, &map, (uint32_t)c->rank[GR_EP], c->size[GR_WORLD], c->size[GR_EDP]), GR_OK);
    float *values = malloc((size_t)p.n_element * sizeof *values);
    gr_weights w = shared ? gr_weights_shared(&p, c, values) : gr_weights_whole(&p, values);
    assert_int_equal(gr_params_init(&p, 3, w), GR_OK);
    assert_int_equal(gr_params_save(&p, c, w, NULL, NULL, &hash), GR_OK);
    if (c->size[GR_WORLD] == 1) {
        gr_hash128 expected = hash_of_whole(&p, values);
        assert_true(hash.lo == expected.lo && hash.hi == expected.hi);
    } else
        check_file(&p, c, &w, values, shared);
    free(values);
    gr_params_close(&p);
    gr_expert_map_close(&map);
    return hash;
}

static void tensors_larger_than_a_piece_have_one_hash_in_any_layout(void **state) {
    (void)state;
    gr_hash128 alone = {0};
    gr_comm *self;
    assert_int_equal(gr_comm_open(&self, "self"), GR_OK);
    assert_int_equal(gr_comm_group(self, 1), GR_OK);
    alone = hash_of_large(self, false);
    gr_comm_close(self, GR_OK);
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2)
        for (int shared = 0; shared < 2; shared++) {
            assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
            gr_hash128 hash = hash_of_large(comm, shared);
            assert_true(comm->rank[GR_WORLD] != 0 || (hash.lo == alone.lo && hash.hi == alone.hi));
        }
    assert_int_equal(gr_comm_group(comm, 2), GR_OK);
}

/* Rows that nobody took would turn up in the next save. */
static void every_rank_learns_of_a_storage_error_and_no_row_stays_behind(void **state) {
    (void)state;
    weights_fixture f;
    gr_hash128 hash, alone;
    fixture_open(&f, 2, (uint32_t)comm->rank[GR_EP]);
    float *zeros = calloc((size_t)f.params.n_element, sizeof *zeros);
    assert_int_equal(
        gr_params_save(&f.params, comm, gr_weights_whole(&f.params, zeros), "mpi_4_weights.absent/x", NULL, &hash),
        GR_STORAGE);
    assert_int_equal(gr_params_save(&f.params, comm, gr_weights_whole(&f.params, f.flat), NULL, NULL, &hash), GR_OK);
    if (comm->rank[GR_WORLD] == 0) {
        write_alone(&alone);
        unlink(alone_path);
        assert_true(hash.lo == alone.lo && hash.hi == alone.hi);
    }
    free(zeros);
    fixture_close(&f);
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_layout_writes_the_same_file_and_reads_its_share),
        cmocka_unit_test(shares_make_the_same_file_and_come_back_from_it),
        cmocka_unit_test(gathered_vectors_have_the_bits_of_their_owners),
        cmocka_unit_test(tensors_larger_than_a_piece_have_one_hash_in_any_layout),
        cmocka_unit_test(every_rank_learns_of_a_storage_error_and_no_row_stays_behind),
    };
    gr_err err = gr_comm_open(&comm, "mpi");
    if (!err)
        err = gr_comm_group(comm, 2);
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    return failed;
}
