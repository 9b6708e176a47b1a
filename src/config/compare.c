/* What changed between two configs. */
#include <stdlib.h>
#include <string.h>

#include "schema.h"

typedef struct comparison {
    gr_config_visit visit;
    void *context;
} comparison;

/* The value as JSON; the caller frees it. NULL without memory. */
static char *value_text(const gr_key *key, const void *base) {
    char *text = NULL;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return NULL;
    gr_key_print(out, key, base);
    return fclose(out) == 0 ? text : NULL;
}

static gr_err compare_values(
    const comparison *c, const gr_key *key, const char *name, const void *before, const void *now) {
    char *a = value_text(key, before), *b = value_text(key, now);
    bool ok = a && b;
    if (ok && strcmp(a, b) != 0)
        c->visit(name, key->on_resume, a, b, c->context);
    free(a);
    free(b);
    return ok ? GR_OK : gr_fail(GR_RESOURCE, "not enough memory to compare configs");
}

static int files_count(const gr_key *list, const gr_config *config) {
    return *(const int *)((const char *)config + list->count_offset);
}

static const gr_data_file *files_of(const gr_key *list, const gr_config *config) {
    return (const gr_data_file *)((const char *)config + list->offset);
}

static gr_err compare_files(const comparison *c, const gr_key *list, const gr_config *before, const gr_config *now) {
    int n = files_count(list, before);
    if (files_count(list, now) != n) {
        char a[16], b[16];
        snprintf(a, sizeof a, "%d files", n);
        snprintf(b, sizeof b, "%d files", files_count(list, now));
        c->visit(list->name, list->on_resume, a, b, c->context);
        return GR_OK;
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < GR_N_KEY; k++) {
            if (!gr_key_is_member(list, &gr_keys[k]) || !gr_key_applies(&gr_keys[k], now->kind))
                continue;
            char name[96];
            snprintf(name, sizeof name, "%s[%d].%s", list->name, i, strrchr(gr_keys[k].name, '.') + 1);
            GR_TRY(compare_values(c, &gr_keys[k], name, &files_of(list, before)[i], &files_of(list, now)[i]));
        }
    return GR_OK;
}

gr_err gr_config_compare(const gr_config *before, const gr_config *now, gr_config_visit visit, void *context) {
    const comparison c = {.visit = visit, .context = context};
    for (int k = 0; k < GR_N_KEY; k++) {
        const gr_key *key = &gr_keys[k];
        if (strchr(key->name, '[') || !gr_key_applies(key, now->kind))
            continue;
        if (key->type == GR_KEY_FILES)
            GR_TRY(compare_files(&c, key, before, now));
        else
            GR_TRY(compare_values(&c, key, key->name, before, now));
    }
    return GR_OK;
}

/* Names that are no keys: what the files that keys name hold. */
static const char *const contents[] = {
    "data.train[].content", "parallel.placement.content", "distill.teacher.content", "tune.grouter.content"};
enum { N_CONTENT = sizeof contents / sizeof *contents };

static bool is_content(const char *name) {
    for (int i = 0; i < N_CONTENT; i++)
        if (strcmp(name, contents[i]) == 0)
            return true;
    return false;
}

gr_err gr_config_check_override(const char *key) {
    char pattern[96];
    size_t n = strcspn(key, "["), n_digit = key[n] ? strspn(key + n + 1, "0123456789") : 0;
    const char *rest = key + n + (key[n] ? 1 + n_digit : 0);
    snprintf(pattern, sizeof pattern, "%.*s%s%s", (int)(n < sizeof pattern ? n : sizeof pattern - 1), key,
        key[n] ? "[" : "", rest);
    if (gr_key_find(pattern) >= 0 || is_content(pattern))
        return GR_OK;
    gr_nearest nearest = {.to = pattern};
    for (int k = 0; k < GR_N_KEY; k++)
        gr_nearest_offer(&nearest, gr_keys[k].name);
    for (int i = 0; i < N_CONTENT; i++)
        gr_nearest_offer(&nearest, contents[i]);
    if (nearest.name)
        return gr_fail(GR_USAGE, "--override: unknown key \"%.95s\": did you mean \"%s\"?", key, nearest.name);
    return gr_fail(GR_USAGE, "--override: unknown key \"%.95s\"; configs/README.md lists the keys", key);
}
