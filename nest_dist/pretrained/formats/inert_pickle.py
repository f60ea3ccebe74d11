"""What a pickle describes, without making it: nothing is imported, called or looked up.

A pickle is a program of about seventy opcodes. Here each of them pushes plain values, or a note of
what it would have made. So a file costs memory in proportion to its bytes, whatever it says.

Source: Python's `pickletools`, which decodes opcodes and documents them.
"""

import dataclasses
import pickletools
import typing

# A NesT-B with the state of its optimizer takes 40,000.
MOST_OPCODES = 1_000_000
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
    """A class or a function, which was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:80]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """An object that a call would make; `function` may be anything, and was not called."""

    function: typing.Any
    arguments: typing.Any

    def __str__(self) -> str:
        return str(self.function) if isinstance(self.function, Name) else "an object"


@dataclasses.dataclass(frozen=True, eq=False)
class Persistent:
    """An object that is stored elsewhere, by its key."""

    key: typing.Any


def parse(pickled: bytes) -> typing.Any:
    """What a pickle describes, of plain values and the classes above.

    Sets are lists, an OrderedDict is a dictionary, and dictionaries have the items alone whose keys
    are texts: to hash other keys may take for ever.

    Raises:
        ValueError, IndexError, KeyError, TypeError: if it is no pickle, or too long.
    """
    stack: list[typing.Any] = []
    marks: list[int] = []
    memo: dict[int, typing.Any] = {}

    def since_mark() -> list[typing.Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    argument: typing.Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if number == MOST_OPCODES:
            raise ValueError(f"its pickle has more than {MOST_OPCODES:,} opcodes")
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("LIST", "FROZENSET"):
            stack.append(since_mark())
        elif name == "DICT":
            items = since_mark()
            stack.append({})
            _set(stack[-1], items)
        elif name in ("APPENDS", "ADDITEMS"):
            items = since_mark()
            _append(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        elif name == "SETITEMS":
            items = since_mark()
            _set(stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Name(_text(module), _text(attribute)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "NEWOBJ_EX":
            _, arguments, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "OBJ":
            function, *arguments = since_mark()
            stack.append(_called(function, tuple(arguments)))
        elif name == "INST":
            stack.append(_called(Name(*argument.split(" ", 1)), tuple(since_mark())))
        elif name == "BUILD":
            stack.pop()  # the attributes of an object
        elif name == "BINPERSID":
            stack.append(Persistent(stack.pop()))
        elif name == "POP":
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif argument is not None and len(opcode.stack_after) == 1:
            stack.append(argument)  # a number, a text or bytes
        else:
            raise ValueError(f"its pickle has the opcode {name}")
    raise ValueError("its pickle does not end")


def _append(target: typing.Any, items: list[typing.Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _set(target: typing.Any, items: list[typing.Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str:
                target[key] = value


def _called(function: typing.Any, arguments: typing.Any) -> typing.Any:
    if isinstance(function, Name) and str(function) == "collections.OrderedDict":
        return {}
    return Call(function, arguments)


def _text(value: typing.Any) -> str:
    if not isinstance(value, str):
        raise TypeError("its pickle names no module")
    return value
