#!/bin/bash
# Speed of whole training steps on the CPU: see usage below.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/bench_cpu.sh [MODEL...]
For each model (a config of configs/bench without .json; default: small medium), storage type and layout (1 rank with 2
threads, 2 ranks with 1 thread each) prints what `bench step` measures, as medians over its steps: tokens/s; model FLOP/s;
the rate that `bench kernels` reaches on the largest matrix product of the step, with the same processes and threads; the
share of that rate which the whole step reaches; milliseconds by phase. The machine must be idle: anything else that runs
makes both rates, and so their ratio, unreliable.
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1-} in
-h | --help) usage && exit 0 ;;
-*) usage >&2 && exit 2 ;;
esac
models=("$@")
[[ $# -gt 0 ]] || models=(small medium)
for model in "${models[@]}"; do
    [[ -f configs/bench/$model.json ]] || { echo "bench_cpu: no configs/bench/$model.json" >&2 && exit 2; }
done

program=build/grouter-train work=build/bench
dtypes=(fp32 bf16)
layouts=("1 2" "2 1") # ranks, threads of each
phases=(forward backward exchange reduce optimizer prepare)

# Why the program cannot train with this storage type; nothing if it can.
dtype_missing() { # dtype, model
    local code=0
    [[ $1 != fp32 ]] || return 0
    "$program" bench step "configs/bench/$2.json" --set train.dtype="$1" --steps 1 --warm 0 >/dev/null 2>&1 || code=$?
    [[ $code -ne 69 ]] || echo "refused: this CPU has no $1 products in oneDNN"
}

launch() { # ranks, threads, program...
    local command=(mpirun -n "$1" --oversubscribe --bind-to none --mca btl "self,vader"
        --mca btl_vader_single_copy_mechanism none)
    [[ $(id -u) -ne 0 ]] || command+=(--allow-run-as-root)
    [[ $1 -gt 1 ]] || command=()
    OMP_NUM_THREADS=$2 "${command[@]}" "${@:3}"
}

# The number of a key in a config (its first), or in the figures that a benchmark has written.
number() { # file, key
    sed -n "s/.*\"$2\": \(-\{0,1\}[0-9][-+0-9.e]*\).*/\1/p" "$1" | head -n 1
}

# The forward product with the most FLOPs: its sizes and its best rate in GFLOP/s, of all ranks together.
largest_product() { # figures, ranks
    sed -n 's/.*"variant": "[a-z]*, NT", "sizes": "\([^"]*\)".*"flops": \([0-9.e+]*\),.*"best_tflops_per_s": \([0-9.e+-]*\).*/\2 \3 \1/p' \
        "$1" | LC_ALL=C sort -g | tail -n 1 | awk -v ranks="$2" '{ rate = $2 * 1e3 * ranks; $1 = $2 = ""; print rate, $0 }'
}

bench_layout() { # model, dtype, ranks, threads
    local config=configs/bench/$1.json micro global phase rate after sizes line=""
    micro=$(number "$config" micro_batch_windows) global=$(number "$config" global_batch_windows)
    [[ $((micro * $3)) -le $global ]] || micro=$((global / $3))
    local gemm=("$program" bench kernels --config "$config" --only gemm --dtype "$2"
        --tokens $((micro * $(number "$config" seq_len))))
    launch "$3" "$4" "${gemm[@]}" --json "$work/gemm.json" >/dev/null
    launch "$3" "$4" "$program" bench step "$config" --steps 18 --set train.micro_batch_windows="$micro" \
        --set parallel.expert_parallel_size="$3" --set train.dtype="$2" --json "$work/step.json" >"$work/step.log" 2>&1 ||
        { cat "$work/step.log" >&2 && exit 1; }
    # Measured again behind the training: what disturbs only one of them does not raise the share.
    launch "$3" "$4" "${gemm[@]}" --json "$work/after.json" >/dev/null
    read -r rate sizes <<<"$(largest_product "$work/gemm.json" "$3")"
    read -r after _ <<<"$(largest_product "$work/after.json" "$3")"
    for phase in "${phases[@]}"; do
        line+=$(sed -n "s/.*\"phase\": \"$phase\", \"median_ms\": \([0-9.e+-]*\).*/\1/p" "$work/step.json" |
            awk '{ printf " %8.1f", $1 }')
    done
    awk -v model="$1" -v dtype="$2" -v layout="$3 x $4" -v rate="$rate" -v after="$after" -v line="$line" \
        -v ms="$(sed -n 's/.*"phase": "step", "median_ms": \([0-9.e+-]*\).*/\1/p' "$work/step.json")" \
        -v tokens="$(number "$work/step.json" tokens_per_s)" -v flops="$(number "$work/step.json" model_flops_per_s)" 'BEGIN {
        rate = after > rate ? after : rate
        printf "%-7s %-5s %-6s %9.0f %8.1f %8.1f %6.1f%% %8.1f%s\n", model, dtype, layout, tokens, flops / 1e9, rate,
            100 * flops / 1e9 / rate, ms, line }'
    echo "        largest product of a rank: $sizes"
}

scripts/build.sh build grouter-train >/dev/null
mkdir -p "$work"
read -r load _ </proc/loadavg
! awk -v load="$load" 'BEGIN { exit !(load > 0.5) }' ||
    echo "bench_cpu: warning: the machine is busy (load $load): these figures will be unreliable" >&2
sed -n 's/^model name[^:]*: */cpu: /p' /proc/cpuinfo | head -n 1
"$program" --version | head -n 1
printf '%-7s %-5s %-6s %9s %8s %8s %7s %8s %8s %8s %8s %8s %8s %8s\n' model dtype layout tokens/s GFLOP/s GEMM share \
    step-ms forward backward exchange reduce adamw plan
for model in "${models[@]}"; do
    for dtype in "${dtypes[@]}"; do
        missing=$(dtype_missing "$dtype" "$model")
        if [[ -n $missing ]]; then
            printf '%-7s %-5s %s\n' "$model" "$dtype" "$missing"
            continue
        fi
        for layout in "${layouts[@]}"; do
            read -r ranks threads <<<"$layout"
            bench_layout "$model" "$dtype" "$ranks" "$threads"
        done
    done
done
