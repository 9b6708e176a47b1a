#!/usr/bin/env bash
# scripts/tokenize_hf.py with a tokenizer whose ids are the bytes makes the very files that `tokens` makes: the same
# documents, order, split and format. Skipped where python3 (or $PYTHON) has no tokenizers.
set -u
binary=$1
work=$2
python=${PYTHON:-python3}
script=$SOURCE_DIR/scripts/tokenize_hf.py
"$python" -c 'import tokenizers' 2>/dev/null || {
    echo "skipped: $python has no module tokenizers"
    exit 77
}
rm -rf "$work"
mkdir -p "$work/tokenizer" && cd "$work" || exit 1

fail() {
    echo "FAILED: $*"
    exit 1
}

"$python" - <<'END' || fail "no tokenizer"
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters for bytes; the others come behind
letter = {b: chr(b) for b in plain}
for n, b in enumerate(b for b in range(256) if b not in letter):
    letter[b] = chr(256 + n)
t = Tokenizer(models.BPE(vocab={letter[b]: b for b in range(256)}, merges=[]))
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
t.add_special_tokens([AddedToken("<|end|>", special=True)])
assert t.token_to_id("<|end|>") == 256
t.enable_truncation(3)
t.save("tokenizer/tokenizer.json")
END

for i in $(seq 40); do printf 'document %d \xc3\xa9 <|end|>\n%s\n' "$i" "$(seq "$i" | tr '\n' ' ')"; echo '<|endoftext|>'; done >a.txt
printf '{"text":"one"}\n\n{"id":1,"text":"t\\u0077o\\n","x":[1]}\r\n{"text":" \\n"}\n' >b.jsonl

# same OPTIONS...: both programs make the same files
same() {
    rm -f ours* theirs*
    "$binary" tokens --out ours "$@" >out 2>err || fail "tokens $*: $(cat err)"
    "$python" "$script" --tokenizer tokenizer --eod '<|end|>' --out theirs "$@" >out 2>err ||
        fail "tokenize_hf $*: $(cat err)"
    local made file
    made=$(echo ours*)
    [ "$(echo theirs*)" = "${made//ours/theirs}" ] || fail "$*: made $(echo theirs*)"
    for file in ours*; do
        cmp "$file" "theirs${file#ours}" || fail "$*: $file differs"
    done
}
same a.txt b.jsonl
same --valid 0.2 --seed 7 a.txt b.jsonl
same --no-shuffle a.txt
same --json-key text b.jsonl
"$binary" inspect theirs >out 2>err || fail "inspect: $(cat err)"
grep -q 'documents: 2' out || fail "inspect: $(cat out)"

# refuse TEXT ARGS...: fails, names TEXT, leaves nothing
refuse() {
    local text=$1
    shift
    "$python" "$script" --out bad "$@" >out 2>err && fail "$*: accepted"
    grep -qF -- "$text" err || fail "$*: expected '$text' in: $(cat err)"
    ls bad* >/dev/null 2>&1 && fail "$*: left $(echo bad*)"
    return 0
}
printf 'a\xff' >broken.txt
printf '{"t": 1}\n' >broken.jsonl
: >empty.txt
refuse 'byte 1: expected UTF-8' --tokenizer tokenizer --eod 256 broken.txt
refuse 'line 1: expected an object whose member "text"' --tokenizer tokenizer --eod 256 broken.jsonl
refuse 'expected at least 1 documents' --tokenizer tokenizer --eod 256 empty.txt
refuse '--eod: expected an id below 257' --tokenizer tokenizer --eod 257 a.txt
refuse '--eod: expected a token of the vocabulary' --tokenizer tokenizer --eod '<end>' a.txt
refuse 'expected a tokenizer.json' --tokenizer nowhere --eod 256 a.txt
refuse 'expected a tokenizer of' --tokenizer a.txt --eod 256 a.txt
refuse '--valid: expected a fraction' --tokenizer tokenizer --eod 256 --valid 1 a.txt
exit 0
