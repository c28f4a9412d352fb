"""Tells when crops cannot meet the range that `crops` sets for their overlap."""

import ml_collections

from gsjax.runtime import metrics


class OverlapWarning:
    """Warns once, with the fraction of pairs in the first step that has any."""

    def __init__(self, settings: ml_collections.ConfigDict) -> None:
        self._range = f"{settings.min_overlap:g} to {settings.max_overlap:g}"
        self._measure = settings.overlap
        self._warned = False

    def check(self, done: int, fraction: float) -> None:
        """Checks a reading of `crops_outside`."""
        if fraction > 0 and not self._warned:
            self._warned = True
            metrics.log(
                f"warning: at step {done}, {fraction:.1%} of the pairs of global views have no "
                f"draw with {self._measure} {self._range} among 100; the closest is used. "
                "train/crops_outside has the fraction of every logged step"
            )
