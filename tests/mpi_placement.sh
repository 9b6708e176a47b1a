#!/bin/bash
# Training with a placement end to end: fewer rows and evener ranks at the same losses, figures of both in the log, runs
# that change or drop their placement and go on, windows by group, and what a dry run says of it.
set -euo pipefail
binary=$1 work=$2 tool=$BINARY_DIR/tests/place_tool
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)
steps=20

die() {
    echo "FAILED: $*"
    exit 1
}
train() { # RANKS EP DIR [ARGUMENT...]: output in DIR.out and DIR.err
    local n=$1 ep=$2 dir=$3
    shift 3
    "${launch[@]}" -n "$n" "$binary" train c.json --set run.dir="$dir" --set parallel.expert_parallel_size="$ep" "$@" \
        >"$dir.out" 2>"$dir.err"
}
hash_of() { tail -1 "$1.out" | grep -E '^parameter hash [0-9a-f]{32}$' || die "no parameter hash: $(cat "$1.err")"; }
value() { grep -E "\"step\":$3," "$1/metrics.jsonl" | grep -oE "\"$2\":[-+0-9.eE]+" | sed 's/.*://' || true; }
has_key() { grep -q "\"$2\":" "$1/metrics.jsonl"; }
contains() { grep -qE -- "$2" "$1" || die "expected '$2' in $1: $(cat "$1")"; }
near() { # DIR DIR: losses of both, step by step, and their validation
    local step key a b
    for step in 1 10 $steps; do
        for key in loss loss_valid; do
            a=$(value "$1" $key "$step") b=$(value "$2" $key "$step")
            [ "$key" = loss_valid ] && [ -z "$a" ] && continue
            awk "BEGIN{d=($a)-($b); if (d<0) d=-d; exit !(d <= 1e-5*($a))}" || die "$2: $key of step $step is $b, not $a"
        done
    done
}

# Two texts, the second of fewer bytes.
"$binary" tokens --synthetic 6000 --vocab 100 --seed 1 --out part1 2>/dev/null >/dev/null
"$binary" tokens --synthetic 24000 --vocab 257 --seed 1 --out t 2>/dev/null >/dev/null
"$binary" tokens --synthetic 5000 --vocab 257 --seed 2 --out v 2>/dev/null >/dev/null
"$binary" route --method random --experts 8 --top-k 2 --seed 3 --out h.router 2>/dev/null >/dev/null
"$binary" route --router h.router --tokens t --seq-len 32 --out t.routes 2>/dev/null >/dev/null
"$binary" route --router h.router --tokens v --seq-len 32 --out v.routes 2>/dev/null >/dev/null
"$binary" route --router h.router --tokens part1 --seq-len 32 --out part1.routes 2>/dev/null >/dev/null
cat >c.json <<JSON
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 16, "use_qk_norm": true},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}, {"tokens": "part1", "routes": "part1.routes", "weight": 0.5}],
           "valid": [{"tokens": "v", "routes": "v.routes"}], "seq_len": 32},
  "optimizer": {"lr": 3e-3, "warmup_steps": 5},
  "train": {"steps": $steps, "micro_batch_windows": 2, "global_batch_windows": 32},
  "checkpoint": {"every_steps": 10},
  "eval": {"every_steps": 10, "windows": 20}
}
JSON
place() { # OUT RANKS SEED HOW
    "$tool" "$1" 1 "$2" "$3" "$4" 257 t t.routes part1 part1.routes || die "place_tool $*"
}
place two.place 2 1 equal
place other.place 2 2 equal
place four.place 4 1 equal
place free.place 2 1 free
placed=(--set parallel.placement=two.place)

