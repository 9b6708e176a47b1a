/* text.c: finds the documents of text and JSONL inputs in one pass that checks all of them, so that a bad input is
 * known before anything is written; a second pass reads them one by one in any order. */
#include "data/text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define JSON_DEPTH_MAX 64               /* of the members that are not looked at */
#define JSON_LINE_MAX ((size_t)1 << 30) /* bytes */

static bool is_blank(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i] != ' ' && p[i] != '\t' && p[i] != '\r' && p[i] != '\n')
            return false;
    return true;
}

/* The line at `at` without its newline; returns where the next one starts. */
static size_t line_take(const gr_map *m, size_t at, gr_span *line) {
    const uint8_t *start = m->p + at;
    const uint8_t *end = memchr(start, '\n', m->n - at);
    *line = (gr_span){start, end ? (size_t)(end - start) : m->n - at};
    return at + line->n + (end != NULL);
}

static gr_err place_add(gr_texts *t, gr_texts_place place, size_t n_text) {
    if (n_text >= INT32_MAX) /* its end id must fit the index's lengths too */
        return gr_fail(GR_DATA,
            "%s: document at byte %" PRIu64 ": expected less than %d bytes, got %zu; split it with separator lines",
            t->file[place.file].path, place.first, INT32_MAX, n_text);
    if (t->n_document == t->document_max) {
        size_t more = t->document_max ? t->document_max : 1024, n_byte;
        gr_texts_place *grown = NULL;
        if (gr_add_size(t->document_max, more, &more) && gr_mul_size(more, sizeof *grown, &n_byte))
            grown = realloc(t->place, n_byte);
        if (!grown)
            return gr_fail(GR_RESOURCE, "inputs: no memory for the places of %zu documents; use fewer inputs", more);
        t->place = grown;
        t->document_max = more;
    }
    t->place[t->n_document++] = place;
    t->n_byte += n_text;
    return GR_OK;
}

static gr_err bytes_add(gr_texts *t, uint32_t file, size_t first, size_t end) {
    if (is_blank(t->file[file].map.p + first, end - first)) {
        t->n_empty++;
        return GR_OK;
    }
    return place_add(t, (gr_texts_place){.first = first, .n_byte = end - first, .file = file}, end - first);
}

static bool is_separator(gr_span line, const char *separator, size_t n) {
    if (line.n == n + 1 && line.p[n] == '\r')
        line.n = n;
    return line.n == n && memcmp(line.p, separator, n) == 0;
}

static gr_err text_scan(gr_texts *t, uint32_t file, const char *separator, gr_progress *progress, uint64_t before) {
    const gr_map *m = &t->file[file].map;
    size_t n_separator = strlen(separator), first = 0;
    for (size_t at = 0, next; at < m->n; at = next) {
        gr_span line;
        next = line_take(m, at, &line);
        size_t n_valid = gr_utf8_valid(line.p, line.n);
        if (n_valid < line.n)
            return gr_fail(GR_DATA,
                "%s: byte %zu: expected UTF-8, got 0x%02x in an invalid sequence; convert the file, for example with "
                "iconv -t UTF-8",
                t->file[file].path, at + n_valid, line.p[n_valid]);
        if (is_separator(line, separator, n_separator)) {
            GR_TRY(bytes_add(t, file, first, at));
            first = next;
        }
        if (at >> 20 != next >> 20) /* asking the clock for each line would cost more than the line */
            gr_progress_update(progress, before + next);
    }
    if (is_blank(m->p + first, m->n - first))
        return GR_OK; /* a file that ends with a separator has no empty document behind it */
    return bytes_add(t, file, first, m->n);
}

