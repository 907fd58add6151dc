"""Command lines from a schema: each key is an option, with its type, default and sentence.

A value is read by the YAML rules and judged by the schema, so a command line and a config file fail with the
same one-line messages. argparse formats the help.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import yaml

from gptmini.config import Config, load_config
from gptmini.errors import UserError
from gptmini.memory import explain_shortage
from gptmini.paths import check_path
from gptmini.schema import (
    Section,
    accepts_text,
    describe_type,
    did_you_mean,
    flag_name,
    flatten_schema,
    format_value,
    validate,
)
from gptmini.yaml_io import parse_yaml

Options: TypeAlias = Mapping[str, Mapping[str, Any]]  # the JSON schema of each key
_FORMER_NAMES = {"numbers": "dtype"}  # read silently


@dataclass(frozen=True)
class Command:
    """One of gptmini's commands; its description is the docstring of `run`.

    `run` gets the positional arguments, an object of `schema` and the config's keys that were given, and
    returns the lines to print, if any.
    """

    run: Callable[[list[str], Any, dict[str, Any]], Iterable[str] | None]
    positionals: str  # as the usage line shows them
    count: range  # how many there may be
    schema: type[Section] = Section  # the command's own options
    config: bool = False  # whether every key of the config is an option too

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Every option's key, and its JSON schema."""
        return flatten_schema(self.schema) | (flatten_schema(Config) if self.config else {})


def run(name: str, command: Command, args: Sequence[str]) -> None:
    """Run `gptmini NAME ARGS`; UserError if the arguments are not the command's."""
    positionals, values = parse_options(args, command.options)
    if len(positionals) not in command.count:
        given = " ".join(positionals) or "nothing"
        raise UserError(f"gptmini {name} takes {command.positionals}; given: {given}")
    own = {key: values.pop(key) for key in flatten_schema(command.schema) if key in values}
    options = validate(command.schema, own, "command line", own)
    with explain_shortage("close other programs, or use a machine with more"):
        for line in command.run([*map(check_path, positionals)], options, values) or ():
            print(line, flush=True)


def parse_options(args: Sequence[str], known: Options) -> tuple[list[str], dict[str, Any]]:
    """Positional arguments, and the values of options as a YAML file would have them.

    An option may be written with `-` or `_`, and with a space or `=` before its value; one whose key takes a
    list takes all words up to the next option or the CONFIG.yaml. Only `--` begins an option: `--optim.lr
    -1e-3` has a value.

    >>> parse_options(["a.yaml", "--train.max-steps", "20", "--optim.lr=3e-4"], flatten_schema(Config))
    (['a.yaml'], {'train.max_steps': 20, 'optim.lr': 0.0003})
    >>> parse_options(["--optim.betas", "0.9", "0.99", "--model.bias", "false"], flatten_schema(Config))
    ([], {'optim.betas': [0.9, 0.99], 'model.bias': False})
    """
    positionals: list[str] = []
    values: dict[str, Any] = {}
    remaining = list(args)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            positionals.append(word)
            continue
        flag, equals, value = word.partition("=")
        key = flag[2:].replace("-", "_")
        key = _FORMER_NAMES.get(key, key)
        if key not in known:
            raise UserError(f"unknown option {flag}{did_you_mean(flag, map(flag_name, known))}")
        if key in values:
            raise UserError(f"{flag_name(key)} is given twice")
        # The words of its value, without which a flag is true.
        if equals:
            texts = [value]
        elif _is_flag(key, known[key]):
            texts = [remaining.pop(0)] if remaining and remaining[0] in ("true", "false") else ["true"]
        else:
            most = len(remaining) if "array" in _kinds(known[key]) else 1
            texts = list(takewhile(lambda word: not word.startswith("--"), remaining[:most]))
            del remaining[: len(texts)]
            # A list ends where the config begins: `--data.corpus my.txt mine.yaml`.
            if "." in key and len(texts) > 1 and texts[-1].endswith((".yaml", ".yml")) and not positionals:
                if texts[-2].endswith((".yaml", ".yml")):
                    raise UserError(f"{flag}: is {texts[-1]} one of its values? Put the CONFIG.yaml first")
                positionals.append(texts.pop())
        if not texts:
            raise UserError(f"{flag_name(key)} needs a value: {describe_type(known[key])}")
        values[key] = _read(texts, known[key])
    return positionals, values


