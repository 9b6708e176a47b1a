/* broken_io.h: how writers of checkpoints get it wrong, as I/O tables that turn the right writer into a wrong one by
 * dropping or reordering its calls. A crash test that passes one of them tests nothing. */
#ifndef GROUTER_BROKEN_IO_H
#define GROUTER_BROKEN_IO_H

#include "grouter/io.h"

typedef enum broken_kind {
    BROKEN_NOT,
    BROKEN_NO_FILE_SYNC,   /* files are not synced */
    BROKEN_NO_FOLDER_SYNC, /* folders are not synced */
    BROKEN_IN_PLACE,       /* files are written straight into step-N: there is no temporary folder and no rename */
    BROKEN_MARKER,       /* in place, and what marks the checkpoint complete, its manifest, is synced before the data */
    BROKEN_DELETE_FIRST, /* the oldest checkpoint goes before the new one was read back */
    BROKEN_N
} broken_kind;

const char *broken_name(broken_kind kind);

/* `keep_last` as the checkpointer was told. Free with broken_io_close. */
gr_io *broken_io_open(broken_kind kind, gr_io *under, int64_t keep_last);
void broken_io_close(gr_io *io);

#endif
