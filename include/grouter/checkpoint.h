/* checkpoint.h: what a run is saved as, and how it comes back.
 *
 * Files of <run.dir>/checkpoints/step-<8 or more digits>/:
 * - model-<r>-of-<R_ep>.safetensors, by rank r of the first expert-parallel group: its experts by logical id, from rank
 *   0 also what all ranks share. Hugging Face names, whole tensors, F32.
 * - model.safetensors.index.json, by rank 0: which of these files holds which tensor.
 * - optim-<r>-of-<R>.safetensors, by every rank: the pieces of the moments it owns, 1-D tensors named
 *   <logical tensor>.<exp_avg or exp_avg_sq>.<first element>.
 * - manifest.json, written last: version, step, cursor, counters, layout, config, facts (identities, environment), size
 *   and XXH3-128 of every other file, and the XXH3-64 of its own text.
 *
 * Save protocol, against a power loss at any instant: a folder tmp-<step>.<run id> with files that did not exist, their
 * room reserved first, written, synced, closed; all ranks agree; rank 0 re-opens each and checks its size, writes and
 * syncs the manifest, syncs the folder, renames it to step-<step>, syncs the parent; only then is it durable and said
 * so. There is no "latest" file: the newest folder whose manifest and files verify wins. A failed close or sync is
 * never repeated on the same file. A folder that has the name already (damaged, or of a save that failed at the very
 * end) is kept as replaced-<step>.<run id>.
 */
#ifndef GROUTER_CHECKPOINT_H
#define GROUTER_CHECKPOINT_H

#include "grouter/io.h"
#include "grouter/optim.h"

#define GR_CHECKPOINT_PATH_MAX (GR_PATH_MAX + 64) /* of a checkpoint's folder */

/* Scalars of a run beside weights and moments. */
typedef struct gr_run_state {
    int64_t step;                  /* steps done */
    uint64_t cursor;               /* windows consumed */
    gr_optimizer_counts optimizer; /* when saving, the optimizer's own count */
    int64_t decay_steps;           /* of the schedule, fixed at the first start */
} gr_run_state;

/* Text facts that must or should agree on resume; written into the manifest as a flat object, in this order. */
typedef struct gr_fact {
    const char *key;
    const char *value;
} gr_fact;

/* All borrowed until gr_checkpointer_close. */
typedef struct gr_checkpoint_options {
    gr_io *io;
    const char *folder; /* <run.dir>/checkpoints */
    gr_comm *comm;
    const gr_params *params;
    gr_weights weights;
    gr_optimizer *optimizer;
    const char *config_text;
    const gr_fact *facts; /* identities and environment */
    int n_fact;
    int64_t keep_last;  /* newest verified ones kept, at least 2 */
    int64_t keep_every; /* steps whose multiples are kept for ever; 0 = none */
} gr_checkpoint_options;

typedef struct gr_checkpointer gr_checkpointer;
/* Collective: makes the folder, durably. Errors are agreed by all ranks. */
GR_MUST gr_err gr_checkpointer_open(gr_checkpointer **out, const gr_checkpoint_options *o);
void gr_checkpointer_close(gr_checkpointer *c);

/* Collective. Saves, says "durable", reads back what it wrote, then retention: surplus ones are hidden first (renamed
 * to trash-...), then removed; never fewer than keep_last verified ones stay, never the one resumed from, a damaged one
 * or a name that is not ours goes. A step that is durable already is not written again. A storage error leaves older
 * checkpoints as they are, removes the temporary folder where possible and returns 74, agreed by all ranks and with the
 * reason in every rank's error text: the caller decides whether to go on. Problems of retention are only warned of. */
GR_MUST gr_err gr_checkpoint_save(gr_checkpointer *c, const gr_run_state *state);

/* Collective, read on rank 0 and the same on all ranks: the manifest of the newest checkpoint that verifies; damaged
 * ones are reported loudly and passed over (none is deleted). *found false without any checkpoint folder; 66 when there
 * are some and none verifies, or the newest whole one is of another version. Leftovers of dead saves (tmp-, trash-) are
 * removed. */
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
