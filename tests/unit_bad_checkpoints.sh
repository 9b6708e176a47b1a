#!/bin/bash
# Every damaged, hostile or unfitting checkpoint and run folder ends with its documented code and a message that names
# what, where and what was expected, within 2 s, and nothing of the run folder changes.
set -uo pipefail
# shellcheck source=tests/bad_inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/bad_inputs.sh"

make train good.json --set checkpoint.every_steps=2
cp -a run good.run
checkpoint=run/checkpoints/step-00000002
manifest=$checkpoint/manifest.json
weights=$checkpoint/model-0-of-1.safetensors
moments=$checkpoint/optim-0-of-1.safetensors

# resume CODE PART... [-- ARGS...]: going on for a third step is refused so, and the run folder keeps its every byte; it
# is whole again afterwards.
resume() {
    local parts=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        parts+=("$1")
        shift
    done
    bad "${parts[@]}" -- train good.json --set train.steps=3 "${@:2}"
    rm -rf run && cp -a good.run run
}
# damaged PART...: the only checkpoint is passed over for this reason, so none is left.
damaged() {
    bad 66 'run/checkpoints: expected a whole checkpoint, got 1 damaged' 'restore one from a backup, or start over with --fresh' \
        -- train good.json --set train.steps=3
    also 'warning: checkpoint step 2 is damaged and passed over \(nothing is deleted\): ' "$@"
    rm -rf run && cp -a good.run run
}
# lie SED: changes the manifest, its checksum with it.
lie() {
    sed -i "$1" $manifest
    hash seal $manifest
}
# agree FILE: the manifest lists the file as it is now.
agree() {
    lie "/\"${1##*/}\"/s/\"size\": [0-9]*, \"xxh3_128\": \"[0-9a-f]*\"/\"size\": $(stat -c %s "$1"), \"xxh3_128\": \"$(hash 128 "$1")\"/"
}
# rename FILE OLD NEW: a text of the file's header is replaced by one of the same length; the manifest agrees.
rename() {
    LC_ALL=C sed -i "s/$2/$3/" "$1"
    agree "$1"
}

# ---- damaged or cut: 66
truncate -s -5 $manifest
damaged 'manifest.json: last line: expected the XXH3-64' 'the file is damaged'
: >$manifest
damaged 'manifest.json: expected a manifest, got 0 bytes' 'cut short'
rm $manifest
damaged 'manifest.json: expected a regular file, got: No such file'
patch $manifest 100 '?'
damaged 'manifest.json: last line: expected'
rm $moments
damaged 'optim-0-of-1.safetensors: expected a regular file, got: No such file'
truncate -s -4 $weights
damaged 'model-0-of-1.safetensors: size: expected 45512 bytes, got 45508'
patch $moments 50000 '????'
damaged 'optim-0-of-1.safetensors: XXH3-128: expected [0-9a-f]+, got [0-9a-f]+'
patch $checkpoint/model.safetensors.index.json 200 '?'
damaged 'model.safetensors.index.json: XXH3-128: expected [0-9a-f]+, got [0-9a-f]+'

# ---- links, pipes and folders in place of files: 66
mv $weights elsewhere && ln -s ../../../elsewhere $weights
damaged 'model-0-of-1.safetensors: expected a regular file, got: a symbolic link'
rm elsewhere
rm $manifest && mkfifo $manifest
damaged 'manifest.json: expected a regular file, got: something else'
rm $moments && mkdir $moments
damaged 'optim-0-of-1.safetensors: expected a regular file, got'
mv $checkpoint elsewhere && ln -s ../../elsewhere $checkpoint
damaged 'step-00000002: expected a folder, no link'
rm -r elsewhere

# ---- manifests that are whole and lie: 66
lie 's|"name": "model-0-of-1.safetensors"|"name": "../../../t.bin"|'
damaged 'manifest.json: files\[0\]: name: expected model-0-of-1.safetensors, got ../../../t.bin'
lie 's|"name": "optim-0-of-1.safetensors"|"name": "/etc/passwd"|'
damaged 'manifest.json: files\[2\]: name: expected optim-0-of-1.safetensors, got /etc/passwd'
lie 's|"ranks": 1,|"ranks": 32000,|'
damaged 'manifest.json: files: expected 32002 of them' 'got 3'
lie 's|"ranks": 1,|"ranks": 99999999999,|'
damaged 'manifest.json: ranks: expected a whole number of 1 to 32767, got 99999999999'
lie 's|"size": 45512|"size": 9223372036854775807|'
damaged 'model-0-of-1.safetensors: size: expected 9223372036854775807 bytes, got 45512'
lie 's|"step": 2|"step": 3|'
damaged "manifest.json: step: expected the folder's 2, got 3" 'was it renamed'
lie 's|"cursor": 8|"cursor": 1e3|'
damaged 'manifest.json: cursor: expected a whole number' 'got 1e3'
lie 's|"facts": {|"facts": [[[[[[|'
damaged 'manifest.json:11:15: nested deeper than 4 levels'
lie 's|"version": 1|"version": 2|'
resume 66 'manifest.json: version: expected 1, got 2' 'use the grouter-train that wrote it'
lie 's|"config": "{|"config": "[|'
resume 66 'step-00000002: its config cannot be read: '

