#!/bin/bash
# Every command on a backend whose memory host code cannot touch (a double computes with the CPU's ops, and any touch ends
# the process): the same bits as on the CPU, through checkpoints written by either; and how often the host waits.
set -euo pipefail
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1
. "$SOURCE_DIR/tests/command.sh"
cpu=$1 device=$DEVICE_BINARY tool=$BINARY_DIR/tests/grouter_tool
hash_of() { grep -E '^(parameter|router) hash [0-9a-f]{32}$' "$1" || fail "no hash in $1"; }
losses() { grep -oE '"(step|loss|loss_valid|maxvio|maxvio_valid|grad_norm|aux_loss|z_loss|overlap|skipped)":[^,}]*' "$1/metrics.jsonl"; }
same_log() { diff <(losses "$1") <(losses "$2") >&2 || fail "$1 and $2: other losses"; }

# both NAME COMMAND CONFIG [ARGUMENT...]: in run folders NAME-cpu and NAME-device, with the same end and the same log
both() {
    local name=$1 command=$2 config=$3 first
    shift 3
    binary=$cpu expect 0 "$command" "$config" --set run.dir="$name-cpu" "$@"
    first=$(hash_of out)
    binary=$device expect 0 "$command" "$config" --set run.dir="$name-device" "$@"
    grep -q 'backend double, ' err || fail "$name: the backend is said"
    [ "$(hash_of out)" = "$first" ] || fail "$name: other results"
    same_log "$name-cpu" "$name-device"
}
waits() { grep -oE '[0-9]+ copies to the host and [0-9]+ waits' err || fail "no waits are said"; }

# ---- data, routes
binary=$cpu
expect 0 tokens --synthetic 12000 --vocab 257 --seed 1 --out t
expect 0 tokens --synthetic 1500 --vocab 257 --seed 2 --out v
expect 0 route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router
for f in t v; do expect 0 route --router h.router --tokens $f --seq-len 32 --out $f.routes; done
"$tool" g.st 3 8 2 1 causal
config() { # ROUTING TRAIN VALID
    cat <<JSON
{"run": {"dir": "run"},
 "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
           "head_dim": 8, "intermediate_size": 32, "first_k_dense_replace": 1, "moe_intermediate_size": 16,
           "num_experts": 8, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16, "use_qk_norm": true},
 "routing": $1,
 "data": {"train": [{"tokens": "t"$2}], "valid": [{"tokens": "v"$3}], "seq_len": 32},
 "optimizer": {"lr": 3e-3, "decay_steps": 20, "clip": 0.5},
 "train": {"steps": 20, "micro_batch_windows": 2, "global_batch_windows": 4},
 "checkpoint": {"every_steps": 5},
 "eval": {"windows": 10, "every_steps": 10}}
JSON
}
tables=(', "routes": "t.routes"' ', "routes": "v.routes"')
config '{}' "${tables[@]}" >table.json
config '{"gates": "learned", "scale": 2.5, "z_loss_coef": 0.001}' "${tables[@]}" >gates.json
config '{"source": "learned", "aux_loss_coef": 0.01, "z_loss_coef": 0.001}' '' '' >learned.json
config '{"source": "online", "grouter": "g.st"}' '' '' >online.json

# ---- training: 20 steps, evaluation, checkpoints
both table train table.json
[ "$(waits)" = '1 copies to the host and 1 waits' ] || fail "given routes: the host waits once, for what was decided: $(waits)"
both gates train gates.json
[ "$(waits)" = '1 copies to the host and 1 waits' ] || fail "given experts: $(waits)"
both learned train learned.json --set train.steps=6
both online train online.json --set train.steps=6
for recompute in experts block; do both $recompute train table.json --set train.steps=4 --set train.recompute=$recompute; done
both unsharded train table.json --set train.steps=4 --set parallel.zero=0

# ---- weights that leave fp32: the device skips what the CPU skips, and the fourth skip in a row ends the run
for kind in cpu device; do
    binary=${!kind} expect 71 train table.json --set run.dir=wild-$kind --set optimizer.lr=10 --set optimizer.weight_decay=10 \
        --set optimizer.schedule=constant --set train.steps=60
    [ "$(grep -c '"skipped":true' wild-$kind/metrics.jsonl)" -ge 3 ] || fail "$kind: three steps are skipped first"
