/* device_plans.c: reads and writes the file of tuned products. */
#include "device_plans.h"

#include "grouter/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "grouter-product-plans"
#define SIZE_LIMIT INT32_MAX /* of each dimension: no product of two overflows */
enum { VERSION = 1, DEPTH_MAX = 4, TEXT_BYTE_MAX = 2 << 20 /* GR_PLANS_MAX times 500 fit */ };

static const char *const layout_names[] = {"NT", "NN", "TN"};         /* gr_layout */
static const char *const write_names[] = {"overwrite", "accumulate"}; /* gr_write */
static const struct {
    gr_dtype dtype;
    const char *name;
} dtypes[] = {{GR_F32, "fp32"}, {GR_BF16, "bf16"}};

const char *gr_product_dtype_name(gr_dtype dtype) {
    return dtypes[dtype == GR_BF16].name;
}

/* ---------------------------------------------------------------- writing */

static gr_err write_plan(gr_out *o, const gr_product_plan *p, const char *before) {
    const gr_gemm g = gr_product_of_key(&p->key);
    const gr_alignments at = gr_product_alignments(&p->key);
    char hex[2 * GR_ALGORITHM_BYTES + 1];
    for (int i = 0; i < GR_ALGORITHM_BYTES; i++)
        snprintf(hex + 2 * i, 3, "%02x", p->algorithm[i]);
    GR_TRY(gr_out_printf(o, "%s\n    {\"layout\": \"%s\", \"write\": \"%s\", \"c\": \"%s\",", before,
        layout_names[g.layout], write_names[g.write], gr_product_dtype_name(g.c_dtype)));
    GR_TRY(gr_out_printf(o, " \"m\": %" PRId64 ", \"n\": %" PRId64 ", \"k\": %" PRId64 ",", g.m, g.n, g.k));
    GR_TRY(gr_out_printf(o, " \"lda\": %" PRId64 ", \"ldb\": %" PRId64 ", \"ldc\": %" PRId64 ",", g.lda, g.ldb, g.ldc));
    GR_TRY(gr_out_printf(o, " \"alignment\": [%u, %u, %u],", at.a, at.b, at.c));
    return gr_out_printf(o, " \"us\": %.3f,\n     \"algorithm\": \"%s\"}", p->us, hex);
}

gr_err gr_product_plans_write(const gr_product_plans *plans, gr_out *o) {
    char gpu[6 * sizeof plans->gpu + 1], cublas[6 * sizeof plans->cublas + 1];
    GR_TRY(gr_out_printf(o,
        "{\n  \"format\": \"" FORMAT "\",\n  \"version\": %d,\n  \"gpu\": \"%s\",\n  \"cublas\": \"%s\",\n", VERSION,
        gr_json_escape(plans->gpu, gpu), gr_json_escape(plans->cublas, cublas)));
    GR_TRY(gr_out_printf(o, "  \"dtype\": \"%s\",\n  \"plans\": [", gr_product_dtype_name(plans->dtype)));
    for (int i = 0; i < plans->n; i++)
        GR_TRY(write_plan(o, &plans->plan[i], i ? "," : ""));
    return gr_out_printf(o, "\n  ]\n}\n");
}

/* ---------------------------------------------------------------- reading: single values */

typedef struct reader {
    const char *path;
    gr_product_plans *out;
    gr_product_table *seen;
} reader;

static gr_err refuse(const reader *r, const gr_json_node *node, const char *key, const char *expected) {
    char found[GR_JSON_FOUND_MAX];
    return gr_fail(GR_DATA, "%s:%d: \"%s\": expected %s, got %s; " GR_PLANS_ADVICE, r->path, node->line, key, expected,
        gr_json_found(node, found));
}

static gr_err take(const reader *r, const gr_json_node *object, const char *key, const gr_json_node **node) {
    *node = gr_json_get(object, key);
    if (*node)
        return GR_OK;
    return gr_fail(
        GR_DATA, "%s:%d: expected an object with \"%s\", got none; " GR_PLANS_ADVICE, r->path, object->line, key);
}

