# gpu.sh: training on a GPU, and on the CPU beside it. Sourced by tests/cuda_*.sh, with their arguments: the binary, beside
# which tests/ holds its test programs, and a scratch folder, which becomes the working folder.

# die: ends the test, saying why in one last line.
die() {
    echo "FAILED: $*"
    exit 1
}

skip() {
    echo "skipped: $*"
    exit 77
}

binary=$(realpath "$1") work=$2
difference_tool=$(dirname "$binary")/tests/difference_tool
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

# quiet NAME COMMAND...: with its output in NAME.out and NAME.err.
quiet() {
    local name=$1 code=0
    shift
    "$@" >"$name.out" 2>"$name.err" || code=$?
    [ $code -eq 0 ] || die "$name: $* ended with $code: $(tail -n 5 "$name.err" "$name.out")"
}

# data NAME EXPERTS TOP_K SEQ_LEN TOKENS: token file NAME and route table NAME.routes, both the same on every machine.
data() {
    quiet "$1" "$binary" tokens --synthetic "$5" --vocab 257 --seed 1 --out "$1"
    quiet "$1-fit" "$binary" route --method hash --fit "$1" --vocab 257 --experts "$2" --top-k "$3" --out "$1.router"
    quiet "$1-route" "$binary" route --router "$1.router" --tokens "$1" --seq-len "$4" --out "$1.routes"
}

# plain_config and odd_config [ROUTING [ROUTES]]: a model whose sizes suit every kernel, and one whose sizes suit none, so
# that it takes the general ways. Both train 20 steps of 8 windows in micro-batches of 2, slowly enough that rounding does not
# grow. eps is far above the rounding of a gradient: an element whose gradient is nothing else would otherwise move by a whole
# step to either side.
plain_config() {
    local routing=${1:-"{}"} routes=${2-", \"routes\": \"plain.routes\""}
    cat <<JSON
{"run": {"dir": "run"},
 "model": {"vocab_size": 257, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
           "head_dim": 32, "intermediate_size": 128, "first_k_dense_replace": 1, "moe_intermediate_size": 96,
           "num_experts": 8, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32, "use_qk_norm": true},
 "routing": $routing,
 "data": {"train": [{"tokens": "plain"$routes}], "seq_len": 64},
 "optimizer": {"lr": 1e-3, "eps": 1e-5, "warmup_steps": 5, "decay_steps": 60},
 "train": {"steps": 20, "micro_batch_windows": 2, "global_batch_windows": 8}}
JSON
}
odd_config() {
    local routing=${1:-"{}"} routes=${2-", \"routes\": \"odd.routes\""}
    cat <<JSON
{"run": {"dir": "run"},
 "model": {"vocab_size": 257, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
           "head_dim": 14, "moe_intermediate_size": 21, "num_experts": 7, "num_experts_per_tok": 3},
 "routing": $routing,
 "data": {"train": [{"tokens": "odd"$routes}], "seq_len": 37},
 "optimizer": {"lr": 1e-3, "eps": 1e-5, "warmup_steps": 5, "decay_steps": 60},
 "train": {"steps": 20, "micro_batch_windows": 2, "global_batch_windows": 8}}
JSON
}
configs() {
    data plain 8 2 64 12000
    data odd 7 3 37 8000
    plain_config >plain.json
    odd_config >odd.json
}

# need_gpu: the test is skipped without a GPU, with the program's own reason, or on a program without backend cuda.
need_gpu() {
    local code=0
    "$binary" bench kernels --backend cuda --only rope --tokens 16 --repeat 1 >gpu.out 2>gpu.err || code=$?
    case $code in
    0) ;;
    64 | 69)
        grep -qE 'not compiled in|expected a GPU|expected a driver for CUDA' gpu.err || die "no backend cuda: $(cat gpu.err)"
        skip "$(grep -m 1 -oE 'backend.*' gpu.err)"
        ;;
    *) die "no backend cuda: code $code, $(cat gpu.err)" ;;
    esac
}

# train NAME CONFIG [ARGUMENT...]: in run folder NAME; output in NAME.out and NAME.err.
train() {
    local name=$1 config=$2
    shift 2
    quiet "$name" "$binary" train "$config" --set run.dir="$name" "$@"
}
cpu=(--set parallel.backend=cpu)
cuda=(--set parallel.backend=cuda)
bf16=(--set train.dtype=bf16)

hash_of() { grep -E '^parameter hash [0-9a-f]{32}$' "$1.out" || die "$1: no parameter hash: $(tail -n 5 "$1.err")"; }

same_weights() { # NAME OTHER
    [ "$(hash_of "$1")" = "$(hash_of "$2")" ] || die "$1 and $2: expected the same weights, bit for bit"
}

# What of the log must be the same bits: everything but times and speeds.
log_of() {
    sed -E 's/,"(time|[a-z]+_ms|tokens_per_s|model_flops_per_s|peak_share|eta_s)":("[^"]*"|[^,}]*)//g' "$1/metrics.jsonl"
}

