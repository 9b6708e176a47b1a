/* manifest.json: written last, so a checkpoint without a whole one does not exist. Its last line is the XXH3-64 of all
 * text before it, in every version. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"
#include "grouter/json.h"

enum {
    TEXT_BYTE_MAX = 64 << 20,
    FACTS_MAX = 4096,
    DEPTH_MAX = 4,
    MEMBERS = 12,
    SEAL_BYTE = 34, /* of the last line and the closing brace */
};

/* ---------------------------------------------------------------- printing */

static void seal_print(char seal[SEAL_BYTE + 1], const char *text, size_t n) {
    int length = snprintf(seal, SEAL_BYTE + 1, "  \"xxh3_64\": \"%016" PRIx64 "\"\n}\n", gr_hash64(text, n));
    GR_ASSERT(length == SEAL_BYTE, "%d bytes", length);
}

static gr_err string_print(FILE *f, const char *text) {
    void *escaped;
    GR_TRY(gr_alloc(&escaped, strlen(text) + 1, 6, "escaped text of a manifest"));
    fprintf(f, "\"%s\"", gr_json_escape(text, escaped));
    free(escaped);
    return GR_OK;
}

static void scalars_print(FILE *f, const gr_manifest *m) {
    const gr_run_state *s = &m->state;
    fprintf(f, "{\n  \"version\": %d,\n  \"step\": %" PRId64 ",\n  \"cursor\": %" PRIu64 ",\n",
        CHECKPOINT_MANIFEST_VERSION, s->step, s->cursor);
    fprintf(f, "  \"updates_applied\": %" PRId64 ",\n  \"updates_skipped_in_a_row\": %" PRId64 ",\n",
        s->optimizer.n_applied, s->optimizer.n_skipped);
    fprintf(f, "  \"decay_steps\": %" PRId64 ",\n  \"ranks\": %d,\n  \"expert_parallel_size\": %d,\n", s->decay_steps,
        m->n_rank, m->R_ep);
}

static gr_err facts_print(FILE *f, const gr_manifest *m) {
    fputs("  \"config\": ", f);
    GR_TRY(string_print(f, m->config_text));
    fputs(",\n  \"facts\": {", f);
    for (int i = 0; i < m->n_fact; i++) {
        fputs(i ? ",\n    " : "\n    ", f);
        GR_TRY(string_print(f, m->facts[i].key));
        fputs(": ", f);
        GR_TRY(string_print(f, m->facts[i].value));
    }
    fputs(m->n_fact ? "\n  },\n" : "},\n", f);
    return GR_OK;
}

static void files_print(FILE *f, const gr_manifest *m) {
    fputs("  \"files\": [", f);
    for (int i = 0; i < gr_saved_file_count(m->n_rank, m->R_ep); i++) {
        char name[CHECKPOINT_NAME_MAX], hash[33];
        gr_saved_file_name(m->n_rank, m->R_ep, i, name);
        fprintf(f, "%s\n    {\"name\": \"%s\", \"size\": %" PRIu64 ", \"xxh3_128\": \"%s\"}", i ? "," : "", name,
            m->file[i].n_byte, gr_hash128_text(m->file[i].hash, hash));
    }
    fputs("\n  ],\n", f);
}

gr_err gr_manifest_print(const gr_manifest *m, char **text, size_t *n) {
    *text = NULL;
    FILE *f = open_memstream(text, n);
    if (!f)
        return gr_fail(GR_RESOURCE, "checkpoint: no memory for a manifest");
    scalars_print(f, m);
    gr_err err = facts_print(f, m);
    files_print(f, m);
    char seal[SEAL_BYTE + 1];
    if (fflush(f) == 0) /* *text and *n are valid from here on */
        seal_print(seal, *text, *n);
    else
        err = gr_fail(GR_RESOURCE, "checkpoint: no memory for a manifest");
    if (!err)
        fputs(seal, f);
    bool failed = ferror(f) != 0;
    failed = fclose(f) != 0 || failed;
    return !err && failed ? gr_fail(GR_RESOURCE, "checkpoint: no memory for a manifest") : err;
}

/* ---------------------------------------------------------------- parsing */

static gr_err seal_check(const char *text, size_t n, const char *source) {
    char seal[SEAL_BYTE + 1];
    if (n < SEAL_BYTE)
        return gr_fail(GR_CHECKPOINT, "%s: expected a manifest, got %zu bytes; it is cut short", source, n);
    seal_print(seal, text, n - SEAL_BYTE);
    if (memcmp(seal, text + n - SEAL_BYTE, SEAL_BYTE) == 0)
        return GR_OK;
    return gr_fail(GR_CHECKPOINT,
        "%s: last line: expected the XXH3-64 of the text before it (%.16s), got another; the file is damaged", source,
        seal + strlen("  \"xxh3_64\": \""));
}

