/* JSON file and --set assignments -> gr_config. Objects nest by the dots of the key names and no deeper, so each level
 * has its own function and nothing recurses on input. */
#include <stdlib.h>
#include <string.h>

#include "errors.h"

enum { CONFIG_BYTES_MAX = 1 << 20, CONFIG_DEPTH_MAX = 16, NAME_MAX_BYTES = 128, LIST_MAX_BYTES = 400 };

typedef struct loader {
    gr_config *out;
    const char *path;
    gr_config_errors errors;
    int list[2]; /* the GR_KEY_FILES keys, as indices in gr_keys */
    struct {
        gr_place place;
        bool given[GR_N_KEY];        /* gr_keys[k] was given, right or wrong */
        bool wrong;                  /* no object at all */
    } element[2][GR_DATA_FILES_MAX]; /* of those two lists */
} loader;

static const char from_set[] = "--set"; /* source of assignments; compared by address */

static gr_place place_at(const char *source, const gr_json_node *node) {
    if (source == from_set)
        return (gr_place){.source = from_set};
    return (gr_place){.source = source, .line = node->line, .column = node->column};
}

/* ---------------------------------------------------------------- errors */

/* What was found instead of a legal value; uses text if it has to. */
static const char *found_text(const gr_json_node *node, char text[GR_EXPECTED_MAX]) {
    switch (node->kind) {
    case GR_JSON_NULL:
        return "null";
    case GR_JSON_BOOL:
        return node->boolean ? "true" : "false";
    case GR_JSON_NUMBER:
        return node->number;
    case GR_JSON_STRING:
        snprintf(text, GR_EXPECTED_MAX, "\"%.80s\"%s", node->string, strlen(node->string) > 80 ? "..." : "");
        return text;
    case GR_JSON_ARRAY:
        snprintf(text, GR_EXPECTED_MAX, "an array of %d", node->n_child);
        return text;
    case GR_JSON_OBJECT:
        break;
    }
    return "an object";
}

static void complain_value(loader *l, gr_place place, const gr_key *key, const char *name, const gr_json_node *node) {
    char expected[GR_EXPECTED_MAX], found[GR_EXPECTED_MAX];
    bool integer = key->type == GR_KEY_INT || key->type == GR_KEY_INT64;
    bool pointed = integer && node->kind == GR_JSON_NUMBER && strpbrk(node->number, ".eE");
    gr_config_complain(&l->errors, place, "%s: expected %s%s, got %s", name, gr_key_expected(key, expected),
        pointed ? " without point or exponent" : "", found_text(node, found));
}

static void append_word(char text[LIST_MAX_BYTES], const char *word) {
    size_t n = strlen(text);
    snprintf(text + n, LIST_MAX_BYTES - n, "%s%s", n ? ", " : "", word);
}

/* The keys directly below the first n_prefix bytes of `prefix` ("optimizer."), comma-separated, without the prefix. */
static void list_keys(gr_config_kind kind, const char *prefix, size_t n_prefix, char text[LIST_MAX_BYTES]) {
    text[0] = '\0';
    for (int i = 0; i < GR_N_KEY; i++)
        if (gr_key_applies(&gr_keys[i], kind) && strncmp(gr_keys[i].name, prefix, n_prefix) == 0 &&
            !strpbrk(gr_keys[i].name + n_prefix, ".["))
            append_word(text, gr_keys[i].name + n_prefix);
}

/* Does a config of this kind have keys in the section? */
static bool section_applies(const char *section, gr_config_kind kind) {
    size_t n = strlen(section);
    for (int k = 0; k < GR_N_KEY; k++)
        if (gr_key_applies(&gr_keys[k], kind) && strncmp(gr_keys[k].name, section, n) == 0 && gr_keys[k].name[n] == '.')
            return true;
    return false;
}

static const char *first_key(const char *section) {
    size_t n = strlen(section);
    int k = 0;
    while (strncmp(gr_keys[k].name, section, n) != 0 || gr_keys[k].name[n] != '.')
        k++;
    return gr_keys[k].name;
}

/* Names the nearest key, else the same key in another section, else every key it could have been. `pattern` is `name`
 * with empty brackets, as in gr_keys. */
