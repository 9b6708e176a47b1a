#!/bin/bash
# Every malformed, absent or unfitting token file, route table, router and weights file ends with its documented code and
# a message that names what, where and what was expected, within 2 s, and leaves nothing on disk.
set -uo pipefail
# shellcheck source=tests/bad_inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/bad_inputs.sh"

# ---- token files: 65
# tokens PART...: training on the damaged b.bin and b.idx is refused so; both are good again afterwards.
tokens() {
    bad 65 "$@" -- train good.json --set 'data.train[0].tokens=b'
    cp t.bin b.bin && cp t.idx b.idx
}
bad 65 'absent.idx: cannot be opened: No such file' 'check the name' -- train good.json --set 'data.train[0].tokens=absent'
cp t.bin b.bin && cp t.idx b.idx
patch b.idx 0 'X'
tokens 'b.idx: magic: expected MMIDIDX' 'got other bytes' 'give the prefix'
patch b.idx 9 '\002'
tokens 'b.idx: version: expected 1, got 2'
patch b.idx 9 '\000\000\000\000\000\000\000\001'
tokens 'b.idx: version: expected 1' 'big-endian'
patch b.idx 17 '\007'
tokens 'b.idx: dtype: expected an integer type' 'got f32' 'tokenize again'
patch b.idx 17 '\011'
tokens 'b.idx: dtype code: expected 1 to 8, got 9'
patch b.idx 18 '\377\377\377\377\377\377\377\377'
tokens 'b.idx: size: expected' '18446744073709551615 sequences' 'got 242 bytes' 'copy or make it again'
patch b.idx 34 '\377\377\377\377'
tokens 'b.idx: length of sequence 0: expected 0 or more, got -1'
truncate -s 20 b.idx
tokens 'b.idx: size: expected a header of 34 bytes, got a file of 20 bytes'
truncate -s -3 b.idx
tokens 'b.idx: size: expected' 'got 239 bytes'
truncate -s -2 b.bin
tokens 'b.bin: size: expected' 'got 7998 bytes' 'copy or make the pair again'
: >b.bin
tokens 'b.bin: size: expected' 'got 0 bytes'
rm b.bin && mkdir b.bin
bad 65 'b.bin: expected a regular file, got a folder' -- train good.json --set 'data.train[0].tokens=b'
rmdir b.bin && cp t.bin b.bin
rm b.idx
tokens 'b.bin: magic: without a b.idx' 'copy the .idx too'
patch b.bin 4 '\002\001' # 258, of 257 ids
tokens 't.routes: window 0: expected the tokens it was routed from' 'from b' 'not a pair, route this token file'
bad 65 't: expected at least data.seq_len\+1 = 100001 tokens, got 4000' 'use a longer file' -- \
    train good.json --set data.seq_len=100000
printf 'good text\n\377\376 not UTF-8\n' >bad.txt
bad 65 'bad.txt: byte 10: expected UTF-8, got 0xff' 'convert the file' -- tokens --out x bad.txt
printf '{"text": "a"}\n{"txt": "b"}\n' >bad.jsonl
bad 65 'bad.jsonl line 2: expected an object whose member "text"' 'got no such member' '--json-key' -- tokens --out x bad.jsonl
printf '{"text": "a"\n' >bad.jsonl
bad 65 "bad.jsonl line 1:1:13: expected ',' or '}'" -- tokens --out x bad.jsonl
: >bad.txt
bad 65 'bad.txt: expected at least one document' 'got none' -- tokens --out x bad.txt
bad 65 'absent.txt: cannot be opened' -- tokens --out x absent.txt