static gr_err take_size(const reader *r, const gr_json_node *object, const char *key, int64_t least, int64_t *out) {
    const gr_json_node *node;
    char expected[80];
    GR_TRY(take(r, object, key, &node));
    if (gr_json_i64(node, out) && *out >= least && *out <= SIZE_LIMIT)
        return GR_OK;
    snprintf(expected, sizeof expected, "a whole number from %" PRId64 " to %d", least, SIZE_LIMIT);
    return refuse(r, node, key, expected);
}

/* One of n names, to *out its index. */
static gr_err take_name(
    const reader *r, const gr_json_node *object, const char *key, const char *const *name, int n, int *out) {
    const gr_json_node *node;
    char expected[80] = "";
    GR_TRY(take(r, object, key, &node));
    for (*out = 0; *out < n; ++*out)
        if (node->kind == GR_JSON_STRING && strcmp(node->string, name[*out]) == 0)
            return GR_OK;
    for (int i = 0, at = 0; i < n; i++)
        at += snprintf(expected + at, sizeof expected - (size_t)at, "%s\"%s\"", i ? " or " : "", name[i]);
    return refuse(r, node, key, expected);
}

static gr_err take_dtype(const reader *r, const gr_json_node *object, const char *key, gr_dtype *out) {
    const char *const name[] = {dtypes[0].name, dtypes[1].name};
    int i;
    GR_TRY(take_name(r, object, key, name, 2, &i));
    *out = dtypes[i].dtype;
    return GR_OK;
}

static gr_err take_text(const reader *r, const gr_json_node *object, const char *key, char *out, size_t size) {
    const gr_json_node *node;
    char expected[80];
    GR_TRY(take(r, object, key, &node));
    if (node->kind == GR_JSON_STRING && *node->string && strlen(node->string) < size) {
        strcpy(out, node->string);
        return GR_OK;
    }
    snprintf(expected, sizeof expected, "a text of 1 to %zu bytes", size - 1);
    return refuse(r, node, key, expected);
}

static gr_err take_algorithm(const reader *r, const gr_json_node *object, uint8_t *out) {
    const gr_json_node *node;
    GR_TRY(take(r, object, "algorithm", &node));
    const char *text = node->kind == GR_JSON_STRING ? node->string : "";
    bool ok = strlen(text) == 2 * GR_ALGORITHM_BYTES;
    for (int i = 0; ok && i < GR_ALGORITHM_BYTES; i++) {
        const int high = gr_hex_value(text[2 * i]), low = gr_hex_value(text[2 * i + 1]);
        ok = high >= 0 && low >= 0;
        out[i] = (uint8_t)(ok ? 16 * high + low : 0);
    }
    return ok ? GR_OK : refuse(r, node, "algorithm", "128 hexadecimal digits in lower case");
}

static gr_err take_alignments(const reader *r, const gr_json_node *object, gr_alignments *out) {
    const gr_json_node *list;
    int64_t at[3];
    GR_TRY(take(r, object, "alignment", &list));
    bool ok = list->kind == GR_JSON_ARRAY && list->n_child == 3;
    const gr_json_node *node = ok ? list->child : NULL;
    for (int i = 0; ok && i < 3; i++, node = node->next)
        ok = gr_json_i64(node, &at[i]) && at[i] >= 1 && at[i] <= 16 && (at[i] & (at[i] - 1)) == 0;
    if (!ok)
        return refuse(r, list, "alignment", "three of 1, 2, 4, 8 and 16");
    *out = (gr_alignments){(uint32_t)at[0], (uint32_t)at[1], (uint32_t)at[2]};
    return GR_OK;
}

/* ---------------------------------------------------------------- reading: a plan */

/* A leading dimension is at least what lies next to each other in memory. */
static gr_err take_shape(const reader *r, const gr_json_node *object, gr_gemm *g) {
    int layout, write;
    GR_TRY(take_name(r, object, "layout", layout_names, 3, &layout));
    GR_TRY(take_name(r, object, "write", write_names, 2, &write));
    g->layout = (gr_layout)layout;
    g->write = (gr_write)write;
    GR_TRY(take_dtype(r, object, "c", &g->c_dtype));
    GR_TRY(take_size(r, object, "m", 1, &g->m));
    GR_TRY(take_size(r, object, "n", 1, &g->n));
    GR_TRY(take_size(r, object, "k", 1, &g->k));
    const gr_product_view view = gr_product_view_of(g);
    GR_TRY(take_size(r, object, "lda", view.right_rows, &g->lda));
    GR_TRY(take_size(r, object, "ldb", view.left_rows, &g->ldb));
    return take_size(r, object, "ldc", g->n, &g->ldc);
}

