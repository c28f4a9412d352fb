"""What a setting is: its class, its default and so its type, its help, its choices or bounds.

The class says what may differ between two starts in one work directory. `shapes`, `orders` and
`free` make a setting of each class, so that none is defined without one.
"""

import dataclasses
import enum
import functools
import importlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import ml_collections

from gsjax.errors import UserError

Value = int | float | str | bool

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_MAX = {int: 2**31 - 1, float: 1e6}  # of numbers that have no other bound


class Kind(enum.Enum):
    """What depends on a setting, and so whether it may change.

    Attributes:
      SHAPES: the trained encoder. It stays as it is in a work directory with checkpoints, and
        evaluations take it from there.
      ORDERS: which pictures a step of the training gets. It stays as it is while training; an
        evaluation may choose another value.
      FREE: neither of them. It may change with every start.
    """

    SHAPES = enum.auto()
    ORDERS = enum.auto()
    FREE = enum.auto()


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      kind: its class.
      default: every value has its type; a whole number serves as a float, too.
      help: one line.
      choices: of a string, if it is not free text; a table stands for its names.
      low: smallest number.
      high: largest number; without one, what 32 bits hold or, for a float, a million.
      count: when positive, the value is a string of so many numbers with commas between, each
        within the bounds.
    """

    kind: Kind
    default: Value
    help: str
    _: dataclasses.KW_ONLY
    choices: Collection[str] = ()
    low: float = 0
    high: float | None = None
    count: int = 0

    @property
    def allowed(self) -> str:
        """The values that it may have, in words; "" where only their type is limited."""
        if self.choices:
            return ", ".join(self.choices)
        numbers = f"{self.count} comma-separated numbers " if self.count else ""
        if self.high is not None:
            return f"{numbers}from {self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low else ""

    @property
    def written(self) -> str:
        """The default as lists of all settings show it."""
        return json.dumps(self.default) if isinstance(self.default, str) else repr(self.default)

    def parse(self, key: str, text: str) -> Value:
        """Reads the value of the setting called `key` from a text; its bounds are not checked.

        Raises:
          UserError: the text is of another type.
        """
        wanted = type(self.default)
        try:
            return _WORDS[text.lower()] if wanted is bool else wanted(text)
        except (KeyError, ValueError):
            raise UserError(f"{key}: {text!r} is not {_TYPES[wanted]}") from None

    def check(self, key: str, value: Any) -> None:
        """Checks a value of the setting called `key`.

        Raises:
          UserError: it has another type, is none of the choices or lies outside the bounds.
        """
        wanted = type(self.default)
        has_type = type(value) is wanted or (wanted is float and type(value) is int)
        if not has_type:
            raise UserError(f"{key} is {value!r}; it must be {_TYPES[wanted]}")
        if self.choices and value not in self.choices:
            raise UserError(f"{key} is {value!r}; it must be one of {self.allowed}")
        if self.count:
            self.numbers(key, value)
        elif wanted in _MAX and not self._holds(value):
            allowed = self.allowed or "at least 0"
            if self.high is None and value > _MAX[wanted]:
                allowed = f"at most {_MAX[wanted]:.0f}"
            raise UserError(f"{key} is {value}; it must be {allowed}")

    def numbers(self, key: str, text: str) -> tuple[float, ...]:
        """Reads the `count` numbers of a string.

        Raises:
          UserError: it does not hold so many, or one lies outside the bounds.
        """
        try:
            found = tuple(float(part) for part in text.split(","))
        except ValueError:
            found = ()
        if len(found) != self.count or not all(map(self._holds, found)):
            raise UserError(f"{key} is {text!r}; it must be {self.allowed}")
        return found

    def _holds(self, number: float) -> bool:
        """Whether a number is one and lies within the bounds."""
        high = self.high
        if high is None:
            high = _MAX.get(type(self.default), _MAX[float])
        return self.low <= number <= high


shapes = functools.partial(Setting, Kind.SHAPES)
"""A setting that the trained encoder depends on."""

orders = functools.partial(Setting, Kind.ORDERS)
"""A setting that only the order of a training's pictures depends on."""

free = functools.partial(Setting, Kind.FREE)
"""A setting that may change with every start."""


def _nothing(config: ml_collections.ConfigDict) -> Iterable[str]:
    del config
    return ()


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: code that is imported once it is chosen, and the settings it brings.

    Attributes:
      module: where the code is.
      help: one line.
      settings: {dotted key: setting}; rows that share a key share the setting.
      check: yields a message for everything in a configuration that the code cannot do; called
        only where the row is chosen, before JAX is imported.
      function: its name in the module.
    """

    module: str
    help: str
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    check: Callable[[ml_collections.ConfigDict], Iterable[str]] = _nothing
    function: str = "create"

    def load(self, function: str = "") -> Callable:
        """Imports the module; returns the row's function, or another one of the module."""
        return getattr(importlib.import_module(self.module), function or self.function)
