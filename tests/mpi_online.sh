#!/bin/bash
# Routing online: the same losses and weights as with tables made by `route`, bit for bit, on 1 and on 4 ranks, through a
# resume, with buffers that grow, with unused slots, and in evaluation; and what is refused.
set -euo pipefail
binary=$1 work=$2 tool=$BINARY_DIR/tests/grouter_tool
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1
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
losses() { grep -oE '"(step|loss|loss_valid|maxvio|grad_norm)":[^,}]*' "$1/metrics.jsonl"; }
same() { # DIR DIR
    [ "$(hash_of "$1")" = "$(hash_of "$2")" ] || die "$1 and $2: other weights"
    diff <(losses "$1") <(losses "$2") || die "$1 and $2: other losses"
}
contains() { grep -qE -- "$2" "$1" || die "expected '$2' in $1: $(cat "$1")"; }
refused() { # CODE PATTERN CONFIG [ARGUMENT...]
    local code=$1 pattern=$2 config=$3 rc=0
    shift 3
    "$binary" train "$config" --set run.dir=refused "$@" >refused.out 2>refused.err || rc=$?
    [ $rc -eq "$code" ] || die "$*: expected $code, got $rc: $(cat refused.err)"
    contains refused.err "$pattern"
    [ ! -e refused ] || die "$*: a run folder is left"
}

"$tool" g.st 3 8 2 1 causal
"$tool" other.st 4 8 2 1 causal
"$tool" wide.st 3 16 2 1 causal
"$tool" ahead.st 3 8 2 1 bidirectional
"$binary" tokens --synthetic 12000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
"$binary" tokens --synthetic 1500 --vocab 257 --seed 2 --out v >/dev/null 2>&1
tables() { # NAME [ARGUMENT...]: routes of the Grouter g.st used so
    local name=$1
    shift
    for f in t v; do
        "$binary" route --router g.st --tokens $f --seq-len 32 --out $f-"$name".routes "$@" >/dev/null 2>&1
    done
}
config() { # ROUTING TRAIN VALID
    cat <<JSON
{"run": {"dir": "run"},
 "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
           "intermediate_size": 32, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_experts": 8,
           "num_experts_per_tok": 2},
 "routing": $1,
 "data": {"train": [{"tokens": "t"$2}], "valid": [{"tokens": "v"$3}], "seq_len": 32},
 "optimizer": {"lr": 3e-3},
 "train": {"steps": 6, "micro_batch_windows": 2, "global_batch_windows": 16},
 "checkpoint": {"every_steps": 3},
 "eval": {"windows": 18, "every_steps": 3}}
JSON
}
config '{"source": "online", "grouter": "g.st"}' '' '' >online.json
config '{}' ', "routes": "t-plain.routes"' ', "routes": "v-plain.routes"' >table.json
tables plain

# ---- table and online are equal, on one rank and on four
for layout in '1 1' '4 2'; do
    read -r n ep <<<"$layout"
    for source in table online; do
        train "$n" "$ep" $source.json $source-"$n" || die "$source on $n: $(cat $source-"$n".err)"
    done
    same table-"$n" online-"$n"
done
contains online-1.err 'routing: online by g.st, router hash [0-9a-f]{32}, .* FLOP per token: .* % more'
! grep -q 'tokens after their own' online-1.err || die "a causal Grouter is called one that looks ahead"

# ---- also through a resume, which fills the pipeline from the cursor
train 4 2 online.json half --set train.steps=3 --set optimizer.decay_steps=6 || die "half: $(cat half.err)"
train 4 2 online.json half --set optimizer.decay_steps=6 || die "half again: $(cat half.err)"
contains half.err 'going on from .*step-00000003'
[ "$(hash_of half)" = "$(hash_of online-4)" ] || die "a resumed run ends with other bits"

# ---- a Grouter that fills half of the ranks: buffers grow, nothing changes; learned gates keep their losses' sums
tables bias --bias
for gates in fixed learned; do
    arguments=(--set routing.gates=$gates)
    [ $gates = fixed ] || arguments+=(--set routing.z_loss_coef=0.01)
    train 4 2 table.json table-$gates "${arguments[@]}" --set data.train[0].routes=t-bias.routes \
        --set data.valid[0].routes=v-bias.routes || die "table-$gates: $(cat table-$gates.err)"
    train 4 2 online.json online-$gates "${arguments[@]}" --set routing.bias=true || die "$(cat online-$gates.err)"
    same table-$gates online-$gates
    contains online-$gates.err '^buffers grow: rows sent .*, received .*, pairs '
done
[ "$(grep -oE '"z_loss":[^,]*' table-learned/metrics.jsonl)" = "$(grep -oE '"z_loss":[^,]*' online-learned/metrics.jsonl)" ] ||
    die "a micro-batch's z loss is lost where buffers grow"

