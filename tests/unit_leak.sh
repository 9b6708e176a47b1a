#!/bin/bash
# Does a route see the future? From the command line: distilled and tuned Grouters with causal masks leak nothing, a
# bidirectional one is found out and says so wherever it is used, and wrong command lines are refused.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"
source "$SOURCE_DIR/tests/command.sh"
on_stdout() { grep -qF -- "$1" out || fail "expected on stdout: $1"; }
on_stderr() { grep -qF -- "$1" err || fail "expected on stderr: $1"; }
no_note() { ! grep -qF 'depend on tokens after their own' out err || fail "expected no word about the future"; }

# ---- tokens, a source, and Grouters of it
expect 0 tokens --synthetic 12000 --vocab 257 --seed 1 --out t
expect 0 tokens --synthetic 2000 --vocab 257 --seed 2 --out v
expect 0 tokens --synthetic 40 --vocab 257 --seed 3 --out short
model='"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
  "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2'
rest='"optimizer": {"lr": 3e-3}, "train": {"steps": 4, "micro_batch_windows": 4, "global_batch_windows": 4},
  "eval": {"windows": 20}'
cat >source.json <<END
{"run": {"dir": "source"}, "model": {$model}, "routing": {"source": "learned"},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32}, $rest}
END
cat >distill.json <<END
{"run": {"dir": "distilled"}, "distill": {"teacher": "source/model.safetensors", "teacher_layer": 0},
 "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 16},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32}, $rest}
END
cat >tune.json <<END
{"run": {"dir": "tuned"}, "tune": {"grouter": "causal/grouter.safetensors"},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32}, $rest}
END
cat >target.json <<END
{"run": {"dir": "target"}, "model": {$model},
 "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "valid": [{"tokens": "v", "routes": "v.routes"}],
          "seq_len": 32}, $rest}
END
expect 0 train source.json
for mask in causal bidirectional causal-doc; do
    expect 0 distill distill.json --set run.dir=$mask --set model.mask=$mask --set model.document_end=256
    if [ $mask = bidirectional ]; then on_stderr 'warning: these routes depend'; on_stdout 'note: these routes depend'; else no_note; fi
done

# ---- however a causal Grouter was made, it leaks nothing
audit() { expect 0 eval target.json --leak --windows 12 --positions 9 "$@"; }
sealed() { # FILE [ARGUMENT...]
    local file=$1
    shift
    audit --router "$file" --routes-only "$@"
    grep -qE '^no leak: [1-9][0-9]+ routes compared, all bit-identical$' out || fail "expected no leak of $file $*"
}
sealed causal/grouter.safetensors
sealed causal-doc/grouter.safetensors
sealed causal/grouter.safetensors --threshold 0.6
for mode in scores bias full; do
    expect 0 tune tune.json --set run.dir=$mode --set tune.mode=$mode
    sealed $mode/grouter.safetensors
done
sealed bias/grouter.safetensors --bias
expect 0 route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router
sealed h.router
on_stdout 'h.router: hash, 2 of 8 experts'

# ---- a bidirectional one leaks, and says so at every use
route() {
    expect 0 route --router "$1" --tokens t --seq-len 32 --out t.routes
    expect 0 route --router "$1" --tokens v --seq-len 32 --out v.routes
}
route bidirectional/grouter.safetensors
expect 0 train target.json
on_stderr 'warning: these routes depend on tokens after their own'
on_stdout 'note: these routes depend on tokens after their own'
expect 0 eval target.json
on_stdout 'note: these routes depend on tokens after their own'
grep -qE '^last position +[0-9.]+ nats per token, where nothing lies ahead$' out || fail "expected the last position's loss"
on_stdout 'prefix routes    not measured: --router FILE'
expect 0 eval target.json --router bidirectional/grouter.safetensors
grep -qE '^prefix routes +[0-9.]+ nats per token .*\(difference -?[0-9.]+ \+- [0-9.]+; 16 windows, 8 cuts\)$' out || fail "expected the loss with routes of prefixes"
audit --router bidirectional/grouter.safetensors --json audit.json
grep -qE '^leak: [0-9.]+ % of [0-9]+ routes change' out || fail "expected a leak"
for line in '(i)   routes of the whole window' '(ii)  routes of the prefix alone' '(iii) routes with another' \
    '(ii) - (i)' '(iii) - (i)' 'last position of windows' 'seed 0' '12 windows of 32 tokens'; do
    on_stdout "$line"
done
[ "$(wc -l <out)" -le 50 ] || fail "expected one page"
grep -q '"leak": true' audit.json || fail "expected a leak in audit.json: $(<audit.json)"
mv out first
audit --router bidirectional/grouter.safetensors
cmp -s out first || fail "expected the same page twice"
audit --router bidirectional/grouter.safetensors --seed 7
! cmp -s out first || fail "expected another sample with another seed"

# ---- a causal one has the same losses thrice, and says nothing
route causal/grouter.safetensors
expect 0 train target.json --fresh
no_note
expect 0 eval target.json --router causal/grouter.safetensors
no_note
on_stdout 'sees no token ahead'
audit --router causal/grouter.safetensors
on_stdout 'no leak: '
grep -E '^  \(iii\) - \(i\) +0\.0000 \+- 0\.0000$' out >/dev/null || fail "expected equal losses"

# ---- wrong command lines and files
refused() { # CODE TEXT ARGUMENT...
    local code=$1 text=$2
    shift 2
    expect "$code" eval target.json "$@"
    on_stderr "$text"
    [ ! -s out ] || fail "expected nothing on stdout"
    [ ! -e new.json ] || fail "expected no file after an error"
}
refused 2 'expected --router' --leak
refused 2 '--windows: expected only together with --leak' --windows 3
refused 2 '--json: expected only together with --leak' --json new.json
refused 2 '--bias: expected only together with --router' --bias
refused 2 '--routes-only needs no --weights' --leak --router h.router --routes-only --weights w
refused 2 '--windows: expected an integer in [1, 65536], got "0"' --leak --router h.router --windows 0
refused 2 '--positions: expected an integer' --leak --router h.router --positions many
refused 2 'expected another file than the input' --leak --router h.router --json ./h.router
refused 2 'expected another file than the input' --leak --router h.router --json target/../target.json
refused 2 'bias routing: expected a Grouter' --leak --router h.router --bias
refused 64 'routing.source' --leak --router h.router --set routing.source=learned --json new.json \
    --set 'data.train=[{"tokens": "t"}]' --set 'data.valid=[{"tokens": "v"}]'
refused 64 'data.valid: expected at least one file' --leak --router h.router --set 'data.valid=[]' --json new.json
refused 65 'that v.routes was made with' --leak --router h.router --json new.json
refused 65 'absent.router' --leak --router absent.router --json new.json
refused 65 'at least 2 windows' --leak --router h.router --set 'data.valid=[{"tokens": "short", "routes": "none"}]'
refused 65 '2 of 16 experts' --leak --router h.router --set model.num_experts=16
refused 65 '1 of 8 experts' --leak --router h.router --set model.num_experts_per_tok=1
refused 65 'vocabulary of at least model.vocab_size = 300' --leak --router h.router --set model.vocab_size=300
refused 66 'absent.safetensors' --leak --router causal/grouter.safetensors --weights absent.safetensors --json new.json
refused 74 'nowhere' --leak --router causal/grouter.safetensors --json nowhere/new.json
echo "leak audit ok"