done
same_log wild-cpu wild-device

# ---- memory of its own that is too small: refused before anything is created
binary=$device DEVICE_DOUBLE_ROOM=1000000 expect 69 train table.json --set run.dir=small
grep -qF 'memory: expected at most 976.56 KiB (free on its device), got a need of' err || fail "what is missing is said"
[ ! -e small ] || fail "a run folder is left"

# ---- checkpoints of one resume on the other
whole=$(binary=$cpu; expect 0 train table.json --set run.dir=table-cpu; hash_of out)
for start in cpu device; do
    binary=${!start} expect 0 train table.json --set run.dir=from-$start --set train.steps=10
    other=$([ $start = cpu ] && echo device || echo cpu)
    binary=${!other} expect 0 train table.json --set run.dir=from-$start
    grep -q 'going on from' err || fail "the second part goes on from the first"
    [ "$(hash_of out)" = "$whole" ] || fail "from $start to $other: other weights than without a stop"
done
for file in from-cpu/checkpoints/step-00000020/*.safetensors; do
    cmp "$file" "from-device/checkpoints/step-00000020/${file##*/}" || fail "the files are the same"
done

# ---- evaluation of weights
binary=$cpu expect 0 eval table.json --weights table-cpu/model.safetensors
mv out expected
binary=$device expect 0 eval table.json --weights table-cpu/model.safetensors
diff expected out >&2 || fail "eval: other losses"

# ---- bf16: fp32 weights in shares
binary=$BF16_BINARY expect 0 train table.json --set run.dir=bf16-cpu --set train.dtype=bf16 --set train.steps=6
expected=$(hash_of out)
binary=$device expect 0 train table.json --set run.dir=bf16-device --set train.dtype=bf16 --set train.steps=6
[ "$(hash_of out)" = "$expected" ] || fail "bf16: other weights"
[ "$(waits)" = '1 copies to the host and 1 waits' ] || fail "bf16: $(waits)"

# ---- Grouters: distilled with every mask and body, tuned in every mode, routing, folded, audited
cat >distill.json <<'JSON'
{"run": {"dir": "distil"},
 "distill": {"teacher": "learned-cpu/model.safetensors", "teacher_layer": 1},
 "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "document_end": 256},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2},
 "train": {"steps": 4, "micro_batch_windows": 2, "global_batch_windows": 4},
 "checkpoint": {"every_steps": 2},
 "eval": {"windows": 10}}
JSON
both distilled distill distill.json
both second distill distill.json --set distill.teacher_layer=2 --set model.mask=causal-doc
sed 's/"num_hidden_layers": 1, "num_attention_heads": 2, //; s/"hidden_size"/"mask": "none", "hidden_size"/' distill.json >free.json
both linear distill free.json --set model.body=linear
both residual distill free.json --set model.body=residual-linear --set model.num_hidden_layers=2
cat >tune.json <<'JSON'
{"run": {"dir": "tuned"},
 "tune": {"grouter": "distilled-cpu/grouter.safetensors"},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2, "schedule": "constant"},
 "train": {"steps": 4, "micro_batch_windows": 2, "global_batch_windows": 4},
 "checkpoint": {"every_steps": 2},
 "eval": {"windows": 10, "every_steps": 2}}
JSON
for mode in scores bias full; do both tuned-$mode tune tune.json --set tune.mode=$mode; done
for kind in cpu device; do
    binary=${!kind}
    expect 0 route --router tuned-scores-cpu/grouter.safetensors --tokens v --seq-len 32 --out $kind.routes
    expect 0 fold --grouter tuned-scores-cpu/grouter.safetensors --tokens v --seq-len 32 --experts 4 --out $kind.grouter
    expect 0 eval online.json --leak --windows 4 --positions 5 --router g.st --weights online-cpu/model.safetensors
    mv out $kind.leak
done
cmp cpu.routes device.routes || fail "route: other routes"
cmp cpu.grouter device.grouter || fail "fold: another Grouter"
diff cpu.leak device.leak >&2 || fail "leak audit: other losses"
echo "every command runs on memory that the host cannot touch"
