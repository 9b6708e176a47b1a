#!/bin/bash
# Whole training steps on 1, 2, 4... nodes, in one table: see usage below.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/bench_cluster.sh [options] CONFIG [NODES...]
Runs `bench step CONFIG` on each number of nodes (default: 1 2 4) and prints one table: tokens/s of all ranks and of one,
how much of the fewest nodes' tokens/s per rank that is, the step, and what it waits for. Each rank keeps its work: the
global batch grows with the ranks (weak scaling). Where none of the config's data is there, `bench step` makes synthetic
data in <run.dir>.bench-<process>, so run.dir must be on storage that all nodes see.

  --ranks-per-node N   default 1
  --expert-parallel N  ranks that split the experts: a number, node (the ranks of a node; default) or all
  --micro-batches N    of a rank in a step (default 1)
  --launch COMMAND     how ranks are started; %n stands for how many, %p for how many on a node (default: mpirun -n %n
                       --map-by ppr:%p:node). Under Slurm: --launch 'srun -n %n --ntasks-per-node %p'
  --program FILE       default build/grouter-train
  --set KEY=VALUE      of the config; repeatable
  --steps N, --warm N  as for `bench step`
  --csv FILE           the table once more

example, on one machine of two cores:
  OMP_NUM_THREADS=1 scripts/bench_cluster.sh --launch 'mpirun -n %n --oversubscribe --bind-to none' configs/bench/small.json 1 2
END
}

die() {
    echo "bench_cluster: $*" >&2
    exit 2
}

per_node=1 expert_parallel=node micro_batches=1 program=build/grouter-train csv=
launch="mpirun -n %n --map-by ppr:%p:node"
set=() steps=()
while [[ ${1-} == -* ]]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --ranks-per-node | --expert-parallel | --micro-batches | --launch | --program | --set | --steps | --warm | --csv) ;;
    *) usage >&2 && exit 2 ;;
    esac
    [[ $# -ge 2 ]] || die "$1: expected a value after it"
    case $1 in
    --ranks-per-node) per_node=$2 ;;
    --expert-parallel) expert_parallel=$2 ;;
    --micro-batches) micro_batches=$2 ;;
    --launch) launch=$2 ;;
    --program) program=$2 ;;
    --set) set+=(--set "$2") ;;
    --csv) csv=$2 ;;
    *) steps+=("$1" "$2") ;;
    esac
    shift 2
done
[[ $# -ge 1 ]] || { usage >&2 && exit 2; }
config=$1
shift
[[ -f $config ]] || die "no config $config"
[[ $per_node =~ ^[1-9][0-9]*$ ]] || die "--ranks-per-node: expected a number, got $per_node"
[[ $micro_batches =~ ^[1-9][0-9]*$ ]] || die "--micro-batches: expected a number, got $micro_batches"
[[ $expert_parallel =~ ^([1-9][0-9]*|node|all)$ ]] || die "--expert-parallel: expected a number, node or all, got $expert_parallel"
nodes=("$@")
[[ $# -gt 0 ]] || nodes=(1 2 4)
for n in "${nodes[@]}"; do
    [[ $n =~ ^[1-9][0-9]*$ ]] || die "expected numbers of nodes, got $n"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number() { # file, key
    sed -n "s/.*\"$2\": \(-\{0,1\}[0-9][-+0-9.e]*\).*/\1/p" "$1" | head -n 1
}
phase() { # file, phase
    sed -n "s/.*\"phase\": \"$2\", \"median_ms\": \([0-9.e+-]*\).*/\1/p" "$1"
}
micro=$(number "$config" micro_batch_windows)
for one in "${set[@]}"; do
    [[ $one != train.micro_batch_windows=* ]] || micro=${one#*=}
done
[[ -n $micro ]] || micro=1

measure() { # nodes: figures in $work/N.json
    local ranks=$(($1 * per_node)) ep command
    case $expert_parallel in
    node) ep=$per_node ;;
    all) ep=$ranks ;;
    *) ep=$expert_parallel ;;
    esac
    command=${launch//%n/$ranks}
    read -ra command <<<"${command//%p/$per_node}"
    [[ $(id -u) -ne 0 || ${command[0]} != mpirun ]] || command+=(--allow-run-as-root)
    [[ $ranks -gt 1 ]] || command=()
    "${command[@]}" "$program" bench step "$config" "${set[@]}" --set parallel.expert_parallel_size="$ep" \
        --set train.global_batch_windows=$((micro * ranks * micro_batches)) "${steps[@]}" --json "$work/$1.json" \
        >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
}

printf '%5s %5s %3s %12s %12s %11s %9s %9s %9s %9s %9s %9s %8s\n' nodes ranks EP tokens/s 'of a rank' efficiency step-ms \
    forward backward exchange reduce optimizer 'MB sent'
base=
[[ -z $csv ]] || echo "nodes,ranks,expert_parallel,tokens_per_s,efficiency,step_ms,forward_ms,backward_ms,exchange_ms,reduce_ms,optimizer_ms,bytes_sent" >"$csv"
for n in "${nodes[@]}"; do
    measure "$n"
    file=$work/$n.json
    each=$(awk -v t="$(number "$file" tokens_per_s)" -v r="$(number "$file" ranks)" 'BEGIN { printf "%.9g", t / r }')
    [[ -n $base ]] || base=$each
    sent=$(number "$file" bytes_sent)
    awk -v nodes="$n" -v ranks="$(number "$file" ranks)" -v ep="$(number "$file" expert_parallel)" \
        -v tokens="$(number "$file" tokens_per_s)" -v each="$each" -v base="$base" -v step="$(phase "$file" step)" \
        -v forward="$(phase "$file" forward)" -v backward="$(phase "$file" backward)" \
        -v exchange="$(phase "$file" exchange)" -v reduce="$(phase "$file" reduce)" \
        -v optimizer="$(phase "$file" optimizer)" -v sent="${sent:-0}" -v csv="$csv" 'BEGIN {
        printf "%5d %5d %3d %12.0f %12.0f %9.1f %% %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %8.1f\n", nodes, ranks, ep, tokens,
            each, 100 * each / base, step, forward, backward, exchange, reduce, optimizer, sent / 1e6
        if (csv != "")
            printf "%d,%d,%d,%s,%.6g,%s,%s,%s,%s,%s,%s,%s\n", nodes, ranks, ep, tokens, each / base, step, forward,
                backward, exchange, reduce, optimizer, sent >>csv }'
done