/* Parses one line and finds its text. `source` is for errors. */
static gr_err json_line_read(gr_span line, const char *source, const char *key, gr_text *text) {
    *text = (gr_text){0};
    GR_TRY(gr_json_parse(&text->json, (const char *)line.p, line.n, source, JSON_LINE_MAX, JSON_DEPTH_MAX, GR_DATA));
    const gr_json_node *root = gr_json_root(text->json), *node = gr_json_get(root, key);
    if (!node || node->kind != GR_JSON_STRING) {
        const char *found = root->kind != GR_JSON_OBJECT ? "no object"
                            : node                       ? "another type of value"
                                                         : "no such member";
        gr_text_close(text);
        return gr_fail(GR_DATA,
            "%s: expected an object whose member \"%s\" is a string, got %s; name the member with --json-key", source,
            key, found);
    }
    text->p = (const uint8_t *)node->string;
    text->n = strlen(node->string);
    return GR_OK;
}

static gr_err jsonl_scan(gr_texts *t, uint32_t file, gr_progress *progress, uint64_t before) {
    const gr_texts_file *f = &t->file[file];
    char source[4352]; /* PATH_MAX and " line N" */
    uint64_t n_line = 0;
    for (size_t at = 0, next; at < f->map.n; at = next) {
        gr_span line;
        gr_text text;
        next = line_take(&f->map, at, &line);
        n_line++;
        if (is_blank(line.p, line.n))
            continue;
        snprintf(source, sizeof source, "%s line %" PRIu64, f->path, n_line);
        GR_TRY(json_line_read(line, source, f->json_key, &text));
        gr_err err = GR_OK;
        if (is_blank(text.p, text.n))
            t->n_empty++;
        else
            err = place_add(t, (gr_texts_place){.first = at, .n_byte = line.n, .file = file}, text.n);
        gr_text_close(&text);
        GR_TRY(err);
        gr_progress_update(progress, before + next);
    }
    return GR_OK;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static gr_err files_map(gr_texts *t, const char *const *path, const char *json_key, uint64_t *total) {
    *total = 0;
    for (int i = 0; i < t->n_file; i++) {
        gr_texts_file *f = &t->file[i];
        f->path = path[i];
        f->json_key = json_key ? json_key : ends_with(path[i], ".jsonl") ? "text" : NULL;
        GR_TRY(gr_map_open(&f->map, path[i], GR_DATA));
        *total += f->map.n;
    }
    return GR_OK;
}

static gr_err files_scan(gr_texts *t, const char *separator, uint64_t total) {
    gr_progress progress;
    uint64_t before = 0;
    gr_progress_start(&progress, "checking text", "B", total);
    for (int i = 0; i < t->n_file; i++) {
        if (t->file[i].json_key)
            GR_TRY(jsonl_scan(t, (uint32_t)i, &progress, before));
        else
            GR_TRY(text_scan(t, (uint32_t)i, separator, &progress, before));
        before += t->file[i].map.n;
        gr_progress_update(&progress, before);
    }
    gr_progress_finish(&progress, before);
    return GR_OK;
}

gr_err gr_texts_open(gr_texts *t, const char *const *path, int n_path, const char *separator, const char *json_key) {
    void *memory = NULL;
    uint64_t total;
    *t = (gr_texts){0};
    GR_TRY(gr_alloc(&memory, (size_t)n_path, sizeof *t->file, "list of inputs"));
    t->file = memory;
    t->n_file = n_path;
    gr_err err = files_map(t, path, json_key, &total);
    if (!err)
        err = files_scan(t, separator, total);
    if (err)
        gr_texts_close(t);
    return err;
}

void gr_texts_close(gr_texts *t) {
    for (int i = 0; i < t->n_file; i++)
        gr_map_close(&t->file[i].map);
    free(t->place);
    free(t->file);
    *t = (gr_texts){0};
}

gr_err gr_texts_read(const gr_texts *t, size_t document, gr_text *text) {
    GR_ASSERT(document < t->n_document, "document %zu of %zu", document, t->n_document);
    const gr_texts_place *place = &t->place[document];
    const gr_texts_file *f = &t->file[place->file];
    gr_span bytes = {f->map.p + place->first, place->n_byte};
    if (f->json_key)
        return json_line_read(bytes, f->path, f->json_key, text);
    *text = (gr_text){.p = bytes.p, .n = bytes.n};
    return GR_OK;
}

void gr_text_close(gr_text *text) {
    gr_json_close(text->json);
    *text = (gr_text){0};
}
