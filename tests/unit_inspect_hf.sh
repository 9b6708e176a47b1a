#!/usr/bin/env bash
# `inspect` of a checkpoint's folder: what the model is, as text and as JSON, and 66 with the reason where it is unusable.
set -u
binary=$1
work=$2
fixtures=$SOURCE_DIR/tests/fixtures/qwen3_moe_tiny
rm -rf "$work"
mkdir -p "$work" && cd "$work" || exit 1
source "$SOURCE_DIR/tests/command.sh"
has() { grep -qxF -- "$1" out || fail "expected the line '$1'"; }

expect 0 inspect "$fixtures/f16_sharded"
has 'family: Hugging Face Qwen3-MoE'
has 'experts E: 6'
has 'rope theta: 1e+06'
has 'parameters: 16704'
has 'tensors of F16: 84'
has '  model-00002-of-00003.safetensors'
has 'verified: name, shape and type of every tensor'

expect 0 inspect "$fixtures/tied_dense/config.json"
has 'of them dense, first: 1'
has 'head tied to the embedding: yes'
has 'gates normalised over the chosen experts: no'

expect 0 inspect --json "$fixtures/f16_sharded"
has '  "num_experts": 6,'
has '  "parameters": 16704,'
has '  "files": ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]'
[ "$(tail -c 3 out)" = $'\n}' ] || fail "JSON does not end"

cp -r "$fixtures/f16_sharded" broken && chmod -R u+w broken && rm broken/model-00002-of-00003.safetensors
expect 66 inspect broken
[ ! -s out ] || fail "something on standard output before all is verified"
grep -q 'model-00002-of-00003.safetensors: expected a file' err || fail "the missing file is not named"
expect 66 inspect .
grep -q 'expected either model.safetensors or model.safetensors.index.json, got neither' err || fail "no reason"
