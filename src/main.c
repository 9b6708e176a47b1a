/* The command table, the printing of errors and the exit status. Nothing else exits. */
#include <locale.h>
#include <unistd.h>

#include "grouter/base.h"

int main(void) {
    setlocale(LC_ALL, "C");
    gr_err err = gr_fail(GR_USAGE, "no command is built yet");
    gr_error_print(stderr, err);
    fflush(NULL);
    _exit(err);
}
