/* device_product.c: row-major products for a column-major library, and which of them share a plan. */
#include "device.h"

gr_product_view gr_product_view_of(const gr_gemm *g) {
    const bool nt = g->layout == GR_NT, tn = g->layout == GR_TN;
    return (gr_product_view){.turn_left = nt,
        .turn_right = tn,
        .left_rows = nt ? g->k : g->n,
        .left_columns = nt ? g->n : g->k,
        .right_rows = tn ? g->m : g->k,
        .right_columns = tn ? g->k : g->m};
}

static int64_t rounded_up(int64_t n) {
    int64_t power = 1;
    while (power <= n / 2)
        power *= 2;
    const int64_t quarter = power / 4 > 16 ? power / 4 : 16;
    return (n + quarter - 1) / quarter * quarter;
}

gr_gemm gr_product_canonical(const gr_gemm *g, gr_rows rows) {
    gr_gemm c = *g;
    if (rows == GR_ROWS_CHANGE && g->layout == GR_TN)
        c.k = rounded_up(g->k);
    else if (rows == GR_ROWS_CHANGE)
        c.m = rounded_up(g->m);
    return c;
}

uint32_t gr_product_alignment(const void *p) {
    const uint32_t low = (uint32_t)((uintptr_t)p & 15);
    return low ? low & (~low + 1) : 16;
}

/* Bits of `kind`; dtypes take less than 12 bits, alignments less than 8. */
enum { WRITE_AT = 2, DTYPE_AT = 4, A_AT = 16, B_AT = 24, C_AT = 32 };

gr_product_key gr_product_key_with(const gr_gemm *g, gr_alignments at) {
    const uint64_t kind = (uint64_t)g->layout | (uint64_t)g->write << WRITE_AT | (uint64_t)g->c_dtype << DTYPE_AT |
                          (uint64_t)at.a << A_AT | (uint64_t)at.b << B_AT | (uint64_t)at.c << C_AT;
    return (gr_product_key){.m = g->m, .n = g->n, .k = g->k, .lda = g->lda, .ldb = g->ldb, .ldc = g->ldc, .kind = kind};
}

gr_product_key gr_product_key_of(const gr_gemm *g) {
    return gr_product_key_with(
        g, (gr_alignments){gr_product_alignment(g->a), gr_product_alignment(g->b), gr_product_alignment(g->c)});
}

gr_gemm gr_product_of_key(const gr_product_key *key) {
    return (gr_gemm){.layout = (gr_layout)(key->kind & 3),
        .write = (gr_write)(key->kind >> WRITE_AT & 3),
        .m = key->m,
        .n = key->n,
        .k = key->k,
        .lda = key->lda,
        .ldb = key->ldb,
        .ldc = key->ldc,
        .c_dtype = (gr_dtype)(key->kind >> DTYPE_AT & 0xfff)};
}

gr_alignments gr_product_alignments(const gr_product_key *key) {
    return (gr_alignments){(uint32_t)(key->kind >> A_AT & 0xff), (uint32_t)(key->kind >> B_AT & 0xff),
        (uint32_t)(key->kind >> C_AT & 0xff)};
}

static bool same_key(const gr_product_key *a, const gr_product_key *b) {
    return a->m == b->m && a->n == b->n && a->k == b->k && a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc &&
           a->kind == b->kind;
}

int gr_product_number(gr_product_table *t, const gr_product_key *key) {
    enum { N_SLOT = 2 * GR_PRODUCTS_MAX }; /* never more than half full: the walk ends at an empty one */
    size_t at = gr_hash64(key, sizeof *key) % N_SLOT;
    for (; t->slot[at]; at = (at + 1) % N_SLOT)
        if (same_key(&t->key[t->slot[at] - 1], key))
            return t->slot[at] - 1;
    if (t->n == GR_PRODUCTS_MAX)
        return -1;
    t->key[t->n] = *key;
    t->slot[at] = (uint16_t)++t->n;
    return t->n - 1;
}