static void complain_unknown(loader *l, gr_place place, const char *name, const char *pattern) {
    const char *dot = strrchr(pattern, '.'), *leaf = dot ? dot + 1 : pattern, *same = NULL;
    if (gr_key_is_section(pattern)) { /* only --set gets here with one */
        gr_config_complain(&l->errors, place, "%s: expected a key of this section, such as %s, got the section", name,
            first_key(pattern));
        return;
    }
    gr_nearest nearest = {.to = pattern};
    for (int i = 0; i < GR_N_KEY; i++) {
        if (!gr_key_applies(&gr_keys[i], l->out->kind))
            continue;
        gr_nearest_offer(&nearest, gr_keys[i].name);
        if (!same && strcmp(strrchr(gr_keys[i].name, '.') + 1, leaf) == 0)
            same = gr_keys[i].name;
    }
    for (int i = 0; i < GR_N_SECTION; i++)
        gr_nearest_offer(&nearest, gr_key_sections[i]);
    if (nearest.name || same) {
        gr_config_complain(&l->errors, place, "unknown key \"%.100s\": did you mean \"%s\"?", name,
            nearest.name ? nearest.name : same);
        return;
    }
    char keys[LIST_MAX_BYTES] = "";
    if (dot)
        list_keys(l->out->kind, pattern, (size_t)(leaf - pattern), keys);
    bool section_known = keys[0];
    for (int i = 0; i < GR_N_SECTION && !section_known; i++)
        if (section_applies(gr_key_sections[i], l->out->kind))
            append_word(keys, gr_key_sections[i]);
    gr_config_complain(&l->errors, place, "unknown key \"%.100s\": the %s are %s", name,
        section_known ? "keys there" : "sections", keys);
}

/* A key that configs for other commands know. */
static void complain_elsewhere(loader *l, gr_place place, const char *name, const gr_key *key) {
    char kinds[LIST_MAX_BYTES] = "";
    for (int kind = 0; kind < GR_N_CONFIG_KIND; kind++)
        if (gr_key_applies(key, (gr_config_kind)kind))
            append_word(kinds, gr_config_kind_name((gr_config_kind)kind));
    gr_config_complain(&l->errors, place, "%s: expected a key of a config for %s, got one for %s; leave it out", name,
        gr_config_kind_name(l->out->kind), kinds);
}

/* ---------------------------------------------------------------- values */

static gr_data_file *files_of(const loader *l, int which) {
    return (gr_data_file *)((char *)l->out + gr_keys[l->list[which]].offset);
}

static int *count_of(const loader *l, int which) {
    return (int *)((char *)l->out + gr_keys[l->list[which]].count_offset);
}

/* Appends an element with nothing given yet. */
static void add_element(loader *l, int which, gr_place place) {
    int i = (*count_of(l, which))++;
    memset(&files_of(l, which)[i], 0, sizeof(gr_data_file));
    files_of(l, which)[i].weight = 1;
    l->element[which][i].place = place;
    l->element[which][i].wrong = false;
    memset(l->element[which][i].given, 0, sizeof l->element[which][i].given);
}

static void assign_member(loader *l, int which, int i, int k, gr_place place, const gr_json_node *node) {
    const gr_key *key = &gr_keys[k];
    char name[NAME_MAX_BYTES];
    snprintf(name, sizeof name, "%s[%d]%s", gr_keys[l->list[which]].name, i, strrchr(key->name, '.'));
    if (!gr_key_store(key, &files_of(l, which)[i], node))
        complain_value(l, place, key, name, node);
    l->element[which][i].given[k] = true;
}

static void read_element(loader *l, int which, int i, const char *source, const gr_json_node *node) {
    const char *list = gr_keys[l->list[which]].name;
    if (node->kind != GR_JSON_OBJECT) {
        char found[GR_EXPECTED_MAX];
        gr_config_complain(
            &l->errors, place_at(source, node), "%s[%d]: expected an object, got %s", list, i, found_text(node, found));
        l->element[which][i].wrong = true;
        return;
    }
    for (const gr_json_node *m = node->child; m; m = m->next) {
        char pattern[NAME_MAX_BYTES], name[NAME_MAX_BYTES];
        snprintf(pattern, sizeof pattern, "%s[].%s", list, m->key);
        snprintf(name, sizeof name, "%s[%d].%s", list, i, m->key);
        int k = gr_key_find(pattern);
        if (k < 0)
            complain_unknown(l, place_at(source, m), name, pattern);
        else if (!gr_key_applies(&gr_keys[k], l->out->kind))
            complain_elsewhere(l, place_at(source, m), name, &gr_keys[k]);
        else
            assign_member(l, which, i, k, place_at(source, m), m);
    }
}

