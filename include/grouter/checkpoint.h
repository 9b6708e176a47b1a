/* checkpoint.h: what a run is saved as, and how it comes back.
 *
 * <run.dir>/checkpoints/step-<8 digits>/
 *   model-<r>-of-<R_ep>.safetensors  by rank r of the first expert-parallel group: its experts (logical ids); rank 0
 * also all replicated tensors. Hugging Face names, whole tensors, F32 model.safetensors.index.json     tensor -> file
 *   optim-<r>-of-<R>.safetensors     by every rank: the pieces of the moments it owns, 1-D tensors named
 *                                    <logical tensor>.<exp_avg|exp_avg_sq>.<first element>
 *   manifest.json                    written last: version, step, cursor, counters, config, identities of the data,
 * layout, environment, and every file's size and XXH3-128
 *
 * Save protocol (reliability of a power loss at any instant): tmp-<step>.<run id>/ with O_EXCL files, room allocated
 * first, written, synced, closed; all ranks agree; rank 0 re-opens and checks every size, writes and syncs the
 * manifest, syncs the folder, renames it to step-<step>, syncs the parent; only then is it durable and said so. There
 * is no "latest" file: the newest folder whose manifest and files verify wins. A failed close or sync is never repeated
 * on the same file.
 */
#ifndef GROUTER_CHECKPOINT_H
#define GROUTER_CHECKPOINT_H

#include "grouter/io.h"
#include "grouter/optim.h"

#define GR_CHECKPOINT_PATH_MAX (GR_PATH_MAX + 64) /* of a checkpoint's folder */

/* Scalars of a run beside weights and moments. */
typedef struct gr_run_state {
    int64_t step;    /* steps done */
    uint64_t cursor; /* windows consumed */
    gr_optimizer_counts optimizer;
    int64_t decay_steps; /* of the schedule, fixed at the first start */
} gr_run_state;

/* Text facts that must or should agree on resume; written into the manifest as a flat object, in this order. */
typedef struct gr_fact {
    const char *key;
    const char *value;
} gr_fact;

typedef struct gr_checkpoint_options {
    gr_io *io;
    const char *folder; /* <run.dir>/checkpoints */
    gr_comm *comm;
    const gr_params *params;
    float *weights;
    gr_optimizer *optimizer;
    const char *config_text;
    const gr_fact *facts; /* identities and environment */
    int n_fact;
    int64_t keep_last;  /* newest verified ones kept, at least 2 */
    int64_t keep_every; /* steps whose multiples are kept for ever; 0 = none */
} gr_checkpoint_options;

typedef struct gr_checkpointer gr_checkpointer;
GR_MUST gr_err gr_checkpointer_open(gr_checkpointer **out, const gr_checkpoint_options *o);
void gr_checkpointer_close(gr_checkpointer *c);

/* Collective. Saves, says "durable", then retention: only after the new one was read back and verified; hidden first
 * (renamed to trash-...), then removed; never fewer than keep_last verified ones, never the one resumed from, never a
 * name that is not ours. A storage error leaves older checkpoints as they are, removes the temporary folder where
 * possible and returns 74, agreed by all ranks: the caller decides whether to go on. */
GR_MUST gr_err gr_checkpoint_save(gr_checkpointer *c, const gr_run_state *state);

/* Read on rank 0 and the same on all ranks: the manifest of the newest checkpoint that verifies; damaged ones are
 * reported loudly and passed over (none is deleted). *found false without any checkpoint folder; 66 when there are some
 * and none verifies. Leftovers of dead saves (tmp-, trash-) are removed. */
typedef struct gr_checkpoint_found {
    bool found;
    char path[GR_CHECKPOINT_PATH_MAX];
    gr_run_state state;
    char *config_text; /* owned: free with gr_checkpoint_found_close */
    gr_fact *facts;
    int n_fact;
    int n_rank, R_ep; /* layout that wrote it */
} gr_checkpoint_found;
GR_MUST gr_err gr_checkpoint_find(gr_io *io, gr_comm *comm, const char *folder, gr_checkpoint_found *out);
void gr_checkpoint_found_close(gr_checkpoint_found *f);

/* Collective: fills weights, moments and counts from the found checkpoint, whatever layout wrote it. Missing, extra,
 * wrongly shaped or typed tensors, or pieces that do not cover a moment exactly once: 66 with a table of
 * expected/found, nothing used. */
GR_MUST gr_err gr_checkpoint_load(gr_checkpointer *c, const gr_checkpoint_found *found);

#endif
