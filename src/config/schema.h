/* schema.h: one table of keys drives reading, defaults, ranges, printing and configs/README.md. Internal to src/config
 * and to the reader of Hugging Face's configs. */
#ifndef GROUTER_CONFIG_SCHEMA_H
#define GROUTER_CONFIG_SCHEMA_H

#include "grouter/config.h"
#include "grouter/json.h"

typedef enum gr_key_type {
    GR_KEY_INT,   /* int */
    GR_KEY_INT64, /* int64_t, or uint64_t with min >= 0 */
    GR_KEY_NUMBER,
    GR_KEY_BOOL,
    GR_KEY_NAME,  /* an enum: the index in `names` */
    GR_KEY_PATH,  /* char[GR_PATH_MAX] */
    GR_KEY_FILES, /* gr_data_file[GR_DATA_FILES_MAX] with its count */
} gr_key_type;

/* Which ends a range of numbers leaves out. */
typedef enum gr_key_open { GR_CLOSED, GR_OPEN_LOW, GR_OPEN_HIGH } gr_key_open;

typedef struct gr_key {
    const char *name;     /* "section.key"; members of array elements are "section.key[].member" */
    const char *unit;     /* "" if none */
    const char *fallback; /* default, NULL = required */
    const char *derived;  /* in place of a fallback: from which keys the default follows (text for people) */
    const char *meaning;
    const char *const *names; /* GR_KEY_NAME: NULL-terminated */
    size_t offset;            /* in gr_config; members of elements: in gr_data_file */
    size_t count_offset;      /* GR_KEY_FILES: of the int that counts the elements */
    int64_t min, max;         /* integers: value; paths: bytes; files: elements */
    double low, high;         /* numbers */
    gr_key_open open;
    gr_key_type type;
    gr_on_resume on_resume;
    unsigned kinds;    /* bit per gr_config_kind that knows the key; 0: all */
    unsigned optional; /* bits of kinds for which absence is legal without a fallback: 0, or what `derived` says */
} gr_key;

/* Does a config of this kind know the key? */
static inline bool gr_key_applies(const gr_key *key, gr_config_kind kind) {
    return !key->kinds || key->kinds >> kind & 1;
}

enum { GR_N_KEY = 80, GR_N_SECTION = 12, GR_EXPECTED_MAX = 256 };
extern const gr_key gr_keys[GR_N_KEY]; /* by section, in printing order */
extern const char *const gr_key_sections[GR_N_SECTION];

/* Index in gr_keys, -1 if there is none. */
int gr_key_find(const char *name);
bool gr_key_is_section(const char *name);
/* True if `key` is a member of the elements of `list` (a GR_KEY_FILES key). */
bool gr_key_is_member(const gr_key *list, const gr_key *key);

/* Stores the value of `node` at `base` + the key's offset; false, storing nothing, if its type or range is wrong. Not
 * for GR_KEY_FILES. */
bool gr_key_store(const gr_key *key, void *base, const gr_json_node *node);
/* Stores the fallback. */
void gr_key_store_fallback(const gr_key *key, void *base);
/* Prints the value at `base` as JSON; not for GR_KEY_FILES. */
void gr_key_print(FILE *out, const gr_key *key, const void *base);
/* "an integer in [1, 4096]" into text[GR_EXPECTED_MAX]; returns text. */
const char *gr_key_expected(const gr_key *key, char text[GR_EXPECTED_MAX]);

#endif
