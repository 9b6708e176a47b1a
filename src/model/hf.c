/* hf.c: the tensors of a checkpoint: which a model of its config has, in which file each is, and those a parameter
 * table wants, as fp32. */
#include "hf_parts.h"
#include "weights.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FLOATS (1u << GR_F32 | 1u << GR_BF16 | 1u << GR_F16)
#define ADVICE "the checkpoint is incomplete, damaged or of another model: copy it again"

struct gr_hf {
    gr_hf_info info;
    char folder[GR_PATH_MAX], path[GR_HF_PATH_MAX]; /* path: of what holds the config */
    char single[GR_PATH_MAX];                       /* the one file that was given without its folder; else "" */
    gr_expert_map map;                              /* one rank */
    gr_params params;                               /* of the whole model */
    gr_whole *whole;                                /* [n_whole] by name */
    const gr_tensor **found;                        /* [n_whole] in the files opened so far */
    int *file_of;                                   /* [n_whole] */
    gr_hf_index index;                              /* owns the names of files; unused with one file */
    const char **name;                              /* [n_shard] */
    gr_safetensors **file;                          /* [n_shard] NULL: not opened */
    int n_whole;
};

/* ---------------------------------------------------------------- the tensors of a whole model */

static gr_err tensors_list(gr_hf *hf) {
    const gr_model_config *c = &hf->info.model;
    int64_t n = (int64_t)(c->num_hidden_layers - c->first_k_dense_replace) * c->num_experts * 3;
    if (n > GR_HF_TENSORS_MAX)
        return gr_fail(GR_CHECKPOINT,
            "%s: expected at most %d tensors of experts, got (num_hidden_layers - dense layers) * num_experts * 3 = "
            "%lld",
            hf->path, GR_HF_TENSORS_MAX, (long long)n);
    GR_TRY(gr_expert_map_open(&hf->map, (uint32_t)c->num_experts, 1));
    GR_TRY(gr_params_open(&hf->params, c, &hf->map, 0, 1, 1));
    GR_TRY(gr_wholes_make(&hf->params, &hf->whole, &hf->n_whole));
    gr_wholes_sort(hf->whole, hf->n_whole);
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)hf->n_whole, sizeof *hf->found, "tensor table"));
    hf->found = memory;
    GR_TRY(gr_alloc(&memory, (size_t)hf->n_whole, sizeof *hf->file_of, "tensor table"));
    hf->file_of = memory;
    return GR_OK;
}

/* ---------------------------------------------------------------- files */

static gr_err shards_make(gr_hf *hf, int n) {
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof *hf->name, "list of files"));
    hf->name = memory;
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof *hf->file, "list of files"));
    hf->file = memory;
    hf->info.n_shard = n;
    return GR_OK;
}

static gr_err file_path(const gr_hf *hf, int i, char *path) {
    if (!hf->single[0])
        return gr_hf_path(hf->folder, hf->name[i], path);
    snprintf(path, GR_HF_PATH_MAX, "%s", hf->single);
    return GR_OK;
}

/* Every tensor of a file against the whole model, and that it has all that the index says it has. */
static gr_err file_match(gr_hf *hf, int i, const char *path) {
    gr_problems wrong;
    GR_TRY(gr_problems_open(&wrong, FLOATS, path));
    for (int t = 0; t < gr_safetensors_count(hf->file[i]); t++) {
        const char *name = gr_safetensors_at(hf->file[i], t)->name;
        const gr_whole *w = gr_wholes_find(hf->whole, hf->n_whole, name);
        if (w && hf->file_of[w - hf->whole] != i)
            gr_problem_print(&wrong, "%s: expected only in %s, as the index says, got it here as well", name,
                hf->name[hf->file_of[w - hf->whole]]);
    }
    gr_tensors_match(hf->file[i], hf->whole, hf->n_whole, hf->found, &wrong);
    for (int w = 0; w < hf->n_whole; w++)
        if (hf->file_of[w] == i && !hf->found[w])
            gr_problem_add(&wrong, hf->whole[w].name, hf->whole[w].param, NULL);
    return gr_problems_close(&wrong, path, "the tensors of the config's model", ADVICE);
}

