"""The base of every config section and file format: strict, frozen, and each mistake is one line.

What a key takes is read from the JSON schema that pydantic makes, so a rule is stated once, in its field.
"""

import difflib
import json
import numbers
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic._internal._model_construction import ModelMetaclass  # pydantic has no public name for it

from gptmini.errors import UserError


class _OneLineErrors(ModelMetaclass):
    """Makes `GPTConfig(n_layers=3)` in Python fail like a config file does; `model_validate` stays raw."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise UserError(explain(error, cls, cls.__name__)) from None  # type: ignore[arg-type]


class Section(BaseModel, metaclass=_OneLineErrors):
    """A group of keys: frozen, no unknown keys, no silent conversions.

    Raises UserError, as `explain` words it, when it is built with a wrong key or value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _from_python(cls, values: Any) -> Any:
        """numpy's numbers and Path objects as the plain numbers and texts that the keys take."""
        return {key: _plain(value) for key, value in values.items()} if isinstance(values, dict) else values


S = TypeVar("S", bound=Section)


def validate(schema: type[S], values: Mapping[str, Any], source: str, overridden: Iterable[str] = ()) -> S:
    """`values` as an object of the schema; raises UserError with one line, as `explain` words it."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, schema, source, overridden)) from None


def explain(
    error: ValidationError, schema: type[Section], source: str, overridden: Iterable[str] = ()
) -> str:
    """The first problem of a ValidationError in one line: source, key, value, and what is needed.

    `overridden` are the dotted keys that came from the command line rather than from `source`.
    """
    details = error.errors(include_url=False)  # one or more for each wrong key: a union has one per member
    first = details[0]
    location = first["loc"]
    # A missing item of a list is a mistake in the list.
    too_short = first["type"] == "missing" and isinstance(location[-1], int)
    key, node = _find(schema, location[:-1] if too_short else location)
    others = len({_find(schema, detail["loc"])[0].partition("[")[0] for detail in details}) - 1
    more = f" (and {others} more)" if others else ""
    name = f"{source}: {key}" if key else source
    if key.partition("[")[0] in set(overridden):
        name = flag_name(key)
    if first["type"] == "value_error":  # a rule between keys: its message names them
        return f"{name}: {first['ctx']['error']}{more}"
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {_unknown(key, schema)}{more}"
    if first["type"] == "missing" and not too_short:
        return f"{name} is missing{more}"
    quote = isinstance(first["input"], int | float) and accepts_text(node)
    hint = " (quote it to make it a text)" if quote else ""
    return f"{name} = {format_value(first['input'])}: needs {describe_type(node)}{hint}{more}"


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
    >>> list(flatten_schema(Config))[:3]
    ['model.n_layer', 'model.n_head', 'model.n_embd']
    >>> flatten_schema(Config)["train.max_steps"]["minimum"]
    1
    """
    root = _json_schema(schema)
    found: dict[str, dict[str, Any]] = {}
    for name, node in root["properties"].items():
        section = _resolve(node, root).get("properties")
        found |= {f"{name}.{key}": inner for key, inner in section.items()} if section else {name: node}
    return found


