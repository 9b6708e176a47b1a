# distill.sh: a small source and configs for a Grouter of it, in the working folder. Sourced by the scripts that distil and
# tune, which have set `binary`.

die() {
    echo "FAILED: $*"
    exit 1
}
value() { # DIR KEY STEP: a number from metrics.jsonl
    grep -E "\"step\":$3," "$1/metrics.jsonl" | grep -oE "\"$2\":[-+0-9.eE]+" | sed 's/.*://'
}
near() { awk -v a="$1" -v b="$2" -v r="$3" 'BEGIN { d = a - b; m = b < 0 ? -b : b; exit !((d < 0 ? -d : d) <= r * m) }'; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 < b + 0) }'; }
hash_of() { grep -oE '^router hash [0-9a-f]{32}$' "$1" || die "no router hash in $1"; }

"$binary" tokens --synthetic 6000 --vocab 257 --seed 1 --out t >/dev/null 2>&1
"$binary" tokens --synthetic 1500 --vocab 257 --seed 2 --out v >/dev/null 2>&1
cat >source.json <<'JSON'
{"run": {"dir": "source"},
 "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "moe_intermediate_size": 8, "num_experts": 8, "num_experts_per_tok": 2},
 "routing": {"source": "learned"},
 "data": {"train": [{"tokens": "t"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2},
 "train": {"steps": 6, "micro_batch_windows": 4, "global_batch_windows": 4}}
JSON
cat >distill.json <<'JSON'
{"run": {"dir": "distil"},
 "distill": {"teacher": "source/model.safetensors"},
 "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
           "document_end": 256},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2},
 "train": {"steps": 12, "micro_batch_windows": 2, "global_batch_windows": 8},
 "checkpoint": {"every_steps": 4},
 "eval": {"windows": 20}}
JSON
cat >tune.json <<'JSON'
{"run": {"dir": "tuned"},
 "tune": {"grouter": "distil/grouter.safetensors"},
 "data": {"train": [{"tokens": "t"}], "valid": [{"tokens": "v"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2, "schedule": "constant"},
 "train": {"steps": 12, "micro_batch_windows": 2, "global_batch_windows": 8},
 "checkpoint": {"every_steps": 4},
 "eval": {"windows": 20, "every_steps": 4}}
JSON
"$binary" train source.json >source.out 2>&1 || die "the source: $(cat source.out)"
