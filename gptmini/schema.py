"""The base of every config section and file format: strict, frozen, and each mistake is one line.

What a key takes is read from the JSON schema that pydantic makes, so a rule is stated once, in its field.
"""

import difflib
import json
import numbers
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gptmini.errors import UserError


class Section(BaseModel):
    """A group of keys: frozen, no unknown keys, no silent conversions.

    Wrong values, `GPTConfig(n_layers=3)` or by `model_validate`, raise UserError, as `explain` words it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    foreign_names: ClassVar[Mapping[str, str]] = {}  # what others call a key -> what to write here

    def __init__(self, *unnamed: Any, **values: Any) -> None:
        name = type(self).__name__
        if unnamed:
            raise UserError(
                f"{name} takes keys by name, {name}({next(iter(type(self).model_fields))}=...), or "
                f"a dict of them as {name}(**values)"
            )
        with _one_line(type(self), name):
            super().__init__(**values)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """A section of a dict of its values; raises UserError."""
        with _one_line(cls, cls.__name__):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """A section of the text of a JSON object; raises UserError."""
        with _one_line(cls, cls.__name__):
            return super().model_validate_json(json_data, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(
            f"{type(self).__name__}.{name}: a config does not change; make another: "
            f"config.model_copy(update={{{name!r}: {format_value(value)}}})"
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the values of `update`, validated as in a new section."""
        return type(self)(
            **{name: getattr(self, name) for name in self.model_fields_set} | dict(update or {})
        )

    # pydantic builds a section inside another without __init__, so its mistakes keep their place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own flag

    @model_validator(mode="before")
    @classmethod
    def _from_python(cls, values: Any) -> Any:
        return {key: _plain(value) for key, value in values.items()} if isinstance(values, dict) else values


def _plain(value: Any, in_list: bool = False) -> Any:
    """numpy's numbers and Path objects, alone or in a list, as the plain numbers and texts that keys take."""
    # One level only, as no key takes more, and YAML's aliases can make lists without end.
    if type(value) in (list, tuple) and not in_list:
        return type(value)(_plain(item, in_list=True) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Integral):  # numpy.int64 is one
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value  # numpy.float32


S = TypeVar("S", bound=Section)


def validate(schema: type[S], values: Mapping[str, Any], source: str, overridden: Iterable[str] = ()) -> S:
    """`values` as an object of the schema; raises UserError with one line, as `explain` words it."""
    with _one_line(schema, source, overridden):
        return schema.__pydantic_validator__.validate_python(values)


@contextmanager
def _one_line(schema: type[Section], source: str, overridden: Iterable[str] = ()) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise UserError(explain(error, schema, source, overridden)) from None


def explain(
    error: ValidationError, schema: type[Section], source: str, overridden: Iterable[str] = ()
) -> str:
    """The first problem of a ValidationError in one line: source, key, value, and what is needed.

    `overridden` are the dotted keys that came from the command line rather than from `source`.
    """
    details = error.errors(include_url=False)  # one or more for each wrong key: a union has one per member
    location, kind, value = details[0]["loc"], details[0]["type"], details[0]["input"]
    if kind == "missing" and isinstance(location[-1], int):  # of a list too short: a mistake in the list
        location, kind = location[:-1], "too_short"
    key, node = _find(schema, location)
    others = len({_find(schema, detail["loc"])[0].partition("[")[0] for detail in details}) - 1
    more = f" (and {others} more)" if others else ""
    name = f"{source}: {key}" if key else source
    if key.partition("[")[0] in set(overridden):
        name = flag_name(key)
    if kind == "value_error":  # a rule between keys: its message names them
        return f"{name}: {details[0]['ctx']['error']}{more}"
    if kind == "extra_forbidden":
        return f"{source}: unknown key {_unknown(key, schema)}{more}"
    if kind == "missing":
        return f"{name} is missing{more}"
    quote = isinstance(value, int | float) and accepts_text(node)
    hint = " (quote it to make it a text)" if quote else ""
    return f"{name} = {format_value(value)}: needs {describe_type(node)}{hint}{more}"


def _unknown(key: str, schema: type[Section]) -> str:
    """A key that the schema lacks, and what may be meant by it."""
    known = flatten_schema(schema)
    section, _, name = key.partition(".")
    if key in known:  # written as on the command line
        return f"{key}; write `{section}: {{{name}: ...}}`"
    shown = key if re.fullmatch(r"[\w.-]{1,60}", key) else format_value(key)
    field = schema.model_fields.get(section) if name else None
    owner = schema if field is None else field.annotation
    if meant := getattr(owner, "foreign_names", {}).get(name or key):
        return f"{shown}; did you mean {section + '.' if name else ''}{meant}?"
    return shown + did_you_mean(key, known if name else [*known, *schema.model_fields])


@cache
def _json_schema(schema: type[Section]) -> dict[str, Any]:
    return schema.model_json_schema()


