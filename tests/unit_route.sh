#!/bin/bash
# route and inspect from the command line: figures, exit codes, messages, and nothing left behind after an error.
set -euo pipefail
program=$1 work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"

fail() {
    echo "unit_route: $*" >&2
    exit 1
}

# expect CODE TEXT COMMAND...: exact exit code, TEXT on standard error, no new file.
expect() {
    local code=$1 text=$2 before after rc=0
    shift 2
    before=$(ls)
    "$@" >out.txt 2>err.txt || rc=$?
    rm -f out.txt
    after=$(ls | grep -v '^err.txt$' || true)
    [[ $rc -eq $code ]] || fail "expected exit code $code, got $rc: $* ($(<err.txt))"
    grep -qF -- "$text" err.txt || fail "expected '$text' from: $* ($(<err.txt))"
    rm -f err.txt
    [[ $before == "$after" ]] || fail "left behind by $*: $before -> $after"
}

contains() {
    grep -qF -- "$2" "$1" || fail "expected '$2' in $1: $(<"$1")"
}

for i in $(seq 400); do
    printf 'line %d of a small text, long enough for some windows\n' $((i * i))
    [[ $((i % 100)) -ne 0 ]] || printf '<|endoftext|>\n'
done >text.txt
"$program" tokens --out text text.txt
"$program" tokens --out other --seed 7 --synthetic 5000 --vocab 300

# ---- routers and tables
"$program" route --method hash --fit text --vocab 257 --experts 8 --top-k 2 --scale 2.5 --out h.router
"$program" route --method random --experts 8 --top-k 2 --seed 3 --out r.router
"$program" route --router h.router --tokens text --seq-len 64 --out text.routes >summary
contains summary "windows of 64 tokens, E = 8, K = 2, scale 2.5"
contains summary "MaxVioGlobal: 0.0"
"$program" route --router r.router --tokens other --seq-len 64 --out other.routes
"$program" route --router h.router --tokens text --seq-len 64 --out again.routes
cmp text.routes again.routes || fail "the same inputs gave other bytes"
rm again.routes

# ---- inspect
"$program" inspect text.routes --tokens text >report
contains report "gate entropy: 0.6931 nats per token (ln K = 0.6931)"
contains report "MaxVio per window: mean"
contains report "verified: every row, histogram and hash"
contains report "router hash: $("$program" inspect h.router --json | sed -n 's/.*"router_hash": "\(.*\)"/\1/p')"
"$program" inspect text.routes >report
contains report "token hashes not checked"
"$program" inspect text.routes --json >report
contains report '"experts_per_token": 2'
"$program" inspect text >report
contains report "documents: 4"
grep -qE '^unigram entropy: [0-9]+\.[0-9]{4} nats per token, [0-9]+\.[0-9]{4} nats per byte$' report ||
    fail "no unigram entropy in: $(<report)"
"$program" inspect text.idx | cmp - report || fail "text.idx and text differ"
"$program" inspect text.bin | cmp - report || fail "text.bin and text differ"
contains report "format: Megatron pair"
# The same tokens as an llm.c shard: header of 256 x i32 (magic 20240520, version 1, count), then u16 as in the pair.
count=$("$program" inspect text --json | sed -n 's/.*"tokens": \([0-9]*\).*/\1/p')
{
    printf '\x88\xd8\x34\x01\x01\0\0\0'
    printf "\\x$(printf %02x $((count & 255)))\\x$(printf %02x $((count >> 8 & 255)))\\x$(printf %02x $((count >> 16)))\\0"
    head -c 1012 /dev/zero
    cat text.bin
} >shard.bin
"$program" inspect shard >report
contains report "format: llm.c shard"
contains report "documents: 1"
"$program" inspect shard.bin | cmp - report || fail "shard.bin and shard differ"
"$program" route --router h.router --tokens shard.bin --seq-len 64 --out shard.routes >report
contains report "$(grep 'table hash' summary)"
cat >shard.json <<'END'
{"run": {"dir": "shard.run"},
 "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2},
 "data": {"train": [{"tokens": "shard.bin", "routes": "text.routes"}], "seq_len": 64},
 "optimizer": {"lr": 1e-3},
 "train": {"steps": 1, "micro_batch_windows": 2, "global_batch_windows": 2}}
