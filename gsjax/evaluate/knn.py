"""k-nearest-neighbor classification of representations, by exact search on the device."""

import ml_collections
import numpy as np

from gsjax.data import sources, transforms
from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.evaluate import evaluation, nearest
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.evaluation import Result
from gsjax.evaluate.features import Features
from gsjax.runtime import memory, metrics

_PRESETS = {
    "thesis": nearest.Protocol(201, 0.0),  # thesis 5.1: majority vote
    "instdisc": nearest.Protocol(200, 0.1),  # Wu et al. 2018, as in DINO's evaluation
}


def create_protocol(config: ml_collections.ConfigDict, bank_size: int) -> nearest.Protocol:
    """Reads the settings `knn` for a bank of `bank_size` images."""
    protocol = _PRESETS[config.preset]
    if config.k:
        protocol = protocol._replace(k=config.k)
    if protocol.k > bank_size:
        raise UserError(_bank_too_small(protocol.k, bank_size))
    return protocol


def _bank_too_small(k: int, bank_size: int) -> str:
    return f"kNN needs {k} neighbors among {bank_size} images; set knn.k to at most {bank_size}"


def _search_too_large(bank: np.ndarray, queries: np.ndarray) -> str:
    size = (queries.nbytes + bank[: nearest.BANK_CHUNK].nbytes) / 2**30
    return (
        f"the search among {len(bank)} images keeps {size:.1f} GiB of features on the device, "
        f"including all {len(queries)} queries; use a smaller test split, or stop other programs "
        "on the device"
    )


def accuracy(bank: Features, queries: Features, protocol: nearest.Protocol) -> dict[str, float]:
    """Returns `top1` and `top5` in percent, of queries [N] classified by a bank [M].

    `top5` counts queries whose class is among the five with the most votes and has at least one.

    Raises:
      UserError: the bank is smaller than the number of neighbors, or the search runs out of memory.
    """
    if protocol.k > len(bank.label):
        raise UserError(_bank_too_small(protocol.k, len(bank.label)))
    search = metrics.Progress("nearest neighbors", len(bank.label), inner=True)
    with memory.explain_out_of_memory(lambda: _search_too_large(bank.feature, queries.feature)):
        predicted = nearest.predict(
            bank.feature, bank.label, queries.feature, protocol, progress=search.update
        )
    search.close()
    hits = predicted == queries.label[:, None]
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(axis=1).mean())}


class KNN:
    """Classifies the test split by its nearest neighbors in the labeled split; an `Evaluator`."""

    def __init__(self, config: ml_collections.ConfigDict, train: Source | None = None) -> None:
        """Opens the splits.

        Args:
          config: the whole configuration.
          train: the pre-training images if already open; reused as the bank if that is the same
            split.

        Raises:
          UserError: a split is missing or unlabeled, or smaller than the number of neighbors.
        """
        self.bank, self.queries = sources.open_labeled(config.data, train)
        self.protocol = create_protocol(config.knn, self.bank.num_examples)
        self._transform = transforms.of_config(config)

    def __call__(self, encoder: Encoder) -> list[Result]:
        """Measures `knn/top1` and `knn/top5`."""
        rows = [encoder.features(part, self._transform) for part in (self.bank, self.queries)]
        bank, queries = (part.decoded() for part in rows)
        scores = accuracy(bank, queries, self.protocol)
        return [
            Result(
                self.queries.dataset,
                {f"knn/{name}": value for name, value in scores.items()},
                {
                    **self.protocol._asdict(),
                    "bank": self.bank.name,
                    "queries": self.queries.name,
                    "version": self.queries.version,
                    "transform": repr(self._transform),
                    "num_bank": len(bank.label),
                    "num_queries": len(queries.label),
                    "num_left_out": sum(part.left_out for part in rows),
                },
            )
        ]


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `knn`: classifies the test split by its nearest neighbors in the labeled split."""
    with evaluation.open_evaluation(config, workdir, "knn") as job:
        job.record_all(KNN(config))