def print_help(name: str, command: Command, args: Sequence[str]) -> None:
    """Print every option with its type, sentence and default: that of the config file, if one is given."""
    options = command.options
    if command.config:  # what the file and the options beside --help say
        positionals, values = parse_options(args, options)
        overrides = {key: value for key, value in values.items() if "." in key}
        config = load_config(positionals[0] if positionals else None, overrides).model_dump(mode="json")
        for key, node in flatten_schema(Config).items():
            section, _, name_in_section = key.partition(".")
            options[key] = node | {"default": config[section][name_in_section]}
    parser = argparse.ArgumentParser(
        prog=f"gptmini {name}",
        usage=f"gptmini {name} {command.positionals}" + " [--option VALUE ...]" * bool(options),
        description=command.run.__doc__,
    )
    add_options(parser, options)
    print(parser.format_help(), end="")  # unlike print_help, it lets a closed pipe be noticed


def completion_script(commands: Mapping[str, Command], shell: str) -> str:
    """A script that completes commands, options, choices and paths in bash, zsh or fish."""
    import shtab

    # A parser for all commands, only for shtab to read.
    root = argparse.ArgumentParser(prog="gptmini")
    root.add_argument("--version", action="store_true", help="print the version")
    subparsers = root.add_subparsers()
    for name, command in commands.items():
        summary = (command.run.__doc__ or "").partition("\n")[0]
        parser = subparsers.add_parser(name, help=summary, description=summary)
        for action in add_options(parser, command.options):
            choices = _metavar(command.options[action.dest]).split("|")
            if "PATH" in choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # argparse lacks it; shtab reads it
            else:
                action.choices = [word for word in choices if not word.isupper()] or None
        positional = parser.add_argument("positionals", nargs="*", metavar=command.positionals)
        if "|" in command.positionals:
            positional.choices = command.positionals.split("|")
        else:
            positional.complete = shtab.FILE  # type: ignore[attr-defined]  # argparse lacks it
    return shtab.complete(root, shell)


def add_options(parser: argparse.ArgumentParser, known: Options) -> list[argparse.Action]:
    """Add each option to the parser, in one group for each section of the config."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}  # a key without a section: the command's own
    actions = []
    for key, node in known.items():
        section = key.rpartition(".")[0]
        if section not in groups:
            about = Config.model_fields[section].annotation.__doc__ or ""
            groups[section] = parser.add_argument_group(section, about.partition("\n")[0])
        metavar, takes_list = _metavar(node), "array" in _kinds(node)
        action = groups[section].add_argument(
            flag_name(key),
            dest=key,
            nargs="?" if _is_flag(key, node) else "+" if takes_list else None,
            metavar=(metavar, metavar.removesuffix("|null")) if takes_list else metavar,
            help=f"{node['description']} (default: {_default(node.get('default'))})".replace("%", "%%"),
        )
        actions.append(action)
    return actions


def _read(texts: Sequence[str], node: Mapping[str, Any]) -> Any:
    """The value of an option as YAML reads it; a word stays text where the key takes any text."""
    kinds, read = _kinds(node), []
    for word in texts:
        if accepts_text(node):
            read.append(None if word == "null" and "null" in kinds else word)
            continue
        try:
            read.append(parse_yaml(word))
        except yaml.YAMLError:
            read.append(word)
    # One word is a list where the key takes nothing else.
    takes_one = kinds - {"array", "null"} or read[0] is None or isinstance(read[0], list)
    return read[0] if len(read) == 1 and takes_one else read


def _kinds(node: Mapping[str, Any]) -> set[str]:
    """The JSON types that a key takes."""
    return {member.get("type", "") for member in node.get("anyOf", [node])}


def _is_flag(key: str, node: Mapping[str, Any]) -> bool:
    """Whether an option needs no value, such as --resume."""
    return _kinds(node) == {"boolean"} and "." not in key


_METAVARS = {"boolean": "true|false", "integer": "N", "number": "X", "path": "PATH", "string": "TEXT"}


def _metavar(node: Mapping[str, Any]) -> str:
    """What the help shows for a value: its choices, or its kind in capitals.

    >>> keys = flatten_schema(Config)
    >>> [_metavar(keys[key]) for key in ("optim.optimizer", "runtime.threads", "data.val_corpus")]
    ['adamw|muon', 'auto|N', 'PATH|null']
    """
    texts: list[str] = []
    for member in node.get("anyOf", [node]):
        if member.get("type") == "array":
            member = (member.get("prefixItems") or [member["items"]])[0]
        if "const" in member or "enum" in member:
            texts += map(str, member.get("enum") or [member["const"]])
        elif "examples" in member:
            texts.append(member["examples"][0])
        else:
            kind = member.get("format") or member["type"]
            texts.append(_METAVARS.get(kind, kind))
    return "|".join(dict.fromkeys(texts))


def _default(value: Any) -> str:
    """A default as it would be written on the command line.

    >>> _default([0.9, 0.95]), _default(None), _default("auto")
    ('0.9 0.95', 'null', 'auto')
    """
    if isinstance(value, list):
        return " ".join(map(str, value)) or "[]"
    return value if isinstance(value, str) else format_value(value)
