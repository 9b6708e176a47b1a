#!/bin/bash
# Every bad input ends with its documented code and a message that names what, where and what was expected, and leaves
# nothing on disk. Run in the sanitizer build too: a report of theirs fails the case.
set -uo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work/data"
cd "$work/data" || exit 1
export OMP_NUM_THREADS=1

fail=0
cases=0

# ---- good inputs to damage
make() {
    "$binary" "$@" >/dev/null 2>../make.err || {
        cat ../make.err
        echo "cannot prepare the good inputs: $*"
        exit 1
    }
}
make tokens --synthetic 4000 --vocab 257 --seed 1 --out t
make tokens --synthetic 1500 --vocab 257 --seed 2 --out v
make route --method hash --fit t --vocab 257 --experts 4 --top-k 2 --out h.router
make route --method random --experts 4 --top-k 2 --seed 5 --out r.router
make route --router h.router --tokens t --seq-len 32 --out t.routes
make route --router h.router --tokens v --seq-len 32 --out v.routes
make route --router r.router --tokens v --seq-len 32 --out other.routes
cat >good.json <<'JSON'
{
  "run": {"dir": "run", "seed": 7},
  "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
            "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "valid": [{"tokens": "v", "routes": "v.routes"}], "seq_len": 32},
  "optimizer": {"lr": 1e-3},
  "train": {"steps": 2, "micro_batch_windows": 2, "global_batch_windows": 4},
  "eval": {"windows": 3}
}
JSON

