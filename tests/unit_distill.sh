#!/bin/bash
# From a source to a target on a Grouter's routes: distill with every body and mask, tune in every mode, route, train; what
# is said on the way, and what is refused.
set -euo pipefail
export OMP_NUM_THREADS=1 # models this small would spend their time in barriers
binary=$1
work=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rm -rf "$work"
mkdir -p "$work"
cd "$work"
# shellcheck source=tests/command.sh
. "$here/command.sh"
# shellcheck source=tests/distill.sh
. "$here/distill.sh"
said() { grep -qE -- "$2" "$1" || fail "expected '$2' in $1"; }

# ---- distill: the divergence falls on held-out tokens too, and everything is said
expect 0 distill distill.json
said out '^against the teacher, on 640 held-out tokens:$'
said out '^  divergence \(nats per token\) +[0-9.]+ -> [0-9.]+$'
said out '^MaxVio of its choices [0-9.]+$'
said out '^router hash [0-9a-f]{32}$'
said err '^step 12/12 \| loss 0\.0*[1-9][0-9]* \| valid 0\.0*[1-9]' # digits that say something
! grep -q 'nan' err || fail "what was not measured is not a line for people"
less "$(value distil loss_valid 12)" "$(value distil loss_valid 0 | awk '{ print $1 / 3 }')" || fail "the divergence falls"
less "$(value distil overlap 0)" "$(value distil overlap 12)" || fail "the overlap grows"
less "$(value distil exact_match 0)" "$(value distil exact_match 12)" || fail "exact matches grow"
for key in maxvio_valid gate_cosine; do [ -n "$(value distil $key 12)" ] || fail "$key is logged"; done
[ -z "$(value distil maxvio 5)" ] || fail "choices of training batches are not counted"
first=$(hash_of out)
expect 0 distill distill.json
said err 'nothing to do: 12 of 12 steps are done'
[ "$(hash_of out)" = "$first" ] || fail "a finished run writes the same Grouter again"

# On a batch that is always the same it falls in every step.
"$binary" tokens --synthetic 129 --vocab 257 --seed 1 --out one >/dev/null 2>&1
expect 0 distill distill.json --set run.dir=fixed --set 'data.train[0].tokens=one' --set train.steps=15 \
    --set optimizer.schedule=constant --set optimizer.lr=2e-3 --set train.global_batch_windows=4 --set eval.windows=1
for step in $(seq 15); do value fixed loss "$step"; done | awk 'NR > 1 && !($1 < last) { bad = 1 } { last = $1 } END { exit bad }' ||
    fail "the divergence falls in every step on a fixed batch"

# ---- every mask and body, with positions or without
variant() { # NAME ARGUMENT...
    local name=$1
    shift
    expect 0 distill distill.json --set run.dir="$name" --set train.steps=4 "$@"
    less "$(value "$name" loss_valid 4)" "$(value "$name" loss_valid 0)" || fail "$name: the divergence falls"
}
for mask in bidirectional causal-doc bidirectional-doc; do variant $mask --set model.mask=$mask; done
variant nowhere --set model.position=none
sed 's/"num_hidden_layers": 1, "num_attention_heads": 2, //; s/"hidden_size"/"mask": "none", "hidden_size"/' distill.json \
    >free.json
mv distill.json attention.json && mv free.json distill.json
variant linear --set model.body=linear
variant residual --set model.body=residual-linear --set model.num_hidden_layers=2
mv attention.json distill.json
variant scores --set distill.scores_only=true --set distill.temperature=2 --set distill.experts_per_tok=3 --set distill.scale=2.5
variant second --set distill.teacher_layer=1

