"""The job `embed`: representations of images, in Parquet files or in an .npz file."""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import pyarrow as pa
from etils import epath

import gsjax
from gsjax.data import input_pipeline, sources, transforms
from gsjax.data.source import Source
from gsjax.data.transforms import Transform
from gsjax.errors import UserError
from gsjax.evaluate import embeddings, evaluation, features, store, write_embeddings
from gsjax.evaluate.embeddings import Embeddings, Layout
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.features import EncodeFn, Features
from gsjax.runtime import files, lock, memory, metrics, parallel

_LONGEST = 50  # characters of a file name: up to 200 of the 255 bytes that file systems allow
FOLDER = "embeddings"


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes `workdir/embeddings/<name>/` (see `gsjax.evaluate.embeddings`), or `<name>.npz`.

    Each host encodes whole parts on its own devices. A part is complete or absent, so the same
    command resumes after an interruption and writes the same bytes.
    """
    settings = config.embed
    with evaluation.open_evaluation(config, workdir, "embed") as job:
        source = open_images(config, settings)
        features.check_hosts(source)
        split = settings.split or ("" if settings.source else config.data.split)
        name = settings.name or _name(source.dataset, split)
        folder = job.workdir / FOLDER / name
        with lock.held(folder.parent, name):
            _write(config, job.encoder, source, folder)
            if settings.format == "npz":
                parallel.from_primary(lambda: _convert(folder))


def open_images(config: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> Source:
    """Opens the images that `embed.source` and its companions name, or those of pre-training.

    Args:
      config: the whole configuration.
      settings: `config.embed`, or these three entries of it.
    """
    data = config.data.copy_and_resolve_references()
    split, labeled = settings.split, False
    with data.unlocked():
        if settings.source:
            data.source, data.data_dir = settings.source, settings.data_dir
        else:
            split = split or data.split
            labeled = split in (data.labeled_split, data.test_split) and split != data.split
    return sources.open_source(data, split, labeled)


def create_embed_fn(encoder: Encoder, flip: bool) -> EncodeFn:
    """Returns (variables, images uint8 [B, H, W, 3]) -> representations [B, F].

    With `flip`, they are the mean of those of the image and of its mirror image, so that both
    images have the same.
    """
    if not flip:
        return encoder.encode_fn

    def encode(variables: Any, images: jax.Array) -> jax.Array:
        mirrored = images[:, :, ::-1]
        return (encoder.encode_fn(variables, images) + encoder.encode_fn(variables, mirrored)) / 2

    return encode


def _write(
    config: ml_collections.ConfigDict, encoder: Encoder, source: Source, folder: epath.Path
) -> None:
    """Writes the parts that are missing, each host its share, and marks the whole complete."""
    settings, transform = config.embed, transforms.of_config(config)
    hosts = jax.process_count()
    batch_size = _batch_size(config.features.batch_size, hosts)
    layout = Layout(source.num_examples, -(-settings.rows_per_file // batch_size) * batch_size)
    identity = _identity(encoder, source, transform, settings, layout.part_rows)

    def claim() -> list[int]:
        if write_embeddings.claim(folder, identity):
            metrics.log(f"replacing the embeddings in {files.shown(folder)}")
        return embeddings.missing_parts(folder, layout)

    missing = parallel.from_primary(claim)
    if missing and len(missing) < layout.num_parts:
        done = layout.num_parts - len(missing)
        metrics.log(f"resuming: {done} of {layout.num_parts} files are complete")
    own = missing[jax.process_index() :: hosts]
    if own:
        encoder = _on_this_host(encoder)
        rows = _Rows(encoder, source, transform, layout, own, batch_size, settings.flip)
        with contextlib.closing(rows):
            for part in own:
                with write_embeddings.part_writer(folder, part) as write:
                    for block in rows.blocks(part, np.dtype(settings.dtype)):
                        write(block)
    parallel.sync_hosts("embed")
    parallel.from_primary(lambda: _finish(folder, source, settings, layout, bool(missing)))


def _batch_size(wanted: int, hosts: int) -> int:
    """Images that a host encodes at a time: its share, rounded up to fill its devices evenly."""
    devices = jax.local_device_count()
    return math.ceil(wanted / hosts / devices) * devices


def _identity(
    encoder: Encoder,
    source: Source,
    transform: Transform,
    settings: ml_collections.ConfigDict,
    part_rows: int,
) -> dict[str, Any]:
    """Everything that the rows depend on, as JSON reads it back."""
    identity = {
        "gsjax": gsjax.__version__,
        "encoder": encoder.digest,
        "model": dict(encoder.settings),
        "normalization": encoder.normalization[:2],
        "transform": repr(transform),
        "flip": settings.flip,
        "dtype": settings.dtype,
        "source": source.name,
        "labeled": source.labeled,
        "files": store.files_digest(source),
        "part_rows": part_rows,
    }
    return json.loads(json.dumps(identity))


def _on_this_host(encoder: Encoder) -> Encoder:
    """Returns the encoder on this host's devices alone."""
    if jax.process_count() == 1:
        return encoder
    mesh = parallel.create_mesh(jax.local_device_count(), jax.local_devices())
    values = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), encoder.variables)
    variables = jax.device_put(values, parallel.replicated(mesh))
    return dataclasses.replace(encoder, mesh=mesh, variables=variables)


