/* inspect_grouter.c: a Grouter, and a mapping between the experts of two. */
#include "cmd/inspect.h"
#include "grouter/fold.h"
#include "grouter/grouter.h"

#include <inttypes.h>
#include <stdio.h>

/* ---------------------------------------------------------------- Grouters */

static void print_network(gr_report *r, const gr_model_config *c) {
    const bool attends = c->body == GR_BODY_ATTENTION;
    gr_report_text(r, "body", "body", gr_body_name(c->body));
    gr_report_text(r, "mask", "mask", gr_mask_name(c->mask));
    gr_report_bool(r, "sees_future_tokens", "sees tokens after its own", gr_mask_sees_ahead(c->mask));
    gr_report_text(r, "position", "position", gr_position_name(c->position));
    gr_report_count(r, "vocab_size", "vocabulary V", (uint64_t)c->vocab_size);
    gr_report_count(r, "hidden_size", "width D", (uint64_t)c->hidden_size);
    gr_report_count(r, "num_hidden_layers", "layers L", (uint64_t)c->num_hidden_layers);
    if (c->body != GR_BODY_LINEAR)
        gr_report_count(r, "intermediate_size", "width of layers", (uint64_t)c->intermediate_size);
    if (attends) {
        gr_report_count(r, "num_attention_heads", "heads H", (uint64_t)c->num_attention_heads);
        gr_report_count(r, "num_key_value_heads", "key/value heads", (uint64_t)c->num_key_value_heads);
        gr_report_count(r, "head_dim", "width of a head", (uint64_t)c->head_dim);
        gr_report_number(r, "rope_theta", "rope theta", c->rope_theta);
    }
    gr_report_number(r, "rms_norm_eps", "norm epsilon", c->rms_norm_eps);
    if (c->document_end >= 0)
        gr_report_count(r, "document_end", "token that ends a document", (uint64_t)c->document_end);
    if (c->zero_token >= 0)
        gr_report_count(r, "zero_token", "token that embeds to zero", (uint64_t)c->zero_token);
}

static void print_grouter(const char *path, const gr_grouter *g, bool json) {
    const gr_grouter_spec *s = &g->spec;
    uint64_t n_parameter = 0;
    char hash[33];
    for (int i = 0; i < g->params.n; i++)
        n_parameter += (uint64_t)gr_param_size(&g->params.list[i]);
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "grouter");
    gr_report_text(&r, "file", "Grouter", path);
    gr_report_count(&r, "experts", "experts E", (uint64_t)s->network.num_labels);
    gr_report_count(&r, "experts_per_token", "experts per token K", s->K);
    gr_report_number(&r, "scale", "scale", (double)s->scale);
    print_network(&r, &s->network);
    gr_report_count(&r, "tensors", "tensors", (uint64_t)g->params.n);
    gr_report_count(&r, "parameters", "parameters", n_parameter);
    gr_report_text(&r, "made", "made", s->made);
    gr_report_text(&r, "router_hash", "router hash", gr_hash128_text(g->hash, hash));
    if (!json)
        printf("verified: settings, and name, shape and type of every tensor; their numbers carry no checksum\n");
    gr_report_end(&r);
}

gr_err gr_inspect_grouter(const char *path, bool json) {
    gr_grouter g;
    GR_TRY(gr_grouter_open(&g, path));
    print_grouter(path, &g, json);
    gr_grouter_close(&g);
    return GR_OK;
}

/* ---------------------------------------------------------------- mappings */

static void print_groups(const gr_report *r, const gr_mapping *m) {
    for (uint32_t g = 0; g < m->n_group; g++) {
        if (r->json)
            printf("%s\n    [", g ? "," : "[");
        else
            printf("  %" PRIu32 ":", g);
        for (uint32_t at = m->offset[g]; at < m->offset[g + 1]; at++)
            if (r->json)
                printf("%s%u", at > m->offset[g] ? ", " : "", (unsigned)m->member[at]);
            else
                printf(" %u", (unsigned)m->member[at]);
        printf(r->json ? "]" : "\n");
    }
    if (r->json)
        printf("\n  ]");
}

static void print_sizes(gr_report *r, const gr_mapping *m) {
    uint32_t least, most;
    gr_mapping_sizes(m, &least, &most);
    gr_report_count(r, "groups_count", "groups", m->n_group);
    gr_report_count(r, "group_size_min", "experts of a group, least", least);
    gr_report_number(r, "group_size_mean", "experts of a group, mean", (double)m->E_S / m->n_group);
    gr_report_count(r, "group_size_max", "experts of a group, most", most);
    gr_report_count(r, "source_experts_used", "source experts used", gr_mapping_used(m));
}

static void print_mapping(const char *path, const gr_mapping *m, bool json) {
    char hash[33];
    gr_report r;
    gr_report_begin(&r, json);
    gr_report_text(&r, "kind", NULL, "mapping");
    gr_report_text(&r, "file", "mapping", path);
    gr_report_text(&r, "method", "method", gr_fold_method_name(m->method));
    gr_report_text(&r, "fold", "fold", gr_fold_kind_name(m->fold));
    gr_report_count(&r, "source_experts", "source experts", m->E_S);
    gr_report_count(&r, "target_experts", "target experts", m->E_T);
    gr_report_count(&r, "tokens", "tokens sampled", m->n_token);
    gr_report_text(&r, "router_hash", "of the Grouter with router hash", gr_hash128_text(m->router, hash));
    print_sizes(&r, m);
    if (json)
        gr_report_key(&r, "groups");
    print_groups(&r, m);
    gr_report_end(&r);
}

gr_err gr_inspect_mapping(const char *path, bool json) {
    gr_mapping m;
    GR_TRY(gr_mapping_load(&m, path));
    print_mapping(path, &m, json);
    gr_mapping_close(&m);
    return GR_OK;
}