# ---- the same losses, the fewest rows, evener ranks
train 4 2 plain || die "without a placement: $(cat plain.err)"
train 4 2 placed "${placed[@]}" || die "with a placement: $(cat placed.err)"
train 4 2 again "${placed[@]}" || die "again: $(cat again.err)"
train 4 4 wide --set parallel.placement=four.place || die "four expert-parallel ranks: $(cat wide.err)"
train 4 1 alone || die "one expert-parallel rank: $(cat alone.err)"
contains placed.err 'placement: two.place: balanced by rank, 1 nodes x 2 ranks; the windows of a global batch go'
near plain placed
near plain wide
[ "$(hash_of placed)" = "$(hash_of again)" ] || die "the same placement twice gives the same bits"
[ "$(hash_of placed)" != "$(hash_of plain)" ] || die "a placement that moves nothing"
has_key plain rows_per_token && has_key plain imbalance || die "rows without a placement: $(tail -1 plain/metrics.jsonl)"
! has_key plain rows_per_token_best || die "nothing is best without a placement"
! has_key alone rows_per_token || die "nothing travels on one expert-parallel rank"
for step in 1 7 $steps; do
    [ "$(value placed rows_per_token $step)" = "$(value placed rows_per_token_best $step)" ] || die "step $step: not the fewest rows"
    awk "BEGIN{exit !($(value placed rows_per_token $step) < $(value plain rows_per_token $step))}" ||
        die "step $step: no row saved: $(value placed rows_per_token $step), $(value plain rows_per_token $step)"
    awk "BEGIN{m=$(value placed imbalance $step); b=$(value placed imbalance_best $step); exit !(m >= b && b >= 1 && (m <= 1.03 || m <= b + 0.03))}" ||
        die "step $step: imbalance $(value placed imbalance $step), best $(value placed imbalance_best $step)"
done
[ ! -e t.routes.touch2.* ] || die "training tables are counted although the placement has their counts"
ls v.routes.touch2.* >/dev/null || die "validation is counted for the placement"

# ---- learned gates of given experts
train 4 2 gates --set routing.gates=learned || die "learned gates: $(cat gates.err)"
train 4 2 gates_placed --set routing.gates=learned "${placed[@]}" || die "learned gates with a placement: $(cat gates_placed.err)"
near gates gates_placed

# ---- a run changes, moves or drops its placement and goes on; checkpoints know experts by name alone
for how in "4 2 other.place" "4 4 four.place" "2 2 " "1 1 "; do
    read -r n ep place <<<"$how"
    rm -rf moved
    cp -r placed moved
    rm -rf moved/checkpoints/step-000000$steps moved/model.safetensors
    train "$n" "$ep" moved --set parallel.placement="$place" || die "going on with '$how': $(cat moved.err)"
    contains moved.err "changed since the checkpoint: parallel.placement: \"two.place\" -> \"$place\""
    contains moved.err 'equal to rounding'
    a=$(value placed loss $steps) b=$(value moved loss $steps)
    awk "BEGIN{d=($a)-($b); if (d<0) d=-d; exit !(d <= 1e-5*($a))}" || die "'$how': last loss $b instead of $a"
done
for place in other.place ""; do # nothing left to do: the same weights are written, whoever holds them
    train 4 2 placed --set parallel.placement=$place || die "a finished run with '$place': $(cat placed.err)"
    [ "$(hash_of placed)" = "$(hash_of again)" ] || die "weights change with the placement '$place'"
done
train 4 4 placed --set parallel.placement=four.place || die "a finished run on four.place: $(cat placed.err)"
[ "$(hash_of placed)" = "$(hash_of again)" ] || die "weights change with four.place"
cp two.place renamed.place
train 4 2 again --set parallel.placement=renamed.place || die "a placement under another name: $(cat again.err)"
! grep -q 'equal to rounding' again.err || die "the same placement is not another: $(cat again.err)"

