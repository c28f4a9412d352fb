"""Warns when the embeddings collapse."""

import ml_collections

from gsjax.methods import METHODS
from gsjax.runtime import metrics

# embedding_std * sqrt(D); healthy runs never fall below 0.35
_COLLAPSED = 0.1
_COLLAPSED_READINGS = 3


class CollapseWarning:
    """Warns once when the embeddings have nearly shrunk to a point."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._uniform = config.projector.out_dim**-0.5
        scaled = "similarity.scale" in METHODS[config.method].settings
        graded = config.similarity.measure != "none"
        self._more_advice = ", or similarity.scale=0.5" if graded and scaled else ""
        self._low = 0  # consecutive low readings
        self._warned = False

    def check(self, done: int, spread: float) -> None:
        """Checks a reading of `embedding_std`."""
        self._low = self._low + 1 if spread < _COLLAPSED * self._uniform else 0
        if self._low == _COLLAPSED_READINGS and not self._warned:
            self._warned = True
            metrics.log(
                f"warning: at step {done} the embeddings have nearly collapsed: their spread is "
                f"{spread:.2g} ({self._uniform:.2g} on the full sphere). Try a lower "
                f"optimizer.learning_rate or a longer schedule.warmup_epochs{self._more_advice}"
            )
