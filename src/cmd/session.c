/* Config and comm of one command. */
#include <stdlib.h>

#include "session.h"

gr_err gr_session_open(gr_session *s, const char *config_path, const char *const *set, int n_set) {
    *s = (gr_session){0};
    GR_TRY(gr_alloc((void **)&s->config, 1, sizeof *s->config, "config"));
    gr_err loaded = gr_config_load(s->config, config_path, set, n_set);
    GR_TRY(gr_comm_open(&s->comm, loaded ? "auto" : gr_config_comm_name(s->config)));
    return gr_comm_agree(s->comm, loaded);
}

gr_err gr_session_close(gr_session *s, gr_err status) {
    gr_comm_close(s->comm, status);
    free(s->config);
    *s = (gr_session){0};
    return status;
}
