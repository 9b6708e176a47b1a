#!/bin/bash
# distill and tune on several ranks: they repeat and resume bit for bit, and any number of ranks gives the same Grouter to
# rounding.
set -euo pipefail
binary=$1
work=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)
# shellcheck source=tests/distill.sh
. "$here/distill.sh"
run() { # RANKS COMMAND DIR [ARGUMENT...]: output in DIR.out and DIR.err
    local n=$1 command=$2 dir=$3
    shift 3
    "${launch[@]}" -n "$n" "$binary" "$command" "$command".json --set run.dir="$dir" "$@" >"$dir.out" 2>"$dir.err" ||
        die "$dir: $(cat "$dir.err")"
}

# check COMMAND NAME [ARGUMENT...]: whole, stopped half-way and taken up, on 1 and on 4 ranks.
check() {
    local command=$1 name=$2 key
    shift 2
    run 2 "$command" "$name" "$@"
    run 2 "$command" "$name-half" "$@" --set train.steps=8 --set optimizer.decay_steps=12
    run 2 "$command" "$name-half" "$@" --set optimizer.decay_steps=12
    grep -q 'going on from .*step-00000008' "$name-half.err" || die "$name: it goes on"
    [ "$(hash_of "$name-half.out")" = "$(hash_of "$name.out")" ] || die "$name: a resumed run has other bits"
    cmp "$name/grouter.safetensors" "$name-half/grouter.safetensors" || die "$name: the file is the same too"
    for n in 1 4; do
        run $n "$command" "$name-$n" "$@" --set parallel.zero=$((n == 4))
        near "$(value "$name-$n" grad_norm 1)" "$(value "$name" grad_norm 1)" 1e-5 || die "$name: $n ranks, first gradient"
        for key in loss loss_valid; do
            near "$(value "$name-$n" $key 12)" "$(value "$name" $key 12)" 1e-4 || die "$name: $n ranks, $key"
        done
        near "$(value "$name-$n" maxvio_valid 12)" "$(value "$name" maxvio_valid 12)" 0.02 || die "$name: $n ranks, MaxVio"
    done
}
check distill distil
check tune tuned
check tune bias --set tune.mode=bias
near "$(value tuned-4 maxvio 1)" "$(value tuned maxvio 1)" 1e-6 || die "loads are those of the global batch"

# One rank's wrong input is every rank's.
code=0
"${launch[@]}" -n 2 "$binary" distill distill.json --set run.dir=x --set distill.teacher_layer=2 >x.out 2>x.err || code=$?
[ $code -eq 66 ] && grep -q '0 to 1, got 2' x.err || die "a wrong layer gives $code: $(cat x.err)"
[ ! -e x ] || die "nothing is left behind"
rm -rf "$work"
echo "distill and tune repeat, resume and agree"
