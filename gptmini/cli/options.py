"""Command lines by argparse, from a schema: each key is an option, with its type, default and sentence.

A value is read by the YAML rules and judged by the schema, so a command line and a config file fail with the
same one-line messages.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from gptmini.config import Config, expand_home, load_config
from gptmini.errors import UserError
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
    """One of gptmini's commands; its description is the docstring of `run`."""

    run: Callable[[list[str], Any, dict[str, Any]], None]
    """Called with the positional arguments, an object of `schema`, and the config's keys that were given."""
    positionals: str
    """As the usage line shows them."""
    takes: str
    """The same in words, for an error message."""
    count: range
    """How many positional arguments it takes."""
    schema: type[Section] = Section
    """The command's own options."""
    config: bool = False
    """Whether every key of the config is an option too."""

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Every option's key, and its JSON schema."""
        return flatten_schema(self.schema) | (flatten_schema(Config) if self.config else {})


class _Parser(argparse.ArgumentParser):
    """argparse, but only `--` begins an option: `--optim.lr -1e-3` and `--prompt -x` have values."""

    def _parse_optional(self, arg_string: str) -> Any:
        return super()._parse_optional(arg_string) if arg_string.startswith("--") else None


def run(name: str, command: Command, args: Sequence[str]) -> None:
    """Run `gptmini NAME ARGS`; UserError if the arguments are not the command's."""
    positionals, values = parse_options(args, command.options)
    if len(positionals) not in command.count:
        given = f": {' '.join(positionals)}" if positionals else ""
        raise UserError(f"gptmini {name} takes {command.takes}, not {len(positionals)}{given}")
    own = {key: values.pop(key) for key in flatten_schema(command.schema) if key in values}
    command.run([*map(expand_home, positionals)], validate(command.schema, own, "command line", own), values)


def parse_options(args: Sequence[str], known: Options) -> tuple[list[str], dict[str, Any]]:
    """Positional arguments, and the values of options as a YAML file would have them.

    An option may be written with `-` or `_`, and with a space or `=` before its value; one whose key takes a
    list takes all words up to the next option. Names are never abbreviated.

    >>> parse_options(["a.yaml", "--train.max-steps", "20", "--optim.lr=3e-4"], flatten_schema(Config))
    (['a.yaml'], {'train.max_steps': 20, 'optim.lr': 0.0003})
    >>> parse_options(["--optim.betas", "0.9", "0.99", "--model.bias", "false"], flatten_schema(Config))
    ([], {'optim.betas': [0.9, 0.99], 'model.bias': False})
    """
    parser = _Parser(allow_abbrev=False, exit_on_error=False, add_help=False)
    add_options(parser, known)
    parser.add_argument("positionals", nargs="*")
    try:
        found = vars(parser.parse_intermixed_args(_canonical(args, known)))
    except argparse.ArgumentError as error:  # the only kind left is "expected one argument"
        flag = str(error.argument_name)
        key = next(key for key in known if flag_name(key) == flag)
        raise UserError(f"{flag} needs a value: {describe_type(known[key])}") from None
    positionals = found.pop("positionals")
    for key, given in found.items():
        if len(given) > 1:
            raise UserError(f"{flag_name(key)} is given twice")
    return positionals, {key: _read(given[0], known[key]) for key, given in found.items()}


def print_help(name: str, command: Command, args: Sequence[str]) -> None:
    """Print every option with its type, sentence and default: that of the config file, if one is given."""
    defaults: dict[str, Any] = {}
    if command.config:  # what the file and the options beside --help say
        positionals, values = parse_options(args, command.options)
        overrides = {key: value for key, value in values.items() if "." in key}
        config = load_config(positionals[0] if positionals else None, overrides).model_dump(mode="json")
        defaults = {f"{section}.{key}": value for section in config for key, value in config[section].items()}
    parser = argparse.ArgumentParser(
        prog=f"gptmini {name}",
        usage=f"gptmini {name} {command.positionals}" + " [--option VALUE ...]" * bool(command.options),
        description=command.run.__doc__,
    )
    add_options(parser, command.options, defaults)
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
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
            else:
                action.choices = [word for word in choices if not word.isupper()] or None
        positional = parser.add_argument("positionals", nargs="*", metavar=command.positionals)
        if "|" in command.positionals:
            positional.choices = command.positionals.split("|")
        else:
            positional.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(root, shell)


