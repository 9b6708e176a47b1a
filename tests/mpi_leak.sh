#!/bin/bash
# The leak audit on several ranks: they share the windows, and every figure has the same bits as on one.
set -euo pipefail
binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)
die() {
    echo "FAILED: $*"
    exit 1
}

"$binary" tokens --synthetic 8000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
model='"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8'
experts='"vocab_size": 257, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2'
rest='"optimizer": {"lr": 3e-3}, "train": {"steps": 2, "micro_batch_windows": 2, "global_batch_windows": 2}'
cat >source.json <<END
{"run": {"dir": "source"}, "model": {$model, $experts}, "routing": {"source": "learned"},
 "data": {"train": [{"tokens": "t"}], "seq_len": 32}, $rest}
END
cat >distill.json <<END
{"run": {"dir": "distilled"}, "distill": {"teacher": "source/model.safetensors"},
 "model": {$model, "intermediate_size": 16, "mask": "bidirectional"},
 "data": {"train": [{"tokens": "t"}], "seq_len": 32}, $rest}
END
cat >target.json <<END
{"run": {"dir": "target"}, "model": {$model, $experts},
 "data": {"train": [{"tokens": "t", "routes": "t.routes"}], "valid": [{"tokens": "t", "routes": "t.routes"}],
          "seq_len": 32}, $rest, "eval": {"windows": 8}}
END
"$binary" train source.json >log 2>&1 || die "source: $(<log)"
"$binary" distill distill.json >log 2>&1 || die "distill: $(<log)"
"$binary" route --router distilled/grouter.safetensors --tokens t --seq-len 32 --out t.routes >log 2>&1 || die "route: $(<log)"
"$binary" train target.json >log 2>&1 || die "target: $(<log)"
audit=(eval target.json --leak --router distilled/grouter.safetensors --windows 7 --positions 5)
"$binary" "${audit[@]}" --json one.json >one.out 2>log || die "one rank: $(<log)"
grep -q '"leak": true' one.json || die "a leak: $(<one.json)"
for n in 2 3; do # 3: one of them has fewer windows
    "${launch[@]}" -n $n "$binary" "${audit[@]}" --json many.json >many.out 2>log || die "$n ranks: $(<log)"
    cmp one.json many.json || die "$n ranks found something else: $(<many.json)"
    cmp one.out many.out || die "$n ranks printed something else: $(<many.out)"
done
code=0
"${launch[@]}" -n 2 "$binary" "${audit[@]}" --json new.json --weights absent.safetensors >out 2>err || code=$?
[ $code -eq 66 ] || die "absent weights: expected exit code 66, got $code"
[ ! -e new.json ] || die "a report was left behind"
[ "$(grep -c 'error\[E66\]' err)" -eq 1 ] || die "one rank reports: $(<err)"
rm -rf "$work"
echo "leak audit on several ranks ok"
