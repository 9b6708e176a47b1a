#!/bin/bash
# Source models end to end: a run with learned routers needs no route tables, repeats and resumes bit for bit, equals one
# rank, and is evaluated; learned gates on a hash's experts likewise.
set -euo pipefail
binary=$1
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
train() { # RANKS EP CONFIG DIR [ARGUMENT...]: output in DIR.out and DIR.err
    local n=$1 ep=$2 config=$3 dir=$4
    shift 4
    "${launch[@]}" -n "$n" "$binary" train "$config" --set run.dir="$dir" --set parallel.expert_parallel_size="$ep" "$@" \
        >"$dir.out" 2>"$dir.err"
}
hash_of() { tail -1 "$1.out" | grep -E '^parameter hash [0-9a-f]{32}$' || die "no parameter hash: $(cat "$1.err")"; }
value() { # DIR KEY STEP: a number from metrics.jsonl
    grep -E "\"step\":$3," "$1/metrics.jsonl" | grep -oE "\"$2\":[-+0-9.eE]+" | sed 's/.*://'
}
near() { awk -v a="$1" -v b="$2" -v r="$3" 'BEGIN { d = a - b; m = b < 0 ? -b : b; exit !((d < 0 ? -d : d) <= r * m) }'; }

"$binary" tokens --synthetic 20000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
"$binary" tokens --synthetic 3000 --vocab 257 --seed 2 --out v >/dev/null 2>&1
"$binary" tokens --synthetic 20000 --vocab 257 --seed 9 --out other >/dev/null 2>&1
"$binary" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router >/dev/null 2>&1
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes >/dev/null 2>&1
"$binary" route --router h.router --tokens v --seq-len 32 --out v.routes >/dev/null 2>&1
config() { # ROUTING TRAIN VALID
    cat <<JSON
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,
            "intermediate_size": 32, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_experts": 8,
            "num_experts_per_tok": 2},
  "routing": $1,
  "data": {"train": [$2], "valid": [$3], "seq_len": 32},
  "optimizer": {"lr": 3e-3},
  "train": {"steps": 12, "micro_batch_windows": 2, "global_batch_windows": 8},
  "checkpoint": {"every_steps": 4},
  "eval": {"windows": 20}
}
JSON
}
config '{"source": "learned", "aux_loss_coef": 0.01, "z_loss_coef": 0.001}' '{"tokens": "t"}' '{"tokens": "v"}' >learned.json
config '{"gates": "learned", "scale": 2.5}' '{"tokens": "t", "routes": "t.routes"}' '{"tokens": "v", "routes": "v.routes"}' \
    >gates.json

for name in learned gates; do
    train 2 2 $name.json $name || die "$name: $(cat $name.err)"
    whole=$(hash_of $name)
    grep -q "$([ $name = learned ] && echo 'learned, top 2 of 8' || echo 'from tables, 2 of 8')" $name.err ||
        die "$name: the routing is said"
    awk -v a="$(value $name loss 1)" -v b="$(value $name loss 12)" 'BEGIN { exit !(b < a - 0.2) }' || die "$name: the loss falls"

    # Stopped half-way and taken up: the same bits.
    train 2 2 $name.json $name-half --set train.steps=8 --set optimizer.decay_steps=12 || die "$name-half: $(cat $name-half.err)"
    train 2 2 $name.json $name-half --set optimizer.decay_steps=12 || die "$name-half again: $(cat $name-half.err)"
    grep -q 'going on from .*step-00000008' $name-half.err || die "$name: it goes on"
    [ "$(hash_of $name-half)" = "$whole" ] || die "$name: a resumed run ends with the bits of one that was not"

    # Recomputation: the same bits; one rank and unsharded moments: the same first step.
    train 2 2 $name.json $name-block --set train.recompute=block || die "$name-block: $(cat $name-block.err)"
    [ "$(hash_of $name-block)" = "$whole" ] || die "$name: recomputation changes no bit"
    train 1 1 $name.json $name-one --set parallel.zero=0 || die "$name-one: $(cat $name-one.err)"
    near "$(value $name-one loss 1)" "$(value $name loss 1)" 1e-5 || die "$name: one rank has the same first loss"
    near "$(value $name-one grad_norm 1)" "$(value $name grad_norm 1)" 1e-5 || die "$name: and the same gradient norm"
    near "$(value $name-one z_loss 1)" "$(value $name z_loss 1)" 1e-5 || die "$name: and z loss"

    # Evaluation of the weights says what training said, on another number of ranks too.
    "${launch[@]}" -n 2 "$binary" eval $name.json --weights $name/model.safetensors \
        --set parallel.expert_parallel_size=2 >eval.out 2>eval.err || die "eval: $(cat eval.err)"
    near "$(awk '$1 == "loss" { print $2 }' eval.out)" "$(value $name loss_valid 12)" 1e-6 || die "$name: eval agrees"
    "$binary" inspect $name/model.safetensors >inspect.out || die "inspect"
    [ "$(grep -c 'mlp.gate.weight F32 \[8, 32\]' inspect.out)" -eq 2 ] || die "$name: two layers have routers"
