"""Text <-> token ids: gpt2, bpe, bytes and chars.

The first three are byte pairs, run by a tiktoken.Encoding: any text and any bytes have ids, and the kinds
differ only in their merges (GPT-2's, those learned from the corpus, and none). `chars` has one id for each
character of the corpus. Every kind has one token that stands for no text: the end of a document.
"""

import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Corpus
from gptmini.errors import DamagedError, UserError

END_OF_TEXT = "<|endoftext|>"
BPE_VOCAB_SIZE = 1024  # where the config leaves it open
BPE_SAMPLE_BYTES = 32 << 20


class Tokenizer(ABC):
    """What every kind of tokenizer can do.

    Special tokens, such as the end of text, stand for no text: nothing encodes to them (`<|endoftext|>` in
    a text is thirteen characters like any others), and they decode to nothing.
    """

    kind: str
    tokens: Sequence[bytes]  # the UTF-8 bytes that each id stands for, none for a special token
    special_tokens: Mapping[str, int]
    end_of_text: int | None  # always the last id; elsewhere, or None, only in tokenizers made by others

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return len(self.tokens)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises UserError naming a character without id, which only `chars` knows."""

    @abstractmethod
    def encode_bytes(self, data: bytes, source: str, offset: int) -> np.ndarray:
        """The ids, uint32 (n,), of a chunk of a corpus, which stands `offset` bytes into `source`.

        Raises UserError naming the place where the data is not UTF-8, which `bytes` does not mind, or
        where a character has no id.
        """

    @abstractmethod
    def _huggingface_model(self) -> dict[str, Any]:
        """The entries of a Hugging Face tokenizer.json that depend on the kind."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for: exactly those that were encoded, UTF-8 or not.

        Raises UserError for an id outside the vocabulary.
        """
        pieces = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token id {i} is outside the tokenizer's vocabulary of {self.vocab_size}")
            pieces.append(self.tokens[i])
        return b"".join(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD, the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_byte_lengths(self) -> np.ndarray:
        """int64 (V,): how many bytes of text each id stands for, which bits per byte divides by."""
        return np.array([len(token) for token in self.tokens], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """sha256, equal for tokenizers that give every text the same ids, wherever they come from."""
        identity = [type(self).__name__, self.special_tokens, [token.hex() for token in self.tokens]]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def files(self) -> dict[str, bytes]:
        """The files, by name, from which `load_tokenizer` and transformers' AutoTokenizer rebuild it."""
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": content,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for content, i in sorted(self.special_tokens.items(), key=lambda item: item[1])
            ],
            "normalizer": None,
            "post_processor": None,
            **self._huggingface_model(),
        }
        end_of_text = next((name for name, i in self.special_tokens.items() if i == self.end_of_text), None)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False, indent=1).encode(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1).encode(),
        }


# ---------------------------------------------------------------------------------------- byte pairs


class BytePairTokenizer(Tokenizer):
    """Every byte is a token, and each merge makes a new one of two: GPT-2's tokenizer, for any merges.

    A text is first cut into words by GPT-2's pattern; within a word the earliest merge goes first.

    >>> tokenizer = build_byte_tokenizer()
    >>> tokenizer.encode("Hé"), tokenizer.vocab_size, tokenizer.end_of_text
    ([72, 195, 169], 257, 256)
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_tokens: Mapping[str, int],
        end_of_text: int | None,
    ) -> None:
        """`tokens` by id, b"" for special ones; a merged token's id is higher than those of its parts."""
        self.tokens = tuple(tokens)
        self.special_tokens = dict(special_tokens)
        self.end_of_text = end_of_text
        self._ranks = {token: i for i, token in enumerate(self.tokens) if token}
        assert all(bytes([byte]) in self._ranks for byte in range(256)), "tiktoken would panic"
        self._encoding = tiktoken.Encoding(
            "gptmini", pat_str=openai_public.r50k_pat_str, mergeable_ranks=self._ranks, special_tokens={}
        )
        if len(self._ranks) == 256:
            self.kind = "bytes"
        else:
            self.kind = "gpt2" if len(self._ranks) == 50256 else "bpe"

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a lone surrogate, which no UTF-8 can hold, counts as U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_bytes(self, data: bytes, source: str, offset: int) -> np.ndarray:
        """The ids of a chunk, uint32 (n,). Only `bytes` takes data that is not UTF-8."""
        if self.kind == "bytes":
            ids = np.array([self._ranks[bytes([byte])] for byte in range(256)], dtype=np.uint32)
            return ids[np.frombuffer(data, dtype=np.uint8)]
        return self._encoding.encode_to_numpy(_decode(data, source, offset), disallowed_special=())

    def _huggingface_model(self) -> dict[str, Any]:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        ranks = self._ranks.items()
        merges = [_parts(token, self._ranks) for token, _ in sorted(ranks, key=_rank) if len(token) > 1]
        return {
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {_to_unicode(token): i for token, i in ranks},
                "merges": [f"{_to_unicode(left)} {_to_unicode(right)}" for left, right in merges],
            },
        }


