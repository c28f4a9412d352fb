"""Reads what trackers have written to a work directory, with nothing of `gsjax.trackers`."""

import json
import math
import struct

from mlflow import MlflowClient
from wandb.proto import wandb_internal_pb2


def of_metrics(workdir):
    """(step, metric, value) of everything in `metrics.jsonl`, sorted; NaN is None."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return sorted_scalars(
        (row["step"], name, value) for row in rows for name, value in row.items() if name != "step"
    )


def sorted_scalars(scalars):
    return sorted(scalars, key=lambda scalar: scalar[:2])


def _plain(value):
    return None if math.isnan(value) else value


class Mlflow:
    """The one run of a folder.

    Attributes:
      id: MLflow's ID.
      tag: that of `tracker.json`.
      scalars: (step, metric, value), sorted.
      config: the parameters, all strings.
      pictures: names.
      status: as MLflow calls it.
    """

    def __init__(self, workdir):
        client = MlflowClient(str(workdir / "mlruns"))
        experiment = client.get_experiment_by_name("gsjax")
        (run,) = client.search_runs([experiment.experiment_id])
        self.id, self.config, self.status = run.info.run_id, run.data.params, run.info.status
        self.name, self.tag = run.info.run_name, run.data.tags["gsjax.id"]
        self.scalars = sorted_scalars(
            (metric.step, name, _plain(metric.value))
            for name in run.data.metrics
            for metric in client.get_metric_history(self.id, name)
        )
        self.pictures = [
            file.path.removesuffix(".png")
            for file in client.list_artifacts(self.id)
            if file.path.endswith(".png")
        ]


class Wandb:
    """All offline runs of a folder, from their transaction logs; attributes as above."""

    def __init__(self, workdir):
        self.scalars, self.pictures, self.config, ids = [], [], {}, set()
        for file in workdir.glob("wandb/offline-run-*/run-*.wandb"):
            for record in _records(file.read_bytes()):
                kind = record.WhichOneof("record_type")
                if kind == "run":
                    ids.add(record.run.run_id)
                    self.name = record.run.display_name
                elif kind == "config":
                    self.config |= {
                        item.key or ".".join(item.nested_key): json.loads(item.value_json)
                        for item in record.config.update
                    }
                elif kind == "history":
                    self._add(record.history)
                elif kind == "exit":
                    self.status = record.exit.exit_code
        (self.id,) = ids
        self.scalars = sorted_scalars(self.scalars)

    def _add(self, history):
        row = {tuple(item.nested_key) or (item.key,): item.value_json for item in history.item}
        step = json.loads(row.pop(("step",)))
        for (name, *part), text in row.items():
            if part == ["_type"]:
                assert json.loads(text) == "image-file"
                self.pictures.append(name)
            elif not part and not name.startswith("_"):
                value = json.loads(text)
                self.scalars.append((step, name, None if value == "NaN" else _plain(value)))


def _records(content):
    """The protobuf records of a transaction log, in the format of LevelDB's logs."""
    assert content[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of the block
            at += 2**15 - at % 2**15


READERS = {"mlflow": Mlflow, "wandb": Wandb}
