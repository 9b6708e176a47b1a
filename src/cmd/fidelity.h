/* fidelity.h: how alike two routers are, as a few lines for people. Internal to src/cmd. */
#ifndef GROUTER_CMD_FIDELITY_H
#define GROUTER_CMD_FIDELITY_H

#include "grouter/teacher.h"

/* "first -> last" of each mean on stdout; nothing without tokens. */
void gr_fidelity_print(const gr_fidelity *first, const gr_fidelity *last, const char *against);

#endif
