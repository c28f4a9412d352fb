"""The job `search`: similar images, and near duplicates, among images that `embed` has encoded."""

import contextlib
import csv
import functools
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from gsjax.data import folders, input_pipeline, transforms
from gsjax.data.paths import is_folder
from gsjax.data.source import Source, from_files
from gsjax.errors import UserError
from gsjax.evaluate import contact_sheet, duplicates, embed, evaluation, features, nearest, store
from gsjax.evaluate.contact_sheet import Cell, Row
from gsjax.evaluate.embeddings import Embeddings
from gsjax.evaluate.encoder import Encoder
from gsjax.evaluate.features import Features
from gsjax.runtime import files, metrics

_PRINTED = 5  # queries or groups on the terminal
_PRINTED_EACH = 3  # images of each
_QUERIES = 16384  # sought at a time
_MOST_SHOWN = 50  # pictures of a group


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes `neighbors` and `duplicates`, each as .csv and .html, to `workdir/search/<name>/`."""
    if jax.process_count() > 1:
        raise UserError("the job search runs in a single process")
    settings, folder = config.search, files.absolute(workdir)
    if not settings.queries and not settings.duplicates_above:
        raise UserError(
            "set search.queries to images, or search.duplicates_above to a similarity such as 0.95"
        )
    saved = _open(folder, settings.embeddings)
    files.check_writable(folder / "search")
    sheet = Sheet(config, saved, folder / "search" / saved.folder.name)
    if settings.queries:
        with evaluation.open_evaluation(config, workdir, "search") as job:
            _check_encoder(saved, job.encoder, config)
            source = _queries(settings.queries)
            rows = _embed(config, job.encoder, source, saved.about["identity"]["flip"])
        _find_neighbors(saved, sheet, source, rows, settings.neighbors)
    if settings.duplicates_above:
        _find_duplicates(saved, sheet, settings.duplicates_above)


def _open(workdir: epath.Path, name: str) -> Embeddings:
    """Opens the embeddings of a name, or the only ones."""
    folder = workdir / embed.FOLDER
    if name:
        return Embeddings(folder / name)
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
    )
    if not found:
        raise UserError(f"{files.shown(folder)} holds no embeddings: run the job embed first")
    if len(found) > 1:
        raise UserError(f"set search.embeddings to one of {', '.join(map(files.shown, found))}")
    return Embeddings(folder / found[0])


def _check_encoder(saved: Embeddings, encoder: Encoder, config: ml_collections.ConfigDict) -> None:
    ours = {
        "encoder": encoder.digest,
        "normalization": [list(part) for part in encoder.normalization[:2]],
        "transform": repr(transforms.of_config(config)),
    }
    theirs = saved.about["identity"]
    different = [name for name, value in ours.items() if theirs[name] != value]
    if different:
        raise UserError(
            f"{files.shown(saved.folder)} was written with another {different[0]}: rerun the job "
            "embed, or choose that encoder by checkpoint.load"
        )


def _queries(text: str) -> Source:
    """The images that `search.queries` names: files and folders."""
    paths: list[str] = []
    for path in filter(None, text.split(",")):
        path = os.path.expanduser(path)
        if is_folder(path):
            names = folders.list_images(path).names
            if not names:
                raise UserError(f"search.queries: {files.shown(path)} contains no images")
            paths += [os.path.join(path, name) for name in names]
        elif os.path.exists(path):
            paths.append(path)
        else:
            raise UserError(f"search.queries: there is no file or folder {files.shown(path)}")
    return from_files("search.queries", "queries", paths)


def _embed(
    config: ml_collections.ConfigDict, encoder: Encoder, source: Source, flip: bool
) -> Features:
    rows = features.extract(
        embed.create_embed_fn(encoder, flip),
        encoder.variables,
        source,
        transforms.of_config(config),
        min(config.features.batch_size, source.num_examples),
        encoder.mesh,
        "embedding queries",
    )
    return features.report(source, rows).decoded()


def _find_neighbors(
    saved: Embeddings, sheet: "Sheet", source: Source, rows: Features, count: int
) -> None:
    cosines, index = _search(saved, rows.feature.astype(np.float32), min(count, saved.num_valid))
    facts = saved.at(index.reshape(-1), "path", "label")
    paths = facts["path"].reshape(index.shape)
    labels = facts["label"].reshape(*index.shape, *facts["label"].shape[1:])
    queries = [files.shown(source.paths[i]) for i in rows.indices]
    table: list[Sequence[Any]] = [("query", "rank", "similarity", "index", "path", "label")]
    for place in np.ndindex(index.shape):
        query, rank = place
        label = " ".join(map(str, np.atleast_1d(labels[place])))
        row = (f"{cosines[place]:.4f}", index[place], paths[place], label)
        table.append((queries[query], rank + 1, *row))
    sheet.write_table("neighbors", table)

    captions = [_captions(*row) for row in zip(cosines, index, paths, strict=True)]
    for query, own in list(zip(queries, captions, strict=True))[:_PRINTED]:
        metrics.log(f"  {_short(query)}: {'  '.join(own[:_PRINTED_EACH])}")

    def picture_rows() -> Iterator[Row]:
        for query, name in enumerate(queries):
            own = sheet.cells(source, [rows.indices[query]], ["query"])
            yield Row(name, own + sheet.cells(sheet.source, index[query], captions[query]))

    sheet.write_pictures("neighbors", "Nearest neighbors", "queries", len(queries), picture_rows())


def _search(saved: Embeddings, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and indices [N, k] of the k images nearest to each query [N, F]."""
    found = []
    parts = [queries[i : i + _QUERIES] for i in range(0, len(queries), _QUERIES)]
    progress = metrics.Progress("search", len(parts) * saved.num_valid, inner=True)
    with contextlib.closing(progress):
        for number, part in enumerate(parts):
            before = number * saved.num_valid
            report = functools.partial(_report, progress, before)
            found.append(nearest.find_in_parts(saved.chunks(), part, k, report))
    cosines, index = (np.concatenate(column) for column in zip(*found, strict=True))
    return cosines, index