def build_byte_tokenizer() -> BytePairTokenizer:
    """One token a byte, its id the byte's value."""
    return BytePairTokenizer([*(bytes([byte]) for byte in range(256)), b""], {END_OF_TEXT: 256}, 256)


def train_byte_pairs(corpus: Corpus, vocab_size: int) -> BytePairTokenizer:
    """Learn merges from the first BPE_SAMPLE_BYTES of a corpus (Sennrich et al., 2016, on bytes).

    A small text holds fewer pairs than asked for; the vocabulary is then as large as it can be.
    """
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    learner = HuggingFaceTokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the last is end of text
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(_sample(corpus), trainer)
    vocabulary = sorted(learner.get_vocab(with_added_tokens=False).items(), key=_rank)
    tokens = [_from_unicode(word) for word, _ in vocabulary]
    return BytePairTokenizer([*tokens, b""], {END_OF_TEXT: len(tokens)}, len(tokens))


def _sample(corpus: Corpus) -> Iterator[str]:
    total = 0
    for chunk in corpus.chunks():
        if total >= BPE_SAMPLE_BYTES:
            return
        total += len(chunk.data)
        yield _decode(chunk.data, chunk.source, chunk.offset)


def load_gpt2_tokenizer() -> BytePairTokenizer:
    """GPT-2's 50,257 tokens, from tiktoken, which fetches two files once and keeps them.

    Raises UserError, naming the files, where they are neither kept nor to be fetched.
    """
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
        raise UserError(
            f"tokenizer.kind = gpt2: tiktoken cannot fetch GPT-2's vocabulary ({type(error).__name__}): "
            "put its cache files 6d1cbeee0f20b3d9449abfede4726ed8212e3aee (vocab.bpe) and "
            "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 (encoder.json) into the folder that TIKTOKEN_CACHE_DIR "
            "names, or use tokenizer.kind bpe or bytes, which need none"
        ) from None
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return BytePairTokenizer([*tokens, b""], {END_OF_TEXT: encoding.eot_token}, encoding.eot_token)


def _rank(item: tuple[Any, int]) -> int:
    return item[1]


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged into this one: what merging by all lower ranks leaves of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


