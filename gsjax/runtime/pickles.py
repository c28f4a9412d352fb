"""Reads pickles as data, without running any code in them.

A pickle is a program for a small stack machine, and two of its opcodes call arbitrary functions.
This interpreter knows the opcodes of protocols 0 to 5 but calls nothing itself: a caller says what
the few functions it knows are to return, any other call is refused, and objects of unknown classes
become inert.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

_NUMBERS_AND_TEXT = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LONGEST_NAME = 100  # in messages

_MARK = object()


class UnsafePickle(Exception):
    """A pickle contains something other than data; the message says what."""


class Name:
    """A class or function that a pickle refers to; never imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class Inert:
    """Stands for an object of an unknown class; ignores what a pickle does with it.

    Attributes:
      name: its class.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class Buildable:
    """An object that a pickle fills after creating it."""

    def build(self, state: Any) -> None:
        """Sets the object's state."""
        raise NotImplementedError


def load(
    file: BinaryIO,
    functions: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any] | None = None,
    plain: bool = False,
) -> Any:
    """Returns the object that a pickle describes.

    Args:
      file: open file; read up to the end of the pickle.
      functions: {"module.name": function to call in its place}.
      persistent: maps a persistent id to an object.
      plain: whether to refuse classes and functions wherever they are mentioned.

    Raises:
      UnsafePickle: the pickle calls any other function.
      ValueError: it is damaged, or creates more than the file holds.
    """
    begin = file.tell()
    size = file.seek(0, io.SEEK_END) - begin
    file.seek(begin)
    try:
        return _Machine(functions, persistent, plain, size).run(file)
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error


class _Machine:
    def __init__(self, functions, persistent, plain, size) -> None:
        self._functions, self._persistent, self._plain = functions, persistent, plain
        self._left = size  # what functions may still create, in items of containers and text
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("damaged pickle (no end)")

    def _step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _NUMBERS_AND_TEXT:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _TUPLES:
            push(tuple(self._pop(_TUPLES[name])))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            push(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name in ("BINPERSID", "PERSID"):
            push(self._find(self._stack.pop() if name == "BINPERSID" else argument))
        elif name == "POP":
            self._stack.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            push(self._stack[-1])
        else:
            getattr(self, f"_{name.lower()}", self._refuse)(argument)

    def _refuse(self, argument: Any) -> None:
        raise UnsafePickle("an object from the extension registry or outside the file")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError
        return [self._stack.pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _find(self, key: Any) -> Any:
        if self._persistent is None:
            raise UnsafePickle("a persistent id")
        return self._persistent(key)

    # Containers.

    def _empty_dict(self, _) -> None:
        self._stack.append({})

    def _empty_list(self, _) -> None:
        self._stack.append([])

    def _empty_set(self, _) -> None:
        self._stack.append(Inert("set"))

    def _frozenset(self, _) -> None:
        self._pop_to_mark()
        self._stack.append(Inert("frozenset"))

    def _tuple(self, _) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _list(self, _) -> None:
        self._stack.append(self._pop_to_mark())

    def _dict(self, _) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)

    def _setitem(self, _) -> None:
        self._set(self._pop(2))

    def _setitems(self, _) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, (dict, Inert)):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples may take forever.
            if isinstance(target, dict) and isinstance(key, (str, int, float, bytes)):
                target[key] = value

    def _append(self, _) -> None:
        self._extend(self._pop(1))

    def _appends(self, _) -> None:
        self._extend(self._pop_to_mark())

    def _additems(self, _) -> None:
        self._pop_to_mark()

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError

    # Objects.

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def _name(self, name: str) -> None:
        if self._plain:
            raise UnsafePickle(f"the Python object {name[:_LONGEST_NAME]!r}")
        self._stack.append(Name(name))

    def _stack_global(self, _) -> None:
        module, name = self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        self._name(f"{module}.{name}")

    def _reduce(self, _) -> None:
        function, arguments = self._pop(2)
        self._call(function, arguments)

    def _inst(self, argument: str) -> None:
        self._call(Name(argument.replace(" ", ".", 1)), tuple(self._pop_to_mark()))

    def _obj(self, _) -> None:
        function, *arguments = self._pop_to_mark()
        self._call(function, tuple(arguments))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError
        if function.name not in self._functions:
            raise UnsafePickle(f"a call of {function.name[:_LONGEST_NAME]!r}")
        result = self._functions[function.name](*arguments)
        if isinstance(result, (bytes, str, tuple, list, dict)):
            # Many calls on the same memoized object would fill the memory.
            self._left -= len(result)
            if self._left < 0:
                raise ValueError("damaged pickle (it creates more than it holds)")
        self._stack.append(result)

    def _newobj(self, _) -> None:
        self._create(*self._pop(2))

    def _newobj_ex(self, _) -> None:
        kind, arguments, _ = self._pop(3)
        self._create(kind, arguments)

    def _create(self, kind: Any, arguments: Any) -> None:
        if not isinstance(kind, Name) or not isinstance(arguments, tuple):
            raise TypeError
        if kind.name in self._functions:
            self._call(kind, arguments)
        else:
            self._stack.append(Inert(kind.name))

    def _build(self, _) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
