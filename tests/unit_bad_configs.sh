#!/bin/bash
# Every wrong command line and config ends with its documented code and a message that names what, where and what was
# expected, within 2 s, and leaves nothing on disk.
set -uo pipefail
# shellcheck source=tests/bad_inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/bad_inputs.sh"

# ---- command line: 2
bad 2 'expected a command, got none' --
bad 2 'unknown command "trian"' 'did you mean "train"' -- trian
bad 2 '--version: expected nothing after it' 'got "x"' -- --version x
bad 2 'train: expected a config file, got none' 'train --help' -- train
bad 2 'train: unknown option --fersh' 'did you mean --fresh' -- train good.json --fersh
bad 2 '--set: expected a value' -- train good.json --set
bad 2 '--set: expected a value' 'got the option --fresh' -- train good.json --set --fresh
bad 2 'unexpected argument "more.json"' -- train good.json more.json
bad 2 '--fresh takes no value' 'got "1"' -- train good.json --fresh=1
bad 2 '--override' 'model.hiden_size' 'did you mean "model.hidden_size"' -- train good.json --override model.hiden_size
bad 2 '--override: unknown key' -- train good.json --override 'data.train[0'
bad 2 '--ranks: expected only together with --dry-run' -- train good.json --ranks 2
bad 2 '--ranks: expected an integer in \[1, 65536\], got "0"' -- train good.json --dry-run --ranks 0
bad 2 '--memory: expected a number in \[0.001, 1e\+06\], got "much"' -- train good.json --dry-run --memory much
bad 2 '--weights: given twice' 'keep one' -- eval good.json --weights a --weights b
bad 2 'inspect: expected a file, got none' -- inspect
bad 2 '--out' -- tokens ../nothing.txt
bad 2 'tokens: expected input files or --synthetic N, got none' -- tokens --out x
bad 2 '--experts: expected an integer' 'got "zero"' -- \
    route --method hash --fit t --vocab 257 --experts zero --top-k 2 --out x.router
bad 2 '--top-k: expected an integer in \[1, 4\], got "9"' -- \
    route --method random --experts 4 --top-k 9 --seed 5 --out x.router
bad 2 '--method: expected hash or random, got .best' -- route --method best --out x.router
bad 2 'expected --seq-len, got none' -- route --router h.router --tokens t --out x.routes
bad 2 '--out: expected another file than the input t.bin' 'choose another name' -- \
    route --router h.router --tokens t --seq-len 32 --out t.bin
bad 2 'bench: expected what to measure, kernels, layer, exchange or step, got nothing' 'bench --help' -- bench
bad 2 'bench: expected kernels, layer, exchange or step as what to measure, got "exchnage"' 'did you mean exchange' -- bench exchnage
bad 2 'bench kernels: unknown option --onyl: did you mean --only' -- bench kernels --onyl gemm
bad 2 '--shape: expected one of small, tiny-qwen3' 'got "tiny-qwen": did you mean tiny-qwen3' -- bench kernels --shape tiny-qwen
bad 2 '--only: expected ops of a backend' 'got "gem": did you mean gemm' -- bench kernels --only gem
bad 2 '--repeat: expected an integer in \[1, 50\], got "51"' -- bench kernels --repeat 51
bad 64 'backend: expected auto or one of' 'got "abacus"' -- bench kernels --backend abacus
bad 64 'bench kernels: expected a number of tokens that is a multiple of the window.s 32, got 48' -- \
    bench kernels --config good.json --tokens 48
bad 64 'unknown key "train.stepz"' -- bench step good.json --set train.stepz=1
bad 2 'bench layer: expected one of --cv, --hot and --routes, got --hot and --routes' -- \
    bench layer --hot 2 --routes t.routes
bad 64 'bench layer: --hot: expected at most 4, since' 'got 5' -- bench layer --hot 5
bad 64 'bench layer: --tokens: expected at least a window of the table, 32 tokens, got 31' -- \
    bench layer --routes t.routes --tokens 31
bad 65 't.routes: expected at least 250 windows' 'lower --tokens' -- bench layer --routes t.routes --tokens 8000
bad 65 'absent.routes: cannot be opened' -- bench layer --routes absent.routes
bad 2 '--csv: expected another file than the input t.routes' -- bench layer --routes t.routes --csv t.routes
bad 65 'absent.routes: cannot be opened' -- bench step good.json --set 'data.train[0].routes=absent.routes'
bad 2 '--top-k: expected an integer in \[1, 4\], got "9"' -- bench exchange --experts 4 --top-k 9
bad 2 '--dtype: expected fp32 or bf16, got "fp16"' -- bench exchange --dtype fp16
bad 2 '--experts: expected only without --routes' 'leave one' -- bench exchange --routes t.routes --experts 4
bad 2 '--json: expected another file than the input t.routes' -- bench exchange --routes t.routes --json t.routes
bad 2 'bench exchange: --placement: expected --routes too' -- bench exchange --placement p