/* True if the value is an array of a legal number of elements; its elements may still be wrong. */
static bool assign_files(loader *l, int which, const char *source, const gr_json_node *node) {
    const gr_key *key = &gr_keys[l->list[which]];
    if (node->kind != GR_JSON_ARRAY || node->n_child < key->min || node->n_child > key->max)
        return false;
    *count_of(l, which) = 0;
    int i = 0;
    for (const gr_json_node *e = node->child; e; e = e->next, i++) {
        add_element(l, which, place_at(source, e));
        read_element(l, which, i, source, e);
    }
    return true;
}

/* gr_keys[k], not a member of elements, gets the value of `node`. */
static void assign(loader *l, int k, const char *source, const gr_json_node *node) {
    const gr_key *key = &gr_keys[k];
    bool ok =
        key->type == GR_KEY_FILES ? assign_files(l, k == l->list[1], source, node) : gr_key_store(key, l->out, node);
    if (!ok)
        complain_value(l, place_at(source, node), key, key->name, node);
    l->errors.state[k] = ok ? GR_KEY_GIVEN : GR_KEY_WRONG;
    l->errors.place[k] = place_at(source, node);
}

/* ---------------------------------------------------------------- the file */

/* Keys of a section that is no object count as wrong, not as missing. */
static void spoil_section(loader *l, const char *section) {
    size_t n = strlen(section);
    for (int k = 0; k < GR_N_KEY; k++)
        if (strncmp(gr_keys[k].name, section, n) == 0 && gr_keys[k].name[n] == '.')
            l->errors.state[k] = GR_KEY_WRONG;
}

static void read_section(loader *l, const gr_json_node *section) {
    if (section->kind != GR_JSON_OBJECT) {
        char found[GR_EXPECTED_MAX];
        gr_config_complain(&l->errors, place_at(l->path, section), "%s: expected an object of keys, got %s",
            section->key, found_text(section, found));
        spoil_section(l, section->key);
        return;
    }
    for (const gr_json_node *m = section->child; m; m = m->next) {
        char name[NAME_MAX_BYTES];
        snprintf(name, sizeof name, "%s.%s", section->key, m->key);
        int k = gr_key_find(name);
        if (k < 0 || strchr(name, '['))
            complain_unknown(l, place_at(l->path, m), name, name);
        else if (!gr_key_applies(&gr_keys[k], l->out->kind))
            complain_elsewhere(l, place_at(l->path, m), name, &gr_keys[k]);
        else
            assign(l, k, l->path, m);
    }
}

static void read_root(loader *l, const gr_json_node *root) {
    if (root->kind != GR_JSON_OBJECT) {
        char found[GR_EXPECTED_MAX];
        gr_config_complain(
            &l->errors, place_at(l->path, root), "expected an object of sections, got %s", found_text(root, found));
        for (int i = 0; i < GR_N_SECTION; i++)
            spoil_section(l, gr_key_sections[i]);
        return;
    }
    for (const gr_json_node *m = root->child; m; m = m->next)
        if (gr_key_is_section(m->key))
            read_section(l, m);
        else if (gr_key_find(m->key) >= 0)
            gr_config_complain(&l->errors, place_at(l->path, m),
                "%s: expected it inside the object of its section, got it with a dot in its name", m->key);
        else
            complain_unknown(l, place_at(l->path, m), m->key, m->key);
}

/* ---------------------------------------------------------------- --set */

typedef struct assignment {
    char name[NAME_MAX_BYTES];    /* as written */
    char pattern[NAME_MAX_BYTES]; /* with empty brackets */
    int index;                    /* between the brackets, -1 if there are none */
    const char *value;
} assignment;

/* Splits "data.train[0].tokens=value"; false if there is no '=' or the name is not of such a form. */
static bool split_assignment(const char *text, assignment *a) {
    size_t n = strcspn(text, "=");
    if (text[n] != '=' || n == 0 || n >= sizeof a->name)
        return false;
    *a = (assignment){.index = -1, .value = text + n + 1};
    memcpy(a->name, text, n);
    memcpy(a->pattern, text, n);
    char *open = strchr(a->pattern, '[');
    if (!open)
        return true;
    size_t n_digit = strspn(open + 1, "0123456789");
    if (n_digit < 1 || n_digit > 4 || open[1 + n_digit] != ']')
        return false;
    a->index = (int)strtol(open + 1, NULL, 10);
    memmove(open + 1, open + 1 + n_digit, strlen(open + 1 + n_digit) + 1);
    return true;
}

