#!/bin/bash
# From a fresh clone to a trained Mixture-of-Experts model on real text, on two CPU cores: see usage below.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/quickstart.sh [--text FILE...]
Installs what is missing, builds, makes a token file from real text, routes it with a balanced hash, trains a small
Mixture-of-Experts model on two ranks with the experts split between them, evaluates it and says what came out.
  --text FILE...   train on your own UTF-8 text instead of Debian's; documents end with a line <|endoftext|>, files
                   without such lines are cut into documents of about 8 KB
Everything is written into build/. Run again, it reuses what still fits and trains anew.
END
}

start_folder=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/quickstart/train.json
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

stage_text() {
    local key
    if [[ ${#own_text[@]} -gt 0 ]]; then
        key="own $(cksum -- "${own_text[@]}")"
    else
        key="debian $(cksum scripts/text.sh scripts/roff.awk)"
    fi
    if ! fresh text "$key" "$work/text"; then
        rm -rf "$work/text.stamp" "$work/text"
        mkdir -p "$work/text"
        if [[ ${#own_text[@]} -gt 0 ]]; then
            copy_own_text
        else
            scripts/text.sh "$work/text"
            rm -rf "$work/text/packages"
        fi
        printf '%s\n' "$key" >"$work/text.stamp"
    fi
    echo "text: $(cat "$work"/text/*.txt | wc -c) bytes in $work/text"
}

stage_tokens() {
    local key
    key="$("$program" --version | cksum) $(cksum "$work"/text/*.txt)"
    fresh tokens "$key" "$work"/text-{train,valid}.{bin,idx} && return
    rm -f "$work"/tokens.stamp "$work"/text-{train,valid}.{bin,idx}
    "$program" tokens --out "$work/text" --valid 0.02 --seed 1 "$work"/text/*.txt
    printf '%s\n' "$key" >"$work/tokens.stamp"
}

stage_routes() {
    local key experts top_k vocabulary seq_len part
    experts=$(config_number num_experts) top_k=$(config_number num_experts_per_tok)
    vocabulary=$(config_number vocab_size) seq_len=$(config_number seq_len)
    key="$("$program" --version | cksum) $experts $top_k $vocabulary $seq_len $(cksum "$work"/text-{train,valid}.bin)"
    fresh routes "$key" "$work"/{hash.router,train.routes,valid.routes} && return
    rm -f "$work"/routes.stamp "$work"/{hash.router,train.routes,valid.routes}
    "$program" route --method hash --fit "$work/text-train" --vocab "$vocabulary" --experts "$experts" \
        --top-k "$top_k" --out "$work/hash.router"
    for part in train valid; do
        "$program" route --router "$work/hash.router" --tokens "$work/text-$part" --seq-len "$seq_len" \
            --out "$work/$part.routes"
    done
    printf '%s\n' "$key" >"$work/routes.stamp"
}

stage_train() {
    local again=()
    [[ ! -e $work/run ]] || again=(--fresh)
    "${launch[@]}" "$program" train "$config" "${again[@]}"
}

stage_eval() {
    "${launch[@]}" "$program" eval "$config" | tee "$work/eval.txt"
}

stage_summary() {
    local unigram before after speed
    unigram=$("$program" inspect "$work/text-valid" --json | json_numbers unigram_nats_per_byte)
    before=$(json_numbers nats_per_byte_valid <"$work/run/metrics.jsonl" | sed -n 1p)
    speed=$(json_numbers tokens_per_s <"$work/run/metrics.jsonl" | median)
    after=$(sed -n 's/.*nats per byte[^0-9]*\([0-9.]*\).*/\1/p' "$work/eval.txt" | tail -n 1)
    awk -v b="$before" -v a="$after" -v u="$unigram" 'BEGIN {
        printf "validation loss   %.4f nats per byte before training, %.4f after\n", b, a
        printf "unigram entropy   %.4f nats per byte of the same text: the loss is %.1f %% below it\n", u, 100 * (1 - a / u)
    }'
    cat <<END
speed             $speed tokens/s (median step), $ranks ranks with $OMP_NUM_THREADS thread each
seconds           $seconds_text

text and routes   $work/text-{train,valid}.{bin,idx}, $work/hash.router, $work/{train,valid}.routes
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

mkdir -p "$work"
for name in setup build text tokens routes train eval summary; do
    run_stage "$name"
done
echo "total: $SECONDS s"
echo "quickstart: ok"
