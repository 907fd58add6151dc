"""Text <-> token ids: what every tokenizer can do, whatever its tokens are (byte_pair.py, chars.py)."""

import hashlib
import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gptmini import atomic_io
from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Chunk, open_corpus
from gptmini.data.tokenizers.hf_files import TokenizerFile, read_tokenizer_file
from gptmini.errors import UserError
from gptmini.paths import path_argument
from gptmini.schema import validate

BPE_SAMPLE_BYTES = 16 << 20  # of text to learn merges from; more takes longer and changes hardly a merge


class Tokenizer(ABC):
    """A vocabulary of byte strings, and the rule by which a text becomes their ids.

    Special tokens, such as the end of text, are put between documents. They decode to no text, and no text
    encodes to them: `<|endoftext|>` in a text is thirteen characters like any others, unless `parse_special`.

    >>> tokenizer = Tokenizer.train("low lower lowest", vocab_size=260)
    >>> ids = tokenizer.encode("lower!")
    >>> ids, [tokenizer.decode([i]) for i in ids]
    ([257, 68, 81, 0], ['low', 'e', 'r', '!'])
    >>> tokenizer.decode(ids), len(tokenizer)
    ('lower!', 260)
    """

    kind: str
    tokens: Sequence[bytes]  # the UTF-8 bytes of each id, none for a special token
    special_tokens: Mapping[str, int]
    end_of_text: int | None  # always the last id; elsewhere, or None, only in tokenizers made by others
    first_token: int | None = None  # of the training text, where no end of text stands in it

    _classes: ClassVar[dict[str, type["Tokenizer"]]] = {}  # by kind

    def __init_subclass__(cls, kinds: Sequence[str] = ()) -> None:
        # `class CharTokenizer(Tokenizer, kinds=("chars",))` runs this, so that `train` and `load` find it
        super().__init_subclass__()
        Tokenizer._classes.update(dict.fromkeys(kinds, cls))

    @staticmethod
    def train(
        texts: str | Path | Iterable[str],
        kind: str = "bpe",
        vocab_size: int | None = None,
        byte_fallback: bool = False,
    ) -> "Tokenizer":
        """A tokenizer learned from a text, from several, or from the files at a `Path`.

        `kind` is bpe (with `vocab_size` tokens, 1024 unless given), chars (with `byte_fallback`, 256 more
        tokens for all other characters) or bytes, which learns nothing. Raises UserError for another kind,
        and for options that the kind does not have.
        """
        given = {"kind": kind, "vocab_size": vocab_size, "byte_fallback": byte_fallback}
        config = validate(TokenizerConfig, given, "Tokenizer.train")
        if kind not in Tokenizer._classes:
            raise UserError(f"Tokenizer.train: kind = {kind}: has learned already; train bpe, chars or bytes")
        if isinstance(texts, Path):
            corpus = open_corpus(str(texts), key="Tokenizer.train: texts")
            texts = corpus.texts(BPE_SAMPLE_BYTES if kind == "bpe" else None)
        return Tokenizer._classes[kind]._learn(_check_texts(texts), config)

    @classmethod
    @abstractmethod
    def _learn(cls, texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
        """A tokenizer of one of the class's kinds, learned from texts."""

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """The tokenizer in a folder: one that `save` wrote, a checkpoint, or a Hugging Face GPT-2 directory.

        Raises UserError where there is none or it works in another way than GPT-2's, DamagedError where a
        file is broken.
        """
        found = load_tokenizer(path_argument(folder, "Tokenizer.load takes a path"))
        if found is None:
            raise UserError(
                f"{folder}: holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt, as a "
                "Hugging Face GPT-2 directory has them"
            )
        return found

    @classmethod
    @abstractmethod
    def _from_file(cls, file: TokenizerFile) -> "Tokenizer":
        """The tokenizer that a file describes; UserError or DamagedError where it is none of this class."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return len(self.tokens)

    @property
    def start_token(self) -> int | None:
        """What a text without a prompt starts from, as documents do: end of text, or `first_token`."""
        return self.end_of_text if self.first_token is None else self.first_token

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """The ids of a text. With `parse_special`, the names of special tokens in it become their ids, as in
        transformers.

        Raises UserError naming a character without id, which only `chars` knows, and for half of a surrogate
        pair, which UTF-8 cannot say.
        """
        if not isinstance(text, str):
            raise UserError(f"encode takes a text (str), not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the character {text[error.start]!r} at position {error.start} is half of a surrogate pair, "
                "which has no UTF-8: leave it out"
            ) from None
        if not (parse_special and self.special_tokens):
            return self._encode(text)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        ids = []
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            special = self.special_tokens.get(part)
            ids += self._encode(part) if special is None else [special]
        return ids

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""

    @abstractmethod
    def encode_chunk(self, chunk: Chunk) -> np.ndarray:
        """The ids, uint32 (n,), of a chunk of a corpus; UserError names the place of what has none."""

    def encode_chunks(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """The ids, uint32 (n,), of chunks in their order, with the end of text behind each document."""
        parts = []
        for chunk in chunks:
            parts.append(self.encode_chunk(chunk))
            if chunk.ends_document and self.end_of_text is not None:
                parts.append(np.array([self.end_of_text], dtype=np.uint32))
        return np.concatenate(parts)

    def decode(self, ids: Any) -> str:
        """The text of some ids: a list, an array or a tensor of shape (T,), or a single id.

        Bytes that are not UTF-8 become U+FFFD, the replacement character. Raises UserError for an id outside
        the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes of some ids: exactly those that were encoded, UTF-8 or not."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids  # numpy's and PyTorch's
        try:
            ids = [operator.index(i) for i in ([ids] if isinstance(ids, int) else ids)]
        except TypeError:
            raise UserError(
                "decode takes the integer ids of one text, of shape (T,): decode each row by itself"
            ) from None
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token id {i} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return b"".join([self.tokens[i] for i in ids])

    @cached_property
    def token_byte_lengths(self) -> np.ndarray:
        """int64 (V,): how many bytes of text each id decodes to; for the bits per byte of a loss."""
        return np.array([len(token) for token in self.tokens], dtype=np.int64)

    def count_bytes(self, ids: npt.ArrayLike) -> int:
        """How many bytes of text these ids, of any shape, decode to; special tokens count none."""
        return int(self.token_byte_lengths[np.asarray(ids)].sum())

    @cached_property
    def digest(self) -> str:
        """sha256, equal for tokenizers that give every text the same ids, wherever they come from."""
        identity = [type(self).__name__, self.special_tokens, [token.hex() for token in self.tokens]]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write into a folder, new or not, the files that `load` and AutoTokenizer (transformers) read."""
        folder, files = path_argument(folder, "save takes a path"), self.files()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, but a tokenizer needs a folder")
        if (there := load_tokenizer(folder)) is not None and there.digest != self.digest:
            raise UserError(f"{folder}: holds another tokenizer already; choose another folder")
        atomic_io.make_folder(folder)
        for name, data in files.items():
            atomic_io.write_file(folder / name, data)

    def files(self, max_tokens: int | None = None) -> dict[str, bytes]:
        """The contents of those files, by name; `max_tokens` is what the model takes, where there is one."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        special_tokens = sorted(self.special_tokens.items(), key=lambda item: item[1])
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": content, **flags} for content, i in special_tokens],
            "normalizer": None,
            "post_processor": None,
            **self._file_entries(),
        }
        end_of_text = next((content for content, i in special_tokens if i == self.end_of_text), None)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "unk_token": end_of_text,  # as GPT-2 has it
            # without this, transformers 4 adds token_type_ids, which change what GPT-2 computes
            "model_input_names": ["input_ids", "attention_mask"],
            **({} if max_tokens is None else {"model_max_length": max_tokens}),
            "clean_up_tokenization_spaces": False,
        }
        files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
        return {
            name: json.dumps(value, ensure_ascii=False, indent=1).encode() for name, value in files.items()
        }

    @abstractmethod
    def _file_entries(self) -> dict[str, Any]:
        """The entries of tokenizer.json that depend on the kind; `_from_file` reads them."""


def _check_texts(texts: Any) -> Iterator[str]:
    """The texts one by one; UserError for what is none."""
    for text in [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else texts:
        if not isinstance(text, str):
            given = type(text).__name__
            raise UserError(
                f"Tokenizer.train takes a text (str), several, or the Path of a file, not {given}"
            )
        yield text


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """As `Tokenizer.load`, but None where the folder holds no tokenizer."""
    file = read_tokenizer_file(folder)
    if file is None:
        return None
    file.check_supported()
    tokenizer = Tokenizer._classes[file.kind]._from_file(file)
    start = file.start_token
    if type(start) is int and start in range(len(tokenizer)) and start != tokenizer.end_of_text:
        tokenizer.first_token = start
    return tokenizer
