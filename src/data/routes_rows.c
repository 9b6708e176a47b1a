/* routes_rows.c: the rules every row of every window keeps, whoever made it: a bad row never reaches compute. */
#include "data/routes_format.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

static bool gate_is_legal(float g, bool variable_k) {
    if (g > 0.0f)
        return g <= FLT_MAX;
    return variable_k && g == 0.0f && !signbit(g);
}

static void id_fault(const gr_routes_info *info, const uint16_t *ids, size_t pair, gr_row_fault *fault) {
    *fault = (gr_row_fault){.pair = pair, .in_gates = false};
    if (ids[pair] >= info->E)
        snprintf(fault->text, sizeof fault->text, "expected an expert id below %" PRIu32 ", got %u", info->E,
            (unsigned)ids[pair]);
    else
        snprintf(fault->text, sizeof fault->text, "expected ascending, distinct expert ids, got %u after %u",
            (unsigned)ids[pair], (unsigned)ids[pair - 1]);
}

static void gate_fault(const gr_routes_info *info, float gate, size_t pair, gr_row_fault *fault) {
    *fault = (gr_row_fault){.pair = pair, .in_gates = true};
    snprintf(fault->text, sizeof fault->text, "expected a finite gate %s 0, got %.9g", info->variable_k ? ">=" : ">",
        (double)gate);
}

static void sum_fault(const gr_routes_info *info, double sum, size_t pair, gr_row_fault *fault) {
    double scale = (double)info->scale;
    *fault = (gr_row_fault){.pair = pair, .in_gates = true};
    snprintf(fault->text, sizeof fault->text, "expected gates that sum to %s%.9g within %.9g, got a sum of %.9g",
        info->variable_k ? "more than 0 and at most " : "", scale, scale / 256.0, sum);
}

bool gr_rows_check(
    const gr_routes_info *info, const uint16_t *ids, const float *gates, uint32_t *counts, gr_row_fault *fault) {
    const size_t K = info->K;
    const uint32_t E = info->E;
    const bool variable_k = info->variable_k;
    const double scale = (double)info->scale;
    const double high = scale + scale / 256.0; /* both bounds are exact in double */
    const double low = variable_k ? 0.0 : scale - scale / 256.0;

    memset(counts, 0, E * sizeof *counts);
    for (size_t t = 0; t < info->T; t++) {
        double sum = 0.0;
        int32_t previous = -1;
        for (size_t pair = t * K; pair < (t + 1) * K; pair++) {
            const int32_t id = ids[pair];
            const float g = gates[pair];
            if (id <= previous || (uint32_t)id >= E) {
                id_fault(info, ids, pair, fault);
                return false;
            }
            if (!gate_is_legal(g, variable_k)) {
                gate_fault(info, g, pair, fault);
                return false;
            }
            counts[id] += g > 0.0f;
            sum += (double)g;
            previous = id;
        }
        if (!(sum > 0.0 && sum >= low && sum <= high)) {
            sum_fault(info, sum, t * K, fault);
            return false;
        }
    }
    return true;
}

gr_err gr_routes_check_rows(
    const gr_routes_info *info, const char *where, const uint16_t *ids, const float *gates, uint32_t *counts) {
    gr_row_fault fault;
    if (gr_rows_check(info, ids, gates, counts, &fault))
        return GR_OK;
    return gr_fail(GR_DATA, "%s, position %zu, slot %zu: %s; rows are never repaired", where, fault.pair / info->K,
        fault.pair % info->K, fault.text);
}
