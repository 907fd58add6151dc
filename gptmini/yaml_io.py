"""YAML by the 1.2 rules that people expect, over PyYAML's safe loader and dumper."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from gptmini.errors import UserError, path_error
from gptmini.schema import format_value

_MOST_BYTES = 1 << 20  # of a config


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML text, in the order of the keys, that `parse_yaml` reads back to equal values."""
    return yaml.dump(values, Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dict, read by the YAML 1.2 rules that people expect.

    Numbers like `3e-4` are numbers, `no` is a word and `1:30` is text; a key given twice is an error, and
    so is a file that is empty or holds no mapping.
    """
    try:
        # Opening a named pipe that nobody writes to would wait; `<(command)` has its writer already.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if hasattr(os, "O_NONBLOCK"):
                os.set_blocking(file.fileno(), True)
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file; `gptmini configs` lists gptmini's own") from None
    except OSError as error:
        raise path_error(path, error) from None
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, so it is no config")
    if b"\0" in data:
        raise UserError(
            f"{path}: not UTF-8 text: it holds a zero byte, as UTF-16 and UTF-32 do; save it as UTF-8"
        )
    try:
        values = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ": ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{path}: {position}{' '.join(problem.split())[:300]}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise UserError(f"{path}: {found}, but a config is a mapping of sections such as `model:`")
    return values


def parse_yaml(text: str) -> Any:
    """YAML text by the 1.2 rules for numbers and words; raises yaml.YAMLError where it is none.

    >>> parse_yaml("{lr: 3e-4, corpus: no, when: 1:30, bias: true, steps: 1_000}")
    {'lr': 0.0003, 'corpus': 'no', 'when': '1:30', 'bias': True, 'steps': '1_000'}
    """
    try:
        return yaml.load(text, _Yaml12Loader)  # a SafeLoader: it builds plain values only
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError):  # PyYAML's, for an escape such as \UFFFFFFFF
        raise yaml.YAMLError("holds an escape that is no character") from None


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core schema in place of 1.1's surprises."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's name for the rules, which start from none here

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        if getattr(event, "tag", None):
            problem = f"tags such as {event.tag} are not used in a config"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=mark)
            if key_node.value in seen:
                problem = f"key {format_value(key_node.value)} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            seen.add(key_node.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


class _Yaml12Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting what either version of YAML would not read as text."""


for _tag, _pattern in {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    for _class in (_Yaml12Loader, _Yaml12Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 20:  # so that counts, and products of a few of them, are numbers that floats can hold
        raise yaml.MarkedYAMLError(problem="number is too long", problem_mark=node.start_mark)
    return int(text)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """In double quotes where a text holds a line end that other styles would read back as another one."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Yaml12Dumper.add_representer(str, _represent_text)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
