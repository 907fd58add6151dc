"""A pickle of plain values, read without Python's unpickler: nothing that it names is imported or called.

A pickle is a program for a stack machine. Here are the instructions that build numbers, texts, lists, tuples
and dicts; the few that call a function by its name go to the reader that the caller gives.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from gptmini.errors import UserError


class Name(NamedTuple):
    """A class or function as a pickle names it: nothing more than the text `module.name`."""

    text: str


def refuse(name: str, args: object = None) -> Any:
    """Raise UserError, whatever is called."""
    raise UserError(f"it holds a {name:.80}, which is no plain value, and is not read in any other way")


_NUMBER_OR_TEXT = ([pickletools.pyint], [pickletools.pyfloat], [pickletools.pyunicode])
_NEW: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip


def read_pickle(data: bytes | bytearray, call: Callable[[str, Any], Any] = refuse) -> Any:
    """The value in a pickle of protocol 2 or later, in memory of the order of its length.

    `call(name, args)` answers where the pickle calls a class or function; a persistent id comes as a call of
    the name "". Raises UserError for everything else, and for what is no pickle at all.
    """
    try:
        return _run(data, call)
    except (TypeError, LookupError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("it is no pickle, or damaged") from None


def _run(data: bytes | bytearray, call: Callable[[str, Any], Any]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []  # how long the stack was at each open MARK
    memo: dict[int, Any] = {}

    def pop(count: int | None = None) -> list[Any]:
        """The last values of the stack; without a count, those since the last MARK."""
        start = marks.pop() if count is None else len(stack) - count
        values = stack[start:]
        del stack[start:]
        return values

    arg: Any
    for opcode, arg, _ in pickletools.genops(data):
        name = opcode.name
        if not opcode.stack_before and opcode.stack_after in _NUMBER_OR_TEXT:
            stack.append(arg)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"):
            stack.append(tuple(pop(int(name[5:]) if name[5:] else None)))
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2 if name == "SETITEM" else None)
            if not {*map(type, items[::2])} <= {int, str}:  # the hash of nested tuples may take for ever
                refuse("dict with other keys than numbers and texts")
            dict.update(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1 if name == "APPEND" else None)
            list.extend(stack[-1], items)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if arg is None else arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "GLOBAL":
            stack.append(Name(arg.replace(" ", ".")))
        elif name == "REDUCE":
            function, args = pop(2)
            stack.append(call(function.text if isinstance(function, Name) else "call", args))
        elif name == "BINPERSID":
            stack.append(call("", stack.pop()))
        elif name == "BUILD":  # attributes, as those of an OrderedDict: nobody needs them
            pop(1)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            refuse(f"pickle instruction {name}")
    raise ValueError("no end")
