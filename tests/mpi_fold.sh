#!/bin/bash
# Ranks share the sample of a fold: the same Grouter and mapping as one rank, folding and expanding; an error that one
# rank meets is said once, by all, with nothing left.
set -euo pipefail
binary=$1 work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1
# shellcheck source=tests/grouter_chain.sh
. "$(dirname "${BASH_SOURCE[0]}")/grouter_chain.sh"
fail() {
    echo "FAILED: $*"
    exit 1
}
launch() {
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader "$@"
}
make_grouter >made.out 2>&1 || fail "no Grouter: $(<made.out)"

# same ARGS...: one rank, two and three write the same files and report the same.
same() {
    "$binary" fold --grouter g.safetensors --seq-len 32 "$@" --out one >one.out 2>err || fail "$*: $(<err)"
    local n
    for n in 2 3; do
        launch -n $n "$binary" fold --grouter g.safetensors --seq-len 32 "$@" --out many >many.out 2>err || fail "$*: $(<err)"
        cmp one many || fail "$*: $n ranks make another Grouter"
        cmp one.mapping.json many.mapping.json || fail "$*: $n ranks make another mapping"
        diff <(sed 's/many/one/' many.out) one.out || fail "$*: $n ranks report otherwise"
    done
}
same --tokens t --experts 4
same --tokens t --tokens v --experts 3 --method balance --windows 100 --seed 9
same --tokens v --windows 1 --experts 2 # more ranks than windows
same --tokens t --experts 12
same --tokens t --experts 12 --sample 500 --windows 60
same --tokens v --experts 10 --windows 2

launch -n 2 "$binary" fold --grouter g.safetensors --mapping-in one.mapping.json --out other >x.out 2>err &&
    fail "a mapping that expands was applied"
grep -q 'does not hold the new score rows' err || fail "$(<err)"

# An id above the vocabulary in the second half: only rank 1 meets it.
"$binary" tokens --synthetic 6000 --vocab 300 --seed 3 --out wide >/dev/null 2>&1
{ head -c 6000 t.bin; tail -c +6001 wide.bin; } >mixed.bin
cp wide.idx mixed.idx
rm -f x.out other
before=$(ls)
rc=0
launch -n 2 "$binary" fold --grouter g.safetensors --tokens mixed --seq-len 32 --experts 4 --out x 2>err || rc=$?
[[ $rc -eq 65 ]] || fail "expected exit code 65, got $rc: $(<err)"
[[ $(grep -c 'error\[E65\] mixed.bin: token' err) -eq 1 ]] || fail "expected one error: $(<err)"
[[ $(ls) == "$before" ]] || fail "left behind: $(ls)"
rm -rf "$work"
