#!/bin/bash
# From a fresh clone to a trained Mixture-of-Experts model on real text, on two CPU cores: see usage below.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/quickstart.sh [--text FILE...]
Installs what is missing, builds, makes a token file from real text, and goes the whole way on two ranks: trains a source
model that learns its routes, distils a Grouter from it, folds that to half the experts, tunes its balance, routes the text
with it and trains the target on these routes. Beside it two twins, with a balanced hash's routes and with learned ones.
Ends with a table and a plot of the three, whatever they say.
  --text FILE...   train on your own UTF-8 text instead of Debian's; documents end with a line <|endoftext|>, files
                   without such lines are cut into documents of about 8 KB. All of it is routed, in about 10 s per MB
Everything is written into build/. Run again, it reuses what still fits, up to the routes, and trains target and twins anew.
END
}

start_folder=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

configs=configs/quickstart
config=$configs/train.json # of the target
work=build/quickstart
program=build/grouter-train
separator='<|endoftext|>'
ranks=2
export OMP_NUM_THREADS=1
# Shared memory without the kernel's cross-process copy, which containers often forbid.
launch=(mpirun -n "$ranks" --oversubscribe --bind-to none --mca btl "self,vader"
    --mca btl_vader_single_copy_mechanism none)
[[ $(id -u) -ne 0 ]] || launch+=(--allow-run-as-root)

