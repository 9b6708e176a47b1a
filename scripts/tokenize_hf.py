#!/usr/bin/env python3
"""Text to a token file (a Megatron .bin/.idx pair) with a Hugging Face tokenizer, as `grouter-train tokens` makes one of
bytes: the same documents in the same order, and the same ones held out, for the same inputs, seed and fraction. Each
document is encoded without special tokens (text that looks like one stays text) and ends with the id of --eod.

    python3 -m venv build/venv-tokenizers
    build/venv-tokenizers/bin/pip install tokenizers==0.23.3

Example:
    build/venv-tokenizers/bin/python scripts/tokenize_hf.py --tokenizer Qwen3-30B-A3B --eod '<|im_end|>' \\
        --out data/books --valid 0.02 books/*.txt
    grouter-train inspect data/books-train
"""
import argparse
import json
import os
import sys
import time
from array import array
from pathlib import Path

try:
    from tokenizers import Tokenizer
except ImportError as missing:
    sys.exit(f"tokenize_hf: {missing}; install what the head of scripts/tokenize_hf.py lists")

MASK32, MASK64 = 2**32 - 1, 2**64 - 1
U16_VOCAB_END = 65500  # Megatron's own limit
LENGTH_MAX = 2**31 - 1  # of a document, in tokens
BATCH_DOCUMENTS, BATCH_BYTES = 1024, 4 << 20
BLANK = b" \t\r\n"


def fail(text):
    print(f"tokenize_hf: error: {text}", file=sys.stderr)
    sys.exit(65)


# ---------------------------------------------------------------- the order of `grouter-train tokens` (src/base/random.c)

STREAM_ORDER, STREAM_SPLIT = 0xB0E8914B155E986E, 0xB7DED27D76F7EAE9  # XXH3-64 of "document order" and "document split"


def random_u64(key, stream, i):
    """Philox4x32-10, its first two words."""
    k0, k1 = key & MASK32, key >> 32
    c0, c1, c2, c3 = i & MASK32, i >> 32, stream & MASK32, stream >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c1 << 32 | c0


def bijection(key, n, x):
    bits = ((n - 1).bit_length() + 1) // 2 if n > 1 else 1
    mask = (1 << bits) - 1
    while True:
        left, right = x >> bits, x & mask
        for number in range(6):
            left, right = right, left ^ (random_u64(key, number, right) & mask)
        x = left << bits | right
        if x < n:
            return x


# ---------------------------------------------------------------- documents


class Documents:
    """Where each document is: (file, first byte, bytes). The first pass checks all inputs."""

    def __init__(self, paths, separator, json_key):
        self.place, self.n_empty, self.n_byte = [], 0, 0
        self.paths, self.files = paths, []
        self.keys = [json_key or ("text" if path.endswith(".jsonl") else None) for path in paths]
        for number, path in enumerate(paths):
            try:
                self.files.append(open(path, "rb"))
                if self.keys[number]:
                    self.scan_jsonl(number)
                else:
                    self.scan_text(number, separator.encode())
            except OSError as error:
                fail(f"{path}: {error.strerror}")

    def add(self, number, first, n_byte, text):
        if not text.strip(BLANK):
            self.n_empty += 1
            return
        self.place.append((number, first, n_byte))
        self.n_byte += len(text)

    def scan_text(self, number, separator):
        document, first, at = [], 0, 0
        for line in self.files[number]:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                fail(f"{self.paths[number]}: byte {at + error.start}: expected UTF-8, got something else; convert the "
                     "file, for example with iconv -t UTF-8")
            bare = line[:-1] if line.endswith(b"\n") else line
            if bare in (separator, separator + b"\r"):
                self.add(number, first, at - first, b"".join(document))
                document, first = [], at + len(line)
            else:
                document.append(line)
            at += len(line)
        if b"".join(document).strip(BLANK):  # a file that ends with a separator has no empty document behind it
            self.add(number, first, at - first, b"".join(document))

    def scan_jsonl(self, number):
        at = 0
        for count, line in enumerate(self.files[number], 1):
            if line.strip(BLANK):
                text = self.text_of(number, line, f"{self.paths[number]} line {count}")
                self.add(number, at, len(line), text.encode())
            at += len(line)

    def text_of(self, number, line, source):
        key = self.keys[number]
        try:
            value = json.loads(line.decode())
            text = value[key] if isinstance(value, dict) else None
            if isinstance(text, str):
                text.encode()  # a lone surrogate is no text
                return text
        except (KeyError, ValueError) as error:
            if isinstance(error, ValueError):
                fail(f"{source}: {error}")
        fail(f"{source}: expected an object whose member \"{key}\" is a string; name the member with --json-key")

    def read(self, document):
        number, first, n_byte = self.place[document]
        self.files[number].seek(first)
        data = self.files[number].read(n_byte)
        return self.text_of(number, data, self.paths[number]) if self.keys[number] else data.decode()