/* Opens file i, once, and checks its header. */
static gr_err file_open(gr_hf *hf, int i) {
    char path[GR_HF_PATH_MAX];
    if (hf->file[i])
        return GR_OK;
    GR_TRY(file_path(hf, i, path));
    GR_TRY(gr_safetensors_open(&hf->file[i], path));
    gr_err err = file_match(hf, i, path);
    if (err) { /* its tensors are not to be found by a later call */
        memset(hf->found, 0, (size_t)hf->n_whole * sizeof *hf->found);
        for (int j = 0; j < hf->info.n_shard; j++) {
            gr_safetensors_close(hf->file[j]);
            hf->file[j] = NULL;
        }
    }
    return err;
}

/* file_of from the index, whose tensors must be the model's. */
static gr_err index_match(gr_hf *hf, const char *path) {
    gr_problems wrong;
    GR_TRY(gr_problems_open(&wrong, FLOATS, path));
    for (int w = 0; w < hf->n_whole; w++)
        hf->file_of[w] = -1;
    for (int i = 0; i < hf->index.n_place; i++) {
        const gr_hf_place *place = &hf->index.place[i];
        const gr_whole *w = gr_wholes_find(hf->whole, hf->n_whole, place->tensor);
        if (w)
            hf->file_of[w - hf->whole] = gr_hf_index_file(&hf->index, place->file);
        else
            gr_problem_print(
                &wrong, "%.*s: expected no such tensor, got one in %s", GR_TENSOR_NAME_MAX, place->tensor, place->file);
    }
    for (int w = 0; w < hf->n_whole; w++)
        if (hf->file_of[w] < 0)
            gr_problem_add(&wrong, hf->whole[w].name, hf->whole[w].param, NULL);
    return gr_problems_close(&wrong, path, "the tensors of config.json's model", ADVICE);
}

/* ---------------------------------------------------------------- opening */

static gr_err config_read(gr_hf *hf) {
    char *text;
    size_t n;
    GR_TRY(gr_hf_path(hf->folder, GR_HF_CONFIG, hf->path));
    GR_TRY(gr_file_read(hf->path, GR_HF_CONFIG_BYTE_MAX, GR_CHECKPOINT, &text, &n));
    gr_hf_info info;
    gr_err err = gr_hf_config_parse(&info, text, n, hf->path);
    free(text);
    info.n_shard = hf->info.n_shard;
    if (!err)
        hf->info = info;
    return err;
}

/* The config of a run, from the metadata of its weights. */
static gr_err run_config_read(gr_hf *hf, const char *text) {
    void *memory;
    char source[GR_HF_PATH_MAX + 32];
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_config), "config of a run"));
    gr_config *config = memory;
    snprintf(source, sizeof source, "%s: metadata grouter_config", hf->path);
    gr_err err = gr_config_parse(config, GR_CONFIG_TRAIN, text, source);
    if (err == GR_CONFIG) {
        char *why = strdup(gr_error_text());
        err = gr_fail(GR_CHECKPOINT, "%s", why ? why : source);
        free(why);
    }
    hf->info.model = config->model;
    hf->info.is_run = true;
    free(config);
    return err;
}

/* One file has everything: its own config if it carries one, else config.json. */
static gr_err single_open(gr_hf *hf) {
    const char *slash = strrchr(hf->single, '/');
    GR_TRY(shards_make(hf, 1));
    hf->name[0] = !hf->single[0] ? GR_HF_SINGLE : slash ? slash + 1 : hf->single;
    GR_TRY(file_path(hf, 0, hf->path));
    GR_TRY(gr_safetensors_open(&hf->file[0], hf->path));
    const char *own = gr_safetensors_metadata(hf->file[0], "grouter_config");
    if (!own && hf->single[0])
        return gr_fail(GR_CHECKPOINT,
            "%s: metadata: expected \"grouter_config\", got none; give the folder that has config.json too", hf->path);
    GR_TRY(own ? run_config_read(hf, own) : config_read(hf));
    GR_TRY(tensors_list(hf));
    char path[GR_HF_PATH_MAX];
    GR_TRY(file_path(hf, 0, path));
    return file_match(hf, 0, path);
}

