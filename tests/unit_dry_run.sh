#!/bin/bash
# What a run would need is said without running it, for this machine and for others, and what cannot fit is refused
# before anything is allocated or created.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"

source "$SOURCE_DIR/tests/command.sh"
on_stdout() { grep -qE -- "$1" out || fail "expected on stdout: $1"; }
on_stderr() { grep -qE -- "$1" err || fail "expected on stderr: $1"; }

# ---- the paper's models, for a machine that is not here
expect 0 train "$SOURCE_DIR/configs/paper/tiny-qwen3.json" --dry-run --ranks 8 --memory 141
on_stdout 'matrices and embeddings +530,178,048$'
on_stdout 'with norm weights +530,184,576$'
on_stdout '^8 ranks, expert parallel 8, data parallel 1'
on_stdout '^not checked: data/c4-train.idx is not here'
on_stdout '^not checked: data/c4-valid.routes is not here'
on_stdout '^time: not measured: '
expect 0 train "$SOURCE_DIR/configs/paper/mini-qwen3.json" --dry-run --ranks 8 --memory 141
on_stdout 'matrices and embeddings +2,810,445,824$'
on_stdout 'with norm weights +2,810,483,712$'
on_stdout '85\.96 % of matrices and embeddings'
on_stdout '6 x 390,201,344 \+ 12 x 16 x 16 x 128 x 4096 / 2'
expect 69 train "$SOURCE_DIR/configs/paper/mini-qwen3.json" --dry-run --ranks 8 --memory 24
on_stdout '^memory of a rank'
on_stderr 'E69\] memory: expected at most 24.00 GiB \(--memory\), got a need of .* activations .* AdamW moments'
on_stderr 'lower train.micro_batch_windows'
! grep -q 'parallel.zero' err || fail "moments that are sharded already are advised to be"
expect 69 train "$SOURCE_DIR/configs/paper/mini-qwen3.json" --dry-run --ranks 8 --memory 24 --set parallel.zero=0
on_stderr 'AdamW moments 5.19 GiB.*set parallel.zero to 1'

# ---- on a GPU attention takes scratch, by cuDNN a gradient for each score of at most 1 GiB at a time
gpu="--ranks 8 --memory 141 --set parallel.backend=cuda --set train.dtype=bf16"
# shellcheck disable=SC2086 # options without spaces
expect 0 train "$SOURCE_DIR/configs/paper/mini-qwen3.json" --dry-run $gpu
on_stdout '^  scratch of attention +1\.0[0-9] GiB'
# shellcheck disable=SC2086
expect 0 train "$SOURCE_DIR/configs/paper/mini-qwen3.json" --dry-run $gpu --set parallel.attention_kernels=flash
on_stdout '^  scratch of attention +[0-9.]+ MiB'

# ---- source, target and twins of the quick start use as many parameters per token, but for learned routers
for run in "" "--set routing.source=learned --set data.train=[{\"tokens\":\"t\"}] --set data.valid=[] --set eval.every_steps=0"; do
    # shellcheck disable=SC2086 # options without spaces
    expect 0 train "$SOURCE_DIR/configs/quickstart/train.json" --dry-run --ranks 2 --memory 8 $run
    on_stdout 'active per token +(622,720|630,912) '
done
expect 0 train "$SOURCE_DIR/configs/quickstart/source.json" --dry-run --ranks 2 --memory 8
on_stdout 'active per token +639,104 '
expect 0 train "$SOURCE_DIR/configs/paper/small-target.json" --dry-run --ranks 2 --memory 8
on_stdout 'active per token +622,720 '

# ---- rules hold for the ranks asked about
expect 64 train "$SOURCE_DIR/configs/paper/tiny-qwen3.json" --dry-run --ranks 3
on_stderr 'parallel.expert_parallel_size = 8 must divide the number of ranks = 3'
expect 2 train c.json --dry-run --ranks 0
on_stderr 'E2\] --ranks: expected an integer in \[1, 65536\], got "0"'
expect 2 train c.json --dry-run --memory nan
on_stderr 'E2\] --memory: expected a number in .*, got "nan"'
expect 2 train c.json --ranks 2
on_stderr 'E2\] --ranks: expected only together with --dry-run'
expect 2 train c.json --memory 2
on_stderr 'E2\] --memory: expected only together with --dry-run'