# ---------------------------------------------------------------- the token file


class Writer:
    """PREFIX.bin and PREFIX.idx under temporary names until both are complete."""

    def __init__(self, prefix, n_vocab):
        self.prefix, self.lengths, self.n_token = prefix, array("i"), 0
        self.code, self.type = (8, "H") if n_vocab < U16_VOCAB_END else (4, "i")
        self.bin = self.open(".bin")

    def open(self, suffix):
        try:
            return open(f"{self.prefix}{suffix}.tmp", "wb")
        except OSError as error:
            fail(f"{self.prefix}{suffix}: {error.strerror}")

    @staticmethod
    def little(values):
        if sys.byteorder == "big":
            values.byteswap()
        return values.tobytes()

    def document(self, ids):
        if len(ids) > LENGTH_MAX:
            fail(f"document {len(self.lengths)}: expected at most {LENGTH_MAX} tokens, got {len(ids)}; split it")
        self.bin.write(self.little(array(self.type, ids)))
        self.lengths.append(len(ids))
        self.n_token += len(ids)

    def commit(self):
        offset, offsets, size = 0, array("q"), array(self.type).itemsize
        for length in self.lengths:
            offsets.append(offset)
            offset += length * size
        n = len(self.lengths)
        idx = self.open(".idx")
        idx.write(b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + bytes([self.code]) + n.to_bytes(8, "little"))
        idx.write((n + 1).to_bytes(8, "little"))
        idx.write(self.little(array("i", self.lengths)) + self.little(offsets) + self.little(array("q", range(n + 1))))
        for file in (self.bin, idx):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for suffix in (".bin", ".idx"):
            os.replace(f"{self.prefix}{suffix}.tmp", f"{self.prefix}{suffix}")

    def abandon(self):
        for suffix in (".bin", ".idx"):
            Path(f"{self.prefix}{suffix}.tmp").unlink(missing_ok=True)


# ---------------------------------------------------------------- the command