# ---- windows by group
corpus=("${placed[@]}" --set data.windows=corpus)
train 2 2 group "${corpus[@]}" || die "windows by group: $(cat group.err)"
contains group.err 'bias of reading by group: total variation 0.00[0-9]+, importance weights 0.9[0-9]+ to 1.0[0-9]+'
contains group.err 'first 20 global batches against the corpus, by group .*: KL of tokens 0.[0-9]+ \(0.[0-9]+\) nats, chi'
train 4 2 group4 "${corpus[@]}" || die "windows by group on four ranks: $(cat group4.err)"
near group group4 # the same windows
! (near plain group) >near.out || die "windows by group are other windows"
has_key group rows_per_token_best || die "what would be best: $(tail -1 group/metrics.jsonl)"
train 2 2 free --set parallel.placement=free.place --set data.windows=corpus || die "groups of any size: $(cat free.err)"
contains free.err 'bias of reading by group: total variation 0\.[0-9]+'
rm -rf group/checkpoints/step-000000$steps
code=0
train 2 2 group --set parallel.placement=other.place --set data.windows=corpus || code=$?
[ $code -eq 64 ] && grep -q 'parallel.placement.content: expected .* as in the checkpoint' group.err ||
    die "other groups in mid-run: code $code, $(cat group.err)"
code=0
train 2 2 group "${placed[@]}" || code=$?
[ $code -eq 64 ] && grep -q 'data.windows: expected "corpus" as in the checkpoint, got "batch"' group.err ||
    die "another order in mid-run: code $code, $(cat group.err)"
train 2 2 group "${placed[@]}" --override data.windows || die "overridden: $(cat group.err)"

# ---- what a run will need
dry() { # RANKS DIR ARGUMENT...
    local n=$1 out=$2
    shift 2
    "${launch[@]}" -n "$n" "$binary" train c.json --dry-run --set parallel.expert_parallel_size=2 "$@" >"$out" 2>dry.err ||
        die "dry run: $(cat dry.err)"
}
dry 4 here "${placed[@]}"
dry 1 elsewhere --ranks 4 "${placed[@]}"
diff <(sed '/^time/,$d' elsewhere) <(sed '/^time/,$d' here) || die "the same ranks, here and elsewhere, differ"
contains here '^placement: two.place: balanced by rank, 1 nodes x 2 ranks$'
contains here 'rows received +[0-9]+ +of a micro-batch, at most, whichever rank takes which window'
contains here 'rows per token +0\.[0-9]+ +expected: of the first steps, at most 32, packed'
contains here 'memory of a rank: largest plans of the run, however its windows fall to ranks'
mean=$(grep -oE '"rows_per_token":[0-9.]+' again/metrics.jsonl | awk -F: '{s+=$2; n++} END {printf "%.3f", s/n}')
contains here "rows per token +$mean " # all steps are among the first 32
dry 1 absent --ranks 4 --set parallel.placement=absent.place
contains absent '^not checked: absent.place is not here'
dry 4 grouped "${corpus[@]}"
contains grouped 'rows received +[0-9]+ +of a micro-batch, at most$'

# ---- evaluation takes no notice
loss=$("${launch[@]}" -n 2 "$binary" eval c.json --set run.dir=again --set parallel.expert_parallel_size=2 "${placed[@]}" 2>/dev/null |
    awk '$1 == "loss" {print $2}')
awk "BEGIN{d=$loss-$(value again loss_valid $steps); if (d<0) d=-d; exit !(d < 1e-4)}" || die "eval gives $loss"

# ---- routed online, experts move and windows stay
"$BINARY_DIR/tests/grouter_tool" g.st 3 8 2 1 causal
for f in t part1; do
    "$binary" route --router g.st --tokens $f --seq-len 32 --out $f-g.routes >/dev/null 2>&1
done
"$tool" g.place 1 2 1 equal 257 t t-g.routes part1 part1-g.routes
online=(--set routing.source=online --set routing.grouter=g.st --set 'data.valid=[]' --set eval.every_steps=0
    --set 'data.train=[{"tokens": "t"}, {"tokens": "part1", "weight": 0.5}]')
train 4 2 online "${online[@]}" || die "online: $(cat online.err)"
train 4 2 online_placed "${online[@]}" --set parallel.placement=g.place || die "online with a placement: $(cat online_placed.err)"
near online online_placed
contains online_placed.err 'experts move, windows stay'
code=0
train 4 2 refused "${online[@]}" "${placed[@]}" || code=$?
[ $code -eq 65 ] && grep -q 'expected a placement of routes of router' refused.err || die "another router: $code, $(cat refused.err)"
echo "placements: the same losses with fewer rows, on any ranks and through resume"