static gr_err sharded_open(gr_hf *hf) {
    char path[GR_HF_PATH_MAX];
    GR_TRY(config_read(hf));
    GR_TRY(gr_hf_path(hf->folder, GR_HF_INDEX, path));
    GR_TRY(gr_hf_index_open(&hf->index, path));
    GR_TRY(shards_make(hf, hf->index.n_file));
    for (int i = 0; i < hf->index.n_file; i++)
        hf->name[i] = hf->index.file[i];
    GR_TRY(tensors_list(hf));
    return index_match(hf, path);
}

static bool has(const char *folder, const char *name) {
    char path[GR_HF_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return gr_path_exists(path);
}

static gr_err folder_open(gr_hf *hf) {
    bool single = has(hf->folder, GR_HF_SINGLE), sharded = has(hf->folder, GR_HF_INDEX);
    if (single == sharded)
        return gr_fail(GR_CHECKPOINT, "%s: expected either " GR_HF_SINGLE " or " GR_HF_INDEX ", got %s", hf->folder,
            single ? "both; remove the one that is not of this model" : "neither");
    return single ? single_open(hf) : sharded_open(hf);
}

static gr_err path_open(gr_hf *hf, const char *path) {
    struct stat st;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strlen(path) >= GR_PATH_MAX)
        return gr_fail(
            GR_CHECKPOINT, "%.64s...: expected a path below %d bytes, got %zu", path, GR_PATH_MAX, strlen(path));
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        snprintf(hf->folder, sizeof hf->folder, "%s", path);
        return folder_open(hf);
    }
    if (strcmp(name, GR_HF_CONFIG) == 0 || strcmp(name, GR_HF_INDEX) == 0) {
        snprintf(hf->folder, sizeof hf->folder, "%.*s", slash ? (int)(name - path) : 1, slash ? path : ".");
        return folder_open(hf);
    }
    snprintf(hf->single, sizeof hf->single, "%s", path);
    return single_open(hf);
}

gr_err gr_hf_open(gr_hf **out, const char *path) {
    void *memory;
    *out = NULL;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_hf), "checkpoint"));
    gr_hf *hf = memory;
    gr_err err = path_open(hf, path);
    if (err) {
        gr_hf_close(hf);
        return err;
    }
    *out = hf;
    return GR_OK;
}

void gr_hf_close(gr_hf *hf) {
    if (!hf)
        return;
    for (int i = 0; hf->file && i < hf->info.n_shard; i++)
        gr_safetensors_close(hf->file[i]);
    free(hf->file);
    free(hf->name);
    gr_hf_index_close(&hf->index);
    free(hf->file_of);
    free(hf->found);
    free(hf->whole);
    gr_params_close(&hf->params);
    gr_expert_map_close(&hf->map);
    free(hf);
}

const gr_hf_info *gr_hf_get(const gr_hf *hf) {
    return &hf->info;
}

const gr_whole *gr_hf_wholes(const gr_hf *hf, int *n) {
    *n = hf->n_whole;
    return hf->whole;
}

const char *gr_hf_shard_name(const gr_hf *hf, int i) {
    GR_ASSERT(i >= 0 && i < hf->info.n_shard, "file %d of %d", i, hf->info.n_shard);
    return hf->name[i];
}

/* ---------------------------------------------------------------- identity */

#define END_BYTES ((size_t)1 << 16)

static gr_err ends_add(gr_hasher *h, const char *path) {
    gr_map map;
    GR_TRY(gr_map_open(&map, path, GR_CHECKPOINT));
    uint64_t size = map.n;
    size_t n = map.n < END_BYTES ? map.n : END_BYTES;
    gr_hasher_add(h, &size, sizeof size);
    gr_hasher_add(h, map.p, n);
    gr_hasher_add(h, map.p + map.n - n, n);
    gr_map_close(&map);
    return GR_OK;
}

