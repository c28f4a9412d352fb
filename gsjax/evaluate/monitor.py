"""The kNN monitor of pre-training: raw pixels, the untrained and the trained encoder."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import ml_collections
from etils import epath
from jax.sharding import Mesh

from gsjax.data import sources, transforms
from gsjax.evaluate import features, knn, nearest
from gsjax.runtime import metrics
from gsjax.train import step


@dataclasses.dataclass(frozen=True)
class Monitor:
    """Classifies the test split by its nearest neighbours in the labelled split.

    Attributes:
      config: the whole configuration.
      bank: labelled images.
      queries: test images.
      protocol: neighbours and weights.
      encoder: the module to measure.
      mesh: the devices.
    """

    config: ml_collections.ConfigDict
    bank: sources.Source
    queries: sources.Source
    protocol: nearest.Protocol
    encoder: nn.Module
    mesh: Mesh

    def measure(
        self, state: step.TrainState, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns `knn/top1` of the encoder, in percent; `check` may raise between batches."""
        accuracy = self._accuracy("kNN", self._encode_fn, step.encoder_variables(state), check)
        metrics.say(f"step {int(state.step)}: kNN accuracy {accuracy:.2f} %")
        return {"knn/top1": accuracy}

    def baselines(self, state: step.TrainState) -> dict[str, float]:
        """Returns the same and `knn/pixels_top1`, of raw pixels."""
        pixels_fn = features.create_pixels_fn(*step.pixels(self.config), self.mesh)
        accuracy = self._accuracy("kNN of pixels", pixels_fn, {})
        metrics.say(f"step 0: kNN accuracy of raw pixels {accuracy:.2f} %")
        return {"knn/pixels_top1": accuracy, **self.measure(state)}

    def report(self, workdir: epath.Path) -> None:
        """Prints the accuracies that the run's `metrics.jsonl` holds."""
        records = metrics.read_records(workdir)
        encoders = [r for r in records if "knn/top1" in r]
        rows = [("raw pixels", r["knn/pixels_top1"]) for r in records if "knn/pixels_top1" in r]
        rows += [("untrained encoder", r["knn/top1"]) for r in encoders if r["step"] == 0]
        rows += [("trained encoder", r["knn/top1"]) for r in encoders[-1:] if r["step"]]
        metrics.say(f"kNN accuracy (k = {self.protocol.k}) on {self.queries.name}")
        for name, accuracy in rows:
            metrics.say(f"  {name:18} {accuracy:6.2f} %")

    @functools.cached_property
    def _encode_fn(self) -> features.EncodeFn:
        return features.create_encode_fn(self.encoder, *step.pixels(self.config), self.mesh)

    def _accuracy(
        self,
        label: str,
        encode_fn: features.EncodeFn,
        variables: Any,
        check: Callable[[], None] = lambda: None,
    ) -> float:
        bank, queries = (
            features.report(
                source,
                features.extract(
                    encode_fn,
                    variables,
                    source,
                    transforms.central(self.config.data.image_size),
                    self.config.features.batch_size,
                    self.mesh,
                    f"{label}: {part}",
                    check=check,
                ),
            ).decoded()
            for part, source in (("bank", self.bank), ("queries", self.queries))
        )
        return knn.accuracy(bank, queries, self.protocol)["top1"]


def has_measured(workdir: epath.Path, step: int) -> bool:
    """Whether the run's `metrics.jsonl` holds the accuracy after `step` steps."""
    return any(
        record["step"] == step and "knn/top1" in record for record in metrics.read_records(workdir)
    )


def create_monitor(
    config: ml_collections.ConfigDict, train: sources.Source, encoder: nn.Module, mesh: Mesh
) -> Monitor | None:
    """Opens the labelled data; says in one line when there are none, and returns None.

    Args:
      config: the whole configuration.
      train: the training images, which serve as the bank where it is the same split.
      encoder: the module to measure.
      mesh: the devices.

    Raises:
      UserError: a split is missing or unlabelled, or smaller than the number of neighbours.
    """
    data = config.data
    if not data.labelled_split:
        metrics.say("monitor  none: data.labelled_split is empty, there are no labels to measure")
        return None
    bank, queries = sources.open_labelled(data, train)
    protocol = knn.create_protocol(config.knn, bank.num_examples)
    return Monitor(config, bank, queries, protocol, encoder, mesh)
