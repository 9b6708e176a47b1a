#!/bin/bash
# Speed of whole training steps on the CPU: see usage below.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/bench_cpu.sh [MODEL...]
For each model (a config of configs/bench without .json; default: small medium), storage type and layout (1 rank with 2
threads, 2 ranks with 1 thread each) prints, as medians over the steps after the second: tokens/s; model FLOP/s; the rate
that oneDNN reaches on the largest matrix product of the step, with the same processes and threads; the share of that rate
which the whole step reaches; milliseconds by phase. The machine must be idle: anything else that runs makes both
rates, and so their ratio, unreliable.
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

program=build/grouter-train
dtypes=(fp32 bf16)
layouts=("1 2" "2 1") # ranks, threads of each
phases=(forward_ms backward_ms exchange_ms reduce_ms optimizer_ms prepare_ms)

# Why the program cannot train with this storage type; nothing if it can.
dtype_missing() { # dtype, model
    local code=0
    [[ $1 != fp32 ]] || return 0
    "$program" train "configs/bench/$2.json" --set train.dtype="$1" --dry-run >/dev/null 2>&1 || code=$?
    [[ $code -ne 69 ]] || echo "refused: this CPU has no $1 products in oneDNN"
}

launch() { # ranks, threads, program...
    local command=(mpirun -n "$1" --oversubscribe --bind-to none --mca btl "self,vader"
        --mca btl_vader_single_copy_mechanism none)
    [[ $(id -u) -ne 0 ]] || command+=(--allow-run-as-root)
    [[ $1 -gt 1 ]] || command=()
    OMP_NUM_THREADS=$2 "${command[@]}" "${@:3}"
}

config_number() { # config, key
    sed -n "s/.*\"$2\": *\([0-9][0-9]*\).*/\1/p" "$1" | head -n 1
}

step_median() { # metrics, key: over the steps after the second
    sed -n "3,\$s/.*\"$2\":\(-\{0,1\}[0-9][-+0-9.eE]*\).*/\1/p" "$1" | LC_ALL=C sort -g |
        awk '{ value[NR] = $1 } END { printf "%.6g\n", NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2 }'
}

# Writes the products' rates to FOLDER/gemm.txt; prints the ranks' rates of the largest one added up.
gemm_rate() { # folder, ranks, threads, config, settings...
    launch "$2" "$3" build/tests/bench_gemm "${@:4}" >"$1/gemm.txt"
    sed -n 's/^largest: .* \([0-9.]*\) GFLOP.*/\1/p' "$1/gemm.txt" | awk '{ sum += $1 } END { print sum }'
}

bench_layout() { # model, dtype, ranks, threads
    local config=configs/bench/$1.json folder=build/bench/$1 micro global rate after line ms phase
    micro=$(config_number "$config" micro_batch_windows) global=$(config_number "$config" global_batch_windows)
    [[ $((micro * $3)) -le $global ]] || micro=$((global / $3))
    local set=(train.micro_batch_windows="$micro" parallel.expert_parallel_size="$3" train.dtype="$2")
    rate=$(gemm_rate "$folder" "$3" "$4" "$config" "${set[@]}")
    rm -rf "$folder/run"
    launch "$3" "$4" "$program" train "$config" "${set[@]/#/--set=}" >"$folder/train.log" 2>&1 ||
        { cat "$folder/train.log" >&2 && exit 1; }
    # Measured again behind the training: what disturbs only one of them does not raise the share.
    after=$(gemm_rate "$folder" "$3" "$4" "$config" "${set[@]}")
    rate=$(printf '%s\n' "$rate" "$after" | LC_ALL=C sort -g | tail -n 1)
    local metrics=$folder/run/metrics.jsonl
    ms=$(step_median "$metrics" step_ms)
    line=""
    for phase in "${phases[@]}"; do
        local part
        part=$(step_median "$metrics" "$phase")
        line+=$(awk -v v="$part" 'BEGIN { printf " %8.1f", v }')
    done
    awk -v model="$1" -v dtype="$2" -v layout="$3 x $4" -v rate="$rate" -v ms="$ms" -v line="$line" \
        -v tokens="$(step_median "$metrics" tokens_per_s)" -v flops="$(step_median "$metrics" model_flops_per_s)" 'BEGIN {
        printf "%-7s %-5s %-6s %9.0f %8.1f %8.1f %6.1f%% %8.1f%s\n", model, dtype, layout, tokens, flops / 1e9, rate,
            100 * flops / 1e9 / rate, ms, line }'
    sed -n 's/^largest: \(.*[0-9]\)  .*/        largest product of a rank: \1/p' "$folder/gemm.txt" | head -n 1
}

read -r load _ </proc/loadavg
! awk -v load="$load" 'BEGIN { exit !(load > 0.5) }' ||
    echo "bench_cpu: warning: the machine is busy (load $load): these figures will be unreliable" >&2
for model in "${models[@]}"; do
    scripts/bench_data.sh "configs/bench/$model.json" >/dev/null 2>build/bench_data.log ||
        { cat build/bench_data.log >&2 && exit 1; }
done
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
