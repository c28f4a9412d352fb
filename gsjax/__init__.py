"""Self-supervised vision with graded similarity, in JAX and Flax.

`load_encoder` and `pretrain` are documented in `gsjax.api`; `UserError` is what they raise if an
argument or a file is at fault, with a message of one line. Submodules load on first use:
`import gsjax; gsjax.losses.nt_xent` works, while `import gsjax` alone imports neither JAX nor
TensorFlow.
"""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

_API = {"load_encoder": "api", "pretrain": "api", "UserError": "errors"}  # name: module


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(importlib.import_module(f"{__name__}.{_API[name]}"), name)
    module_name = f"{__name__}.{name}"
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:  # the submodule exists, something it needs does not
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_API, *(module.name for module in pkgutil.iter_modules(__path__))})
