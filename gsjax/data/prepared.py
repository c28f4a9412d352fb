"""Data sets that TFDS has prepared, or prepares now."""

import difflib
import functools
import os
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gsjax.data.shards import (
    Shard,
    from_instructions,
    gigabytes,
    in_order,
    named,
    size,
    unusable,
)
from gsjax.data.sources import Source, in_memory
from gsjax.errors import UserError

_RETRIES = 7  # of TFDS' downloads: its own 10 mean 3.5 minutes without network, these 25 s

# Archives that TFDS cannot download: ImageNet asks for a log-in, the host of Stanford Cars is gone.
_BY_HAND = {
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
    """The class that the files of a data set name; TFDS would import, so run, any module."""
    if not name.startswith("tensorflow_datasets."):
        raise ValueError(f"its features name {name}, which is not of TFDS and is not run")
    return _class_of_feature(name)


# By setattr, because mypy takes no assignment to a method.
setattr(tfds.features.FeatureConnector, "cls_from_name", staticmethod(_class_of_tfds))  # noqa: B010


def open_tfds(data: ml_collections.ConfigDict, split: str, labelled: bool) -> Source:
    """Opens a split of a TFDS data set, as `gsjax.data.sources.open_source` describes."""
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
        raise UserError(f"{name} selects no picture: {data.source} has {splits}")
    features = builder.info.features
    image_keys = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    if not image_keys:
        raise UserError(f"{data.source} has no feature of type Image: {', '.join(features)}")
    image_key = image_keys[0]
    kind, class_names = _label_kind(features)
    if labelled and kind == "none":
        raise UserError(f"{data.source} has no labels, which {name} needs as a labelled split")
    if kind == "several" and class_names is None:
        raise UserError(f"{data.source} does not name the classes of its labels")
    label_shape = (len(class_names),) if kind == "several" and class_names else ()
    parse = functools.partial(_parse, image_key, kind, label_shape, set(features))
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
        labelled=labelled,
        files=files,
        label_shape=label_shape,
    )
    file_format = builder.info.file_format
    if file_format == tfds.core.FileFormat.ARRAY_RECORD:
        if kind == "several":
            raise UserError(f"{data.source} has several labels a picture: prepare it as tfrecord")
        decoders = {image_key: tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=split, decoders=decoders)
        _check_files(records, parts)

        def fetch(index: int) -> tuple[bytes, np.int32]:
            example = records[int(index)]
            return example[image_key], np.int32(example["label"] if kind == "one" else -1)

        def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            picture, label = tf.numpy_function(fetch, [index], (tf.string, tf.int32))
            return tf.ensure_shape(picture, []), tf.ensure_shape(label, [])

        return make(labels=None, read=read)
    if file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"{data.source} is prepared as {file_format.value}: "
            "prepare it as tfrecord or array_record (tfds build --file_format=array_record)"
        )
    if gigabytes(parts) > data.memory_gb:
        return make(labels=None, read=parse, shards=parts)
    with named(parts):
        batches = [parse(batch) for _, batch in in_order(parts).batch(1024)]
    pictures, labels = zip(*batches, strict=True)
    return in_memory(
        name,
        data.source,
        version,
        tf.concat(pictures, axis=0),
        tf.concat(labels, axis=0).numpy(),
        class_names,
        labelled,
        files,
    )


def _check_files(records: Sequence, parts: Sequence[Shard]) -> None:
    """Reads the first record of each array_record file.

    Raises:
      UserError: a file is missing or damaged; later that would look like damaged pictures.
    """
    for part in parts:
        try:
            records[part.first]
        except Exception as error:  # whatever the reader makes of the bytes it finds
            raise unusable(part.path, f"{type(error).__name__}: {error}") from error


def _label_kind(features: tfds.features.FeaturesDict) -> tuple[str, tuple[str, ...] | None]:
    """Whether pictures have `one` label, `several` or `none`, and the names of the classes."""
    label = features["label"] if "label" in features else None
    if label is not None and label.shape == ():
        return "one", tuple(getattr(label, "names", None) or ()) or None
    several = features["labels"] if "labels" in features else None
    if several is not None and several.shape == (None,):
        return "several", tuple(getattr(several.feature, "names", None) or ()) or None
    return "none", None


