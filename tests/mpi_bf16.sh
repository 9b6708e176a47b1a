#!/bin/bash
# Training in bf16, with a stand-in for the CPU's products: checkpoints hold fp32, a resumed run has the bits of one that
# never stopped, sharded weights and moments and recomputation change no bit, the loss follows that of fp32.
set -euo pipefail
binary=$BF16_BINARY
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)

die() {
    echo "FAILED: $*"
    exit 1
}
run() { # RANKS EP DIR [ARGUMENT...]: output in DIR.out and DIR.err
    local n=$1 ep=$2 dir=$3
    shift 3
    "${launch[@]}" -n "$n" "$binary" train "$PWD/c.json" --set run.dir="$dir" --set parallel.expert_parallel_size="$ep" \
        "$@" >"$dir.out" 2>"$dir.err"
}
train() { run "$@" || die "training $*: $(cat "$3.err")"; }
hash_of() { tail -1 "$1.out" | grep -E '^parameter hash [0-9a-f]{32}$' || die "no parameter hash: $(cat "$1.err")"; }
same() { [ "$(hash_of "$1")" = "$(hash_of "$2")" ] || die "$1 and $2 end with the same bits"; }
loss() { grep '"step":40,' "$1/metrics.jsonl" | grep -oE '"loss":[0-9.e+-]+' | sed 's/.*://'; }

"$binary" tokens --synthetic 60000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
"$binary" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router >/dev/null 2>&1
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes >/dev/null 2>&1
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 16, "use_qk_norm": true},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 32},
  "optimizer": {"lr": 3e-3, "warmup_steps": 5, "decay_steps": 40},
  "train": {"steps": 40, "micro_batch_windows": 2, "global_batch_windows": 16, "dtype": "bf16"},
  "checkpoint": {"every_steps": 10}
}
JSON

train 2 2 whole
grep -q '"dtype": "BF16"' whole/environment.json || die "the storage type is recorded"
train 2 2 parts --set train.steps=20
train 2 2 parts
grep -q 'going on from' parts.err || die "the second part goes on from the first"
same whole parts
train 2 2 unsharded --set parallel.zero=0
same whole unsharded
train 2 2 recomputed --set train.recompute=block
same whole recomputed

# ---- four ranks that share out dense parameters and experts, or do not: the same files (mpi_4_model: every layout)
train 4 2 shares --set train.steps=10
train 4 2 wholes --set train.steps=10 --set parallel.zero=0
same shares wholes
for file in shares/checkpoints/step-00000010/model*; do
    cmp "$file" "wholes/checkpoints/step-00000010/${file##*/}" || die "one checkpoint in both"
done
# ---- and each goes on as the other, on other ranks
train 2 1 shares --set train.steps=15 --set parallel.zero=0
train 2 1 wholes --set train.steps=15 --set parallel.zero=1
same shares wholes

header=$(head -c 20000 whole/model.safetensors | tr -d '\0')
[[ $header == *'"F32"'* && $header != *'"BF16"'* ]] || die "the weights that are saved are fp32"

train 1 1 fp32 --set train.dtype=fp32
awk -v a="$(loss whole)" -v b="$(loss fp32)" 'BEGIN { exit !(a > 0 && b > 0 && a / b > 0.99 && a / b < 1.01) }' ||
    die "the loss follows fp32: $(loss whole) against $(loss fp32)"
[ "$(hash_of whole)" != "$(hash_of fp32)" ] || die "bf16 is not fp32"

code=0
run 2 2 parts --set train.dtype=fp32 --set train.steps=50 || code=$?
[ $code -eq 64 ] || die "another storage type: code $code, $(cat parts.err)"
grep -qF 'train.dtype: expected "bf16" as in the checkpoint, got "fp32"' parts.err || die "the key is named: $(cat parts.err)"
train 2 2 parts --set train.dtype=fp32 --set train.steps=50 --override train.dtype
echo "bf16 trains"
