"""Describes how the class names of two splits differ."""

import unicodedata
from collections.abc import Callable, Sequence

_NAMED = 5  # classes named in a message

# Differences between names that are easy to miss; copying a folder may introduce them.
_FOLDS: dict[str, Callable[[str], str]] = {
    "Unicode normalization (NFC, NFD)": lambda name: unicodedata.normalize("NFC", name),
    "spaces": lambda name: " ".join(name.split()),
    "case": str.casefold,
}


def difference(first: Sequence[str] | None, second: Sequence[str] | None) -> str:
    """Describes how two lists of class names differ; "" if they do not.

    Args:
      first: names in the order of the labels; None if the labels have no names.
      second: as `first`.
    """
    if first == second:
        return ""
    if first is None or second is None:
        return f"only the {'first' if second is None else 'second'} has class names"
    one, other = set(first), set(second)
    if one == other:
        place = next(i for i, name in enumerate(first) if name != second[i])
        return (
            f"the same {len(first)} names in a different order: number {place} is {first[place]!r} "
            f"in the first and {second[place]!r} in the second"
        )
    parts = [f"{len(first)} and {len(second)} of them"]
    for which, names in (("first", sorted(one - other)), ("second", sorted(other - one))):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"only the {which} has {', '.join(map(repr, names[:_NAMED]))}{more}")
    return "; ".join([*parts, *_lookalikes(sorted(one - other), sorted(other - one))])


def _lookalikes(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Describes names whose difference is easy to miss."""
    folded = {_fold(name): name for name in second}
    pairs = [(name, folded[_fold(name)]) for name in first if _fold(name) in folded]
    if not pairs:
        return []
    one, other = pairs[0]
    kinds = [kind for kind in _FOLDS if _fold(one, but=kind) != _fold(other, but=kind)]
    more = f", and {len(pairs) - 1} more such pairs" if len(pairs) > 1 else ""
    return [f"{one!r} and {other!r} differ only in {' and '.join(kinds)}{more}: rename one"]


def _fold(name: str, but: str = "") -> str:
    for kind, fold in _FOLDS.items():
        if kind != but:
            name = fold(name)
    return name
