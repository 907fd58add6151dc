"""Text <-> token ids: gpt2, bpe, bytes and chars.

The first three are byte pairs, run by a tiktoken.Encoding: any text and any bytes have ids, and the kinds
differ only in their merges (GPT-2's, those learned from the corpus, and none). `chars` has one id for each
character of the corpus. Every kind has one token that stands for no text: the end of a document.
"""

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tiktoken
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError
from tiktoken_ext import openai_public

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Chunk, Corpus, character_boundary
from gptmini.data.datasets import cache_folder
from gptmini.errors import DamagedError, UserError

END_OF_TEXT = "<|endoftext|>"
BPE_VOCAB_SIZE = 1024  # where the config leaves it open
BPE_SAMPLE_BYTES = 16 << 20  # that merges are learned from; a longer text adds time and hardly a merge
GPT2_MERGES = 50_000
GPT2_DIGEST = "2120503ab28e3cfede38e72fa4ead72c5f0b5a21622586db74483a4e0370b877"


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

    def encode_chunks(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """The ids, uint32 (n,), of chunks in their order, with the end of text behind each document."""
        end = np.array([] if self.end_of_text is None else [self.end_of_text], dtype=np.uint32)
        parts = []
        for chunk in chunks:
            parts.append(self.encode_bytes(chunk.data, chunk.source, chunk.offset))
            parts.append(end if chunk.ends_document else end[:0])
        return np.concatenate(parts)

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
        self._encoding = tiktoken.Encoding(
            self.kind,
            pat_str=openai_public.r50k_pat_str,
            mergeable_ranks=ids,
            special_tokens={
                END_OF_TEXT: len(self.tokens)
            },  # between documents; and encode_to_numpy needs one
        )
        self._id_of_byte = np.array([ids[byte] for byte in BYTES], dtype=np.uint32)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a lone surrogate, which is no character, counts as U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_bytes(self, data: bytes, source: str, offset: int) -> np.ndarray:
        """The ids, uint32 (n,), of a chunk of a corpus; see Tokenizer."""
        if not self.merges:
            return self._id_of_byte[np.frombuffer(data, dtype=np.uint8)]
        text = _decode_utf8(data, source, offset)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_chunks(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """The same as Tokenizer's, by one call of tiktoken where that can be: behind each call a thread may
        wait longer for its turn in Python than the call took."""
        end = END_OF_TEXT.encode()
        joined = b"".join(chunk.data + end for chunk in chunks)
        whole = all(chunk.ends_document for chunk in chunks)
        if not (self.merges and whole) or joined.count(end) > len(chunks):  # more: it stands in a text
            return super().encode_chunks(chunks)
        try:
            text = joined.decode()
        except UnicodeDecodeError:
            return super().encode_chunks(chunks)  # which names the place
        ids = self._encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        ends = ids == len(self.tokens)
        return ids[~ends] if self.end_of_text is None else np.where(ends, np.uint32(self.end_of_text), ids)

    def _huggingface_model(self) -> dict[str, Any]:
        vocabulary = {_to_unicode(token): i for i, token in enumerate(self.tokens) if token}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
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


BYTES = [bytes([byte]) for byte in range(256)]


def _bytes_as_characters() -> list[str]:
    """GPT-2's way to write bytes in JSON: printable Latin-1 as itself, the others as U+0100 and up.

    >>> _bytes_as_characters()[ord(" ")], _bytes_as_characters()[ord("a")]
    ('Ġ', 'a')
    """
    others = (chr(code) for code in range(256, 512))
    return [chr(b) if chr(b).isprintable() and chr(b) != " " else next(others) for b in range(256)]


_CHARACTER_OF_BYTE = _bytes_as_characters()
_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(_CHARACTER_OF_BYTE)}


def _to_unicode(token: bytes) -> str:
    return "".join([_CHARACTER_OF_BYTE[byte] for byte in token])


def _from_unicode(text: str) -> bytes:
    """Raises KeyError for a character that stands for no byte."""
    return bytes([_BYTE_OF_CHARACTER[character] for character in text])


# ---------------------------------------------------------------------------------------- characters


class CharTokenizer(Tokenizer):
    """One id for each character of the corpus, in the order of their code points.

    With `byte_fallback` no character is unknown: others become their UTF-8 bytes, for which there are 256
    more ids.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab"), tokenizer.end_of_text
    ([2, 0, 1], 3)
    >>> CharTokenizer("abc", byte_fallback=True).encode("cé")
    [2, 198, 172]
    """

    kind = "chars"

    def __init__(self, characters: Sequence[str], byte_fallback: bool = False) -> None:
        self.characters = tuple(characters)
        self.byte_fallback = byte_fallback
        self.tokens = (
            *(character.encode() for character in characters),
            *(BYTES if byte_fallback else ()),
            b"",
        )
        self.end_of_text = len(self.tokens) - 1
        self.special_tokens = {END_OF_TEXT: self.end_of_text}
        self._id_of_code_point = np.full(0x110000, -1, dtype=np.int64)
        self._id_of_code_point[[ord(character) for character in characters]] = np.arange(len(characters))

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises UserError naming a character that the corpus did not have."""
        ids = self._look_up(text)
        if (ids < 0).any():
            raise UserError(f"{self._unknown(text[(ids < 0).argmax()])}; leave it out")
        return ids.tolist()

    def encode_bytes(self, data: bytes, source: str, offset: int) -> np.ndarray:
        """The ids, uint32 (n,), of a chunk of a corpus; see Tokenizer."""
        text = _decode_utf8(data, source, offset)
        ids = self._look_up(text)
        if (ids < 0).any():
            place = int((ids < 0).argmax())
            raise UserError(
                f"{source}: byte {offset + len(text[:place].encode())}: {self._unknown(text[place])}; "
                "use tokenizer.kind = bpe or bytes, which know them all"
            )
        return ids.astype(np.uint32)

    def _look_up(self, text: str) -> np.ndarray:
        """int64 ids; -1 for an unknown character, unless its bytes can stand for it."""
        code_points = _code_points(text)
        ids = self._id_of_code_point[code_points]
        unknown = ids < 0
        if not (self.byte_fallback and unknown.any()):
            return ids
        utf8_lengths = 1 + np.searchsorted([0x80, 0x800, 0x10000], code_points, side="right")
        widths = np.where(unknown, utf8_lengths, 1)
        ids = np.repeat(ids, widths)
        letters = code_points[unknown].tobytes().decode("utf-32-le", errors="surrogatepass")
        bytes_of_unknown = np.frombuffer(letters.encode(errors="surrogatepass"), dtype=np.uint8)
        ids[np.repeat(unknown, widths)] = len(self.characters) + bytes_of_unknown.astype(np.int64)
        return ids

    def _unknown(self, character: str) -> str:
        name = unicodedata.name(character, "a character without name")
        return (
            f"the character {character!r} (U+{ord(character):04X}, {name}) is not among the "
            f"{len(self.characters)} characters of this tokenizer"
        )

    def _huggingface_model(self) -> dict[str, Any]:
        vocabulary = {character: i for i, character in enumerate(self.characters)}
        every_character = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}
        model: dict[str, Any] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": END_OF_TEXT}
        decoder: dict[str, Any] = {"type": "Fuse"}
        if self.byte_fallback:  # byte pairs without merges: a character, or else its bytes
            vocabulary |= {f"<0x{byte:02X}>": len(self.characters) + byte for byte in range(256)}
            model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True}
            decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, decoder]}
        return {
            "pre_tokenizer": {**every_character, "invert": False},
            "decoder": decoder,
            "model": model,
        }


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def _decode_utf8(data: bytes, source: str, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: not UTF-8 text at byte {offset + error.start} (0x{data[error.start]:02x}): save "
            "it as UTF-8, use tokenizer.kind = bytes, which takes any bytes, or set data.errors = replace"
        ) from None


# ---------------------------------------------------------------------------------------- building


def build_tokenizer(config: TokenizerConfig, corpus: Corpus, train_bytes: int | None = None) -> Tokenizer:
    """The tokenizer that a config describes.

    `bpe` learns its merges from the first `train_bytes` bytes of the corpus (None: all of it), so that the
    validation text stays unseen: from all of them up to BPE_SAMPLE_BYTES, and from as many in pieces at even
    distances where there are more. `chars` needs the characters of the whole. Raises UserError where the
    text is not UTF-8, or the files of gpt2 or of a folder cannot be had.
    """
    if config.kind == "bytes":
        return BytePairTokenizer([*BYTES, b""], [], {END_OF_TEXT: 256})
    if config.kind == "chars":
        return CharTokenizer(_characters(corpus), config.byte_fallback)
    if config.kind == "gpt2":
        return load_gpt2() if config.folder is None else _read_gpt2(Path(config.folder).expanduser())
    if config.folder is not None:
        return _read_folder(Path(config.folder).expanduser())
    return _train_bpe(config.vocab_size or BPE_VOCAB_SIZE, sample(corpus, BPE_SAMPLE_BYTES, train_bytes))


def _characters(corpus: Corpus) -> list[str]:
    seen = np.zeros(0x110000, dtype=bool)
    for chunk in corpus.chunks():
        seen[_code_points(_decode_utf8(chunk.data, chunk.source, chunk.offset))] = True
    return [chr(code_point) for code_point in np.flatnonzero(seen)]


def sample(corpus: Corpus, size_bytes: int, end: int | None = None) -> Iterator[str]:
    """About `size_bytes` of text at most: chunks at even distances over the corpus, or its first `end` bytes.

    Raises UserError where the text is not UTF-8.
    """
    end = corpus.contents.total_bytes if end is None else end
    stride = -(-end // size_bytes)
    position = 0
    for i, chunk in enumerate(corpus.chunks()):
        if position >= end:
            return
        data = chunk.data
        if position + len(data) > end:
            data = data[: character_boundary(data, end - position)]
        position += len(chunk.data)
        if i % stride == 0:
            yield _decode_utf8(data, chunk.source, chunk.offset)


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Merges learned from texts: fewer than asked for where too few pairs stand in them at least twice."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # one id is the end of text
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(map(_break_endless_words, texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = [_from_unicode(text) for text in sorted(learned["vocab"], key=learned["vocab"].get)]
    merges = [(_from_unicode(left), _from_unicode(right)) for left, right in learned["merges"]]
    return BytePairTokenizer([*tokens, b""], merges, {END_OF_TEXT: len(tokens)})


def _break_endless_words(text: str) -> str:
    """A line break after 1000 characters without whitespace: learning is quadratic in a word's length."""
    return re.sub(r"(\S{1000})(?=\S)", r"\1\n", text)


def _read_folder(folder: Path) -> BytePairTokenizer:
    """The byte-level BPE tokenizer in a folder that the config names."""
    found = load_tokenizer(folder)
    if found is None:
        raise UserError(
            f"tokenizer.folder = {folder}: holds no tokenizer: it needs tokenizer.json, or vocab.json and "
            "merges.txt, as a Hugging Face GPT-2 directory has them"
        )
    if not isinstance(found, BytePairTokenizer):
        raise UserError(f"tokenizer.folder = {folder}: holds a tokenizer of characters, not of byte pairs")
    return found


def _read_gpt2(folder: Path) -> Tokenizer:
    found = _read_folder(folder)
    if found.digest != GPT2_DIGEST:
        raise UserError(
            f"{folder}: holds another tokenizer than GPT-2's (sha256 {found.digest[:16]}..., not "
            f"{GPT2_DIGEST[:16]}...); tokenizer.kind = bpe with tokenizer.folder takes any byte-level BPE"
        )
    return found


def load_gpt2() -> Tokenizer:
    """GPT-2's own tokenizer: from the cache folder, or as tiktoken finds or downloads it."""
    folder = cache_folder() / "gpt2"
    if folder.is_dir():
        return _read_gpt2(folder)
    try:
        gpt2 = openai_public.gpt2()
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
        raise UserError(
            f"tokenizer.kind = gpt2: its files cannot be downloaded ({type(error).__name__}); offline put "
            f"GPT-2's vocab.json and merges.txt into {folder} or a folder named by tokenizer.folder, or its "
            "vocab.bpe and encoder.json as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee and "
            "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 into the folder that TIKTOKEN_CACHE_DIR names, or use "
            "tokenizer.kind = bpe or bytes"
        ) from None
    ids: dict[bytes, int] = gpt2["mergeable_ranks"]
    merges = [_parts(token, ids) for token in sorted(ids, key=ids.__getitem__) if len(token) > 1]
    return BytePairTokenizer([*sorted(ids, key=ids.__getitem__), b""], merges, gpt2["special_tokens"])


def _parts(token: bytes, ids: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are merged into this one: what earlier merges make of its bytes."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [left + right for left, right in pairwise(parts)]
        i = min(range(len(pairs)), key=lambda i: ids.get(pairs[i], len(ids)))
        parts[i : i + 2] = [pairs[i]]
    return parts[0], parts[1]


# ---------------------------------------------------------------------------------------- loading


class _Json(BaseModel):
    """What decides the ids in a file that others may have written; the rest of it is ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class _AddedToken(_Json):
    id: int
    content: str
    special: bool = False


class _BytePairModel(_Json):
    type: Literal["BPE"] = "BPE"
    vocab: dict[str, int]
    merges: Sequence[str | list[str]]  # "a b" or ["a", "b"]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _WordLevelModel(_Json):
    type: Literal["WordLevel"]
    vocab: dict[str, int]


class _TokenizerFile(_Json):
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    model: _BytePairModel | _WordLevelModel = Field(discriminator="type")


class _TokenizerConfigFile(_Json):
    eos_token: str | dict[str, Any] | None = None


class _VocabFile(RootModel[dict[str, int]]):
    pass


_File = TypeVar("_File", bound=BaseModel)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a checkpoint or a Hugging Face GPT-2 directory, or None where there is none.

    Reads tokenizer.json, or else vocab.json with merges.txt (which OpenAI calls encoder.json and vocab.bpe).
    Raises DamagedError where a file is broken, and UserError where it describes a tokenizer that works in
    another way than GPT-2's.
    """
    path, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if not vocab.is_file():  # OpenAI's own names of the two
        vocab, merges = folder / "encoder.json", folder / "vocab.bpe"
    if path.is_file():
        file = _parse(path, _TokenizerFile)
    elif vocab.is_file() and merges.is_file():
        path = vocab
        lines = [line for line in _read_text(merges).split("\n") if line and not line.startswith("#version")]
        model = _BytePairModel(vocab=_parse(vocab, _VocabFile).root, merges=lines)
        file = _TokenizerFile(pre_tokenizer={"type": "ByteLevel"}, model=model)
    else:
        return None
    if isinstance(file.model, _WordLevelModel) or (file.model.byte_fallback and not file.model.merges):
        return _build_chars(path, file, file.model)
    return _build_byte_pairs(path, file, file.model, _end_of_text_name(folder / "tokenizer_config.json"))


def _build_byte_pairs(
    path: Path, file: _TokenizerFile, model: _BytePairModel, end_of_text: str | None
) -> Tokenizer:
    pre_tokenizer = file.pre_tokenizer or {}
    if (
        pre_tokenizer.get("type") != "ByteLevel"
        or pre_tokenizer.get("add_prefix_space")
        or not pre_tokenizer.get("use_regex", True)
        or file.normalizer
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
        or model.byte_fallback
        or model.ignore_merges
        or not all(token.special for token in file.added_tokens)
    ):
        raise UserError(f"{path}: not a byte-level BPE tokenizer like GPT-2's, and no other kind can be read")
    ids = _ids(path, file, model.vocab)
    made = {character: bytes([byte]) for byte, character in enumerate(_CHARACTER_OF_BYTE)}
    for character in made.keys() - ids.keys():
        raise DamagedError(f"{path}: byte 0x{made[character].hex()} has no id")
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
    special_tokens = {text: i for text, i in ids.items() if text not in made}
    if any(token.content in made for token in file.added_tokens):
        raise UserError(f"{path}: a special token is also plain text, which GPT-2's tokenizer does not have")
    tokens = [made.get(text, b"") for text in sorted(ids, key=ids.__getitem__)]
    return BytePairTokenizer(
        tokens,
        merges,
        special_tokens,
        next((n for n in (end_of_text, END_OF_TEXT) if n in special_tokens), None),
    )


def _build_chars(path: Path, file: _TokenizerFile, model: _WordLevelModel | _BytePairModel) -> Tokenizer:
    ids = _ids(path, file, model.vocab)
    *characters, last = sorted(ids, key=ids.__getitem__) or [""]
    byte_fallback = isinstance(model, _BytePairModel)
    if byte_fallback:
        characters, byte_tokens = characters[:-256], characters[-256:]
        if byte_tokens != [f"<0x{byte:02X}>" for byte in range(256)]:
            raise UserError(f"{path}: its last tokens are not the 256 bytes and the end of text")
    if last != END_OF_TEXT or any(len(character) != 1 for character in characters):
        raise UserError(f"{path}: its tokens are words, and only single characters can be read")
    return CharTokenizer(characters, byte_fallback)


def _ids(path: Path, file: _TokenizerFile, vocab: Mapping[str, int]) -> dict[str, int]:
    """The id of every token, which must be the numbers from 0 on."""
    ids = {**vocab, **{token.content: token.id for token in file.added_tokens}}
    if sorted(ids.values()) != list(range(len(ids))):
        raise DamagedError(
            f"{path}: the ids of its {len(ids)} tokens are not the numbers from 0 to {len(ids) - 1}"
        )
    return ids


def _end_of_text_name(path: Path) -> str | None:
    if not path.is_file():
        return None
    name = _parse(path, _TokenizerConfigFile).eos_token
    return name.get("content") if isinstance(name, dict) else name


def _parse(path: Path, schema: type[_File]) -> _File:
    try:
        return schema.model_validate_json(_read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        if first["type"] == "union_tag_invalid":
            raise UserError(f"{path}: not a byte-level BPE tokenizer like GPT-2's: {first['msg']}") from None
        raise DamagedError(
            f"{path}: not a tokenizer: {where + ': ' if where else ''}{first['msg']}"
        ) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DamagedError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
