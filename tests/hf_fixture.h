/* hf_fixture.h: checkpoints of tests/fixtures (scripts/verify_hf.py), copied to be damaged. */
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

#endif
