#!/bin/bash
# route with a Grouter: dynamic activation and bias routing, what is said of masks, causality, and kills in mid-write
# after which the same command ends with the same bytes.
set -euo pipefail
program=$1 work=$2 tool=$BINARY_DIR/tests/grouter_tool
rm -rf "$work"
mkdir -p "$work"
cd "$work"
child=
trap '[[ -z $child ]] || kill -9 "$child" 2>/dev/null || true' EXIT
fail() {
    echo "unit_route_grouter: $*" >&2
    exit 1
}
contains() { grep -qE -- "$2" "$1" || fail "expected '$2' in $1: $(<"$1")"; }
lacks() { ! grep -qE -- "$2" "$1" || fail "unexpected '$2' in $1: $(<"$1")"; }
route() { # ROUTER OUT [ARGUMENT...]: summary in OUT.txt
    local router=$1 out=$2
    shift 2
    "$program" route --router "$router" --tokens t --seq-len 64 --out "$out" "$@" >"$out.txt" 2>"$out.err"
}
refused() { # CODE PATTERN COMMAND...
    local code=$1 pattern=$2 rc=0
    shift 2
    "$@" >out.txt 2>err.txt || rc=$?
    [[ $rc -eq $code ]] || fail "expected exit code $code, got $rc: $* ($(<err.txt))"
    contains err.txt "$pattern"
    [[ ! -e x.routes && ! -e x.routes.partial ]] || fail "left behind by $*"
}

"$program" tokens --synthetic 6000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
"$tool" causal.st 1 16 4 2.5 causal
"$tool" ahead.st 1 16 4 2.5 bidirectional
"$program" route --method hash --fit t --vocab 257 --experts 16 --top-k 4 --out h.router >/dev/null 2>&1

# ---- ways to use it
route causal.st plain.routes
contains plain.routes.txt '^mask: causal$'
lacks plain.routes.txt 'active experts|WARNING'
contains plain.routes.err '^routing: .* ktokens in .*[kM]tokens/s\)$'
route causal.st threshold.routes --threshold 2
contains threshold.routes.txt '^active experts per token: [1-3]\.[0-9]{4} in the mean, of at most 4$'
"$program" inspect threshold.routes --tokens t >report 2>/dev/null
contains report '^variable K: (true|yes)$'
route causal.st bias.routes --bias
"$program" inspect bias.routes --tokens t >report 2>/dev/null
contains report '^ +15 +0 +0.000$' # the bias leaves the second half of the experts without tokens
route causal.st both.routes --bias --threshold 2
[[ $(cat ./*.routes.txt | grep 'router hash' | sort -u | wc -l) -eq 4 ]] || fail "each way to use it is another router"
route h.router h.routes
lacks h.routes.txt 'mask:|WARNING'
route ahead.st ahead.routes
contains ahead.routes.txt '^WARNING: these routes depend on tokens after their own .* losses computed with them may use the future'

refused 2 'expected a Grouter' "$program" route --router h.router --tokens t --seq-len 64 --out x.routes --threshold 1
refused 2 'expected a Grouter' "$program" route --router h.router --tokens t --seq-len 64 --out x.routes --bias
refused 2 "below the Grouter's scale of 2.5, got 2.5" "$program" route --router causal.st --tokens t --seq-len 64 \
    --out x.routes --threshold 2.5
refused 2 'above 0' "$program" route --router causal.st --tokens t --seq-len 64 --out x.routes --threshold 0
refused 2 'expected no --bias' "$program" route --method random --experts 8 --top-k 2 --seed 1 --bias --out x.routes

# ---- a causal Grouter's routes are those of the tokens so far: token 40 of window 3 changes rows from there on
cp t.idx changed.idx
cp t.bin changed.bin
printf '\007\0' | dd of=changed.bin bs=1 seek=$((2 * (3 * 64 + 40))) conv=notrunc status=none
cmp -s t.bin changed.bin && fail "the token was another before"
rows_at=$((512 + $("$program" inspect t --json 2>/dev/null | sed -n 's/.*"tokens": \([0-9]*\).*/\1/p') / 64 * 16 * 4))
first_change() { # ROUTER: in window 3, the first position whose ids or gates changed; records are 64*4*3+16 bytes
    "$program" route --router "$1" --tokens t --seq-len 64 --out a.routes >/dev/null 2>&1
    "$program" route --router "$1" --tokens changed --seq-len 64 --out b.routes >/dev/null 2>&1
    cmp -l a.routes b.routes | awk -v at=$((rows_at + 3 * (64 * 12 + 16))) '{ o = $1 - 1 - at
        if (o < 0 || o >= 768) next
        p = int(o < 256 ? o / 4 : (o - 256) / 8)
        if (!seen++ || p < least) least = p }
        END { print seen ? least : "none" }'
}
[[ $(first_change causal.st) -eq 40 ]] || fail "causal: expected changes from row 40 on, got $(first_change causal.st)"
[[ $(first_change ahead.st) -lt 10 ]] || fail "bidirectional: expected changes before row 40, got $(first_change ahead.st)"

# ---- killed at any moment, the same command ends with the same bytes
"$program" tokens --synthetic 400000 --vocab 257 --seed 4 --out t >/dev/null 2>&1
route causal.st whole.routes
n_left=0
for delay in 0.01 0.05 0.1 0.2 0.4 0.8; do
    "$program" route --router causal.st --tokens t --seq-len 64 --out killed.routes >/dev/null 2>&1 &
    child=$!
    sleep $delay
    kill -9 $child 2>/dev/null || true
    wait $child 2>/dev/null || true
    child=
    [[ -e killed.routes ]] && break
    [[ ! -e killed.routes.partial ]] || n_left=$((n_left + 1))
done
[[ $n_left -gt 0 ]] || fail "no kill left anything to go on with"
if [[ -e killed.routes.partial ]]; then
    refused 65 'expected a finished route table' "$program" inspect killed.routes.partial
fi
route causal.st killed.routes
cmp whole.routes killed.routes || fail "a table whose writing was killed has other bytes"
[[ ! -e killed.routes.partial ]] || fail "the partial table stays"

# ---- what another router left is not used; a command that is running is not disturbed
head -c 3000000 whole.routes >killed.routes.partial
route causal.st killed.routes
contains killed.routes.err 'killed.routes.partial: going on with it: [1-9][0-9]* of 6249 windows are routed'
cmp whole.routes killed.routes || fail "a table that was cut has other bytes"
head -c 3000000 whole.routes >killed.routes.partial
route ahead.st killed.routes
contains killed.routes.err 'killed.routes.partial: of another router'
route ahead.st other.routes
cmp other.routes killed.routes || fail "windows of another router were kept"
"$program" route --router causal.st --tokens t --seq-len 64 --out killed.routes >/dev/null 2>&1 &
child=$!
for _ in $(seq 200); do [[ ! -e killed.routes.partial ]] || break; sleep 0.01; done
kill -STOP $child
if [[ -e killed.routes.partial ]]; then
    rc=0
    route causal.st killed.routes || rc=$?
    [[ $rc -eq 64 ]] || fail "a second run on the same output: expected 64, got $rc: $(<killed.routes.err)"
    contains killed.routes.err 'killed.routes.partial: expected a file no other run writes, got one in use'
fi
kill -CONT $child
wait $child || fail "the first run was disturbed"
child=
cmp whole.routes killed.routes || fail "the first run was disturbed: other bytes"
rm -rf "$work"