# ---- route tables: 65
# routes PART...: training on the damaged b.routes is refused so; it is good again afterwards.
routes() {
    bad 65 "$@" -- train good.json --set 'data.train[0].routes=b.routes'
    cp t.routes b.routes
}
# bytes HEX: its bytes from last to first, as `patch` takes them: a little-endian number.
bytes() {
    local i
    for ((i = ${#1} - 2; i >= 0; i -= 2)); do printf '\\x%s' "${1:i:2}"; done
}
# header OFFSET BYTES: changes the header, its checksum with it.
header() {
    patch b.routes "$1" "$2"
    head -c 504 b.routes >../hashed
    patch b.routes 504 "$(bytes "$(hash 64 ../hashed)")"
}
# row OFFSET BYTES PART...: a change of window 0 and of its checksum is refused so. Its histogram is at byte 512, its ids
# at 512 + 124 x 16 = 2496, 64 bytes of them, then 128 of gates, then the checksum of all three.
row() {
    patch b.routes "$1" "$2"
    dd if=b.routes bs=16 skip=156 count=12 status=none >../hashed
    dd if=b.routes bs=16 skip=32 count=1 status=none >>../hashed
    patch b.routes 2688 "$(bytes "$(hash 64 ../hashed)")"
    shift 2
    bad 65 'b.routes: window 0' "$@" -- inspect b.routes --tokens t
    cp t.routes b.routes
}
bad 65 'absent.routes: cannot be opened' -- train good.json --set 'data.train[0].routes=absent.routes'
bad 65 't.bin: expected a route table' 'got another kind of file' 'grouter-train route' -- \
    train good.json --set 'data.train[0].routes=t.bin'
bad 65 'v.routes: expected a token file of 1500 tokens, got 4000 in t' 'route this token file' -- \
    train good.json --set 'data.train[0].routes=v.routes'
bad 65 't.routes: expected a route table with T = 32, E = 8' 'got T = 32, E = 4' 'route again or change' -- \
    train good.json --set model.num_experts=8
bad 65 't.routes: expected a route table with T = 16' 'got T = 32' -- train good.json --set data.seq_len=16
make route --method random --experts 4 --top-k 2 --seed 5 --out r.router
make route --router r.router --tokens v --seq-len 32 --out other.routes
bad 65 'other.routes: expected routes of router' 'as t.routes' 'with the same router' -- \
    train good.json --set 'data.valid[0].routes=other.routes'
cp t.routes b.routes
truncate -s -1 b.routes
routes 'b.routes: expected 28288 bytes' 'got 28287' 'cut short, copy or route it again'
echo >>b.routes
routes 'b.routes: expected 28288 bytes' 'got 28289' 'too long'
truncate -s 100 b.routes
routes 'b.routes: expected a route table of at least 512 bytes, got 100'
patch b.routes 16 '\010'
routes 'b.routes: expected header checksum' 'got' 'the header is damaged'
header 8 '\002'
routes 'b.routes: expected route table version 1 at byte 8, got 2'
header 16 '\000\000\001'
routes 'b.routes: expected E \(experts\) from 1 to 4096, got 65536'
header 20 '\000'
routes 'b.routes: expected K' 'got 0'
header 48 '\377\377\377\377\377\377\377\377'
routes 'b.routes: expected 124 windows \(4000 tokens, T = 32\), got 18446744073709551615'
header 400 '\001'
routes 'b.routes: expected 0 at reserved byte 400, got 1'
patch b.routes 600 '\377' # of window 5's histogram
bad 65 'b.routes: window 5: expected record hash' 'histogram at byte 592' 'copy or route it again' -- inspect b.routes
cp t.routes b.routes
row 2497 '\007' 'position 0, slot 1: expected an expert id below 4, got 7' 'byte 2497' 'rows are never repaired'
row 2496 '\003\003' 'position 0, slot 1: expected' 'got 3' 'byte 2497'
row 2560 '\300\177' 'position 0, slot 0: expected a finite gate > 0' 'got nan' 'byte 2560'
row 2560 '\000\277' 'position 0, slot 0: expected a finite gate > 0' 'got -0.5' 'byte 2560'
row 2560 '\200\077' 'position 0' 'expected gates that sum to 1 within 0.0039' 'got a sum of 1.5'
row 512 '\000\000' 'expert 0: expected a histogram of' 'got 0' 'byte 512'

# ---- routers: 65
bad 65 'absent.router: cannot be opened' -- route --router absent.router --tokens t --seq-len 32 --out x.routes
bad 65 't.routes: expected a router file' 'got 28288 bytes of another kind' 'route --method' -- \
    route --router t.routes --tokens t --seq-len 32 --out x.routes
cp h.router b.router && patch b.router 200 '\377'
bad 65 'b.router: expected checksum' 'damaged or cut' -- route --router b.router --tokens t --seq-len 32 --out x.routes
bad 65 't: expected at least 5001 tokens for one window, got 4000' 'smaller --seq-len' -- \
    route --router h.router --tokens t --seq-len 5000 --out x.routes
make tokens --synthetic 2000 --vocab 5000 --seed 3 --out wide
bad 65 'wide.bin: token 3: expected an id from 0 to 256' 'got 3497' 'use the vocabulary size' -- \
    route --router h.router --tokens wide --seq-len 32 --out x.routes
bad 65 'good.json: expected a route table' 'a token file' 'safetensors' 'got none of them' -- inspect good.json

# ---- weights: 66
# weights PART...: bad.safetensors is refused so.
weights() { bad 66 "$@" -- eval good.json --weights bad.safetensors; }
bad 66 'run/model.safetensors: cannot be opened: No such file' -- eval good.json
printf '\377\377\377\377\377\377\377\177{}' >bad.safetensors
weights 'bad.safetensors: header length: expected at most 100000000' 'got 9223372036854775807'
printf '\002\000\000\000\000\000\000\000{}' >bad.safetensors
weights "bad.safetensors: expected the weights of this config's model" 'use the config the file was trained with'
also 'model.embed_tokens.weight: expected F32 \[257, 16\], got none'
: >bad.safetensors
weights 'bad.safetensors: expected at least 8 bytes, got 0' 'copy it again'
# tensors HEADER: bad.safetensors with this header and 4 bytes of data.
tensors() {
    { printf %b "$(bytes "$(printf %016x ${#1})")" && printf '%s1234' "$1"; } >bad.safetensors
}
tensors '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}'
weights 'a: data_offsets: expected a range within the file.s 4 bytes of data, got 0 to 8' 'copy it again'
tensors '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
weights 'duplicate key "a"'
tensors '{"a":{"dtype":"F32","shape":[4611686018427387904,4,0],"data_offsets":[0,4]}}'
weights 'a: shape: expected a product below 2\^64'
tensors '{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}'
weights 'a: dtype: expected one this program knows' 'got F31'
tensors '{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}'
weights 'a: data_offsets: expected to begin at 0' 'got 1 \(a hole\)'

# ---- met in mid-run: only the run folder and its log stay
# mid CODE PART... -- ARGS...: training ends so, without weights.
mid() {
    local code=$1 pattern="^grouter-train: error\\[E$1\\] "
    shift
    while [ "$1" != -- ]; do
        pattern+=".*$1"
        shift
    done
    last=("$@")
    cases=$((cases + 1))
    timed "$binary" train good.json "${@:2}"
    if [ $status -ne "$code" ] || ! grep -Eq -- "$pattern" ../err || grep -Eq 'Sanitizer|runtime error' ../err; then
        failed "expected code $code and /$pattern/; got code $status and:"
    elif [ -e run/model.safetensors ] || ! [ -e run/metrics.jsonl ]; then
        failed "expected a log and no weights, got:" "$(ls run)"
    fi
}
patch b.routes $(($(stat -c %s b.routes) - 2000)) '\001\002\003\004\005\006\007\010'
mid 65 'b.routes: window [0-9]+' 'at byte' -- --set 'data.train[0].routes=b.routes' --set train.steps=31 --set eval.windows=1
rm -rf run
# Weight decay 10 at rate 10 multiplies weights by -99 a step: they leave fp32 after about 20 steps.
mid 71 'step [0-9]+: ' 'optimizer.lr' -- --set optimizer.lr=10 --set optimizer.weight_decay=10 \
    --set optimizer.schedule=constant --set train.steps=60 --set eval.windows=1
if [ "$(tail -3 run/metrics.jsonl | grep -c '"skipped":true')" -ne 3 ] ||
    [ "$(tail -4 run/metrics.jsonl | grep -c '"skipped":true')" -ne 3 ]; then
    failed "expected the last three steps, and no other, to be skipped, got:" "$(tail -5 run/metrics.jsonl)"
fi
rm -rf run

bad_end
