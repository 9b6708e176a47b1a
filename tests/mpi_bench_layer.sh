#!/bin/bash
# bench layer and bench step on 1 and 2 ranks: the same tokens give the same sums and losses on any number of ranks, what
# a step was measured on is gone afterwards, and the table over nodes is made of it. Times are not looked at.
set -euo pipefail
binary=$1 work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1
die() {
    echo "FAILED: $*"
    exit 1
}
# shellcheck disable=SC2054  # a list of one argument
mpirun=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader)
bench() { # RANKS NAME WHAT ARGUMENTS...: output in NAME.out, figures in NAME.json
    local n=$1 name=$2
    shift 2
    "${mpirun[@]}" -n "$n" "${program:-$binary}" bench "$@" --json "$name.json" >"$name.out" 2>"$name.err" ||
        die "$n ranks, $*: $(cat "$name.err")"
}
number() { # NAME KEY
    sed -n "s/^ *\"$2\": \([-0-9.e+]*\),*$/\1/p" "$1.json"
}
# close A B WITHIN WHAT
close() {
    awk -v a="$1" -v b="$2" -v most="$3" 'BEGIN { exit !((a - b) ^ 2 <= (most * b) ^ 2) }' || die "$4: $1 and $2"
}

# ---- a layer: ranks share 64 tokens and 8 experts
layer=(--width 32 --expert-width 24 --experts 8 --top-k 3 --repeat 2 --seed 5 --cv 0.4)
bench 1 one layer "${layer[@]}" --tokens 64
bench 2 two layer "${layer[@]}" --tokens 32
bench 4 four layer "${layer[@]}" --tokens 16
for name in two four; do
    for key in norm_out norm_dx norm_dw13 norm_dw2; do
        close "$(number $name $key)" "$(number one $key)" 1e-6 "$key of $name ranks and of one"
    done
    [ "$(number $name pairs)" = "$(number one pairs)" ] && [ "$(number $name load_cv)" = "$(number one load_cv)" ] ||
        die "$name: other routes than on one rank"
    [ "$(number $name rows_sent)" -gt 0 ] || die "$name: no rows were sent"
done
grep -q '^both .* 18 x pairs x D x F$' two.out || die "expected the formula in: $(cat two.out)"
program=$BF16_BINARY bench 2 rounded layer "${layer[@]}" --tokens 32 --dtype bf16
close "$(number rounded norm_dw13)" "$(number one norm_dw13)" 1e-2 "gradients in bf16 and fp32"

# ---- kernels on two ranks at the same time
bench 2 kernels kernels --only rope,gather_rows --tokens 64 --repeat 2
[ "$(grep -c '"op": ' kernels.json)" -eq 2 ] && [ "$(number kernels ranks)" = 2 ] || die "kernels: $(cat kernels.json)"

# ---- a step: absent data, the same synthetic ones on any number of ranks
cat >config.json <<'JSON'
{
  "run": {"dir": "run", "seed": 7},
  "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
            "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
  "data": {"train": [{"tokens": "absent", "routes": "absent.routes"}], "seq_len": 32},
  "optimizer": {"lr": 1e-3},
  "train": {
    "steps": 2,
    "micro_batch_windows": 1,
    "global_batch_windows": 4
  }
}
JSON
before=$(ls)
for n in 1 2; do
    bench $n step$n step config.json --steps 3 --warm 1 --set parallel.expert_parallel_size=$n
    [ "$(number step$n synthetic)" = 1 ] && [ "$(number step$n expert_parallel)" = $n ] || die "$(cat step$n.json)"
    grep -q 'GFLOP/s = tokens/s x FLOP per token' step$n.out || die "expected the formula in: $(cat step$n.out)"
done
close "$(number step2 loss_first)" "$(number step1 loss_first)" 1e-6 "losses of 2 ranks and of one"
close "$(number step2 loss_last)" "$(number step1 loss_last)" 1e-4 "last losses of 2 ranks and of one"
[ "$(number step2 bytes_sent)" -gt 0 ] || die "no bytes were sent"
[ "$(ls | grep -v '^step')" = "$before" ] || die "something was left behind: $(ls)"
# learned routes need no table
sed 's/, "routes": "absent.routes"//; s/"optimizer"/"routing": {"source": "learned"}, "optimizer"/' config.json >learned.json
bench 2 routers step learned.json --steps 1
[ "$(number routers synthetic)" = 1 ] || die "$(cat routers.json)"

# ---- the table over nodes
"$SOURCE_DIR/scripts/bench_cluster.sh" --program "$binary" --launch "${mpirun[*]} -n %n" --steps 2 --warm 1 \
    --expert-parallel all --csv nodes.csv config.json 1 2 >nodes.out 2>nodes.err || die "bench_cluster: $(cat nodes.err)"
[ "$(wc -l <nodes.out)" -eq 3 ] && [ "$(wc -l <nodes.csv)" -eq 3 ] || die "expected two rows in: $(cat nodes.out nodes.csv)"
grep -q '^2,2,2,' nodes.csv || die "expected 2 nodes, 2 ranks, expert parallel 2 in: $(cat nodes.csv)"
echo "bench layer and step: the same sums and losses on 1, 2 and 4 ranks"