# ---- unused slots
tables threshold --threshold 0.7
train 4 2 table.json table-threshold --set data.train[0].routes=t-threshold.routes \
    --set data.valid[0].routes=v-threshold.routes || die "table-threshold: $(cat table-threshold.err)"
train 4 2 online.json online-threshold --set routing.threshold=0.7 || die "$(cat online-threshold.err)"
same table-threshold online-threshold

# ---- evaluation and inspection of what was trained
"$binary" eval online.json --weights online-1/model.safetensors >online.eval 2>/dev/null
"$binary" eval table.json --weights online-1/model.safetensors | cmp - online.eval || die "eval: online and table differ"
"$binary" inspect online-1/model.safetensors >inspect.out
contains inspect.out 'model.embed_tokens.weight'

# ---- what would make it another run
changed() { # PATTERN ARGUMENT...
    local pattern=$1 rc=0
    shift
    "$binary" train online.json --set run.dir=online-1 --set train.steps=7 "$@" >changed.out 2>changed.err || rc=$?
    [ $rc -eq 64 ] || die "$*: expected 64, got $rc: $(cat changed.err)"
    contains changed.err "$pattern"
}
cp g.st moved.st
changed 'routing.grouter: expected "g.st" as in the checkpoint, got "moved.st"' --set routing.grouter=moved.st
changed 'data.train\[0\].content: expected 12000 tokens, ends [0-9a-f]*, routes of router [0-9a-f]* as in' \
    --set routing.grouter=other.st --override routing.grouter
changed 'routing.threshold: expected 0 as in the checkpoint' --set routing.threshold=0.7
train 1 1 online.json online-1 --set routing.grouter=moved.st --override routing.grouter --set train.steps=7 ||
    die "an override: $(cat online-1.err)"

# ---- a Grouter of another model, and tables that are not those of the Grouter that is named
refused 65 'wide.st: expected E = 8, K = 2 .* got E = 16, K = 2' online.json --set routing.grouter=wide.st
refused 65 'none.st' online.json --set routing.grouter=none.st
refused 65 'vocabulary of at least model.vocab_size = 300, got 257' online.json --set model.vocab_size=300
refused 64 "below the Grouter's scale of 1, got 2" online.json --set routing.threshold=2
refused 65 'unused slots' online.json --set routing.threshold=0.7 --set routing.gates=learned
refused 65 't-plain.routes: expected routes of router [0-9a-f]* \(routing.grouter other.st' table.json \
    --set routing.grouter=other.st
refused 65 't-plain.routes: expected routes of router' table.json --set routing.grouter=g.st --set routing.bias=true
train 1 1 table.json checked --set routing.grouter=g.st --set train.steps=1 || die "a table of its Grouter: $(cat checked.err)"
# The header of the one, the routes of the other: only looking at rows finds out.
"$binary" route --router other.st --tokens t --seq-len 32 --out t-forged.routes >/dev/null 2>&1
dd if=t-plain.routes of=t-forged.routes bs=8 skip=8 seek=8 count=2 conv=notrunc status=none
head -c 504 t-forged.routes >header
digits=$("$BINARY_DIR"/tests/hash_tool 64 header)
for i in 14 12 10 8 6 4 2 0; do
    printf "\\x${digits:i:2}"
done | dd of=t-forged.routes bs=504 seek=1 conv=notrunc status=none
refused 65 't-forged.routes: expected the experts that routing.grouter g.st chooses, got others in [0-9]* of [0-9]* rows' \
    table.json --set routing.grouter=g.st --set data.train[0].routes=t-forged.routes

# ---- routes that look ahead are called that
train 1 1 online.json ahead --set routing.grouter=ahead.st --set train.steps=1 || die "ahead: $(cat ahead.err)"
contains ahead.err 'warning: these routes depend on tokens after their own'

# ---- what it would need
"${launch[@]}" -n 2 "$binary" train online.json --dry-run --set parallel.expert_parallel_size=2 >dry.out 2>dry.err ||
    die "dry run: $(cat dry.err)"
for line in '^  routing +6400  per token, forward: 2 x active \+ 4 x L x H x head_dim x keys of a row' \
    '^ +[0-9.e+]+  of the run: .* % more than training alone' '^  Grouter ' '^memory of a rank: .*buffers grow' \
    '^  total at worst ' '^  routes .*8 bytes a token to 1 ranks' \
    '^  route tables +0.00 KiB  routed online; tables would take [0-9.]+ bytes per token' '^time of 1000 steps' \
    'ms are for routing and plan'; do
    contains dry.out "$line"
done
"$binary" train online.json --dry-run --ranks 8 --set routing.grouter=none.st >dry.out 2>dry.err || die "$(cat dry.err)"
contains dry.out 'not checked: none.st is not here'
contains dry.out '^  routing +-  none.st is not here'
"$binary" train table.json --dry-run >dry.out 2>dry.err || die "dry run: $(cat dry.err)"
contains dry.out '^  routing +0  in the run: done by .route. beforehand'
rm -rf "$work"
