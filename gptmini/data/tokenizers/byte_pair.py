"""Byte-pair encoding: GPT-2's tokenizer, for any list of merges.

Differs from base.py in its tokens: the 256 bytes come first, so every text has ids, and each merge adds one
token that joins two earlier ones. No merges: kind bytes. GPT-2's 50,000: kind gpt2 (gpt2.py). Others: bpe.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Chunk
from gptmini.data.tokenizers.base import Tokenizer
from gptmini.data.tokenizers.hf_files import BYTE_LEVEL, END_OF_TEXT, TokenizerFile
from gptmini.errors import DamagedError, OutOfMemoryError, UserError

BPE_VOCAB_SIZE = 1024  # where the config leaves it open
GPT2_MERGES = 50_000
# tiktoken fails at a million characters of whitespace before a word. Its pattern takes the last of them alone
# or with the word, so in front of that one a text can be cut. (Its \s has no U+001C to U+001F, Python's has.)
_LONG_WHITESPACE = re.compile(r"(?<![^\S\x1c-\x1f])[^\S\x1c-\x1f]{100000,}(?=[\S\x1c-\x1f])")
BYTES = [bytes([byte]) for byte in range(256)]


class BytePairTokenizer(Tokenizer, kinds=("bpe", "bytes")):
    """Every byte is a token, and each merge makes a new one of two.

    A text is first cut into words by GPT-2's pattern; within a word the earliest merge goes first.

    >>> tokenizer = BytePairTokenizer(BYTES + [b"he", b""], [(b"h", b"e")], {END_OF_TEXT: 257})
    >>> tokenizer.encode("hehé")
    [256, 104, 195, 169]
    >>> tokenizer.decode([256, 104, 195, 169])
    'hehé'
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int],
        end_of_text: str | None = END_OF_TEXT,
    ) -> None:
        """`merges` in their order, which is also the order of the merged tokens' ids."""
        self.tokens = tuple(tokens)
        self.merges = tuple(merges)
        self.special_tokens = dict(special_tokens)
        self.end_of_text = None if end_of_text is None else self.special_tokens[end_of_text]
        self.kind = {0: "bytes", GPT2_MERGES: "gpt2"}.get(len(self.merges), "bpe")
        ids = {token: i for i, token in enumerate(self.tokens) if token}
        assert all(byte in ids for byte in BYTES), "tiktoken panics without all 256 bytes"
        # tiktoken needs no list of merges: the token with the lowest id (its rank) is merged first
        self._encoding = tiktoken.Encoding(
            self.kind,
            pat_str=openai_public.r50k_pat_str,
            mergeable_ranks=ids,
            # an id above all others: encode_chunks puts it between documents
            special_tokens={END_OF_TEXT: len(self.tokens)},
        )
        # the ids, uint32 (n,), of a corpus's text; CorpusEncoder has a faster one
        self.to_ids: Callable[..., np.ndarray] = self._encoding.encode_to_numpy
        self._id_of_byte = np.array([ids[byte] for byte in BYTES], dtype=np.uint32)

    @classmethod
    def _learn(cls, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        """Fewer merges than asked for where too few pairs occur at least twice."""
        if config.kind == "bytes":
            return cls([*BYTES, b""], [], {END_OF_TEXT: 256})
        size = (config.vocab_size or BPE_VOCAB_SIZE) - 1  # one id is the end of text
        lines = "".join(json.dumps(_shorten_words(text), ensure_ascii=False) + "\n" for text in texts)
        command = [sys.executable, str(Path(__file__).with_name("learn_merges.py")), str(size)]
        result = subprocess.run(
            command, input=lines.encode(errors="replace"), capture_output=True, check=False
        )
        if result.returncode:
            said = [*filter(None, result.stderr.decode(errors="replace").splitlines()), "killed"]
            # of a Python error the last line, of an abort in Rust the first
            reason = said[-2] if said[0].startswith("Traceback") else said[0]
            raise OutOfMemoryError(
                f"a tokenizer of tokenizer.vocab_size = {size + 1:,} cannot be learned from "
                f"{len(lines):,} characters of text here ({reason}): lower it, or free some memory"
            )
        # from Hugging Face's printable characters back to bytes
        learned = json.loads(result.stdout)["model"]
        tokens = [_from_unicode(text) for text in sorted(learned["vocab"], key=learned["vocab"].get)]
        merges = [(_from_unicode(left), _from_unicode(right)) for left, right in learned["merges"]]
        return cls([*tokens, b""], merges, {END_OF_TEXT: len(tokens)})

    def _encode(self, text: str) -> list[int]:
        # in pieces where whitespace is long
        ends = [match.end() - 1 for match in _LONG_WHITESPACE.finditer(text)]
        pieces = (text[start:end] for start, end in pairwise([0, *ends, len(text)]))
        return [i for piece in pieces for i in self._encoding.encode_ordinary(piece)]

    def encode_chunk(self, chunk: Chunk) -> np.ndarray:
        """The ids, uint32 (n,), of a chunk of a corpus; see Tokenizer."""
        if not self.merges:  # one id for each byte, UTF-8 or not
            return self._id_of_byte[np.frombuffer(chunk.data, dtype=np.uint8)]
        return self.to_ids(chunk.text(), disallowed_special=())

    def encode_chunks(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """The same as Tokenizer's, by one call where possible.

        With a call for each short document, threads spend more time waiting for Python's lock than encoding.
        """
        end = END_OF_TEXT.encode()
        joined = b"".join(chunk.data + end for chunk in chunks)
        # one by one if a document continues in the next batch or is no text, or if one contains <|endoftext|>
        whole = all(chunk.ends_document and not chunk.other_format for chunk in chunks)
        if not (self.merges and whole) or joined.count(end) > len(chunks):
            return super().encode_chunks(chunks)
        try:
            text = joined.decode()
        except UnicodeDecodeError:
            return super().encode_chunks(chunks)  # which names the place
        ids = self.to_ids(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        ends = ids == len(self.tokens)
        return ids[~ends] if self.end_of_text is None else np.where(ends, np.uint32(self.end_of_text), ids)

    def _file_entries(self) -> dict[str, Any]:
        vocabulary = {_to_unicode(token): i for i, token in enumerate(self.tokens) if token}
        return {
            "pre_tokenizer": BYTE_LEVEL,
            "decoder": BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocabulary,
                "merges": [f"{_to_unicode(left)} {_to_unicode(right)}" for left, right in self.merges],
            },
        }

    @classmethod
    def _from_file(cls, file: TokenizerFile) -> Tokenizer:
        model, path = file.model, file.path
        if model.merges is None:
            raise DamagedError(f"{path}: not a tokenizer: model.merges is missing")
        ids = file.ids()
        made = dict(_BYTE_OF_CHARACTER)
        for character in made.keys() - ids.keys():
            raise DamagedError(f"{path}: byte 0x{made[character].hex()} has no id")

        # Replay the merges: each must join two tokens made before, and get a higher id than the last.
        merges: list[tuple[bytes, bytes]] = []
        last_id = -1
        for merge in model.merges:
            parts = merge.split(" ") if isinstance(merge, str) else merge
            token = "".join(parts)
            if len(parts) != 2 or not all(part in made for part in parts) or token not in ids:
                raise DamagedError(
                    f"{path}: {merge!r:.60} is not a merge of two earlier tokens into one with an id"
                )
            if token in made or ids[token] < last_id:
                raise UserError(f"{path}: the ids do not follow the order of the merges, as GPT-2's do")
            last_id = ids[token]
            merges.append((made[parts[0]], made[parts[1]]))
            made[token] = made[parts[0]] + made[parts[1]]

        # A token that is no byte and that no merge makes is a special token.
        special_tokens = {text: i for text, i in ids.items() if text not in made}
        if both := [added.content for added in file.added_tokens if added.content in made]:
            raise UserError(f"{path}: the special token {both[0]!r} is also a token of plain text")
        tokens = [made.get(text, b"") for text in sorted(ids, key=ids.__getitem__)]
        return cls(tokens, merges, special_tokens, file.end_of_text(special_tokens))


def _shorten_words(text: str) -> str:
    """A text to learn from, where no word is long: the time to learn is quadratic in a word's length."""
    # a line break after each 1000 characters of a word, and of whitespace 10,000 characters
    text = re.sub(r"(?<!\S)\S{1001,}", lambda word: "\n".join(re.findall(".{1,1000}", word[0], re.S)), text)
    return re.sub(r"(?<!\s)(\s{10000})\s+", r"\1", text)


def _bytes_as_characters() -> list[str]:
    """GPT-2's way to write bytes in JSON: printable Latin-1 as itself, the others as U+0100 and up.

    >>> _bytes_as_characters()[ord(" ")], _bytes_as_characters()[ord("a")]
    ('Ġ', 'a')
    """
    others = (chr(code) for code in range(256, 512))
    return [chr(b) if chr(b).isprintable() and chr(b) != " " else next(others) for b in range(256)]


_CHARACTER_OF_BYTE = _bytes_as_characters()
_BYTE_OF_CHARACTER = dict(zip(_CHARACTER_OF_BYTE, BYTES, strict=True))


def _to_unicode(token: bytes) -> str:
    return "".join([_CHARACTER_OF_BYTE[byte] for byte in token])


def _from_unicode(text: str) -> bytes:
    return b"".join([_BYTE_OF_CHARACTER[character] for character in text])