@cache
def _byte_characters() -> dict[int, str]:
    """The printable character by which GPT-2's files write each byte.

    Bytes that are visible in Latin-1 stand for themselves; the others take the characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _to_unicode(token: bytes) -> str:
    return "".join(_byte_characters()[byte] for byte in token)


def _from_unicode(word: str) -> bytes:
    return bytes(map({c: byte for byte, c in _byte_characters().items()}.__getitem__, word))


# ---------------------------------------------------------------------------------------- characters


class CharTokenizer(Tokenizer):
    """One token for each character of the corpus, in the order of their code points.

    >>> tokenizer = CharTokenizer("hello")
    >>> tokenizer.encode("hole"), tokenizer.decode([1, 0, 2, 3]), tokenizer.end_of_text
    ([1, 3, 2, 0], 'helo', 4)
    """

    kind = "chars"

    def __init__(self, characters: Iterable[str]) -> None:
        self._characters = sorted(set(characters))
        self._code_points = np.array([ord(c) for c in self._characters], dtype=np.uint32)
        self.end_of_text: int = len(self._characters)
        self.tokens = (*(c.encode() for c in self._characters), b"")
        self.special_tokens = {END_OF_TEXT: self.end_of_text}

    def encode(self, text: str) -> list[int]:
        """The ids of a text; UserError names a character that is not in the vocabulary."""
        ids: list[int] = self._encode(text, "the text").tolist()
        return ids

    def encode_bytes(self, data: bytes, source: str, offset: int) -> np.ndarray:
        """The ids of a chunk, uint32 (n,)."""
        return self._encode(_decode(data, source, offset), source)

    def _encode(self, text: str, source: str) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.searchsorted(self._code_points, code_points).astype(np.uint32)
        found = self._code_points[np.minimum(ids, len(self._code_points) - 1)] == code_points
        if not found.all():
            unknown = chr(code_points[found.argmin()])
            name = unicodedata.name(unknown, "no name")
            raise UserError(
                f"{source}: the character {unknown!r} (U+{ord(unknown):04X}, {name}) is not among the "
                f"{len(self._characters)} characters of the training text, and tokenizer.kind chars knows no "
                "others; leave it out, or train with bpe or bytes"
            )
        return ids

    def _huggingface_model(self) -> dict[str, Any]:
        vocabulary = {c: i for i, c in enumerate(self._characters)}
        return {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": END_OF_TEXT},
        }


# ---------------------------------------------------------------------------------------- making and loading


def build_tokenizer(config: TokenizerConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer that the config asks for; `bpe` and `chars` learn theirs from the corpus."""
    match config.kind:
        case "gpt2":
            return load_gpt2_tokenizer()
        case "bytes":
            return build_byte_tokenizer()
        case "bpe":
            return train_byte_pairs(corpus, config.vocab_size or BPE_VOCAB_SIZE)
        case "chars":
            return CharTokenizer(
                set().union(*(_decode(chunk.data, chunk.source, chunk.offset) for chunk in corpus.chunks()))
            )


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint or of a Hugging Face GPT-2 directory; None where there is none.

    Reads tokenizer.json, or vocab.json with merges.txt. Raises DamagedError for files that are broken and
    UserError for tokenizers of other kinds.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        values = _read_json(path)
        special = values.get("added_tokens", [])
        model = values.get("model")
        if not isinstance(model, dict) or not isinstance(special, list):
            raise DamagedError(f"{path}: damaged: no model or no added_tokens in it")
        try:
            specials = {str(token["content"]): int(token["id"]) for token in special}
        except (KeyError, TypeError, ValueError):
            raise DamagedError(f"{path}: damaged: added_tokens without content or id") from None
    elif (folder / "vocab.json").exists():
        path = folder / "vocab.json"
        model = {"type": "BPE", "vocab": _read_json(path)}
        specials = {END_OF_TEXT: model["vocab"].pop(END_OF_TEXT)} if END_OF_TEXT in model["vocab"] else {}
        values = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    else:
        return None
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise DamagedError(f"{path}: damaged: no vocabulary of words and ids in it")
    vocabulary = {word: i for word, i in vocabulary.items() if word not in specials}
    ids = {*vocabulary.values(), *specials.values()}
    if ids != set(range(len(vocabulary) + len(specials))):
        raise DamagedError(f"{path}: damaged: its ids are not 0 to {len(vocabulary) + len(specials) - 1}")
    if model.get("type") == "WordLevel" and all(len(word) == 1 for word in vocabulary):
        tokenizer = CharTokenizer(vocabulary)
        if [tokenizer.tokens[i].decode() for i in vocabulary.values()] != list(vocabulary):
            raise DamagedError(f"{path}: damaged: its characters are not in the order of their ids")
        return tokenizer
    if model.get("type") != "BPE" or not _is_byte_level(values.get("pre_tokenizer")):
        raise UserError(f"{path}: this is no byte-level BPE as GPT-2 uses it, nor a character tokenizer")
    tokens = [b""] * len(ids)
    try:
        for word, i in vocabulary.items():
            tokens[i] = _from_unicode(word)
    except KeyError as error:
        raise DamagedError(f"{path}: damaged: {error} stands for no byte in a byte-level BPE") from None
    if len({token for token in tokens if token}) < len(vocabulary) or any(
        bytes([byte]) not in tokens for byte in range(256)
    ):
        raise DamagedError(f"{path}: damaged: a byte has no token, or a token stands twice")
    end_of_text = specials.get(END_OF_TEXT, max(specials.values()) if len(specials) == 1 else None)
    return BytePairTokenizer(tokens, specials, end_of_text)


def _is_byte_level(pre_tokenizer: Any) -> bool:
    return (
        isinstance(pre_tokenizer, dict)
        and pre_tokenizer.get("type") == "ByteLevel"
        and not pre_tokenizer.get("add_prefix_space")
        and pre_tokenizer.get("use_regex", True) is True
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DamagedError(f"{path}: damaged: not JSON") from None
    if not isinstance(values, dict):
        raise DamagedError(f"{path}: damaged: no JSON object")
    return values


def _decode(data: bytes, source: str, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: not UTF-8 text at byte {offset + error.start} (0x{data[error.start]:02X}); "
            "convert the file to UTF-8, or use tokenizer.kind bytes, which takes any bytes"
        ) from None