class _Rows:
    """Encodes the images of some parts, in order.

    Every part but the last consists of whole batches, so which images share a batch does not depend
    on where an earlier run was interrupted.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: Source,
        transform: Transform,
        layout: Layout,
        parts: list[int],
        batch_size: int,
        flip: bool,
    ) -> None:
        self._source, self._layout, self._batch_size = source, layout, batch_size
        self._encoder, self._encode_fn = encoder, create_embed_fn(encoder, flip)
        wanted = np.concatenate([layout.rows_of(part) for part in parts])
        self._batches = input_pipeline.test_batches(source, transform, batch_size, indices=wanted)
        self._progress = metrics.Progress(f"embedding {source.dataset}", len(wanted))
        self._done = 0

    def close(self) -> None:
        """Ends the pipeline and the progress line."""
        self._batches.close()
        self._progress.close()

    def blocks(self, part: int, dtype: np.dtype) -> Iterator[pa.RecordBatch]:
        """Yields the rows of the next part in row groups; see `write_embeddings.to_block`."""
        indices = self._layout.rows_of(part)
        waiting: list[Features] = []
        for begin in range(0, len(indices), self._batch_size):
            waiting.append(self._batch(indices[begin : begin + self._batch_size]))
            if sum(len(rows.indices) for rows in waiting) >= embeddings.GROUP_ROWS:
                yield self._block(waiting, dtype)
                waiting = []
        if waiting:
            yield self._block(waiting, dtype)

    def _batch(self, indices: np.ndarray) -> Features:
        """Encodes the next batch, which is that of these indices."""
        batch = next(self._batches)
        variables, mesh = self._encoder.variables, self._encoder.mesh
        with memory.explain_out_of_memory(
            lambda: features.memory_advice(self._batch_size, mesh.size)
        ):
            images = parallel.shard(batch["image"], mesh)
            encoded = features.local_rows(self._encode_fn(variables, images))
        found = batch["index"] >= 0
        place = np.searchsorted(indices, batch["index"][found])
        rows = Features(
            np.zeros((len(indices), encoded.shape[1]), encoded.dtype),
            np.full((len(indices), *batch["label"].shape[1:]), -1, np.int32),
            indices,
            np.zeros(len(indices), bool),
        )
        rows.feature[place] = encoded[found]
        rows.label[place] = batch["label"][found]
        rows.valid[place] = True
        self._done += len(indices)
        self._progress.update(self._done)
        return rows

    def _block(self, parts: list[Features], dtype: np.dtype) -> pa.RecordBatch:
        rows = Features(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        with np.errstate(over="ignore"):
            narrow = rows.feature.astype(dtype)
        if not np.isfinite(rows.feature).all():
            raise UserError(
                f"embeddings of {self._source.name} are not finite: the encoder is broken"
            )
        if not np.isfinite(narrow).all():
            raise UserError("embed.dtype=float16 cannot hold these embeddings; use float32")
        paths = self._source.paths
        names = [paths[i] for i in rows.indices] if paths else [""] * len(rows.indices)
        return write_embeddings.to_block(rows._replace(feature=narrow), names, dtype)


def _finish(
    folder: epath.Path,
    source: Source,
    settings: ml_collections.ConfigDict,
    layout: Layout,
    is_new: bool,
) -> None:
    """Marks the embeddings as complete; reports them and the damaged images."""
    images = {name: settings[name] for name in ("source", "data_dir", "split")}
    if images["data_dir"]:
        images["data_dir"] = str(files.absolute(images["data_dir"]))
    damaged: list[int] = []
    for part in range(layout.num_parts):
        columns = embeddings.columns_of(embeddings.part_file(folder, part), "index", "valid")
        damaged += columns["index"][~columns["valid"]].tolist()
    facts = {
        "images": images,
        "dataset": source.dataset,
        "num_rows": layout.num_rows,
        "num_features": embeddings.num_features(embeddings.part_file(folder, 0)),
        "num_damaged": len(damaged),
    }
    if len(damaged) == layout.num_rows:
        raise UserError(f"{source.name}: none of the images can be decoded")
    write_embeddings.complete(folder, facts, map(source.image_name, damaged))
    if damaged:
        metrics.log(
            f"damaged  {len(damaged)} of {layout.num_rows} images cannot be decoded: "
            f"{features.some_names(source, damaged)}; {embeddings.DAMAGED} lists them"
        )
    done = "wrote" if is_new else "nothing to do: there are"
    metrics.log(
        f"{done} {layout.num_rows} x {facts['num_features']} embeddings in {files.shown(folder)}"
    )


def _convert(folder: epath.Path) -> None:
    """Replaces the folder by one .npz file with the same columns."""
    saved = Embeddings(folder)
    parts = list(saved.columns("embedding", "label", "index", "path", "valid"))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["path"] = arrays["path"].astype(str)
    path = folder.with_name(f"{folder.name}.npz")
    with files.write_errors(path):
        store.write_npz(path, arrays)
        folder.rmtree()
    metrics.log(f"wrote them to {files.shown(path)} instead")


def _name(dataset: str, split: str) -> str:
    """A folder name for the embeddings of a split: letters and digits, of limited length."""
    whole = f"{dataset}_{split}"
    name = re.sub(r"\W+", "_", whole).strip("_") or "images"
    if len(name) > _LONGEST:
        digest = hashlib.sha256(whole.encode(errors="backslashreplace")).hexdigest()
        name = f"{name[:_LONGEST]}_{digest[:12]}"
    return name
