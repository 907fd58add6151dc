"""Hugging Face's tokenizer files as typed values: tokenizer.json, or GPT-2's older vocab.json and merges.txt.

A file means what AutoTokenizer of transformers makes of it. An entry that would give other ids or another
text than gptmini computes is refused by its name. (Truncation and padding are none: transformers applies them
only where a call asks for them.)
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gptmini.errors import DamagedError, UserError

END_OF_TEXT = "<|endoftext|>"  # GPT-2's
Component = dict[str, Any]
"""A normalizer, pre_tokenizer, post_processor or decoder: its type and options."""

EVERY_CHARACTER: Component = {
    "type": "Split",
    "pattern": {"Regex": r"[\s\S]"},
    "behavior": "Isolated",
    "invert": False,
}
BYTE_LEVEL: Component = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


class _Json(BaseModel):
    """The keys that decide the ids, in a file that others may have written; the rest is ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Token(_Json):
    content: str = Field(min_length=1)
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class AddedToken(_Token):
    """A token beside the model's; a special one, such as <|endoftext|>, decodes to no text."""

    id: int


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


class _ConfigFile(_Json):
    eos_token: str | Component | None = None
    add_prefix_space: bool | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    added_tokens_decoder: dict[int, _Token] = {}


class TokenizerFile(_Json):
    """tokenizer.json, with its path and what two files beside it say: tokenizer_config.json and, about texts
    without a prompt, generation_config.json."""

    path: Path = Path()
    config: _ConfigFile = _ConfigFile()
    start_token: Any = None
    added_tokens: list[AddedToken] = []
    normalizer: Component | None = None
    pre_tokenizer: Component | None = None
    post_processor: Component | None = None
    decoder: Component | None = None
    model: Model

    @property
    def kind(self) -> str:
        """The kind of tokenizer that the file describes: chars or bpe."""
        # with a byte fallback, characters are written as byte pairs that never merge
        never_merges = self.model.byte_fallback and not self.model.merges
        return "chars" if self.model.type == "WordLevel" or never_merges else "bpe"

    def end_of_text(self, special_tokens: Collection[str]) -> str | None:
        """Which of these tokens is the end of text: the one that tokenizer_config.json names, or GPT-2's."""
        token = self.config.eos_token
        name = token.get("content") if isinstance(token, dict) else token  # older files hold the whole token
        return next((token for token in (name, END_OF_TEXT) if token in special_tokens), None)

    def ids(self) -> dict[str, int]:
        """The id of every token, added ones included. Raises DamagedError unless they count from 0."""
        # added tokens may be in the vocabulary too
        ids = {**self.model.vocab, **{token.content: token.id for token in self.added_tokens}}
        if sorted(ids.values()) != list(range(len(ids))):
            raise DamagedError(
                f"{self.path}: the ids of its {len(ids)} tokens are not the numbers from 0 to {len(ids) - 1}"
            )
        return ids

    def check_supported(self) -> None:
        """Raise UserError naming the first entry that would give other ids or another text than ours."""
        is_chars, model = self.kind == "chars", self.model
        splits = list(_parts(self.pre_tokenizer))
        if not is_chars:  # complete what may be missing, and pass over what moves no id
            splits = [{"use_regex": True, **part, "trim_offsets": True} for part in splits]
        no_ids = re.compile(r'\[{"Sequence": {[^{}]*}}\]')  # a template of the text and nothing else
        decoders = ["ByteFallback"] * model.byte_fallback + ["Fuse"] if is_chars else ["ByteLevel"]
        fits = {
            "normalizer": not list(_parts(self.normalizer)),
            "pre_tokenizer": splits == [EVERY_CHARACTER if is_chars else BYTE_LEVEL],
            "post_processor": all(
                part.get("type") == "ByteLevel" or no_ids.fullmatch(json.dumps(part.get("single")))
                for part in _parts(self.post_processor)
            ),
            "decoder": [part.get("type") for part in _parts(self.decoder)] == decoders,
        }
        wrong = [f"{key} = {json.dumps(getattr(self, key))[:200]}" for key in fits if not fits[key]]
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
            wrong += [f"model.{key} = {json.dumps(value)}"] if (value := getattr(model, key)) else []
        wrong += ["model.byte_fallback = true"] if model.byte_fallback and not is_chars else []
        for key in ("add_prefix_space", "add_bos_token", "add_eos_token"):
            wrong += [f"{key} = true in tokenizer_config.json"] if getattr(self.config, key) else []
        for token in self.added_tokens:
            if not token.special or token.single_word or token.lstrip or token.rstrip:
                name = f"{token.content!r} (id {token.id}) of added_tokens"
                wrong.append(f"{name}, which is not special or depends on the text beside it")
        if wrong:
            raise UserError(_other_kind(self.path, wrong[0]))


def _other_kind(path: Path, reason: str) -> str:
    return (
        f"{path}: not a byte-level BPE tokenizer like GPT-2's, nor one of single characters, because of "
        f"{reason}; no other kind can be read"
    )


def _parts(component: Component | None) -> Iterator[Component]:
    """A component, or those that a Sequence applies one after the other."""
    if component is None:
        return
    if component.get("type") != "Sequence":
        yield component
        return
    for value in component.values():  # under normalizers, pretokenizers, processors or decoders
        for part in value if isinstance(value, list) else ():
            yield from _parts(part)


def read_tokenizer_file(folder: Path) -> TokenizerFile | None:
    """What a folder's tokenizer.json holds, or else its vocab.json and merges.txt; None without either.

    Raises DamagedError where a file is broken, UserError where it is of another kind.
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
        file = TokenizerFile(pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL, model=model)
    else:
        return None
    beside = folder / "tokenizer_config.json"
    config = _parse(beside, _ConfigFile) if beside.is_file() else _ConfigFile()
    generation = folder / "generation_config.json"
    start_token = _parse(generation, dict[str, Any]).get("bos_token_id") if generation.is_file() else None
    # with the tokens that only tokenizer_config.json knows
    tokens = {token.content: token for token in file.added_tokens}
    for i, token in config.added_tokens_decoder.items():
        tokens.setdefault(token.content, AddedToken(id=i, **token.model_dump()))
    older = folder / "added_tokens.json"  # which does not say whether they are special
    if path == vocab and older.is_file():
        for content, i in _parse(older, dict[str, int]).items():
            tokens.setdefault(content, AddedToken(id=i, content=content))
    beside_it = {"path": path, "config": config, "start_token": start_token}
    return file.model_copy(update={**beside_it, "added_tokens": list(tokens.values())})


_Schema = TypeVar("_Schema")


def _parse(path: Path, schema: type[_Schema]) -> _Schema:
    try:
        return TypeAdapter(schema).validate_json(_read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        if where == "model.type":
            raise UserError(_other_kind(path, f"model.type = {first['input']!r:.60}")) from None
        raise DamagedError(f"{path}: not a tokenizer: {where}: {first['msg']}") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DamagedError(f"{path}: not UTF-8 text") from None
