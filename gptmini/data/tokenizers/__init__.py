"""Text <-> token ids: byte pairs (gpt2, bpe, bytes) and characters (chars).

Read base.py first, then byte_pair.py or chars.py.
"""

from gptmini.data.tokenizers.base import Tokenizer, load_tokenizer
from gptmini.data.tokenizers.build import build_tokenizer, load_gpt2
from gptmini.data.tokenizers.byte_pair import BytePairTokenizer
from gptmini.data.tokenizers.chars import CharTokenizer

__all__ = [
    "BytePairTokenizer",
    "CharTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "load_gpt2",
    "load_tokenizer",
]