# patch FILE OFFSET BYTES: writes bytes (octal escapes) over FILE
patch() {
    printf '%b' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# bad CODE PATTERN COMMAND...: COMMAND must exit with CODE, print PATTERN (extended regular expression) on stderr, leave no
# file that was not there, and take at most 20 s (a sanitizer build on a busy machine).
bad() {
    local code=$1 pattern=$2 before after status
    shift 2
    cases=$((cases + 1))
    before=$(find . | sort)
    timeout 20 "$binary" "$@" >../out 2>../err </dev/null
    status=$?
    after=$(find . | sort)
    if [ $status -ne "$code" ] || ! grep -Eq -- "$pattern" ../err || grep -Eq 'Sanitizer|runtime error' ../err ||
        [ "$before" != "$after" ]; then
        fail=$((fail + 1))
        echo "FAILED: $*"
        echo "  expected code $code and /$pattern/; got code $status and:"
        sed 's/^/    /' ../err | head -20
        diff <(echo "$before") <(echo "$after") | sed 's/^/    left behind: /'
    fi
}

config() { sed "$1" good.json >bad.json; }

# ---- command line: 2
bad 2 'trian.*train' trian
bad 2 'config file' train
bad 2 '--fersh.*--fresh' train good.json --fersh
bad 2 '--set.*value' train good.json --set
bad 2 'model.hiden_size.*did you mean "model.hidden_size"' train good.json --override model.hiden_size
bad 2 '--override: unknown key' train good.json --override 'data.train[0'
bad 2 '--out' tokens ../nothing.txt
bad 2 '--experts' route --method hash --fit t --vocab 257 --experts zero --top-k 2 --out x.router

# ---- config: 64
bad 64 'absent.json' train absent.json
printf '{"run": {"dir": "run"}' >bad.json
bad 64 'bad.json:1:' train bad.json
config 's/"lr"/"learning_rate_warmpup"/'
bad 64 'bad.json:6:.*unknown key.*learning_rate_warmpup' train bad.json
config 's/"steps": 2/"stepz": 2/'
bad 64 'unknown key "train.stepz".*train.steps' train bad.json
config 's/"num_experts": 4/"num_experts": 4.0/'
bad 64 'bad.json:4:.*num_experts.*integer' train bad.json
config 's/"num_experts_per_tok": 2/"num_experts_per_tok": 9/'
bad 64 'num_experts_per_tok.*9.*4' train bad.json
config 's/"seed": 7/"seed": 7, "seed": 8/'
bad 64 'bad.json:2:.*seed' train bad.json
config 's/"lr": 1e-3/"lr": "fast"/; s/"seq_len": 32/"seq_len": -1/; s/"hidden_size": 16, //'
bad 64 'optimizer.lr' train bad.json
grep -q 'data.seq_len' ../err && grep -q 'model.hidden_size' ../err || {
    fail=$((fail + 1))
    echo "FAILED: all errors at once"
}
config 's/"lr": 1e-3/"lr": 1e999/'
bad 64 'optimizer.lr' train bad.json
config 's/"global_batch_windows": 4/"global_batch_windows": 5/'
bad 64 'global_batch_windows.*5' train bad.json
bad 64 'expert_parallel_size.*3' train good.json --set parallel.expert_parallel_size=3
bad 64 'optimizer.lrr.*optimizer.lr' train good.json --set optimizer.lrr=1
mkdir run
bad 64 'run.dir.*run.*--fresh' train good.json
rmdir run

# ---- token files: 65
bad 65 'absent' train good.json --set 'data.train[0].tokens=absent'
cp t.bin b.bin && cp t.idx b.idx && patch b.idx 0 'X'
bad 65 'b.idx.*magic' train good.json --set 'data.train[0].tokens=b'
cp t.idx b.idx && patch b.idx 17 '\007'
bad 65 'b.idx.*(dtype|f32)' train good.json --set 'data.train[0].tokens=b'
cp t.idx b.idx && patch b.idx 18 '\377\377\377\377\377\377\377\377'
bad 65 'b.idx' train good.json --set 'data.train[0].tokens=b'
cp t.idx b.idx && truncate -s -3 b.idx
bad 65 'b.idx' train good.json --set 'data.train[0].tokens=b'
cp t.idx b.idx && truncate -s -2 b.bin
bad 65 'b.bin' train good.json --set 'data.train[0].tokens=b'
bad 65 'seq_len|tokens' train good.json --set data.seq_len=100000
printf 'good text\n\377\376 not UTF-8\n' >bad.txt
bad 65 'bad.txt.*(UTF-8|byte)' tokens --out x bad.txt

# ---- route tables and routers: 65
bad 65 'absent.routes' train good.json --set 'data.train[0].routes=absent.routes'
cp t.routes b.routes && truncate -s -1 b.routes
bad 65 'b.routes' train good.json --set 'data.train[0].routes=b.routes'
cp t.routes b.routes && patch b.routes 3 '?'
bad 65 'b.routes' train good.json --set 'data.train[0].routes=b.routes'
bad 65 'v.routes' train good.json --set 'data.train[0].routes=v.routes'
bad 65 'other.routes.*router' train good.json --set 'data.valid[0].routes=other.routes'
bad 65 't.routes.*(num_experts|E|experts)' train good.json --set model.num_experts=8
bad 65 't.routes' train good.json --set data.seq_len=16
bad 65 'h.router|absent.router' route --router absent.router --tokens t --seq-len 32 --out x.routes
cp h.router b.router && patch b.router 200 '\377'
bad 65 'b.router' route --router b.router --tokens t --seq-len 32 --out x.routes
make tokens --synthetic 2000 --vocab 5000 --seed 3 --out wide
bad 65 'wide.*id' route --router h.router --tokens wide --seq-len 32 --out x.routes

# ---- weights: 66
bad 66 'run/model.safetensors' eval good.json
printf '\377\377\377\377\377\377\377\177{}' >bad.safetensors
bad 66 'bad.safetensors.*header' eval good.json --weights bad.safetensors
printf '\002\000\000\000\000\000\000\000{}' >bad.safetensors
bad 66 'model.embed_tokens.weight' eval good.json --weights bad.safetensors

# ---- storage: 74 (root may write anywhere, so a file stands where a folder is needed)
bad 74 't.bin.*folder' train good.json --set run.dir=t.bin/run
bad 74 't.bin' tokens --synthetic 100 --vocab 257 --seed 1 --out t.bin/x

# ---- met in mid-run: only the run folder and its log stay
cp t.routes b.routes
size=$(stat -c %s b.routes)
patch b.routes $((size - 2000)) '\001\002\003\004\005\006\007\010'
timeout 60 "$binary" train good.json --set 'data.train[0].routes=b.routes' --set train.steps=31 --set eval.windows=1 \
    >../out 2>../err
status=$?
cases=$((cases + 1))
if [ $status -ne 65 ] || ! grep -Eq 'b.routes.*window [0-9]+' ../err || grep -Eq 'Sanitizer|runtime error' ../err ||
    [ -e run/model.safetensors ] || ! [ -e run/metrics.jsonl ]; then
    fail=$((fail + 1))
    echo "FAILED: a damaged window met in mid-run: code $status"
    sed 's/^/    /' ../err | head
fi
rm -rf run

# Weight decay 10 at rate 10 multiplies weights by -99 a step: they leave fp32 after about 20 steps.
timeout 60 "$binary" train good.json --set optimizer.lr=10 --set optimizer.weight_decay=10 --set optimizer.schedule=constant \
    --set train.steps=60 --set eval.windows=1 >../out 2>../err
status=$?
cases=$((cases + 1))
if [ $status -ne 71 ] || ! grep -Eq 'error\[E71\] step [0-9]+: .*optimizer.lr' ../err ||
    grep -Eq 'Sanitizer|runtime error' ../err || [ -e run/model.safetensors ] ||
    [ "$(tail -3 run/metrics.jsonl | grep -c '"skipped":true')" -ne 3 ] ||
    [ "$(tail -4 run/metrics.jsonl | grep -c '"skipped":true')" -ne 3 ]; then
    fail=$((fail + 1))
    echo "FAILED: a loss that is not finite: code $status"
    sed 's/^/    /' ../err | head
    tail -5 run/metrics.jsonl
fi
rm -rf run

echo "$((cases - fail)) of $cases bad inputs are refused as documented"
[ $fail -eq 0 ]