# ---- the text of a config: 64
bad 64 'absent.json: cannot be opened: No such file' -- train absent.json
bad 64 '\.: expected a regular file, got a folder' -- train .
mkfifo pipe.json
bad 64 'pipe.json: expected a regular file, got a FIFO' -- train pipe.json
printf '{"run": {"dir": "run"}' >bad.json
bad 64 'bad.json:1:' -- train bad.json
: >bad.json
bad 64 'bad.json:1:1: expected a JSON value, got the end' -- train bad.json
config 's/"eval": {"windows": 3}/&,/'
bad 64 'bad.json:9:1: expected a key in double quotes' -- train bad.json
{ cat good.json && echo x; } >bad.json
bad 64 'bad.json:10:1: expected nothing after the JSON value, got .x.' -- train bad.json
config 's/"lr": 1e-3/"lr": nan/'
bad 64 'bad.json:6:23: expected a JSON value, got .n.' -- train bad.json
{ printf '\357\273\277' && cat good.json; } >bad.json
bad 64 'bad.json:1:1: byte order mark' 'UTF-8 without' -- train bad.json
printf '{"run": {"dir": "r\377"}}' >bad.json
bad 64 'bad.json:1:19: invalid UTF-8: byte 0xff' 'save the text as UTF-8' -- train bad.json
{ printf '{"a": ' && printf '[%.0s' {1..40}; } >bad.json
bad 64 'bad.json:1:22: nested deeper than 16 levels' -- train bad.json
{ printf '{"a": "' && head -c 1200000 /dev/zero | tr '\0' a && printf '"}'; } >bad.json
bad 64 'bad.json: expected at most 1048576 bytes, got 1200009' -- train bad.json

# ---- its keys and values: 64
config 's/"lr"/"learning_rate_warmpup"/'
bad 64 'bad.json:6:42: unknown key "optimizer.learning_rate_warmpup"' -- train bad.json
config 's/"steps": 2/"stepz": 2/'
bad 64 'bad.json:7:22: unknown key "train.stepz"' 'did you mean "train.steps"' -- train bad.json
config 's/"seed": 7/"seed": 7, "seed": 8/'
bad 64 'bad.json:2:36: duplicate key "seed": also on line 2, column 25; keep one' -- train bad.json
config 's/"num_experts": 4/"num_experts": 4.0/'
bad 64 'bad.json:4:56: model.num_experts: expected an integer' 'got 4.0' -- train bad.json
config 's/"seed": 7/"seed": 1e9/'
bad 64 'bad.json:2:33: run.seed: expected an integer' 'without point or exponent, got 1e9' -- train bad.json
config 's/"hidden_size": 16/"hidden_size": 99999999999999999999/'
bad 64 'model.hidden_size: expected an integer in \[1, [0-9]+\], got 99999999999999999999' -- train bad.json
config 's/"lr": 1e-3/"lr": 1e999/'
bad 64 'bad.json:6:23: optimizer.lr: expected a number' 'got 1e999' -- train bad.json
config 's/"lr": 1e-3/"lr": "fast"/; s/"seq_len": 32/"seq_len": -1/; s/"hidden_size": 16, //'
bad 64 'bad.json:6:23: optimizer.lr: expected a number' 'got "fast"' -- train bad.json
also 'bad.json:5:' 'data.seq_len: expected an integer in' 'got -1'
also 'model.hidden_size' # missing: all errors come at once
config 's/"num_experts_per_tok": 2/"num_experts_per_tok": 9/'
bad 64 'model.num_experts_per_tok = 9' 'model.num_experts = 4' -- train bad.json
config 's/"global_batch_windows": 4/"global_batch_windows": 5/'
bad 64 'bad.json:7:75: train.global_batch_windows = 5 must be a multiple of train.micro_batch_windows = 2' -- train bad.json
bad 64 'model.head_dim = 7 must be even' -- train good.json --set model.head_dim=7
bad 64 'model.num_attention_heads = 2 must be a multiple of model.num_key_value_heads = 3' -- \
    train good.json --set model.num_key_value_heads=3
