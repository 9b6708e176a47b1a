/* audit_text.c: the windows that the audit draws from. */
#include <inttypes.h>
#include <string.h>

#include "audit.h"

/* A table that is not there is not needed: the audit routes for itself. */
static gr_err check_table(const gr_data_file *file, const gr_router_info *router) {
    if (!file->routes[0] || !gr_path_exists(file->routes))
        return GR_OK;
    gr_routes *routes;
    GR_TRY(gr_routes_open(&routes, file->routes));
    gr_hash128 found = gr_routes_get(routes)->router;
    gr_routes_close(routes);
    if (memcmp(&found, &router->hash, sizeof found) == 0)
        return GR_OK;
    char theirs[33], ours[33];
    return gr_fail(GR_DATA,
        "--router: expected the router %s that %s was made with, got router %s; the losses of a target mean something "
        "only with routes of its own router",
        gr_hash128_text(found, theirs), file->routes, gr_hash128_text(router->hash, ours));
}

static gr_err open_file(gr_audit_text *text, int i, const gr_data_file *file, const gr_router_info *router) {
    GR_TRY(gr_tokens_open(&text->tokens[i], file->tokens));
    text->n_window[i] = gr_window_count(gr_tokens_count(text->tokens[i]), text->T);
    text->n_all += text->n_window[i];
    return check_table(file, router);
}

static gr_err open_files(gr_audit_text *text, const gr_config *config, const gr_router_info *router) {
    for (int i = 0; i < text->n_file; i++)
        GR_TRY(open_file(text, i, &config->data.valid[i], router));
    if (text->n_all >= 2)
        return GR_OK;
    return gr_fail(GR_DATA,
        "data.valid: expected at least 2 windows of %" PRIu32 " tokens, one to take another future from, got %" PRIu64
        "; use longer files",
        text->T, text->n_all);
}

gr_err gr_audit_text_open(gr_audit_text *text, const gr_config *config, const gr_router_info *router) {
    *text = (gr_audit_text){
        .n_file = config->data.n_valid, .T = (uint32_t)config->data.seq_len, .V = (uint32_t)config->model.vocab_size};
    gr_err e = open_files(text, config, router);
    if (e)
        gr_audit_text_close(text);
    return e;
}

void gr_audit_text_close(gr_audit_text *text) {
    for (int i = 0; i < text->n_file; i++)
        gr_tokens_close(text->tokens[i]);
    *text = (gr_audit_text){0};
}

uint64_t gr_audit_text_place(const gr_audit_text *text, uint64_t window, int *file) {
    GR_ASSERT(window < text->n_all, "window %" PRIu64 " of %" PRIu64, window, text->n_all);
    for (*file = 0; window >= text->n_window[*file]; ++*file)
        window -= text->n_window[*file];
    return window;
}

gr_err gr_audit_text_read(const gr_audit_text *text, uint64_t window, uint32_t *tokens) {
    int file;
    uint64_t place = gr_audit_text_place(text, window, &file);
    return gr_window_read(text->tokens[file], place, text->T, text->V, tokens);
}
