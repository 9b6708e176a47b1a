#!/bin/bash
# On a GPU: products tuned once by the clock, then read from the file by two runs, which give the same bits; and losses
# equal to rounding to those of a run without the file. Steps of the tuned config and of the odd one, whose shapes are in
# no file.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_gpu
configs

for dtype in fp32 bf16; do
    few=("${cuda[@]}" --set train.dtype=$dtype --set train.steps=4)
    quiet tune-$dtype "$binary" bench step plain.json "${few[@]}" --warm 1 --steps 2 --tune-products $dtype.plans
    grep -E 'shapes of products tuned' tune-$dtype.err || die "$dtype: nothing is said of what was tuned"
    train $dtype-without plain.json "${few[@]}"
    for name in first second; do
        train $dtype-$name plain.json "${few[@]}" --set parallel.product_plans=$dtype.plans
        grep -qE "products by the algorithms of $dtype.plans" $dtype-$name.err || die "$dtype: the file is not read"
    done
    same_log $dtype-first $dtype-second
    same_weights $dtype-first $dtype-second
    losses_within $dtype-first $dtype-without 1 4 "$([ $dtype = fp32 ] && echo 1e-5 || echo 1e-2)"
    train $dtype-odd odd.json "${few[@]}" --set parallel.product_plans=$dtype.plans
done
echo "runs with tuned products give the same bits"
