"""Where pictures come from: TFDS data sets, folders, and photographs of installed packages."""

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable

import ml_collections
import numpy as np
import tensorflow as tf

from gsjax.data import photos
from gsjax.data.shards import Shard, from_instructions, gigabytes, in_order
from gsjax.errors import UserError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Source:
    """Pictures in a fixed order, each known by its index in it.

    Attributes:
      name: for messages.
      num_examples: number N of pictures.
      labels: int32 [N], or None where they are only known once a picture is read.
      class_names: names of the labels, or None.
      labelled: whether every picture must have a label.
      read: TensorFlow function from a key to (picture, label). The key is the picture's index or,
        in a source that is read in sequence, its raw record. The picture is its encoded bytes,
        string [], or its pixels, uint8 [H, W, 3]; the label is int32 [], -1 where there is none.
      picture_name: from an index to what a message calls the picture.
      shards: the files of a source that is read in sequence; empty with random access.
    """

    name: str
    num_examples: int
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    labelled: bool
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    picture_name: Callable[[int], str]
    shards: tuple[Shard, ...] = ()


def open_source(data: ml_collections.ConfigDict, split: str, labelled: bool = False) -> Source:
    """Opens a split of the configured data set.

    Args:
      data: the group `data` of a config.
      split: a TFDS split expression such as `train+unlabelled`, a folder, or `train` or `test` of
        the photographs.
      labelled: whether labels are needed. A folder's classes are only looked for if they are.

    Returns:
      The source. TFDS splits of at most `data.memory_gb` are read here and kept encoded.

    Raises:
      UserError: the data set or the split is missing, empty, or has no labels where it needs them.
    """
    if data.source == "photos":
        source = _open_photos(data, split, labelled)
    elif data.source == "folder":
        source = _open_folder(data, split, labelled)
    else:
        source = _open_tfds(data, split, labelled)
    return require_labels(source) if labelled else source


def require_labels(source: Source) -> Source:
    """Returns the source as one whose every picture must have a label.

    Raises:
      UserError: one is known to have none; what is read in sequence is checked when it is read.
    """
    source = dataclasses.replace(source, labelled=True)
    if source.labels is not None:
        check_labels(source, source.labels)
    return source


def check_labels(source: Source, labels: np.ndarray) -> None:
    """Raises UserError if a labelled source has an example without a label (label < 0)."""
    unlabelled = int(np.sum(labels < 0))
    if source.labelled and unlabelled:
        raise UserError(
            f"{source.name} holds unlabelled examples (at least {unlabelled}): "
            "data.labelled_split and data.test_split need a label for each"
        )


def _random_access(
    name: str,
    pictures: tf.Tensor,
    labels: np.ndarray,
    class_names: tuple[str, ...] | None,
    labelled: bool,
) -> Source:
    """A source of pictures in memory: `pictures` is string [N] or uint8 [N, H, W, 3]."""
    label_tensor = tf.constant(labels, tf.int32)
    return Source(
        name=name,
        num_examples=len(labels),
        labels=labels,
        class_names=class_names,
        labelled=labelled,
        read=lambda index: (tf.gather(pictures, index), tf.gather(label_tensor, index)),
        picture_name=lambda index: f"number {index} of {name}",
    )


def _open_photos(data: ml_collections.ConfigDict, split: str, labelled: bool) -> Source:
    tiles, labels = photos.tiles(split, data.image_size)
    name = f"data.source=photos, split {split!r}"
    return _random_access(name, tf.constant(tiles), labels, photos.names(), labelled)


def _open_folder(data: ml_collections.ConfigDict, split: str, labelled: bool) -> Source:
    root = os.path.join(os.path.expanduser(data.data_dir), split).rstrip("/")
    if not tf.io.gfile.isdir(root):
        raise UserError(f"{root} is no folder: check data.data_dir and the split {split!r}")
    names, folders = _list_pictures(root)
    if not names:
        raise UserError(f"{root} holds no pictures ({', '.join(_EXTENSIONS)})")
    class_names = None
    labels = np.full(len(names), -1, np.int32)
    if labelled:
        loose = [name for name in names if "/" not in name]
        if loose:
            raise UserError(
                f"{root} is a labelled split, but {loose[0]} is in no class folder: "
                f"put each picture in {root}/<class>/"
            )
        class_names = tuple(folders)
        numbers = {folder: number for number, folder in enumerate(class_names)}
        labels = np.array([numbers[name.split("/", 1)[0]] for name in names], np.int32)
    paths = tf.constant(names)
    label_tensor = tf.constant(labels)
    return Source(
        name=root,
        num_examples=len(names),
        labels=labels,
        class_names=class_names,
        labelled=labelled,
        read=lambda index: (
            tf.io.read_file(tf.strings.join([root, tf.gather(paths, index)], separator="/")),
            tf.gather(label_tensor, index),
        ),
        picture_name=lambda index: f"{root}/{names[index]}",
    )