done

# The log has what only learned routers have.
for key in aux_loss z_loss maxvio maxvio_max; do
    [ -n "$(value learned $key 3)" ] || die "$key is logged"
done
near "$(value learned-one aux_loss 1)" "$(value learned aux_loss 1)" 1e-6 || die "the aux loss is one of windows"
near "$(value learned aux_loss 12)" "$(value learned aux_loss 1)" 0.5 || die "losses of routers are those of one step"
near "$(value learned-one maxvio 1)" "$(value learned maxvio 1)" 1e-6 || die "loads are those of the global batch"
[ -z "$(value gates aux_loss 3)$(value gates maxvio_max 3)" ] || die "a table's experts have no aux loss"
awk -v m="$(value learned maxvio 5)" -v x="$(value learned maxvio_max 5)" 'BEGIN { exit !(m >= 0 && x >= m) }' ||
    die "the fullest layer is at least the mean"

# What would make it another run is refused.
refused() { # PATTERN ARGUMENT...
    local pattern=$1 code=0
    shift
    train 2 2 learned.json learned "$@" || code=$?
    [ $code -eq 64 ] && grep -qE "$pattern" learned.err || die "$* gives $code: $(cat learned.err)"
}
refused 'routing.aux_loss_coef: expected 0.01 as in the checkpoint, got 0.02' --set routing.aux_loss_coef=0.02
refused 'routing.scale: expected 1 as in the checkpoint, got 2' --set routing.scale=2
refused 'model.norm_topk_prob: expected true' --set model.norm_topk_prob=false
refused 'data.train\[0\].content: expected 20000 tokens, ends .* as in the checkpoint, got 20000 tokens, ends ' \
    --set data.train[0].tokens=other
train 2 2 learned.json learned --set routing.aux_loss_coef=0.02 --override routing.aux_loss_coef --set train.steps=13 ||
    die "an override: $(cat learned.err)"
grep -q 'warning: overridden: changed since the checkpoint: routing.aux_loss_coef' learned.err || die "it is said"

# What it would need: expected rows, and all that the worst choice asks for.
"${launch[@]}" -n 2 "$binary" train learned.json --dry-run --set parallel.expert_parallel_size=2 >dry.out 2>dry.err ||
    die "dry run: $(cat dry.err)"
for line in '^  routers +512$' '^memory of a rank: plans at worst' 'dispatch and combine .*at uniform routing: ' \
    '^  gates .*8 bytes a row, out and back in 2 layers' '^  choices .*4 bytes a token to 1 ranks in 2 layers' \
    '^  rows and gates at worst ' '^time of 1000 steps'; do
    grep -qE "$line" dry.out || die "dry run lacks: $line: $(cat dry.out)"
done
! grep -q 'route tables' dry.out || die "a dry run speaks of route tables"
rm v.bin v.idx
"$binary" train learned.json --dry-run --ranks 4 --set parallel.expert_parallel_size=4 >dry.out 2>dry.err ||
    die "dry run for other ranks: $(cat dry.err)"
grep -q '^not checked: v.idx is not here' dry.out || die "absent tokens are said"
! grep -q 'not checked: *is not here' dry.out || die "an absent table is none"
echo "learned routers train, resume and evaluate"
