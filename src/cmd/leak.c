/* leak.c: what `eval --leak` found, as a page and as JSON. */
#include "leak.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/json.h"

/* ---------------------------------------------------------------- for people */

static void print_plain(const char *text) {
    gr_print_plain(stdout, text, strlen(text));
}

static void print_subject(const gr_leak_options *o, const gr_leak *leak) {
    const gr_router_info *r = &leak->router;
    char hash[33];
    printf("router       ");
    print_plain(o->router);
    printf(": %s", gr_router_method_name(r->method));
    if (r->method == GR_ROUTER_GROUTER)
        printf(", mask %s", gr_mask_name(r->mask));
    printf(", %u of %u experts, hash %s\n", r->K, r->E, gr_hash128_text(r->hash, hash));
    printf("target       ");
    print_plain(o->weights ? o->weights : "none: only routes are measured");
    printf("\nsample       %" PRIu64 " windows of %u tokens from data.valid, cut at the same %u places, seed %" PRIu64
           "\n",
        leak->n_window, leak->T, leak->n_cut, o->seed);
}

static void print_bucket(const gr_leak_bucket *b) {
    char range[32];
    if (b->first == b->last)
        snprintf(range, sizeof range, "%u", b->first);
    else
        snprintf(range, sizeof range, "%u-%u", b->first, b->last);
    printf("  %-14s %12" PRIu64, range, b->n_route);
    if (b->n_route == 0)
        printf(" %13s %14s %14s\n", "-", "-", "-");
    else if (isnan(b->divergence))
        printf(" %11.3f %% %14.3e %14s\n", 100 * b->set_changed, b->gate_change, "-");
    else
        printf(" %11.3f %% %14.3e %14.3e\n", 100 * b->set_changed, b->gate_change, b->divergence);
}

static void print_routes(const gr_leak *leak) {
    printf("\nRoutes up to a cut when the tokens after it are another window's:\n\n"
           "  %-14s %12s %13s %14s %14s\n",
        "before the cut", "routes", "other experts", "|gate change|", "KL of scores");
    for (int b = 0; b < leak->n_bucket; b++)
        print_bucket(&leak->bucket[b]);
    printf("\n  |gate change| is the mean over the experts of either route, KL (nats) is over all experts.\n");
}

static void print_mean(const char *label, gr_leak_mean m) {
    printf("  %-44s %9.4f", label, m.mean);
    if (!isnan(m.error))
        printf(" +- %.4f", m.error);
    putchar('\n');
}

static void print_losses(const gr_leak *leak) {
    printf("\nLoss of the target at the first token after the cut, nats per token +- standard error over windows:\n\n");
    print_mean("(i)   routes of the whole window", leak->full);
    print_mean("(ii)  routes of the prefix alone", leak->prefix);
    print_mean("(iii) routes with another window's suffix", leak->swapped);
    print_mean("(ii) - (i)", leak->prefix_rise);
    print_mean("(iii) - (i)", leak->swapped_rise);
    print_mean("last position of windows: nothing lies ahead", leak->last);
}

static void print_verdict(const gr_leak *leak) {
    const gr_leak_mean *rise = &leak->prefix_rise;
    double share = 100.0 * (double)leak->n_changed / (double)leak->n_route;
    if (leak->n_changed == 0) {
        printf("\nno leak: %" PRIu64 " routes compared, all bit-identical\n", leak->n_route);
        return;
    }
    printf("\nleak: %.2f %% of %" PRIu64 " routes change in a bit or more when only later tokens do", share,
        leak->n_route);
    if (!gr_mask_sees_ahead(leak->router.mask))
        printf(", though this router should see nothing ahead: please report it\n");
    else if (!leak->target)
        printf("; with the weights of a target, its loss says what that is worth\n");
    else if (rise->mean > 2 * rise->error)
        printf("; %.4f nats per token of the loss come from the future. Compare this target with others by (ii), not "
               "by (i)\n",
            rise->mean);
    else
        printf("; what the loss gains by it is within its error. Compare this target with others by (ii) all the "
               "same\n");
}

void gr_leak_print(const gr_leak_options *o, const gr_leak *leak) {
    print_subject(o, leak);
    print_routes(leak);
    if (leak->target)
        print_losses(leak);
    print_verdict(leak);
}

