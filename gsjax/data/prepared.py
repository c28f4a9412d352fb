"""Opens TFDS data sets, preparing them if necessary."""

from gsjax.runtime.tensorflow_setup import tf  # before TFDS, which imports TensorFlow

# isort: split
import dataclasses
import difflib
import functools
import os
import shlex
from collections.abc import Sequence

import jax
import ml_collections
import tensorflow_datasets as tfds

from gsjax.data import SOURCES
from gsjax.data.columns import Columns, choose
from gsjax.data.file_names import reader
from gsjax.data.paths import exists, is_remote, is_utf8, names_in, version_folder
from gsjax.data.shards import (
    Shard,
    explain_read_errors,
    from_instructions,
    gigabytes,
    in_order,
    size,
    unusable,
)
from gsjax.data.source import Source, in_memory
from gsjax.errors import UserError
from gsjax.runtime.files import shown

_RETRIES = 7  # of TFDS downloads; offline, these take 25 s, its default of 10 takes 3.5 minutes

# Archives that TFDS cannot download: ImageNet requires a login, Stanford Cars' host is gone.
_MANUAL_ARCHIVES = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "cars196": (
        "cars_train.tgz",
        "cars_test.tgz",
        "car_devkit.tgz",
        "cars_test_annos_withlabels.mat",
    ),
}

_class_of_feature = tfds.features.FeatureConnector.cls_from_name


def _class_of_tfds(name: str) -> type:
    """Returns a class named in a data set's files; TFDS would import, so run, any module."""
    if not name.startswith("tensorflow_datasets."):
        raise ValueError(f"its features use {name}, which is not part of TFDS and is not run")
    return _class_of_feature(name)


# setattr, because mypy rejects assignment to a method.
setattr(tfds.features.FeatureConnector, "cls_from_name", staticmethod(_class_of_tfds))  # noqa: B010


def open_tfds(data: ml_collections.ConfigDict, split: str, labeled: bool) -> Source:
    """Opens a split of a TFDS data set; see `gsjax.data.sources.open_source`."""
    builder = prepared_builder(data)
    name = f"{data.source}, split {split!r}"
    try:
        parts = from_instructions(builder.info.splits[split].file_instructions)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{data.source} has no split {split!r}; it has {', '.join(builder.info.splits)}"
        ) from error
    if not parts:
        splits = ", ".join(
            f"{key} ({value.num_examples})" for key, value in builder.info.splits.items()
        )
        raise UserError(f"{name} selects no images: {data.source} has {splits}")
    columns = choose(data.source, builder.info, labeled)
    class_names = columns.class_names
    label_shape = (len(class_names),) if columns.several and class_names else ()
    parse = functools.partial(_parse, columns, label_shape)
    version = builder.info.full_name

    def files() -> list[tuple[str, int, float]]:
        return [(path, size(path), 0.0) for path in dict.fromkeys(part.path for part in parts)]

    make = functools.partial(
        Source,
        name=name,
        dataset=data.source,
        num_examples=sum(part.take for part in parts),
        version=version,
        class_names=class_names,
        labeled=labeled,
        files=files,
        label_shape=label_shape,
        no_labels=columns.no_labels,
    )
    file_format = builder.info.file_format
    if file_format == tfds.core.FileFormat.ARRAY_RECORD:
        _check_encodable(data.source, parts)
        records = builder.as_data_source(split=split).data_source  # the raw records
        _check_files(records, parts)

        def fetch(index: int) -> bytes:
            return records[int(index)]

        def raw(index: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(fetch, [index], tf.string), [])

        names = reader(columns.file_name, lambda: tf.data.Dataset.range(len(records)).map(raw))
        return make(labels=None, read=lambda index: parse(raw(index)), file_names=names)
    if file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"{data.source} is prepared as {file_format.value}: "
            "prepare it as tfrecord or array_record (tfds build --file_format=array_record)"
        )
    if gigabytes(parts) > data.memory_gb:
        return make(labels=None, read=parse, shards=parts)
    with explain_read_errors(parts):
        batches = [parse(batch) for _, batch in in_order(parts).batch(1024)]
    pictures, labels = zip(*batches, strict=True)
    source = in_memory(
        name,
        data.source,
        version,
        tf.concat(pictures, axis=0),
        tf.concat(labels, axis=0).numpy(),
        class_names,
        labeled,
        files,
    )
    names = reader(columns.file_name, lambda: in_order(parts).map(lambda _, record: record))
    return dataclasses.replace(source, no_labels=columns.no_labels, file_names=names)


