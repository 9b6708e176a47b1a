/* folding.c: from a Grouter to one of another number of experts: sample, group or expand, copy, sample again. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- checks */

gr_err gr_mapping_match(const gr_mapping *m, const char *mapping_path, const gr_grouter *g, const char *grouter_path) {
    char made_for[33], hash[33];
    if (m->router.hi != g->hash.hi || m->router.lo != g->hash.lo)
        return gr_fail(GR_DATA,
            "%s: expected a mapping made for the Grouter %s with hash %s, got one for hash %s; use the Grouter it was "
            "made for, or make a mapping for this one",
            mapping_path, grouter_path, gr_hash128_text(g->hash, hash), gr_hash128_text(m->router, made_for));
    if (m->E_S != (uint32_t)g->spec.network.num_labels)
        return gr_fail(GR_DATA, "%s: expected a mapping from the %d experts of %s, got one from %u; make it again",
            mapping_path, g->spec.network.num_labels, grouter_path, m->E_S);
    if (m->method == GR_FOLD_EXPAND)
        return gr_fail(GR_DATA,
            "%s: expected a mapping that folds, got one of method expand, which does not hold the new score rows; "
            "expand "
            "%s again with --tokens",
            mapping_path, grouter_path);
    return GR_OK;
}

static uint32_t source_experts(const gr_folding *f) {
    return (uint32_t)f->source->spec.network.num_labels;
}

static uint32_t target_experts(const gr_folding *f) {
    return f->mapping ? f->mapping->E_T : f->E_T;
}

static bool expands(const gr_folding *f) {
    return !f->mapping && f->method == GR_FOLD_EXPAND;
}

static gr_err check_method(const gr_folding *f) {
    gr_mapping m;
    GR_TRY(gr_mapping_open(&m, f->method, source_experts(f), f->E_T));
    gr_mapping_close(&m);
    if (expands(f)) {
        GR_TRY(gr_expansion_check_sizes(source_experts(f), f->E_T, (uint32_t)f->source->spec.network.hidden_size));
        if (f->fold != GR_FOLD_SUM)
            return gr_fail(GR_CONFIG, "fold: expected a sum or a mean of rows only for fewer experts, got %s for more",
                gr_fold_kind_name(f->fold));
    }
    const bool blind = f->method == GR_FOLD_RANDOM || f->method == GR_FOLD_BLOCK;
    if (f->n_file == 0 && !blind)
        return gr_fail(GR_CONFIG,
            "fold: method %s: expected token files to sample, got none; only random and block need none",
            gr_fold_method_name(f->method));
    return GR_OK;
}

gr_err gr_folding_check(const gr_folding *f) {
    gr_survey s;
    if (!f->mapping)
        GR_TRY(check_method(f));
    if (f->K < 1 || f->K > target_experts(f) || f->K > GR_TOPK_MAX)
        return gr_fail(GR_CONFIG, "fold: expected 1 to min(%d, %u target experts) experts per token, got %u",
            GR_TOPK_MAX, target_experts(f), f->K);
    return f->n_file > 0 ? gr_survey_open(&s, f) : GR_OK;
}

/* ---------------------------------------------------------------- the new Grouter */

typedef struct job {
    const gr_folding *f;
    gr_folding_result *r;
    gr_survey survey;          /* unused without tokens */
    gr_affinity before, after; /* choices of the source and of the new Grouter */
    gr_vectors vectors;        /* expanding */
} job;

/* The same text for the same mapping, whether it was made here or read. */
static void set_made(const gr_folding *f, const gr_mapping *m, gr_grouter_spec *spec) {
    char hash[33];
    gr_hash128_text(f->source->hash, hash);
    if (m->method == GR_FOLD_EXPAND)
        snprintf(spec->made, sizeof spec->made, "expanded from %u to %u experts on %llu tokens; from Grouter %s",
            m->E_S, m->E_T, (unsigned long long)m->n_token, hash);
    else
        snprintf(spec->made, sizeof spec->made,
            "folded from %u to %u experts by %s (%s) on %llu tokens; from Grouter %s", m->E_S, m->E_T,
            gr_fold_method_name(m->method), gr_fold_kind_name(m->fold), (unsigned long long)m->n_token, hash);
}

static float *tensor(const gr_grouter *g, const char *name) {
    return g->weights + gr_params_find(&g->params, name)->offset;
}

/* A Grouter of the new settings with all but the scores from the source. */
static gr_err make_grouter(const job *j) {
    const gr_grouter *from = j->f->source;
    gr_grouter *to = &j->r->grouter;
    gr_grouter_spec spec = from->spec;
    spec.network.num_labels = (int)target_experts(j->f);
    spec.K = j->f->K;
    spec.scale = j->f->scale;
    set_made(j->f, gr_folding_mapping(j->f, j->r), &spec);
    GR_TRY(gr_grouter_make(to, &spec));
    for (int i = 0; i < to->params.n; i++) {
        const gr_param *p = &to->params.list[i];
        const gr_param *source = gr_params_find(&from->params, p->name);
        if (strcmp(p->name, "score.weight") != 0 && strcmp(p->name, "score.bias") != 0)
            memcpy(to->weights + p->offset, from->weights + source->offset,
                (size_t)gr_param_size(p) * sizeof *to->weights);
    }
    return GR_OK;
}