/* ---------------------------------------------------------------- for programs */

/* ", "name": value", null where nothing was measured. */
static gr_err write_number(gr_out *out, const char *name, double value) {
    return isfinite(value) ? gr_out_printf(out, ", \"%s\": %.9g", name, value)
                           : gr_out_printf(out, ", \"%s\": null", name);
}

static gr_err write_text(gr_out *out, const char *name, const char *value) {
    char *escaped;
    if (!value)
        return gr_out_printf(out, "  \"%s\": null,\n", name);
    GR_TRY(gr_alloc((void **)&escaped, 6 * strlen(value) + 1, 1, "text"));
    gr_err e = gr_out_printf(out, "  \"%s\": \"%s\",\n", name, gr_json_escape(value, escaped));
    free(escaped);
    return e;
}

static gr_err write_routes(gr_out *out, const gr_leak *leak) {
    GR_TRY(gr_out_printf(out, "  \"routes\": {\"compared\": %" PRIu64 ", \"changed\": %" PRIu64 ", \"by_distance\": [",
        leak->n_route, leak->n_changed));
    for (int i = 0; i < leak->n_bucket; i++) {
        const gr_leak_bucket *b = &leak->bucket[i];
        GR_TRY(gr_out_printf(out, "%s\n    {\"first\": %u, \"last\": %u, \"routes\": %" PRIu64, i ? "," : "", b->first,
            b->last, b->n_route));
        GR_TRY(write_number(out, "set_changed", b->set_changed));
        GR_TRY(write_number(out, "gate_change", b->gate_change));
        GR_TRY(write_number(out, "divergence", b->divergence));
        GR_TRY(gr_out_printf(out, "}"));
    }
    return gr_out_printf(out, "\n  ]},\n");
}

static gr_err write_losses(gr_out *out, const gr_leak *leak) {
    const struct {
        const char *name;
        gr_leak_mean value;
    } list[] = {{"full", leak->full}, {"prefix", leak->prefix}, {"swapped", leak->swapped},
        {"prefix_minus_full", leak->prefix_rise}, {"swapped_minus_full", leak->swapped_rise},
        {"last_position", leak->last}};
    if (!leak->target)
        return gr_out_printf(out, "  \"loss\": null\n}\n");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        GR_TRY(gr_out_printf(
            out, "%s\n    \"%s\": {\"unit\": \"nats per token\"", i ? "," : "  \"loss\": {", list[i].name));
        GR_TRY(write_number(out, "mean", list[i].value.mean));
        GR_TRY(write_number(out, "standard_error", list[i].value.error));
        GR_TRY(gr_out_printf(out, "}"));
    }
    return gr_out_printf(out, "\n  }\n}\n");
}

gr_err gr_leak_write(gr_out *out, const gr_leak_options *o, const gr_leak *leak) {
    const gr_router_info *r = &leak->router;
    char hash[33];
    GR_TRY(gr_out_printf(out, "{\n"));
    GR_TRY(write_text(out, "router", o->router));
    GR_TRY(write_text(out, "router_hash", gr_hash128_text(r->hash, hash)));
    GR_TRY(write_text(out, "method", gr_router_method_name(r->method)));
    GR_TRY(write_text(out, "mask", gr_mask_name(r->mask)));
    GR_TRY(write_text(out, "weights", o->weights));
    GR_TRY(gr_out_printf(out,
        "  \"sees_ahead\": %s,\n  \"leak\": %s,\n  \"seq_len\": %u,\n  \"windows\": %" PRIu64 ",\n  \"seed\": %" PRIu64
        ",\n  \"cuts\": [",
        gr_mask_sees_ahead(r->mask) ? "true" : "false", leak->n_changed ? "true" : "false", leak->T, leak->n_window,
        o->seed));
    for (uint32_t i = 0; i < leak->n_cut; i++)
        GR_TRY(gr_out_printf(out, "%s%u", i ? ", " : "", leak->cut[i]));
    GR_TRY(gr_out_printf(out, "],\n"));
    GR_TRY(write_routes(out, leak));
    return write_losses(out, leak);
}
