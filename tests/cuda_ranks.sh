#!/bin/bash
# 2 and 4 ranks that share one GPU over comm mpi: equal to one rank within the limits of other layouts, and twice the same
# bits; and a run that goes on with other ranks.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
mpirun=$(command -v mpirun || echo "$(dirname "$binary")/mpirun")
[ -x "$mpirun" ] || skip "no mpirun on the PATH or beside the program"
need_gpu
configs
launch=("$mpirun" --allow-run-as-root --oversubscribe --bind-to none --mca btl "self,vader")

# ranks N EP NAME [ARGUMENT...]: in run folder NAME
ranks() {
    local n=$1 ep=$2 name=$3
    shift 3
    quiet "$name" "${launch[@]}" -n "$n" "$binary" train plain.json --set run.dir="$name" "${cuda[@]}" \
        --set parallel.comm=mpi --set parallel.expert_parallel_size="$ep" "$@"
}

train one plain.json "${cuda[@]}"
train one-bf16 plain.json "${cuda[@]}" "${bf16[@]}"
for layout in "2 1" "2 2" "4 2" "4 4"; do
    read -r n ep <<<"$layout"
    name=$n-$ep
    ranks "$n" "$ep" "$name" --set train.micro_batch_windows=2
    grep -q "backend cuda, F32, comm mpi, $n ranks" "$name.err" || die "$name: expected $n ranks on cuda: $(cat "$name.err")"
    losses_within "$name" one 1 20 1e-5
    weights_within "$name" one 1e-5
    ranks "$n" "$ep" "$name-bf16" "${bf16[@]}"
    losses_within "$name-bf16" one-bf16 1 1 1e-3
    means_within "$name-bf16" one-bf16 1 20 1e-2
done
ranks 2 2 again
same_log again 2-2
same_weights again 2-2
ranks 2 2 moved --set train.steps=10
ranks 4 2 moved
grep -q 'going on from .*step-00000010' moved.err || die "moved: expected to go on from step 10: $(cat moved.err)"
weights_within moved one 1e-5
echo "ranks that share a GPU equal one rank"
