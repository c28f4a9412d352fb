"""NumPy arrays in pickles, as data; see `gsjax.runtime.pickles`."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gsjax.runtime import pickles

_CODE = re.compile(r"[<>=|]?[fiub]\d{1,2}")  # of numbers
_MAX_DIMENSIONS = 64


class _Dtype(pickles.Buildable):
    """The type of an array's elements.

    Attributes:
      value: a type of numbers, or None.
    """

    def __init__(self, code: Any, *_) -> None:
        is_numeric = isinstance(code, str) and _CODE.fullmatch(code)
        self.value = np.dtype(code) if is_numeric else None

    def build(self, state: Any) -> None:
        if self.value is not None and state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class Array(pickles.Buildable):
    """An array as its pickle builds it.

    Attributes:
      shape: of the array.
      is_numeric: whether its elements are numbers; no others can be read.
    """

    shape: tuple[int, ...] = ()
    is_numeric = False

    def __init__(self, *_) -> None:
        self._data: Any = b""
        self._dtype = np.dtype(np.uint8)
        self._order: Any = "C"

    def build(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, dtype: _Dtype, shape: Any, order: Any) -> None:
        """Sets the array's elements; nothing is copied before `array`."""
        if dtype.value is None:
            return
        if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array has an impossible shape")
        if len(data) != math.prod(shape) * dtype.value.itemsize or order not in ("C", "F"):
            raise ValueError("an array is not as long as its data")
        self._data, self._dtype, self._order = data, dtype.value, order
        self.shape, self.is_numeric = tuple(shape), True

    def array(self) -> np.ndarray:
        """Returns the elements.

        Raises:
          ValueError: they are not bytes.
        """
        return np.frombuffer(_bytes(self._data), self._dtype).reshape(self.shape, order=self._order)


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any, *_) -> Array:
    array = Array()
    array.fill(data, dtype, shape, order)
    return array


def _number(dtype: _Dtype, data: Any) -> Any:
    if dtype.value is None:
        return pickles.Inert("numpy.generic")
    return np.frombuffer(_bytes(data), dtype.value, 1)[0].item()


def _bytes(data: Any) -> Any:
    return data.encode("latin-1") if isinstance(data, str) else data  # written by Python 2


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("damaged pickle (encoding)")
    return text.encode("latin-1")


FUNCTIONS: dict[str, Callable[..., Any]] = {"_codecs.encode": _encode, "numpy.dtype": _Dtype}
"""{function in pickles of arrays: what is called in its place}."""
for _core in ("numpy.core", "numpy._core"):
    FUNCTIONS[f"{_core}.multiarray._reconstruct"] = Array
    FUNCTIONS[f"{_core}.multiarray.scalar"] = _number
    FUNCTIONS[f"{_core}.numeric._frombuffer"] = _from_buffer
