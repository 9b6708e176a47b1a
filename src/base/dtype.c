/* Types of stored numbers, bf16 conversion, little-endian loads, stores and spans. */
#include <string.h>

#include "grouter/base.h"

static const struct {
    const char *name;
    size_t size;
} dtypes[GR_N_DTYPE] = {
    [GR_F32] = {"F32", 4},
    [GR_BF16] = {"BF16", 2},
    [GR_F16] = {"F16", 2},
    [GR_F64] = {"F64", 8},
    [GR_U8] = {"U8", 1},
    [GR_I8] = {"I8", 1},
    [GR_U16] = {"U16", 2},
    [GR_I16] = {"I16", 2},
    [GR_U32] = {"U32", 4},
    [GR_I32] = {"I32", 4},
    [GR_U64] = {"U64", 8},
    [GR_I64] = {"I64", 8},
    [GR_BOOL] = {"BOOL", 1},
    [GR_F8_E4M3] = {"F8_E4M3", 1},
    [GR_F8_E5M2] = {"F8_E5M2", 1},
};

size_t gr_dtype_size(gr_dtype dtype) {
    return dtypes[dtype].size;
}

const char *gr_dtype_name(gr_dtype dtype) {
    return dtypes[dtype].name;
}

uint16_t gr_bf16_from_f32(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u); /* a quiet NaN, whatever the payload */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float gr_f32_from_bf16(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float gr_f32_from_f16(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = x >> 10 & 0x1fu, fraction = x & 0x3ffu, u;
    float f;
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24 */
        f = (float)fraction * 0x1p-24f;
        return sign ? -f : f;
    }
    if (exponent == 0x1f)
        u = sign | 0x7f800000u | fraction << 13;
    else
        u = sign | (exponent + 127 - 15) << 23 | fraction << 13;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t gr_load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

uint32_t gr_load_u32(const uint8_t *p) {
    return (uint32_t)gr_load_u16(p) | (uint32_t)gr_load_u16(p + 2) << 16;
}

uint64_t gr_load_u64(const uint8_t *p) {
    return (uint64_t)gr_load_u32(p) | (uint64_t)gr_load_u32(p + 4) << 32;
}

void gr_store_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void gr_store_u32(uint8_t *p, uint32_t v) {
    gr_store_u16(p, (uint16_t)v);
    gr_store_u16(p + 2, (uint16_t)(v >> 16));
}

void gr_store_u64(uint8_t *p, uint64_t v) {
    gr_store_u32(p, (uint32_t)v);
    gr_store_u32(p + 4, (uint32_t)(v >> 32));
}

bool gr_take_bytes(gr_span *s, size_t n_byte, const uint8_t **out) {
    if (n_byte > s->n)
        return false;
    *out = s->p;
    s->p += n_byte;
    s->n -= n_byte;
    return true;
}

bool gr_take_u8(gr_span *s, uint8_t *out) {
    const uint8_t *p;
    if (!gr_take_bytes(s, 1, &p))
        return false;
    *out = *p;
    return true;
}

bool gr_take_u32(gr_span *s, uint32_t *out) {
    const uint8_t *p;
    if (!gr_take_bytes(s, 4, &p))
        return false;
    *out = gr_load_u32(p);
    return true;
}

bool gr_take_u64(gr_span *s, uint64_t *out) {
    const uint8_t *p;
    if (!gr_take_bytes(s, 8, &p))
        return false;
    *out = gr_load_u64(p);
    return true;
}

bool gr_take_f32(gr_span *s, float *out) {
    uint32_t u;
    if (!gr_take_u32(s, &u))
        return false;
    memcpy(out, &u, sizeof *out);
    return true;
}
