"""Learns byte pairs by Hugging Face's tokenizers: texts on standard input, tokenizer.json on standard output.

A program of its own, as that library aborts the process that runs out of memory. Each text is a line of JSON.
"""

import json
import sys

import tokenizers


def learn(vocab_size: int) -> str:
    """The tokenizer.json of byte pairs that are learned from standard input."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes
        show_progress=False,
    )
    learner.train_from_iterator(map(json.loads, sys.stdin.buffer), trainer)
    return learner.to_str()


if __name__ == "__main__":
    sys.stdout.buffer.write(learn(vocab_size=int(sys.argv[1])).encode())
