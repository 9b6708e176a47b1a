#!/bin/bash
# Who may include whom: each part sees only the parts below it, and a third-party header belongs to one file. Each file's
# own #include lines are checked, in sources and in public headers alike.
set -euo pipefail

# What each part may include besides itself and base.
allowed() {
    case $1 in
    base | config | data) echo ;;
    backend) echo kernels ;;
    kernels) echo backend ;; # the argument structs of ops
    kmeans) echo ;;
    place) echo data kmeans ;;
    plan) echo data ;;
    comm) echo backend ;;
    moe) echo data plan backend comm ;;
    model) echo data plan backend comm moe config ;;
    optim) echo config model backend comm ;;
    router) echo data optim config model backend comm plan moe kmeans ;;
    bench) echo data place plan comm backend moe model optim router config eval ;;
    train | eval) echo data place plan comm backend moe model optim router config train eval bench ;;
    cmd) echo data place plan comm backend moe model optim router config train eval bench ;;
    *) return 1 ;;
    esac
}

# The only file that may include a third-party header. System headers are not listed here but in `is_system`.
owner() {
    case $1 in
    cjson/*) echo src/base/json.c ;;
    xxhash.h) echo src/base/checksum.c ;;
    omp.h) echo src/base/version.c ;;
    dnnl*) echo src/backend/cpu_gemm.c ;;
    mpi.h) echo src/comm/mpi.c ;;
    nccl.h) echo 'src/comm/nccl*.[ch]' ;;
    nvtx3/*) echo src/backend/cuda_range.c ;;
    cuda* | cublas*) echo 'src/backend/cuda*.[ch] src/comm/nccl*.[ch] kernels/*' ;;
    *) echo none ;;
    esac
}

is_system() {
    case $1 in
    assert.h | ctype.h | dirent.h | dlfcn.h | errno.h | fcntl.h | float.h | immintrin.h | inttypes.h | libgen.h | limits.h | \
        locale.h | math.h | pthread.h | sched.h | signal.h | stdarg.h | stdatomic.h | stdbool.h | stddef.h | stdint.h | stdio.h | stdlib.h | \
        string.h | sys/*.h | time.h | unistd.h) return 0 ;;
    *) return 1 ;;
    esac
}

# The part that a file (from the repository root) belongs to.
part_of_file() {
    case $1 in
    src/main.c) echo cmd ;;
    kernels/*) echo kernels ;;
    src/moe/plan*) echo plan ;;
    src/router/kmeans*) echo kmeans ;; # pure, so that place may use it
    src/*/*) local folder=${1#src/}; echo "${folder%%/*}" ;;
    include/grouter/*) part_of_public "${1##*/}" ;;
    *) echo unknown ;;
    esac
}

part_of_public() {
    case $1 in
    json.h | io.h | tiles.h) echo base ;;
    routes.h) echo data ;;
    placement.h | packing.h | transport.h | links.h) echo place ;;
    grouter.h | teacher.h | balance.h | fold.h | folding.h) echo router ;;
    checkpoint.h) echo train ;;
    staging.h) echo backend ;;
    hf.h) echo model ;;
    leak.h) echo eval ;;
    *) echo "${1%.h}" ;;
    esac
}

# The part of the header that `file` includes as "header".
part_of_header() {
    local file=$1 header=$2
    case $header in
    version.h) echo base ;; # generated
    grouter/*) part_of_public "${header#grouter/}" ;;
    kernels/*) echo kernels ;;
    */*) part_of_file "src/$header" ;;
    *) part_of_file "$(dirname "$file")/$header" ;;
    esac
}

may_use_third_party() { # file header
    local pattern
    for pattern in $(set -f; owner "$2"); do
        # shellcheck disable=SC2053  # the owner is a pattern
        [[ $1 == $pattern ]] && return 0
    done
    return 1
}

# The ops of the CPU backend are compiled once per storage type, with that type's header under this name.
is_storage_type() { # file text
    [[ $1 == src/backend/cpu_ops.h && $2 == '#include GR_CPU_ACT' ]]
}

check_line() { # file line-number text
    local file=$1 line=$2 text=$3 header part target
    is_storage_type "$file" "$text" && return
    if [[ $text =~ ^[[:space:]]*\#[[:space:]]*include[[:space:]]*\<([^\>]+)\> ]]; then
        header=${BASH_REMATCH[1]}
        is_system "$header" || may_use_third_party "$file" "$header" ||
            echo "$file:$line: <$header> belongs to: $(set -f; owner "$header")"
    elif [[ $text =~ ^[[:space:]]*\#[[:space:]]*include[[:space:]]*\"([^\"]+)\" ]]; then
        header=${BASH_REMATCH[1]}
        case /$header/ in
        */../* | */./*) echo "$file:$line: \"$header\" hides its part behind dots"; return ;;
        esac
        part=$(part_of_file "$file")
        target=$(part_of_header "$file" "$header")
        allowed "$part" >/dev/null || { echo "$file:$line: unknown part $part"; return; }
        [[ " $part base $(allowed "$part") " == *" $target "* ]] ||
            echo "$file:$line: part '$part' may not include \"$header\" of part '$target'"
    else
        echo "$file:$line: cannot read this include: $text"
    fi
}

# Prints one line per violation below the folder $1.
violations() {
    local file line text
    (cd "$1" && grep -rnE '^[[:space:]]*#[[:space:]]*include' --include='*.[ch]' --include='*.cu' --include='*.cuh' --exclude-dir=host \
        src include kernels || true) |
        while IFS=: read -r file line text; do
            check_line "$file" "$line" "$text"
        done
}

# ---- the check sees violations: each of these lines is one
work=$2
rm -rf "$work"
mkdir -p "$work"/src/{data,moe,model,comm,backend,cmd} "$work"/include/grouter "$work"/kernels
trap 'rm -rf "$work"' EXIT
echo '#include <mpi.h>' >"$work/src/model/bad.c"
echo '#include "grouter/config.h"' >"$work/src/data/bad.c"
echo '#include "grouter/comm.h"' >"$work/src/moe/plan_bad.c"
echo '#include "cmd/cmd.h"' >"$work/src/comm/bad.h"
echo ' # include <unheard/of.h>' >"$work/src/backend/bad.c"
echo '#include "grouter/model.h"' >"$work/include/grouter/moe.h"
echo '#include HEADER' >"$work/src/cmd/bad.c"
echo '#include GR_CPU_ACT' >"$work/src/backend/cpu_bad.c"
echo '#include "../train/internal.h"' >"$work/src/model/around.c"
echo '#include <cuda_runtime_api.h>' >"$work/src/backend/cpu_bad.h"
echo '#include "grouter/model.h"' >"$work/kernels/bad.cu"
printf '#include <cublasLt.h>\n#include "kernels/kernels.h"\n' >"$work/src/backend/cuda_x.c" # legal
echo '#include <cuda_bf16.h>' >"$work/kernels/x.cuh" # legal
printf '#include <stdio.h>\n#include "grouter/plan.h"\n#include "cpu.h"\n' >"$work/src/backend/worse.c"
echo '#include <mpi.h>' >"$work/src/comm/mpi.c" # legal
n_seen=$(violations "$work" | wc -l)
if [ "$n_seen" -ne 12 ]; then
    echo "expected the check to find 12 violations in its own example, got $n_seen:"
    violations "$work"
    exit 1
fi

# ---- the tree
found=$(violations "$SOURCE_DIR")
if [ -n "$found" ]; then
    echo "$found"
    exit 1
fi
echo "include rules hold"