def splits(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns the splits of a TFDS data set; see `gsjax.data.sources.tfds_splits`."""
    return tuple(prepared_builder(data).info.splits)


def _check_files(records: Sequence, parts: Sequence[Shard]) -> None:
    """Reads the first record of each array_record file.

    Raises:
      UserError: a file is missing or damaged; later this would look like damaged images.
    """
    for part in parts:
        try:
            records[part.first]
        except Exception as error:  # damaged bytes make the reader raise almost anything
            raise unusable(part.path, f"{type(error).__name__}: {error}") from error


def _check_encodable(source: str, parts: Sequence[Shard]) -> None:
    """Raises UserError if a path is not UTF-8, as array_record requires."""
    for part in parts:
        if not is_utf8(part.path):
            raise UserError(
                f"{shown(part.path)} cannot be read as array_record because its path is not "
                f"UTF-8: rename the folder, or prepare {source} as tfrecord"
            )


def _parse(
    columns: Columns, label_shape: tuple[int, ...], records: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads (images, labels) from one raw record or a vector of them."""
    spec: dict = {columns.image: tf.io.FixedLenFeature([], tf.string)}
    if columns.several:
        names = [columns.label, *filter(None, [columns.clear])]
        spec |= {name: tf.io.VarLenFeature(tf.int64) for name in names}
    elif columns.label:
        # int64 whatever the feature's type.
        spec[columns.label] = tf.io.FixedLenFeature([], tf.int64)
    examples = tf.io.parse_example(records, spec)
    pictures = examples[columns.image]
    if not columns.label:
        return pictures, tf.fill(tf.shape(pictures), -1)
    if not columns.several:
        return pictures, tf.cast(examples[columns.label], tf.int32)
    present = _any_hot(examples[columns.label], label_shape[0])
    clear = _any_hot(examples[columns.clear], label_shape[0]) if columns.clear else present
    labels = tf.where(clear, 1, tf.where(present, 0, -1))
    return pictures, tf.ensure_shape(labels, [*pictures.shape, *label_shape])


def _any_hot(labels: tf.SparseTensor, num_classes: int) -> tf.Tensor:
    """Which classes are among the labels: [..., any number] -> bool [..., C]."""
    dense = tf.sparse.to_dense(labels, default_value=-1)
    return tf.reduce_any(tf.one_hot(dense, num_classes, on_value=True, off_value=False), axis=-2)


def prepared_builder(data: ml_collections.ConfigDict):
    """Returns the TFDS builder of a data set on disk, preparing it first if possible."""
    data_dir = os.path.expanduser(data.data_dir) or None
    if data_dir:
        _check_data_dir(data_dir, data.source)
    where = data_dir or str(tfds.core.constants.DATA_DIR)
    command = f"tfds build {data.source} --data_dir={shlex.quote(shown(where))}"
    try:
        name, _ = tfds.core.naming.parse_builder_name_kwargs(data.source)
        builder = None if name.namespace else tfds.builder(data.source, data_dir=data_dir)
    except Exception as error:  # of TFDS, a damaged file of the data set, or its own code
        raise _cannot_open(data.source, where, command, error) from error
    if builder is None:  # TFDS would fetch and run the publisher's code
        raise UserError(
            f"data.source={data.source} is a community data set, whose code TFDS would fetch and "
            "run: prepare it where you trust that code, and omit the namespace here"
        )
    folder = str(builder.data_path)
    # Not builder.is_prepared(), which treats brackets in the path as a pattern.
    if exists(os.path.join(folder, "dataset_info.json")):
        return builder
    if exists(folder):
        raise _unfinished(data.source, folder, command, "no dataset_info.json")
    if not is_utf8(where):
        raise UserError(
            f"{data.source} is not in {shown(where)}, and TFDS cannot prepare it there because "
            "the path is not UTF-8: rename the folder"
        )
    archives = _MANUAL_ARCHIVES.get(builder.name, ())
    manual = os.path.join(where, "downloads", "manual")
    missing = [name for name in archives if not exists(os.path.join(manual, name))]
    if missing or (builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not archives):
        what = ", ".join(missing) or "its archives (see its page in the TFDS catalog)"
        raise UserError(
            f"{data.source} is not in {shown(where)} and cannot be downloaded automatically: "
            f"put {what} into {shown(manual)} and run {command}"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"{data.source} is not prepared in {shown(where)}, and several processes would prepare "
            f"it concurrently: run {command} first, on storage that all of them share"
        )
    print(f"{data.source} is not in {shown(where)}: downloading and preparing it", flush=True)
    parent = os.path.dirname(folder)
    for name in sorted(names_in(parent)):
        if name.startswith("incomplete."):
            left = shown(os.path.join(parent, name))
            print(f"an interrupted preparation left {left} behind: delete it", flush=True)
    try:
        from tensorflow_datasets.core.download import downloader

        downloader.MAX_RETRIES = _RETRIES
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk or a data set's own code raises
        reason = _reason(error)
        raise UserError(
            f"{data.source} is not in {shown(where)} and could not be prepared ({reason}): "
            f"fix that (network, disk space) and rerun, or run {command} on a machine with network "
            f"access and copy {shown(os.path.join(where, builder.name))} from there"
        ) from error
    return builder


def _check_data_dir(data_dir: str, source: str) -> None:
    """Raises UserError if the folder is missing or TFDS would misread its path."""
    if is_remote(data_dir):  # a remote folder exists once it holds something
        return
    if "://" in data_dir:
        raise UserError(
            f"data_dir {shown(data_dir)} contains ://, which TFDS treats as a bucket: rename the "
            "folder"
        )
    if not os.path.isdir(data_dir):
        raise UserError(
            f"data_dir {shown(data_dir)} does not exist: correct it, or run "
            f"mkdir -p {shlex.quote(shown(data_dir))} to have TFDS prepare {source} there"
        )


def _cannot_open(source: str, where: str, command: str, error: Exception) -> UserError:
    """Why TFDS creates no builder: damaged files, failing code, or no such data set."""
    name = source.split(":")[0]
    folder = version_folder(os.path.join(where, name))
    if folder:
        return _unfinished(source, folder, command, _reason(error))
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] in known:
        return UserError(f"TFDS cannot open {source} ({_reason(error)})")
    near = difflib.get_close_matches(source, [*SOURCES, *known], n=1)
    return UserError(
        f"data.source={source} is not folder, list, photos or a TFDS data set, and {shown(where)} "
        "has nothing by that name" + (f"; did you mean {near[0]}?" if near else "")
    )


def _unfinished(source: str, folder: str, command: str, reason: str) -> UserError:
    folder = shown(folder)
    return UserError(
        f"the preparation of {source} in {folder} is unfinished or damaged ({reason}): "
        f"delete {folder}, then rerun, run {command}, or copy the data set again"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
