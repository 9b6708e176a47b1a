#!/bin/bash
# The fold command and what inspect says of its files: every strategy, mappings applied again, each wrong input with its
# code and message, and nothing left behind by a failure.
set -euo pipefail
binary=$1 work=$2
rm -rf "$work"
mkdir -p "$work/data"
cd "$work/data"
export OMP_NUM_THREADS=1
# shellcheck source=tests/grouter_chain.sh
. "$(dirname "${BASH_SOURCE[0]}")/grouter_chain.sh"
fail() {
    echo "FAILED: $*"
    exit 1
}
has() { grep -qxF -- "$2" "$1" || fail "expected the line '$2' in $1: $(<"$1")"; }

# expect CODE TEXT ARGS...: the command fails so, says TEXT, and changes nothing.
expect() {
    local code=$1 text=$2 got=0 before after
    shift 2
    before=$(ls -l --time-style=full-iso)
    "$binary" "$@" >../fold.out 2>../fold.err || got=$?
    after=$(ls -l --time-style=full-iso)
    [[ $got -eq $code ]] || fail "$*: expected code $code, got $got: $(<../fold.err)"
    grep -F "error[E$code]" ../fold.err | grep -qF -- "$text" || fail "$*: expected '$text': $(<../fold.err)"
    [[ ! -s ../fold.out ]] || fail "$*: on standard output: $(<../fold.out)"
    [[ $before == "$after" ]] || fail "$*: left behind: $(diff <(echo "$before") <(echo "$after"))"
}

make_grouter >made.out 2>&1 || fail "no Grouter: $(<made.out)"
fold() { "$binary" fold --grouter g.safetensors --tokens t --seq-len 32 "$@" 2>err || fail "fold $*: $(<err)"; }
value() { "$binary" inspect "$1" --json | sed -n "s/.*\"$2\": \"\\?\\([^\",]*\\)\"\\?,\\?$/\\1/p"; }

# ---- every strategy
for method in affinity balance greedy random block balance-reference; do
    fold --experts 4 --method $method --out $method >summary
    has summary "$method: 4 experts from 8 by $method (sum), K = 2, scale 1"
    has summary "sampled: 187 of 187 windows, 5984 tokens"
    grep -qE '^MaxVio on the sample: [0-9.]+ -> [0-9.]+$' summary || fail "no MaxVio: $(<summary)"
    has summary "mapping: $method.mapping.json"
    has summary "from router hash: $(value g.safetensors router_hash)"
    has summary "router hash: $(value $method router_hash)"
    [[ $(value $method.mapping.json router_hash) == "$(value g.safetensors router_hash)" ]] || fail "hash in the mapping"
    [[ $(value $method.mapping.json method) == "$method" ]] || fail "method in the mapping"
    "$binary" fold --grouter g.safetensors --mapping-in $method.mapping.json --out again >/dev/null
    cmp $method again || fail "$method: its mapping applied again gives another Grouter"
done
fold --experts 4 --out x >summary
has summary 'groups: 4 of 2 to 2 experts, mean 2.00; 8 of 8 source experts used'
fold --experts 4 --method balance-reference --out x >summary
has summary 'groups: 4 of 2 to 2 experts, mean 2.00; 5 of 8 source experts used'

# A Grouter made so routes, with the load that was reported of all windows, and can be folded again.
"$binary" route --router affinity --tokens t --seq-len 32 --out t.routes >route.out 2>err || fail "route: $(<err)"
fold --experts 4 --windows 0 --out x >summary
has route.out "MaxVioGlobal: $(sed -n 's/^MaxVio on the sample: .* -> //p' summary)"
"$binary" fold --grouter affinity --experts 2 --method block --out x --mapping m.json >summary
has summary "mapping: m.json"
has summary "groups: 2 of 2 to 2 experts, mean 2.00; 4 of 4 source experts used"
! grep -q 'sampled\|MaxVio' summary || fail "a load without tokens: $(<summary)"

# ---- settings of the result
fold --experts 1 --out x >summary
has summary "x: 1 experts from 8 by affinity (sum), K = 1, scale 1"
fold --experts 3 --top-k 3 --scale 2.5 --fold mean --windows 50 --seed 4 --tokens v --out x >summary
has summary "x: 3 experts from 8 by affinity (mean), K = 3, scale 2.5"
has summary "sampled: 50 of 233 windows, 1600 tokens"
has summary "groups: 3 of 2 to 3 experts, mean 2.67; 8 of 8 source experts used"
[[ $(value x made) == "folded from 8 to 3 experts by affinity (mean) on 1600 tokens; from Grouter $(value g.safetensors \
    router_hash)" ]] || fail "made: $(value x made)"
