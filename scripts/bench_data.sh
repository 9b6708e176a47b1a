#!/bin/bash
# Builds the program and makes the synthetic tokens and routes that a config of configs/bench reads. Called by the
# benchmarks. Usage: scripts/bench_data.sh CONFIG
#
# The file holds exactly one step's windows: every step is one epoch, so that another program can train on the same
# tokens without knowing our order of windows. Routes are random: near-uniform loads, no two tokens' experts tied.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=$1 program=build/grouter-train

number() { # key: the config's only number of that name
    sed -n "s/.*\"$1\": *\([0-9][0-9]*\).*/\1/p" "$config" | head -n 1
}

path() { # key: the config's only path of that name
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$config" | head -n 1
}

scripts/build.sh build grouter-train
tokens=$(path tokens) routes=$(path routes) seq_len=$(number seq_len)
mkdir -p "$(dirname "$tokens")"
n_token=$(($(number global_batch_windows) * seq_len + 1))
"$program" tokens --synthetic "$n_token" --vocab "$(number vocab_size)" --seed 1 --out "$tokens"
"$program" route --method random --experts "$(number num_experts)" --top-k "$(number num_experts_per_tok)" --seed 1 \
    --out "$routes.router"
"$program" route --router "$routes.router" --tokens "$tokens" --seq-len "$seq_len" --out "$routes"
