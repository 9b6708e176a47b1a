/* What may change between a checkpoint and the run that goes on from it, and how it is said. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define REFUSED_MAX 20

typedef struct verdict {
    const gr_train_options *o;
    char refused[REFUSED_MAX][768];
    int n_refused;
} verdict;

static bool is_overridden(const verdict *v, const char *key) {
    for (int i = 0; i < v->o->n_override; i++)
        if (strcmp(v->o->override[i], key) == 0)
            return true;
    return false;
}

static void judge(verdict *v, gr_on_resume rule, const char *key, const char *before, const char *now) {
    if (rule == GR_RESUME_REFUSED && !is_overridden(v, key)) {
        if (v->n_refused < REFUSED_MAX)
            snprintf(v->refused[v->n_refused++], sizeof v->refused[0],
                "%s: expected %s as in the checkpoint, got %s; put it back, or add --override %s if the change is "
                "meant",
                key, before, now, key);
        return;
    }
    const char *how = rule == GR_RESUME_FREE ? "" : rule == GR_RESUME_WARNED ? "warning: " : "warning: overridden: ";
    gr_info("%schanged since the checkpoint: %s: %s -> %s", how, key, before, now);
}

static void judge_key(const char *key, gr_on_resume rule, const char *before, const char *now, void *context) {
    judge(context, rule, key, before, now);
}

/* Identities of the data must agree; facts about the machine end the promise of equal bits, no more. So does a
 * placement, unless it says which windows are read. */
static gr_on_resume rule_of_fact(const char *key, bool groups) {
    size_t n = strlen(key), n_content = strlen(".content");
    if (strcmp(key, "parallel.placement.content") == 0)
        return groups ? GR_RESUME_REFUSED : GR_RESUME_WARNED;
    return n > n_content && strcmp(key + n - n_content, ".content") == 0 ? GR_RESUME_REFUSED : GR_RESUME_WARNED;
}

/* `groups`: windows are read by group, before and now. */
static void judge_facts(verdict *v, const gr_checkpoint_found *found, const gr_facts *facts, bool groups) {
    bool machine = false;
    for (int i = 0; i < facts->n; i++) {
        const char *key = facts->list[i].key, *before = "none";
        for (int k = 0; k < found->n_fact; k++)
            if (strcmp(found->facts[k].key, key) == 0)
                before = found->facts[k].value;
        if (strcmp(before, facts->list[i].value) == 0)
            continue;
        judge(v, rule_of_fact(key, groups), key, before, facts->list[i].value);
        machine |= rule_of_fact(key, groups) == GR_RESUME_WARNED;
    }
    if (machine)
        gr_info(
            "warning: the run goes on, equal to rounding; its bits may differ from those of a run that never stopped");
}

static gr_err compare(verdict *v, const gr_checkpoint_found *found, const gr_facts *facts) {
    gr_config *before;
    GR_TRY(gr_alloc((void **)&before, 1, sizeof *before, "config of the checkpoint"));
    gr_err e = gr_config_parse(before, v->o->config->kind, found->config_text, found->path);
    if (e)
        e = gr_fail(GR_CHECKPOINT, "%s: its config cannot be read: %s", found->path, gr_error_text());
    if (!e)
        e = gr_config_compare(before, v->o->config, judge_key, v);
    bool groups = before->data.windows == GR_WINDOWS_CORPUS && v->o->config->data.windows == GR_WINDOWS_CORPUS;
    free(before);
    if (!e)
        judge_facts(v, found, facts, groups);
    return e;
}

gr_err gr_resume_check(const gr_train_options *o, const gr_checkpoint_found *found, const gr_facts *facts) {
    verdict *v;
    GR_TRY(gr_alloc((void **)&v, 1, sizeof *v, "list of changes"));
    v->o = o;
    gr_err e = compare(v, found, facts);
    const char *line[REFUSED_MAX];
    for (int i = 0; i < v->n_refused; i++)
        line[i] = v->refused[i];
    if (!e && v->n_refused)
        e = gr_fail_lines(GR_CONFIG, line, v->n_refused);
    free(v);
    return e;
}

/* ---------------------------------------------------------------- facts */

static void add_fact(gr_facts *f, const char *key, const char *value) {
    GR_ASSERT(f->n < GR_FACTS_MAX, "%d facts", f->n);
    snprintf(f->key[f->n], sizeof f->key[0], "%s", key);
    snprintf(f->value[f->n], sizeof f->value[0], "%s", value);
    f->list[f->n] = (gr_fact){.key = f->key[f->n], .value = f->value[f->n]};
    f->n++;
}

/* What a Grouter is made from. */
static gr_err add_origin(gr_facts *f, const gr_config *c) {
    char text[33];
    if (c->kind == GR_CONFIG_DISTILL) {
        GR_TRY(gr_teacher_identity(c->distill.teacher, c->distill.teacher_layer, text));
        add_fact(f, "distill.teacher.content", text);
    }
    if (c->kind == GR_CONFIG_TUNE) {
        gr_grouter g;
        GR_TRY(gr_grouter_describe(&g, c->tune.grouter));
        add_fact(f, "tune.grouter.content", gr_hash128_text(g.hash, text));
        gr_grouter_close(&g);
    }
    return GR_OK;
}

gr_err gr_facts_make(gr_facts *f, const gr_config *config, const gr_feed *feed, const gr_comm *comm) {
    f->n = 0;
    char key[64], value[256];
    GR_TRY(add_origin(f, config));
    for (int i = 0; i < config->data.n_train; i++) {
        snprintf(key, sizeof key, "data.train[%d].content", i);
        add_fact(f, key, gr_feed_content(feed, i, value));
    }
    add_fact(f, "parallel.placement.content", gr_feed_placement(feed, value));
    snprintf(value, sizeof value, "%d", comm->size[GR_WORLD]);
    add_fact(f, "ranks", value);
    snprintf(value, sizeof value, "%d", gr_thread_count());
    add_fact(f, "threads_per_rank", value);
    gr_cpu_name(value, sizeof value);
    add_fact(f, "cpu", value);
    add_fact(f, "program", gr_version_text());
    add_fact(f, "backend_library", gr_backend_library());
    add_fact(f, "comm_library", gr_comm_library());
    return GR_OK;
}
