"""Tells when crops cannot meet the range that `crops` sets for their overlap."""

import ml_collections

from gsjax.crops import MAX_DRAWS
from gsjax.runtime import metrics


class OverlapWarning:
    """Warns once, at the first logged step with images whose views are out of the range."""

    def __init__(self, settings: ml_collections.ConfigDict) -> None:
        self._range = f"{settings.min_overlap:g} to {settings.max_overlap:g}"
        self._measure = settings.overlap
        self._warned = False

    def check(self, done: int, fraction: float) -> None:
        """Checks a reading of `crops_outside`."""
        if fraction > 0 and not self._warned:
            self._warned = True
            metrics.log(
                f"warning: at step {done}, {fraction:.2%} of the images have no two views with "
                f"{self._measure} from {self._range} in {MAX_DRAWS} draws; their closest draw is "
                "used. train/crops_outside has the fraction of every logged step"
            )