# ---- tune: every mode evens the load
expect 0 tune tune.json
tuned=$(hash_of out)
said out '^MaxVio [0-9.]+ -> [0-9.]+$'
said out '^against the untuned Grouter, on 640 held-out tokens:$'
[ "$(value tuned exact_match 0)" = 1 ] || fail "it starts as the untuned Grouter"
less "$(value tuned maxvio_valid 12)" "$(value tuned maxvio_valid 0)" || fail "scores: the load is evened"
[ -n "$(value tuned maxvio 3)" ] || fail "choices of training batches are counted"
less 0.124999 "$(value tuned loss 1)" || fail "the loss is at least 1/E"
expect 0 tune tune.json --set run.dir=full --set tune.mode=full --set train.steps=4
less "$(value full maxvio_valid 4)" "$(value full maxvio_valid 0)" || fail "full: the load is evened"
expect 0 tune tune.json --set run.dir=bias --set tune.mode=bias
less "$(value bias maxvio_valid 12)" "$(value bias maxvio_valid 0)" || fail "bias: the load is evened"
less "$(value bias overlap 12)" 1 || fail "what a bias changes counts as a change"
[ "$(value bias loss_valid 12)" = 0 ] || fail "scores stay as they are under a bias"

# It stops at its aim, at once where it is there already, and says so again.
aim=$(awk -v a="$(value tuned maxvio_valid 8)" 'BEGIN { print a + 1e-4 }')
stop=(--set run.dir=stopped --set "tune.until_maxvio=$aim")
expect 0 tune tune.json "${stop[@]}"
[ -z "$(value stopped loss 9)" ] && [ -n "$(value stopped loss 8)" ] || fail "it stops at the aim"
stopped=$(hash_of out)
lines=$(wc -l <stopped/metrics.jsonl)
expect 0 tune tune.json "${stop[@]}"
said err 'nothing to do: MaxVio is [0-9.]+ already'
[ "$(hash_of out)" = "$stopped" ] || fail "a run at its aim stays there"
[ "$(wc -l <stopped/metrics.jsonl)" = "$lines" ] || fail "its log is as it was"
expect 64 tune tune.json "${stop[@]}" --set eval.every_steps=0
said err 'tune.until_maxvio = [0-9.]+ is asked of data.valid every eval.every_steps: give both'
expect 64 tune tune.json "${stop[@]}" --set 'data.valid=[]' --set eval.every_steps=0

# ---- route and train with the table
expect 0 route --router tuned/grouter.safetensors --tokens t --seq-len 32 --out t.routes
[ "router hash $(sed -n 's/^router hash: //p' out)" = "$tuned" ] || fail "the table names the Grouter"
sed 's/"routing": {"source": "learned"},//; s/{"tokens": "t"}/{"tokens": "t", "routes": "t.routes"}/; s/"source"/"target"/' \
    source.json >target.json
expect 0 train target.json
less "$(value target loss 6)" "$(value target loss 1)" || fail "a target learns on a Grouter's routes"

# ---- a Hugging Face checkpoint as the source, at every layer
hf=$here/fixtures/qwen3_moe_tiny
"$binary" tokens --synthetic 3000 --vocab 40 --seed 3 --out h >/dev/null 2>&1
for layer in 0 2; do
    expect 0 distill distill.json --set run.dir=hf$layer --set distill.teacher="$hf/f32" --set distill.teacher_layer=$layer \
        --set 'data.train[0].tokens=h' --set 'data.valid[0].tokens=h' --set model.document_end=-1
    less "$(value hf$layer loss_valid 12)" "$(value hf$layer loss_valid 0)" || fail "layer $layer of Hugging Face's model"
done
expect 65 distill distill.json --set run.dir=x --set distill.teacher="$hf/f32" --set model.document_end=-1
said err 't.bin: token 4: expected an id from 0 to 39'

# ---- dry runs: the same objective, its memory and its FLOPs
expect 0 distill distill.json --dry-run --set run.dir=x --set model.mask=bidirectional
for line in '^  active per token +1,920  scores for 8 experts but not the embedding$' \
    '^  per token .* 6 x active \+ 12 x L x H x head_dim x T$' '= 6 x 1,920 \+ 12 x 1 x 2 x 8 x 32$' \
    '^  and of the teacher .* 2 x active \+ 4 x L x H x head_dim x T / 2$' '^  teacher and balance ' \
    '^memory of a rank: there are no plans$' '^time of 1000 steps'; do
    said out "$line"
