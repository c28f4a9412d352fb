"""The contract of an experiment tracker."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Record = Mapping[str, Any]  # of metrics.jsonl: a step and its metrics, None if not finite


class TrackedRun(Protocol):
    """A run in a tracker, new or continued. Every method may block and raise anything.

    Attributes:
      where: what to tell the user: an address or a folder.
    """

    where: str

    def send(self, records: Sequence[Record]) -> None:
        """Adds those of the records that the tracker does not have.

        All calls of a start together pass all records of `metrics.jsonl`, in its order.
        """

    def has_picture(self, name: str) -> bool:
        """Whether an earlier start has sent this picture."""

    def send_picture(self, name: str, picture: np.ndarray) -> None:
        """Adds or replaces a picture, uint8 [H, W, 3]."""

    def finish(self, complete: bool) -> None:
        """Returns once everything has arrived; `complete` if there are no more steps to train."""

    def abandon(self) -> None:
        """Cleans up after an error; the run is not used again."""
