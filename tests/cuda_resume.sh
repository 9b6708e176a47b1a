#!/bin/bash
# A run that stops after 10 of 20 steps and goes on: on the same GPU to the bits of one that never stopped, from CPU to GPU
# and back within the limits of the two, which is said.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_gpu
configs
half=(--set train.steps=10)
goes_on() { grep -q 'going on from .*step-00000010' "$1.err" || die "$1: expected to go on from step 10: $(cat "$1.err")"; }

for dtype in fp32 bf16; do
    train whole-$dtype plain.json "${cuda[@]}" --set train.dtype=$dtype
    train parts-$dtype plain.json "${cuda[@]}" --set train.dtype=$dtype "${half[@]}"
    train parts-$dtype plain.json "${cuda[@]}" --set train.dtype=$dtype
    goes_on parts-$dtype
    if grep -q 'may differ from' parts-$dtype.err; then
        die "$dtype: expected nothing to have changed: $(cat parts-$dtype.err)"
    fi
    same_log parts-$dtype whole-$dtype
    same_weights parts-$dtype whole-$dtype
done

train whole-cpu plain.json "${cpu[@]}"
train to-cuda plain.json "${cpu[@]}" "${half[@]}"
train to-cuda plain.json "${cuda[@]}"
train to-cpu plain.json "${cuda[@]}" "${half[@]}"
train to-cpu plain.json "${cpu[@]}"
for name in to-cuda:'"cpu" -> "cuda"' to-cpu:'"cuda" -> "cpu"'; do
    change=${name#*:} name=${name%%:*}
    goes_on "$name"
    grep -q "changed since the checkpoint: parallel.backend: $change" "$name.err" ||
        die "$name: expected the change of backend to be said: $(cat "$name.err")"
    losses_within "$name" whole-cpu 1 20 1e-4
    weights_within "$name" whole-cpu 1e-4
    weights_within "$name" whole-fp32 1e-4
done
echo "runs go on on the other backend, and on the same one bit for bit"
