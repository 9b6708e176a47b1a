#!/bin/bash
# Do routes distilled from a trained model help a small one? See usage below.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/reproduce/small.sh [--only bytes|bpe] [--seeds N] [--quick] [--text FOLDER] [--ranks 1|2]
Trains one source, distils Grouters from it (causal and bidirectional; from its first and its last layer), tunes them, and
trains the same small target on the routes of each, of a hash, of chance, and on learned ones: same windows in the same
order, three seeds for those that decide. Once with bytes (257 ids) and once with a vocabulary of 4,096 entries, since
with few ids a hash of the token is a strong router. Everything goes into build/reproduce/small/; report.md there
has the tables, with the tokens each route has cost, and names the plots. An hour or two on 2 cores.
  --only SET      only this vocabulary
  --seeds N       seeds of those that decide (default: 3); run again with more, it adds them
  --quick         few steps, one seed, little text: every part runs once in about five minutes, into
                  build/reproduce/small-quick; its numbers mean nothing
  --text FOLDER   use FOLDER/*.txt (default: ../shared/data/text if it is there, else the quick start's text)
  --ranks N       1: no MPI, two threads; 2 (default): one thread each, the experts split between them
Run again, it goes on where it stopped: what was made by the same config from the same input is not made again.
The vocabulary wants Python's venv and PyPI's tokenizers; without them that half is left out, and the report says so.
TEXT
}

start_folder=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sets=(bytes bpe) quick="" text=../shared/data/text ranks=2
n_seed=3
while [[ $# -gt 0 ]]; do
    case $1 in
    --seeds)
        [[ ${2-} =~ ^[1-9][0-9]?$ ]] || { usage >&2 && exit 2; }
        n_seed=$2 && shift 2
        ;;
    --only)
        [[ ${2-} == bytes || ${2-} == bpe ]] || { usage >&2 && exit 2; }
        sets=("$2") && shift 2
        ;;
    --quick) quick=yes && shift ;;
    --text)
        [[ -d ${2-} ]] || { usage >&2 && exit 2; }
        text=$(cd "$start_folder" && cd "$2" && pwd) && shift 2
        ;;
    --ranks)
        [[ ${2-} == [12] ]] || { usage >&2 && exit 2; }
        ranks=$2 && shift 2
        ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done

configs=configs/paper
program=build/grouter-train
top=build/reproduce/small${quick:+-quick}
separator='<|endoftext|>'
export OMP_NUM_THREADS=1
launch=(mpirun -n "$ranks" --oversubscribe --bind-to none --mca btl "self,vader"
    --mca btl_vader_single_copy_mechanism none)
[[ $(id -u) -ne 0 ]] || launch+=(--allow-run-as-root)
[[ $ranks -eq 2 ]] || { launch=() && export OMP_NUM_THREADS=2; }

# Bytes of text of each file, and the steps of source and targets; a step has 4,096 tokens, of several bytes each with
# the larger vocabulary, whose head costs as much again as the rest of the model.
text_bytes=400000 leak_options=(--windows 64 --positions 16)
declare -A steps=([bytes]=300 [bpe]=160)
distill=() tune=() evaluate=()
if [[ -n $quick ]]; then
    text_bytes=60000 n_seed=1 leak_options=(--windows 4 --positions 4)
    steps=([bytes]=8 [bpe]=8)
    distill=(--set train.steps=8 --set eval.every_steps=0 --set eval.windows=16 --set optimizer.warmup_steps=2)
    tune=(--set train.steps=8 --set eval.every_steps=4 --set eval.windows=16)
    evaluate=(--set eval.windows=16 --set optimizer.warmup_steps=2)
fi

json_numbers() { # key, on standard input: each line's number of that name
    sed -n "s/.*\"$1\": *\(-\{0,1\}[0-9][-+0-9.eE]*\).*/\1/p"
}
first_number() { json_numbers "$2" <"$dir/$1/metrics.jsonl" | sed -n 1p; } # run, key
last_number() { json_numbers "$2" <"$dir/$1/metrics.jsonl" | tail -n 1; }

