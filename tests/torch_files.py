"""Writes files as `torch.save` does, without torch."""

import io
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}
assert np.dtype(ml_dtypes.bfloat16).name in _STORAGES


class _Storage:
    def __init__(self, name, array):
        self.name, self.array = name, array


class _Pickler(pickle.Pickler):
    """Pickles arrays as tensors whose storages are kept outside."""

    def __init__(self, file, modules, legacy):
        super().__init__(file, protocol=2)
        self.storages, self._modules, self._legacy = [], modules, legacy

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            storage = _Storage(str(len(self.storages)), np.array(value, order="C"))
            self.storages.append(storage)
            strides = tuple(step // value.itemsize for step in storage.array.strides)
            rebuild = self._modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (storage, 0, value.shape, strides, False, {})
        return NotImplemented

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        kind = getattr(self._modules["torch"], _STORAGES[value.array.dtype.name])
        found = ("storage", kind, value.name, "cpu", value.array.size)
        return (*found, None) if self._legacy else found


def _fake_torch():
    """Modules with the names that PyTorch's pickles refer to."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for name in _STORAGES.values():
        setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    return modules


def dumps(content, legacy=False, change=lambda program: program):
    """The bytes of a file with this content; arrays in nested dictionaries become tensors.

    `change` alters the pickle of the zip format.
    """
    modules = _fake_torch()
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        file = io.BytesIO()
        if legacy:
            for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(header, file, protocol=2)
        pickler = _Pickler(file, modules, legacy)
        pickler.dump(content)
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    if legacy:
        pickle.dump([storage.name for storage in pickler.storages], file, protocol=2)
        for storage in pickler.storages:
            file.write(struct.pack("<q", storage.array.size) + storage.array.tobytes())
        return file.getvalue()
    archived = io.BytesIO()
    with zipfile.ZipFile(archived, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", change(file.getvalue()))
        archive.writestr("archive/byteorder", "little")
        for storage in pickler.storages:
            archive.writestr(f"archive/data/{storage.name}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")
    return archived.getvalue()
