#!/bin/bash
# What known routes save in the exchange of one layer, on two ranks: the quick start's experts and width, and 128 experts
# of which a token has 8. The machine must be idle. Usage: scripts/bench_exchange.sh [build folder, default build]
set -euo pipefail
build=${1:-build}
ninja -C "$build" grouter-train >&2
launch=(mpirun -n 2 --oversubscribe --bind-to none --mca btl "self,vader" --mca btl_vader_single_copy_mechanism none)
[[ $(id -u) -ne 0 ]] || launch+=(--allow-run-as-root)
read -r load _ </proc/loadavg
! awk -v load="$load" 'BEGIN { exit !(load > 0.5) }' ||
    echo "bench_exchange: warning: the machine is busy (load $load): these figures will be unreliable" >&2
export OMP_NUM_THREADS=1
"${launch[@]}" "$build/grouter-train" bench exchange --experts 16 --top-k 2 --width 128 --windows 8 --repeat 200
echo
"${launch[@]}" "$build/grouter-train" bench exchange --experts 128 --top-k 8 --width 512 --windows 8 --repeat 50