/* A whole number of min..max, or 66. */
static gr_err number_read(
    const gr_json_node *object, const char *key, int64_t min, int64_t max, const char *source, int64_t *out) {
    const gr_json_node *node = gr_json_get(object, key);
    if (gr_json_i64(node, out) && *out >= min && *out <= max)
        return GR_OK;
    return gr_fail(GR_CHECKPOINT, "%s: %s: expected a whole number of %" PRId64 " to %" PRId64 ", got %.64s", source,
        key, min, max,
        node && node->kind == GR_JSON_NUMBER ? node->number
        : node                               ? "something else"
                                             : "none");
}

static gr_err text_copy(const char *text, char **out) {
    *out = strdup(text);
    return *out ? GR_OK : gr_fail(GR_RESOURCE, "checkpoint: no memory for %zu bytes of its manifest", strlen(text));
}

static gr_err scalars_read(gr_manifest *m, const gr_json_node *root, const char *source) {
    gr_run_state *s = &m->state;
    int64_t cursor, n_rank, R_ep;
    GR_TRY(number_read(root, "step", 0, INT64_MAX, source, &s->step));
    GR_TRY(number_read(root, "cursor", 0, INT64_MAX, source, &cursor));
    GR_TRY(number_read(root, "updates_applied", 0, INT64_MAX, source, &s->optimizer.n_applied));
    GR_TRY(number_read(root, "updates_skipped_in_a_row", 0, INT64_MAX, source, &s->optimizer.n_skipped));
    GR_TRY(number_read(root, "decay_steps", 0, INT64_MAX, source, &s->decay_steps));
    GR_TRY(number_read(root, "ranks", 1, CHECKPOINT_FILES_MAX / 2 - 1, source, &n_rank));
    GR_TRY(number_read(root, "expert_parallel_size", 1, n_rank, source, &R_ep));
    s->cursor = (uint64_t)cursor;
    m->n_rank = (int)n_rank;
    m->R_ep = (int)R_ep;
    if (n_rank % R_ep == 0)
        return GR_OK;
    return gr_fail(GR_CHECKPOINT, "%s: expert_parallel_size: expected a divisor of ranks (%d), got %d", source,
        m->n_rank, m->R_ep);
}

static gr_err facts_read(gr_manifest *m, const gr_json_node *root, const char *source) {
    const gr_json_node *config = gr_json_get(root, "config"), *facts = gr_json_get(root, "facts");
    if (!config || config->kind != GR_JSON_STRING)
        return gr_fail(GR_CHECKPOINT, "%s: config: expected a string, got something else", source);
    if (!facts || facts->kind != GR_JSON_OBJECT || facts->n_child > FACTS_MAX)
        return gr_fail(GR_CHECKPOINT, "%s: facts: expected an object of at most %d strings, got something else", source,
            (int)FACTS_MAX);
    GR_TRY(text_copy(config->string, &m->config_text));
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)facts->n_child, sizeof *m->facts, "facts of a checkpoint"));
    m->facts = memory;
    for (const gr_json_node *c = facts->child; c; c = c->next) {
        char *key = NULL, *value = NULL;
        if (c->kind != GR_JSON_STRING)
            return gr_fail(GR_CHECKPOINT, "%s: facts: %.64s: expected a string, got something else", source, c->key);
        gr_err err = text_copy(c->key, &key);
        if (!err)
            err = text_copy(c->string, &value);
        m->facts[m->n_fact++] = (gr_fact){.key = key, .value = value};
        GR_TRY(err);
    }
    return GR_OK;
}

/* 32 hexadecimal digits as gr_hash128_text writes them. */
static bool hash_read(const char *text, gr_hash128 *hash) {
    uint64_t word[2] = {0};
    for (int i = 0; i < 32; i++) {
        static const char digits[] = "0123456789abcdef";
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;
        if (!digit)
            return false;
        word[i / 16] = word[i / 16] << 4 | (uint64_t)(digit - digits);
    }
    *hash = (gr_hash128){.hi = word[0], .lo = word[1]};
    return text[32] == '\0';
}

