/* XXH3, the only use of xxHash. */
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

#include "grouter/base.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

struct gr_hasher {
    XXH3_state_t *state;
};

uint64_t gr_hash64(const void *data, size_t n_byte) {
    return XXH3_64bits(data, n_byte);
}

gr_err gr_hasher_open(gr_hasher **out) {
    *out = NULL;
    gr_hasher *h = calloc(1, sizeof *h);
    if (h)
        h->state = XXH3_createState();
    if (!h || !h->state || XXH3_128bits_reset(h->state) != XXH_OK) {
        gr_hasher_close(h);
        return gr_fail(GR_RESOURCE, "checksum state: no memory");
    }
    *out = h;
    return GR_OK;
}

void gr_hasher_add(gr_hasher *h, const void *data, size_t n_byte) {
    if (n_byte)
        XXH3_128bits_update(h->state, data, n_byte);
}

uint64_t gr_hasher_64(const gr_hasher *h) {
    return XXH3_64bits_digest(h->state);
}

gr_hash128 gr_hasher_128(const gr_hasher *h) {
    XXH128_hash_t d = XXH3_128bits_digest(h->state);
    return (gr_hash128){.lo = d.low64, .hi = d.high64};
}

void gr_hasher_close(gr_hasher *h) {
    if (!h)
        return;
    XXH3_freeState(h->state);
    free(h);
}

const char *gr_hash128_text(gr_hash128 h, char text[33]) {
    snprintf(text, 33, "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
    return text;
}

int gr_hex_value(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

const char *gr_hash_library(void) {
    return "xxHash v" TEXT(XXH_VERSION_MAJOR) "." TEXT(XXH_VERSION_MINOR) "." TEXT(XXH_VERSION_RELEASE);
}
