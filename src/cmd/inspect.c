/* inspect: what is in a file, verified. The kind is recognised by content. */
#include "cmd/inspect.h"
#include "cmd/cmd.h"
#include "grouter/data.h"
#include "grouter/router.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---------------------------------------------------------------- router files */

gr_err gr_inspect_router(const char *path, bool json) {
    gr_router *router = NULL;
    GR_TRY(gr_router_open(&router, path));
    const gr_router_info *i = gr_router_get(router);
    char hash[33];
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "router");
    gr_report_text(&r, "file", "router", path);
    gr_report_text(&r, "method", "method", gr_router_method_name(i->method));
    if (i->method == GR_ROUTER_HASH)
        gr_report_count(&r, "vocab", "vocabulary V", i->V);
    else
        gr_report_count(&r, "seed", "seed", i->seed);
    gr_report_count(&r, "experts", "experts E", i->E);
    gr_report_count(&r, "experts_per_token", "experts per token K", i->K);
    gr_report_number(&r, "scale", "scale", (double)i->scale);
    gr_report_text(&r, "router_hash", "router hash", gr_hash128_text(i->hash, hash));
    gr_report_end(&r);
    gr_router_close(router);
    return GR_OK;
}

/* ---------------------------------------------------------------- touch counts */

static void print_touch(const char *path, const gr_touch *touch, uint64_t table_hash, bool json) {
    uint64_t sum = 0;
    uint32_t most = 0;
    for (size_t i = 0; i < touch->n_window * touch->n_rank; i++) {
        sum += touch->count[i];
        most = touch->count[i] > most ? touch->count[i] : most;
    }
    char hash[17], experts[32] = "consecutive";
    snprintf(hash, sizeof hash, "%016" PRIx64, table_hash);
    if (touch->map)
        snprintf(experts, sizeof experts, "placed, %016" PRIx64, touch->map);
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "touch counts");
    gr_report_text(&r, "file", "touch counts", path);
    gr_report_text(&r, "table_hash", "of the route table with hash", hash);
    gr_report_count(&r, "ranks", "expert-parallel ranks", touch->n_rank);
    gr_report_text(&r, "experts", "experts of a rank", experts);
    gr_report_count(&r, "windows", "windows", touch->n_window);
    gr_report_number(&r, "tokens_per_window_and_rank_mean", "tokens of a window that touch a rank, mean",
        touch->n_window ? (double)sum / (double)touch->n_window / touch->n_rank : 0);
    gr_report_count(&r, "tokens_per_window_and_rank_max", "tokens of a window that touch a rank, max", most);
    gr_report_end(&r);
}

gr_err gr_inspect_touch(const char *path, bool json) {
    gr_touch touch;
    uint64_t table_hash = 0;
    gr_err err = gr_touch_read(&touch, path, &table_hash);
    if (!err)
        print_touch(path, &touch, table_hash, json);
    gr_touch_close(&touch);
    return err;
}

/* ---------------------------------------------------------------- safetensors */

static void print_tensors(gr_report *r, const gr_safetensors *s) {
    if (r->json)
        gr_report_key(r, "list");
    for (int i = 0; i < gr_safetensors_count(s); i++) {
        const gr_tensor *t = gr_safetensors_at(s, i);
        if (r->json) {
            printf("%s\n    {\"name\": ", i ? "," : "[");
            gr_report_literal(t->name);
            printf(", \"dtype\": \"%s\", \"shape\": [", gr_dtype_name(t->dtype));
        } else {
            printf("  ");
            gr_report_plain(t->name);
            printf(" %s [", gr_dtype_name(t->dtype));
        }
        for (int d = 0; d < t->n_dim; d++)
            printf("%s%" PRId64, d ? ", " : "", t->dim[d]);
        printf(r->json ? "], \"bytes\": %zu}" : "] %zu bytes\n", t->n_byte);
    }
    if (r->json)
        printf(gr_safetensors_count(s) ? "]" : "[]");
}