/* The name is not the file's to choose: layout and place in the list determine it, so none can lead elsewhere. */
static gr_err file_read(gr_manifest *m, const gr_json_node *node, int i, const char *source) {
    char name[CHECKPOINT_NAME_MAX], place[CHECKPOINT_FILE_PATH_MAX + 128];
    const gr_json_node *got = gr_json_get(node, "name"), *hash = gr_json_get(node, "xxh3_128");
    int64_t size;
    gr_saved_file_name(m->n_rank, m->R_ep, i, name);
    if (!got || got->kind != GR_JSON_STRING || strcmp(got->string, name) != 0)
        return gr_fail(GR_CHECKPOINT, "%s: files[%d]: name: expected %s, got %.128s", source, i, name,
            got && got->kind == GR_JSON_STRING ? got->string : "none");
    snprintf(place, sizeof place, "%s: files[%d]", source, i);
    GR_TRY(number_read(node, "size", 0, INT64_MAX, place, &size));
    m->file[i].n_byte = (uint64_t)size;
    if (!hash || hash->kind != GR_JSON_STRING || !hash_read(hash->string, &m->file[i].hash))
        return gr_fail(GR_CHECKPOINT, "%s: xxh3_128: expected 32 hexadecimal digits, got something else", place);
    return GR_OK;
}

static gr_err files_read(gr_manifest *m, const gr_json_node *root, const char *source) {
    const gr_json_node *files = gr_json_get(root, "files");
    int n = gr_saved_file_count(m->n_rank, m->R_ep), i = 0;
    if (!files || files->kind != GR_JSON_ARRAY || files->n_child != n)
        return gr_fail(GR_CHECKPOINT,
            "%s: files: expected %d of them (%d ranks, expert-parallel size %d, an index), got %d", source, n,
            m->n_rank, m->R_ep, files ? files->n_child : 0);
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)n, sizeof *m->file, "files of a checkpoint"));
    m->file = memory;
    for (const gr_json_node *c = files->child; c; c = c->next)
        GR_TRY(file_read(m, c, i++, source));
    return GR_OK;
}

static gr_err root_read(gr_manifest *m, const gr_json_node *root, const char *source) {
    GR_TRY(number_read(root, "version", 1, INT64_MAX, source, &m->version));
    if (m->version != CHECKPOINT_MANIFEST_VERSION)
        return gr_fail(GR_CHECKPOINT,
            "%s: version: expected %d, got %" PRId64 "; use the grouter-train that wrote it, or a newer one", source,
            CHECKPOINT_MANIFEST_VERSION, m->version);
    if (root->n_child != MEMBERS)
        return gr_fail(GR_CHECKPOINT, "%s: expected %d members, got %d", source, (int)MEMBERS, root->n_child);
    GR_TRY(scalars_read(m, root, source));
    GR_TRY(facts_read(m, root, source));
    return files_read(m, root, source);
}

gr_err gr_manifest_parse(gr_manifest *m, const char *text, size_t n, const char *source) {
    gr_json *doc;
    *m = (gr_manifest){0};
    GR_TRY(seal_check(text, n, source));
    GR_TRY(gr_json_parse(&doc, text, n, source, TEXT_BYTE_MAX, DEPTH_MAX, GR_CHECKPOINT));
    gr_err err = root_read(m, gr_json_root(doc), source);
    gr_json_close(doc);
    return err;
}

void gr_manifest_close(gr_manifest *m) {
    for (int i = 0; i < m->n_fact; i++) {
        free((void *)(uintptr_t)m->facts[i].key);
        free((void *)(uintptr_t)m->facts[i].value);
    }
    free(m->facts);
    free(m->config_text);
    free(m->file);
    *m = (gr_manifest){0};
}

/* ---------------------------------------------------------------- a checkpoint on disk */

static gr_err text_verify(
    gr_io *io, const char *path, int64_t step, uint8_t *buffer, const char *text, size_t n, gr_manifest *m) {
    char source[CHECKPOINT_FILE_PATH_MAX];
    snprintf(source, sizeof source, "%s/%s", path, CHECKPOINT_MANIFEST);
    GR_TRY(gr_manifest_parse(m, text, n, source));
    if (m->state.step != step)
        return gr_fail(GR_CHECKPOINT, "%s: step: expected the folder's %" PRId64 ", got %" PRId64 "; was it renamed?",
            source, step, m->state.step);
    for (int i = 0; i < gr_saved_file_count(m->n_rank, m->R_ep); i++) {
        char name[CHECKPOINT_NAME_MAX];
        gr_saved_file_name(m->n_rank, m->R_ep, i, name);
        GR_TRY(gr_saved_file_verify(io, path, name, &m->file[i], buffer));
    }
    return GR_OK;
}

gr_err gr_checkpoint_verify(
    gr_io *io, const char *path, int64_t step, uint8_t *buffer, gr_manifest *m, char **text, size_t *n) {
    char *read;
    size_t n_read;
    *m = (gr_manifest){0};
    GR_TRY(gr_saved_folder_check(io, path));
    GR_TRY(gr_saved_text_read(io, path, CHECKPOINT_MANIFEST, TEXT_BYTE_MAX, &read, &n_read));
    gr_err err = text_verify(io, path, step, buffer, read, n_read, m);
    if (err || !text) {
        free(read);
        return err;
    }
    *text = read;
    *n = n_read;
    return GR_OK;
}
