"""A whole corpus to ids: byte pairs by gigatoken, where that package is installed, with tiktoken's ids."""

import copy
import json
from collections.abc import Collection, Sequence
from threading import Lock

import numpy as np

from gptmini.data.corpus import Chunk
from gptmini.data.tokenizers.base import Tokenizer
from gptmini.data.tokenizers.byte_pair import BytePairTokenizer
from gptmini.data.tokenizers.hf_files import END_OF_TEXT

COMPARED_BYTES = 1 << 20


class CorpusEncoder:
    """`Tokenizer.encode_chunks` for the chunks of one corpus, from several threads.

    Both encode the first megabyte; where one id differs, gigatoken is not used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._fast = tokenizer, _with_gigatoken(tokenizer)
        self._to_compare, self._lock = COMPARED_BYTES, Lock()

    def encode_chunks(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """The ids, uint32 (n,), with the end of text behind each document."""
        with self._lock:  # one at a time, so that no thread is ahead of the comparison
            if self._fast is not None and self._to_compare > 0:
                ids = self._tokenizer.encode_chunks(chunks)
                if not np.array_equal(self._fast.encode_chunks(chunks), ids):
                    self._fast = None
                self._to_compare -= sum(len(chunk.data) for chunk in chunks)
                return ids
        return (self._fast or self._tokenizer).encode_chunks(chunks)


def _with_gigatoken(tokenizer: Tokenizer) -> Tokenizer | None:
    """The same tokenizer, run by gigatoken; None without that package, and for what has no merges."""
    if not (isinstance(tokenizer, BytePairTokenizer) and tokenizer.merges):
        return None
    try:
        import gigatoken
    except ImportError:
        return None
    file = json.loads(tokenizer.files()["tokenizer.json"])
    # Only the special token that encode_chunks puts between documents, with the id that tiktoken gives it.
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    file["added_tokens"] = [{"id": len(tokenizer), "content": END_OF_TEXT, "special": True, **flags}]
    encode = gigatoken.Tokenizer.from_json(json.dumps(file)).encode

    def to_ids(
        text: str, *, allowed_special: Collection[str] = (), disallowed_special: Collection[str] = ()
    ) -> np.ndarray:
        if not allowed_special and END_OF_TEXT in text:  # plain text, which gigatoken would take as special
            return tokenizer.to_ids(text, disallowed_special=disallowed_special)
        return encode(text.encode())

    fast = copy.copy(tokenizer)
    fast.to_ids = to_ids
    return fast