def describe_type(node: Mapping[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema.

    >>> from gptmini.config import Config
    >>> describe_type(flatten_schema(Config)["train.micro_batch_size"])
    'a whole number of at least 1 or null'
    >>> describe_type(flatten_schema(Config)["runtime.device"])
    'auto, cpu, cuda, mps or a text such as cuda:0'
    >>> describe_type(flatten_schema(Config)["data.corpus"])
    'a path or a list of paths'
    """
    return _join(_alternatives(node))


def accepts_text(node: Mapping[str, Any]) -> bool:
    """Whether a key takes any text, so that a word like 123 on the command line stays a word."""
    free_text = node.get("type") == "string" and "enum" not in node and "const" not in node
    return (
        free_text
        or any(map(accepts_text, node.get("anyOf", ())))
        or ("items" in node and accepts_text(node["items"]))
    )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to a mistyped one, or nothing.

    >>> did_you_mean("train.max_step", ["train.max_steps", "train.seed"])
    '; did you mean train.max_steps?'
    >>> did_you_mean("train.lr", ["train.max_steps", "optim.lr"])
    '; did you mean optim.lr?'
    """
    names = {name.rpartition(".")[2]: name for name in known}
    last = given.rpartition(".")[2]
    # Tried in this order: the same key elsewhere, a similar whole name, a similar key.
    for close in (
        difflib.get_close_matches(last, names, n=1, cutoff=1.0),
        difflib.get_close_matches(given, names.values(), n=1, cutoff=0.6),
        difflib.get_close_matches(last, names, n=1, cutoff=0.75),
    ):
        if close:
            return f"; did you mean {names.get(close[0], close[0])}?"
    return ""


def format_value(value: Any) -> str:
    """A value in an error message: the constants as YAML has them, on one line, and shortened.

    >>> format_value(None), format_value(True), format_value(["x" * 100, 2.5])
    ('null', 'true', "['xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx', 2.5]")
    """
    return json.dumps(value) if value is None or isinstance(value, bool) else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 2  # aliases can make a small file a value without end


def _plain(value: Any) -> Any:
    """A value from Python, or a list of them, as YAML would give it."""
    if type(value) in (list, tuple):  # one level, as no key takes more; aliases can make lists without end
        return type(value)(map(_plain_scalar, value))
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):  # numpy.int64 is one
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value  # numpy.float32


def _unknown(key: str, schema: type[Section]) -> str:
    """A key that the schema lacks, and what may be meant by it."""
    if key in flatten_schema(schema):  # written as on the command line
        section, _, name = key.partition(".")
        return f"{key}; write `{section}: {{{name}: ...}}`"
    sections = [] if "." in key else schema.model_fields
    shown = key if re.fullmatch(r"[\w.-]{1,60}", key) else format_value(key)
    return shown + did_you_mean(key, [*flatten_schema(schema), *sections])


@cache
def _json_schema(schema: type[Section]) -> dict[str, Any]:
    return schema.model_json_schema()


def _resolve(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or the definition in the root that it refers to."""
    return root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _find(schema: type[Section], location: Iterable[int | str]) -> tuple[str, dict[str, Any]]:
    """The key at a pydantic error location, without the union members that pydantic puts behind it, and
    the key's JSON schema."""
    key, node = "", _json_schema(schema)
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
        node = _resolve(node, _json_schema(schema))
    return key, node


_NOUNS = {"integer": "whole number", "number": "number", "string": "text"}
_WORDS = {"null": ["null"], "boolean": ["true", "false"], "object": ["keys of its own"]}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}


def _alternatives(node: Mapping[str, Any], plural: bool = False) -> list[str]:
    """The kinds of value that a JSON schema node allows, in words."""
    if "anyOf" in node:
        return [phrase for member in node["anyOf"] for phrase in _alternatives(member, plural)]
    if "const" in node or "enum" in node:
        values = node.get("enum") or [node["const"]]
        return [value if isinstance(value, str) else format_value(value) for value in values]
    kind = node.get("type", "")
    if kind == "array":
        items = node.get("prefixItems") or [node.get("items", {})]
        count = f"{len(items)} " if "prefixItems" in node else ""
        return [f"a list of {count}{_join(_alternatives(items[0], plural=True))}"]
    if kind not in _NOUNS:
        return _WORDS.get(kind, ["another value"])
    noun = node.get("format") or _NOUNS[kind]
    phrase = noun + "s" if plural else "a " + noun
    if bounds := [f"{text} {node[bound]:,}" for bound, text in _BOUNDS.items() if bound in node]:
        return [f"{phrase} {' and '.join(bounds)}"]
    if "examples" in node:
        return [f"{phrase} such as {node['examples'][0]}"]
    return [f"{phrase} matching {node['pattern']}" if "pattern" in node and "format" not in node else phrase]


def _join(alternatives: list[str]) -> str:
    *first, last = alternatives
    return f"{', '.join(first)} or {last}" if first else last
