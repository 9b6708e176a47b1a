#!/bin/bash
# compute-sanitizer on the test programs of single ops, whose hostile shapes reach more edges than any model: bad accesses in
# all, and races in those whose kernels share memory within a block.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_sanitizer
need_gpu
export CHECK_BACKEND=cuda
n=0
for op in norm head_norm rows loss ffn router layer_norm attention; do
    for program in "$(dirname "$binary")/tests/test_cpu_$op"{,_bf16}; do
        [ -x "$program" ] || continue
        sanitize memcheck "${program##*/}-memcheck" "$program"
        case $op in
        rows | ffn) ;;
        *) sanitize racecheck "${program##*/}-racecheck" "$program" ;;
        esac
        n=$((n + 1))
    done
done
[ $n -gt 0 ] || die "expected test programs of ops in $(dirname "$binary")/tests, got none"
echo "compute-sanitizer finds nothing in $n programs of ops${unchecked:+; it broke down in$unchecked}"
