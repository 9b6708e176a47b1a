/* grouter.c: the Grouter's file: settings as strict JSON in the metadata of a safetensors file of its tensors, and with
 * them the hash of both: safetensors has no checksum of its own. */
#include "grouter/grouter.h"
#include "grouter/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT_VERSION 1
#define METADATA_KEY "grouter"
#define SETTINGS_BYTES_MAX 8192
#define HEADER_BYTES_MAX 100000000 /* of safetensors: far below what a router file's first bytes are as a number */
#define EPS_MAX 0.1                /* these two as in the config (schema.c) */
#define THETA_MAX 1e12

static const char *const masks[GR_N_MASK] = {"none", "causal", "bidirectional", "causal-doc", "bidirectional-doc"};
static const char *const positions[GR_N_POSITION] = {"none", "window"};
static const char *const bodies[] = {"attention", "linear", "residual-linear"};
enum { N_BODY = sizeof bodies / sizeof *bodies };

const char *gr_mask_name(gr_mask mask) {
    return masks[mask];
}

const char *gr_body_name(gr_body body) {
    return bodies[body];
}

const char *gr_position_name(gr_position position) {
    return positions[position];
}

bool gr_mask_sees_ahead(gr_mask mask) {
    return mask == GR_MASK_BIDIRECTIONAL || mask == GR_MASK_BIDIRECTIONAL_DOC;
}

const char *gr_mask_warning(gr_mask mask) {
    if (!gr_mask_sees_ahead(mask))
        return NULL;
    return "these routes depend on tokens after their own (the Grouter's mask sees ahead), so losses computed with "
           "them "
           "may use the future; `grouter-train eval CONFIG --leak --router FILE` measures how much";
}

/* ---------------------------------------------------------------- the settings */

