#!/bin/bash
# scripts/plot.sh draws a curve for each run folder and bars for each route table, and says what it cannot read.
set -euo pipefail
binary=$1
work=$2
command -v gnuplot >/dev/null || { echo "no gnuplot: install Debian's gnuplot-nox" && exit 77; }
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"

source "$SOURCE_DIR/tests/command.sh"
plot() { # code, arguments of the script
    local code=$1 got=0
    shift
    GROUTER_TRAIN=$binary bash "$SOURCE_DIR/scripts/plot.sh" "$@" >out 2>err || got=$?
    [ "$got" -eq "$code" ] || fail "plot.sh $*: expected exit code $code, got $got"
}
drawn() { # text in the drawing, times
    local got
    got=$(grep -cF -- "$1" plot.svg || true)
    [ "$got" -eq "$2" ] || fail "plot.svg: expected $2 lines with '$1', got $got"
}

mkdir target distil
cat >target/metrics.jsonl <<'END_OF_LOG'
{"schema":1,"step":0,"tokens_seen":0,"loss_valid":5.5,"nats_per_byte_valid":5.6,"skipped":false}
{"schema":1,"step":1,"tokens_seen":1000000,"loss":4,"maxvio":0.5,"skipped":false}
{"schema":1,"step":2,"tokens_seen":2000000,"loss":3,"loss_valid":3.1,"nats_per_byte_valid":3.2,"maxvio":0.25,"skipped":false}
END_OF_LOG
cat >distil/metrics.jsonl <<'END_OF_LOG'
{"schema":1,"step":1,"tokens_seen":1000,"loss":0.5,"skipped":false}
{"schema":1,"step":2,"tokens_seen":2000,"loss":0.001,"loss_valid":0.002,"maxvio_valid":1.5,"skipped":false}
END_OF_LOG
printf 'a text of some words\n' >text.txt
expect 0 tokens --out text text.txt
expect 0 route --method hash --fit text --vocab 257 --experts 4 --top-k 2 --out h.router
expect 0 route --router h.router --tokens text --seq-len 8 --out h.routes

# ---- one panel for each kind that was given, under the names that were given
plot 0 plot.svg "the target=target" "the hash=h.routes"
drawn "<svg" 1
for title in "the target" "loss" "nats per byte" "fullest expert of each batch" "the hash" "load of each expert"; do
    grep -qF ">$title<" plot.svg || fail "plot.svg: expected the text '$title'"
done
plot 0 plot.svg distil
grep -qF ">nats per token<" plot.svg || fail "losses without bytes are per token"
drawn "fullest expert" 0
drawn "load of each expert" 0
plot 0 plot.svg h.routes
drawn "nats per" 0

# ---- what cannot be drawn is named, and no old drawing is left to be mistaken for it
rm plot.svg
plot 1 plot.svg target nowhere
grep -qF "nowhere: expected a run folder or a route table" err || fail "the missing path is not named"
mkdir empty
plot 1 plot.svg empty
grep -qF "empty: expected a run folder with metrics.jsonl" err || fail "the empty folder is not named"
plot 1 plot.svg text.bin
grep -qF "text.bin: expected" err || fail "the token file is not named"
[ ! -e plot.svg ] || fail "a drawing was written in spite of the error"
plot 2 plot.png target
plot 2
echo "curves and bars are drawn under their names; unreadable paths are named"
