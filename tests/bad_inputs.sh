# bad_inputs.sh: good inputs to damage, and `bad`, which runs one case. Sourced by tests of bad inputs after `set -uo
# pipefail`, with the binary as $1 and a scratch folder as $2; they end with `bad_end`.
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work/data"
cd "$work/data" || exit 1
export OMP_NUM_THREADS=1

fail=0
cases=0
skips=0

# A case may take 2 s. Instrumented code is slower, and looks for leaks when it ends.
limit_s=2
sanitized=
[[ $("$binary" --version) == *'sanitizers OFF'* ]] || limit_s=20 sanitized=yes

# make ARGS...: runs the binary, which must succeed.
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
make route --router h.router --tokens t --seq-len 32 --out t.routes
make route --router h.router --tokens v --seq-len 32 --out v.routes
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

# hash 64|128 FILE, or seal MANIFEST: checksums put right again, so that what is behind them is tried.
hash() { "$BINARY_DIR/tests/hash_tool" "$@"; }

# config SED...: good.json with changes, as bad.json
config() { sed "$1" good.json >bad.json; }

# patch FILE OFFSET BYTES: writes bytes (octal escapes) over FILE
patch() {
    printf '%b' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Every file with size and time of change, but for the lock, which names the last process that had it.
snapshot() {
    find . -name lock -print -o -type f -printf '%p %s %T@\n' -o -print | sort
}

# failed REASON...: the last case failed.
failed() {
    fail=$((fail + 1))
    echo "FAILED: ${last[*]}"
    printf '  %s\n' "$@"
    sed 's/^/    /' ../err | head -20
}

# timed COMMAND...: the command's output in ../out and ../err, its code in `status`, its seconds in `took_s`.
timed() {
    local start=$EPOCHREALTIME
    timeout 60 "$@" >../out 2>../err </dev/null
    status=$?
    took_s=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')
}

# Over the limit, which a machine with more work than cores stretches.
too_slow() {
    awk -v took="$took_s" -v limit="$limit_s" -v cores="$(nproc)" \
        '{ exit !(took > limit * ($1 > cores ? $1 / cores : 1)) }' /proc/loadavg
}

# bad_command CODE PART... -- COMMAND...: the command must end with CODE, print one error line of that code with all PARTs
# (extended regular expressions) in this order and none of another code, change nothing in the folder, and take at most
# limit_s (in one of three tries).
bad_command() {
    local code=$1 pattern="^grouter-train: error\\[E$1\\] " before after try
    shift
    while [ "$1" != -- ]; do
        pattern+=".*$1"
        shift
    done
    shift
    last=("$@")
    cases=$((cases + 1))
    before=$(snapshot)
    for try in 1 2 3; do
        timed "$@"
        too_slow || break
    done
    after=$(snapshot)
    if [ $status -ne "$code" ]; then
        failed "expected code $code, got $status and:"
    elif ! grep -Eq -- "$pattern" ../err; then
        failed "expected /$pattern/, got:"
    elif [ -n "$(grep -F 'error[E' ../err | grep -Fv "error[E$code]")" ]; then
        failed "expected only code $code in the messages, got:"
    elif grep -Eq 'Sanitizer|runtime error' ../err; then
        failed "a sanitizer reports:"
    elif [ "$before" != "$after" ]; then
        failed "left behind:" "$(diff <(echo "$before") <(echo "$after"))"
    elif too_slow; then
        failed "expected at most $limit_s s, got $took_s s in try $try"
    fi
}

# bad CODE PART... -- ARGS...: the same for the binary with ARGS.
bad() {
    local parts=()
    while [ "$1" != -- ]; do
        parts+=("$1")
        shift
    done
    shift
    bad_command "${parts[@]}" -- "$binary" "$@"
}

# also PART...: the last case printed a line with these parts too.
also() {
    local IFS=' ' pattern
    pattern=$(printf '.*%s' "$@")
    grep -Eq -- "$pattern" ../err || failed "expected /$pattern/ too, got:"
}

# skip REASON: a case that cannot be tried here.
skip() {
    skips=$((skips + 1))
    echo "not tried: $1"
}

bad_end() {
    echo "$((cases - fail)) of $cases bad inputs are refused as documented, $skips not tried"
    [ $fail -eq 0 ] && [ $cases -gt 0 ]
}
