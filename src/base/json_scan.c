/* Strict JSON syntax: RFC 8259 minus U+0000, lone surrogates and deep nesting. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"

enum {
    NUMBER_LIMIT = 63,  /* bytes of a number: cJSON reads no more */
    MESSAGE_LIMIT = 400 /* bytes of an error after its place */
};

/* ---------------------------------------------------------------- places and errors */

void gr_json_place_advance(gr_json_place *p, const char *text, size_t at) {
    const char *newline;
    while ((newline = memchr(text + p->seen, '\n', at - p->seen))) {
        p->line++;
        p->seen = p->line_start = (size_t)(newline - text) + 1;
    }
    p->seen = at;
    p->column = (int)(at - p->line_start) + 1;
}

gr_json_place gr_json_place_of(const gr_json_scan *s, size_t at) {
    gr_json_place p = {.line = 1};
    gr_json_place_advance(&p, s->text, at);
    return p;
}

gr_err gr_json_scan_fail(const gr_json_scan *s, size_t at, const char *fmt, ...) {
    char message[MESSAGE_LIMIT];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    gr_json_place p = gr_json_place_of(s, at);
    return gr_fail(s->code, "%s:%d:%d: %s", s->source, p.line, p.column, message);
}

/* "expected <what>, got <the byte here>". */
GR_MUST static gr_err scan_expected(const gr_json_scan *s, const char *what) {
    if (s->at >= s->n)
        return gr_json_scan_fail(s, s->n, "expected %s, got the end of the text", what);
    unsigned char c = (unsigned char)s->text[s->at];
    if (c > 0x20 && c < 0x7f)
        return gr_json_scan_fail(s, s->at, "expected %s, got '%c'", what, c);
    return gr_json_scan_fail(s, s->at, "expected %s, got byte 0x%02x", what, c);
}

/* ---------------------------------------------------------------- scanner: scalars */

/* The byte `ahead` of here, 0 past the end (a NUL byte is legal nowhere, so 0 never hides one). */
static unsigned char peek(const gr_json_scan *s, size_t ahead) {
    return ahead < s->n - s->at ? (unsigned char)s->text[s->at + ahead] : 0;
}

static bool is_digit(unsigned char c) {
    return c >= '0' && c <= '9';
}

static void skip_space(gr_json_scan *s) {
    while (s->at < s->n) {
        char c = s->text[s->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            return;
        s->at++;
    }
}

/* The value of the \uXXXX that starts here; false if none does. */
static bool unicode_escape(const gr_json_scan *s, unsigned *unit) {
    if (peek(s, 0) != '\\' || peek(s, 1) != 'u')
        return false;
    unsigned v = 0;
    for (size_t i = 2; i < 6; i++) {
        unsigned c = peek(s, i), letter = c | 0x20;
        if (is_digit((unsigned char)c))
            v = v * 16 + (c - '0');
        else if (letter >= 'a' && letter <= 'f')
            v = v * 16 + (letter - 'a' + 10);
        else
            return false;
    }
    *unit = v;
    return true;
}

GR_MUST static gr_err scan_escape(gr_json_scan *s) {
    size_t start = s->at;
    unsigned char c = peek(s, 1);
    if (c != 'u') {
        if (!c || !strchr("\"\\/bfnrt", c))
            return gr_json_scan_fail(s, start, "unknown escape in a string; write a backslash as \\\\");
        s->at += 2;
        return GR_OK;
    }
    unsigned unit, low;
    if (!unicode_escape(s, &unit))
        return gr_json_scan_fail(s, start, "expected \\u and four hexadecimal digits");
    if (unit == 0)
        return gr_json_scan_fail(s, start, "U+0000 is not allowed in a string");
    s->at += 6;
    if (unit < 0xd800 || unit > 0xdfff)
        return GR_OK;
    if (unit > 0xdbff || !unicode_escape(s, &low) || low < 0xdc00 || low > 0xdfff)
        return gr_json_scan_fail(s, start, "lone surrogate \\u%04x in a string", unit);
    s->at += 6;
    return GR_OK;
}

GR_MUST static gr_err scan_string(gr_json_scan *s) {
    size_t start = s->at++;
    while (s->at < s->n) {
        unsigned char c = (unsigned char)s->text[s->at];
        if (c == '"') {
            s->at++;
            return GR_OK;
        }
        if (c == '\\') {
            GR_TRY(scan_escape(s));
        } else if (c < 0x20) {
            return gr_json_scan_fail(s, s->at, "control character 0x%02x in a string; write it as \\u%04x", c, c);
        } else if (c < 0x80) {
            s->at++;
        } else {
            size_t n = gr_utf8_length((const uint8_t *)s->text + s->at, s->n - s->at);
            if (n == 0)
                return gr_json_scan_fail(s, s->at, "invalid UTF-8: byte 0x%02x; save the text as UTF-8", c);
            s->at += n;
        }
    }
    return gr_json_scan_fail(s, start, "string without a closing quote");
}

GR_MUST static gr_err scan_digits(gr_json_scan *s, const char *what) {
    if (!is_digit(peek(s, 0)))
        return scan_expected(s, what);
    while (is_digit(peek(s, 0)))
        s->at++;
    return GR_OK;
}

GR_MUST static gr_err scan_number(gr_json_scan *s) {
    size_t start = s->at;
    if (peek(s, 0) == '-')
        s->at++;
    if (peek(s, 0) == '0' && is_digit(peek(s, 1)))
        return gr_json_scan_fail(s, start, "number with a leading zero");
    GR_TRY(scan_digits(s, "a digit"));
    if (peek(s, 0) == '.') {
        s->at++;
        GR_TRY(scan_digits(s, "a digit after the decimal point"));
    }
    if ((peek(s, 0) | 0x20) == 'e') {
        s->at++;
        if (peek(s, 0) == '+' || peek(s, 0) == '-')
            s->at++;
        GR_TRY(scan_digits(s, "a digit of the exponent"));
    }
    if (s->at - start > NUMBER_LIMIT)
        return gr_json_scan_fail(
            s, start, "number of %zu characters, expected at most %d", s->at - start, (int)NUMBER_LIMIT);
    s->number_bytes += s->at - start + 1;
    return GR_OK;
}

GR_MUST static gr_err scan_word(gr_json_scan *s) {
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if (s->n - s->at >= n && memcmp(s->text + s->at, words[i], n) == 0) {
            s->at += n;
            return GR_OK;
        }
    }
    return scan_expected(s, "a JSON value");
}

