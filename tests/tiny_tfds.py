"""A small TFDS data set on disk, so that tests of TFDS sources need no network."""

import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

CLASSES = ("cat", "dog", "owl")
SPLITS = {"train": 23, "test": 5, "unlabelled": 4}


def pictures(split: str) -> list[np.ndarray]:
    """The pictures of a split, of various sizes: a ramp that differs from picture to picture."""
    images = []
    for i in range(SPLITS[split]):
        height, width = 20 + i, 30 - i % 7
        image = np.full((height, width, 3), 11 * i + len(split), np.uint8)
        image[:, :, 1] = np.arange(width) * 5
        image[:, :, 2] = np.arange(height)[:, None] * 5
        images.append(image)
    return images


def labels(split: str) -> list[int]:
    """The labels of a split."""
    return [-1 if split == "unlabelled" else i % 3 for i in range(SPLITS[split])]


def write(data_dir: pathlib.Path, file_format: str = "tfrecord", num_shards: int = 3) -> None:
    """Prepares the data set `tiny` in a TFDS directory."""
    features = tfds.features.FeaturesDict(
        {
            "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
    )

    def examples(split: str) -> tf.data.Dataset:
        def generate():
            for image, label in zip(pictures(split), labels(split), strict=True):
                yield {"picture": image, "label": label}

        signature = {
            "picture": tf.TensorSpec([None, None, 3], tf.uint8),
            "label": tf.TensorSpec([], tf.int64),
        }
        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=features,
        split_datasets={split: examples(split) for split in SPLITS},
        data_dir=data_dir,
        file_format=file_format,
        download_config=tfds.download.DownloadConfig(num_shards=num_shards),
        disable_shuffling=True,
    )


def write_features(
    data_dir: pathlib.Path,
    features: dict,
    examples: list[dict],
    supervised_keys: tuple | None = None,
    file_format: str = "tfrecord",
) -> None:
    """Prepares the data set `tiny` of any features, with the splits train and test alike.

    Args:
      data_dir: the TFDS directory.
      features: by name, of `tfds.features`.
      examples: of each split.
      supervised_keys: what the data set says of input and label.
      file_format: tfrecord or array_record.
    """

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny"

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Tiny.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in ("train", "test")}

        def _generate_examples(self):
            yield from enumerate(examples)

    Tiny(data_dir=data_dir, file_format=file_format).download_and_prepare()
