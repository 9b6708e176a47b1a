/* bench_output.c: arguments and figures of the benchmarks. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "grouter/json.h"

gr_err gr_bench_dtype_parse(const char *text, gr_dtype *out) {
    *out = text && strcmp(text, "bf16") == 0 ? GR_BF16 : GR_F32;
    if (!text || *out == GR_BF16 || strcmp(text, "fp32") == 0)
        return GR_OK;
    return gr_fail(GR_USAGE, "--dtype: expected fp32 or bf16, got \"%s\"", text);
}

const char *gr_bench_dtype_text(gr_dtype dtype) {
    return dtype == GR_F32 ? "fp32" : "bf16";
}

gr_err gr_bench_u32_parse(
    const char *name, const char *text, uint32_t min, uint32_t max, uint32_t standard, uint32_t *out) {
    uint64_t n = standard;
    if (text)
        GR_TRY(gr_option_u64(name, text, min, max, &n));
    *out = (uint32_t)n;
    return GR_OK;
}

void gr_bench_time_print(const gr_bench_time *t) {
    char text[96];
    int digits = t->high_ms < 10 ? 3 : t->high_ms < 100 ? 2 : 1;
    snprintf(text, sizeof text, "%.*f [%.*f, %.*f]", digits, t->median_ms, digits, t->low_ms, digits, t->high_ms);
    printf("%-26s", text);
}

/* ---------------------------------------------------------------- JSON */

static gr_err write_text(gr_out *out, const char *text) {
    char *escaped;
    GR_TRY(gr_alloc((void **)&escaped, 6 * strlen(text) + 1, 1, "text"));
    gr_err e = gr_out_printf(out, "\"%s\"", gr_json_escape(text, escaped));
    free(escaped);
    return e;
}

static gr_err write_value(gr_out *out, const bench_field *f) {
    if (f->text)
        return write_text(out, f->text);
    return isfinite(f->number) ? gr_out_printf(out, "%.9g", f->number) : gr_out_printf(out, "null");
}

static gr_err write_json(gr_out *out, const bench_table *t) {
    GR_TRY(gr_out_printf(out, "{"));
    for (int i = 0; i < t->n_head; i++) {
        GR_TRY(gr_out_printf(out, "\n  \"%s\": ", t->head[i].key));
        GR_TRY(write_value(out, &t->head[i]));
        GR_TRY(gr_out_printf(out, ","));
    }
    GR_TRY(gr_out_printf(out, "\n  \"%s\": [", t->rows));
    for (int i = 0; i < t->n_row * t->n_column; i++) {
        const bench_field *f = &t->field[i];
        const int column = i % t->n_column;
        GR_TRY(gr_out_printf(out, "%s\"%s\": ", column ? ", " : i ? "},\n    {" : "\n    {", f->key));
        GR_TRY(write_value(out, f));
    }
    return gr_out_printf(out, "%s]\n}\n", t->n_row ? "}\n  " : "");
}

/* ---------------------------------------------------------------- CSV (RFC 4180) */

static gr_err write_cell(gr_out *out, const bench_field *f, const char *before) {
    GR_TRY(gr_out_printf(out, "%s", before));
    if (!f->text)
        return isfinite(f->number) ? gr_out_printf(out, "%.9g", f->number) : GR_OK;
    if (!strpbrk(f->text, ",\"\n\r"))
        return gr_out_printf(out, "%s", f->text);
    GR_TRY(gr_out_printf(out, "\""));
    for (const char *c = f->text; *c; c++)
        GR_TRY(gr_out_printf(out, *c == '"' ? "\"%c" : "%c", *c));
    return gr_out_printf(out, "\"");
}

static gr_err write_csv(gr_out *out, const bench_table *t) {
    for (int i = 0; i < t->n_head + t->n_column; i++)
        GR_TRY(gr_out_printf(out, "%s%s", i ? "," : "", i < t->n_head ? t->head[i].key : t->field[i - t->n_head].key));
    for (int r = 0; r < t->n_row; r++)
        for (int i = 0; i < t->n_head + t->n_column; i++) {
            const bench_field *f = i < t->n_head ? &t->head[i] : &t->field[r * t->n_column + i - t->n_head];
            GR_TRY(write_cell(out, f, i ? "," : "\n"));
        }
    return gr_out_printf(out, "\n");
}

/* ---------------------------------------------------------------- files */

gr_err gr_bench_outputs_open(bench_outputs *o, const char *json, const char *csv) {
    *o = (bench_outputs){0};
    if (json && csv && strcmp(json, csv) == 0)
        return gr_fail(GR_USAGE, "--csv: expected another file than that of --json, got %s; choose another name", csv);
    if (json)
        GR_TRY(gr_out_open(&o->json, json));
    return csv ? gr_out_open(&o->csv, csv) : GR_OK;
}

gr_err gr_bench_outputs_write(bench_outputs *o, const bench_table *t) {
    if (o->json) {
        GR_TRY(write_json(o->json, t));
        GR_TRY(gr_out_commit(o->json));
    }
    if (!o->csv)
        return GR_OK;
    GR_TRY(write_csv(o->csv, t));
    return gr_out_commit(o->csv);
}

void gr_bench_outputs_close(bench_outputs *o) {
    gr_out_close(o->csv);
    gr_out_close(o->json);
    *o = (bench_outputs){0};
}
