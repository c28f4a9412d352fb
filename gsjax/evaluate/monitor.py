"""The kNN monitor of pre-training: raw pixels, the untrained and the trained encoder."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from gsjax.data.source import Source
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.knn import KNN
from gsjax.methods.base import Method
from gsjax.models.outputs import Outputs
from gsjax.runtime import metrics
from gsjax.train import step
from gsjax.train.state import TrainState


class Pixels(nn.Module):
    """Raw pixels, the baseline of every table."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Outputs:
        del train
        return Outputs(images.reshape(len(images), -1), images)


@dataclasses.dataclass(frozen=True)
class Monitor:
    """Measures the encoder of a training state by `KNN`.

    Attributes:
      evaluator: the kNN evaluator with its data.
      method: method of the training run.
      encoder: the encoder without its variables.
    """

    evaluator: KNN
    method: Method
    encoder: Encoder

    def measure(
        self, state: TrainState, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns `knn/top1` of the encoder, in percent; `check` may raise between batches."""
        variables = self.method.encoder_variables(state.params, state.extra)
        accuracy = self._top1(self.encoder.with_variables(variables, check))
        metrics.log(f"step {int(state.step)}: kNN accuracy {accuracy:.2f} %")
        return {"knn/top1": accuracy}

    def baselines(self, state: TrainState) -> dict[str, float]:
        """Returns the same plus `knn/pixels_top1`, of raw pixels."""
        accuracy = self._top1(
            dataclasses.replace(self.encoder, module=Pixels(), variables={}, label="kNN: pixels")
        )
        metrics.log(f"step 0: kNN accuracy of raw pixels {accuracy:.2f} %")
        return {"knn/pixels_top1": accuracy, **self.measure(state)}

    def report(self, workdir: epath.Path) -> None:
        """Prints the accuracies in the run's `metrics.jsonl`."""
        records = metrics.read_records(workdir)
        encoders = [r for r in records if "knn/top1" in r]
        rows = [("raw pixels", r["knn/pixels_top1"]) for r in records if "knn/pixels_top1" in r]
        rows += [("untrained encoder", r["knn/top1"]) for r in encoders if r["step"] == 0]
        rows += [("trained encoder", r["knn/top1"]) for r in encoders[-1:] if r["step"]]
        k, queries = self.evaluator.protocol.k, self.evaluator.queries.name
        metrics.log(f"kNN accuracy (k = {k}) on {queries}")
        for name, accuracy in rows:
            metrics.log(f"  {name:18} {accuracy:6.2f} %")

    def _top1(self, encoder: Encoder) -> float:
        (result,) = self.evaluator(encoder)
        return result.scores["knn/top1"]


def has_measured(workdir: epath.Path, step: int) -> bool:
    """Whether the run's `metrics.jsonl` holds the accuracy after `step` steps."""
    return any(
        record["step"] == step and "knn/top1" in record for record in metrics.read_records(workdir)
    )


def create_monitor(
    config: ml_collections.ConfigDict, train: Source, method: Method, mesh: Mesh
) -> Monitor | None:
    """Creates the monitor; without labeled data, says so and returns None.

    Args:
      config: the whole configuration.
      train: the training images, reused as the bank if that is the same split.
      method: method of the training run.
      mesh: the devices.

    Raises:
      UserError: a split is missing or unlabeled, or smaller than the number of neighbors.
    """
    if not config.data.labeled_split:
        metrics.log("monitor  none: data.labeled_split is empty")
        return None
    encoder = Encoder(
        method.networks["encoder"],
        {},
        step.pixels(config),
        mesh,
        config.encoder.to_dict(),
        config.features.batch_size,
        label="kNN: features",
    )
    return Monitor(KNN(config, train), method, encoder)
