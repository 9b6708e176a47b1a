/* folding.h: a Grouter for another number of experts, from what it does on sampled windows of token files. Ranks share
 * the windows.
 *
 * E_S experts before (source), E_T after (target); T tokens per window; D width of the score rows.
 */
#ifndef GROUTER_FOLDING_H
#define GROUTER_FOLDING_H

#include "grouter/comm.h"
#include "grouter/fold.h"
#include "grouter/grouter.h"

/* Window i of the n_sample sampled from n_window, i < n_sample <= n_window: a uniform one of the i-th of n_sample
 * stretches whose lengths differ by at most 1. So they ascend, are spread, and are all windows if n_sample is n_window.
 */
uint64_t gr_sample_window(uint64_t seed, uint64_t n_window, uint64_t n_sample, uint64_t i);

/* The same on every rank. Everything is borrowed. */
typedef struct gr_folding {
    const gr_grouter *source; /* with its hash: opened or saved */
    gr_comm *comm;
    uint32_t K;  /* of the new Grouter; the source is sampled with its own */
    float scale; /* likewise */
    uint64_t seed;

    const gr_mapping *mapping; /* applied if not NULL (folding only), or one is made: */
    gr_fold_method method;
    gr_fold_kind fold;
    uint32_t E_T;
    size_t n_vector; /* expanding: score inputs sampled, at most */

    gr_tokens *const *tokens; /* [n_file]; none are needed for a mapping, random or block */
    int n_file;
    uint32_t T;
    uint64_t n_window;   /* sampled from all files together; 0, or more than there are: all */
    gr_backend *backend; /* storage type F32; unused without tokens */
} gr_folding;

/* Not to be copied: the Grouter points into itself. */
typedef struct gr_folding_result {
    gr_grouter grouter;              /* hash is set when saved */
    gr_mapping made;                 /* empty where a mapping was given */
    uint64_t n_window, n_window_all; /* sampled, of; 0 without tokens */
    double max_vio_before;           /* MaxVio of the source's choices on the sample; NaN without tokens */
    double max_vio_after;            /* of the new Grouter's on the same windows */
    size_t n_vector;                 /* expanding: vectors sampled */
    gr_expansion_report expansion;   /* rank 0 only */
} gr_folding_result;

/* The one given or made: valid as long as both. */
static inline const gr_mapping *gr_folding_mapping(const gr_folding *f, const gr_folding_result *r) {
    return f->mapping ? f->mapping : &r->made;
}

/* The mapping was made for this Grouter and says all that is needed to apply it: 65 naming the files and both hashes.
 */
GR_MUST gr_err gr_mapping_match(
    const gr_mapping *m, const char *mapping_path, const gr_grouter *g, const char *grouter_path);

/* What can be known before sampling. 64: sizes, K, or a kind of folding that do not go together, or tokens are missing;
 * 65: the files have no window. */
GR_MUST gr_err gr_folding_check(const gr_folding *f);

/* Collective over the world; errors are agreed. Chooses windows (gr_sample_window), counts what the source chooses on
 * them, makes the mapping, folds or expands the score rows and the bias, and counts what the new Grouter chooses.
 * Each window is evaluated alone and counts are whole numbers, so that any number of ranks gives the same mapping and
 * weights. The vectors of an expansion are those of min(256, windows) parts of the sample, each with a reservoir and a
 * random stream of its own, whichever rank has it: the same for any number of ranks too; what rank 0 makes of them has
 * the same bits for the same number of threads.
 * Errors: those of the check; 65 an id outside the Grouter's vocabulary, or too few different vectors to expand; 69; 71
 * scores, or sums of score rows, that are not finite. */
GR_MUST gr_err gr_folding_run(const gr_folding *f, gr_folding_result *out);
void gr_folding_close(gr_folding_result *r); /* accepts a zeroed or half-made one */

/* By one process: the Grouter and, unless `mapping` is NULL, the mapping made. If writing one fails, neither
 * appears: 74. */
GR_MUST gr_err gr_folding_save(gr_folding_result *r, const char *path, const char *mapping);

#endif
