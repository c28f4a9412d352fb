"""Reads files that `torch.save` wrote, in its zip format and the older one, and pickles of arrays.

Formats: torch/serialization.py. Nothing in a file is executed (`gsjax.runtime.pickles`).
"""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from gsjax.models.weights import arrays
from gsjax.runtime import pickles

_MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
_MAX_DEPTH = 16  # of nested dictionaries
_HEADER = struct.Struct("<4s22xHH")  # of a zip entry: signature, lengths of name and extra field

_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "complex128": np.complex128,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
    }.items()
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


class Tensor(Protocol):
    """A tensor of a file."""

    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Returns its elements.

        Raises:
          ValueError: the file holds fewer.
        """


class Loaded(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: {key: tensor}, the keys of nested dictionaries joined by dots.
      entries: the keys of the outermost dictionary, also those without tensors.
    """

    tensors: dict[str, Tensor]
    entries: tuple[str, ...]


def load(data: bytes) -> Loaded:
    """Reads a file.

    Args:
      data: its content.

    Raises:
      pickles.UnsafePickle: it calls a function that creates no tensor.
      ValueError: it is damaged, or of another kind.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            return _load_zip(data)
        return _load_pickles(data)
    except (struct.error, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(str(error) or "it ends early") from error


class _Storage:
    """The elements of one or more tensors.

    Attributes:
      dtype: type of the elements.
      size: their number.
      data: their bytes; in the older format, known once the pickle has been read.
    """

    def __init__(self, dtype: np.dtype, size: int, data: memoryview | None = None) -> None:
        if size < 0 or (data is not None and len(data) < size * dtype.itemsize):
            raise ValueError("a tensor is longer than its data")
        self.dtype, self.size, self.data = dtype, size, data


class _Tensor:
    """A tensor whose data may not be known yet."""

    def __init__(self, storage: Any, offset: int, shape: Any, strides: Any, dtype: Any) -> None:
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without storage")
        integers = (offset, *shape, *strides)
        if not all(type(n) is int and n >= 0 for n in integers) or len(shape) != len(strides):
            raise ValueError("a tensor has an impossible shape")
        self._storage, self._offset, self.shape, self._strides = storage, offset, shape, strides
        self._dtype = dtype

    def array(self) -> np.ndarray:
        """See `Tensor.array`."""
        storage, shape, strides = self._storage, self.shape, self._strides
        assert storage.data is not None
        elements = np.frombuffer(storage.data, storage.dtype, storage.size)
        if self._dtype is not None:
            elements = elements.view(self._dtype)
        last = self._offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        count = 1
        for n in shape:
            count *= n
        # Strides of 0 could make a few bytes fill the memory.
        if count > len(elements) or (count and last >= len(elements)):
            raise ValueError("a tensor is longer than its data")
        if not count:
            return np.zeros(shape, elements.dtype)
        size = elements.itemsize
        view = np.lib.stride_tricks.as_strided(
            elements[self._offset :], shape, [s * size for s in strides], writeable=False
        )
        return view.copy()


def _dtype_of(name: Any) -> np.dtype:
    short = name.name.rpartition(".")[2] if isinstance(name, pickles.Name) else ""
    short = _STORAGES.get(short, short)
    if short not in _DTYPES:
        raise ValueError(f"it holds tensors of an unknown type ({short or 'none'})")
    return _DTYPES[short]


def _inert(name: str) -> Callable[..., pickles.Inert]:
    return lambda *_: pickles.Inert(name)


def _dict(pairs: Any = ()) -> dict:
    return {key: value for key, value in pairs if isinstance(key, (str, int))}


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_) -> _Tensor:
    return _Tensor(storage, offset, shape, strides, None)


def _typed_tensor(storage, offset, shape, strides, grad, hooks, dtype, *_) -> _Tensor:
    del grad, hooks
    return _Tensor(storage, offset, shape, strides, _dtype_of(dtype))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": lambda sizes=(): tuple(sizes),
    **arrays.FUNCTIONS,
}
# What checkpoints of training programs hold next to tensors.
for _name in (
    *("torch.device", "torch.serialization._get_layout", "torch.Generator"),
    *("collections.defaultdict", "collections.Counter", "collections.deque"),
    *("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone"),
    *("builtins.set", "builtins.frozenset", "builtins.slice", "builtins.complex"),
    *("__builtin__.set", "__builtin__.frozenset", "copyreg._reconstructor"),
    *("copy_reg._reconstructor", "argparse.Namespace"),
):
    _FUNCTIONS[_name] = _inert(_name)


def _load_zip(data: bytes) -> Loaded:
    entries = _entries(data)
    (program,) = [name for name in entries if name.endswith("/data.pkl")] or [""]
    if not program:
        raise ValueError("the zip archive is not one of torch.save: it has no data.pkl")
    folder = program.removesuffix("data.pkl")
    if bytes(entries.get(f"{folder}byteorder", b"little")) != b"little":
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, _Storage] = {}

    def find(key: Any) -> _Storage:
        kind, dtype, name, _, size = key
        if kind != "storage" or not isinstance(name, str) or type(size) is not int:
            raise ValueError("damaged pickle (storage)")
        if name not in storages:
            storages[name] = _Storage(_dtype_of(dtype), size, entries[f"{folder}data/{name}"])
        return storages[name]

    return _flatten(pickles.load(io.BytesIO(entries[program]), _FUNCTIONS, find))


def _entries(data: bytes) -> dict[str, memoryview]:
    """Returns {name: content} of a zip archive without compression, as PyTorch writes it."""
    found: dict[str, memoryview] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
    total = 0
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"{info.filename} in it is compressed, which torch.save never does")
        signature, name_size, extra_size = _HEADER.unpack_from(data, info.header_offset)
        begin = info.header_offset + _HEADER.size + name_size + extra_size
        total += info.file_size
        if signature != b"PK\x03\x04" or begin + info.file_size > len(data) or total > len(data):
            raise ValueError("its parts overlap or are cut off")
        found[info.filename] = memoryview(data)[begin : begin + info.file_size]
    return found


def _load_pickles(data: bytes) -> Loaded:
    file = io.BytesIO(data)
    first = pickles.load(file, _FUNCTIONS)
    if first != _MAGIC:
        return _flatten(first)
    pickles.load(file, _FUNCTIONS)  # version of the protocol
    system = pickles.load(file, _FUNCTIONS)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, _Storage] = {}

    def find(key: Any) -> _Storage:
        kind, dtype, name, _, size, *view = key
        if kind != "storage" or not isinstance(name, str) or type(size) is not int:
            raise ValueError("damaged pickle (storage)")
        if view and view[0] is not None:
            raise ValueError("it holds views of storages, of PyTorch before 0.4")
        return storages.setdefault(name, _Storage(_dtype_of(dtype), size))

    content = pickles.load(file, _FUNCTIONS, find)
    for name in pickles.load(file, _FUNCTIONS):
        storage = storages[name]
        (size,) = struct.unpack("<q", file.read(8))
        begin = file.tell()
        end = begin + size * storage.dtype.itemsize
        if size != storage.size or end > len(data):
            raise ValueError("a tensor is longer than its data")
        storage.data = memoryview(data)[begin:end]
        file.seek(end)
    if any(storage.data is None for storage in storages.values()):
        raise ValueError("a tensor has no data")
    return _flatten(content)


def _flatten(content: Any) -> Loaded:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    rest: list[tuple[tuple, Any]] = [((), content)]
    while rest:
        keys, part = rest.pop()
        if isinstance(part, _Tensor) or (isinstance(part, arrays.Array) and part.is_numeric):
            found[".".join(keys)] = part
        elif isinstance(part, dict) and len(keys) < _MAX_DEPTH and id(part) not in seen:
            seen.add(id(part))  # it may contain itself
            rest += [((*keys, str(key)), value) for key, value in part.items()][::-1]
    entries = tuple(map(str, content)) if isinstance(content, dict) else ()
    return Loaded(found, entries)