static void print_metadata(gr_report *r, const gr_metadata *list, int n) {
    if (r->json) {
        gr_report_key(r, "metadata");
        printf("{");
    }
    for (int i = 0; i < n; i++) {
        if (r->json) {
            printf("%s", i ? ", " : "");
            gr_report_literal(list[i].key);
            printf(": ");
            gr_report_literal(list[i].value);
        } else {
            printf("metadata ");
            gr_report_plain(list[i].key);
            printf(": ");
            gr_report_plain(list[i].value);
            putchar('\n');
        }
    }
    if (r->json)
        printf("}");
}

static void print_safetensors(
    const char *path, const gr_safetensors *s, const gr_metadata *metadata, int n_metadata, bool json) {
    uint64_t n_byte = 0;
    for (int i = 0; i < gr_safetensors_count(s); i++)
        n_byte += gr_safetensors_at(s, i)->n_byte;
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "safetensors");
    gr_report_text(&r, "file", "safetensors", path);
    gr_report_count(&r, "tensors", "tensors", (uint64_t)gr_safetensors_count(s));
    gr_report_count(&r, "bytes", "bytes of tensors", n_byte);
    print_metadata(&r, metadata, n_metadata);
    print_tensors(&r, s);
    gr_report_end(&r);
}

gr_err gr_inspect_safetensors(const char *path, bool json) {
    gr_safetensors *s = NULL;
    void *metadata = NULL;
    GR_TRY(gr_safetensors_open(&s, path));
    if (gr_grouter_claims(s)) {
        gr_safetensors_close(s);
        return gr_inspect_grouter(path, json);
    }
    int n_metadata = gr_safetensors_metadata_list(s, NULL, 0);
    gr_err err = gr_alloc(&metadata, (size_t)n_metadata, sizeof(gr_metadata), "list of metadata");
    if (!err) {
        gr_safetensors_metadata_list(s, metadata, n_metadata);
        print_safetensors(path, s, metadata, n_metadata, json);
    }
    free(metadata);
    gr_safetensors_close(s);
    return err;
}

/* ---------------------------------------------------------------- the command */

typedef enum kind {
    KIND_UNKNOWN,
    KIND_ROUTES,
    KIND_ROUTER,
    KIND_TOUCH,
    KIND_TOKENS,
    KIND_SAFETENSORS, /* a Grouter too */
    KIND_MAPPING,
    KIND_PLACEMENT,
    KIND_CHECKPOINT
} kind;

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static bool starts_with(gr_map map, const char *magic) {
    size_t n = strlen(magic);
    return map.n >= n && memcmp(map.p, magic, n) == 0;
}

static kind recognise_bytes(const char *path, gr_map map) {
    if (starts_with(map, "GRROUTES") || starts_with(map, "GRUNDONE")) /* unfinished: its reader says so */
        return KIND_ROUTES;
    if (starts_with(map, "GRROUTER"))
        return KIND_ROUTER;
    if (starts_with(map, "GRTOUCH"))
        return KIND_TOUCH;
    if (starts_with(map, "GRPLACE"))
        return KIND_PLACEMENT;
    if (starts_with(map, "MMIDIDX") || ends_with(path, ".bin")) /* a .bin has no mark of its own */
        return KIND_TOKENS;
    if (map.n > 8 && gr_load_u64(map.p) <= map.n - 8 && map.p[8] == '{')
        return KIND_SAFETENSORS;
    if (map.n > 0 && map.p[0] == '{' && memmem(map.p, map.n < 256 ? map.n : 256, "grouter-mapping", 15))
        return KIND_MAPPING;
    return KIND_UNKNOWN;
}

static bool exists_with(const char *path, const char *end) {
    char whole[4096];
    int n = snprintf(whole, sizeof whole, "%s%s", path, end);
    return n > 0 && (size_t)n < sizeof whole && gr_path_exists(whole);
}

