/* checkpoint_parts.h: what the files of checkpoints share. Lowest first: files of one folder, the manifest, contents of
 * the files; checkpoint.c saves, checkpoint_retain.c forgets, checkpoint_find.c and checkpoint_load.c bring back. */
#ifndef GROUTER_TRAIN_CHECKPOINT_PARTS_H
#define GROUTER_TRAIN_CHECKPOINT_PARTS_H

#include "grouter/checkpoint.h"

#define CHECKPOINT_BUFFER_BYTE ((size_t)1 << 20) /* of reading and writing, one file at a time */
#define CHECKPOINT_MANIFEST "manifest.json"
#define CHECKPOINT_INDEX "model.safetensors.index.json"
enum {
    CHECKPOINT_N_MOMENT = 2,
    CHECKPOINT_NAME_MAX = 64,
    CHECKPOINT_FILE_PATH_MAX = GR_CHECKPOINT_PATH_MAX + CHECKPOINT_NAME_MAX,
    CHECKPOINT_FILES_MAX = 65536,
};

/* ---------------------------------------------------------------- checkpoint_files.c: one folder's files */

/* What the manifest says of a file. */
typedef struct gr_saved_file {
    uint64_t n_byte;
    gr_hash128 hash; /* XXH3-128 of the bytes that were to be written */
} gr_saved_file;

/* A file in the making. */
typedef struct gr_new_file {
    gr_io *io;
    bool is_open;
    int fd;
    char path[CHECKPOINT_FILE_PATH_MAX];
    gr_hasher *hasher;
    uint8_t *buffer; /* [CHECKPOINT_BUFFER_BYTE] borrowed; of the one file that is being written */
    size_t n_buffered;
    uint64_t n_byte;
} gr_new_file;

/* Creates the file (it must not exist) and reserves its room: 74. After an error gr_new_file_close is still due. */
GR_MUST gr_err gr_new_file_open(
    gr_new_file *f, gr_io *io, const char *folder, const char *name, uint64_t n_byte, uint8_t *buffer);
GR_MUST gr_err gr_new_file_write(gr_new_file *f, const void *data, size_t n_byte);
/* Syncs and closes: 74, and then the file must not be used again. */
GR_MUST gr_err gr_new_file_commit(gr_new_file *f, gr_saved_file *out);
void gr_new_file_close(gr_new_file *f); /* accepts a zeroed one */

/* 66 naming what differs: not a regular file, another size, another hash, unreadable. */
GR_MUST gr_err gr_saved_file_verify(
    gr_io *io, const char *folder, const char *name, const gr_saved_file *expected, uint8_t *buffer);
/* The same without reading it. */
GR_MUST gr_err gr_saved_file_check_size(gr_io *io, const char *folder, const char *name, const gr_saved_file *expected);
/* A whole file of at most `max` bytes, for the caller to free: 66. */
GR_MUST gr_err gr_saved_text_read(gr_io *io, const char *folder, const char *name, size_t max, char **text, size_t *n);

GR_MUST gr_err gr_saved_folder_sync(gr_io *io, const char *path); /* 74 */
/* 66 unless the path is a folder, and not by way of a link. */
GR_MUST gr_err gr_saved_folder_check(gr_io *io, const char *path);
/* The files that a save makes, then the folder: 0 or -errno. It stays if anything else is in it. */
int gr_saved_folder_remove(gr_io *io, const char *path);

typedef struct gr_names {
    char (*name)[CHECKPOINT_NAME_MAX];
    int n, n_max;
    bool (*keep)(const char *name);
} gr_names;
/* Names in the folder that `keep` accepts (shorter than CHECKPOINT_NAME_MAX): 0 or -errno. names->name is for the
 * caller to free. */
int gr_names_list(gr_io *io, const char *path, bool (*keep)(const char *name), gr_names *names);

/* 74: "<path>: <doing> failed: <why>; ..." */
GR_MUST gr_err gr_storage_fail(const char *path, const char *doing, int negative_errno);

/* ---------------------------------------------------------------- checkpoint_names.c */

/* "step-<8 or more digits>" and nothing else. */
bool gr_step_name_read(const char *name, int64_t *step);
bool gr_step_name_is(const char *name);
/* What a save or retention that died leaves: "tmp-" or "trash-", a step, ".", 16 hexadecimal digits. */
bool gr_leftover_name_is(const char *name);
/* Removes all leftovers; what cannot be removed is told in a warning. */
void gr_leftovers_remove(gr_io *io, const char *folder);