/* The value of an assignment as JSON: text is taken literally for names and paths that do not start with a quote. Text
 * that is no JSON becomes a string, which then has the wrong type for its key. NULL if it is not even UTF-8. */
static gr_json *parse_value(const gr_key *key, const char *value) {
    gr_json *doc = NULL;
    bool bare = (key->type == GR_KEY_NAME || key->type == GR_KEY_PATH) && value[0] != '"';
    if (!bare && !gr_json_parse(&doc, value, strlen(value), from_set, CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX, GR_CONFIG))
        return doc;
    char *literal = malloc(6 * strlen(value) + 3);
    if (!literal)
        return NULL;
    literal[0] = '"';
    gr_json_escape(value, literal + 1);
    size_t n = strlen(literal);
    literal[n] = '"';
    if (gr_json_parse(&doc, literal, n + 1, from_set, CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX, GR_CONFIG))
        doc = NULL;
    free(literal);
    return doc;
}

/* Assigns to element a->index of the list that key k is a member of: an existing one or the next. */
static void set_member(loader *l, const assignment *a, int k, const gr_json_node *node) {
    int which = gr_key_is_member(&gr_keys[l->list[1]], &gr_keys[k]), list = l->list[which], n = *count_of(l, which);
    if (a->index > n || a->index >= GR_DATA_FILES_MAX) {
        gr_config_complain(&l->errors, place_at(from_set, node), "%s: expected an index up to %d, got %d", a->name,
            n < GR_DATA_FILES_MAX ? n : GR_DATA_FILES_MAX - 1, a->index);
        return;
    }
    if (a->index == n)
        add_element(l, which, place_at(from_set, node));
    if (l->errors.state[list] == GR_KEY_ABSENT)
        l->errors.state[list] = GR_KEY_GIVEN;
    assign_member(l, which, a->index, k, place_at(from_set, node), node);
}

static void apply_set(loader *l, const char *text) {
    assignment a;
    gr_place place = {.source = from_set};
    if (!split_assignment(text, &a)) {
        gr_config_complain(&l->errors, place,
            "expected KEY=VALUE, for example optimizer.lr=3e-4 or data.train[0].tokens=PATH, got \"%.100s\"", text);
        return;
    }
    int k = gr_key_find(a.pattern);
    if (k < 0) {
        complain_unknown(l, place, a.name, a.pattern);
        return;
    }
    if (!gr_key_applies(&gr_keys[k], l->out->kind)) {
        complain_elsewhere(l, place, a.name, &gr_keys[k]);
        return;
    }
    gr_json *doc = parse_value(&gr_keys[k], a.value);
    if (!doc)
        gr_config_complain(&l->errors, place, "%s: expected a value in UTF-8", a.name);
    else if (a.index >= 0)
        set_member(l, &a, k, gr_json_root(doc));
    else
        assign(l, k, from_set, gr_json_root(doc));
    gr_json_close(doc);
}

/* True if an earlier assignment has the same key: equal up to and including '='. */
static bool set_before(const char *const *set, int i) {
    size_t n = strcspn(set[i], "=") + 1;
    for (int j = 0; j < i; j++)
        if (strncmp(set[j], set[i], n) == 0)
            return true;
    return false;
}

static void apply_sets(loader *l, const char *const *set, int n_set) {
    for (int i = 0; i < n_set; i++) {
        if (set_before(set, i))
            gr_config_complain(&l->errors, (gr_place){.source = from_set}, "%.*s: set twice; keep one of them",
                (int)strcspn(set[i], "="), set[i]);
        else
            apply_set(l, set[i]);
    }
}

/* ---------------------------------------------------------------- defaults */

