"""A pickle of plain values, read without Python's unpickler: nothing that it names is imported or called.

A pickle is a program for a stack machine. Here are the instructions that build numbers, texts, lists, tuples
and dicts; the few others, which call a function by its name, go to the reader that the caller gives.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from gptmini.errors import UserError


class Name(NamedTuple):
    """A class or function as a pickle names it: nothing more than the text `module.name`."""

    text: str


def _refuse(name: str, args: Any) -> Any:
    raise UserError(f"it holds a {name:.80}, which is no plain value, and is not read in any other way")


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


def read_pickle(data: bytes, call: Callable[[str, Any], Any] = _refuse) -> Any:
    """The value in a pickle, in memory of the order of its length.

    `call(name, args)` answers where the pickle calls a class or function; a persistent id comes as a call of
    the name "". Raises UserError for everything else, and for what is no pickle at all.
    """
    try:
        return _run(data, call)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise UserError(f"it is no pickle, or damaged ({type(error).__name__}: {error!s:.100})") from None


def _run(data: bytes, call: Callable[[str, Any], Any]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []  # how long the stack was at each open MARK
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    arg: Any
    for opcode, arg, _ in pickletools.genops(data):
        name = opcode.name
        if name in _VALUES:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("LIST", "DICT"):
            items = pop_to_mark()
            stack.append(items if name == "LIST" else dict(zip(items[::2], items[1::2], strict=True)))
        elif name in ("SETITEM", "SETITEMS"):
            items = pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            dict.update(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = pop_to_mark() if name == "APPENDS" else [stack.pop()]
            list.extend(stack[-1], items)
        elif name in _PUT:
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GET:
            stack.append(memo[arg])
        elif name == "GLOBAL":
            stack.append(Name(arg.replace(" ", ".")))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            if not isinstance(function, Name):
                raise TypeError("a call of a value")
            stack.append(call(function.text, args))
        elif name == "BINPERSID":
            stack.append(call("", stack.pop()))
        elif name == "BUILD":  # attributes, as those of an OrderedDict: nobody needs them
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            _refuse(f"pickle instruction {name}", None)
    raise ValueError("no end")
