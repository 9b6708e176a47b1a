/* hf_parts.h: the reader of Hugging Face's checkpoints in three files: hf_config.c (config.json), hf_files.c (the
 * folder and its index), hf.c (tensors). Internal to src/model. */
#ifndef GROUTER_MODEL_HF_PARTS_H
#define GROUTER_MODEL_HF_PARTS_H

#include "grouter/hf.h"
#include "grouter/json.h"

enum { GR_HF_PATH_MAX = GR_PATH_MAX + 160, GR_HF_SHARDS_MAX = 65536, GR_HF_TENSORS_MAX = 1000000 };

#define GR_HF_CONFIG_BYTE_MAX ((size_t)1 << 20)
#define GR_HF_SINGLE "model.safetensors"
#define GR_HF_INDEX "model.safetensors.index.json"
#define GR_HF_CONFIG "config.json"

/* Reads config.json, which must be of a Qwen3-MoE that this program can compute. `path` is for errors. */
GR_MUST gr_err gr_hf_config_parse(gr_hf_info *out, const char *text, size_t n, const char *path);

/* `folder/name` into path[GR_HF_PATH_MAX], once it is known to lie in the folder itself, links followed. */
GR_MUST gr_err gr_hf_path(const char *folder, const char *name, char *path);

/* Where the index says a tensor is. */
typedef struct gr_hf_place {
    const char *tensor, *file; /* of the index */
} gr_hf_place;

typedef struct gr_hf_index {
    gr_json *json;      /* owns the names */
    gr_hf_place *place; /* [n_place] document order */
    const char **file;  /* [n_file] sorted, each once */
    int n_place, n_file;
} gr_hf_index;

/* File names are checked (plain, *.safetensors), tensor names are not. */
GR_MUST gr_err gr_hf_index_open(gr_hf_index *index, const char *path);
void gr_hf_index_close(gr_hf_index *index); /* accepts a zeroed object */
int gr_hf_index_file(const gr_hf_index *index, const char *name);

#endif
