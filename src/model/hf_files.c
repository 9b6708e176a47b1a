/* hf_files.c: the folder of a checkpoint and its index of shards. The index comes from elsewhere: it may name no file
 * outside its folder. */
#include "hf_parts.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_BYTE_MAX ((size_t)64 << 20)
#define INDEX_DEPTH_MAX 8 /* "metadata" may hold anything */
#define NAME_BYTE_MAX 128

/* ---------------------------------------------------------------- names and paths */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static bool is_plain(const char *name) {
    static const char legal[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strlen(name);
    return n >= 1 && n <= NAME_BYTE_MAX && strspn(name, legal) == n && name[0] != '.';
}

/* True if `path` is, links followed, an entry of `folder` itself. */
static bool lies_in(const char *folder, const char *path) {
    char *whole_folder = realpath(folder, NULL), *whole = realpath(path, NULL), *slash = NULL;
    bool inside = false;
    if (whole_folder && whole && (slash = strrchr(whole, '/'))) {
        size_t n = strlen(whole_folder);
        n = strcmp(whole_folder, "/") == 0 ? 0 : n;
        inside = (size_t)(slash - whole) == n && memcmp(whole, whole_folder, n) == 0;
    }
    free(whole);
    free(whole_folder);
    return inside;
}

gr_err gr_hf_path(const char *folder, const char *name, char *path) {
    int n = snprintf(path, GR_HF_PATH_MAX, "%s/%s", folder, name);
    if (n < 0 || n >= GR_HF_PATH_MAX)
        return gr_fail(GR_CHECKPOINT, "%s: expected a path below %d bytes, got a longer one; move the folder", folder,
            GR_HF_PATH_MAX);
    if (!gr_path_exists(path))
        return gr_fail(
            GR_CHECKPOINT, "%s: expected a file, got: %s; is the checkpoint complete?", path, strerror(ENOENT));
    if (!lies_in(folder, path))
        return gr_fail(GR_CHECKPOINT,
            "%s: expected a file in the folder itself, got a link out of it; copy the folder with its links resolved "
            "(cp -rL; hf download with --local-dir)",
            path);
    return GR_OK;
}

/* ---------------------------------------------------------------- the index */

static int text_compare(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int gr_hf_index_file(const gr_hf_index *index, const char *name) {
    const char **found = bsearch(&name, index->file, (size_t)index->n_file, sizeof *index->file, text_compare);
    GR_ASSERT(found, "%s", name);
    return (int)(found - index->file);
}

static gr_err place_read(gr_hf_index *index, const gr_json_node *node, const char *path) {
    if (node->kind != GR_JSON_STRING)
        return gr_fail(GR_CHECKPOINT, "%s:%d:%d: weight_map: %s: expected a file name, got another type", path,
            node->line, node->column, node->key);
    if (!is_plain(node->string) || !ends_with(node->string, ".safetensors"))
        return gr_fail(GR_CHECKPOINT,
            "%s:%d:%d: weight_map: %s: expected the plain name of a .safetensors file in this folder (letters, digits, "
            "'.', '_', '-'; no leading '.'; at most %d), got \"%.200s\"",
            path, node->line, node->column, node->key, NAME_BYTE_MAX, node->string);
    index->file[index->n_place] = node->string;
    index->place[index->n_place++] = (gr_hf_place){.tensor = node->key, .file = node->string};
    return GR_OK;
}

static gr_err places_read(gr_hf_index *index, const gr_json_node *map, const char *path) {
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)map->n_child, sizeof *index->place, "index of tensors"));
    index->place = memory;
    GR_TRY(gr_alloc(&memory, (size_t)map->n_child, sizeof *index->file, "index of files"));
    index->file = memory;
    for (const gr_json_node *c = map->child; c; c = c->next)
        GR_TRY(place_read(index, c, path));
    qsort(index->file, (size_t)index->n_place, sizeof *index->file, text_compare);
    for (int i = 0; i < index->n_place; i++)
        if (index->n_file == 0 || strcmp(index->file[index->n_file - 1], index->file[i]) != 0)
            index->file[index->n_file++] = index->file[i];
    if (index->n_file > GR_HF_SHARDS_MAX)
        return gr_fail(
            GR_CHECKPOINT, "%s: weight_map: expected at most %d files, got %d", path, GR_HF_SHARDS_MAX, index->n_file);
    return GR_OK;
}

static gr_err index_read(gr_hf_index *index, const char *path) {
    char *text;
    size_t n;
    GR_TRY(gr_file_read(path, INDEX_BYTE_MAX, GR_CHECKPOINT, &text, &n));
    gr_err err = gr_json_parse(&index->json, text, n, path, INDEX_BYTE_MAX, INDEX_DEPTH_MAX, GR_CHECKPOINT);
    free(text);
    GR_TRY(err);
    const gr_json_node *map = gr_json_get(gr_json_root(index->json), "weight_map");
    if (!map || map->kind != GR_JSON_OBJECT || map->n_child == 0 || map->n_child > GR_HF_TENSORS_MAX)
        return gr_fail(GR_CHECKPOINT,
            "%s: weight_map: expected an object that names the file of each tensor (1 to %d), got %s", path,
            GR_HF_TENSORS_MAX,
            !map                          ? "none"
            : map->kind != GR_JSON_OBJECT ? "another type"
            : map->n_child == 0           ? "an empty one"
                                          : "more");
    return places_read(index, map, path);
}

gr_err gr_hf_index_open(gr_hf_index *index, const char *path) {
    *index = (gr_hf_index){0};
    gr_err err = index_read(index, path);
    if (err)
        gr_hf_index_close(index);
    return err;
}

void gr_hf_index_close(gr_hf_index *index) {
    free(index->file);
    free(index->place);
    gr_json_close(index->json);
    *index = (gr_hf_index){0};
}