same_log() { # NAME OTHER
    diff <(log_of "$1") <(log_of "$2") >"$1.diff" || die "$1 and $2: expected the same log: $(head -n 4 "$1.diff")"
}

losses_of() { # NAME FIRST LAST: of these steps, a line each
    sed -nE 's/^.*"step":([0-9]+),.*"loss":([-+0-9.eE]+|null|nan).*$/\1 \2/p' "$1/metrics.jsonl" |
        awk -v first="$2" -v last="$3" '$1 >= first && $1 <= last { print $2 }'
}

# losses_within NAME OTHER FIRST LAST LIMIT: the loss of every one of these steps, relative.
losses_within() {
    local worst
    worst=$(paste <(losses_of "$1" "$3" "$4") <(losses_of "$2" "$3" "$4") | awk -v most="$5" -v n=$(($4 - $3 + 1)) '
        { d = ($1 - $2) / $2; d = d < 0 ? -d : d; if (!(d <= most) || !($2 > 0)) bad = 1; if (d > worst) worst = d }
        END { printf "%.2e in %d steps", worst, NR; exit bad || NR != n }') ||
        die "losses of $1 and $2: expected within $5 in steps $3 to $4, got $worst"
    echo "losses of $1 and $2, steps $3 to $4: within $worst (limit $5)"
}

# means_within NAME OTHER FIRST LAST LIMIT: the mean loss over these steps, relative.
means_within() {
    local worst
    worst=$(paste <(losses_of "$1" "$3" "$4") <(losses_of "$2" "$3" "$4") | awk -v most="$5" -v n=$(($4 - $3 + 1)) '
        { a += $1; b += $2 }
        END { d = (a - b) / b; d = d < 0 ? -d : d; printf "%.2e over %d steps", d, NR; exit !(d <= most && b > 0 && NR == n) }') ||
        die "mean losses of $1 and $2: expected within $5 over steps $3 to $4, got $worst"
    echo "mean losses of $1 and $2, steps $3 to $4: within $worst (limit $5)"
}

# tensors_within FILE OTHER LIMIT [PART]: every tensor, norm-wise.
tensors_within() {
    local worst code=0
    worst=$("$difference_tool" "$@" 2>&1) || code=$?
    [ $code -eq 0 ] || die "$1 and $2${4:+, $4}: expected within $3, got $worst"
    echo "$1 and $2${4:+, $4}: $worst (limit $3)"
}

# weights_within NAME OTHER LIMIT: at the end of two runs.
weights_within() { tensors_within "$1/model.safetensors" "$2/model.safetensors" "$3"; }

# gradients_within NAME OTHER LIMIT: of two runs of one step on one rank. AdamW's first moments are then the clipped gradient
# times 1 - beta1, and the scale of both falls out.
gradients_within() {
    local file=checkpoints/step-00000001/optim-0-of-1.safetensors
    tensors_within "$1/$file" "$2/$file" "$3" .exp_avg.
}

need_sanitizer() {
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    [ -x "$sanitizer" ] || skip "no compute-sanitizer on the PATH or in /usr/local/cuda/bin"
}

# sanitize TOOL NAME COMMAND...: it ends well and the tool finds nothing, within two minutes. Where the tool breaks down itself,
# that is said, and unchecked names what was not looked at.
unchecked=''
sanitize() {
    local tool=$1 name=$2 options=() code=0
    shift 2
    case $tool in
    racecheck | synccheck) options=(--kernel-name-exclude 'regex=cublas|cutlass|xmma|nvjet|cudnn|gemv|splitK') ;;
    esac
    timeout 120 "$sanitizer" --tool "$tool" "${options[@]}" --error-exitcode 99 --print-limit 4 "$@" >"$name.log" 2>&1 || code=$?
    if [ $code -ne 0 ] && grep -qiE 'device not supported|LibraryNotLoaded|insufficient permissions' "$name.log"; then
        skip "$tool does not run here: $(grep -iE -m 1 'not supported|NotLoaded|permissions' "$name.log")"
    fi
    if [ $code -ne 0 ] && grep -q 'Internal Sanitizer Error' "$name.log"; then
        unchecked="$unchecked $name"
        echo "$name: $tool broke down: $(grep -m 1 -oE 'Internal Sanitizer Error.*' "$name.log")"
        return
    fi
    [ $code -ne 124 ] || die "$name: $tool was not done in 120 s: $(tail -n 3 "$name.log")"
    [ $code -eq 0 ] || die "$name: $tool: code $code: $(grep '=====' "$name.log" | head -n 12; tail -n 3 "$name.log")"
    grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$name.log" ||
        die "$name: expected a summary without errors: $(tail -n 5 "$name.log")"
    echo "$name: $tool: nothing found"
}