# ---------------------------------------------------------------- making things once

# Runs a command that makes a file, unless the same command made it from the same inputs.
once() { # name, result file, input files (one word), command...
    local stamp=$dir/made/$1 result=$2 inputs=$3 key begin=$SECONDS
    local title="$set: $1"
    shift 3
    # shellcheck disable=SC2086 # file names of our own, without spaces
    key="$* $(cksum $inputs)"
    if [[ -s $result && -f $stamp && $(<"$stamp") == "$key" ]]; then
        echo "== $title: made before"
        return
    fi
    rm -f "$stamp"
    echo "== $title"
    # A run that was begun with the same key and stopped goes on from its checkpoint; another one in its place makes room.
    if [[ ${2-} == train || ${2-} == distill || ${2-} == tune ]]; then
        local fresh=()
        [[ ! -e ${result%/*} || (-f $stamp.begun && $(<"$stamp.begun") == "$key") ]] || fresh=(--fresh)
        printf '%s\n' "$key" >"$stamp.begun"
        set -- "$@" "${fresh[@]}"
    fi
    [[ $1 != grouter ]] || { shift && set -- "${launch[@]}" "$program" "$@"; }
    "$@"
    printf '%s\n' "$key" >"$stamp"
    echo "== $title: $((SECONDS - begin)) s"
}

# ---------------------------------------------------------------- text, tokens, routers

make_text() {
    local file out=$top/text
    rm -rf "$out"
    mkdir -p "$out"
    if [[ ! -d $text ]]; then
        text=build/quickstart/text
        compgen -G "$text/*.txt" >/dev/null || scripts/text.sh "$text"
    fi
    for file in "$text"/*.txt; do
        # Whole documents up to the limit; where nothing separates them, a document every 8 KB.
        LC_ALL=C awk -v separator="$separator" -v limit="$text_bytes" \
            -v marked="$(grep -cxF -- "$separator" "$file" || true)" '
            { print; n += length($0) + 1; m += length($0) + 1 }
            marked ? $0 == separator : m >= 8192 { if (!marked) print separator; m = 0; if (n >= limit) exit }
        ' "$file" >"$out/$(basename "$file")"
    done
    echo "text: $(cat "$out"/*.txt | wc -c) bytes of $text in $out"
}

make_vocabulary() { # fails when Python or the package is not to be had
    local venv=build/venv-tokenizers
    [[ -x $venv/bin/python ]] || python3 -m venv "$venv" || return 1
    "$venv/bin/python" -c 'import tokenizers' 2>/dev/null ||
        "$venv/bin/pip" install --quiet tokenizers==0.23.3 || return 1
    once vocabulary "$dir/tokenizer.json" "$text_files" \
        "$venv/bin/python" scripts/reproduce/bpe.py 4096 "$separator" "$dir/tokenizer.json" "$top"/text/*.txt
}

make_tokens() {
    if [[ $set == bytes ]]; then
        once tokens "$dir/text-valid.idx" "$text_files" \
            "$program" tokens --out "$dir/text" --valid 0.03 --seed 1 "$top"/text/*.txt
    else
        once tokens "$dir/text-valid.idx" "$text_files $dir/tokenizer.json" \
            build/venv-tokenizers/bin/python scripts/tokenize_hf.py --tokenizer "$dir/tokenizer.json" \
            --eod "$separator" --out "$dir/text" --valid 0.03 --seed 1 "$top"/text/*.txt
    fi
}

make_routes() { # router's name, router file
    local part
    for part in train valid; do
        once "routes-$1-$part" "$dir/$1-$part.routes" "$2 $dir/text-$part.bin" \
            grouter route --router "$2" --tokens "$dir/text-$part" --seq-len 256 --out "$dir/$1-$part.routes"
    done
}

make_grouter() { # mask, first|last
    local name=$1-$2 layer=0
    [[ $2 == first ]] || layer=3
    once "distil-$name" "$dir/distil-$name/grouter.safetensors" \
        "$configs/small-distill.json $dir/source/model.safetensors $dir/text-train.bin" \
        grouter distill "$configs/small-distill.json" --set run.dir="$dir/distil-$name" --set model.mask="$1" \
        --set distill.teacher="$dir/source/model.safetensors" --set distill.teacher_layer="$layer" \
        "${tokens_only[@]}" "${distill[@]}"
    once "tune-$name" "$dir/tune-$name/grouter.safetensors" \
        "$configs/small-tune.json $dir/distil-$name/grouter.safetensors" \
        grouter tune "$configs/small-tune.json" --set run.dir="$dir/tune-$name" \
        --set tune.grouter="$dir/distil-$name/grouter.safetensors" "${tokens_only[@]}" "${tune[@]}"
    once "routes-raw-$name" "$dir/raw-$name-valid.routes" "$dir/distil-$name/grouter.safetensors" \
        grouter route --router "$dir/distil-$name/grouter.safetensors" --tokens "$dir/text-valid" --seq-len 256 \
        --out "$dir/raw-$name-valid.routes"
    make_routes "$name" "$dir/tune-$name/grouter.safetensors"
    scripts/plot.sh "$dir/load-$name.svg" "raw=$dir/raw-$name-valid.routes" "tuned=$dir/$name-valid.routes"
    printf 'grouter\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$(last_number "distil-$name" loss_valid)" \
        "$(last_number "distil-$name" exact_match)" "$(last_number "distil-$name" overlap)" \
        "$(last_number "tune-$name" overlap)" "$(first_number "tune-$name" maxvio_valid)" \
        "$(last_number "tune-$name" maxvio_valid)" "$(last_number "distil-$name" tokens_seen)" \
        "$(last_number "tune-$name" tokens_seen)" >>"$dir/results.tsv"
}

# ---------------------------------------------------------------- targets

learned=(--set routing.source=learned --set routing.aux_loss_coef=0.01 --set routing.z_loss_coef=0.001)

leak_number() { # mean|standard_error
    sed -n "s/.*\"prefix_minus_full\".*\"$1\": *\([-0-9.e+]*\).*/\1/p" "$dir/leak-$name.json"
}

train_once() { # name, seed, steps, input files, options...
    local name=$1 seed=$2 n=$3 inputs=$4
    shift 4
    once "$name" "$dir/$name/model.safetensors" "$configs/small-target.json $dir/text-train.bin $inputs" \
        grouter train "$configs/small-target.json" --set run.dir="$dir/$name" --set run.seed="$seed" \
        --set train.steps="$n" --set model.vocab_size="$vocabulary" --set parallel.expert_parallel_size="$ranks" \
        "$@" "${evaluate[@]}"
}

target() { # name, routes of, seed, tokens that the routes cost, options...
    local name=$1 routes=$2 seed=$3 cost=$4 run=target-$1-$3 n=${steps[$set]}
    shift 4
    local options=("${table_of[@]/NAME/$dir/$routes}" "$@")
    [[ $routes != learned ]] || options=("${learned[@]}" "${tokens_only[@]}" "$@")
    if [[ $name == learned-all-in ]]; then
        n=$((n + (cost + step_tokens - 1) / step_tokens)) cost=0
    fi
    local inputs=""
    [[ $routes == learned ]] || inputs="$dir/$routes-train.routes"
    [[ $seed -eq 1 ]] || options+=(--set eval.every_steps=0) # curves are drawn of the first seed
    train_once "$run" "$seed" "$n" "$inputs" "${options[@]}"
    local leak=- error=- seen
    if [[ -f $dir/tune-$routes/grouter.safetensors && $seed -eq 1 && $# -eq 0 ]]; then
        once "leak-$name" "$dir/leak-$name.json" "$dir/$run/model.safetensors" \
            grouter eval "$configs/small-target.json" --set run.dir="$dir/$run" --set model.vocab_size="$vocabulary" \
            --set parallel.expert_parallel_size="$ranks" "${options[@]}" --leak --router "$dir/tune-$routes/grouter.safetensors" "${leak_options[@]}" \
            --json "$dir/leak-$name.json"
        leak=$(leak_number mean) error=$(leak_number standard_error)
    fi
    seen=$(last_number "$run" tokens_seen)
    printf 'target\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$seed" "$(last_number "$run" loss_valid)" \
        "$(json_numbers maxvio <"$dir/$run/metrics.jsonl" | awk '{ sum += $1 } END { printf "%.3f", sum / NR }')" \
        "$seen" "$((seen + cost))" "$leak" "$error" >>"$dir/results.tsv"
    [[ $seed -ne 1 ]] || curves+=("$name=$dir/$run")
}

deciding() { # seed
    target learned learned "$1" 0
    target hash hash "$1" 0
    target causal-last causal-last "$1" "$cost"
    target bidirectional-last bidirectional-last "$1" "${price[bidirectional-last]}"
}

run_set() {
    local mask layer seed name
    step_tokens=4096
    tokens_only=(--set "data.train=[{\"tokens\": \"$dir/text-train\"}]"
        --set "data.valid=[{\"tokens\": \"$dir/text-valid\"}]")
    table_of=(--set "data.train=[{\"tokens\": \"$dir/text-train\", \"routes\": \"NAME-train.routes\"}]"
        --set "data.valid=[{\"tokens\": \"$dir/text-valid\", \"routes\": \"NAME-valid.routes\"}]")
    vocabulary=257
    [[ $set == bytes ]] || vocabulary=4096
    rm -f "$dir/results.tsv"
    curves=()

    train_once source 100 "${steps[$set]}" "" "${learned[@]}" "${tokens_only[@]}"
    once hash-router "$dir/hash.router" "$dir/text-train.bin" "$program" route --method hash \
        --fit "$dir/text-train" --vocab "$vocabulary" --experts 16 --top-k 2 --out "$dir/hash.router"
    once random-router "$dir/random.router" "$dir/text-train.bin" "$program" route --method random --seed 1 \
        --experts 16 --top-k 2 --out "$dir/random.router"
    make_routes hash "$dir/hash.router"
    make_routes random "$dir/random.router"
    local cost=0 n
    declare -A price=()
    for mask in causal bidirectional; do
        for layer in first last; do
            name=$mask-$layer
            make_grouter "$mask" "$layer"
            n=$(($(last_number source tokens_seen) + $(last_number "distil-$name" tokens_seen) +
                $(last_number "tune-$name" tokens_seen)))
            price[$name]=$n
        done
    done
    cost=${price[causal-last]}
    deciding 1
    target random random 1 0
    target causal-first causal-first 1 "${price[causal-first]}"
    target bidirectional-first bidirectional-first 1 "${price[bidirectional-first]}"
    target causal-last-gates causal-last 1 "$cost" --set routing.gates=learned --set routing.z_loss_coef=0.001
    for ((seed = 2; seed <= n_seed; seed++)); do
        deciding "$seed"
    done
    target learned-all-in learned 1 "$cost"
    scripts/plot.sh "$dir/loss.svg" "${curves[@]}"
}

# ---------------------------------------------------------------- all of it

scripts/setup.sh
scripts/build.sh build grouter-train
mkdir -p "$top"
make_text
text_files=$(echo "$top"/text/*.txt)
note=""
[[ -z $quick ]] || note="Made with --quick: these numbers mean nothing. "
for set in "${sets[@]}"; do
    dir=$top/$set
    mkdir -p "$dir/made"
    if [[ $set == bpe ]] && ! make_vocabulary; then
        note+="bpe: left out, since python3 -m venv with PyPI's tokenizers was not to be had."
        echo "small: bpe: left out, since python3 -m venv with PyPI's tokenizers was not to be had"
        continue
    fi
    make_tokens
    run_set
done
scripts/reproduce/report.sh "$top" "$note" >"$top/report.md.part"
mv "$top/report.md.part" "$top/report.md"
cat "$top/report.md"
echo "small: $top/report.md, after $SECONDS s"
