#!/bin/bash
# Wrong command lines, topologies and tables of `place`, and damaged placements: each ends with its documented code and a
# message that names what, where and what was expected, within 2 s, and leaves nothing on disk.
set -uo pipefail
# shellcheck source=tests/bad_inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/bad_inputs.sh"

make route --method hash --fit t --vocab 257 --experts 8 --top-k 2 --out e.router
make route --router e.router --tokens t --seq-len 32 --out e.routes
make route --method hash --fit t --vocab 257 --experts 4 --top-k 1 --out k.router
make route --router k.router --tokens t --seq-len 32 --out k.routes
make route --router h.router --tokens v --seq-len 16 --out s.routes
make route --method random --experts 4 --top-k 2 --seed 1 --out r.router
make route --router r.router --tokens t --seq-len 32 --out r.routes
make place --routes t.routes --routes v.routes --ranks-per-node 2 --out p

# ---- the command line: 2
place() { bad "$@" --routes t.routes --ranks-per-node 2 --out x; }
bad 2 'place: expected --routes, got none' -- place --ranks-per-node 2 --out x
bad 2 'place: expected --ranks-per-node, got none' -- place --routes t.routes --out x
bad 2 'place: expected --out, got none' -- place --routes t.routes --ranks-per-node 2
place 2 'place: unknown option --node' 'did you mean --nodes' -- place --node 2
place 2 '--method: expected balanced or paper, got "fast"' -- place --method fast
place 2 '--granularity: expected rank or node, got "gpu"' -- place --granularity gpu
place 2 '--entropy: expected a number in \[0, 1\], got "1.1"' -- place --entropy 1.1
place 2 '--load-max: expected a number in \[1, 4096\], got "0.9"' -- place --load-max 0.9
place 2 '--load-max: expected only with --method balanced' -- place --method paper --load-max 1.1
place 2 '--sample: expected an integer in \[1,' 'got "0"' -- place --sample 0
place 2 '--nodes: expected an integer in \[1,' 'got "0"' -- place --nodes 0
place 2 '--seed: expected an integer' 'got "-1"' -- place --seed=-1
bad 2 '--out: expected another file than the input t.routes' -- place --routes t.routes --ranks-per-node 2 --out t.routes
bad 2 '--svg: expected only with a placement, got t.routes' -- inspect t.routes --svg x.svg
bad 2 '--svg: expected another file than the placement' -- inspect p --svg p
bad 2 '--tokens: expected only with a route table, got p' -- inspect p --tokens t

# ---- topologies: 64
bad 64 'divides the 4 experts of t.routes, got 3 \(1 nodes of 3\)' 'equally many' -- \
    place --routes t.routes --ranks-per-node 3 --out x
bad 64 'at most as many ranks as the 4 experts of t.routes, got 8 \(4 nodes of 2\)' 'each rank needs an expert' -- \
    place --routes t.routes --nodes 4 --ranks-per-node 2 --out x
bad 64 'expected 1 to 4096 ranks on all nodes, got 4294967295 nodes of 4294967295' 'use fewer' -- \
    place --routes t.routes --nodes 4294967295 --ranks-per-node 4294967295 --out x

# ---- tables: 65
tables() { bad 65 "$@" --ranks-per-node 2 --out x; }
tables 'absent: cannot be opened' -- place --routes absent
tables 'h.router: ' -- place --routes h.router
tables 'e.routes: expected E = 4, K = 2, T = 32 as in t.routes, got E = 8' -- place --routes t.routes --routes e.routes
tables 'k.routes: expected E = 4, K = 2, T = 32 as in t.routes, got E = 4, K = 1' -- place --routes t.routes --routes k.routes
tables 's.routes: expected E = 4, K = 2, T = 32 as in t.routes' 'T = 16' -- place --routes t.routes --routes s.routes
tables 'r.routes: expected the router [0-9a-f]+ of t.routes' 'route it with that router' -- \
    place --routes t.routes --routes r.routes
tables 't.routes: expected each table once' -- place --routes t.routes --routes v.routes --routes t.routes
cp t.routes b.routes
patch b.routes 2500 '\004'
tables 'b.routes: window 0: expected record hash' 'damaged' -- place --routes b.routes
cp t.routes b.routes
truncate -s -1 b.routes
tables 'b.routes: expected [0-9]+ bytes' 'cut short' -- place --routes b.routes
rm b.routes

# ---- outputs: 74
bad 74 'absent/x' -- place --routes t.routes --ranks-per-node 2 --out absent/x
bad 74 'absent/x.svg' -- inspect p --svg absent/x.svg
mkdir folder
bad 74 'folder' -- place --routes t.routes --ranks-per-node 2 --out folder

# ---- placements: 65
# bytes HEX: its bytes from last to first, as `patch` takes them: a little-endian number.
bytes() {
    local i
    for ((i = ${#1} - 2; i >= 0; i -= 2)); do printf '\\x%s' "${1:i:2}"; done
}
# lie SED PART...: a change of the text of the same length, the checksum with it, is refused so.
lie() {
    local change=$1 n
    shift
    LC_ALL=C sed "$change" p >b
    n=$(stat -c %s b)
    head -c $((n - 8)) b >../hashed
    patch b $((n - 8)) "$(bytes "$(hash 64 ../hashed)")"
    cmp -s p b && failed "nothing was changed by $change"
    bad 65 'b: ' "$@" -- inspect b
}
lie 's/"experts": 4/"experts": 5/' '"experts"' 'a multiple of the ranks' 'got 5'
lie 's/"nodes": 1/"nodes": 0/' '"nodes"' 'whole number from 1 to 4096' 'got 0'
lie 's/"version": 1/"version": 9/' '"version"' 'from 1 to 1, got 9'
lie 's/"balanced",/"balances",/' '"method"' '"balanced" or "paper"'
lie 's/"windows": 124}/"windows": 999}/' 'numbers of' 'cut short or lies'
lie 's/"windows": 124}/"windows": 120}/' 'make it again'
cp p b && patch b 40 'X'
bad 65 'b: its checksum does not match' 'damaged' -- inspect b
cp p b && truncate -s -4 b
bad 65 'b: its checksum does not match' -- inspect b
cp p b && truncate -s 20 b
bad 65 'b: expected a placement' '24 bytes or more' 'got 20' -- inspect b
cp p b && patch b 8 '\002'
bad 65 'b: expected version 1 at byte 8, got 2' -- inspect b
cp p b && patch b 12 '\377\377\377\377'
bad 65 'b: expected a text of at most' 'got 4294967295' -- inspect b
bad_end