/* Whole numbers of the settings: name, place, range. */
typedef struct integer_setting {
    const char *name;
    size_t offset; /* in gr_model_config */
    int min, max;
} integer_setting;
#define INTEGER(name, low, high)                                                                                       \
    { #name, offsetof(gr_model_config, name), (low), (high) }
static const integer_setting integers[] = {INTEGER(vocab_size, 2, 16777216), INTEGER(hidden_size, 1, 65536),
    INTEGER(num_hidden_layers, 0, 1024), INTEGER(num_attention_heads, 0, 1024), INTEGER(num_key_value_heads, 0, 1024),
    INTEGER(head_dim, 0, 1024), INTEGER(intermediate_size, 0, 1048576), INTEGER(document_end, -1, 16777215),
    INTEGER(zero_token, -1, 16777215)};
enum { N_INTEGER = sizeof integers / sizeof *integers };

static int *integer_of(gr_model_config *c, const integer_setting *s) {
    return (int *)((char *)c + s->offset);
}

static gr_err check_ranges(const gr_model_config *c, const char *where) {
    for (int i = 0; i < N_INTEGER; i++) {
        int v = *integer_of((gr_model_config *)c, &integers[i]);
        if (v < integers[i].min || v > integers[i].max)
            return gr_fail(GR_DATA, "%s: %s: expected an integer in [%d, %d], got %d", where, integers[i].name,
                integers[i].min, integers[i].max, v);
    }
    if (!(c->rms_norm_eps > 0 && c->rms_norm_eps <= EPS_MAX))
        return gr_fail(
            GR_DATA, "%s: rms_norm_eps: expected a number in (0, %g], got %g", where, EPS_MAX, c->rms_norm_eps);
    if (!(c->rope_theta >= 1 && c->rope_theta <= THETA_MAX))
        return gr_fail(
            GR_DATA, "%s: rope_theta: expected a number in [1, %g], got %g", where, THETA_MAX, c->rope_theta);
    return GR_OK;
}

static gr_err check_attention(const gr_model_config *c, const char *where) {
    if (c->num_hidden_layers < 1 || c->num_attention_heads < 1 || c->num_key_value_heads < 1 ||
        c->intermediate_size < 1)
        return gr_fail(GR_DATA,
            "%s: expected layers, heads and an intermediate size of at least 1 for body attention, got %d layers, %d "
            "and %d heads, size %d",
            where, c->num_hidden_layers, c->num_attention_heads, c->num_key_value_heads, c->intermediate_size);
    if (c->num_attention_heads % c->num_key_value_heads != 0 || c->head_dim < 2 || c->head_dim % 2 != 0)
        return gr_fail(GR_DATA,
            "%s: expected query heads that are a multiple of key/value heads and an even head_dim, got %d, %d and %d",
            where, c->num_attention_heads, c->num_key_value_heads, c->head_dim);
    bool doc = c->mask == GR_MASK_CAUSAL_DOC || c->mask == GR_MASK_BIDIRECTIONAL_DOC;
    if (doc && c->document_end < 0)
        return gr_fail(GR_DATA, "%s: expected document_end, the token that ends a document, for mask %s, got none",
            where, masks[c->mask]);
    return GR_OK;
}

static gr_err check_context_free(const gr_model_config *c, const char *where) {
    if (c->position == GR_POSITION_WINDOW && c->hidden_size % 2 != 0)
        return gr_fail(GR_DATA, "%s: expected an even hidden_size for positions, got %d", where, c->hidden_size);
    if (c->body == GR_BODY_LINEAR && c->num_hidden_layers != 0)
        return gr_fail(GR_DATA, "%s: expected 0 layers for body linear, got %d", where, c->num_hidden_layers);
    if (c->body == GR_BODY_RESIDUAL_LINEAR && (c->num_hidden_layers < 1 || c->intermediate_size < 1))
        return gr_fail(GR_DATA,
            "%s: expected layers and an intermediate size of at least 1 for body residual-linear, got %d and %d", where,
            c->num_hidden_layers, c->intermediate_size);
    return GR_OK;
}

gr_err gr_grouter_check(const gr_grouter_spec *spec, const char *where) {
    const gr_model_config *c = &spec->network;
    if (c->num_labels < 1 || c->num_labels > GR_EXPERTS_MAX)
        return gr_fail(GR_DATA, "%s: expected 1 to %d experts, got %d", where, GR_EXPERTS_MAX, c->num_labels);
    if (spec->K < 1 || spec->K > GR_TOPK_MAX || spec->K > (uint32_t)c->num_labels)
        return gr_fail(GR_DATA, "%s: expected 1 to min(%d, %d experts) experts per token, got %u", where, GR_TOPK_MAX,
            c->num_labels, spec->K);
    if (!(spec->scale >= GR_SCALE_MIN && spec->scale <= GR_SCALE_MAX))
        return gr_fail(GR_DATA, "%s: expected a scale from %g to %g, got %.9g", where, (double)GR_SCALE_MIN,
            (double)GR_SCALE_MAX, (double)spec->scale);
    GR_TRY(check_ranges(c, where));
    if ((c->body == GR_BODY_ATTENTION) != (c->mask != GR_MASK_NONE))
        return gr_fail(GR_DATA, "%s: expected a mask exactly with body attention, got mask %s with body %s", where,
            masks[c->mask], bodies[c->body]);
    if (c->document_end >= c->vocab_size || c->zero_token >= c->vocab_size)
        return gr_fail(GR_DATA, "%s: expected document_end and zero_token below the vocabulary of %d, got %d and %d",
            where, c->vocab_size, c->document_end, c->zero_token);
    return c->body == GR_BODY_ATTENTION ? check_attention(c, where) : check_context_free(c, where);
}

/* A text cut off inside a character, or of another encoding, must not make a file that cannot be read. */
static void make_utf8(char *text) {
    for (size_t n = strlen(text), at = 0, length; at < n; at += length) {
        length = gr_utf8_length((const uint8_t *)text + at, n - at);
        if (length == 0) {
            text[at] = '?';
            length = 1;
        }
    }
}

/* The settings that are the Grouter's identity; with `hash`, what follows from them and the tensors, the whole text of
 * the metadata. The caller frees *text. */
static gr_err settings_text(const gr_grouter_spec *spec, const gr_hash128 *hash, char **text) {
    const gr_model_config *c = &spec->network;
    size_t n;
    FILE *out = open_memstream(text, &n);
    if (!out)
        return gr_fail(GR_RESOURCE, "not enough memory for the settings of a Grouter");
    fprintf(out, "{\"version\": %d, \"experts\": %d, \"top_k\": %u, \"scale\": %.9g, ", FORMAT_VERSION, c->num_labels,
        spec->K, (double)spec->scale);
    fprintf(out, "\"body\": \"%s\", \"mask\": \"%s\", \"position\": \"%s\", ", bodies[c->body], masks[c->mask],
        positions[c->position]);
    for (int i = 0; i < N_INTEGER; i++)
        fprintf(out, "\"%s\": %d, ", integers[i].name, *integer_of((gr_model_config *)c, &integers[i]));
    fprintf(out, "\"rms_norm_eps\": %.17g, \"rope_theta\": %.17g", c->rms_norm_eps, c->rope_theta);
    if (hash) {
        char made[GR_PROVENANCE_MAX], escaped[6 * GR_PROVENANCE_MAX + 1], digits[33];
        memcpy(made, spec->made, sizeof made);
        make_utf8(made);
        fprintf(
            out, ", \"made\": \"%s\", \"hash\": \"%s\"", gr_json_escape(made, escaped), gr_hash128_text(*hash, digits));
    }
    fputc('}', out);
    bool ok = !ferror(out);
    if (fclose(out) == 0 && ok)
        return GR_OK;
    free(*text);
    return gr_fail(GR_RESOURCE, "not enough memory for the settings of a Grouter");
}

/* ---------------------------------------------------------------- reading the settings */

typedef struct reader {
    const gr_json_node *root;
    const char *path;
    int n_read; /* members found: every member must be one of them */
} reader;

static const gr_json_node *member(reader *r, const char *name) {
    const gr_json_node *node = gr_json_get(r->root, name);
    r->n_read += node != NULL;
    return node;
}

static gr_err fail_setting(const reader *r, const char *name, const char *expected) {
    const gr_json_node *node = gr_json_get(r->root, name);
    const char *found = !node                          ? "none"
                        : node->kind == GR_JSON_STRING ? node->string
                        : node->kind == GR_JSON_NUMBER ? node->number
                                                       : "another type";
    return gr_fail(
        GR_DATA, "%s: settings: %s: expected %s, got %.80s; make the Grouter again", r->path, name, expected, found);
}

static gr_err read_integer(reader *r, const char *name, int min, int max, int *out) {
    const gr_json_node *node = member(r, name);
    int64_t v;
    if (!node || !gr_json_i64(node, &v) || v < min || v > max) {
        char range[64];
        snprintf(range, sizeof range, "an integer in [%d, %d]", min, max);
        return fail_setting(r, name, range);
    }
    *out = (int)v;
    return GR_OK;
}

static gr_err read_number(reader *r, const char *name, double *out) {
    const gr_json_node *node = member(r, name);
    if (!node || !gr_json_f64(node, out) || !(*out > 0))
        return fail_setting(r, name, "a positive number");
    return GR_OK;
}

static gr_err read_name(reader *r, const char *name, const char *const *list, int n, int *out) {
    const gr_json_node *node = member(r, name);
    for (int i = 0; node && node->kind == GR_JSON_STRING && i < n; i++)
        if (strcmp(node->string, list[i]) == 0) {
            *out = i;
            return GR_OK;
        }
    char names[128] = "";
    for (int i = 0; i < n; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? " or " : "", list[i]);
    return fail_setting(r, name, names);
}

static gr_err read_text(reader *r, const char *name, size_t n_max, char *out) {
    const gr_json_node *node = member(r, name);
    if (!node || node->kind != GR_JSON_STRING || strlen(node->string) > n_max) {
        char expected[64];
        snprintf(expected, sizeof expected, "a text of at most %zu bytes", n_max);
        return fail_setting(r, name, expected);
    }
    memcpy(out, node->string, strlen(node->string) + 1);
    return GR_OK;
}

static gr_err read_settings(reader *r, gr_grouter_spec *spec, char hash[33]) {
    gr_model_config *c = &spec->network;
    int version = 0, top_k = 0, body = 0, mask = 0, position = 0;
    double scale = 0;
    *spec = (gr_grouter_spec){.network = {.head = GR_HEAD_SCORES}};
    if (r->root->kind != GR_JSON_OBJECT)
        return gr_fail(GR_DATA, "%s: settings: expected an object, got another type; make the Grouter again", r->path);
    GR_TRY(read_integer(r, "version", FORMAT_VERSION, FORMAT_VERSION, &version));
    GR_TRY(read_integer(r, "experts", 1, GR_EXPERTS_MAX, &c->num_labels));
    GR_TRY(read_integer(r, "top_k", 1, GR_TOPK_MAX, &top_k));
    GR_TRY(read_number(r, "scale", &scale));
    GR_TRY(read_name(r, "body", bodies, N_BODY, &body));
    GR_TRY(read_name(r, "mask", masks, GR_N_MASK, &mask));
    GR_TRY(read_name(r, "position", positions, GR_N_POSITION, &position));
    for (int i = 0; i < N_INTEGER; i++)
        GR_TRY(read_integer(r, integers[i].name, integers[i].min, integers[i].max, integer_of(c, &integers[i])));
    GR_TRY(read_number(r, "rms_norm_eps", &c->rms_norm_eps));
    GR_TRY(read_number(r, "rope_theta", &c->rope_theta));
    GR_TRY(read_text(r, "made", sizeof spec->made - 1, spec->made));
    GR_TRY(read_text(r, "hash", 32, hash));
    if (r->n_read != r->root->n_child)
        return gr_fail(GR_DATA, "%s: settings: expected the %d known ones, got %d; use a newer grouter-train for it",
            r->path, r->n_read, r->root->n_child);
    spec->K = (uint32_t)top_k;
    spec->scale = (float)scale;
    c->body = (gr_body)body;
    c->mask = (gr_mask)mask;
    c->position = (gr_position)position;
    c->first_k_dense_replace = c->num_hidden_layers;
    return gr_grouter_check(spec, r->path);
}

static gr_err parse_settings(const char *text, const char *path, gr_grouter_spec *spec, char hash[33]) {
    gr_json *doc;
    GR_TRY(gr_json_parse(&doc, text, strlen(text), path, SETTINGS_BYTES_MAX, 2, GR_DATA));
    reader r = {.root = gr_json_root(doc), .path = path};
    gr_err e = read_settings(&r, spec, hash);
    gr_json_close(doc);
    return e;
}

/* ---------------------------------------------------------------- the file */

/* Settings and tensors by name: the same for every process that holds the same Grouter. */
static gr_err hash_of(const gr_grouter_spec *spec, const gr_params *params, const float *weights, gr_hash128 *hash) {
    char *text;
    gr_hasher *h = NULL;
    GR_TRY(settings_text(spec, NULL, &text));
    gr_err e = gr_hasher_open(&h);
    if (!e) {
        gr_hasher_add(h, text, strlen(text));
        for (int i = 0; i < params->n; i++) {
            const gr_param *p = &params->list[i];
            gr_hasher_add(h, p->name, strlen(p->name));
            gr_hasher_add(h, weights + p->offset, (size_t)gr_param_size(p) * sizeof *weights);
        }
        *hash = gr_hasher_128(h);
    }
    gr_hasher_close(h);
    free(text);
    return e;
}

/* Everything but the weights. */
static gr_err shape(gr_grouter *out, const gr_grouter_spec *spec) {
    *out = (gr_grouter){.spec = *spec};
    GR_TRY(gr_expert_map_open(&out->map, 1, 1));
    return gr_params_open(&out->params, &out->spec.network, &out->map, 0, 1, 1);
}

static gr_err allocate(gr_grouter *g) {
    return gr_alloc((void **)&g->weights, (size_t)g->params.n_element, sizeof *g->weights, "Grouter");
}

gr_err gr_grouter_make(gr_grouter *out, const gr_grouter_spec *spec) {
    *out = (gr_grouter){0};
    GR_TRY(gr_grouter_check(spec, "Grouter"));
    gr_err e = shape(out, spec);
    if (!e)
        e = allocate(out);
    if (e)
        gr_grouter_close(out);
    return e;
}

void gr_grouter_close(gr_grouter *g) {
    free(g->weights);
    gr_params_close(&g->params);
    gr_expert_map_close(&g->map);
    *g = (gr_grouter){0};
}

static gr_err read_spec(const char *path, gr_grouter_spec *spec, char hash[33]) {
    gr_safetensors *file;
    GR_TRY(gr_safetensors_open(&file, path));
    const char *text = gr_safetensors_metadata(file, METADATA_KEY);
    gr_err e = text ? parse_settings(text, path, spec, hash)
                    : gr_fail(GR_DATA,
                          "%s: expected a Grouter (safetensors with the metadata \"" METADATA_KEY
                          "\"), got weights of something else; make one with 'grouter-train distill'",
                          path);
    gr_safetensors_close(file);
    return e;
}

static gr_err parse_hash(const char *path, const char *text, gr_hash128 *hash) {
    char again[33];
    *hash = (gr_hash128){0};
    sscanf(text, "%16" SCNx64 "%16" SCNx64, &hash->hi, &hash->lo);
    if (strcmp(gr_hash128_text(*hash, again), text) == 0)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: hash: expected 32 hexadecimal digits in its settings, got \"%.32s\"; make the Grouter "
        "again",
        path, text);
}

