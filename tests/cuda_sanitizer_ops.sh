#!/bin/bash
# compute-sanitizer's memcheck on the test programs of single ops, whose hostile shapes reach more edges than any model.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_sanitizer
need_gpu
export CHECK_BACKEND=cuda
n=0
for op in norm rows loss ffn router attention; do
    for program in "$(dirname "$binary")/tests/test_cpu_$op"{,_bf16}; do
        [ -x "$program" ] || continue
        sanitize memcheck "${program##*/}" "$program"
        n=$((n + 1))
    done
done
[ $n -gt 0 ] || die "expected test programs of ops in $(dirname "$binary")/tests, got none"
echo "compute-sanitizer finds nothing in $n programs of ops"
