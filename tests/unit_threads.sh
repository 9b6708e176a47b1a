#!/bin/bash
# OpenMP may give a process fewer threads than it announces. The program then uses what it gets, everywhere: the same bits
# as when it had been told so.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
. "$SOURCE_DIR/tests/command.sh"
unset OMP_NUM_THREADS OMP_THREAD_LIMIT OMP_DYNAMIC

expect 0 tokens --synthetic 9000 --vocab 257 --seed 1 --out t
expect 0 route --method random --seed 1 --experts 8 --top-k 2 --out r.router
expect 0 route --router r.router --tokens t --seq-len 128 --out t.routes
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
            "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 128},
  "optimizer": {"lr": 1e-3},
  "train": {"steps": 2, "micro_batch_windows": 8, "global_batch_windows": 8}
}
JSON
trained() { # NAME=VALUE...: the parameter hash
    local variable
    for variable in "$@"; do export "${variable?}"; done
    expect 0 train c.json --fresh
    grep -qE '^parameter hash [0-9a-f]{32}$' out || fail "$*: a parameter hash is printed: $(<out)"
    tail -n 1 out
}
one=$(trained OMP_NUM_THREADS=1)
two=$(trained OMP_NUM_THREADS=2)
[ "$(trained OMP_NUM_THREADS=2 OMP_THREAD_LIMIT=1)" = "$one" ] || fail "a limit of one thread equals one thread"
[ "$(trained OMP_NUM_THREADS=2 OMP_DYNAMIC=true)" = "$two" ] || fail "threads are not given and taken during a run"
echo "threads are as many as OpenMP gives"