done
! grep -qE 'route tables|dispatch|routed experts' out || fail "a Grouter has no experts and no tables"
expect 0 tune tune.json --dry-run --set run.dir=x
for line in '^  per token, forward .* 2 x active \+ 4 x L x H x head_dim x T / 2$' '^  per token, backward +256 ' \
    '^  teacher and balance ' '^time of 1000 steps'; do
    said out "$line"
done
expect 0 tune tune.json --dry-run --set run.dir=x --ranks 4
said out '^4 ranks, expert parallel 1, data parallel 4'
expect 0 distill distill.json --dry-run --set run.dir=x --ranks 2 --set 'data.train[0].tokens=absent'
said out '^not checked: absent.bin is not here'
[ ! -e x ] || fail "a dry run leaves nothing behind"

# ---- what is refused
refused() { # CODE PATTERN COMMAND CONFIG ARGUMENT...
    local code=$1 pattern=$2
    shift 2
    expect "$code" "$@"
    said err "$pattern"
    [ ! -e x ] || fail "left behind by: $*"
}
x=(--set run.dir=x)
refused 64 "model.vocab_size: expected the teacher's 257, got 99" distill distill.json "${x[@]}" --set model.vocab_size=99
refused 66 'none: cannot be opened' distill distill.json "${x[@]}" --set distill.teacher=none
refused 66 'one trained with a route table; train it with' distill distill.json "${x[@]}" \
    --set distill.teacher=target/model.safetensors
refused 66 'layers with experts, 0 to 1, got 2' distill distill.json "${x[@]}" --set distill.teacher_layer=2
refused 64 'experts per token, got 9' distill distill.json "${x[@]}" --set distill.experts_per_tok=9
refused 64 'model.mask must be "none" exactly when' distill distill.json "${x[@]}" --set model.mask=none
refused 64 'tune.mode: expected a key of a config for distill, got one for tune' distill distill.json "${x[@]}" --set tune.mode=bias
refused 64 'distill.teacher: expected a key of a config for tune, got one for distill' tune distill.json
refused 64 'routing.scale: expected a key of a config for tune, got one for train' tune tune.json "${x[@]}" --set routing.scale=2
refused 64 'train.micro_batch_windows \* data.seq_len .* = 2147483648 must be at most' distill distill.json "${x[@]}" \
    --set data.seq_len=1048576 --set train.micro_batch_windows=2048 --set train.global_batch_windows=2048
refused 64 'expected at most 2147483647, got 2147483648' distill distill.json "${x[@]}" --set data.seq_len=1048576 \
    --set train.micro_batch_windows=1024 --set train.global_batch_windows=1024
refused 65 'expected a Grouter .* got weights of something else' tune tune.json "${x[@]}" --set tune.grouter=source/model.safetensors
refused 66 'none: cannot be opened' tune tune.json "${x[@]}" --set tune.grouter=none
refused 2 'unknown key "tune.grouter.contents": did you mean "tune.grouter.content"' tune tune.json --override tune.grouter.contents

# Another teacher, another Grouter: another run; the place where it lies does not matter.
cp -r source moved
expect 0 distill distill.json --set distill.teacher=moved/model.safetensors
said err 'changed since the checkpoint: distill.teacher: '
"$binary" train source.json --set run.dir=moved2 --set run.seed=5 --set train.steps=1 >/dev/null 2>&1
expect 64 distill distill.json --set distill.teacher=moved2/model.safetensors
said err 'distill.teacher.content: expected [0-9a-f]{32} as in the checkpoint, got [0-9a-f]{32}; put it back, or add --override distill.teacher.content'
expect 0 distill distill.json --set distill.teacher=moved2/model.safetensors --set train.steps=13 --set optimizer.schedule=constant \
    --override distill.teacher.content
expect 64 tune tune.json
said err 'tune.grouter.content: expected [0-9a-f]{32} as in the checkpoint, got'
expect 0 tune tune.json --override tune.grouter.content

rm -rf "$work"
