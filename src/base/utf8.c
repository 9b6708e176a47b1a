/* UTF-8 as RFC 3629 has it (Unicode table 3-7). */
#include "grouter/base.h"

size_t gr_utf8_length(const uint8_t *p, size_t n) {
    uint8_t lead = p[0];
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (n < size || p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < size; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    return size;
}

size_t gr_utf8_valid(const uint8_t *p, size_t n) {
    size_t i = 0;
    while (i < n) {
        if (n - i >= 8 && !(gr_load_u64(p + i) & UINT64_C(0x8080808080808080))) {
            i += 8; /* eight ASCII bytes at once */
            continue;
        }
        size_t size = gr_utf8_length(p + i, n - i);
        if (!size)
            break;
        i += size;
    }
    return i;
}