def _list_pictures(root: str) -> tuple[list[str], list[str]]:
    """Sorted relative paths of all pictures under a folder, and its sorted sub-folders."""
    # os.walk needs no system call per file; a labelled folder is often one of links to others.
    remote = "://" in root
    walk = (
        tf.io.gfile.walk if remote else functools.partial(os.walk, onerror=_fail, followlinks=True)
    )
    names: list[str] = []
    folders: set[str] = set()
    for folder, _, files in walk(root):
        inner = folder[len(root) :].strip("/")
        parts = inner.split("/") if inner else []
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        folders.update(parts[:1])
        names += [
            "/".join([*parts, file])
            for file in files
            if file.lower().endswith(_EXTENSIONS) and not file.startswith(".")
        ]
    return sorted(names), sorted(folders)


def _fail(error: OSError):
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _open_tfds(data: ml_collections.ConfigDict, split: str, labelled: bool) -> Source:
    import tensorflow_datasets as tfds  # slow, and only needed here

    builder = _prepared_builder(data)
    name = f"{data.source}, split {split!r}"
    try:
        parts = from_instructions(builder.info.splits[split].file_instructions)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{data.source} has no split {split!r}; it has {', '.join(builder.info.splits)}"
        ) from error
    if not parts:
        raise UserError(f"{name} is empty")
    features = builder.info.features
    image_keys = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    if not image_keys:
        raise UserError(f"{data.source} has no feature of type Image: {', '.join(features)}")
    keys = {"image": image_keys[0]}
    class_names = None
    if "label" in features and features["label"].shape == ():
        keys["label"] = "label"
        class_names = tuple(getattr(features["label"], "names", None) or ()) or None
    elif labelled:
        raise UserError(f"{data.source} has no labels, which {name} needs as a labelled split")
    decoders = {keys["image"]: tfds.decode.SkipDecoding()}
    on_disk = {"image": tf.string, "label": tf.int64}  # whatever the type of the feature
    spec = {key: tf.io.FixedLenFeature([], on_disk[role]) for role, key in keys.items()}
    num_examples = sum(part.take for part in parts)

    def parse(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        examples = tf.io.parse_example(records, spec)
        pictures = examples[keys["image"]]
        if "label" in keys:
            return pictures, tf.cast(examples["label"], tf.int32)
        return pictures, tf.fill(tf.shape(pictures), -1)

    make = functools.partial(
        Source,
        name=name,
        num_examples=num_examples,
        class_names=class_names,
        labelled=labelled,
        picture_name=lambda index: f"number {index} of {name}",
    )
    file_format = builder.info.file_format
    if file_format == tfds.core.FileFormat.ARRAY_RECORD:
        records = builder.as_data_source(split=split, decoders=decoders)

        def fetch(index: int) -> tuple[bytes, np.int32]:
            example = records[int(index)]
            return example[keys["image"]], np.int32(example["label"] if "label" in keys else -1)

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
    pictures, labels = zip(*(parse(batch) for _, batch in in_order(parts).batch(1024)), strict=True)
    return _random_access(
        name, tf.concat(pictures, axis=0), tf.concat(labels, axis=0).numpy(), class_names, labelled
    )


def _prepared_builder(data: ml_collections.ConfigDict):
    """The TFDS builder of a data set that is on disk, after preparing it if that is possible."""
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data.data_dir) or None
    try:
        builder = tfds.builder(data.source, data_dir=data_dir)
    except (ValueError, ImportError) as error:  # DatasetNotFoundError is a ValueError
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(data.source, ["folder", "photos", *known], n=1)
        raise UserError(
            f"data.source={data.source} is no TFDS data set, nor folder or photos"
            + (f"; did you mean {near[0]}?" if near else "")
        ) from error
    if builder.is_prepared():
        return builder
    where = data_dir or str(tfds.core.constants.DATA_DIR)
    command = f"tfds build {data.source} --data_dir={where}"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if builder.name == "imagenet2012":
            archives = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
        else:
            archives = "its archives (the data set's page in the TFDS catalogue names them)"
        raise UserError(
            f"{data.source} is not in {where}: put {archives} into {where}/downloads/manual "
            f"and run {command}"
        )
    print(f"{data.source} is not in {where}: TFDS downloads and prepares it", flush=True)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk or a data set's own code raises
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{data.source} is not in {where} and could not be prepared "
            f"({type(error).__name__}: {reason}); to try by hand: {command}"
        ) from error
    return builder