/* A folder, or one of the JSON files that stand for it. */
static bool is_checkpoint(const char *path) {
    struct stat st;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    return strcmp(name, "config.json") == 0 || strcmp(name, "model.safetensors.index.json") == 0 ||
           (stat(path, &st) == 0 && S_ISDIR(st.st_mode));
}

static gr_err recognise(const char *path, kind *out) {
    *out = KIND_CHECKPOINT;
    if (is_checkpoint(path))
        return GR_OK;
    *out = KIND_TOKENS;
    if (!gr_path_exists(path) && (exists_with(path, ".idx") || exists_with(path, ".bin")))
        return GR_OK;
    gr_map map = {0};
    GR_TRY(gr_map_open(&map, path, GR_DATA));
    *out = recognise_bytes(path, map);
    gr_map_close(&map);
    if (*out == KIND_UNKNOWN)
        return gr_fail(GR_DATA,
            "%s: expected a route table, its .touch counts, a router, a mapping, a placement, a token file (.idx, .bin "
            "or "
            "their prefix), safetensors or the folder of a checkpoint, got none of them; an early part of the file may "
            "be damaged",
            path);
    return GR_OK;
}

static gr_err run(int argc, char **argv) {
    const char *tokens = NULL, *svg = NULL, *path = NULL;
    int n_json = 0, n_path = 0;
    const gr_option options[] = {{.name = "--tokens", .value = &tokens, .max = 1},
        {.name = "--svg", .value = &svg, .max = 1}, {.name = "--json", .max = 0, .n_seen = &n_json}};
    GR_TRY(gr_options_parse(argc, argv, options, 3, &path, 1, &n_path));
    if (n_path == 0)
        return gr_fail(GR_USAGE, "inspect: expected a file, got none; see --help");
    kind found;
    GR_TRY(recognise(path, &found));
    if (tokens && found != KIND_ROUTES)
        return gr_fail(GR_USAGE, "--tokens: expected only with a route table, got %s", path);
    if (svg && found != KIND_PLACEMENT)
        return gr_fail(GR_USAGE, "--svg: expected only with a placement, got %s", path);
    if (svg && gr_path_same(svg, path))
        return gr_fail(GR_USAGE, "--svg: expected another file than the placement, got %s for both", path);
    switch (found) {
    case KIND_ROUTES:
        return gr_inspect_routes(path, tokens, n_json > 0);
    case KIND_ROUTER:
        return gr_inspect_router(path, n_json > 0);
    case KIND_TOUCH:
        return gr_inspect_touch(path, n_json > 0);
    case KIND_TOKENS:
        return gr_inspect_tokens(path, n_json > 0);
    case KIND_MAPPING:
        return gr_inspect_mapping(path, n_json > 0);
    case KIND_PLACEMENT:
        return gr_inspect_placement(path, svg, n_json > 0);
    case KIND_CHECKPOINT:
        return gr_inspect_hf(path, n_json > 0);
    default:
        return gr_inspect_safetensors(path, n_json > 0);
    }
}

const gr_command gr_cmd_inspect = {
    .name = "inspect",
    .summary = "what is in a file, verified",
    .help =
        "usage: grouter-train inspect FILE [--tokens TOKENS] [--svg PICTURE] [--json]\n"
        "\n"
        "FILE is a route table, its .touch counts, a router, a Grouter, the mapping of a fold, a placement, a token\n"
        "file (.idx, .bin or their prefix), safetensors, or the folder of a Hugging Face checkpoint (config.json,\n"
        "Qwen3-MoE) or of a run with its weights; it is recognised by content, read and checked as far as its format\n"
        "allows. Any damage is an error.\n"
        "\n"
        "  --tokens TOKENS  the token file of a route table: also proves that they are a pair\n"
        "  --svg PICTURE    of a placement: which experts are chosen together, in the order of ranks, the load of "
        "ranks,\n"
        "                   and the rows of each way to place\n"
        "  --json           one JSON object on standard output\n"
        "\n"
        "example:\n"
        "  grouter-train inspect data/train.routes --tokens data/train\n",
    .run = run,
};
