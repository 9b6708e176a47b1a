/* hf_fixture.h: checkpoints of tests/fixtures (scripts/verify_hf.py), copied to be damaged. Include cmocka.h before. */
#ifndef GROUTER_HF_FIXTURE_H
#define GROUTER_HF_FIXTURE_H

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "grouter/hf.h"

#define HF_FIXTURES FIXTURES "/qwen3_moe_tiny"

enum { HF_FOLDER_MAX = 512, HF_PATH_MAX = 1024 };

static inline void hf_write(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    GR_ASSERT(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "%s", path);
}

static inline char *hf_read(const char *path, size_t *n) {
    char *data;
    gr_err err = gr_file_read(path, (size_t)1 << 24, GR_CHECKPOINT, &data, n);
    GR_ASSERT(!err, "%s", gr_error_text());
    return data;
}

/* Calls visit with the path of every entry of a folder. */
static inline void hf_each(const char *folder, void (*visit)(const char *path, const char *name, void *), void *to) {
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            char path[HF_PATH_MAX];
            snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
            visit(path, e->d_name, to);
        }
    if (d)
        closedir(d);
}

static inline void hf_remove_one(const char *path, const char *name, void *to) {
    (void)name;
    (void)to;
    if (unlink(path) != 0)
        rmdir(path);
}

static inline void hf_remove(const char *folder) {
    hf_each(folder, hf_remove_one, NULL);
    rmdir(folder);
}

static inline void hf_copy_one(const char *path, const char *name, void *to) {
    char copy[HF_PATH_MAX];
    size_t n;
    snprintf(copy, sizeof copy, "%s/%s", (const char *)to, name);
    char *data = hf_read(path, &n);
    hf_write(copy, data, n);
    free(data);
}

/* A fresh copy of a fixture in the folder `to` of the working directory. */
static inline void hf_copy(const char *which, const char *to) {
    char from[HF_FOLDER_MAX], folder[HF_FOLDER_MAX];
    snprintf(from, sizeof from, HF_FIXTURES "/%s", which);
    snprintf(folder, sizeof folder, "%s", to);
    hf_remove(folder);
    GR_ASSERT(mkdir(folder, 0777) == 0, "%s", folder);
    hf_each(from, hf_copy_one, folder);
}

/* Replaces the first `from` in a file; texts may differ in length. */
static inline void hf_edit(const char *folder, const char *name, const char *from, const char *to) {
    char path[HF_PATH_MAX];
    size_t n, n_from = strlen(from), n_to = strlen(to);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *data = hf_read(path, &n), *at = memmem(data, n, from, n_from);
    GR_ASSERT(at, "%s has no %s", path, from);
    size_t before = (size_t)(at - data);
    char *edited = malloc(n + n_to);
    GR_ASSERT(edited, "no memory");
    memcpy(edited, data, before);
    memcpy(edited + before, to, n_to);
    memcpy(edited + before + n_to, at + n_from, n - before - n_from);
    hf_write(path, edited, n - n_from + n_to);
    free(edited);
    free(data);
}

/* The parameter table of `rank` of `n_rank`, and memory for it. */
typedef struct hf_table {
    gr_expert_map map;
    gr_params params;
    float *flat;
} hf_table;

static inline void hf_table_open(hf_table *t, const gr_model_config *c, uint32_t n_rank, uint32_t rank) {
    gr_err err = gr_expert_map_open(&t->map, (uint32_t)c->num_experts, n_rank);
    GR_ASSERT(!err, "%s", gr_error_text());
    err = gr_params_open(&t->params, c, &t->map, rank, 1, 1);
    GR_ASSERT(!err, "%s", gr_error_text());
    t->flat = malloc((size_t)t->params.n_element * sizeof *t->flat);
    GR_ASSERT(t->flat, "no memory");
    memset(t->flat, 0xff, (size_t)t->params.n_element * sizeof *t->flat);
}

static inline void hf_table_close(hf_table *t) {
    gr_params_close(&t->params);
    gr_expert_map_close(&t->map);
    free(t->flat);
}

/* Writes the tensors of several files as one. */
static inline void hf_join(const char *folder, const char *const *name, int n_name, const char *to) {
    gr_safetensors *file[8];
    gr_tensor list[128];
    gr_safetensors_writer *w;
    char path[HF_PATH_MAX];
    int n = 0;
    for (int i = 0; i < n_name; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, name[i]);
        assert_int_equal(gr_safetensors_open(&file[i], path), GR_OK);
        for (int j = 0; j < gr_safetensors_count(file[i]); j++)
            list[n++] = *gr_safetensors_at(file[i], j);
    }
    snprintf(path, sizeof path, "%s/%s", folder, to);
    assert_int_equal(gr_safetensors_writer_open(&w, path, list, n, NULL, 0), GR_OK);
    for (int i = 0; i < n; i++)
        assert_int_equal(gr_safetensors_writer_append(w, list[i].data, list[i].n_byte), GR_OK);
    assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
    gr_safetensors_writer_close(w);
    for (int i = 0; i < n_name; i++)
        gr_safetensors_close(file[i]);
}

static const char *const hf_shards[] = {
    "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"};

/* gr_hf_open or gr_hf_verify fails with 66 and says `what`. */
static inline void hf_expect_refused(const char *path, const char *what) {
    gr_hf *hf;
    gr_hf_contents contents;
    gr_err err = gr_hf_open(&hf, path);
    if (!err)
        err = gr_hf_verify(hf, &contents);
    gr_hf_close(hf);
    if (err != GR_CHECKPOINT)
        fail_msg("expected \"%s\", got %d", what, err);
    if (!strstr(gr_error_text(), what))
        fail_msg("\"%s\" is not in: %s", what, gr_error_text());
}

#endif