static gr_err fold_scores(const job *j) {
    const gr_grouter *from = j->f->source, *to = &j->r->grouter;
    const uint32_t D = (uint32_t)from->spec.network.hidden_size, E_T = target_experts(j->f);
    const float *rows = tensor(to, "score.weight"), *bias = tensor(to, "score.bias");
    gr_mapping_fold(gr_folding_mapping(j->f, j->r), D, tensor(from, "score.weight"), tensor(to, "score.weight"));
    gr_mapping_fold(gr_folding_mapping(j->f, j->r), 1, tensor(from, "score.bias"), tensor(to, "score.bias"));
    for (uint32_t e = 0; e < E_T; e++) {
        bool finite = isfinite(bias[e]);
        for (uint32_t d = 0; d < D; d++)
            finite = finite && isfinite(rows[(size_t)e * D + d]);
        if (!finite)
            return gr_fail(GR_NONFINITE,
                "fold: expected finite score rows, got one that is not for new expert %u; the Grouter is damaged or "
                "its "
                "training diverged",
                e);
    }
    return GR_OK;
}

/* On rank 0, which has the vectors. */
static gr_err expand_scores(const job *j) {
    const gr_grouter *from = j->f->source, *to = &j->r->grouter;
    const gr_expansion a = {.E_S = source_experts(j->f),
        .E_T = j->f->E_T,
        .D = (uint32_t)from->spec.network.hidden_size,
        .W = tensor(from, "score.weight"),
        .bias = tensor(from, "score.bias"),
        .x = j->vectors.x,
        .n = j->vectors.n,
        .seed = j->f->seed};
    return gr_expansion_run(&a, tensor(to, "score.weight"), tensor(to, "score.bias"), &j->r->expansion);
}

/* ---------------------------------------------------------------- the whole */

static gr_err prepare(job *j) {
    const gr_folding *f = j->f;
    GR_TRY(gr_folding_check(f));
    if (f->n_file == 0)
        return GR_OK;
    GR_TRY(gr_survey_open(&j->survey, f));
    GR_TRY(gr_affinity_open(&j->before, source_experts(f)));
    GR_TRY(gr_affinity_open(&j->after, target_experts(f)));
    if (!expands(f))
        return GR_OK;
    return gr_vectors_open(&j->vectors, &j->survey, f->n_vector, (uint32_t)f->source->spec.network.hidden_size);
}

static gr_err choose_mapping(job *j) {
    const gr_folding *f = j->f;
    const bool blind = f->method == GR_FOLD_RANDOM || f->method == GR_FOLD_BLOCK;
    if (f->mapping)
        return GR_OK;
    return gr_mapping_group(&j->r->made, &(gr_grouping){.method = f->method,
                                             .fold = f->fold,
                                             .E_S = source_experts(f),
                                             .E_T = f->E_T,
                                             .seed = f->seed,
                                             .affinity = blind ? NULL : &j->before,
                                             .router = f->source->hash});
}

static gr_err make_result(job *j) {
    GR_TRY(choose_mapping(j));
    GR_TRY(make_grouter(j));
    if (!expands(j->f))
        return fold_scores(j);
    return j->f->comm->rank[GR_WORLD] == 0 ? expand_scores(j) : GR_OK;
}

static gr_err share_scores(const job *j) {
    const gr_grouter *g = &j->r->grouter;
    const gr_comm *c = j->f->comm;
    const char *const names[] = {"score.weight", "score.bias"};
    for (int i = 0; i < 2; i++) {
        const gr_param *p = gr_params_find(&g->params, names[i]);
        GR_TRY(c->bcast(j->f->comm, GR_WORLD, g->weights + p->offset, (size_t)gr_param_size(p) * sizeof(float), 0));
    }
    return GR_OK;
}

static gr_err run(job *j) {
    const gr_folding *f = j->f;
    gr_folding_result *r = j->r;
    const bool sampled = f->n_file > 0;
    GR_TRY(gr_comm_agree(f->comm, prepare(j)));
    if (sampled)
        GR_TRY(gr_survey_run(&j->survey, f->source, &j->before, expands(f) ? &j->vectors : NULL));
    r->n_vector = j->vectors.n;
    GR_TRY(gr_comm_agree(f->comm, make_result(j)));
    if (expands(f))
        GR_TRY(share_scores(j));
    if (!sampled)
        return GR_OK;
    GR_TRY(gr_survey_run(&j->survey, &r->grouter, &j->after, NULL));
    r->n_window = j->survey.n_window;
    r->n_window_all = j->survey.n_all;
    r->max_vio_before = gr_load_violation(j->before.load, j->before.E);
    r->max_vio_after = gr_load_violation(j->after.load, j->after.E);
    return GR_OK;
}

gr_err gr_folding_run(const gr_folding *f, gr_folding_result *out) {
    *out = (gr_folding_result){.max_vio_before = NAN, .max_vio_after = NAN};
    job j = {.f = f, .r = out};
    gr_err e = run(&j);
    gr_vectors_close(&j.vectors);
    gr_affinity_close(&j.after);
    gr_affinity_close(&j.before);
    if (e)
        gr_folding_close(out);
    return e;
}

void gr_folding_close(gr_folding_result *r) {
    gr_grouter_close(&r->grouter);
    gr_mapping_close(&r->made);
    *r = (gr_folding_result){0};
}

/* ---------------------------------------------------------------- saving */

/* The mapping is on disk under its temporary name before the Grouter appears: then only a rename is left to fail. */
static gr_err save_both(gr_folding_result *r, const char *path, gr_out *mapping) {
    GR_TRY(gr_mapping_write(&r->made, mapping));
    GR_TRY(gr_out_sync(mapping));
    GR_TRY(gr_grouter_save(&r->grouter, path));
    return gr_out_commit(mapping);
}

gr_err gr_folding_save(gr_folding_result *r, const char *path, const char *mapping) {
    gr_out *o;
    if (!mapping)
        return gr_grouter_save(&r->grouter, path);
    GR_TRY(gr_out_open(&o, mapping));
    gr_err e = save_both(r, path, o);
    gr_out_close(o);
    return e;
}
