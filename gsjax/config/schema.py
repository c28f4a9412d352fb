"""What a setting is: its class, default (and thus type), help, and choices or bounds.

The class says what may change between two starts in one work directory. `shapes`, `orders`,
`starts` and `free` create a setting of each class, so that none is defined without one.
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
_MAX = {int: 2**31 - 1, float: 1e6}  # for numbers without an upper bound of their own


class Kind(enum.Enum):
    """What a setting affects, and thus whether it may change.

    Attributes:
      SHAPES: affects the trained encoder. Fixed in a work directory with checkpoints; evaluations
        read it from there.
      ORDERS: affects which images a training step gets. Fixed during training; an evaluation may
        use another value.
      STARTS: affects the first start only. Later ones keep its value.
      FREE: affects none of these. May change with every start.
    """

    SHAPES = enum.auto()
    ORDERS = enum.auto()
    STARTS = enum.auto()
    FREE = enum.auto()


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      kind: its class.
      default: also sets the type of all values; a float setting accepts an int.
      help: one line.
      choices: allowed values of a string, unless it is free text; a table stands for its names.
      low: smallest number.
      high: largest number; if None, what 32 bits hold or, for a float, a million.
      count: if positive, the value is a string of this many comma-separated numbers, each within
        the bounds.
      per_view: whether a number may be replaced by a string of comma-separated numbers, one per
        view; the last one is that of all further views.
    """

    kind: Kind
    default: Value
    help: str
    _: dataclasses.KW_ONLY
    choices: Collection[str] = ()
    low: float = 0
    high: float | None = None
    count: int = 0
    per_view: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values in words; "" if only their type is restricted."""
        if self.choices:
            return ", ".join(self.choices)
        numbers = f"{self.count} comma-separated numbers " if self.count else ""
        text = f"at least {self.low:g}" if self.low or self.per_view else ""
        if self.high is not None:
            text = f"{numbers}from {self.low:g} to {self.high:g}"
        return f"{text}; or comma-separated, one per view" if self.per_view else text

    @property
    def written(self) -> str:
        """The default, as shown in lists of all settings."""
        return json.dumps(self.default) if isinstance(self.default, str) else repr(self.default)

    def parse(self, key: str, text: str) -> Value:
        """Parses a value of the setting `key`, without checking its bounds.

        Raises:
          UserError: the text is not of the right type.
        """
        wanted = type(self.default)
        if self.per_view and "," in text:
            return text
        try:
            return _WORDS[text.lower()] if wanted is bool else wanted(text)
        except (KeyError, ValueError):
            raise UserError(f"{key}: {text!r} is not {_TYPES[wanted]}") from None

    def check(self, key: str, value: Any) -> None:
        """Checks a value of the setting `key`.

        Raises:
          UserError: it has the wrong type, is not one of the choices or is out of bounds.
        """
        wanted = type(self.default)
        if self.per_view and type(value) is str:
            self.numbers(key, value)
            return
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
        """Parses the numbers in a string: `count` of them, or any number per view.

        Raises:
          UserError: it does not hold that many, or one is out of bounds.
        """
        try:
            found = tuple(float(part) for part in text.split(","))
        except ValueError:
            found = ()
        has_count = len(found) == self.count if self.count else bool(found)
        if not has_count or not all(map(self._holds, found)):
            raise UserError(f"{key} is {text!r}; it must be {self.allowed}")
        return found

    def _holds(self, number: float) -> bool:
        """Whether a number is within the bounds; NaN is not."""
        high = self.high
        if high is None:
            high = _MAX.get(type(self.default), _MAX[float])
        return self.low <= number <= high


shapes = functools.partial(Setting, Kind.SHAPES)
"""A setting that affects the trained encoder."""

per_view = functools.partial(Setting, Kind.SHAPES, per_view=True)
"""A setting that affects the trained encoder and may differ between views."""

orders = functools.partial(Setting, Kind.ORDERS)
"""A setting that affects only which images a training step gets."""

starts = functools.partial(Setting, Kind.STARTS)
"""A setting that is read at the first start only."""

free = functools.partial(Setting, Kind.FREE)
"""A setting that may change with every start."""


def _nothing(config: ml_collections.ConfigDict) -> Iterable[str]:
    del config
    return ()


@dataclasses.dataclass(frozen=True)
class Row:
    """A table row: code that is imported only once chosen, and the settings it brings.

    Attributes:
      module: the module with the code.
      help: one line.
      settings: {dotted key: setting}; rows that share a key share the setting.
      check: yields a message for everything in a configuration that the code cannot handle; called
        before JAX is imported. A job's is called for every job, all others' only if chosen.
      function: the function's name in the module.
    """

    module: str
    help: str
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    check: Callable[[ml_collections.ConfigDict], Iterable[str]] = _nothing
    function: str = "create"

    def load(self, function: str = "") -> Callable:
        """Imports the module; returns the row's function, or another one from the module."""
        return getattr(importlib.import_module(self.module), function or self.function)