/* wanted[i]: file i holds a tensor of the table. */
static void mark_files(const gr_hf *hf, const gr_whole *list, int n, bool *wanted) {
    for (int i = 0; i < n; i++) {
        const gr_whole *w = gr_wholes_find(hf->whole, hf->n_whole, list[i].name);
        if (w)
            wanted[hf->file_of[w - hf->whole]] = true;
    }
}

static gr_err files_hash(const gr_hf *hf, const bool *wanted, gr_hasher *h) {
    char path[GR_HF_PATH_MAX];
    if (!hf->info.is_run) {
        GR_TRY(gr_hf_path(hf->folder, GR_HF_CONFIG, path));
        GR_TRY(ends_add(h, path));
    }
    for (int i = 0; i < hf->info.n_shard; i++) {
        if (!wanted[i])
            continue;
        GR_TRY(file_path(hf, i, path));
        GR_TRY(ends_add(h, path));
    }
    return GR_OK;
}

gr_err gr_hf_identity(const gr_hf *hf, const gr_params *p, char text[33]) {
    gr_hasher *h = NULL;
    gr_whole *list;
    void *wanted = NULL;
    int n;
    GR_TRY(gr_wholes_make(p, &list, &n));
    gr_err e = gr_alloc(&wanted, (size_t)hf->info.n_shard, sizeof(bool), "list of files");
    if (!e)
        e = gr_hasher_open(&h);
    if (!e) {
        mark_files(hf, list, n, wanted);
        e = files_hash(hf, wanted, h);
        gr_hash128_text(gr_hasher_128(h), text);
    }
    gr_hasher_close(h);
    free(wanted);
    free(list);
    return e;
}

/* ---------------------------------------------------------------- loading */

/* Opens the files of what this rank holds of the table's tensors; found[i] becomes the tensor of list[i]. */
static gr_err table_open(gr_hf *hf, const gr_params *p, const gr_whole *list, int n, const gr_tensor **found) {
    for (int i = 0; i < n; i++) {
        const gr_whole *w = gr_wholes_find(hf->whole, hf->n_whole, list[i].name);
        if (!w || gr_whole_offset(p, &list[i]) < 0)
            continue;
        GR_TRY(file_open(hf, hf->file_of[w - hf->whole]));
        found[i] = hf->found[w - hf->whole];
    }
    return GR_OK;
}

static gr_err table_check(
    const gr_hf *hf, const gr_params *p, const gr_whole *list, int n, const gr_tensor *const *found) {
    gr_problems wrong;
    GR_TRY(gr_problems_open(&wrong, FLOATS, hf->path));
    for (int i = 0; i < n; i++)
        if (gr_whole_offset(p, &list[i]) >= 0 && !(found[i] && gr_tensor_fits(found[i], list[i].param, FLOATS)))
            gr_problem_add(&wrong, list[i].name, list[i].param, found[i]);
    return gr_problems_close(
        &wrong, hf->path, "the weights of this config's model", "use the model shape of the checkpoint");
}

gr_err gr_hf_load(gr_hf *hf, const gr_params *p, gr_weights to) {
    gr_whole *list;
    void *memory = NULL;
    int n;
    GR_TRY(gr_wholes_make(p, &list, &n));
    gr_err err = gr_alloc(&memory, (size_t)n, sizeof(gr_tensor *), "tensor table");
    const gr_tensor **found = memory;
    if (!err)
        err = table_open(hf, p, list, n, found);
    if (!err)
        err = table_check(hf, p, list, n, found);
    if (!err)
        err = gr_tensors_copy(p, list, n, found, &to);
    free(found);
    free(list);
    return err;
}

gr_err gr_hf_verify(gr_hf *hf, gr_hf_contents *out) {
    *out = (gr_hf_contents){0};
    for (int i = 0; i < hf->info.n_shard; i++)
        GR_TRY(file_open(hf, i));
    for (int w = 0; w < hf->n_whole; w++) {
        const gr_tensor *t = hf->found[w];
        out->n_tensor++;
        out->n_element += gr_param_size(hf->whole[w].param);
        out->n_byte += t->n_byte;
        out->n_of[t->dtype]++;
    }
    return GR_OK;
}