def tokenizer_open(path):
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        fail(f"{path}: expected a tokenizer.json or a folder with one, got none")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        fail(f"{path}: expected a tokenizer of Hugging Face's tokenizers: {error}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as text
    return tokenizer


def eod_id(tokenizer, text, n_vocab):
    """A whole number is an id, anything else a token of the vocabulary."""
    found = int(text) if text.isascii() and text.isdigit() else tokenizer.token_to_id(text)
    if found is None:
        fail(f"--eod: expected a token of the vocabulary or an id, got {text}")
    if found >= n_vocab:
        fail(f"--eod: expected an id below {n_vocab}, got {found}")
    return found


class Progress:
    """One line on a terminal, else a line every 10 s."""

    def __init__(self, total):
        self.total, self.start, self.tty = total, time.monotonic(), sys.stderr.isatty()
        self.shown = self.start

    def show(self, done, last):
        now = time.monotonic()
        if not last and now - self.shown < (0.2 if self.tty else 10):
            return
        self.shown = now
        rate = done / max(now - self.start, 1e-9) / 1e6
        print(f"{chr(13) if self.tty else ''}writing tokens: {100 * done / max(self.total, 1):.0f} %, {rate:.2f} MB/s",
              end="\n" if last or not self.tty else "", file=sys.stderr, flush=True)


def split(documents, options):
    """Yields (document, held out) in the order of the output."""
    n = len(documents.place)
    n_valid = min(max(int(options.valid * n + 0.5), 1), n - 1) if options.valid else 0
    order, held = random_u64(options.seed, STREAM_ORDER, 0), random_u64(options.seed, STREAM_SPLIT, 0)
    for i in range(n):
        document = bijection(order, n, i) if options.shuffle else i
        yield document, n_valid > 0 and bijection(held, n, document) < n_valid


def write(documents, tokenizer, eod, writers, options):
    batch, n_byte, done, progress = [], 0, 0, Progress(documents.n_byte)

    def flush():
        for encoding, (_, held_out) in zip(tokenizer.encode_batch([b[0] for b in batch], add_special_tokens=False), batch):
            writers[held_out].document(encoding.ids + [eod])
        batch.clear()

    for document, held_out in split(documents, options):
        text = documents.read(document)
        batch.append((text, held_out))
        n_byte += len(text.encode())
        if len(batch) == BATCH_DOCUMENTS or n_byte >= BATCH_BYTES:
            flush()
            done, n_byte = done + n_byte, 0
            progress.show(done, False)
    flush()
    progress.show(documents.n_byte, True)


def options_parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, metavar="PATH", help="tokenizer.json, or a folder with one")
    parser.add_argument("--eod", required=True, metavar="TOKEN_OR_ID", help="what ends each document")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="where to write")
    parser.add_argument("--valid", type=float, metavar="FRACTION",
                        help="hold this share of the documents out: writes PREFIX-train and PREFIX-valid")
    parser.add_argument("--separator", default="<|endoftext|>", help="the line between two documents of a text file")
    parser.add_argument("--json-key", metavar="KEY", help="all inputs are JSONL and KEY holds the text")
    parser.add_argument("--seed", type=int, default=1234, help="of the shuffle and the split")
    parser.add_argument("--no-shuffle", dest="shuffle", action="store_false", help="keep the documents in input order")
    parser.add_argument("input", nargs="+", help="UTF-8 text, or JSONL (*.jsonl, member \"text\")")
    options = parser.parse_args()
    if options.valid is not None and not 0 < options.valid < 1:
        parser.error(f"--valid: expected a fraction between 0 and 1, got {options.valid}")
    if not 0 <= options.seed <= MASK64:
        parser.error(f"--seed: expected 0 to 2^64-1, got {options.seed}")
    if not options.out or options.out.endswith("/"):
        parser.error(f"--out: expected a prefix of file names, got {options.out!r}")
    return options


def outputs_check(prefixes, inputs):
    for prefix in prefixes:
        for suffix in (".bin", ".idx"):
            for path in inputs:
                if os.path.exists(prefix + suffix) and os.path.samefile(prefix + suffix, path):
                    fail(f"{prefix + suffix}: expected an output that is no input; choose another --out")


def main():
    options = options_parse()
    tokenizer = tokenizer_open(options.tokenizer)
    n_vocab = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    eod = eod_id(tokenizer, options.eod, n_vocab)
    documents = Documents(options.input, options.separator, options.json_key)
    if len(documents.place) < (2 if options.valid else 1):
        fail(f"{options.input[0]}: expected at least {2 if options.valid else 1} documents that are not empty, got "
             f"{len(documents.place)}")
    prefixes = [options.out + suffix for suffix in (("-train", "-valid") if options.valid else ("",))]
    outputs_check(prefixes, options.input)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    writers = []
    try:
        for prefix in prefixes:
            writers.append(Writer(prefix, n_vocab))
        write(documents, tokenizer, eod, writers, options)
        for writer in writers:
            writer.commit()
    except OSError as error:
        fail(f"{error.filename or options.out}: {error.strerror}")
    finally:
        for writer in writers:
            writer.abandon()
    n_token = sum(writer.n_token for writer in writers)
    print(f"inputs      {len(options.input)} ({documents.n_byte} bytes of text)")
    print(f"documents   {len(documents.place)} ({documents.n_empty} empty ones dropped)")
    print(f"vocabulary  {n_vocab}, id {eod} ends a document; {documents.n_byte / n_token:.3f} bytes per token")
    for writer in writers:
        print(f"wrote       {writer.prefix}.bin {writer.prefix}.idx: {len(writer.lengths)} documents, "
              f"{writer.n_token} tokens")


if __name__ == "__main__":
    main()
