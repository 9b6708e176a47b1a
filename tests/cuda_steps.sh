#!/bin/bash
# Training on a GPU in fp32 and bf16 against training on the CPU in fp32, from equal weights: loss and gradients of the first
# step, 20 steps, and the loss over 60 in bf16; on routes from a table and learned ones, and sizes that suit no kernel.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
need_gpu
configs

# first MODEL: one step. bf16 rounds operands to 8 bits.
first() {
    train "$1-1-cpu" "$1.json" "${cpu[@]}" --set train.steps=1
    train "$1-1-fp32" "$1.json" "${cuda[@]}" --set train.steps=1
    losses_within "$1-1-fp32" "$1-1-cpu" 1 1 1e-5
    gradients_within "$1-1-fp32" "$1-1-cpu" 1e-4
}
first_bf16() {
    train "$1-1-bf16" "$1.json" "${cuda[@]}" "${bf16[@]}" --set train.steps=1
    losses_within "$1-1-bf16" "$1-1-cpu" 1 1 1e-3
    gradients_within "$1-1-bf16" "$1-1-cpu" 5e-2
}

for model in plain odd; do
    first $model
    first_bf16 $model
    train $model-cpu $model.json "${cpu[@]}"
    train $model-fp32 $model.json "${cuda[@]}"
    grep -q 'backend cuda, F32' $model-fp32.err || die "$model: expected backend cuda in the log: $(cat $model-fp32.err)"
    losses_within $model-fp32 $model-cpu 1 20 1e-4
    weights_within $model-fp32 $model-cpu 1e-4
    train $model-long $model.json "${cuda[@]}" --set train.steps=60
    train $model-bf16 $model.json "${cuda[@]}" "${bf16[@]}" --set train.steps=60
    grep -q 'backend cuda, BF16' $model-bf16.err || die "$model: expected bf16 in the log: $(cat $model-bf16.err)"
    means_within $model-bf16 $model-long 11 60 1e-2
done
grep -qE 'backend cuda: [0-9]+ copies to the host and 1 waits' plain-bf16.err ||
    die "expected one wait of the host in a step of given routes, got: $(grep copies plain-bf16.err)"

# ---- learned routes: a near tie that falls to the other side is another run from there on, so tight limits hold for one step
for name in learned gates; do
    case $name in
    learned) plain_config '{"source": "learned", "aux_loss_coef": 0.01, "z_loss_coef": 0.001}' '' >$name.json ;;
    gates) plain_config '{"gates": "learned", "scale": 2.5, "z_loss_coef": 0.001}' >$name.json ;;
    esac
    first $name
    train $name-cpu $name.json "${cpu[@]}"
    train $name-fp32 $name.json "${cuda[@]}"
    means_within $name-fp32 $name-cpu 1 20 1e-2
    train $name-bf16 $name.json "${cuda[@]}" "${bf16[@]}"
    means_within $name-bf16 $name-cpu 1 20 2e-2
done
losses_within gates-fp32 gates-cpu 1 20 1e-4
weights_within gates-fp32 gates-cpu 1e-4

# ---- evaluation of the same weights
plain_config | sed 's/"seq_len"/"valid": [{"tokens": "plain", "routes": "plain.routes"}], "seq_len"/' >eval.json
loss() { grep -oE '[0-9]+\.[0-9]{3,}' "$1.out" | head -n 1; }
quiet eval-cpu "$binary" eval eval.json --weights plain-cpu/model.safetensors "${cpu[@]}"
quiet eval-cuda "$binary" eval eval.json --weights plain-cpu/model.safetensors "${cuda[@]}"
awk -v a="$(loss eval-cuda)" -v b="$(loss eval-cpu)" 'BEGIN { exit !(b > 0 && (a - b) ^ 2 <= (1e-4 * b) ^ 2) }' ||
    die "eval: expected the same loss, got $(cat eval-cuda.out eval-cpu.out)"
echo "20 steps on a GPU follow the CPU in fp32, 60 in bf16 follow fp32"