"$binary" fold --grouter g.safetensors --mapping-in x.mapping.json --top-k 1 --tokens v --seq-len 16 --out y >summary 2>err
has summary "y: 3 experts from 8 by affinity (mean), K = 1, scale 1"
has summary "sampled: 93 of 93 windows, 1488 tokens"

# ---- expanding
fold --experts 12 --out more >summary
has summary "more: 12 experts from 8 by expand, K = 2, scale 1"
grep -qE '^new experts: 4, from the [0-9]+ of 5984 sampled vectors whose best score is at most' summary ||
    fail "no new experts: $(<summary)"
fold --experts 12 --sample 600 --out x >summary
grep -q 'of 600 sampled vectors' summary || fail "--sample: $(<summary)"
cmp -s more x && fail "another sample gives the same rows"
[[ $(value more.mapping.json method) == expand ]] || fail "method of an expansion"

# ---- inspect
"$binary" inspect g.safetensors >report
for line in 'Grouter: g.safetensors' 'experts E: 8' 'experts per token K: 2' 'scale: 1' 'body: attention' 'mask: causal' \
    'sees tokens after its own: no' 'position: window' 'parameters: 4376' \
    'made: distilled from layer 0 of source/model.safetensors in 10 steps of 4 windows'; do
    has report "$line"
done
"$binary" inspect g.safetensors --json >report
has report '  "sees_future_tokens": false,'
has report '  "experts": 8,'
"$binary" inspect block.mapping.json >report
for line in 'mapping: block.mapping.json' 'method: block' 'source experts: 8' 'target experts: 4' \
    'experts of a group, most: 2' 'source experts used: 8' '  1: 2 3'; do
    has report "$line"
done
"$binary" inspect block.mapping.json --json | tr -d ' \n' >report
grep -qF '"groups":[[0,1],[2,3],[4,5],[6,7]]}' report || fail "groups: $(<report)"
"$binary" inspect source/model.safetensors >report
has report 'safetensors: source/model.safetensors'
rm x x.mapping.json y again summary report err

# ---- command lines
out=(--out z)
data=(--tokens t --seq-len 32)
from=(fold --grouter g.safetensors "${data[@]}")
expect 2 'expected --grouter' fold --experts 4 "${data[@]}" "${out[@]}"
expect 2 'expected --out' "${from[@]}" --experts 4
expect 2 'expected --experts or --mapping-in' "${from[@]}" "${out[@]}"
expect 2 'expected --seq-len with --tokens' fold --grouter g.safetensors --tokens t --experts 4 "${out[@]}"
expect 2 'expected no --windows without --tokens' fold --grouter g.safetensors --method block --experts 4 --windows 3 "${out[@]}"
expect 2 'only random and block need none' fold --grouter g.safetensors --experts 4 "${out[@]}"
expect 2 'expected no --method with --mapping-in' "${from[@]}" --mapping-in block.mapping.json --method block "${out[@]}"
expect 2 'expected an integer in [1, 4096], got "4097"' "${from[@]}" --experts 4097 "${out[@]}"
expect 2 '--top-k: expected at most the 4 experts of the result, got 5' "${from[@]}" --experts 4 --top-k 5 "${out[@]}"
expect 2 '--top-k: expected at most the 4 experts' fold --grouter g.safetensors --mapping-in block.mapping.json --top-k 5 \
    "${out[@]}"
expect 2 'did you mean "affinity"' "${from[@]}" --experts 4 --method afinity "${out[@]}"
expect 2 'expected sum or mean' "${from[@]}" --experts 4 --fold max "${out[@]}"
expect 2 'use method expand for more' "${from[@]}" --experts 12 --method block "${out[@]}"
expect 2 'use a folding method for fewer' "${from[@]}" --experts 4 --method expand "${out[@]}"
expect 2 "at most 12 (the router's width)" "${from[@]}" --experts 13 "${out[@]}"
expect 2 'got mean for more' "${from[@]}" --experts 12 --fold mean "${out[@]}"
expect 2 'that divides the 8 source experts' "${from[@]}" --experts 3 --method balance-reference "${out[@]}"
expect 2 'expected no --sample unless' "${from[@]}" --experts 4 --sample 9 "${out[@]}"
expect 2 'another file than the input g.safetensors' "${from[@]}" --experts 4 --out ./g.safetensors
expect 2 'another file than the input t.bin' "${from[@]}" --experts 4 --out t.bin
expect 2 'another file than the input t.idx' "${from[@]}" --experts 4 --out z --mapping t.idx
expect 2 'another file than the input block.mapping.json' fold --grouter g.safetensors --mapping-in block.mapping.json \
    --out block.mapping.json