/* Settings may promise any size: the tensors are compared before memory is taken for them. */
static gr_err describe(gr_grouter *g, const char *path) {
    gr_grouter_spec spec;
    char stored[33];
    GR_TRY(read_spec(path, &spec, stored));
    GR_TRY(shape(g, &spec));
    GR_TRY(parse_hash(path, stored, &g->hash));
    return gr_params_load(&g->params, path, gr_weights_whole(&g->params, NULL));
}

static gr_err load(gr_grouter *g, const char *path) {
    char expected[33], found[33];
    gr_hash128 hash;
    GR_TRY(describe(g, path));
    GR_TRY(allocate(g));
    GR_TRY(gr_params_load(&g->params, path, gr_weights_whole(&g->params, g->weights)));
    GR_TRY(hash_of(&g->spec, &g->params, g->weights, &hash));
    if (memcmp(&hash, &g->hash, sizeof hash) == 0)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: hash of settings and tensors: expected %s as written in it, got %s; the file is damaged: copy it or make "
        "the Grouter again",
        path, gr_hash128_text(g->hash, expected), gr_hash128_text(hash, found));
}

static gr_err open_by(gr_err (*open)(gr_grouter *g, const char *path), gr_grouter *out, const char *path) {
    *out = (gr_grouter){0};
    gr_err e = open(out, path);
    if (e)
        gr_grouter_close(out);
    return e;
}