static gr_err take_plan(const reader *r, const gr_json_node *object, gr_product_plan *p) {
    gr_gemm g = {0};
    gr_alignments at;
    const gr_json_node *us;
    p->line = object->line;
    GR_TRY(take_shape(r, object, &g));
    GR_TRY(take_alignments(r, object, &at));
    GR_TRY(take_algorithm(r, object, p->algorithm));
    GR_TRY(take(r, object, "us", &us));
    if (!gr_json_f64(us, &p->us) || p->us <= 0 || p->us > 1e9)
        return refuse(r, us, "us", "a number above 0 and up to 1e9");
    if (g.c_dtype != GR_F32 && g.c_dtype != r->out->dtype)
        return gr_fail(GR_DATA, "%s:%d: \"c\": expected fp32 or the file's dtype %s, got %s; " GR_PLANS_ADVICE, r->path,
            p->line, gr_product_dtype_name(r->out->dtype), gr_product_dtype_name(g.c_dtype));
    p->key = gr_product_key_with(&g, at);
    const int n_before = r->seen->n, number = gr_product_number(r->seen, &p->key);
    if (number == n_before)
        return GR_OK;
    return gr_fail(GR_DATA, "%s:%d: expected each product once, got that of line %d again; " GR_PLANS_ADVICE, r->path,
        p->line, r->out->plan[number].line);
}

static gr_err take_plans(const reader *r, const gr_json_node *root) {
    const gr_json_node *list;
    void *memory;
    char expected[80];
    GR_TRY(take(r, root, "plans", &list));
    snprintf(expected, sizeof expected, "an array of 1 to %d", GR_PLANS_MAX);
    if (list->kind != GR_JSON_ARRAY || list->n_child < 1 || list->n_child > GR_PLANS_MAX)
        return refuse(r, list, "plans", expected);
    GR_TRY(gr_alloc(&memory, (size_t)list->n_child, sizeof *r->out->plan, "plans of products"));
    r->out->plan = memory;
    for (const gr_json_node *node = list->child; node; node = node->next)
        GR_TRY(take_plan(r, node, &r->out->plan[r->out->n++]));
    return GR_OK;
}

static gr_err take_all(const reader *r, const gr_json_node *root) {
    static const char *const format[] = {FORMAT};
    int i;
    const gr_json_node *version;
    int64_t v;
    GR_TRY(take_name(r, root, "format", format, 1, &i));
    GR_TRY(take(r, root, "version", &version));
    if (!gr_json_i64(version, &v) || v != VERSION)
        return refuse(r, version, "version", "1, the only one there is");
    GR_TRY(take_text(r, root, "gpu", r->out->gpu, sizeof r->out->gpu));
    GR_TRY(take_text(r, root, "cublas", r->out->cublas, sizeof r->out->cublas));
    GR_TRY(take_dtype(r, root, "dtype", &r->out->dtype));
    return take_plans(r, root);
}

static gr_err read_text(gr_product_plans *out, const char *path, const char *text, size_t n) {
    gr_json *doc;
    void *seen;
    GR_TRY(gr_json_parse(&doc, text, n, path, TEXT_BYTE_MAX, DEPTH_MAX, GR_DATA));
    gr_err err = gr_alloc(&seen, 1, sizeof(gr_product_table), "plans of products");
    if (!err) {
        const reader r = {.path = path, .out = out, .seen = seen};
        err = take_all(&r, gr_json_root(doc));
        free(seen);
    }
    gr_json_close(doc);
    return err;
}

gr_err gr_product_plans_read(gr_product_plans *out, const char *path) {
    char *text;
    size_t n;
    *out = (gr_product_plans){0};
    GR_TRY(gr_file_read(path, TEXT_BYTE_MAX, GR_DATA, &text, &n));
    gr_err err = read_text(out, path, text, n);
    free(text);
    if (err)
        gr_product_plans_close(out);
    return err;
}

void gr_product_plans_close(gr_product_plans *plans) {
    free(plans->plan);
    *plans = (gr_product_plans){0};
}
