#!/bin/bash
# bench exchange on 2, 4 and 8 ranks: rows as uniform routing predicts, bytes as the plan says, from tables and in bf16
# too; what is printed is what is written. Times are not looked at.
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
bench() { # RANKS NAME ARGUMENTS...: output in NAME.out, NAME.err, figures in NAME.json
    local n=$1 name=$2
    shift 2
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader -n "$n" "${program:-$binary}" \
        bench exchange --repeat 2 --json "$name.json" "$@" >"$name.out" 2>"$name.err" ||
        die "$n ranks, $*: $(cat "$name.err")"
}
figure() { # NAME ROUTES ROW KEY
    sed -n "s/^ *{\"routes\": \"$2\", \"row\": \"$3\",.*\"$4\": \([0-9]*\).*/\1/p" "$1.json"
}
# sends NAME BYTES-PER-ROW: with a plan only rows travel, out and back in both directions.
sends() {
    local row rows way
    for row in pair rank; do
        rows=$(figure "$1" plan $row rows)
        for way in bytes_forward bytes_backward; do
            [ "$(figure "$1" plan $row $way)" -eq $((2 * rows * $2)) ] ||
                die "$1: $way of a row per $row: $(figure "$1" plan $row $way), of $rows rows of $2 bytes"
        done
        [ "$(figure "$1" router $row rows)" -eq "$rows" ] && [ "$(figure "$1" counts $row rows)" -eq "$rows" ] ||
            die "$1: the ways differ in rows per $row"
        [ "$(figure "$1" router $row bytes_backward)" -gt "$(figure "$1" counts $row bytes_backward)" ] ||
            die "$1: gradients of gates take no bytes"
    done
}
# near NAME RANKS TOKENS EXPERTS K: rows per token within four standard errors of what is expected, of all ranks' tokens.
near() {
    awk -v R="$2" -v n="$3" -v E="$4" -v K="$5" -v rank="$(figure "$1" plan rank rows)" \
        -v pair="$(figure "$1" plan pair rows)" 'BEGIN {
        q = E / R; none = 1
        for (i = 0; i < K; i++) none *= (E - q - i) / (E - i)
        expected = (R - 1) * (1 - none); error = 4 * (R - 1) / 2 / sqrt(n)
        if ((rank / n - expected) ^ 2 > error ^ 2) { print "rows per token", rank / n, "expected", expected; exit 1 }
        expected = K * (R - 1) / R; error = 4 * sqrt(K * (R - 1)) / R / sqrt(n)
        if ((pair / n - expected) ^ 2 > error ^ 2) { print "pairs per token", pair / n, "expected", expected; exit 1 }
    }' || die "$1"
}

bench 2 two --experts 16 --top-k 2 --seq-len 64 --windows 16 --width 32
sends two 128
near two 2 2048 16 2
bench 4 four --experts 32 --top-k 4 --seq-len 64 --windows 4 --width 32
sends four 128
near four 4 1024 32 4
bench 8 eight --experts 64 --top-k 8 --seq-len 32 --windows 2 --width 64
sends eight 256
near eight 8 512 64 8

# ---- what is printed
[ "$(grep -cE '^(router|counts|plan) +(pair|rank) ' two.out)" -eq 6 ] || die "expected six ways in: $(cat two.out)"
grep -q '^checked: every row and sum of every way' two.out || die "nothing was checked: $(cat two.out)"
for gain in 'no router' 'no sort, no exchange of counts' 'fewer bytes' 'all of these'; do
    grep -q "^  $gain " two.out || die "expected the gain of '$gain' in: $(cat two.out)"
    grep -q "{\"name\": \"$gain\", \"from\": " two.json || die "expected the gain of '$gain' in: $(cat two.json)"
done
grep -q '"routes": null' two.json || die "expected no table in: $(cat two.json)"

# ---- routes of a table
"$binary" tokens --synthetic 20000 --vocab 257 --seed 1 --out t &>log || die "$(<log)"
"$binary" route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out h.router &>log || die "$(<log)"
"$binary" route --router h.router --tokens t --seq-len 64 --out t.routes &>log || die "$(<log)"
bench 4 table --routes t.routes --width 16 --windows 5
sends table 64
grep -q '"routes": "t.routes"' table.json && grep -q '"top_k": 2' table.json || die "expected the table in: $(cat table.json)"
program=$BF16_BINARY bench 4 rounded --routes t.routes --width 16 --windows 5 --dtype bf16
sends rounded 32
[ "$(figure rounded plan rank rows)" = "$(figure table plan rank rows)" ] || die "bf16 moves other rows"

# ---- a placement of it: rows as it counted them, which the program compares, and fewer
"$binary" place --routes t.routes --nodes 2 --ranks-per-node 2 --out p &>log || die "$(<log)"
bench 4 placed --routes t.routes --placement p --width 16 --windows 5
grep -q '"placement": "p"' placed.json || die "expected the placement in: $(cat placed.json)"
for row in 'rank, placed batch' 'rank, placed corpus'; do
    rows=$(figure placed plan "$row" rows)
    [ "$(figure placed plan "$row" bytes_forward)" -eq $((2 * rows * 64)) ] || die "$row: bytes of $rows rows: $(cat placed.json)"
done
[ "$(figure placed plan 'rank, placed batch' rows)" -lt "$(figure placed plan rank rows)" ] ||
    die "placed, the same batch moves no fewer rows: $(cat placed.out)"
grep -q '^  placement, same batch ' placed.out || die "expected the gain of the placement in: $(cat placed.out)"
echo "bench exchange: rows and bytes as predicted on 2, 4 and 8 ranks"