gr_err gr_grouter_describe(gr_grouter *out, const char *path) {
    return open_by(describe, out, path);
}

gr_err gr_grouter_open(gr_grouter *out, const char *path) {
    return open_by(load, out, path);
}

gr_err gr_grouter_write(
    const gr_grouter_spec *spec, const gr_params *params, const float *weights, const char *path, gr_hash128 *hash) {
    char *text;
    gr_comm *alone = NULL;
    gr_hash128 tensors;
    GR_TRY(gr_grouter_check(spec, path));
    GR_TRY(hash_of(spec, params, weights, hash));
    GR_TRY(settings_text(spec, hash, &text));
    gr_err e = gr_comm_open(&alone, "self");
    if (!e)
        e = gr_params_save(params, alone, gr_weights_whole(params, (float *)(uintptr_t)weights), path,
            &(gr_metadata){.key = METADATA_KEY, .value = text}, &tensors);
    gr_comm_close(alone, GR_OK);
    free(text);
    return e;
}

gr_err gr_grouter_save(gr_grouter *g, const char *path) {
    return gr_grouter_write(&g->spec, &g->params, g->weights, path, &g->hash);
}

bool gr_grouter_is(const char *path) {
    gr_map map;
    if (gr_map_open(&map, path, GR_DATA))
        return false;
    bool is = map.n > 8 && gr_load_u64(map.p) <= HEADER_BYTES_MAX && map.p[8] == '{';
    gr_map_close(&map);
    return is;
}

bool gr_grouter_claims(const gr_safetensors *file) {
    return gr_safetensors_metadata(file, METADATA_KEY) != NULL;
}
