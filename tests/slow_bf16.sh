#!/bin/bash
# The quick start's model on this repository's text, 200 steps in fp32 and in bf16: the mean loss of steps 151 to 200 agrees
# within 1 %. bf16 runs with oneDNN's products where this CPU has them, else with the stand-in of the tests.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
config=$SOURCE_DIR/configs/quickstart/train.json

for file in "$SOURCE_DIR"/{README.md,configs/*.md,src/*/*.[ch],include/grouter/*.h,tests/*.[ch],tests/*.sh,scripts/*.*}; do
    cat "$file"
    echo '<|endoftext|>'
done >text.txt
"$binary" tokens --out text text.txt >/dev/null 2>&1
"$binary" route --method hash --fit text --vocab 257 --experts 16 --top-k 2 --out h.router >/dev/null 2>&1
"$binary" route --router h.router --tokens text --seq-len 256 --out text.routes >/dev/null 2>&1
set=(--set 'data.train=[{"tokens": "text", "routes": "text.routes"}]' --set 'data.valid=[]' --set eval.every_steps=0
    --set train.steps=200 --set optimizer.decay_steps=300 --set parallel.expert_parallel_size=1
    --set train.micro_batch_windows=8 --set train.global_batch_windows=32)

train() { # PROGRAM DTYPE: prints the mean loss of the last 50 steps
    "$1" train "$config" "${set[@]}" --set run.dir="$2" --set train.dtype="$2" >"$2.out" 2>"$2.err" ||
        { cat "$2.err" >&2 && exit 1; }
    sed -n 's/^{.*"step":\([0-9]*\),.*"loss":\([-+0-9.eE]*\).*/\1 \2/p' "$2/metrics.jsonl" |
        awk '$1 > 150 && $1 <= 200 { sum += $2; n++ } END { if (n != 50) exit 1; printf "%.6f\n", sum / n }'
}
program=$binary code=0
"$binary" train "$config" "${set[@]}" --set train.dtype=bf16 --dry-run >probe.out 2>&1 || code=$?
if [ $code -eq 69 ]; then
    program=$BF16_BINARY
    echo "bf16 products: the tests' stand-in"
fi
fp32=$(train "$binary" fp32)
bf16=$(train "$program" bf16)
echo "mean loss of steps 151 to 200: fp32 $fp32, bf16 $bf16"
awk -v a="$bf16" -v b="$fp32" 'BEGIN { d = a / b - 1; printf "bf16 differs by %.3f %%\n", 100 * d; exit !(d < 0.01 && d > -0.01) }'