def _parse(
    image_key: str, kind: str, label_shape: tuple[int, ...], features: set[str], records: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads (pictures, labels) from one raw record or a vector of them."""
    spec: dict = {image_key: tf.io.FixedLenFeature([], tf.string)}
    if kind == "one":
        spec["label"] = tf.io.FixedLenFeature([], tf.int64)  # whatever the type of the feature
    several = {"labels", "labels_no_difficult"} & features if kind == "several" else set()
    spec |= {key: tf.io.VarLenFeature(tf.int64) for key in several}
    examples = tf.io.parse_example(records, spec)
    pictures = examples[image_key]
    if kind == "one":
        return pictures, tf.cast(examples["label"], tf.int32)
    if kind == "none":
        return pictures, tf.fill(tf.shape(pictures), -1)
    present = {key: _any_hot(examples[key], label_shape[0]) for key in several}
    clear = present.get("labels_no_difficult", present["labels"])
    labels = tf.where(clear, 1, tf.where(present["labels"], 0, -1))
    return pictures, tf.ensure_shape(labels, [*pictures.shape, *label_shape])


def _any_hot(labels: tf.SparseTensor, num_classes: int) -> tf.Tensor:
    """Which classes are among the labels: [..., any number] -> bool [..., C]."""
    dense = tf.sparse.to_dense(labels, default_value=-1)
    return tf.reduce_any(tf.one_hot(dense, num_classes, on_value=True, off_value=False), axis=-2)


def prepared_builder(data: ml_collections.ConfigDict):
    """The TFDS builder of a data set that is on disk, after preparing it if that is possible."""
    data_dir = os.path.expanduser(data.data_dir) or None
    # In a bucket, a folder exists once something is in it.
    if data_dir and "://" not in data_dir and not os.path.isdir(data_dir):
        raise UserError(
            f"the data_dir {data_dir} does not exist: correct it, or make the folder "
            f"(mkdir -p {data_dir}) for TFDS to prepare {data.source} there"
        )
    where = data_dir or str(tfds.core.constants.DATA_DIR)
    command = f"tfds build {data.source} --data_dir={where}"
    try:
        name, _ = tfds.core.naming.parse_builder_name_kwargs(data.source)
        builder = None if name.namespace else tfds.builder(data.source, data_dir=data_dir)
    except Exception as error:  # of TFDS, of a damaged file of the data set, or of its own code
        raise _cannot_open(data.source, where, command, error) from error
    if builder is None:  # TFDS would fetch the code of whoever published it, and run it
        raise UserError(
            f"data.source={data.source} is a community data set, whose code TFDS would fetch and "
            "run: prepare it where you trust it, and name it without the namespace"
        )
    if builder.is_prepared():
        return builder
    if tf.io.gfile.exists(str(builder.data_path)):
        raise _half_done(data.source, str(builder.data_path), command, "no dataset_info.json")
    archives = _BY_HAND.get(builder.name, ())
    manual = os.path.join(where, "downloads", "manual")
    missing = [name for name in archives if not tf.io.gfile.exists(os.path.join(manual, name))]
    if missing or (builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not archives):
        what = ", ".join(missing) or "its archives (its page in the TFDS catalogue names them)"
        raise UserError(
            f"{data.source} is not in {where} and cannot be downloaded by a program: "
            f"put {what} into {manual} and run {command}"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"{data.source} is not prepared in {where}, and several processes would prepare it at "
            f"once: run {command} first, where all of them read it"
        )
    print(f"{data.source} is not in {where}: TFDS downloads and prepares it", flush=True)
    left = tf.io.gfile.glob(os.path.join(os.path.dirname(builder.data_path), "incomplete.*"))
    if left:
        print(f"an interrupted preparation has left {', '.join(left)}: delete it", flush=True)
    try:
        from tensorflow_datasets.core.download import downloader

        downloader.MAX_RETRIES = _RETRIES
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk or a data set's own code raises
        reason = _reason(error)
        raise UserError(
            f"{data.source} is not in {where} and could not be prepared ({reason}): "
            f"mend that (network, free disk) and start again, or run {command} where there is a "
            f"network and copy {os.path.join(where, builder.name)} from there"
        ) from error
    return builder


def _cannot_open(source: str, where: str, command: str, error: Exception) -> UserError:
    """Why TFDS makes no builder: its files are damaged, its code fails, or there is no such set."""
    name = source.split(":")[0]
    with_files = [f for f, _, files in tf.io.gfile.walk(os.path.join(where, name)) if files]
    if with_files:
        return _half_done(source, with_files[0], command, _reason(error))
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] in known:
        return UserError(f"{source} cannot be opened by TFDS ({_reason(error)})")
    near = difflib.get_close_matches(source, ["folder", "photos", *known], n=1)
    return UserError(
        f"data.source={source} is no TFDS data set, nor folder or photos, and {where} has none of "
        "that name" + (f"; did you mean {near[0]}?" if near else "")
    )


def _half_done(source: str, folder: str, command: str, reason: str) -> UserError:
    return UserError(
        f"the preparation of {source} in {folder} is unfinished or damaged ({reason}): "
        f"delete {folder}, then start again or run {command}, or copy the data set anew"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
