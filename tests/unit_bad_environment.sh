#!/bin/bash
# Every missing, full, read-only, limited or taken resource ends with its documented code and a message that names what,
# where and what was expected, within 2 s, and leaves nothing on disk.
set -uo pipefail
# shellcheck source=tests/bad_inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/bad_inputs.sh"

# limited CODE PART... -- LIMITS ARGS...: the binary with ARGS under limits of ulimit, for example "-f 8".
limited() {
    local parts=()
    while [ "$1" != -- ]; do
        parts+=("$1")
        shift
    done
    # shellcheck disable=SC2016
    bad_command "${parts[@]}" -- bash -c 'ulimit $1 && exec "${@:2}"' limited "$2" "$binary" "${@:3}"
}

# ---- places where nothing can be made: 74 (root may write almost anywhere, so a file stands where a folder is needed)
bad 74 'run.dir: expected a place where t.bin/run can be made' 'Not a directory' 'check the folder' -- \
    train good.json --set run.dir=t.bin/run
bad 74 'run.dir: expected a place where /proc/none/run can be made' 'check the folder' -- \
    train good.json --set run.dir=/proc/none/run
bad 74 't.bin' 'Not a directory' -- tokens --synthetic 100 --vocab 257 --seed 1 --out t.bin/x
bad 74 't.bin' 'Not a directory' -- route --router h.router --tokens t --seq-len 32 --out t.bin/x.routes
bad 74 '/dev/full: expected a new name or a regular file to replace, got a device' 'write to another name' -- \
    route --router h.router --tokens t --seq-len 32 --out /dev/full
bad 74 't.bin/x.json' 'Not a directory' -- bench kernels --only rope --tokens 8 --json t.bin/x.json
bad 74 't.bin/x.csv' 'Not a directory' -- bench step good.json --csv t.bin/x.csv
bad 74 't.bin/x.routes' 'Not a directory' -- bench layer --tokens 8 --save-routes t.bin/x.routes
mkdir x.routes
bad 74 'x.routes: expected a new name or a regular file to replace, got a folder' -- \
    route --router h.router --tokens t --seq-len 32 --out x.routes

# ---- a GPU that is not there: 69; a backend that is not compiled in: 64
if [[ $("$binary" --version) != *'backends   cpu cuda'* ]]; then
    bad 64 'expected auto or one of: cpu, got "cuda", which is not compiled in' 'or use cpu' -- \
        train good.json --set parallel.backend=cuda
elif [[ ! -e /dev/nvidiactl ]]; then
    bad 69 'backend cuda: expected a GPU and its driver, found no NVIDIA driver' '--set parallel.backend=cpu' -- \
        train good.json --set parallel.backend=cuda
fi

# ---- results that do not arrive: 74
# shellcheck disable=SC2016
bad_command 74 'standard output: results were lost: No space left' -- bash -c 'exec "$@" >/dev/full' full "$binary" inspect t.idx
# shellcheck disable=SC2016
bad_command 74 'standard output: results were lost' -- bash -c 'exec "$@" >&-' closed "$binary" inspect t.idx

# ---- files that may not grow: 74 (of 1024 bytes)
limited 74 'x.bin' 'writing failed: File too large' 'check the folder, its free space' -- \
    '-f 8' tokens --synthetic 40000 --vocab 257 --seed 1 --out x
limited 74 'x2.routes' 'writing failed: File too large' -- \
    '-f 8' route --router h.router --tokens t --seq-len 32 --out x2.routes
limited 74 'x.router' 'writing failed: File too large' -- \
    '-f 1' route --method hash --fit t --vocab 257 --experts 16 --top-k 8 --out x.router

# ---- memory: 69
if [ "$sanitized" ]; then
    skip "ulimit -v: a sanitizer needs more address space than any limit to be tried"
else
    limited 69 'memory: expected at most' 'RLIMIT_AS, see ulimit -v' 'got a need of' 'lower train.micro_batch_windows' -- \
        '-v 88000' train good.json
fi
bad 69 'memory: expected at most' 'got a need of' 'make the model smaller' -- \
    train good.json --set model.hidden_size=65536 --set model.num_hidden_layers=1000
bad 69 'bench kernels: expected arrays of at most' 'got a need of' 'lower --tokens' -- \
    bench kernels --only gather_rows --tokens 16777216
bad 69 'bench layer: expected arrays of at most' 'lower --tokens or --experts' -- \
    bench layer --tokens 8 --width 65536 --expert-width 65536 --experts 4096 --top-k 1
bad 69 'memory: expected at most 1.02 MiB \(--memory\), got a need of' -- train good.json --dry-run --memory 0.001

