/* Config and comm of one command. */
#include <stdlib.h>
#include <string.h>

#include "session.h"

/* A comm this program has. Under a launcher of several ranks "self" would start that many runs in one run folder. */
static gr_err check_comm(const gr_config *config) {
    GR_TRY(gr_comm_check(gr_config_comm_name(config)));
    int launched = gr_comm_launched();
    if (launched <= 1 || strcmp(gr_config_comm_name(config), "self") != 0)
        return GR_OK;
    return gr_fail(GR_CONFIG,
        "parallel.comm: expected \"auto\", \"mpi\" or \"nccl\" since the launcher started %d ranks, got \"self\", "
        "which is one "
        "rank",
        launched);
}

gr_err gr_session_open(gr_session *s, gr_config_kind kind, const char *config_path, const char *const *set, int n_set) {
    *s = (gr_session){0};
    GR_TRY(gr_alloc((void **)&s->config, 1, sizeof *s->config, "config"));
    gr_err status = gr_config_load(s->config, kind, config_path, set, n_set);
    if (!status)
        status = check_comm(s->config);
    GR_TRY(gr_comm_open(&s->comm, status ? "auto" : gr_config_comm_name(s->config)));
    return gr_comm_agree(s->comm, status);
}

gr_err gr_session_close(gr_session *s, gr_err status) {
    gr_comm_close(s->comm, status);
    free(s->config);
    *s = (gr_session){0};
    return status;
}