def _find(schema: type[Section], location: Iterable[int | str]) -> tuple[str, dict[str, Any]]:
    """The key at a pydantic error location, without the union members that pydantic puts behind it, and
    the key's JSON schema."""
    key, node = "", _json_schema(schema)
    definitions = node.get("$defs", {})
    for part in location:
        if isinstance(part, int) and node.get("type") == "array":
            first = node.get("prefixItems", [])
            key, node = f"{key}[{part}]", first[part] if part < len(first) else node.get("items", {})
        elif node.get("type") == "object":
            inner = node.get("properties", {}).get(part, node.get("additionalProperties"))
            inner = inner if isinstance(inner, dict) else {}  # true or false: any keys, or no others
            key, node = f"{key}.{part}" if key else str(part), inner
        else:
            break
        node = definitions.get(node.get("$ref", "").rpartition("/")[2], node)
    return key, node


def flag_name(key: str) -> str:
    """How a key is written on the command line.

    >>> flag_name("train.max_steps")
    '--train.max-steps'
    """
    return "--" + key.replace("_", "-")


@cache
def flatten_schema(schema: type[Section]) -> dict[str, dict[str, Any]]:
    """Every dotted key of a schema, and its JSON schema.

    >>> from gptmini.config import Config
    >>> flatten_schema(Config)["train.max_steps"]["minimum"]
    1
    """
    found: dict[str, dict[str, Any]] = {}
    for name in schema.model_fields:
        _, node = _find(schema, [name])
        section = node.get("properties")
        found |= {f"{name}.{key}": inner for key, inner in section.items()} if section else {name: node}
    return found


_NOUNS = {"integer": "whole number", "number": "number", "string": "text"}
_WORDS = {"null": ["null"], "boolean": ["true", "false"], "object": ["keys of its own"]}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}


def describe_type(node: Mapping[str, Any], plural: bool = False) -> str:
    """What a key takes, in words, from its JSON schema.

    >>> from gptmini.config import Config
    >>> describe_type(flatten_schema(Config)["train.micro_batch_size"])
    'auto, a whole number of at least 1 and of at most 1,000,000 or null'
    >>> describe_type(flatten_schema(Config)["runtime.device"])
    'auto, cpu, cuda, mps or a text such as cuda:0'
    >>> describe_type(flatten_schema(Config)["data.corpus"])
    'a path or a list of paths'
    """
    phrases: list[str] = []
    for member in node.get("anyOf", [node]):
        kind = member.get("type")
        if "const" in member or "enum" in member:
            values = member.get("enum") or [member["const"]]
            phrases += [value if isinstance(value, str) else format_value(value) for value in values]
        elif kind == "array":
            items = member.get("prefixItems") or [member.get("items", {})]
            count = f"{len(items)} " if "prefixItems" in member else ""
            phrases.append(f"a list of {count}{describe_type(items[0], plural=True)}")
        elif kind in _NOUNS:
            noun = member.get("format") or _NOUNS[kind]
            bounds = [f"{text} {member[bound]:,}" for bound, text in _BOUNDS.items() if bound in member]
            rule = " " + " and ".join(bounds) if bounds else ""
            if "examples" in member:
                rule = f" such as {member['examples'][0]}"
            elif "pattern" in member and "format" not in member:
                rule = f" matching {member['pattern']}"
            phrases.append((f"{noun}s" if plural else f"a {noun}") + rule)
        else:
            phrases += _WORDS.get(kind, ["another value"])
    *first, last = phrases
    return f"{', '.join(first)} or {last}" if first else last


def accepts_text(node: Mapping[str, Any]) -> bool:
    """Whether a key takes any text, so that a word like 123 on the command line stays a word."""
    return any(
        accepts_text(member["items"])
        if "items" in member
        else member.get("type") == "string" and "enum" not in member and "const" not in member
        for member in node.get("anyOf", [node])
    )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to a mistyped one, or nothing.

    >>> did_you_mean("train.max_step", ["train.max_steps", "train.seed"])
    '; did you mean train.max_steps?'
    >>> did_you_mean("train.lr", ["train.max_steps", "optim.lr"])
    '; did you mean optim.lr?'
    """

    def likeness(name: str) -> float:  # of the whole names, or of what stands behind the last dot
        pairs = (given, name), (given.rpartition(".")[2], name.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    nearest = max(known, key=likeness, default="")
    return f"; did you mean {nearest}?" if likeness(nearest) >= 0.7 else ""


def format_value(value: Any) -> str:
    """A value in an error message: the constants as YAML has them, on one line, and shortened.

    >>> format_value(None), format_value(True), format_value(["x" * 100, 2.5])
    ('null', 'true', "['xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx', 2.5]")
    """
    return json.dumps(value) if value is None or isinstance(value, bool) else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 2  # aliases can make a small file a value without end
