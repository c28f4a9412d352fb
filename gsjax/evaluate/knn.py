"""k-nearest-neighbour classification of representations, by exact search on the device."""

import ml_collections
import numpy as np

from gsjax.data import sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import evaluation, nearest
from gsjax.evaluate.features import Features
from gsjax.runtime import memory, metrics

_PRESETS = {
    "thesis": nearest.Protocol(201, 0.0),  # thesis 5.1: majority vote
    "instdisc": nearest.Protocol(200, 0.1),  # Wu et al. 2018, as in DINO's evaluation
}


def create_protocol(config: ml_collections.ConfigDict, bank_size: int) -> nearest.Protocol:
    """Reads the group `knn`; `bank_size` images are there to be neighbours."""
    protocol = _PRESETS[config.preset]
    if config.k:
        protocol = protocol._replace(k=config.k)
    if protocol.k > bank_size:
        raise UserError(_too_few(protocol.k, bank_size))
    return protocol


def _too_few(k: int, bank_size: int) -> str:
    return f"kNN asks for {k} neighbours among {bank_size} images; set knn.k to at most {bank_size}"


def _too_many(bank: np.ndarray, queries: np.ndarray) -> str:
    held = (queries.nbytes + bank[: nearest.BANK_CHUNK].nbytes) / 2**30
    return (
        f"the search among {len(bank)} pictures holds {held:.1f} GiB of features on the device, "
        f"with those of all {len(queries)} that ask; take a smaller test split or free the device "
        "of other programs"
    )


def accuracy(bank: Features, queries: Features, protocol: nearest.Protocol) -> dict[str, float]:
    """Returns `top1` and `top5` in percent, of queries [N] classified by a bank [M].

    `top5` counts queries whose class is among the five with most votes, and has any.

    Raises:
      UserError: fewer pictures in the bank than neighbours, or too little memory for the search.
    """
    if protocol.k > len(bank.label):
        raise UserError(_too_few(protocol.k, len(bank.label)))
    shown = metrics.Progress("nearest neighbours", len(bank.label), inner=True)
    with memory.told_out_of_memory(lambda: _too_many(bank.feature, queries.feature)):
        predicted = nearest.predict(
            bank.feature, bank.label, queries.feature, protocol, progress=shown.update
        )
    shown.close()
    hits = predicted == queries.label[:, None]
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(axis=1).mean())}


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The job `knn`: classifies the test split by its neighbours in the labelled split."""
    with evaluation.open_evaluation(config, workdir, "knn") as job:
        bank, queries = sources.open_labelled(config.data)
        protocol = create_protocol(config.knn, bank.num_examples)
        transform = transforms.central(config.data.image_size)
        rows = [job.features(source, transform) for source in (bank, queries)]
        known, asked = (part.decoded() for part in rows)
        scores = accuracy(known, asked, protocol)
        job.record(
            queries.dataset,
            {f"knn/{name}": value for name, value in scores.items()},
            protocol={
                **protocol._asdict(),
                "bank": bank.name,
                "queries": queries.name,
                "version": queries.version,
                "transform": repr(transform),
                "num_bank": len(known.label),
                "num_queries": len(asked.label),
                "num_left_out": sum(part.left_out for part in rows),
            },
        )
