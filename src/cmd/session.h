/* session.h: what commands that run on several ranks begin and end with. */
#ifndef GROUTER_CMD_SESSION_H
#define GROUTER_CMD_SESSION_H

#include "grouter/comm.h"
#include "grouter/config.h"

typedef struct gr_session {
    gr_config *config;
    gr_comm *comm;
} gr_session;

/* Reads the config on every rank, opens the comm it names, and agrees on the verdict, so that one rank reports and all
 * leave with the same code. */
GR_MUST gr_err gr_session_open(
    gr_session *s, gr_config_kind kind, const char *config_path, const char *const *set, int n_set);
/* Accepts a half-opened session. Returns status. */
GR_MUST gr_err gr_session_close(gr_session *s, gr_err status);

#endif
