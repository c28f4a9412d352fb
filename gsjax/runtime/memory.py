"""What to do where the memory of a device does not suffice, in words."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from gsjax.errors import UserError


@contextlib.contextmanager
def told_out_of_memory(describe: Callable[[], str]) -> Iterator[None]:
    """Turns an allocation that a device or the compiler refuses into one line.

    Args:
      describe: returns what does not fit and what to do; XLA's own figures are added.

    Raises:
      UserError: instead of RESOURCE_EXHAUSTED; every other error passes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        status, _, rest = str(error).partition(":")
        if status != "RESOURCE_EXHAUSTED":
            raise
        reason = rest.strip().split("\n")[0]
        raise UserError(f"out of device memory: {describe()} ({reason})") from error
