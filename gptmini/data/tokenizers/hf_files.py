"""Hugging Face's tokenizer files as typed values: tokenizer.json, or GPT-2's older vocab.json and merges.txt.

Only their form is checked here. byte_pair.py and chars.py decide what they mean: each reads and writes its
own "model" entry.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from gptmini.errors import DamagedError, UserError

# ---------------------------------------------------------------------------------------- reading


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
        """The kind of tokenizer that it describes: chars or bpe."""
        model = self.model
        # with a byte fallback, characters are written as byte pairs that never merge
        is_chars = model.type == "WordLevel" or (model.byte_fallback and not model.merges)
        return "chars" if is_chars else "bpe"

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


class _VocabFile(RootModel[dict[str, int]]):
    pass


def read_tokenizer_file(folder: Path) -> TokenizerFile | None:
    """What a folder's tokenizer.json holds, or else its vocab.json and merges.txt; None without either.

    Raises DamagedError where a file is broken, and UserError where it cannot be read or describes a tokenizer
    of another kind.
    """
    path, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if not vocab.is_file():  # then OpenAI's own names
        vocab, merges = folder / "encoder.json", folder / "vocab.bpe"
    if path.is_file():
        file = _parse(path, TokenizerFile)
    elif vocab.is_file() and merges.is_file():
        path = vocab
        lines = [line for line in _read_text(merges).split("\n") if line and not line.startswith("#version")]
        model = Model(vocab=_parse(vocab, _VocabFile).root, merges=lines)
        file = TokenizerFile(pre_tokenizer={"type": "ByteLevel"}, model=model)
    else:
        return None
    end_of_text = _read_end_of_text(folder / "tokenizer_config.json")
    return file.model_copy(update={"path": path, "end_of_text": end_of_text})


def _read_end_of_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    name = _parse(path, _TokenizerConfigFile).eos_token
    return name.get("content") if isinstance(name, dict) else name  # older files hold the whole token


_File = TypeVar("_File", bound=BaseModel)


def _parse(path: Path, schema: type[_File]) -> _File:
    try:
        return schema.model_validate_json(_read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        if where == "model.type":
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


# ---------------------------------------------------------------------------------------- writing


def tokenizer_files(
    entries: Mapping[str, Any], special_tokens: Mapping[str, int], end_of_text: int | None
) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, by name; `entries` are those that depend on the kind."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_id = sorted(special_tokens.items(), key=lambda item: item[1])
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": content, **flags} for content, i in by_id],
        "normalizer": None,
        "post_processor": None,
        **entries,
    }
    end_of_text_name = next((name for name, i in special_tokens.items() if i == end_of_text), None)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text_name,
        "eos_token": end_of_text_name,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False, indent=1).encode(),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1).encode(),
    }
