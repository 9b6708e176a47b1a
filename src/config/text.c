/* The config and its keys as text. */
#include <stdlib.h>
#include <string.h>

#include "schema.h"

/* ---------------------------------------------------------------- values */

/* The shortest of 15, 16 or 17 digits that reads back as v. */
static void print_number(FILE *out, double v) {
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    fputs(text, out);
}

static void print_string(FILE *out, const char *text) {
    char escaped[6 * GR_PATH_MAX + 1];
    fprintf(out, "\"%s\"", gr_json_escape(text, escaped));
}

void gr_key_print(FILE *out, const gr_key *key, const void *base) {
    const char *at = (const char *)base + key->offset;
    switch (key->type) {
    case GR_KEY_INT:
        fprintf(out, "%d", *(const int *)at);
        break;
    case GR_KEY_INT64:
        fprintf(out, "%lld", (long long)*(const int64_t *)at);
        break;
    case GR_KEY_NUMBER:
        print_number(out, *(const double *)at);
        break;
    case GR_KEY_BOOL:
        fputs(*(const bool *)at ? "true" : "false", out);
        break;
    case GR_KEY_NAME:
        print_string(out, key->names[*(const int *)at]);
        break;
    case GR_KEY_PATH:
        print_string(out, at);
        break;
    case GR_KEY_FILES:
        break;
    }
}

static void print_files(FILE *out, const gr_key *list, const gr_config *c) {
    int n = *(const int *)((const char *)c + list->count_offset);
    const gr_data_file *files = (const gr_data_file *)((const char *)c + list->offset);
    fputc('[', out);
    for (int i = 0; i < n; i++) {
        const char *separator = i ? ",\n      {" : "\n      {";
        for (int k = 0; k < GR_N_KEY; k++)
            if (gr_key_is_member(list, &gr_keys[k])) {
                if (gr_keys[k].type == GR_KEY_PATH && !((const char *)&files[i])[gr_keys[k].offset])
                    continue; /* no routes */
                fprintf(out, "%s\"%s\": ", separator, strrchr(gr_keys[k].name, '.') + 1);
                gr_key_print(out, &gr_keys[k], &files[i]);
                separator = ", ";
            }
        fputc('}', out);
    }
    fputs(n ? "\n    ]" : "]", out);
}

/* ---------------------------------------------------------------- config */

static void print_config(FILE *out, const gr_config *c) {
    const char *section = "";
    size_t n_section = 0;
    fputc('{', out);
    for (int k = 0; k < GR_N_KEY; k++) {
        const gr_key *key = &gr_keys[k];
        if (strchr(key->name, '['))
            continue;
        size_t n = strcspn(key->name, ".");
        if (n == n_section && strncmp(section, key->name, n) == 0) {
            fputc(',', out);
        } else {
            fprintf(out, "%s\n  \"%.*s\": {", n_section ? "\n  }," : "", (int)n, key->name);
            section = key->name;
            n_section = n;
        }
        fprintf(out, "\n    \"%s\": ", key->name + n + 1);
        if (key->type == GR_KEY_FILES)
            print_files(out, key, c);
        else
            gr_key_print(out, key, c);
    }
    fputs("\n  }\n}\n", out);
}

gr_err gr_config_text(const gr_config *c, char **text) {
    size_t n;
    *text = NULL;
    FILE *out = open_memstream(text, &n);
    bool ok = out != NULL;
    if (ok) {
        print_config(out, c);
        ok = !ferror(out);
        ok = fclose(out) == 0 && ok;
    }
    if (ok)
        return GR_OK;
    free(*text);
    *text = NULL;
    return gr_fail(GR_RESOURCE, "not enough memory for the text of the config");
}

/* ---------------------------------------------------------------- keys */

static void print_range(FILE *out, const gr_key *key) {
    switch (key->type) {
    case GR_KEY_INT:
    case GR_KEY_INT64:
        fprintf(out, "[%lld, %lld]", (long long)key->min, (long long)key->max);
        break;
    case GR_KEY_NUMBER:
        fprintf(out, "%c%g, %g%c", key->open == GR_OPEN_LOW ? '(' : '[', key->low, key->high,
            key->open == GR_OPEN_HIGH ? ')' : ']');
        break;
    case GR_KEY_BOOL:
        fputs("`true`, `false`", out);
        break;
    case GR_KEY_NAME:
        for (int i = 0; key->names[i]; i++)
            fprintf(out, "%s`%s`", i ? ", " : "", key->names[i]);
        break;
    case GR_KEY_PATH:
        fprintf(out, "%lld to %lld bytes", (long long)key->min, (long long)key->max);
        break;
    case GR_KEY_FILES:
        fprintf(out, "%lld to %lld elements", (long long)key->min, (long long)key->max);
        break;
    }
}

void gr_config_print_keys(FILE *out) {
    static const char *const types[] = {[GR_KEY_INT] = "integer",
        [GR_KEY_INT64] = "integer",
        [GR_KEY_NUMBER] = "number",
        [GR_KEY_BOOL] = "boolean",
        [GR_KEY_NAME] = "name",
        [GR_KEY_PATH] = "path",
        [GR_KEY_FILES] = "array"};
    static const char *const on_resume[] = {
        [GR_RESUME_REFUSED] = "refused", [GR_RESUME_WARNED] = "warned", [GR_RESUME_FREE] = "free"};
    for (int k = 0; k < GR_N_KEY; k++) {
        const gr_key *key = &gr_keys[k];
        fprintf(out, "| `%s` | %s | %s | ", key->name, types[key->type], key->unit);
        if (key->derived)
            fputs(key->derived, out);
        else if (key->fallback)
            fprintf(out, "`%s`", key->fallback);
        else
            fputs("required", out);
        fputs(" | ", out);
        print_range(out, key);
        fprintf(out, " | %s | %s |\n", on_resume[key->on_resume], key->meaning);
    }
}
