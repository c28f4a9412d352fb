"""Turns out-of-memory errors into advice on what to do."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from gsjax.errors import UserError


@contextlib.contextmanager
def explain_out_of_memory(describe: Callable[[], str]) -> Iterator[None]:
    """Turns an allocation refused by a device or the compiler into a one-line error.

    Args:
      describe: returns what does not fit and what to do; XLA's own numbers are appended.

    Raises:
      UserError: in place of RESOURCE_EXHAUSTED; all other errors propagate.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        status, _, rest = str(error).partition(":")
        if status != "RESOURCE_EXHAUSTED":
            raise
        reason = rest.strip().split("\n")[0]
        raise UserError(f"out of device memory: {describe()} ({reason})") from error