bad 64 'parallel.backend: expected "auto" or "cpu" or "cuda", got "gpu"' -- train good.json --set parallel.backend=gpu
bad 64 'checkpoint.keep_last: expected an integer in \[2, [0-9]+\], got 1' -- train good.json --set checkpoint.keep_last=1
bad 64 'run.dir: expected a path of 1 to 1023 bytes' 'got ""' -- train good.json --set run.dir=
bad 64 'unknown key "optimizer.lrr"' 'did you mean "optimizer.lr"' -- train good.json --set optimizer.lrr=1
bad 64 '--set: expected KEY=VALUE' 'for example' 'got "nonsense"' -- train good.json --set nonsense
bad 64 '--set: train.steps: set twice' 'keep one' -- train good.json --set train.steps=3 --set train.steps=4
bad 64 'data.windows = "corpus" needs parallel.placement' 'which windows each rank reads' -- \
    train good.json --set data.windows=corpus
bad 64 'parallel.placement = "p", but routing.source = "learned": no placement can fit' 'leave it out' -- \
    train good.json --set parallel.placement=p --set routing.source=learned --set 'data.train=[{"tokens": "t"}]' \
    --set 'data.valid=[]'
bad 64 'parallel.expert_kernels: expected "auto" or "cublas" or "mma" or "wgmma", got "fast"' -- train good.json --set parallel.expert_kernels=fast
bad 64 'parallel.attention_kernels: expected "auto" or "cublas" or "flash" or "cudnn", got "fast"' -- train good.json --set parallel.attention_kernels=fast
plans() { # SED...: a good file of tuned products with changes, as bad.plans
    cat >good.plans <<'JSON'
{"format": "grouter-product-plans", "version": 1, "gpu": "NVIDIA H100", "cublas": "13.1.0", "dtype": "fp32", "plans": [
  {"layout": "NT", "write": "overwrite", "c": "fp32", "m": 64, "n": 48, "k": 16, "lda": 16, "ldb": 16, "ldc": 48,
   "alignment": [16, 16, 16], "us": 5.25, "algorithm": "HEX"}
]}
JSON
    sed -i "s/HEX/$(printf '%0128d' 7)/" good.plans
    sed "$1" good.plans >bad.plans
}
plans ''
bad 65 'absent.plans: cannot be opened' -- train good.json --set parallel.product_plans=absent.plans
bad 65 't.routes' 'expected' -- train good.json --set parallel.product_plans=t.routes
plans 's/"us": 5.25/"us": /'
bad 65 'bad.plans:3:' -- train good.json --set parallel.product_plans=bad.plans
plans 's/grouter-product-plans/grouter-mapping/'
bad 65 'bad.plans:1: "format": expected "grouter-product-plans", got "grouter-mapping"' 'tune-products' -- \
    train good.json --set parallel.product_plans=bad.plans
plans 's/"m": 64/"m": 99999999999999999999/'
bad 65 'bad.plans:2: "m": expected a whole number from 1 to 2147483647, got 99999999999999999999' -- \
    train good.json --set parallel.product_plans=bad.plans
plans 's/"lda": 16/"lda": 15/'
bad 65 'bad.plans:2: "lda": expected a whole number from 16 to' 'got 15' -- \
    eval good.json --weights w --set parallel.product_plans=bad.plans
plans 's/"algorithm": "00/"algorithm": "0x/'
bad 65 'bad.plans:3: "algorithm": expected 128 hexadecimal digits' -- train good.json --set parallel.product_plans=bad.plans
plans 's/\[16, 16, 16\]/[16, 16, 24]/'
bad 65 'bad.plans:3: "alignment": expected three of 1, 2, 4, 8 and 16' -- \
    train good.json --set parallel.product_plans=bad.plans
{ sed -n 1,2p good.plans; sed -n 3p good.plans | sed 's/$/,/'; sed -n '2,$p' good.plans; } >bad.plans
bad 65 'bad.plans:4: expected each product once, got that of line 2 again' -- \
    train good.json --set parallel.product_plans=bad.plans
bad 69 'products: expected a backend that chooses their algorithms, cuda, to tune, got cpu' -- \
    bench step good.json --tune-products x.plans --set parallel.backend=cpu
bad 2 '--warm: expected an integer in \[1, 1000\], got "0"' -- bench step good.json --tune-products x.plans --warm 0
bad 64 '--tune-products: expected parallel.product_plans to be none' 'got good.plans' -- \
    bench step good.json --tune-products x.plans --set parallel.product_plans=good.plans
bad 74 't.bin/x.plans' 'Not a directory' -- bench step good.json --tune-products t.bin/x.plans --set parallel.backend=cpu
bad 64 'parallel.comm: expected' 'got "nccl"' 'use mpi' -- train good.json --set parallel.comm=nccl --set parallel.backend=cpu

bad_end