expect 2 'expected another file than --out' "${from[@]}" --experts 4 --out z --mapping ./z

# ---- files
"$binary" route --method random --experts 4 --top-k 2 --seed 1 --out r.router >/dev/null
"$binary" tokens --synthetic 6000 --vocab 300 --seed 3 --out wide 2>/dev/null >&2
expect 66 'r.router' fold --grouter r.router "${data[@]}" --experts 4 "${out[@]}"
expect 66 'none.safetensors: cannot be opened' fold --grouter none.safetensors "${data[@]}" --experts 4 "${out[@]}"
expect 65 'source/model.safetensors: expected a Grouter' fold --grouter source/model.safetensors "${data[@]}" --experts 4 \
    "${out[@]}"
head -c 5000 g.safetensors >cut.safetensors
expect 66 'cut.safetensors' fold --grouter cut.safetensors "${data[@]}" --experts 4 "${out[@]}"
expect 65 'wide.bin: token' fold --grouter g.safetensors --tokens wide --seq-len 32 --experts 4 "${out[@]}"
expect 65 'none.idx' fold --grouter g.safetensors --tokens none --seq-len 32 --experts 4 "${out[@]}"
expect 65 'expected at least the 9000 tokens of one window' fold --grouter g.safetensors --tokens t --seq-len 9000 \
    --experts 4 "${out[@]}"
expect 65 'expected at least 4 sampled vectors' fold --grouter g.safetensors "${data[@]}" --experts 12 --sample 3 "${out[@]}"
expect 65 "for the Grouter affinity with hash $(value affinity router_hash), got one for hash $(value g.safetensors \
    router_hash)" fold --grouter affinity --mapping-in block.mapping.json "${out[@]}"
expect 65 'does not hold the new score rows' fold --grouter g.safetensors --mapping-in more.mapping.json "${out[@]}"
expect 65 'r.router' fold --grouter g.safetensors --mapping-in r.router "${out[@]}"
sed 's/\[2, 3\]/[2, 9]/' block.mapping.json >bad.json
expect 65 'bad.json:12: "groups": expected ascending expert ids below 8' fold --grouter g.safetensors --mapping-in bad.json \
    "${out[@]}"
expect 65 'bad.json:12: "groups"' inspect bad.json
printf '{"format": "grouter-mapping"' >bad.json
expect 65 'bad.json:1' inspect bad.json
expect 66 'cut.safetensors' inspect cut.safetensors
expect 74 'nowhere' "${from[@]}" --experts 4 --method block --out nowhere/z
mkdir folder
expect 74 'folder' "${from[@]}" --experts 4 --out z --mapping folder
expect 74 'folder' "${from[@]}" --experts 4 --out folder --mapping z.json

# A Grouter whose last weights are not numbers: the score bias is unused, the matrix before it is not.
cp g.safetensors nan.safetensors
printf '\0\0\300\177%.0s' $(seq 40) |
    dd of=nan.safetensors bs=1 seek=$(($(stat -c %s g.safetensors) - 160)) conv=notrunc status=none
expect 71 'expected finite scores' fold --grouter nan.safetensors "${data[@]}" --experts 4 "${out[@]}"
expect 71 'expected finite score rows' fold --grouter nan.safetensors --method block --experts 4 "${out[@]}"

# A full disk when the second file is written: a limit that the mapping passes and the Grouter does not.
got=0
before=$(ls)
bash -c 'ulimit -f 1 && exec "$@"' limited "$binary" "${from[@]}" --experts 4 --out z 2>../fold.err >../fold.out || got=$?
[[ $got -eq 74 && $(ls) == "$before" ]] || fail "a full disk: code $got, left behind: $(ls): $(<../fold.err)"
rm -rf "$work"
