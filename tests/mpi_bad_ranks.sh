#!/bin/bash
# Wrong numbers of ranks, and what only some ranks can see to be wrong, end with their documented code and one message,
# and leave nothing on disk.
set -uo pipefail
# shellcheck source=tests/bad_inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/bad_inputs.sh"
export ASAN_OPTIONS=detect_leaks=0

mpirun=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)
# Starting and ending mpirun and MPI is not the program's time, but counted with it.
limit_s=$((limit_s + 3))
# ranks N CODE PART... -- ARGS...: N ranks of the binary with ARGS are refused so, by one rank for all.
ranks() {
    local n=$1 parts=()
    shift
    while [ "$1" != -- ]; do
        parts+=("$1")
        shift
    done
    bad_command "${parts[@]}" -- "${mpirun[@]}" -n "$n" "$binary" "${@:2}"
    [ "$(grep -Ec 'error\[E[0-9]+\] [^ ]' ../err)" -eq 1 ] || failed "expected one message, got:"
}

ranks 3 64 'train.global_batch_windows = 4 must be a multiple of' '2 \* 3 = 6' 'the next are' -- train good.json
ranks 4 64 'train.global_batch_windows = 4' '2 \* 4 = 8' -- train good.json
ranks 3 64 'parallel.expert_parallel_size = 2 must divide the number of ranks = 3' -- \
    train good.json --set parallel.expert_parallel_size=2 --set train.global_batch_windows=6
ranks 2 64 'unknown key "optimizer.lrr"' -- train good.json --set optimizer.lrr=1
ranks 2 65 'absent.routes: cannot be opened' -- train good.json --set 'data.train[0].routes=absent.routes'
ranks 2 64 'parallel.comm: expected' 'got "nccl"' 'use mpi' -- \
    train good.json --set parallel.comm=nccl --set parallel.backend=cpu
ranks 2 74 'run.dir: expected a place where t.bin/run can be made' -- train good.json --set run.dir=t.bin/run
place() { # OUT RANKS ROUTES: a placement of them
    "$BINARY_DIR/tests/place_tool" "$1" 1 "$2" 1 equal 257 t "$3" || failed "place_tool"
}
make route --method random --experts 8 --top-k 2 --seed 5 --out wide.router
make route --router wide.router --tokens t --seq-len 32 --out wide.routes
make route --method random --experts 4 --top-k 2 --seed 5 --out other.router
make route --router other.router --tokens t --seq-len 32 --out other.routes
place four.place 4 t.routes
place two.place 2 t.routes
place wide.place 2 wide.routes
place other.place 2 other.routes
two=(--set parallel.expert_parallel_size=2 --set parallel.placement)
ranks 2 64 'four.place: expected a placement for parallel.expert_parallel_size = 2 ranks, got one for 4' 'set parallel.expert' -- \
    train good.json "${two[@]}=four.place"
ranks 2 64 'two.place: expected a placement for parallel.expert_parallel_size = 1 ranks .what 0 stands for., got one for 2' -- \
    train good.json --set parallel.placement=two.place
ranks 2 65 'wide.place: expected a placement of model.num_experts = 4 experts' 'got 8 and 32' -- \
    train good.json "${two[@]}=wide.place"
ranks 2 65 'other.place: expected a placement of route table t.routes' 'got one for other routes' 'first is other.routes' \
    'grouter-train place' -- train good.json "${two[@]}=other.place"
ranks 2 65 'absent.place: cannot be opened' -- train good.json "${two[@]}=absent.place"
ranks 2 65 't.routes: expected a placement' -- train good.json "${two[@]}=t.routes"
make train good.json
cp -a run good.run
printf '?' | dd of=run/checkpoints/step-00000002/manifest.json bs=1 seek=100 conv=notrunc status=none
ranks 2 66 'run/checkpoints: expected a whole checkpoint, got 1 damaged' -- train good.json --set train.steps=3
rm -rf run && cp -a good.run run
ranks 2 64 'run.seed: expected 7 as in the checkpoint, got 8' -- train good.json --set run.seed=8
ranks 2 66 'run/model.safetensors: expected the weights of this config' -- eval good.json --set model.moe_intermediate_size=4

ranks 2 65 'absent.routes: cannot be opened' -- bench exchange --routes absent.routes
ranks 2 65 't.routes: expected at least 1000 windows, 500 for each of 2 ranks, got 124' 'lower --windows' -- \
    bench exchange --routes t.routes --windows 500
ranks 3 64 'expected a number of ranks that divides the 4 experts, got 3' -- bench exchange --routes t.routes
ranks 2 64 'expected a width of at least the 64 experts, got 32' 'raise --width' -- \
    bench exchange --experts 64 --top-k 2 --width 32
ranks 2 74 't.bin/x.json' -- bench exchange --json t.bin/x.json
make place --routes t.routes --ranks-per-node 2 --out p
ranks 4 64 'expected a placement for 4 ranks as there are, got one for 2' -- bench exchange --routes t.routes --placement p
make route --method random --experts 4 --top-k 2 --seed 5 --out r.router
make route --router r.router --tokens t --seq-len 32 --out other.routes
ranks 2 65 'expected a placement of the table other.routes' 'place this table' -- \
    bench exchange --routes other.routes --placement p
patch p 0 X
ranks 2 65 'p: ' -- bench exchange --routes t.routes --placement p
ranks 3 64 'bench layer: expected a number of ranks that divides the 16 experts, got 3' -- bench layer
ranks 2 65 'absent.routes: cannot be opened' -- bench layer --routes absent.routes
ranks 2 64 'backend: expected auto or one of' -- bench kernels --backend abacus
ranks 3 64 'train.global_batch_windows = 4 must be a multiple of' -- bench step good.json
ranks 2 74 't.bin/x.csv' -- bench step good.json --csv t.bin/x.csv
bad 64 'bench exchange: expected at least 2 ranks, got 1' 'mpirun -n 2' -- bench exchange

bad_end
