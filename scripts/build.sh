#!/bin/bash
# Configures one build tree and builds one target in it. The output goes to FOLDER/build.log and is shown only when
# something fails.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
    echo "usage: scripts/build.sh FOLDER TARGET [cmake options...], e.g. scripts/build.sh build all" >&2
    exit 2
fi
folder=$1 target=$2
shift 2
mkdir -p "$folder"
log=$folder/build.log

# A tree made by another generator stays with it.
generator=()
[[ -e $folder/CMakeCache.txt ]] || generator=(-G Ninja)

if ! {
    cmake -S "$root" -B "$folder" "${generator[@]}" -DCMAKE_BUILD_TYPE=RelWithDebInfo "$@" &&
        cmake --build "$folder" --target "$target" --parallel "$(nproc)"
} >"$log" 2>&1; then
    grep -A8 -m5 'error:\|CMake Error\|FAILED' "$log" >&2 || tail -n 30 "$log" >&2
    echo "build: failed in $folder; the whole output is in $log" >&2
    exit 1
fi
