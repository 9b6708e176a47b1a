#!/bin/bash
# Ranks share a table's windows: the same bytes as one rank; one rank's error is said once, by all, with nothing left.
set -euo pipefail
program=$1 work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
launch() {
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader "$@"
}

"$program" tokens --out tokens --seed 5 --synthetic 20000 --vocab 100
"$program" route --method hash --fit tokens --vocab 100 --experts 16 --top-k 3 --out h.router
"$program" route --method random --experts 16 --top-k 3 --seed 9 --out r.router
for router in h r; do
    "$program" route --router $router.router --tokens tokens --seq-len 128 --out one.routes
    for n in 2 3; do
        launch -n $n "$program" route --router $router.router --tokens tokens --seq-len 128 --out many.routes
        cmp one.routes many.routes || exit 1
    done
done
# What some ranks have done, any other number of ranks goes on with: here windows are missing in the middle and at the end.
for n in 1 3; do
    "$program" route --router h.router --tokens tokens --seq-len 128 --out one.routes
    cp one.routes many.routes.partial
    dd if=/dev/zero of=many.routes.partial bs=1000 seek=$((12 + n)) count=$((5 * n)) conv=notrunc status=none
    truncate -s -3000 many.routes.partial
    launch -n $n "$program" route --router h.router --tokens tokens --seq-len 128 --out many.routes 2>err.txt
    grep -qE 'going on with it: 1[0-4][0-9] of 156 windows are routed' err.txt || { echo "not resumed: $(<err.txt)"; exit 1; }
    cmp one.routes many.routes || exit 1
done
rm err.txt
# One rank is killed while it routes, which takes down the others: a later run with more ranks ends with the same bytes.
"$BINARY_DIR"/tests/grouter_tool g.st 1 16 3 1 causal
"$program" tokens --out many --seed 6 --synthetic 300000 --vocab 257
"$program" route --router g.st --tokens many --seq-len 64 --out one.routes
for delay in 0.7 1 1.5 2.5; do
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader -n 2 \
        "$program" route --router g.st --tokens many --seq-len 64 --out killed.routes >/dev/null 2>&1 &
    mpirun_pid=$!
    sleep $delay
    ranks=($(cat /proc/$mpirun_pid/task/$mpirun_pid/children 2>/dev/null || true))
    [[ ${#ranks[@]} -lt 2 ]] || kill -9 "${ranks[-1]}" 2>/dev/null || true
    wait $mpirun_pid || true
    [[ ! -e killed.routes ]] || break
done
launch -n 3 "$program" route --router g.st --tokens many --seq-len 64 --out killed.routes
cmp one.routes killed.routes || exit 1

launch -n 3 "$program" route --router h.router --tokens tokens --seq-len 19000 --out one_window.routes
"$program" inspect one_window.routes --tokens tokens

# An id above the router's vocabulary in the second half: only rank 1 meets it.
"$program" tokens --out low --synthetic 8000 --vocab 50
"$program" route --method hash --fit low --vocab 50 --experts 16 --top-k 3 --out low.router
rc=0
head -c 16000 low.bin >mixed.bin
tail -c +16001 tokens.bin >>mixed.bin
cp tokens.idx mixed.idx
before=$(ls)
launch -n 2 "$program" route --router low.router --tokens mixed --seq-len 128 --out x.routes 2>err.txt || rc=$?
[[ $rc -eq 65 ]] || { echo "expected exit code 65, got $rc: $(<err.txt)"; exit 1; }
[[ $(grep -c 'error\[E65\] mixed.bin: token' err.txt) -eq 1 ]] || { echo "expected one error: $(<err.txt)"; exit 1; }
rm err.txt
[[ $(ls) == "$before" ]] || { echo "left behind: $(ls)"; exit 1; }
rm -rf "$work"
