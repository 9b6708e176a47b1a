#!/bin/bash
# The same run on a GPU twice gives the same bits, log and weights, in both storage types, with given and learned routes,
# and with activations made again in backward.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_gpu
configs
plain_config '{"source": "learned", "aux_loss_coef": 0.01}' '' >learned.json

for dtype in fp32 bf16; do
    for model in plain odd learned; do
        for name in first second; do
            train $model-$dtype-$name $model.json "${cuda[@]}" --set train.dtype=$dtype
        done
        same_log $model-$dtype-first $model-$dtype-second
        same_weights $model-$dtype-first $model-$dtype-second
    done
    for recompute in experts block; do
        train plain-$dtype-$recompute plain.json "${cuda[@]}" --set train.dtype=$dtype --set train.recompute=$recompute
        same_log plain-$dtype-$recompute plain-$dtype-first
        same_weights plain-$dtype-$recompute plain-$dtype-first
    done
done
if [ "$(hash_of plain-fp32-first)" = "$(hash_of plain-bf16-first)" ]; then
    die "expected other weights in bf16 than in fp32"
fi
echo "the same run gives the same bits"