def _report(progress: metrics.Progress, before: int, done: int) -> None:
    progress.update(before + done)


def _find_duplicates(saved: Embeddings, sheet: "Sheet", above: float) -> None:
    count = saved.num_valid
    progress = metrics.Progress("duplicates", count * (count - 1) // 2, inner=True)

    def read(first: int) -> Iterator[np.ndarray]:
        return (rows.embedding for rows in saved.chunks(duplicates.BLOCK, first))

    with contextlib.closing(progress):
        groups = duplicates.find_groups(
            read, count, saved.num_features, above, progress=progress.update
        )
    valid = np.concatenate(
        [columns["index"][columns["valid"]] for columns in saved.columns("index", "valid")]
    )
    table: list[Sequence[Any]] = [("group", "index", "path", "similarity", "first")]
    members = [valid[places] for places in groups.members]
    ends = np.cumsum([len(index) for index in members])[:-1]
    paths = np.split(saved.at(np.concatenate(members), "path")["path"], ends) if members else []
    for number, index in enumerate(members):
        for place, image in enumerate(index):
            similarity = f"{groups.similarity[number][place]:.4f}"
            table.append((number + 1, image, paths[number][place], similarity, int(place == 0)))
    sheet.write_table("duplicates", table)
    images = sum(map(len, members))
    metrics.log(
        f"{images} of {count} images are near duplicates (similarity above {above:g}), in "
        f"{len(members)} groups: {images - len(members)} could be left out"
    )

    captions = [_captions(*row) for row in zip(groups.similarity, members, paths, strict=True)]
    for number, own in enumerate(captions[:_PRINTED], 1):
        metrics.log(f"  group {number}: {'  '.join(own[:_PRINTED_EACH])}")

    def picture_rows() -> Iterator[Row]:
        for number, index in enumerate(members):
            shown = index[:_MOST_SHOWN]
            title = f"Group {number + 1}: {len(index)} images"
            yield Row(title, sheet.cells(sheet.source, shown, captions[number]))

    sheet.write_pictures("duplicates", "Near duplicates", "groups", len(members), picture_rows())


def _captions(cosines: Iterable, index: Iterable, paths: Iterable) -> list[str]:
    """Similarity and name of each image of a row."""
    each = zip(cosines, index, paths, strict=True)
    return [f"{cosine:.3f} {_short(path, number)}" for cosine, number, path in each]


def _short(path: str, index: int | None = None) -> str:
    """The name of an image for a caption: that of its file, or else its number."""
    return os.path.basename(path) if path else f"image {index}"


class Sheet:
    """Writes tables and contact sheets of some embeddings.

    Attributes:
      source: the images that were embedded; None if they have changed since.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, saved: Embeddings, folder: epath.Path
    ) -> None:
        self._folder, self._most = folder, config.search.pictures
        self._dataset = saved.about["dataset"]
        self.source: Source | None = None
        if not self._most:
            return
        try:
            source = embed.open_images(config, ml_collections.ConfigDict(saved.about["images"]))
        except UserError as error:
            metrics.log(f"no pictures: {error}")
            return
        if store.files_digest(source) == saved.about["identity"]["files"]:
            self.source = source
        else:
            metrics.log(f"no pictures: {source.name} has changed since it was embedded")

    def write_table(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Writes `<name>.csv`, the first row being the header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        file = self._folder / f"{name}.csv"
        with files.write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(file, text.getvalue())
        metrics.log(f"written to {files.shown(file)}")

    def cells(
        self, source: Source | None, index: Sequence[int] | np.ndarray, captions: Sequence[str]
    ) -> list[Cell]:
        """Loads the pictures of images; a caption for each."""
        assert source is not None  # or no picture is drawn
        images = input_pipeline.load_images(source, [int(number) for number in index])
        return [Cell(image, caption) for image, caption in zip(images, captions, strict=False)]

    def write_pictures(
        self, name: str, title: str, what: str, total: int, rows: Iterator[Row]
    ) -> None:
        """Writes `<name>.html` with the first rows of the total, if the pictures are known."""
        file = self._folder / f"{name}.html"
        if self.source is None or not total:
            with files.write_errors(file):
                file.unlink(missing_ok=True)  # of an earlier search
            return
        shown = min(total, self._most)
        note = f"{self._dataset}, cosine similarity; {shown} of {total} {what}"
        contact_sheet.write(file, title, note, list(itertools.islice(rows, shown)))
        metrics.log(f"pictures in {files.shown(file)}")
