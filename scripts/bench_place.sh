#!/bin/bash
# How long `place` takes, and how much memory of its own, for 10^6 windows of 256 tokens of which each has 8 of 128
# experts, on 8 ranks. The machine must be idle.
# Usage: scripts/bench_place.sh [folder for the table of 6.7 GB, default build/bench-place] [windows, default 1000000]
# The table is made if it is not there (several minutes), and stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build/bench-place}
windows=${2:-1000000}
export OMP_NUM_THREADS=2
ninja -C build grouter-train routes_tool >&2
mkdir -p "$folder"
table=$folder/windows-$windows.routes
if [[ ! -e $table ]]; then
    echo "bench_place: making $table" >&2
    build/tests/routes_tool "$table" "$windows" 256 128 8 1
fi

read -r load _ </proc/loadavg
! awk -v load="$load" 'BEGIN { exit !(load > 0.5) }' ||
    echo "bench_place: warning: the machine is busy (load $load): these figures will be unreliable" >&2
begin=$EPOCHREALTIME
build/grouter-train place --routes "$table" --ranks-per-node 8 --out "$folder/placement" &
peak=0
while kill -0 $! 2>/dev/null; do # the mapped table is the page cache's memory, not the program's
    now=$(awk '/^RssAnon/ { print $2 }' "/proc/$!/status" 2>/dev/null || true)
    [[ ${now:-0} -le $peak ]] || peak=$now
    sleep 0.1
done
wait $!
awk -v a="$begin" -v b="$EPOCHREALTIME" -v kib="$peak" \
    'BEGIN { printf "place: %.1f s, at most %.0f MiB of its own memory (RssAnon)\n", b - a, kib / 1024 }'
