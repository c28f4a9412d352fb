"""Self-supervised vision with graded similarity, in JAX and Flax.

Submodules load on first use: `import gsjax; gsjax.losses.nt_xent` works, while
`import gsjax` alone imports neither JAX nor TensorFlow.
"""

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    module_name = f"{__name__}.{name}"
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:  # the submodule exists, something it needs does not
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *(module.name for module in pkgutil.iter_modules(__path__))})