# ---- disks that are full or read-only, mounted for one command alone: 69 and 74
# mounted CODE PART... -- OPTIONS ARGS...: the binary with ARGS while disk/ is a tmpfs with these options, which must be
# empty afterwards.
namespace=(unshare -m)
mkdir disk
"${namespace[@]}" mount -t tmpfs none disk 2>../err || namespace=(unshare -r -m)
mounted() {
    local parts=()
    while [ "$1" != -- ]; do
        parts+=("$1")
        shift
    done
    # shellcheck disable=SC2016
    bad_command "${parts[@]}" -- "${namespace[@]}" bash -c 'mount -t tmpfs -o "$1" none disk && "${@:2}"
        code=$?
        [ -z "$(ls -A disk)" ] || { echo "left in disk:" $(ls -A disk) >&2 && exit 99; }
        exit $code' mounted "$2" "$binary" "${@:3}"
}
if "${namespace[@]}" mount -t tmpfs none disk 2>../err; then
    mounted 69 'run.dir: disk/run: expected .* of free disk for 3 checkpoints, got 32.00 KiB' 'make room' -- \
        size=32k train good.json --set run.dir=disk/run
    mounted 74 'disk/x.bin' 'writing failed: No space left' 'check the folder, its free space' -- \
        size=32k tokens --synthetic 40000 --vocab 257 --seed 1 --out disk/x
    mounted 74 'disk/x.routes' 'writing failed: No space left' -- \
        size=16k route --router h.router --tokens t --seq-len 32 --out disk/x.routes
    mounted 74 'run.dir: expected a place where disk/run can be made' 'Read-only file system' -- \
        ro train good.json --set run.dir=disk/run
    mounted 74 'disk/x.bin' 'creating failed: Read-only file system' 'check the folder' -- \
        ro tokens --synthetic 100 --vocab 257 --seed 1 --out disk/x
    mounted 74 'disk/x.routes' 'creating failed: Read-only file system' -- \
        ro route --router h.router --tokens t --seq-len 32 --out disk/x.routes
    make train good.json
    # shellcheck disable=SC2016
    read_only=("${namespace[@]}" bash -c 'mount --bind run run && mount -o remount,ro,bind run && exec "$@"' read-only)
    bad_command 74 'run/lock: expected a file this run can write, got: Read-only file system' 'check run.dir' -- \
        "${read_only[@]}" "$binary" train good.json --set train.steps=3
    bad_command 74 'run/lock' 'Read-only file system' -- "${read_only[@]}" "$binary" train good.json --fresh
    rm -rf run
else
    skip "full and read-only disks: a namespace of its own with a tmpfs cannot be had: $(tail -1 ../err)"
fi

# ---- a run folder in use, or of no run: 64
mkdir run
bad 64 'run.dir: expected a new folder or that of an earlier run, got run' 'or use --fresh' -- train good.json
rmdir run
"$binary" train good.json --set run.dir=../live --set train.steps=100000000 --set checkpoint.keep_last=2 \
    --set log.every_steps=1000000 >/dev/null 2>&1 &
alive=$!
for ((i = 0; i < 600; i++)); do
    [ -s ../live/metrics.jsonl ] && break
    sleep 0.1
done
bad 64 'run.dir: expected a folder no other run works in, got ../live, locked by process '$alive' on ' 'wait for it or stop it' -- \
    train good.json --set run.dir=../live
bad 64 'run.dir: expected a folder no other run works in, got ../live, locked by process '$alive' on ' -- \
    train good.json --set run.dir=../live --fresh
kill -USR1 $alive
wait $alive
code=$?
if [ $code -ne 85 ] || [ "$(find .. -maxdepth 1 -name 'live*')" != ../live ]; then
    last=("the run whose folder the others wanted")
    failed "expected it to go on until asked to stop (85), alone, got code $code and:" "$(find .. -maxdepth 1)"
fi

# ---- ranks: 64 (more of them in mpi_bad_ranks.sh)
bad 64 'parallel.expert_parallel_size' 'got 3|= 3' -- train good.json --set parallel.expert_parallel_size=3
bad 64 'parallel.expert_parallel_size' '2' -- train good.json --set parallel.expert_parallel_size=2
bad 64 'train.global_batch_windows = 4 must be a multiple of' '2 \* 3 = 6' 'the next are' -- train good.json --dry-run --ranks 3
# shellcheck disable=SC2016
bad_command 64 'launcher: expected 3 ranks as it announces, but MPI' 'sees one' 'start with the mpirun of that library' -- \
    env ASAN_OPTIONS=detect_leaks=0 OMPI_COMM_WORLD_SIZE=3 "$binary" train good.json

bad_end
