#!/bin/bash
# Four ranks that save often are killed at random - one rank, all ranks or mpirun, half of the times while a save is
# under way - and resumed by the same command: the run never falls behind what it called durable, and ends with the
# parameter hash of a run that nobody killed. KILLS kills (8); SEED chooses when.
set -euo pipefail
binary=$1 work=$2
kills=${KILLS:-8}
RANDOM=${SEED:-1}
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0

die() {
    echo "FAILED: $*"
    tail -n 5 ./*.err 2>/dev/null || true
    exit 1
}
launch() { # DIR: in the background, as $launcher
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader --mca mpi_yield_when_idle 1 -n 4 \
        "$binary" train c.json --set run.dir="$1" >"$1.out" 2>"$1.err" &
    launcher=$!
}
newest() { # DIR: the last step that was called durable, over all its lives; 0 if none was
    sed -n 's/.*checkpoint step \([0-9]*\) durable.*/\1/p' "$1.all" "$1.err" 2>/dev/null | sort -n | tail -1 | grep . || echo 0
}
resumed() { # DIR: the step its last life started at; nothing if it was killed before it said so
    sed -nE 's/.*(going on from .*:|nothing to do:) ([0-9]+) of .*/\2/p' "$1.err" | head -1
}
saving() { # DIR
    compgen -G "$1/checkpoints/tmp-*" >/dev/null
}
kill_quietly() {
    kill -KILL "$@" 2>/dev/null || true
}

"$binary" tokens --synthetic 20000 --vocab 64 --seed 1 --out t >/dev/null 2>&1
"$binary" route --method hash --fit t --vocab 64 --experts 4 --top-k 2 --out h.router >/dev/null 2>&1
"$binary" route --router h.router --tokens t --seq-len 16 --out t.routes >/dev/null 2>&1
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 4, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 16},
  "optimizer": {"lr": 3e-3, "warmup_steps": 5},
  "train": {"steps": 300, "micro_batch_windows": 1, "global_batch_windows": 4},
  "parallel": {"expert_parallel_size": 2},
  "checkpoint": {"every_steps": 3, "keep_last": 2}
}
JSON

launch calm
wait "$launcher" || die "the run that nobody kills"
expected=$(tail -1 calm.out)
[[ $expected =~ ^parameter\ hash\ [0-9a-f]{32}$ ]] || die "last line: $expected"

# Waits for the chosen moment of the life in hand; false when it ends before.
wait_for_moment() { # DIR
    local polls=$((RANDOM % 150))
    until [[ -e $1/metrics.jsonl ]]; do
        kill -0 "$launcher" 2>/dev/null || return 1
        sleep 0.01
    done
    for ((; polls > 0; polls--)); do sleep 0.01; done
    if ((RANDOM % 2)); then
        until saving "$1"; do
            kill -0 "$launcher" 2>/dev/null || return 1
        done
    fi
    kill -0 "$launcher" 2>/dev/null
}
# One rank, all ranks, or mpirun; whoever is left when mpirun is gone is killed too, before the next life.
strike() {
    local ranks
    read -ra ranks < <(cat "/proc/$launcher/task"/*/children 2>/dev/null | tr '\n' ' ') || true
    [[ ${#ranks[@]} -eq 4 ]] || return 1
    case $((RANDOM % 3)) in
    0) kill_quietly "${ranks[RANDOM % 4]}" ;;
    1) kill_quietly "${ranks[@]}" ;;
    2) kill_quietly "$launcher" ;;
    esac
    wait "$launcher" 2>/dev/null || true
    for _ in {1..40}; do
        kill -0 "${ranks[@]}" 2>/dev/null || return 0
        sleep 0.05
    done
    kill_quietly "${ranks[@]}"
}
check_resumed() { # DIR DURABLE: after its life
    local step
    step=$(resumed "$1")
    [[ -n $step ]] || ! grep -Eq 'starting over|^step [0-9]+/' "$1.err" || step=0
    ((${step:-$2} >= $2)) || die "$1 resumed at step $step although step $2 was durable"
}

n_kill=0 n_run=0 n_life=0
while ((n_kill < kills)); do
    run=run$((++n_run))
    : >"$run.all"
    for (( ; ; )); do
        durable=$(newest "$run")
        [[ ! -e $run.err ]] || cat "$run.err" >>"$run.all"
        launch "$run"
        n_life=$((n_life + 1))
        if ((n_kill < kills)) && wait_for_moment "$run" && strike; then
            n_kill=$((n_kill + 1))
            check_resumed "$run" "$durable"
            continue
        fi
        wait "$launcher" || die "$run: exit code $? without a kill"
        check_resumed "$run" "$durable"
        break
    done
    [[ $(tail -1 "$run.out") == "$expected" ]] || die "$run ends with $(tail -1 "$run.out"), undisturbed $expected"
done
echo "$n_kill kills in $n_life lives of $n_run runs, all ended with the $expected"
