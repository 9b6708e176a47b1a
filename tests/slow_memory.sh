#!/bin/bash
# What a run will use is known before it starts: predicted and measured memory agree for more than 1 GiB of state, on one
# rank and on two that split the experts.
set -euo pipefail
binary=$1
work=$2
if grep -q 'GROUTER_SANITIZE:[A-Z]*=.*\(address\|thread\)' "$BINARY_DIR/CMakeCache.txt"; then
    echo "skipped: a sanitizer's own memory is not predicted"
    exit 77
fi
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"

die() {
    echo "FAILED: $*"
    exit 1
}

"$binary" tokens --synthetic 40000 --vocab 257 --seed 1 --out t &>prepared || die "$(<prepared)"
"$binary" route --method random --experts 16 --top-k 2 --seed 1 --out r.router &>prepared || die "$(<prepared)"
"$binary" route --router r.router --tokens t --seq-len 256 --out t.routes &>prepared || die "$(<prepared)"
cat >c.json <<'JSON'
{
  "run": {"dir": "run"},
  "model": {"vocab_size": 257, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 64,
            "moe_intermediate_size": 704, "num_experts": 16, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "seq_len": 256},
  "optimizer": {"lr": 1e-4},
  "train": {"steps": 3, "micro_batch_windows": 2, "global_batch_windows": 4}
}
JSON

# "1.10 GiB" in bytes.
bytes() {
    awk -v n="$1" -v unit="$2" 'BEGIN { split("KiB MiB GiB TiB", u); for (i in u) if (u[i] == unit) printf "%.0f", n * 1024 ^ i }'
}

compare() { # LOG LEAST: the line of step 3
    local line measured predicted off
    line=$(grep 'memory after 3 steps' "$1") || die "expected a line about memory in: $(<"$1")"
    echo "$line"
    read -r measured predicted < <(sed -E 's/.*: ([0-9.]+) (.iB) measured, ([0-9.]+) (.iB) predicted/\1 \2 \3 \4/' <<<"$line" |
        { read -r a b c d; echo "$(bytes "$a" "$b") $(bytes "$c" "$d")"; })
    [ "$predicted" -ge "$2" ] || die "expected at least $2 bytes of state, got $predicted"
    off=$((measured > predicted ? measured - predicted : predicted - measured))
    [ "$off" -le $((32 << 20)) ] || [ $((off * 20)) -le "$predicted" ] ||
        die "measured $measured and predicted $predicted differ by more than 5 % and 32 MiB"
}

"$binary" train c.json >out 2>err || die "$(<err)"
compare err $((1 << 30))
mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader -n 2 "$binary" train c.json \
    --set run.dir=run2 --set parallel.expert_parallel_size=2 >out 2>err || die "$(<err)"
compare err $((512 << 20))
echo "memory ok"
