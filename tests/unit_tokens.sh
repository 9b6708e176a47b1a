#!/usr/bin/env bash
# The `tokens` command: what it makes of text, JSONL and nothing; that bad input ends with the documented code and
# message and leaves nothing behind.
set -u
binary=$1
work=$2
export LC_ALL=C
failed=0
rm -rf "$work"
mkdir -p "$work"
cd "$work" || exit 1

fail() {
    echo "FAILED: $*"
    failed=1
}

# ids PREFIX: the tokens on one line
ids() { od -An -v -tu2 "$1.bin" | tr -s ' \n' ' ' | sed 's/^ //; s/ $//'; }
# lines PREFIX: the documents as text, one a line with newlines shown as |, sorted
documents() {
    od -An -v -tu2 -w2 "$1.bin" | awk '$1 == 256 { print ""; next } $1 == 10 { printf "|"; next } { printf "%c", $1 }' |
        sort
}
expect() { [ "$2" = "$3" ] || fail "$1: expected '$3', got '$2'"; }
make() { "$binary" tokens "$@" >out.txt 2>err.txt || fail "tokens $*: $(cat err.txt)"; }
# refuse CODE TEXT ARGS...: ends with CODE, names TEXT, writes nothing
refuse() {
    local code=$1 text=$2 got
    shift 2
    "$binary" tokens "$@" >out.txt 2>err.txt
    got=$?
    [ $got -eq "$code" ] || fail "tokens $*: expected code $code, got $got: $(cat err.txt)"
    grep -qF -- "$text" err.txt || fail "tokens $*: expected '$text' in: $(cat err.txt)"
    ls bad* >/dev/null 2>&1 && fail "tokens $*: left $(ls -d bad*)" && rm -rf bad*
    [ -s out.txt ] && fail "tokens $*: printed $(cat out.txt)"
}

printf 'ab\n<|endoftext|>\n\xc3\xa9\n<|endoftext|>\n \n<|endoftext|>\r\nlast' >a.txt
printf '{"text":"one"}\n\n{"id":1,"text":"t\\u0077o\\n","x":[1]}\r\n{"text":" \\n"}\n' >b.jsonl

# ---- what is made
make --out plain --no-shuffle a.txt
expect "ids of text" "$(ids plain)" "97 98 10 256 195 169 10 256 108 97 115 116 256"
grep -q '3 (1 empty ones dropped)' out.txt || fail "summary: $(cat out.txt)"
make --out pooled --no-shuffle a.txt b.jsonl
expect "pooled inputs" "$(documents pooled)" "$(printf '\xc3\xa9|\nab|\nlast\none\ntwo|' | sort)"
make --out keyed --no-shuffle --json-key=text b.jsonl
expect "ids of JSONL" "$(ids keyed)" "111 110 101 256 116 119 111 10 256"
sed 's/<|endoftext|>/%%/' a.txt >c.txt
make --out separated --no-shuffle --separator %% c.txt
cmp plain.bin separated.bin || fail "another separator"

# ---- shuffle and split
for i in $(seq 1 300); do printf 'document %d\n<|endoftext|>\n' "$i"; done >many.txt
make --out folder/deep/s1 --seed 1 many.txt
make --out folder/deep/s1-again --seed 1 many.txt
make --out s2 --seed 2 many.txt
make --out input-order --no-shuffle many.txt
cmp folder/deep/s1.bin folder/deep/s1-again.bin || fail "the same seed gives another order"
cmp -s folder/deep/s1.bin s2.bin && fail "the seed does not change the order"
cmp -s s2.bin input-order.bin && fail "nothing was shuffled"
expect "shuffled documents" "$(documents s2)" "$(documents input-order)"
make --out split --valid 0.1 many.txt
expect "held-out documents" "$(documents split-valid | wc -l)" 30
expect "both parts together" "$( (documents split-train && documents split-valid) | sort)" "$(documents s2)"
[ -e split.bin ] && fail "a split also wrote the whole"
make --out tiny --valid 0.001 many.txt
expect "at least one held out" "$(documents tiny-valid | wc -l)" 1

