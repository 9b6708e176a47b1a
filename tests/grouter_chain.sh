# grouter_chain.sh: a tiny Grouter made the whole way, from text to a distilled file. Sourced by test scripts that have
# set `binary` and are in an empty folder.

# Leaves token files t (6000 tokens) and v, and g.safetensors: 8 experts, K = 2, hidden size 12.
make_grouter() {
    "$binary" tokens --synthetic 6000 --vocab 257 --seed 1 --out t
    "$binary" tokens --synthetic 1500 --vocab 257 --seed 2 --out v
    cat >source.json <<'JSON'
{"run": {"dir": "source"},
 "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
           "moe_intermediate_size": 8, "num_experts": 8, "num_experts_per_tok": 2},
 "routing": {"source": "learned"},
 "data": {"train": [{"tokens": "t"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2}, "train": {"steps": 3, "micro_batch_windows": 4, "global_batch_windows": 4}}
JSON
    cat >distill.json <<'JSON'
{"run": {"dir": "distilled"},
 "distill": {"teacher": "source/model.safetensors", "teacher_layer": 0},
 "model": {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 6, "intermediate_size": 16},
 "data": {"train": [{"tokens": "t"}], "seq_len": 32},
 "optimizer": {"lr": 1e-2}, "train": {"steps": 10, "micro_batch_windows": 4, "global_batch_windows": 4}}
JSON
    "$binary" train source.json
    "$binary" distill distill.json
    cp distilled/grouter.safetensors g.safetensors
}