END
"$program" train shard.json >report 2>&1 || fail "training on a shard failed: $(<report)"
"$program" train shard.json --set 'data.train[0].tokens=text' --set run.dir=pair.run >pair.report 2>&1
[[ $(grep 'parameter hash' report) == "$(grep 'parameter hash' pair.report)" ]] || fail "a shard trained to other weights"
rm -r shard.run pair.run
"$program" inspect other >report
contains report "largest id: 299"
grep -qE '^unigram entropy: [0-9.]+ nats per token$' report || fail "no unigram entropy in: $(<report)"
# 750 a, 250 b and one end of document: the entropy per byte by hand.
printf 'aaab%.0s' $(seq 250) >two.txt
"$program" tokens --out two two.txt
"$program" inspect two --json >report
nats=$(sed -n 's/.*"unigram_nats_per_byte": \([0-9.]*\).*/\1/p' report)
awk -v n="$nats" 'BEGIN {
    t = 1001; e = -(750 * log(750 / t) + 250 * log(250 / t) + log(1 / t)) / 1000
    exit !(n > e - 1e-6 && n < e + 1e-6) }' || fail "unigram entropy $nats of a text of 750 a and 250 b"

# ---- command lines
expect 2 "either --method" "$program" route
expect 2 "both" "$program" route --method hash --router h.router
expect 2 "hash or random" "$program" route --method magic
expect 2 "expected --fit" "$program" route --method hash --vocab 257 --experts 8 --top-k 2 --out x.router
expect 2 "expected no --seed" "$program" route --method hash --fit text --vocab 257 --experts 8 --top-k 2 --seed 1 \
    --out x.router
expect 2 "--top-k" "$program" route --method random --experts 8 --top-k 9 --seed 1 --out x.router
expect 2 "--experts" "$program" route --method random --experts 4097 --top-k 2 --seed 1 --out x.router
expect 2 "--scale" "$program" route --method random --experts 8 --top-k 2 --seed 1 --scale 0 --out x.router
expect 2 "expected a file" "$program" inspect
expect 2 "only with a route table" "$program" inspect h.router --tokens text

expect 2 "another file than the input h.router" "$program" route --router h.router --tokens text --seq-len 64 \
    --out ./h.router
expect 2 "another file than the input text.bin" "$program" route --router h.router --tokens text --seq-len 64 \
    --out text.bin
expect 2 "another file than the input text.idx" "$program" route --method hash --fit text --vocab 257 --experts 8 \
    --top-k 2 --out text.idx

# ---- data
expect 65 "none.idx" "$program" route --method hash --fit none --vocab 257 --experts 8 --top-k 2 --out x.router
expect 65 "text.bin" "$program" route --method hash --fit text --vocab 64 --experts 8 --top-k 2 --out x.router
expect 65 "none.router" "$program" route --router none.router --tokens text --seq-len 64 --out x.routes
expect 65 "router file" "$program" route --router text.routes --tokens text --seq-len 64 --out x.routes
expect 65 "other.bin" "$program" route --router h.router --tokens other --seq-len 64 --out x.routes
expect 65 "smaller --seq-len" "$program" route --router h.router --tokens text --seq-len 1000000 --out x.routes
expect 74 "nowhere" "$program" route --router h.router --tokens text --seq-len 64 --out nowhere/x.routes
expect 65 "none.routes" "$program" inspect none.routes
expect 65 "got none of them" "$program" inspect text.txt
expect 65 "tokens" "$program" inspect text.routes --tokens other

# A changed gate, a cut file and a swapped token file are each named.
cp text.routes bad.routes
printf '\377' | dd of=bad.routes bs=1 seek=$(($(stat -c %s bad.routes) - 40)) conv=notrunc status=none
expect 65 "bad.routes: window" "$program" inspect bad.routes
head -c 2000 text.routes >bad.routes
expect 65 "cut short" "$program" inspect bad.routes
tr a b <text.txt >changed.txt
"$program" tokens --out changed changed.txt
expect 65 "not a pair" "$program" inspect text.routes --tokens changed

rm -rf "$work"
