#!/bin/bash
# Configures and builds one tree: scripts/build.sh FOLDER [cmake options...]. The output goes to FOLDER/build.log and is
# shown only when something fails.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -lt 1 || $1 == -* ]]; then
    echo "usage: scripts/build.sh FOLDER [cmake options...]" >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder"
log=$folder/build.log

# A tree made by another generator stays with it.
generator=()
[[ -e $folder/CMakeCache.txt ]] || generator=(-G Ninja)

if ! {
    cmake -S "$root" -B "$folder" "${generator[@]}" -DCMAKE_BUILD_TYPE=RelWithDebInfo "$@" &&
        cmake --build "$folder" --parallel "$(nproc)"
} >"$log" 2>&1; then
    grep -q 'error:\|CMake Error\|FAILED' "$log" && grep -n -A8 -m5 'error:\|CMake Error\|FAILED' "$log" >&2
    echo "build: failed in $folder; the whole output is in $log" >&2
    exit 1
fi
