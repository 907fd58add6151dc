"""One id for each character of a text.

Differs from base.py in its tokens: single characters, in the order of their code points. A character that the
training text did not have is an error, unless `byte_fallback` adds the 256 bytes as tokens.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Chunk
from gptmini.data.tokenizers.base import Tokenizer
from gptmini.data.tokenizers.hf_files import END_OF_TEXT, EVERY_CHARACTER, TokenizerFile
from gptmini.errors import UserError

CODE_POINTS = 0x110000  # Unicode's
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]  # Hugging Face's names of the bytes


class CharTokenizer(Tokenizer, kinds=("chars",)):
    """One id for each character; with `byte_fallback`, others become the ids of their UTF-8 bytes.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab"), tokenizer.end_of_text
    ([2, 0, 1], 3)
    >>> CharTokenizer("abc", byte_fallback=True).encode("cé")
    [2, 198, 172]
    """

    kind = "chars"

    def __init__(
        self,
        characters: Sequence[str],
        byte_fallback: bool = False,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        end_of_text: str | None = END_OF_TEXT,
    ) -> None:
        """The ids are those of the characters, then of the bytes, then of the special tokens."""
        self.characters = tuple(characters)
        self.byte_fallback = byte_fallback
        plain = [character.encode() for character in characters]
        plain += [bytes([byte]) for byte in range(256)] if byte_fallback else []
        self.tokens = (*plain, *(b"" for _ in special_tokens))
        self.special_tokens = {name: len(plain) + i for i, name in enumerate(special_tokens)}
        self.end_of_text = None if end_of_text is None else self.special_tokens[end_of_text]
        # a table from code point to id, so that numpy encodes a whole chunk at once
        self._id_of_code_point = np.full(CODE_POINTS, -1, dtype=np.int64)
        self._id_of_code_point[[ord(character) for character in characters]] = np.arange(len(characters))

    @classmethod
    def _learn(cls, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        seen = np.zeros(CODE_POINTS, dtype=bool)
        for text in texts:
            seen[_code_points(text)] = True
        seen[0xD800:0xE000] = False  # lone surrogates are no characters
        return cls([chr(code_point) for code_point in np.flatnonzero(seen)], config.byte_fallback)

    def _encode(self, text: str) -> list[int]:
        return self._look_up(text).tolist()

    def encode_chunk(self, chunk: Chunk) -> np.ndarray:
        """The ids, uint32 (n,), of a chunk of a corpus; see Tokenizer."""
        return self._look_up(chunk.text(), chunk).astype(np.uint32)

    def _look_up(self, text: str, chunk: Chunk | None = None) -> np.ndarray:
        """int64 ids of a text; `chunk` is where it comes from, for the error."""
        code_points = _code_points(text)
        ids = self._id_of_code_point[code_points]
        unknown = ids < 0
        if not unknown.any():
            return ids
        if not self.byte_fallback:
            raise self._unknown_character(text, int(unknown.argmax()), chunk)
        # make room: an unknown character takes as many ids as it has bytes in UTF-8
        utf8_lengths = 1 + np.searchsorted([0x80, 0x800, 0x10000], code_points, side="right")
        widths = np.where(unknown, utf8_lengths, 1)
        ids = np.repeat(ids, widths)
        # then put the ids of those bytes there, which come after the characters'
        letters = code_points[unknown].tobytes().decode("utf-32-le")
        bytes_of_unknown = np.frombuffer(letters.encode(), dtype=np.uint8)
        ids[np.repeat(unknown, widths)] = len(self.characters) + bytes_of_unknown.astype(np.int64)
        return ids

    def _unknown_character(self, text: str, position: int, chunk: Chunk | None) -> UserError:
        index, advice = "", "leave it out"
        if chunk is not None:
            index = f"{chunk.source}: byte {chunk.offset + len(text[:position].encode())}: "
            advice = "leave it out, or train with tokenizer.kind = bpe or bytes, which know them all"
        character = text[position]
        name = unicodedata.name(character, "a character without name")
        return UserError(
            f"{index}the character {character!r} (U+{ord(character):04X}, {name}) is not among the "
            f"{len(self.characters)} characters of this tokenizer; {advice}"
        )

    def _file_entries(self) -> dict[str, Any]:
        vocabulary = {character: i for i, character in enumerate(self.characters)}
        # what Hugging Face's tokenizers make of an unknown character, as GPT-2 has it: the end of text
        unknown = {name: i for name, i in self.special_tokens.items() if i == self.end_of_text}
        model: dict[str, Any] = {
            "type": "WordLevel",
            "vocab": vocabulary | unknown,
            "unk_token": next(iter(unknown), "<unk>"),
        }
        decoder: dict[str, Any] = {"type": "Fuse"}
        if self.byte_fallback:  # byte pairs without merges: a character, or else its bytes
            vocabulary |= {name: len(self.characters) + byte for byte, name in enumerate(BYTE_TOKENS)}
            model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True}
            decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, decoder]}
        return {"pre_tokenizer": EVERY_CHARACTER, "decoder": decoder, "model": model}

    @classmethod
    def _from_file(cls, file: TokenizerFile) -> Tokenizer:
        ids = file.ids()
        added = {token.content for token in file.added_tokens}
        tokens = sorted(ids, key=ids.__getitem__)
        characters = [token for token in tokens if token not in added]
        special_tokens = tokens[len(characters) :]
        byte_fallback = file.model.type == "BPE"
        if byte_fallback:
            characters, byte_tokens = characters[:-256], characters[-256:]
            if byte_tokens != BYTE_TOKENS:
                raise UserError(f"{file.path}: its last tokens are not the 256 bytes and the special tokens")
        if words := [character for character in characters if len(character) != 1]:
            raise UserError(
                f"{file.path}: its tokens are words, such as {words[0]!r:.60}, "
                "and only single characters can be read"
            )
        if added != set(special_tokens):
            raise UserError(f"{file.path}: its special tokens do not come after all characters")
        return cls(characters, byte_fallback, special_tokens, file.end_of_text(special_tokens))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