own_text=()
case ${1-} in
"") ;;
--text)
    shift
    [[ $# -gt 0 ]] || { usage >&2 && exit 2; }
    for file in "$@"; do
        [[ $file == /* ]] || file=$start_folder/$file
        [[ -r $file && -f $file ]] || { echo "quickstart: $file: not a readable file" >&2 && exit 2; }
        own_text+=("$file")
    done
    ;;
-h | --help) usage && exit 0 ;;
*) usage >&2 && exit 2 ;;
esac

# ---------------------------------------------------------------- stages, and reusing what an earlier run left

seconds_text=""
run_stage() { # name: runs the function stage_NAME
    local begin=$SECONDS
    echo "== $1"
    stage="$1"
    "stage_$1"
    echo "== $1: $((SECONDS - begin)) s"
    seconds_text+="${seconds_text:+, }$1 $((SECONDS - begin))"
}
stage=start
trap '[[ $? -eq 0 ]] || echo "quickstart: failed in stage $stage" >&2' EXIT

# A stage's results are reused when a stamp says that they were made from the same inputs and they are still there.
fresh() { # stamp name, key, result files...
    local stamp=$work/$1.stamp key=$2
    shift 2
    [[ -f $stamp && $(<"$stamp") == "$key" ]] || return 1
    for file in "$@"; do
        [[ -s $file ]] || return 1
    done
    echo "reusing what an earlier run made"
}

config_number() { # key: the config's only number of that name
    sed -n "s/.*\"$1\": *\([0-9][0-9]*\).*/\1/p" "$config" | head -n 1
}

json_numbers() { # key, on standard input: each line's number of that name
    sed -n "s/.*\"$1\": *\(-\{0,1\}[0-9][-+0-9.eE]*\).*/\1/p"
}

median() {
    LC_ALL=C sort -g | awk '{ value[NR] = $1 } END { if (NR) printf "%.0f\n", value[int((NR + 1) / 2)] }'
}

# ---------------------------------------------------------------- the stages

stage_setup() {
    scripts/setup.sh
}

stage_build() {
    scripts/build.sh build grouter-train
    "$program" --version | head -n 1
}

# Documents of about 8 KB from a file without separators, so that some of them can be held out for validation.
copy_own_text() {
    local i=0 file
    for file in "${own_text[@]}"; do
        i=$((i + 1))
        if grep -qxF -- "$separator" "$file"; then
            cp -- "$file" "$work/text/own-$i.txt"
        else
            LC_ALL=C awk -v separator="$separator" '
                { print; n += length($0) + 1 }
                n >= 8192 { print separator; n = 0 }
            ' "$file" >"$work/text/own-$i.txt"
        fi
    done
}

# Every second document, so that routing takes half a minute and the mix of languages stays.
halve_text() {
    local file
    for file in "$work"/text/*.txt; do
        LC_ALL=C awk -v separator="$separator" 'n % 2 == 0 { print } $0 == separator { n++ }' "$file" >"$file.part"
        mv "$file.part" "$file"
    done
}

stage_text() {
    local key
    if [[ ${#own_text[@]} -gt 0 ]]; then
        key="own $(cksum -- "${own_text[@]}")"
    else
        key="debian $(cksum scripts/text.sh scripts/roff.awk) halved"
    fi
    if ! fresh text "$key" "$work/text"; then
        rm -rf "$work/text.stamp" "$work/text"
        mkdir -p "$work/text"
        if [[ ${#own_text[@]} -gt 0 ]]; then
            copy_own_text
        else
            scripts/text.sh "$work/text"
            rm -rf "$work/text/packages"
            halve_text
        fi
        printf '%s\n' "$key" >"$work/text.stamp"
    fi
    echo "text: $(cat "$work"/text/*.txt | wc -c) bytes in $work/text"
}

stage_tokens() {
    local key
    key="$("$program" --version | cksum) $valid_share $(cksum "$work"/text/*.txt)"
    fresh tokens "$key" "$work"/text-{train,valid}.{bin,idx} && return
    rm -f "$work"/tokens.stamp "$work"/text-{train,valid}.{bin,idx}
    "$program" tokens --out "$work/text" --valid "$valid_share" --seed 1 "$work"/text/*.txt
    printf '%s\n' "$key" >"$work/tokens.stamp"
}

# The trainings before the target's: what they make is used again as long as program, config, text and input are the same.
made_from() { # config, input files...
    local config=$1
    shift
    echo "$("$program" --version | cksum) $(cksum "$config" "$work"/text-{train,valid}.bin "$@")"
}

run_into() { # run folder, command, config, options...: on all ranks, from the start
    local folder=$1 again=()
    shift
    [[ ! -e $folder ]] || again=(--fresh)
    "${launch[@]}" "$program" "$@" "${again[@]}"
}

stage_source() {
    local key
    key=$(made_from "$configs/source.json")
    fresh source "$key" "$work"/source/{model.safetensors,metrics.jsonl} && return
    rm -f "$work"/source.stamp
    run_into "$work/source" train "$configs/source.json"
    printf '%s\n' "$key" >"$work/source.stamp"
}

stage_distil() {
    local key
    key=$(made_from "$configs/distill.json" "$work/source/model.safetensors")
    fresh distil "$key" "$work"/distil/{grouter.safetensors,metrics.jsonl} && return
    rm -f "$work"/distil.stamp
    run_into "$work/distil" distill "$configs/distill.json"
    printf '%s\n' "$key" >"$work/distil.stamp"
}

stage_fold() {
    local key
    key="$(made_from "$config" "$work/distil/grouter.safetensors") $fold_windows"
    fresh fold "$key" "$work/folded.safetensors" && return
    rm -f "$work"/fold.stamp "$work"/folded.*
    "${launch[@]}" "$program" fold --grouter "$work/distil/grouter.safetensors" --tokens "$work/text-train" \
        --seq-len "$seq_len" --experts "$experts" --top-k "$top_k" --windows "$fold_windows" \
        --out "$work/folded.safetensors"
    printf '%s\n' "$key" >"$work/fold.stamp"
}

stage_tune() {
    local key
    key=$(made_from "$configs/tune.json" "$work/folded.safetensors")
    fresh tune "$key" "$work"/tune/{grouter.safetensors,metrics.jsonl} && return
    rm -f "$work"/tune.stamp
    run_into "$work/tune" tune "$configs/tune.json"
    printf '%s\n' "$key" >"$work/tune.stamp"
}

stage_route() {
    local key part
    key="$(made_from "$config" "$work/tune/grouter.safetensors")"
    fresh route "$key" "$work"/{hash.router,{,hash-,folded-}valid.routes,{,hash-}train.routes} && return
    rm -f "$work"/route.stamp "$work"/hash.router "$work"/{,hash-,folded-}{train,valid}.routes
    "$program" route --method hash --fit "$work/text-train" --vocab "$(config_number vocab_size)" \
        --experts "$experts" --top-k "$top_k" --out "$work/hash.router"
    for part in train valid; do
        route_part "$work/tune/grouter.safetensors" "$part" "$work/$part.routes"
        route_part "$work/hash.router" "$part" "$work/hash-$part.routes"
    done
    route_part "$work/folded.safetensors" valid "$work/folded-valid.routes" # for the plot only
    printf '%s\n' "$key" >"$work/route.stamp"
}

route_part() { # router, part of the text, table
    "${launch[@]}" "$program" route --router "$1" --tokens "$work/text-$2" --seq-len "$seq_len" --out "$3"
}

stage_target() {
    run_into "$work/run" train "$config"
}

# The twins are the target's config with other routes: same first weights but for a learned router's own, same windows in
# the same order.
hash_routes=(--set run.dir="$work/hash" --set "data.train[0].routes=$work/hash-train.routes"
    --set "data.valid[0].routes=$work/hash-valid.routes")
learned_routes=(--set run.dir="$work/learned" --set routing.source=learned --set routing.aux_loss_coef=0.01
    --set routing.z_loss_coef=0.001 --set "data.train=[{\"tokens\": \"$work/text-train\"}]"
    --set "data.valid=[{\"tokens\": \"$work/text-valid\"}]")

stage_hash() {
    run_into "$work/hash" train "$config" "${hash_routes[@]}"
}

stage_learned() {
    run_into "$work/learned" train "$config" "${learned_routes[@]}"
}

stage_eval() {
    local run
    for run in run hash learned; do
        local options=(--set eval.windows=0)
        [[ $run != hash ]] || options+=("${hash_routes[@]}")
        [[ $run != learned ]] || options+=("${learned_routes[@]}")
        "${launch[@]}" "$program" eval "$config" "${options[@]}" | tee "$work/eval-$run.txt"
    done
    "${launch[@]}" "$program" eval "$config" --leak --router "$work/tune/grouter.safetensors" \
        "${leak_sample[@]}" --json "$work/leak-run.json"
    "${launch[@]}" "$program" eval "$config" "${hash_routes[@]}" --leak --router "$work/hash.router" \
        "${leak_sample[@]}" --json "$work/leak-hash.json"
}

stage_plot() {
    # Learned routes are nowhere kept, so that twin has no bars; its MaxVio is in the panel above.
    GROUTER_TRAIN=$program scripts/plot.sh "$work/quickstart.svg" "Grouter=$work/run" "hash=$work/hash" \
        "learned=$work/learned" "Grouter before tuning=$work/folded-valid.routes" "Grouter=$work/valid.routes" \
        "hash=$work/hash-valid.routes"
}

last_number() { # run, key: from the last line of the run's log that has it
    json_numbers "$2" <"$work/$1/metrics.jsonl" | tail -n 1
}

leak_of() { # leak report: mean over the sample
    sed -n 's/.*"prefix_minus_full".*"mean": *\([-0-9.e+]*\).*/\1/p' "$1" | awk '{ printf "%.4f", $1 }'
}

final_loss() { # run: nats per byte of all validation windows
    sed -n 's/.*nats per byte[^0-9]*\([0-9.]*\).*/\1/p' "$work/eval-$1.txt" | tail -n 1
}

table_row() { # run, name
    local leak=-
    [[ ! -s $work/leak-$1.json ]] || leak=$(leak_of "$work/leak-$1.json")
    printf '%-10s %8.4f %8.2f %10d %9s %10d\n' "$2" "$(final_loss "$1")" \
        "$(json_numbers maxvio <"$work/$1/metrics.jsonl" | awk '{ sum += $1 } END { print sum / NR }')" \
        "$(json_numbers tokens_per_s <"$work/$1/metrics.jsonl" | median)" "$leak" "$(last_number "$1" tokens_seen)"
}

stage_summary() {
    local unigram before after
    unigram=$("$program" inspect "$work/text-valid" --json | json_numbers unigram_nats_per_byte)
    before=$(json_numbers nats_per_byte_valid <"$work/run/metrics.jsonl" | sed -n 1p)
    after=$(final_loss run)
    {
        printf '%-10s %8s %8s %10s %9s %10s\n' routes loss MaxVio tokens/s leak tokens
        table_row run Grouter
        table_row hash hash
        table_row learned learned
    } | tee "$work/summary.txt"
    cat <<END

loss      of all validation windows after training, nats per byte
MaxVio    load of the fullest expert over the mean, minus 1, in the batches of training: mean over the run (learned: and
          over the layers)
tokens/s  of the median step, $ranks ranks with $OMP_NUM_THREADS thread each
leak      measured: by how much the loss rises when routes are made without the tokens that come later, nats per token
tokens    trained on: the same windows in the same order, with equal active parameters (learned: and its routers). The
          Grouter cost more: source $(last_number source tokens_seen), distillation $(last_number distil tokens_seen), folding $((fold_windows * seq_len)), tuning $(last_number tune tokens_seen)

END
    awk -v b="$before" -v a="$after" -v u="$unigram" 'BEGIN {
        printf "Grouter target    %.4f nats per byte before training, %.4f after\n", b, a
        printf "unigram entropy   %.4f nats per byte of the same text: the loss is %.1f %% below it\n", u, 100 * (1 - a / u)
    }'
    cat <<END
seconds           $seconds_text

plot              $work/quickstart.svg
Grouter           $work/tune/grouter.safetensors
text and routes   $work/text-{train,valid}.{bin,idx}, $work/{train,valid}.routes
trained weights   $work/run/model.safetensors (Hugging Face names)
log of the run    $work/run/metrics.jsonl, one object per step

try next
  ${launch[*]} $program train $config --fresh --set train.steps=1000
  $program inspect $work/train.routes
  $program train --help
END
    if ! awk -v u="$unigram" -v a="$after" 'BEGIN { exit !(a > 0 && a <= 0.75 * u) }'; then
        echo "quickstart: the loss should be at least 25 % below the unigram entropy; with very little text it cannot" \
            "be: give --text more of it. Otherwise this is a defect: please report it with $work/run/metrics.jsonl" >&2
        exit 1
    fi
}

experts=$(config_number num_experts) top_k=$(config_number num_experts_per_tok) seq_len=$(config_number seq_len)
valid_share=0.03 fold_windows=512 leak_sample=(--windows 64 --positions 16)

mkdir -p "$work"
for name in setup build text tokens source distil fold tune route target hash learned eval plot summary; do
    run_stage "$name"
done
echo "total: $SECONDS s"
echo "quickstart: ok"