# ---- with data
"$binary" tokens --synthetic 20000 --vocab 257 --seed 1 --out t &>err || fail tokens
"$binary" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router &>err || fail router
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes &>err || fail routes
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,
            "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
            "intermediate_size": 64},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 32},
  "optimizer": {"lr": 1e-3},
  "train": {"steps": 10, "micro_batch_windows": 2, "global_batch_windows": 8}
}
JSON
expect 0 train c.json --dry-run
on_stdout 'largest plans of the run, from the route tables'
on_stdout '0.13 epochs of 624 windows'
on_stdout '^time of 1000 steps: .*, of the run: '
on_stdout 'measured here: 4 micro-batches of'
on_stdout 'dispatch and combine +0.00 KiB'
[ ! -e run ] || fail "a dry run made a run folder"
expect 0 train c.json --dry-run --ranks 4 --set parallel.expert_parallel_size=2
on_stdout 'from the route tables: [0-9]+ rows x 128 bytes x 8 transfers over 2 layers'
on_stdout 'time: not measured: these ranks are not here'
expect 0 train c.json --dry-run --ranks 4 --set parallel.expert_parallel_size=2 --set train.recompute=experts
on_stdout 'rows x 128 bytes x 9 transfers over 2 layers'
activations() { # KiB with train.recompute=$1
    expect 0 train c.json --dry-run --set train.recompute="$1"
    sed -n 's/^  activations *\([0-9]*\)[0-9.]* KiB$/\1/p' out
}
kept=$(activations none) half=$(activations experts) least=$(activations block)
[ "$kept" -gt "$half" ] && [ "$half" -gt "$least" ] || fail "activations with recomputation: $kept, $half, $least KiB"
expect 0 train c.json --dry-run --ranks 1 --memory 1
on_stdout '^time of 1000 steps'

# ---- absent and damaged data
expect 65 train c.json --dry-run --set data.train[0].routes=none.routes
expect 0 train c.json --dry-run --ranks 1 --set data.train[0].routes=none.routes
on_stdout '^not checked: none.routes is not here'
head -c 100 t.routes >short.routes
expect 65 train c.json --dry-run --ranks 2 --set data.train[0].routes=short.routes
expect 65 train c.json --dry-run --ranks 2 --set data.train[0].routes=short.routes --set data.train[1].tokens=none \
    --set data.train[1].routes=none.routes
on_stderr 'short.routes'

# ---- ZeRO-1 shards the moments
moments() { sed -n 's/^  AdamW moments *\([0-9.]*\) KiB$/\1/p' out; }
expect 0 train c.json --dry-run --ranks 4
sharded=$(moments)
expect 0 train c.json --dry-run --ranks 4 --set parallel.zero=0
awk -v a="$sharded" -v b="$(moments)" 'BEGIN { exit !(a > 0 && b > 3.9 * a && b < 4.1 * a) }' ||
    fail "expected the moments of four ranks to be quarters: $sharded of $(moments) KiB"

# ---- a run that cannot fit is refused before anything exists
huge="--set model.hidden_size=32768 --set model.head_dim=512 --set model.num_hidden_layers=64 --set model.moe_intermediate_size=65536"
start_s=$SECONDS
# shellcheck disable=SC2086  # a list of arguments
expect 69 train c.json $huge
on_stderr 'E69\] memory: expected at most .* \((MemAvailable|cgroup limit)\), got a need of .* TiB for 1 rank; the largest'
on_stderr 'AdamW moments .* TiB, (weights|gradients) .* TiB.*make the model smaller'
[ ! -e run ] || fail "a refused run made a run folder"
# shellcheck disable=SC2086
expect 69 train c.json $huge --dry-run
on_stdout 'time: not measured: it does not fit this machine'
[ $((SECONDS - start_s)) -le 10 ] || fail "refusing took $((SECONDS - start_s)) s"
many="--set train.steps=10000000 --set checkpoint.every_steps=1 --set checkpoint.keep_last=1000000 --set checkpoint.keep_every=1"
# shellcheck disable=SC2086
expect 69 train c.json $many --dry-run
on_stderr 'E69\] run.dir: run: expected .* of free disk for 11000001 checkpoints, got '
# shellcheck disable=SC2086
expect 69 train c.json $many
on_stderr 'E69\] run.dir: run: expected .* of free disk for 11000001 checkpoints, got '
[ ! -e run ] || fail "a refused run made a run folder"
if ! grep -q 'GROUTER_SANITIZE:[A-Z]*=.*\(address\|thread\)' "$BINARY_DIR/CMakeCache.txt"; then # they map terabytes
    ulimit -v $((2 << 20))
    expect 69 train c.json --set model.hidden_size=2048 --set model.head_dim=512 --set model.moe_intermediate_size=4096
    on_stderr 'RLIMIT_AS'
fi
echo "dry run ok"