/* Defaults and derived values of absent keys; errors for absent required ones. */
static void complete_keys(loader *l, const gr_json_node *root) {
    for (int k = 0; k < GR_N_KEY; k++) {
        const gr_key *key = &gr_keys[k];
        bool optional = key->derived || key->optional >> l->out->kind & 1 || !gr_key_applies(key, l->out->kind);
        if (l->errors.state[k] != GR_KEY_ABSENT || (optional && !key->fallback) || strchr(key->name, '['))
            continue;
        if (key->fallback) {
            if (key->type != GR_KEY_FILES)
                gr_key_store_fallback(key, l->out);
            continue;
        }
        char section[NAME_MAX_BYTES], expected[GR_EXPECTED_MAX];
        snprintf(section, sizeof section, "%.*s", (int)strcspn(key->name, "."), key->name);
        const gr_json_node *node = gr_json_get(root, section);
        gr_config_complain(&l->errors, place_at(l->path, node ? node : root), "missing key \"%s\": expected %s",
            key->name, gr_key_expected(key, expected));
        l->errors.state[k] = GR_KEY_WRONG;
    }
    gr_model_config *m = &l->out->model;
    if (!m->num_key_value_heads)
        m->num_key_value_heads = m->num_attention_heads;
    if (!m->head_dim && m->num_attention_heads)
        m->head_dim = m->hidden_size / m->num_attention_heads;
    if (l->out->kind != GR_CONFIG_TRAIN) {
        l->out->routing = (gr_routing){.source = GR_SOURCE_NONE, .scale = 1};
        m->head = GR_HEAD_SCORES;
        return;
    }
    gr_routing *r = &l->out->routing;
    if (l->errors.state[gr_key_find("routing.gates")] == GR_KEY_ABSENT)
        r->gates = r->source == GR_SOURCE_LEARNED ? GR_GATES_LEARNED : GR_GATES_FIXED;
    m->routing = *r;
}

/* Members without a default must be there; routes just where they are read. */
static void complete_member(loader *l, int which, int i, int k) {
    const gr_key *key = &gr_keys[k];
    const char *list = gr_keys[l->list[which]].name, *member = strrchr(key->name, '.');
    bool given = l->element[which][i].given[k], routes = strcmp(member, ".routes") == 0;
    char expected[GR_EXPECTED_MAX];
    if (routes && l->errors.state[gr_key_find("routing.source")] == GR_KEY_WRONG)
        return;
    bool excess = routes && l->out->routing.source != GR_SOURCE_TABLE;
    if (l->element[which][i].wrong || !gr_key_applies(key, l->out->kind))
        return;
    if (!given && !excess)
        gr_config_complain(&l->errors, l->element[which][i].place, "missing key \"%s[%d]%s\": expected %s", list, i,
            member, gr_key_expected(key, expected));
    if (given && excess)
        gr_config_complain(&l->errors, l->element[which][i].place,
            "%s[%d]%s: expected none with routing.source = \"%s\", got a route table; leave it out", list, i, member,
            l->out->routing.source == GR_SOURCE_ONLINE ? "online" : "learned");
}

static void complete_elements(loader *l) {
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < *count_of(l, which); i++)
            for (int k = 0; k < GR_N_KEY; k++)
                if (!gr_keys[k].fallback && gr_key_is_member(&gr_keys[l->list[which]], &gr_keys[k]))
                    complete_member(l, which, i, k);
}

/* ---------------------------------------------------------------- interface */

/* out->kind is set. */
static gr_err load(gr_config *out, const char *source, const char *text, size_t n, const char *const *set, int n_set) {
    gr_json *doc;
    GR_TRY(gr_json_parse(&doc, text, n, source, CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX, GR_CONFIG));
    loader l = {.out = out, .path = source, .list = {gr_key_find("data.train"), gr_key_find("data.valid")}};
    read_root(&l, gr_json_root(doc));
    apply_sets(&l, set, n_set);
    complete_keys(&l, gr_json_root(doc));
    complete_elements(&l);
    gr_config_check(&l.errors, out, source);
    gr_err err = gr_config_fail(&l.errors);
    gr_json_close(doc);
    return err;
}

gr_err gr_config_load(gr_config *out, gr_config_kind kind, const char *path, const char *const *set, int n_set) {
    char *text;
    size_t n;
    memset(out, 0, sizeof *out);
    out->kind = kind;
    GR_TRY(gr_file_read(path, CONFIG_BYTES_MAX, GR_CONFIG, &text, &n));
    gr_err err = load(out, path, text, n, set, n_set);
    free(text);
    return err;
}

gr_err gr_config_parse(gr_config *out, gr_config_kind kind, const char *text, const char *source) {
    memset(out, 0, sizeof *out);
    out->kind = kind;
    return load(out, source, text, strlen(text), NULL, 0);
}
