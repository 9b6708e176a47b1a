/* hash_tool.c: checksums for test scripts that damage files and put the checksum right again, so that what is behind it
 * is tried.
 *   hash_tool 64 FILE     XXH3-64 as 16 hexadecimal digits, high digit first
 *   hash_tool 128 FILE    XXH3-128 as a manifest has it
 *   hash_tool seal FILE   writes the last line of a manifest anew */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/base.h"

enum { SEAL_BYTE = 34 }; /* from the format's description: `  "xxh3_64": "<16 digits>"`, newline, brace, newline */

static gr_err seal(const char *path, const char *text, size_t n) {
    if (n < SEAL_BYTE)
        return gr_fail(GR_USAGE, "%s: expected a manifest, got %zu bytes", path, n);
    gr_out *o;
    GR_TRY(gr_out_open(&o, path));
    n -= SEAL_BYTE;
    gr_err err = gr_out_write(o, text, n);
    if (!err)
        err = gr_out_printf(o, "  \"xxh3_64\": \"%016" PRIx64 "\"\n}\n", gr_hash64(text, n));
    if (!err)
        err = gr_out_commit(o);
    gr_out_close(o);
    return err;
}

static gr_err hash128_print(const char *text, size_t n) {
    char digits[33];
    gr_hasher *hasher;
    GR_TRY(gr_hasher_open(&hasher));
    gr_hasher_add(hasher, text, n);
    printf("%s\n", gr_hash128_text(gr_hasher_128(hasher), digits));
    gr_hasher_close(hasher);
    return GR_OK;
}

static gr_err run(const char *what, const char *path) {
    char *text;
    size_t n;
    GR_TRY(gr_file_read(path, 1 << 26, GR_USAGE, &text, &n));
    gr_err err = GR_OK;
    if (strcmp(what, "64") == 0)
        printf("%016" PRIx64 "\n", gr_hash64(text, n));
    else if (strcmp(what, "128") == 0)
        err = hash128_print(text, n);
    else if (strcmp(what, "seal") == 0)
        err = seal(path, text, n);
    else
        err = gr_fail(GR_USAGE, "expected 64, 128 or seal, got %s", what);
    free(text);
    return err;
}

int main(int argc, char **argv) {
    gr_err err = argc == 3 ? run(argv[1], argv[2]) : gr_fail(GR_USAGE, "expected 64|128|seal FILE");
    if (err)
        gr_error_print(stderr, err);
    return (int)err;
}
