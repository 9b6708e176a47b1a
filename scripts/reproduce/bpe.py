#!/usr/bin/env python3
"""Trains a byte-level BPE vocabulary on text files: bpe.py ENTRIES SEPARATOR OUT.json FILE...
The separator is an entry of its own and never part of another. Needs PyPI's tokenizers; scripts/reproduce/small.sh
installs them into build/venv-tokenizers."""
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def documents(paths, separator):
    for path in paths:
        with open(path, encoding="utf-8") as file:
            yield from file.read().split(f"{separator}\n")


def main():
    if len(sys.argv) < 5:
        sys.exit("usage: bpe.py ENTRIES SEPARATOR OUT.json FILE...")
    entries, separator, out, paths = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=entries, special_tokens=[separator], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(documents(paths, separator), trainer)
    tokenizer.save(out)
    print(f"vocabulary: {tokenizer.get_vocab_size()} entries in {out}")


if __name__ == "__main__":
    main()
