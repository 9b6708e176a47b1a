#!/bin/bash
# bf16 where oneDNN has no products for it: refused with the way out, before anything is created; but what another machine
# would need is said. The library is told to use no more than AVX2, so this holds on every x86.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
. "$SOURCE_DIR/tests/command.sh"
export ONEDNN_MAX_CPU_ISA=AVX2
[[ $(uname -m) == x86_64 ]] || { echo "skipped: the instruction sets are those of x86-64" && exit 77; }

expect 0 tokens --synthetic 5000 --vocab 257 --seed 1 --out t
expect 0 route --method random --seed 1 --experts 8 --top-k 2 --out r.router
expect 0 route --router r.router --tokens t --seq-len 32 --out t.routes
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 32},
  "optimizer": {"lr": 1e-3},
  "train": {"steps": 2, "micro_batch_windows": 2, "global_batch_windows": 8, "dtype": "bf16"}
}
JSON
refused() {
    expect 69 "$@"
    grep -qF 'train.dtype: expected a CPU for which oneDNN has bf16 products (AVX-512 with BW, VL and DQ), got AVX2' err ||
        fail "$*: the reason is given"
    grep -qF 'use train.dtype "fp32"' err || fail "$*: fp32 is named"
    [ ! -e run ] || fail "$*: nothing is created"
}
refused train c.json
refused train c.json --dry-run
memory() { sed -n "s/^  $1 *\([0-9.]*\) KiB.*/\1/p" out; }
for ranks in 1 4; do
    expect 0 train c.json --dry-run --ranks $ranks --memory 1
    grep -q '^time: not measured: ' out || fail "ranks elsewhere: no time is measured"
    grep -q "^$ranks rank.*BF16" out || fail "ranks elsewhere: bf16 is named: $(<out)"
    masters[ranks]=$(memory 'fp32 master weights') rounded[ranks]=$(memory 'bf16 weights')
done
grep -q 'once to its sum (4 bytes), once back (2)' out || fail "weights travel rounded: $(<out)"
awk -v a="${masters[1]}" -v b="${masters[4]}" -v c="${rounded[1]}" \
    'BEGIN { exit !(b > 0 && a > 3.9 * b && a < 4.1 * b && a > 1.9 * c && a < 2.1 * c) }' ||
    fail "four ranks share the masters: ${masters[1]} and ${masters[4]} KiB, copies of ${rounded[1]} KiB"
expect 0 train c.json --dry-run --ranks 4 --set parallel.zero=0
awk -v a="${masters[1]}" -v b="$(memory 'fp32 master weights')" 'BEGIN { exit !(a > 0.99 * b && a < 1.01 * b) }' ||
    fail "without sharding the masters stay whole: $(memory 'fp32 master weights') KiB"
refused train c.json --dry-run --set parallel.zero=0
expect 0 train c.json --set train.dtype=fp32
refused_eval=(eval c.json --weights run/model.safetensors --set 'data.valid=[{"tokens": "t", "routes": "t.routes"}]')
expect 69 "${refused_eval[@]}"
grep -qF 'use train.dtype "fp32"' err || fail "eval: fp32 is named"
expect 0 "${refused_eval[@]}" --set train.dtype=fp32
echo "bf16 is refused where the CPU lacks it"
