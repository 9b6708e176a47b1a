#!/bin/bash
# The kills of mpi_kill.sh, many more of them.
KILLS=40 SEED=2 exec bash "$SOURCE_DIR/tests/mpi_kill.sh" "$@"
