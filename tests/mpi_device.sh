#!/bin/bash
# Two ranks whose memory neither host code nor MPI can touch: the same bits as on the CPU in both layouts, routes from
# tables, learned and made online; copies and waits are said.
set -euo pipefail
cpu=$1 work=$2 device=$DEVICE_BINARY tool=$BINARY_DIR/tests/grouter_tool
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)
die() {
    echo "FAILED: $*"
    exit 1
}
train() { # BINARY EP CONFIG DIR [ARGUMENT...]
    local binary=$1 ep=$2 config=$3 dir=$4
    shift 4
    "${launch[@]}" -n 2 "$binary" train "$config" --set run.dir="$dir" --set parallel.expert_parallel_size="$ep" "$@" \
        >"$dir.out" 2>"$dir.err" || die "$dir: $(cat "$dir.err")"
}
hash_of() { grep -E '^parameter hash [0-9a-f]{32}$' "$1.out" || die "no parameter hash: $(cat "$1.err")"; }

"$cpu" tokens --synthetic 12000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
"$cpu" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router >/dev/null 2>&1
"$cpu" route --router h.router --tokens t --seq-len 32 --out t.routes >/dev/null 2>&1
"$tool" g.st 3 8 2 1 causal
config() { # ROUTING TRAIN
    cat <<JSON
{"run": {"dir": "run"},
 "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
           "intermediate_size": 32, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_experts": 8,
           "num_experts_per_tok": 2},
 "routing": $1,
 "data": {"train": [{"tokens": "t"$2}], "seq_len": 32},
 "optimizer": {"lr": 3e-3, "decay_steps": 6},
 "train": {"steps": 6, "micro_batch_windows": 2, "global_batch_windows": 8},
 "checkpoint": {"every_steps": 3}}
JSON
}
config '{}' ', "routes": "t.routes"' >table.json
config '{"source": "learned", "aux_loss_coef": 0.01}' '' >learned.json
config '{"source": "online", "grouter": "g.st"}' '' >online.json
for ep in 1 2; do
    for source in table learned online; do
        train "$cpu" $ep $source.json $source-$ep-cpu
        train "$device" $ep $source.json $source-$ep-device
        [ "$(hash_of $source-$ep-cpu)" = "$(hash_of $source-$ep-device)" ] || die "$source, expert parallel $ep: other weights"
        grep -qE 'backend double: [0-9]+ copies to the host and [0-9]+ waits' $source-$ep-device.err ||
            die "$source, expert parallel $ep: waits are said: $(cat $source-$ep-device.err)"
    done
    train "$BF16_BINARY" $ep table.json bf16-$ep-cpu --set train.dtype=bf16
    train "$device" $ep table.json bf16-$ep-device --set train.dtype=bf16
    [ "$(hash_of bf16-$ep-cpu)" = "$(hash_of bf16-$ep-device)" ] || die "bf16, expert parallel $ep: other weights"
    # What is exchanged beside backward and forward, layer by layer, has the bits of what is exchanged between them.
    export DEVICE_DOUBLE_QUEUES=1
    train "$device" $ep table.json beside-$ep
    train "$device" $ep table.json beside-bf16-$ep --set train.dtype=bf16
    unset DEVICE_DOUBLE_QUEUES
    [ "$(hash_of table-$ep-cpu)" = "$(hash_of beside-$ep)" ] || die "beside, expert parallel $ep: other weights"
    [ "$(hash_of bf16-$ep-cpu)" = "$(hash_of beside-bf16-$ep)" ] || die "beside, bf16, expert parallel $ep: other weights"
done
# ---- a checkpoint of one layout and kind of memory resumes in another
train "$device" 2 table.json moved --set train.steps=3
train "$cpu" 2 table.json moved
[ "$(hash_of moved)" = "$(hash_of table-2-cpu)" ] || die "a checkpoint of a device goes on here"
echo "two ranks train on memory that neither the host nor MPI can touch"
