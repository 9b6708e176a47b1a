#!/bin/bash
# A run that is stopped, killed, damaged, moved to other ranks or started twice: it goes on as if nothing had happened, or
# says why not.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
steps=60
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)

die() {
    echo "FAILED: $*"
    exit 1
}
train() { # RANKS EP DIR [ARGUMENT...]: output in DIR.out and DIR.err
    local n=$1 ep=$2 dir=$3
    shift 3
    "${launch[@]}" -n "$n" "$binary" train "$PWD/c.json" --set run.dir="$dir" --set parallel.expert_parallel_size="$ep" "$@" \
        >"$dir.out" 2>"$dir.err"
}
hash_of() { tail -1 "$1.out" | grep -E '^parameter hash [0-9a-f]{32}$' || die "no parameter hash: $(cat "$1.err")"; }
value() { grep -E "\"step\":$3," "$1/metrics.jsonl" | grep -oE "\"$2\":[-+0-9.eE]+" | sed 's/.*://'; }
# What of the log must be the same bits: everything but times and speeds.
log_of() { sed -E 's/,"(time|[a-z]+_ms|tokens_per_s|model_flops_per_s|peak_share|eta_s)":("[^"]*"|[^,}]*)//g' "$1/metrics.jsonl"; }
wait_for_step() { # DIR STEP
    local i
    for i in $(seq 600); do
        [ -e "$1/metrics.jsonl" ] && grep -q "\"step\":$2," "$1/metrics.jsonl" && return
        sleep 0.05
    done
    die "step $2 of $1 was never reached: $(cat "$1.err")"
}

"$binary" tokens --synthetic 60000 --vocab 257 --seed 1 --out t 2>/dev/null >/dev/null
"$binary" tokens --synthetic 5000 --vocab 257 --seed 2 --out v 2>/dev/null >/dev/null
"$binary" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router 2>/dev/null >/dev/null
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes 2>/dev/null >/dev/null
"$binary" route --router h.router --tokens v --seq-len 32 --out v.routes 2>/dev/null >/dev/null
"$binary" tokens --synthetic 60000 --vocab 257 --seed 9 --out other 2>/dev/null >/dev/null
"$binary" route --router h.router --tokens other --seq-len 32 --out other.routes 2>/dev/null >/dev/null
cat >c.json <<JSON
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 16, "use_qk_norm": true},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "valid": [{"tokens": "v", "routes": "v.routes"}], "seq_len": 32},
  "optimizer": {"lr": 3e-3, "warmup_steps": 5},
  "train": {"steps": $steps, "micro_batch_windows": 2, "global_batch_windows": 16},
  "checkpoint": {"every_steps": 10, "keep_last": 3},
  "eval": {"every_steps": 30, "windows": 20}
}
JSON

train 2 2 whole || die "an undisturbed run: $(cat whole.err)"
whole=$(hash_of whole)
grep -q 'durable' whole.err || die "a durable checkpoint is announced"

# Asked to stop: the step is finished and saved, 85; the same command goes on to the same bits.
train 2 2 asked &
pid=$!
wait_for_step asked 13
kill -USR1 "$(pgrep -P $pid mpirun || echo $pid)"
code=0
wait $pid || code=$?
[ $code -eq 85 ] || die "asked to stop: code $code, $(cat asked.err)"
grep -q 'asked to stop after step' asked.err || die "the last step is named: $(cat asked.err)"
train 2 2 asked || die "going on after a stop: $(cat asked.err)"
grep -q 'going on from' asked.err || die "going on is said"
[ "$(hash_of asked)" = "$whole" ] || die "a stopped run ends with the bits of one that was not"
cmp <(log_of whole) <(log_of asked) || die "the log of a stopped run equals that of one that was not"

# Asked twice: it leaves at once, and nothing is lost but the steps since the last checkpoint.
train 2 2 twice &
pid=$!
wait_for_step twice 23
launcher=$(pgrep -P $pid mpirun || echo $pid)
kill -USR1 "$launcher" && sleep 0.01 && kill -USR1 "$launcher" || true
code=0
wait $pid || code=$?
[ $code -eq 85 ] || [ $code -eq 0 ] || die "asked twice: code $code, $(cat twice.err)"
train 2 2 twice || die "going on after leaving at once: $(cat twice.err)"
[ "$(hash_of twice)" = "$whole" ] || die "a run that left at once ends with the bits of one that did not"

