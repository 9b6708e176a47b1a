#!/bin/bash
# Loss curves of runs and loads of route tables as one SVG: see usage below.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/plot.sh OUT.svg [NAME=]RUN|TABLE...
  RUN    run folder of train, distill or tune: its losses over the tokens it has seen (thin: training batches, with
         points: validation) and, where it has any, its MaxVio of each batch
  TABLE  route table: load of each expert relative to the mean
  NAME   what the legend says; default: the path
Draws a panel for each kind that was given, with gnuplot (Debian: gnuplot-nox). Route tables are read with
build/grouter-train, or the program that GROUTER_TRAIN names.
TEXT
}

program=${GROUTER_TRAIN:-$(dirname "${BASH_SOURCE[0]}")/../build/grouter-train}
fail() {
    echo "plot: $*" >&2
    exit 1
}
case ${1-} in -h | --help) usage && exit 0 ;; esac
[[ $# -ge 2 && $1 == *.svg ]] || { usage >&2 && exit 2; }
command -v gnuplot >/dev/null || fail "expected gnuplot, found none; install Debian's gnuplot-nox"
out=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C

# Lines "tokens value" in millions, for the key's values in a log; a key that a line lacks gives none.
column() { # metrics.jsonl, key
    awk -v key="\"$2\":" '
        function number(name,   at) { at = index($0, name); return at ? substr($0, at + length(name)) + 0 : "" }
        { value = number(key); if (value != "") print number("\"tokens_seen\":") / 1e6, value }
    ' "$1"
}

# "loads L[0] L[1] ..." of a table as "expert load/mean".
loads() { # route table
    "$program" inspect "$1" --json 2>/dev/null | sed -n 's/^ *"load": \[\(.*\)\].*/\1/p' | tr -d ' ' | tr ',' '\n' |
        awk '{ load[NR] = $1; sum += $1 } END { for (i = 1; i <= NR; i++) print i - 1, load[i] * NR / sum }'
}

curves=() valids=() violations=() tables=()

# One colour per name, also where a run and a table share it.
declare -A paint_of=()
color=("#0072b2" "#d55e00" "#009e73" "#cc79a7" "#e69f00" "#56b4e9" "#000000" "#999999" "#8b4513" "#6a3d9a")
choose_paint() { # name: sets paint
    [[ -n ${paint_of[$1]-} ]] || paint_of[$1]=${color[${#paint_of[@]} % ${#color[@]}]}
    paint=${paint_of[$1]}
}
add_run() { # name, folder
    local log=$2/metrics.jsonl i=${#curves[@]} paint
    choose_paint "$1"
    [[ -s $log ]] || fail "$2: expected a run folder with metrics.jsonl, found none"
    column "$log" loss >"$work/loss-$i"
    column "$log" nats_per_byte_valid >"$work/valid-$i"
    [[ -s $work/valid-$i ]] || { column "$log" loss_valid >"$work/valid-$i" && per=token; }
    column "$log" maxvio >"$work/maxvio-$i"
    curves+=("'$work/loss-$i' with lines lw 0.5 lc rgb '$paint' notitle")
    [[ -s $work/valid-$i ]] && valids+=("'$work/valid-$i' with linespoints lw 2 pt 7 ps 0.5 lc rgb '$paint' title '$1'") ||
        valids+=("NaN with lines lw 2 lc rgb '$paint' title '$1'")
    [[ ! -s $work/maxvio-$i ]] || violations+=("'$work/maxvio-$i' with lines lw 1 lc rgb '$paint' title '$1'")
}
per=byte
add_table() { # name, file
    local i=${#tables[@]} paint
    loads "$2" >"$work/load-$i"
    [[ -s $work/load-$i ]] || fail "$2: expected a run folder or a route table that '$program inspect' reads"
    choose_paint "$1"
    tables+=("using (\$1+$i*wide-shift):2:(wide) with boxes lc rgb '$paint' title '$1'")
}
for argument in "$@"; do
    name=${argument%%=*} path=${argument#*=}
    [[ -e $path ]] || fail "$path: expected a run folder or a route table, found none"
    name=${name//\'/}
    if [[ -d $path ]]; then add_run "$name" "$path"; else add_table "$name" "$path"; fi
done

join() {
    local IFS=,
    echo "$*"
}

# From a little below the least loss to what leaves the end of the curves apart; losses over several powers of ten, as
# distillation has them, on a logarithmic scale.
loss_range() {
    cat "$work"/loss-* "$work"/valid-* | awk '
        $2 > 0 { if (!n++ || $2 < low) low = $2; if ($2 > high) high = $2 }
        END {
            if (!n) exit
            if (high > 20 * low) print "set logscale y; set yrange [*:*]"
            else printf "set yrange [%g:%g]\n", low * 0.96, high < 1.6 * low ? high : 1.6 * low
        }'
}

loss_panel() {
    echo "set title 'loss'; set xlabel 'million tokens'; set ylabel 'nats per $per'; set key outside right top"
    echo "set xrange [0:*]"
    loss_range
    echo "plot $(join "${curves[@]}" "${valids[@]}"); unset logscale; set yrange [0:*]"
}

maxvio_panel() {
    echo "set title 'fullest expert of each batch'; set xlabel 'million tokens'; set ylabel 'MaxVio'; set key outside right top"
    echo "set xrange [0:*]; set yrange [0:*]; plot $(join "${violations[@]}")"
}

load_panel() {
    local i n=${#tables[@]} bars=()
    for ((i = 0; i < n; i++)); do
        bars+=("'$work/load-$i' ${tables[i]}")
    done
    echo "wide = 0.8 / $n; shift = 0.4 - wide / 2"
    echo "set title 'load of each expert'; set xlabel 'expert'; set ylabel 'load / mean'; set key outside right top"
    echo "set style fill solid noborder; set xrange [-0.6:*]; set yrange [0:*]"
    echo "plot 1 with lines lc rgb '#999999' notitle, $(join "${bars[@]}"); set xrange [*:*]"
}

panels=$(((${#curves[@]} > 0) + (${#violations[@]} > 0) + (${#tables[@]} > 0)))
{
    echo "set terminal svg size 1000,$((20 + 330 * panels)) background 'white' font 'sans,13' noenhanced"
    echo "set output '$work/out.svg'; set grid lc rgb '#dddddd'; set lmargin 10; set rmargin 26; set multiplot layout $panels,1"
    [[ ${#curves[@]} -eq 0 ]] || loss_panel
    [[ ${#violations[@]} -eq 0 ]] || maxvio_panel
    [[ ${#tables[@]} -eq 0 ]] || load_panel
    echo "unset multiplot"
} >"$work/plot.gp"
gnuplot "$work/plot.gp" 2>"$work/errors" || { cat "$work/errors" >&2 && fail "gnuplot failed"; }
[[ -s $work/out.svg ]] || fail "gnuplot drew nothing: $(<"$work/errors")"
mkdir -p "$(dirname "$out")"
cp "$work/out.svg" "$out"
echo "plot: $out"
