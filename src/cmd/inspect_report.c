/* inspect_report.c: figures as text lines or as one JSON object. */
#include "cmd/inspect.h"
#include "grouter/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void gr_report_begin(gr_report *r, bool json) {
    *r = (gr_report){.json = json};
    if (json)
        putchar('{');
}

void gr_report_literal(const char *text) {
    char *escaped = malloc(6 * strlen(text) + 1);
    GR_ASSERT(escaped, "text of %zu bytes", strlen(text));
    printf("\"%s\"", gr_json_escape(text, escaped));
    free(escaped);
}

void gr_report_plain(const char *text) {
    gr_print_plain(stdout, text, strlen(text));
}

void gr_report_key(gr_report *r, const char *key) {
    printf("%s\n  \"%s\": ", r->n_figure++ ? "," : "", key);
}

void gr_report_text(gr_report *r, const char *key, const char *label, const char *value) {
    if (r->json) {
        gr_report_key(r, key);
        gr_report_literal(value);
    } else if (label) {
        printf("%s: ", label);
        gr_report_plain(value);
        putchar('\n');
    }
}

void gr_report_count(gr_report *r, const char *key, const char *label, uint64_t value) {
    if (r->json) {
        gr_report_key(r, key);
        printf("%" PRIu64, value);
    } else if (label) {
        printf("%s: %" PRIu64 "\n", label, value);
    }
}

void gr_report_number(gr_report *r, const char *key, const char *label, double value) {
    if (r->json) {
        gr_report_key(r, key);
        if (isfinite(value))
            printf("%.9g", value);
        else
            printf("null");
    } else if (label) {
        printf("%s: %.6g\n", label, value);
    }
}

void gr_report_bool(gr_report *r, const char *key, const char *label, bool value) {
    if (r->json) {
        gr_report_key(r, key);
        printf(value ? "true" : "false");
    } else if (label) {
        printf("%s: %s\n", label, value ? "yes" : "no");
    }
}

void gr_report_end(gr_report *r) {
    if (r->json)
        printf("\n}\n");
}
