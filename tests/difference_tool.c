/* difference_tool.c: for scripts: how far two safetensors files with the same tensors lie apart, both in F32.
 *   difference_tool FILE OTHER LIMIT [PART]
 * Prints the largest ||file - other|| / ||other|| of a tensor, of those with PART in their name, and which it is.
 * Status 1 when that exceeds LIMIT, or is not a number; a tensor of zeros equals only zeros. */
#include "grouter/data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static gr_err check_pair(const gr_tensor *a, const gr_tensor *b) {
    if (!b || a->n_byte != b->n_byte)
        return gr_fail(GR_USAGE, "%s: expected a tensor of %zu bytes in both files, got %zu", a->name, a->n_byte,
            b ? b->n_byte : 0);
    if (a->dtype != GR_F32 || b->dtype != GR_F32)
        return gr_fail(
            GR_USAGE, "%s: expected F32, got %s and %s", a->name, gr_dtype_name(a->dtype), gr_dtype_name(b->dtype));
    return GR_OK;
}

static double difference(const gr_tensor *a, const gr_tensor *b) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < a->n_byte; i += sizeof(float)) {
        float x, y;
        memcpy(&x, a->data + i, sizeof x);
        memcpy(&y, b->data + i, sizeof y);
        error += ((double)x - (double)y) * ((double)x - (double)y);
        norm += (double)y * (double)y;
    }
    if (isnan(error) || isnan(norm))
        return INFINITY;
    if (norm == 0)
        return error == 0 ? 0 : INFINITY;
    return sqrt(error / norm);
}

static gr_err compare(const gr_safetensors *file, const gr_safetensors *other, const char *part, double *largest) {
    const char *worst = "none";
    int n = 0;
    *largest = 0;
    if (gr_safetensors_count(file) != gr_safetensors_count(other))
        return gr_fail(GR_USAGE, "expected as many tensors in both files, got %d and %d", gr_safetensors_count(file),
            gr_safetensors_count(other));
    for (int i = 0; i < gr_safetensors_count(file); i++) {
        const gr_tensor *a = gr_safetensors_at(file, i), *b = gr_safetensors_find(other, a->name);
        if (!strstr(a->name, part))
            continue;
        GR_TRY(check_pair(a, b));
        double d = difference(a, b);
        n++;
        if (d >= *largest) {
            *largest = d;
            worst = a->name;
        }
    }
    if (n == 0)
        return gr_fail(GR_USAGE, "expected tensors with \"%s\" in their name, got none", part);
    printf("%.3g at most in %d tensors, in %s\n", *largest, n, worst);
    return GR_OK;
}

int main(int argc, char **argv) {
    gr_safetensors *file = NULL, *other = NULL;
    double largest = INFINITY;
    if (argc != 4 && argc != 5) {
        fprintf(stderr, "difference_tool: expected FILE OTHER LIMIT [PART]\n");
        return GR_USAGE;
    }
    gr_err e = gr_safetensors_open(&file, argv[1]);
    if (!e)
        e = gr_safetensors_open(&other, argv[2]);
    if (!e)
        e = compare(file, other, argc == 5 ? argv[4] : "", &largest);
    gr_safetensors_close(file);
    gr_safetensors_close(other);
    if (e) {
        gr_error_print(stderr, e);
        return (int)e;
    }
    return largest <= strtod(argv[3], NULL) ? 0 : 1;
}
