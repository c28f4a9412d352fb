"""The content of `results/<job>.json`: a list of entries, each with its scores and protocol."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from gsjax.errors import UserError


def read(file: epath.Path) -> list[dict]:
    """Reads the entries of a `results/<job>.json`; empty if there is no such file.

    Raises:
      UserError: it cannot be read, and so cannot be added to.
    """
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text())
        check(entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}): fix it or move it away"
        ) from error
    return entries


def check(entries: Any) -> None:
    """Checks that what was read is a list of results.

    Raises:
      ValueError, KeyError, TypeError: it is not.
    """
    if not all(isinstance(entry["scores"], dict) and "step" in entry for entry in entries):
        raise ValueError("it is not a list of results")


def comparable(one: Mapping, other: Mapping) -> bool:
    """Whether two results have the same data, model and protocol, but for what is `tuned` in it."""

    def model(entry):
        return {name: value for name, value in entry["encoder"].items() if name != "digest"}

    def protocol(entry):
        tuned = entry.get("tuned", ())
        return {name: v for name, v in entry.get("protocol", {}).items() if name not in tuned}

    names = ("dataset", "image_size", "normalization")
    return (
        all(one.get(n) == other[n] for n in names)
        and protocol(one) == protocol(other)
        and model(one) == model(other)
    )


def same(one: Mapping, other: Mapping) -> bool:
    """Whether two results are comparable, of the same encoder and measured with the same rates."""
    return comparable(one, other) and all(
        one.get(n) == other[n] for n in ("step", "encoder", "protocol")
    )