def add_options(
    parser: argparse.ArgumentParser, known: Options, defaults: Mapping[str, Any] | None = None
) -> list[argparse.Action]:
    """Add each option to the parser, in one group for each section of the config."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}  # a key without a section: the command's own
    actions = []
    for key, node in known.items():
        section = key.rpartition(".")[0]
        if section not in groups:
            about = Config.model_fields[section].annotation.__doc__ or ""
            groups[section] = parser.add_argument_group(section, about.partition("\n")[0])
        default = (defaults or {}).get(key, node.get("default"))
        metavar, takes_list = _metavar(node), _accepts_list(node)
        action = groups[section].add_argument(
            flag_name(key),
            dest=key,
            action="append",  # to notice one that is given twice
            nargs="?" if _is_flag(key, node) else "+" if takes_list else None,
            metavar=(metavar, metavar.removesuffix("|null")) if takes_list else metavar,
            default=argparse.SUPPRESS,
            help=f"{node['description']} (default: {_default(default)})".replace("%", "%%"),
        )
        actions.append(action)
    return actions


def _canonical(args: Sequence[str], known: Options) -> list[str]:
    """The arguments with each option as argparse knows it; UserError for one that it does not know."""
    canonical = []
    for word, following in zip(args, [*args, ""][1:], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            key = name[2:].replace("-", "_")
            key = _FORMER_NAMES.get(key, key)
            if key not in known:
                raise UserError(f"unknown option {name}{did_you_mean(name, map(flag_name, known))}")
            if value == "--":  # which argparse drops
                raise UserError(f"{name} needs a value: {describe_type(known[key])}")
            # `--resume a.yaml` is a flag and a file; argparse would take a.yaml for the flag's value.
            if _is_flag(key, known[key]) and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            word = flag_name(key) + equals + value
        canonical.append(word)
    return canonical


def _read(given: str | list[str], node: Mapping[str, Any]) -> Any:
    """The value of an option, as YAML reads it."""
    if isinstance(given, str):
        return _read_word(given, node)
    read = [_read_word(word, node) for word in given]
    alone = len(read) == 1 and (read[0] is None or isinstance(read[0], list) or accepts_one(node))
    return read[0] if alone else read


def _read_word(word: str, node: Mapping[str, Any]) -> Any:
    """A word as YAML reads it; it stays text where the key takes any text."""
    may_be_null = any(member.get("type") == "null" for member in node.get("anyOf", ()))
    if may_be_null and word == "null":
        return None
    if accepts_text(node):
        return word
    try:
        return parse_yaml(word)
    except yaml.YAMLError:
        return word


def _is_flag(key: str, node: Mapping[str, Any]) -> bool:
    """Whether an option needs no value, such as --resume."""
    return node.get("type") == "boolean" and "." not in key


def _accepts_list(node: Mapping[str, Any]) -> bool:
    """Whether a key takes a list, so that its option takes several words."""
    return node.get("type") == "array" or any(map(_accepts_list, node.get("anyOf", ())))


def accepts_one(node: Mapping[str, Any]) -> bool:
    """Whether a key takes a single value rather than only a list."""
    if "anyOf" in node:
        return any(accepts_one(member) for member in node["anyOf"] if member.get("type") != "null")
    return node.get("type") != "array"


def _metavar(node: Mapping[str, Any]) -> str:
    """What the help shows for a value: its choices, or its kind in capitals.

    >>> keys = flatten_schema(Config)
    >>> [_metavar(keys[key]) for key in ("optim.optimizer", "runtime.threads", "data.val_corpus")]
    ['adamw|muon', 'auto|N', 'PATH|null']
    """
    if "anyOf" in node:
        return "|".join(dict.fromkeys(word for m in node["anyOf"] for word in _metavar(m).split("|")))
    if "const" in node or "enum" in node:
        return "|".join(map(str, node.get("enum") or [node["const"]]))
    match node.get("type"):
        case "array":
            return _metavar((node.get("prefixItems") or [node["items"]])[0])
        case "boolean":
            return "true|false"
        case "null":
            return "null"
        case "string":
            return str(node["examples"][0]) if "examples" in node else str(node.get("format", "text")).upper()
    return {"integer": "N", "number": "X"}[node["type"]]


def _default(value: Any) -> str:
    """A default as it would be written on the command line.

    >>> _default([0.9, 0.95]), _default(None), _default("auto")
    ('0.9 0.95', 'null', 'auto')
    """
    if isinstance(value, list):
        return " ".join(map(str, value)) or "[]"
    return value if isinstance(value, str) else format_value(value)