# ---- whole checkpoints of another model: 66
rename $weights '"model.norm.weight"' '"model.nose.weight"'
resume 66 "step-00000002/model-0-of-1.safetensors: expected the weights of this config's model" 'use the config'
also 'model.nose.weight: expected no such tensor, got F32 \[16\]'
also 'model.norm.weight: expected F32 \[16\], got none'
rename $weights '"dtype":"F32"' '"dtype":"I32"'
resume 66 "expected the weights of this config's model" 'got a file that differs in 1 tensor'
also 'model.embed_tokens.weight: expected F32 \[257, 16\], got I32 \[257, 16\]'
rename $weights '"shape":\[257,16\]' '"shape":[16,257]'
resume 66 "expected the weights of this config's model" 'got a file that differs in 1 tensor'
also 'model.embed_tokens.weight: expected F32 \[257, 16\], got F32 \[16, 257\]'
rename $moments 'lm_head.weight.exp_avg.0"' 'lm_head.weight.exp_avg.9"'
resume 66 'lm_head.weight.exp_avg.9: expected F32 \[1 to 4103\], got F32 \[4112\]'
rename $moments '"model.norm.weight.exp_avg.0"' '"model.norm.weight.exp_max.0"'
resume 66 'model.norm.weight.exp_avg: elements 0 to 15: expected once, got none'
printf '\377\377\377\377\377\377\377\177' | dd of=$moments conv=notrunc status=none
agree $moments
resume 66 'optim-0-of-1.safetensors: header length: expected at most 100000000' 'got 9223372036854775807'
# other VALUE PART...: with the key overridden, the tensors do not fit.
other() {
    resume 66 'step-00000002: expected every element of both moments' 'use the config the checkpoint was trained with' -- \
        --set "$1" --override "${1%=*}"
}
other model.vocab_size=300
other model.num_hidden_layers=2
other model.moe_intermediate_size=4
other model.hidden_size=8
make route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out eight.router
make route --router eight.router --tokens t --seq-len 32 --out eight.routes
resume 66 'expected every element of both moments' -- --set model.num_experts=8 --override model.num_experts \
    --set 'data.train[0].routes=eight.routes' --override 'data.train[0].content' --set 'data.valid=[]'

# ---- another run: 64
resume 64 'model.hidden_size: expected 16 as in the checkpoint, got 8' 'put it back, or add --override model.hidden_size' -- \
    --set model.hidden_size=8
make route --method hash --fit t --vocab 257 --experts 4 --top-k 1 --out one.router
make route --router one.router --tokens t --seq-len 32 --out one.routes
resume 64 'model.num_experts_per_tok: expected 2 as in the checkpoint, got 1' -- --set model.num_experts_per_tok=1 \
    --set 'data.train[0].routes=one.routes' --set 'data.valid=[]'
resume 64 'run.seed: expected 7 as in the checkpoint, got 8' 'put it back' -- --set run.seed=8
resume 64 'train.global_batch_windows: expected 4 as in the checkpoint, got 8' -- --set train.global_batch_windows=8
resume 64 'data.train\[0\].content: expected table' 'as in the checkpoint, got table' -- \
    --set 'data.train[0].tokens=v' --set 'data.train[0].routes=v.routes'

# ---- the run folder: 64 and 74
rm run/config.resolved.json
resume 64 'run.dir: expected a new folder or that of an earlier run, got run' 'choose another run.dir, or use --fresh'
rm run/lock && mkdir run/lock
resume 74 'run/lock: expected a file this run can write, got: Is a directory' 'check run.dir'
rm run/lock && ln -s ../t.bin run/lock
resume 74 'run/lock: expected a file this run can write, got: Too many levels of symbolic links' 'check run.dir'
rm -r run/checkpoints && : >run/checkpoints
resume 74 'run/checkpoints: listing failed: Not a directory' 'check the folder'

bad_end
