#!/bin/bash
# place and inspect of a placement from the command line: figures, the same bytes whatever the threads, the picture.
set -euo pipefail

binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"

source "$SOURCE_DIR/tests/command.sh"
on_stdout() { grep -qE -- "$1" out || fail "expected on stdout: $1"; }

"$BINARY_DIR/tests/routes_tool" t.routes 300 32 16 2 1
"$BINARY_DIR/tests/routes_tool" v.routes 40 32 16 2 2

# ---- place
expect 0 place --routes t.routes --routes v.routes --nodes 2 --ranks-per-node 2 --out p
on_stdout '^p: E = 16, K = 2, 4 ranks \(2 x 2\), balanced by rank$'
on_stdout '^windows: 340 of 32 tokens in 2 tables$'
for way in round-robin random paper 'paper, capped' balanced; do
    on_stdout "^$way +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+\$"
done
on_stdout '^load: within 1.05 of the mean; no placement has a fullest rank below 1\.'
on_stdout '^rows: [0-9.]+ % fewer than round-robin$'
rows() { awk -v way="$1" '$1 == way { print $2 }' out; }
awk -v b="$(rows balanced)" -v r="$(rows round-robin)" -v x="$(rows random)" 'BEGIN { exit !(b < r && b < x) }' ||
    fail "expected balanced to move fewest rows"
hash=$(sed -n 's/^placement hash: //p' out)
[ ${#hash} -eq 16 ] || fail "expected a placement hash"

for threads in 1 2 3; do
    OMP_NUM_THREADS=$threads expect 0 place --routes t.routes --routes v.routes --nodes 2 --ranks-per-node 2 --out q
    cmp p q || fail "$threads threads gave other bytes"
done
expect 0 place --routes t.routes --routes v.routes --nodes 2 --ranks-per-node 2 --seed 1 --out q # written over
! cmp -s p q || fail "another seed gave the same bytes"

expect 0 place --routes=t.routes --ranks-per-node=4 --method=paper --granularity=rank --entropy=0.9 --sample=50 --out=q
on_stdout '^q: .*, paper by rank$'
on_stdout '^load: not capped; '
[ "$(tail -n +4 out | grep -c '^[a-z, -]* *[0-9.]* *[0-9.]* *[0-9.]* *[0-9.]* *[0-9.]*$')" -eq 3 ] || fail "expected three ways"
expect 0 place --routes t.routes --nodes 2 --ranks-per-node 4 --granularity node --load-max 1.2 --out q
on_stdout '^load: within 1.2 of the mean'
"$BINARY_DIR/tests/routes_tool" hot.routes 100 32 16 2 1 1
expect 0 place --routes hot.routes --ranks-per-node 4 --out q
on_stdout '^load: 2\.[0-9]* of the mean is the least that was reached, above the 1.05 asked for; no placement'

# ---- inspect
expect 0 inspect p
on_stdout '^placement: p$'
on_stdout '^experts by rank, with load over the mean:$'
on_stdout '^ +3 +[01]\.[0-9]+  [0-9]+ [0-9]+ [0-9]+ [0-9]+$'
on_stdout '^table: v.routes, hash [0-9a-f]{16}, 40 windows$'
on_stdout "^placement hash: $hash\$"
on_stdout '^verified: '
expect 0 inspect p --json
on_stdout '"kind": "placement"'
on_stdout '"experts_by_rank": \[\[[0-9]'
on_stdout '"scores": \['
[ "$(tr -cd '{}[]' <out | sed -E ':a; s/\{\}|\[\]//g; ta')" = '' ] || fail "expected brackets in pairs"

# ---- the picture: every element closed, what it is said to show
expect 0 inspect p --svg p.svg
on_stdout '^balanced '
head -1 p.svg | grep -q '^<?xml version="1.0" encoding="UTF-8"?>$' || fail "expected an XML head"
sed '1d' p.svg | grep -oE '<[^>]*>' | awk '
    /^<\// { if (open[n--] != substr($0, 3, length($0) - 3)) bad = 1; next }
    !/\/>$/ { sub(/^</, ""); sub(/[ >].*/, ""); open[++n] = $0 }
    END { exit bad || n != 0 }' || fail "expected well-formed XML"
for text in 'Experts chosen together' 'Expert pairs of each rank over the mean' 'cap 1.05' 'Rows that travel per token' \
    'round-robin' 'paper, capped' 'rank of the expert'; do
    grep -qF ">$text" p.svg || fail "expected in the picture: $text"
done
if command -v xmllint >/dev/null; then
    xmllint --noout p.svg || fail "xmllint refuses the picture"
fi
"$BINARY_DIR/tests/routes_tool" wide.routes 3 8 300 4 1 # more experts than cells
expect 0 place --routes wide.routes --ranks-per-node 100 --out wide
expect 0 inspect wide --svg wide.svg
grep -q '<path ' wide.svg || fail "expected cells in the picture"
echo "place and its pictures are as documented"