/* Steps of all folders with a checkpoint's name, newest first: 0 or -errno. *step is for the caller to free. */
int gr_steps_list(gr_io *io, const char *folder, int64_t **step, int *n);
/* "<folder>/step-<step>" into path[GR_CHECKPOINT_PATH_MAX]. */
void gr_step_path(const char *folder, int64_t step, char *path);

/* Files of a checkpoint in the manifest's order: model-0.., the index, optim-0... */
int gr_saved_file_count(int n_rank, int R_ep);
void gr_saved_file_name(int n_rank, int R_ep, int i, char name[CHECKPOINT_NAME_MAX]);

/* ---------------------------------------------------------------- checkpoint_manifest.c */

#define CHECKPOINT_MANIFEST_VERSION 1

typedef struct gr_manifest {
    int64_t version;
    gr_run_state state;
    int n_rank, R_ep;
    char *config_text; /* these three: owned after parsing, borrowed when printing */
    gr_fact *facts;
    gr_saved_file *file; /* [gr_saved_file_count] */
    int n_fact;
} gr_manifest;

GR_MUST gr_err gr_manifest_print(const gr_manifest *m, char **text, size_t *n); /* 69; *text for the caller to free */
/* Everything checked, from any text: 66 naming source. m->version is set as soon as the text is known to be whole, so
 * that the caller can tell another version from damage. Due in any case: gr_manifest_close. */
GR_MUST gr_err gr_manifest_parse(gr_manifest *m, const char *text, size_t n, const char *source);
void gr_manifest_close(gr_manifest *m);

/* Of folder: reads and parses the manifest, then verifies every file. 66 what differs. *text, *n if not NULL: the
 * manifest's, for the caller to free. Due in any case: gr_manifest_close. */
GR_MUST gr_err gr_checkpoint_verify(
    gr_io *io, const char *path, int64_t step, uint8_t *buffer, gr_manifest *m, char **text, size_t *n);

/* ---------------------------------------------------------------- checkpoint_contents.c: what a rank writes */

typedef struct gr_contents {
    gr_tensor *tensor;
    const float **data; /* [n] moments, memory of backend; NULL of weights, which are read as they are written */
    gr_backend *backend;
    char (*name)[GR_TENSOR_NAME_MAX];
    int n;
    uint8_t *header;
    size_t n_header, n_data;
} gr_contents;

/* Does the file of this rank, a member of the first expert-parallel group, have the tensor: its experts, of rank 0 also
 * what all share. */
bool gr_contents_has(const gr_params *p, const gr_whole *w);
/* Those of the list, in its order. */
GR_MUST gr_err gr_contents_model(gr_contents *c, const gr_params *p, const gr_whole *list, int n);
/* The pieces of the moments that this rank owns. */
GR_MUST gr_err gr_contents_optimizer(gr_contents *c, const gr_params *p, const gr_moments owned[2]);
void gr_contents_close(gr_contents *c);
/* "exp_avg" and "exp_avg_sq". */
const char *gr_moment_name(int state);
/* model.safetensors.index.json: which file holds which tensor. */
GR_MUST gr_err gr_contents_index(const gr_params *p, int R_ep, char **text, size_t *n);

/* ---------------------------------------------------------------- the checkpointer */

struct gr_checkpointer {
    gr_checkpoint_options o;
    uint8_t *buffer;      /* [CHECKPOINT_BUFFER_BYTE] */
    uint64_t run_id;      /* in the names of temporary folders; the same on all ranks, another in each save */
    int64_t durable_step; /* newest saved and verified, or loaded; -1: none */
    int64_t resumed_step; /* -1: none */
    struct gr_verified {
        int64_t step;
        bool valid;
    } * verified; /* on rank 0: what is known of folders, so that each is read once */
    int n_verified, verified_max;
};

/* Remembers whether a checkpoint counts among those kept: 69. */
GR_MUST gr_err gr_verified_set(gr_checkpointer *c, int64_t step, bool valid);
/* On rank 0: removes what need not be kept. Problems are told in a warning; nothing depends on it. */
void gr_checkpoints_retain(gr_checkpointer *c);

#endif