# ---- replaced only when complete
make --out again --no-shuffle many.txt
make --out again --no-shuffle a.txt
cmp plain.bin again.bin && cmp plain.idx again.idx || fail "an existing pair was not replaced"
printf '\xff' >broken.txt
"$binary" tokens --out again broken.txt 2>/dev/null && fail "broken text was taken"
cmp plain.bin again.bin && cmp plain.idx again.idx || fail "a failed run touched the old pair"

# ---- synthetic
make --out syn --synthetic 100000 --vocab 1000 --seed 7
make --out syn-again --synthetic 100000 --vocab 1000 --seed 7
cmp syn.bin syn-again.bin || fail "synthetic tokens are not repeatable"
expect "synthetic tokens" "$(stat -c %s syn.bin)" 200000
od -An -v -tu2 -w2 syn.bin | awk '
    { n[$1]++; if ($1 > max) max = $1; if (NR == 100000) last = $1 }
    END { exit !(max == 999 && last == 999 && n[0] > 1.5 * n[1] && n[0] > 5 * n[9] && n[999] > 100) }' ||
    fail "synthetic tokens are not skewed"
make --out wide --synthetic 10 --vocab 70000
expect "i32 for a large vocabulary" "$(stat -c %s wide.bin)" 40
make --out least --synthetic 1 --vocab 2
expect "one synthetic token" "$(ids least)" 1
make --out synsplit --synthetic 50000 --vocab 300 --valid 0.2
expect "synthetic split" "$(($(stat -c %s synsplit-train.bin) + $(stat -c %s synsplit-valid.bin)))" 100000

# ---- refused
printf 'fine\nab\xc3(\n' >utf8.txt
printf '{"text":"a"}\n{"text":"b"\n' >cut.jsonl
printf '{"text":"a"}\n{"body":"b"}\n' >member.jsonl
printf '{"text":3}\n' >number.jsonl
printf '{"text":"\xff"}\n' >utf8.jsonl
printf '\n<|endoftext|>\n' >empty.txt
printf 'one document' >single.txt
refuse 65 'utf8.txt: byte 7' --out bad utf8.txt
refuse 65 'cut.jsonl line 2' --out bad cut.jsonl
refuse 65 'member.jsonl line 2' --out bad member.jsonl
refuse 65 'another type' --out bad number.jsonl
refuse 65 'utf8.jsonl line 1' --out bad utf8.jsonl
refuse 65 'at least one document' --out bad empty.txt
refuse 65 "/dev/null" --out bad /dev/null
refuse 65 'absent.txt' --out bad absent.txt
refuse 65 'absent.txt' --out bad a.txt absent.txt
refuse 65 'at least 2 documents' --out bad --valid 0.5 single.txt
refuse 2 '--out' a.txt
refuse 2 'got the folder' --out folder/ a.txt
cp a.txt own.bin
refuse 2 'own.bin' --out own own.bin
cmp -s a.txt own.bin || fail "an input was written over"
mkdir taken.idx
refuse 74 'taken.idx' --out taken a.txt
[ -e taken.bin ] && fail "half a pair was left"
refuse 2 'input files' --out bad
refuse 2 '--valid' --out bad --valid 1 a.txt
refuse 2 '--valid' --out bad --valid 0 a.txt
refuse 2 '--valid' --out bad --valid x a.txt
refuse 2 '--seed' --out bad --seed -1 a.txt
refuse 2 '--vocab' --out bad --synthetic 100
refuse 2 '--vocab' --out bad --vocab 300 a.txt
refuse 2 '--vocab' --out bad --synthetic 100 --vocab 1
refuse 2 '--synthetic' --out bad --synthetic 100 --vocab 10 a.txt
refuse 2 '--separator' --out bad --separator '' a.txt
refuse 2 '--shufle' --out bad --shufle a.txt

refuse 74 'a.txt' --out a.txt/bad a.txt

cd / && rm -rf "$work"
exit $failed
