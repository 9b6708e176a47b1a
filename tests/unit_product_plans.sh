#!/bin/bash
# Products tuned once and read by runs, over the stand-ins for the CUDA runtime and cuBLAS: bench step writes the file,
# runs that read it end with the same bits, and say what is not in it.
set -euo pipefail
program=$BINARY_DIR/tests/double_train
work=$2
[ -x "$program" ] || { echo "skipped: there is no $program, which needs the CUDA toolkit"; exit 77; }
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"
binary=$program
source "$SOURCE_DIR/tests/command.sh"
on_stderr() { grep -qE -- "$1" err || fail "expected on stderr: $1"; }

expect 0 tokens --synthetic 4000 --vocab 257 --seed 1 --out t
expect 0 route --method random --experts 4 --top-k 2 --seed 5 --out r.router
expect 0 route --router r.router --tokens t --seq-len 32 --out t.routes
cat >c.json <<'JSON'
{
  "run": {"dir": "run", "seed": 7},
  "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
            "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 32},
  "optimizer": {"lr": 1e-3},
  "train": {"steps": 2, "micro_batch_windows": 2, "global_batch_windows": 4, "dtype": "bf16"},
  "checkpoint": {"every_steps": 1},
  "parallel": {"backend": "cuda"}
}
JSON

# ---- tuning
expect 0 bench step c.json --warm 1 --steps 1 --tune-products plans.json
on_stderr 'backend cuda: [0-9]+ shapes of products tuned, [1-9]'
n=$(grep -c '"algorithm"' plans.json)
cp plans.json kept.json
expect 69 bench step c.json --warm 1 --steps 1 --tune-products plans.json --set parallel.backend=cpu --set train.dtype=fp32
cmp plans.json kept.json || fail "a file of plans is changed by a command that fails"
expect 0 bench step c.json --warm 1 --steps 1 --set parallel.product_plans=plans.json
cmp plans.json kept.json || fail "a file of plans is changed by a command that reads it"

# ---- runs
for run in a b; do
    expect 0 train c.json --set run.dir=$run --set parallel.product_plans=plans.json
    on_stderr "backend cuda: $n products by the algorithms of plans.json"
    ! grep -q 'not in the file of plans' err || fail "products of the tuned steps are not in the file"
    grep '^parameter hash' out >$run.hash || fail "no parameter hash"
done
cmp a.hash b.hash || fail "two runs with the same plans differ"
expect 0 train c.json --set run.dir=a --set parallel.product_plans= --set train.steps=3
on_stderr 'parallel.product_plans'
expect 0 train c.json --set run.dir=c --set parallel.product_plans=plans.json --set train.micro_batch_windows=1
on_stderr 'is not in the file of plans'
on_stderr "shapes of products were not in the file of plans, which has $n"

# ---- another machine's
sed -i 's/"gpu": "double 0"/"gpu": "double 9"/' plans.json
expect 65 train c.json --set run.dir=d --set parallel.product_plans=plans.json
on_stderr 'E65\] parallel.product_plans: plans.json: expected plans for this GPU, "double 0", got ones for "double 9"; tune again'
[ ! -e d ] || fail "a run that was refused left its folder"
echo "products are tuned once, and runs that read the file repeat"
