#!/bin/bash
# Ranks that are here give the answer that was given for them when they were not: the same memory, the same messages.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"
mpi() {
    local n=$1
    shift
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader -n "$n" "$binary" "$@"
}
die() {
    echo "FAILED: $*"
    exit 1
}

"$binary" tokens --synthetic 20000 --vocab 257 --seed 1 --out t &>log || die "$(<log)"
"$binary" route --method random --experts 8 --top-k 2 --seed 1 --out h.router &>log || die "$(<log)"
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes &>log || die "$(<log)"
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
            "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 32},
  "optimizer": {"lr": 1e-3},
  "train": {"steps": 10, "micro_batch_windows": 2, "global_batch_windows": 16},
  "parallel": {"expert_parallel_size": 4}
}
JSON

"$binary" train c.json --dry-run --ranks 4 >elsewhere 2>log || die "$(<log)"
mpi 4 train c.json --dry-run >here 2>log || die "$(<log)"
grep -q '^time of 1000 steps' here || die "expected a measured time in: $(<here)"
grep -q '^time: not measured: these ranks are not here' elsewhere || die "expected no measured time in: $(<elsewhere)"
diff <(sed '/^time/,$d' elsewhere) <(sed '/^time/,$d' here) || die "the same ranks, here and elsewhere, differ"
grep -q 'dispatch and combine .* from the route tables' here || die "expected rows of the tables in: $(<here)"

# Other ranks than those that were started.
mpi 2 train c.json --dry-run --ranks 4 >elsewhere 2>log || die "$(<log)"
diff <(sed '/^time/,$d' elsewhere) <(sed '/^time/,$d' here) || die "asked on two ranks, the answer for four differs"

# Whichever rank needs most, its table is the one that is printed.
for seed in 1 2 3; do
    "$binary" route --method random --experts 8 --top-k 2 --seed $seed --out h.router &>log || die "$(<log)"
    "$binary" route --router h.router --tokens t --seq-len 32 --out s$seed.routes &>log || die "$(<log)"
    own=(--set "data.train=[{\"tokens\": \"t\", \"routes\": \"s$seed.routes\"}]" --set parallel.expert_parallel_size=2 --dry-run)
    mpi 2 train c.json "${own[@]}" >here 2>log || die "routes of seed $seed: $(<log)"
    "$binary" train c.json "${own[@]}" --ranks 2 >elsewhere 2>log || die "$(<log)"
    diff <(sed '/^time/,$d' elsewhere) <(sed '/^time/,$d' here) || die "the same two ranks, here and elsewhere, differ"
done

# A refusal is agreed by all ranks and printed once.
code=0
mpi 2 train c.json --set parallel.expert_parallel_size=2 --set model.hidden_size=32768 --set model.head_dim=512 \
    --set model.moe_intermediate_size=65536 >out 2>err || code=$?
[ "$code" -eq 69 ] || die "expected 69 for a model that cannot fit, got $code: $(<err)"
[ "$(grep -c 'E69\] memory: ' err)" -eq 1 ] || die "expected one report in: $(<err)"
grep -q 'for 2 ranks' err || die "expected both ranks of this host in: $(<err)"
[ ! -e run ] || die "a refused run made a run folder"
echo "dry run over MPI ok"
