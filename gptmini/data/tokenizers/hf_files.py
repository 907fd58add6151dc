"""Hugging Face's tokenizer files as typed values: tokenizer.json, or GPT-2's older vocab.json and merges.txt.

Only their form is checked here; byte_pair.py and chars.py decide what they mean.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gptmini.errors import DamagedError, UserError


class _Json(BaseModel):
    """The keys that decide the ids, in a file that others may have written; the rest is ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class AddedToken(_Json):
    """A token beside the model's; a special one, such as <|endoftext|>, decodes to no text."""

    id: int
    content: str
    special: bool = False


class Model(_Json):
    """The vocabulary, and for byte pairs (BPE) the merges in the order in which they were learned."""

    type: Literal["BPE", "WordLevel"] = "BPE"
    vocab: dict[str, int]
    merges: Sequence[str | list[str]] | None = None  # "a b" or ["a", "b"]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class TokenizerFile(_Json):
    """tokenizer.json, with two values from beside it: its path and the name of the end-of-text token."""

    path: Path = Path()
    end_of_text: str | None = None
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    model: Model

    @property
    def kind(self) -> str:
        """The kind of tokenizer that the file describes: chars or bpe."""
        # with a byte fallback, characters are written as byte pairs that never merge
        never_merges = self.model.byte_fallback and not self.model.merges
        return "chars" if self.model.type == "WordLevel" or never_merges else "bpe"

    def ids(self) -> dict[str, int]:
        """The id of every token, added ones included. Raises DamagedError unless they count from 0."""
        # added tokens may be in the vocabulary too
        ids = {**self.model.vocab, **{token.content: token.id for token in self.added_tokens}}
        if sorted(ids.values()) != list(range(len(ids))):
            raise DamagedError(
                f"{self.path}: the ids of its {len(ids)} tokens are not the numbers from 0 to {len(ids) - 1}"
            )
        return ids


class _TokenizerConfigFile(_Json):
    eos_token: str | dict[str, Any] | None = None


def read_tokenizer_file(folder: Path) -> TokenizerFile | None:
    """What a folder's tokenizer.json holds, or else its vocab.json and merges.txt; None without either.

    Raises DamagedError where a file is broken, UserError where it cannot be read or is of another kind.
    """
    path, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if not vocab.is_file():  # then OpenAI's own names
        vocab, merges = folder / "encoder.json", folder / "vocab.bpe"
    if path.is_file():
        file = _parse(path, TokenizerFile)
    elif vocab.is_file() and merges.is_file():
        path = vocab
        lines = [line for line in _read_text(merges).split("\n") if line and not line.startswith("#version")]
        model = Model(vocab=_parse(vocab, dict[str, int]), merges=lines)
        file = TokenizerFile(pre_tokenizer={"type": "ByteLevel"}, model=model)
    else:
        return None
    config = folder / "tokenizer_config.json"
    end_of_text = _parse(config, _TokenizerConfigFile).eos_token if config.is_file() else None
    if isinstance(end_of_text, dict):  # older files hold the whole token
        end_of_text = end_of_text.get("content")
    return file.model_copy(update={"path": path, "end_of_text": end_of_text})


_Schema = TypeVar("_Schema")


def _parse(path: Path, schema: type[_Schema]) -> _Schema:
    try:
        return TypeAdapter(schema).validate_json(_read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        if where == "model.type":
            raise UserError(f"{path}: not a byte-level BPE tokenizer like GPT-2's: {first['msg']}") from None
        raise DamagedError(f"{path}: not a tokenizer: {where}: {first['msg']}") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DamagedError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
