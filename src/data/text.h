/* text.h: the documents of UTF-8 text files and JSONL files, for making token files. Internal to src/. */
#ifndef GROUTER_DATA_TEXT_H
#define GROUTER_DATA_TEXT_H

#include "grouter/base.h"
#include "grouter/json.h"

typedef struct gr_texts_file {
    const char *path; /* the caller's */
    gr_map map;
    const char *json_key; /* NULL: plain text */
} gr_texts_file;

/* Where a document is: its bytes in a text file, its line in a JSONL file. */
typedef struct gr_texts_place {
    uint64_t first;
    uint64_t n_byte;
    uint32_t file;
} gr_texts_place;

/* The documents of several inputs pooled, in input order. Only places are kept; the inputs stay mapped. */
typedef struct gr_texts {
    gr_texts_file *file;   /* [n_file] */
    gr_texts_place *place; /* [n_document] */
    int n_file;
    size_t n_document, document_max;
    uint64_t n_empty; /* documents without anything but white space, left out */
    uint64_t n_byte;  /* of text in the documents */
} gr_texts;

/* Maps and checks every input: 65 naming file and byte (or line) where it is not UTF-8, not JSON, or has no such text.
 * Text files are split at lines that equal `separator`; JSONL files have one object a line whose member `json_key` is
 * the text. json_key NULL: files named *.jsonl are JSONL with "text", others are text; else all are JSONL. Shows
 * progress. */
GR_MUST gr_err gr_texts_open(
    gr_texts *t, const char *const *path, int n_path, const char *separator, const char *json_key);
void gr_texts_close(gr_texts *t); /* accepts a zeroed object */

/* One document's text, valid until it is closed. */
typedef struct gr_text {
    const uint8_t *p;
    size_t n;
    gr_json *json; /* holds the text if it is from JSONL */
} gr_text;
GR_MUST gr_err gr_texts_read(const gr_texts *t, size_t document, gr_text *text);
void gr_text_close(gr_text *text);

#endif