# Killed at once: the same, from the last checkpoint.
train 2 2 killed &
pid=$!
wait_for_step killed 27
pkill -KILL -f "$PWD/c.json --set run.dir=killed" || true
wait $pid || true
train 2 2 killed || die "going on after a kill: $(cat killed.err)"
[ "$(hash_of killed)" = "$whole" ] || die "a killed run ends with the bits of one that was not"

# Again after the end: nothing to do.
train 2 2 killed || die "a finished run started again: $(cat killed.err)"
grep -q 'nothing to do' killed.err || die "a finished run has nothing to do"
[ "$(hash_of killed)" = "$whole" ] || die "a finished run keeps its weights"

# The newest checkpoint is damaged: the one before it is taken, loudly.
cp -r whole damaged
victim=$(ls -d damaged/checkpoints/step-* | sort | tail -1)
printf '\252' | dd of="$(ls "$victim"/optim-* | head -1)" bs=1 seek=2000 conv=notrunc status=none
train 2 2 damaged || die "going on from an older checkpoint: $(cat damaged.err)"
grep -q 'warning:.*step-' damaged.err || die "damage is said: $(cat damaged.err)"
[ "$(hash_of damaged)" = "$whole" ] || die "from an older checkpoint to the same bits"

# Other ranks: equal to rounding.
rm -rf "$(ls -d whole/checkpoints/step-* | sort | tail -1)"
for layout in "4 4" "4 1" "1 1"; do
    read -r n ep <<<"$layout"
    rm -rf moved
    cp -r whole moved
    train "$n" "$ep" moved || die "going on with $n ranks, expert-parallel $ep: $(cat moved.err)"
    grep -q 'parallel.expert_parallel_size: 2 -> ' moved.err || [ "$ep" = 2 ] || die "the changed layout is listed"
    a=$(value whole loss $steps) b=$(value moved loss $steps)
    awk "BEGIN{d=($a)-($b); if (d<0) d=-d; exit !(d <= 1e-4*($a))}" || die "$n ranks: last loss $b instead of $a"
done

# What may not change, may with a word, or may.
rm -rf moved
cp -r whole moved
code=0
train 2 2 moved --set train.global_batch_windows=8 --set optimizer.lr=1e-3 || code=$?
[ $code -eq 64 ] && grep -q 'train.global_batch_windows: expected 16.*--override' moved.err || die "global batch: $code, $(cat moved.err)"
grep -q 'warning: changed since the checkpoint: optimizer.lr: 0.003 -> 0.001' moved.err || die "learning rate: $(cat moved.err)"
train 2 2 moved --set train.global_batch_windows=8 --override train.global_batch_windows || die "overridden: $(cat moved.err)"
rm -rf moved
cp -r whole moved
code=0
train 2 2 moved --set 'data.train[0].tokens=other' --set 'data.train[0].routes=other.routes' || code=$?
[ $code -eq 64 ] && grep -q 'data.train\[0\].content' moved.err || die "other data: code $code, $(cat moved.err)"
code=0
train 2 2 moved --set model.moe_intermediate_size=24 --override model.moe_intermediate_size || code=$?
[ $code -eq 66 ] || die "another model: code $code, $(cat moved.err)"

# Two runs in one folder.
train 2 2 busy --set train.steps=100000 &
pid=$!
wait_for_step busy 3
cp busy.err busy.first
code=0
"${launch[@]}" -n 1 "$binary" train c.json --set run.dir=busy --set parallel.expert_parallel_size=1 >second.out 2>second.err || code=$?
[ $code -eq 64 ] && grep -q 'locked by process' second.err || die "a second run in the folder: code $code, $(cat second.err)"
code=0
"${launch[@]}" -n 1 "$binary" train "$PWD/c.json" --fresh --set run.dir=busy --set parallel.expert_parallel_size=1 >second.out \
    2>second.err || code=$?
[ $code -eq 64 ] && grep -q 'locked by process' second.err || die "--fresh under a live run: code $code, $(cat second.err)"
[ ! -e busy.old-1 ] || die "a live run's folder was renamed"
pkill -KILL -f "$PWD/c.json --set run.dir=busy" || true
wait $pid || true
echo "stopped, killed, damaged, moved and doubled runs behave"
