#!/bin/bash
# The main job end to end on synthetic tokens: loss falls, evaluation agrees, a run repeats bit for bit, and every layout of
# ranks reaches the same loss.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
mpi() {
    local n=$1
    shift
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader -n "$n" "$binary" "$@"
}
die() {
    echo "FAILED: $*"
    exit 1
}
value() { # FILE KEY STEP: a number from metrics.jsonl
    grep -E "\"step\": ?$3," "$1/metrics.jsonl" | grep -oE "\"$2\": ?[-+0-9.eE]+" | sed 's/.*: *//'
}

"$binary" tokens --synthetic 60000 --vocab 257 --seed 1 --out t 2>/dev/null
"$binary" tokens --synthetic 5000 --vocab 257 --seed 2 --out v 2>/dev/null
"$binary" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router 2>/dev/null
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes 2>/dev/null
mpi 3 route --router h.router --tokens v --seq-len 32 --out v.routes 2>/dev/null
"$binary" route --router h.router --tokens v --seq-len 32 --out v1.routes 2>/dev/null
cmp v.routes v1.routes || die "three ranks write the route table of one"
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 16, "use_qk_norm": true},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "valid": [{"tokens": "v", "routes": "v.routes"}], "seq_len": 32},
  "optimizer": {"lr": 3e-3, "warmup_steps": 5},
  "train": {"steps": 20, "micro_batch_windows": 2, "global_batch_windows": 16},
  "eval": {"every_steps": 10, "windows": 37}
}
JSON

train() { # RANKS EP DIR [ARGUMENTS]
    local ranks=$1 ep=$2 dir=$3
    shift 3
    mpi "$ranks" train c.json --set run.dir="$dir" --set parallel.expert_parallel_size="$ep" "$@" >"$dir.out" 2>"$dir.err" ||
        { cat "$dir.err"; die "training on $ranks ranks, expert-parallel $ep $*"; }
}
train 1 1 r1
train 4 2 r42
train 4 2 again
train 2 2 r22
train 4 4 r44
train 4 1 r41
train 4 2 whole_moments --set parallel.zero=0
train 1 1 wide --set train.micro_batch_windows=16 # one micro-batch per step instead of eight
OMP_NUM_THREADS=2 train 1 1 threads
OMP_NUM_THREADS=2 train 1 1 threads_again

[ "$(tail -1 r42.out)" = "$(tail -1 again.out)" ] || die "the same layout twice gives the same bits"
[ "$(tail -1 threads.out)" = "$(tail -1 threads_again.out)" ] || die "two threads twice give the same bits"
tail -1 r1.out | grep -Eq '^parameter hash [0-9a-f]{32}$' || die "last line is the parameter hash: $(tail -1 r1.out)"

first=$(value r1 loss_valid 0)
last=$(value r1 loss_valid 20)
awk "BEGIN{exit !($last < $first - 0.2)}" || die "validation loss falls: $first -> $last"
same() { # RUN KEY STEP: as one rank has it, but for rounding
    local a b
    a=$(value r1 "$2" "$3") b=$(value "$1" "$2" "$3")
    [ -n "$a" ] && awk "BEGIN{d=($a)-($b); if (d<0) d=-d; exit !(d <= 1e-4*($a))}" ||
        die "$1: $2 of step $3 is $b, of one rank $a"
}
for r in r42 r22 r44 r41 wide threads whole_moments; do
    for step in 1 10 20; do same $r loss $step; done
    for step in 0 10 20; do same $r loss_valid $step; done # 37 windows fill no layout's micro-batches evenly
done
[ "$(wc -l <r1/metrics.jsonl)" -eq 21 ] || die "one metrics line per step and one before training"

# What the layouts kept beside the table can be looked at.
"$binary" inspect t.routes.touch2 2>/dev/null >touch.out || die "inspect of touch counts"
grep -qx 'expert-parallel ranks: 2' touch.out && grep -qx 'windows: 1874' touch.out ||
    die "touch counts of 1874 windows on 2 ranks: $(cat touch.out)"
table_hash=$("$binary" inspect t.routes 2>/dev/null | sed -n 's/^table hash: //p')
grep -qx "of the route table with hash: $table_hash" touch.out || die "touch counts of table $table_hash"
printf 'x' | dd of=t.routes.touch2 bs=1 seek=40 conv=notrunc status=none
code=0
"$binary" inspect t.routes.touch2 2>touch.err >/dev/null || code=$?
[ $code -eq 65 ] && grep -q 'checksum' touch.err || die "damaged touch counts: code $code, $(cat touch.err)"

# Evaluation of the saved weights gives the last validation loss, on another layout too.
for n in 1 2; do
    loss=$(mpi $n eval c.json --set run.dir=r42 --set parallel.expert_parallel_size=$n | awk '$1 == "loss" {print $2}')
    awk "BEGIN{d=$loss-$(value r42 loss_valid 20); if (d<0) d=-d; exit !(d < 1e-4)}" || die "eval on $n ranks gives $loss"
done

# A folder that is no run's is refused, --fresh renames an old run aside.
mkdir foreign
code=0
mpi 2 train c.json --set run.dir=foreign >again.out 2>again.err || code=$?
[ $code -eq 64 ] || die "a foreign folder is refused with 64, got $code"
[ "$(grep -c 'error\[E64\]' again.err)" -eq 1 ] || die "one rank reports: $(cat again.err)"
mpi 2 train c.json --set run.dir=r1 --set train.steps=1 --fresh >again.out 2>again.err || die "--fresh starts over"
[ -e r1.old-1/model.safetensors ] && [ -e r1/model.safetensors ] || die "--fresh renames the old run aside"

# One rank's comm under a launcher of two would be two runs in one folder.
code=0
mpi 2 train c.json --set run.dir=r0 --set parallel.comm=self >again.out 2>again.err || code=$?
[ $code -eq 64 ] && [ "$(grep -c 'parallel.comm' again.err)" -eq 1 ] || die "self on 2 ranks: code $code, $(cat again.err)"

# Wrong rank count: one message, the same code on all ranks.
code=0
mpi 3 train c.json --set run.dir=r3 >again.out 2>again.err || code=$?
[ $code -eq 64 ] && grep -q 'global_batch_windows' again.err || die "16 windows on 3 ranks: code $code, $(cat again.err)"
[ ! -e r3 ] || die "a refused run leaves a folder"
# A loss that stays without value is skipped three times, then all ranks leave together.
code=0
mpi 2 train c.json --set run.dir=wild --set optimizer.lr=10 --set optimizer.weight_decay=10 --set optimizer.schedule=constant \
    >wild.out 2>wild.err || code=$?
[ $code -eq 71 ] && [ "$(grep -c 'error\[E71\]' wild.err)" -eq 1 ] || die "diverging on 2 ranks: code $code, $(cat wild.err)"
echo "loss $first -> $last; all layouts agree"