/* ---------------------------------------------------------------- scanner: structure */

GR_MUST static gr_err scan_record(gr_json_scan *s, size_t key) {
    if (s->n_value == s->n_room) {
        size_t room = s->n_room ? 2 * s->n_room : 64;
        gr_json_record *list = reallocarray(s->list, room, sizeof *list);
        if (!list)
            return gr_fail(GR_RESOURCE, "%s: not enough memory for %zu JSON values", s->source, room);
        s->list = list;
        s->n_room = room;
    }
    s->list[s->n_value++] = (gr_json_record){.key = key, .at = s->at};
    return GR_OK;
}

/* One scalar, or the opening of a container. */
GR_MUST static gr_err scan_value(gr_json_scan *s, size_t key) {
    skip_space(s);
    GR_TRY(scan_record(s, key));
    unsigned char c = peek(s, 0);
    if (c == '{' || c == '[') {
        if (s->depth == s->max_depth)
            return gr_json_scan_fail(s, s->at, "nested deeper than %d levels", s->max_depth);
        s->open[s->depth++] = (char)c;
        s->at++;
        return GR_OK;
    }
    if (c == '"')
        return scan_string(s);
    if (c == '-' || is_digit(c))
        return scan_number(s);
    return scan_word(s);
}

/* Inside an object: the name of the next member and its colon. */
GR_MUST static gr_err scan_key(gr_json_scan *s, size_t *key) {
    *key = GR_JSON_NO_KEY;
    if (s->open[s->depth - 1] != '{')
        return GR_OK;
    skip_space(s);
    if (peek(s, 0) != '"')
        return scan_expected(s, "a key in double quotes");
    *key = s->at;
    GR_TRY(scan_string(s));
    skip_space(s);
    if (peek(s, 0) != ':')
        return scan_expected(s, "':' after the key");
    s->at++;
    return GR_OK;
}

/* Leaves the containers that end here. */
static void scan_closings(gr_json_scan *s) {
    for (skip_space(s); s->depth > 0; skip_space(s)) {
        if (peek(s, 0) != (s->open[s->depth - 1] == '{' ? '}' : ']'))
            return;
        s->depth--;
        s->at++;
    }
}

gr_err gr_json_scan_text(gr_json_scan *s) {
    size_t key = GR_JSON_NO_KEY;
    if (s->n >= 3 && memcmp(s->text, "\xef\xbb\xbf", 3) == 0)
        return gr_json_scan_fail(s, 0, "byte order mark; save the text as UTF-8 without one");
    for (;;) {
        int before = s->depth;
        GR_TRY(scan_value(s, key));
        int after = s->depth;
        scan_closings(s);
        if (s->depth == 0)
            return s->at < s->n ? scan_expected(s, "nothing after the JSON value") : GR_OK;
        bool just_opened = after > before && s->depth == after;
        if (!just_opened) {
            if (peek(s, 0) != ',')
                return scan_expected(s, s->open[s->depth - 1] == '{' ? "',' or '}'" : "',' or ']'");
            s->at++;
        }
        GR_TRY(scan_key(s, &key));
    }
}
