/* hf.h: checkpoints that were trained elsewhere: Hugging Face's Qwen3-MoE, and weights of this program with its config.
 */
#ifndef GROUTER_HF_H
#define GROUTER_HF_H

#include "grouter/data.h"
#include "grouter/model.h"

typedef struct gr_hf gr_hf;

typedef struct gr_hf_info {
    gr_model_config model; /* Hugging Face: learned routers, scale 1, no losses of routers */
    bool is_run;           /* weights of this program, read by the config they carry */
    int n_shard;
} gr_hf_info;

/* `path` is
 * - a folder with config.json (model_type "qwen3_moe"; rope_theta at the top or in rope_parameters) and either
 *   model.safetensors or model.safetensors.index.json with its shards; one of these two .json files stands for its
 *   folder;
 * - or a model.safetensors of a run of this program, or a folder with one: its metadata "grouter_config" is the config.
 *
 * Read are the config and the index (without an index: the header of the one file), never a tensor. All that is wrong
 * with the config is reported at once; features this program does not compute are refused by name. The tensors' names
 * must be exactly those of a model of this config. Files must be regular ones of plain names in the folder itself, no
 * links out of it. Any of this: 66. */
GR_MUST gr_err gr_hf_open(gr_hf **out, const char *path);
void gr_hf_close(gr_hf *hf); /* accepts NULL */
const gr_hf_info *gr_hf_get(const gr_hf *hf);

/* All tensors a whole model of this config has, sorted by name; owned by hf. */
const gr_whole *gr_hf_wholes(const gr_hf *hf, int *n);
const char *gr_hf_shard_name(const gr_hf *hf, int i); /* file name, without its folder */

/* Fills `to` with the tensors of the table `p` that this rank holds, F32, BF16 and F16 alike as fp32, all other
 * elements 0. The table may hold less than the checkpoint: a model cut off at a layer reads what it has up to there,
 * and only the files that hold it are opened. A tensor of the table that is missing or has another shape, and anything
 * wrong in the headers of the files opened (shape, dtype, a tensor that the index says is elsewhere): 66 with a table
 * of expected and found, before anything is copied. */
GR_MUST gr_err gr_hf_load(gr_hf *hf, const gr_params *p, gr_weights to);

/* Tells one checkpoint from another by sizes and ends of config.json and of the files that hold tensors of the table
 * `p`, into text[33]: GR_OK, 66 or 69. */
GR_MUST gr_err gr_hf_identity(const gr_hf *hf, const gr_params *p, char text[33]);

/* What is in the files; opens all of them and checks all their headers as gr_hf_load does. */
typedef struct gr_hf_contents {
    int n_tensor;
    int64_t n_element;
    uint64_t n_byte;
    int n_of[GR_N_DTYPE]; /* tensors by dtype */
} gr_hf_contents;
GR_MUST gr_err gr_hf_verify(gr_hf *hf, gr_hf_contents *out);

#endif
