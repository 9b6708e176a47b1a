#!/bin/bash
# compute-sanitizer on three steps of two tiny models: no bad access, no race in shared memory, no barrier that threads miss,
# no read of memory that nobody wrote. Races and barriers are looked for in the program's own kernels, not in cuBLAS's; what
# those write must be seen to be written, so the last looks at all.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_sanitizer
need_gpu
configs
tiny=("${cuda[@]}" --set train.steps=3 --set train.global_batch_windows=4)

for tool in memcheck racecheck synccheck initcheck; do
    sanitize $tool plain-bf16-$tool "$binary" train plain.json --set run.dir=plain-bf16-$tool "${tiny[@]}" "${bf16[@]}"
    sanitize $tool odd-fp32-$tool "$binary" train odd.json --set run.dir=odd-fp32-$tool "${tiny[@]}"
done
sanitize memcheck block "$binary" train plain.json --set run.dir=block "${tiny[@]}" --set train.recompute=block
echo "compute-sanitizer finds nothing in training${unchecked:+; it broke down in$unchecked}"
