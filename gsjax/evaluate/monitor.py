"""The kNN monitor of pre-training: raw pixels, the untrained and the trained encoder."""

import dataclasses
import functools
import json
import math
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from gsjax import metrics, step
from gsjax.data import input_pipeline, sources
from gsjax.errors import UserError
from gsjax.evaluate import features, knn


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
    protocol: knn.Protocol
    encoder: nn.Module
    mesh: Mesh

    def measure(self, state: step.TrainState) -> dict[str, float]:
        """Returns `knn/top1` of the encoder, in percent."""
        variables = {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        }
        accuracy = self._accuracy("kNN", self._encode_fn, variables)
        metrics.say(f"step {int(state.step)}: kNN accuracy {accuracy:.2f} %")
        return {"knn/top1": accuracy}

    def baselines(self, state: step.TrainState) -> dict[str, float]:
        """Returns the same and `knn/pixels_top1`, of raw pixels."""
        pixels_fn = features.create_pixels_fn(*self._pixels, self.mesh)
        accuracy = self._accuracy("kNN of pixels", pixels_fn, {})
        metrics.say(f"step 0: kNN accuracy of raw pixels {accuracy:.2f} %")
        return {"knn/pixels_top1": accuracy, **self.measure(state)}

    def report(self, workdir: epath.Path) -> None:
        """Prints the accuracies that the run's `metrics.jsonl` holds."""
        records = [json.loads(line) for line in metrics.read_lines(workdir)]
        encoders = [r for r in records if "knn/top1" in r]
        rows = [("raw pixels", r["knn/pixels_top1"]) for r in records if "knn/pixels_top1" in r]
        rows += [("untrained encoder", r["knn/top1"]) for r in encoders if r["step"] == 0]
        rows += [("trained encoder", r["knn/top1"]) for r in encoders[-1:] if r["step"]]
        metrics.say(f"kNN accuracy (k = {self.protocol.k}) on {self.queries.name}")
        for name, accuracy in rows:
            metrics.say(f"  {name:18} {accuracy:6.2f} %")

    @functools.cached_property
    def _pixels(self) -> tuple[tuple, tuple, Any]:
        return *step.normalisation(self.config), step.image_dtype(self.config)

    @functools.cached_property
    def _encode_fn(self) -> features.EncodeFn:
        return features.create_encode_fn(self.encoder, *self._pixels, self.mesh)

    def _accuracy(self, label: str, encode_fn: features.EncodeFn, variables: Any) -> float:
        bank, bank_labels = self._extract(f"{label}: bank", self.bank, encode_fn, variables)
        queries, labels = self._extract(f"{label}: queries", self.queries, encode_fn, variables)
        predicted = knn.knn_predict(bank, bank_labels, queries, self.protocol)
        return 100 * float(np.mean(predicted == labels))

    def _extract(self, label, source, encode_fn, variables):
        devices = self.mesh.devices.size
        batch_size = math.ceil(self.config.knn.batch_size / devices) * devices
        batches = input_pipeline.test_batches(
            source,
            self.config.data.image_size,
            batch_size,
            jax.process_index(),
            jax.process_count(),
        )
        progress = metrics.Progress(label, math.ceil(source.num_examples / batch_size), inner=True)
        rows = features.extract(encode_fn, variables, batches, self.mesh, progress.update)
        progress.close()
        return rows


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
    if data.labelled_split == data.split and data.source != "folder":
        bank = sources.require_labels(train)
    else:
        bank = sources.open_source(data, data.labelled_split, labelled=True)
    queries = sources.open_source(data, data.test_split, labelled=True)
    if bank.class_names != queries.class_names:
        raise UserError(
            f"{bank.name} and {queries.name} have different classes: the kNN monitor compares them"
        )
    protocol = knn.create_protocol(config.knn, bank.num_examples)
    return Monitor(config, bank, queries, protocol, encoder, mesh)
