"""Which features of a TFDS data set hold its image and its label."""

from gsjax.runtime import tensorflow_setup  # noqa: F401  # TFDS imports TensorFlow

# isort: split
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gsjax.errors import UserError


class Columns(NamedTuple):
    """The features to read; those in a nested FeaturesDict are named like `inputs/image`.

    Attributes:
      image: name of the image feature.
      label: name of the label feature, "" for none.
      several: whether an image has several labels.
      clear: with several labels, name of the feature with the non-difficult ones; "" for none.
      class_names: names of the labels, or None.
      no_labels: if there are none, the error message for callers that need them.
      file_name: name of the feature with the name of the image's file, "" for none.
    """

    image: str
    label: str = ""
    several: bool = False
    clear: str = ""
    class_names: tuple[str, ...] | None = None
    no_labels: str = ""
    file_name: str = ""


def choose(source: str, info: tfds.core.DatasetInfo, labeled: bool) -> Columns:
    """Chooses the image and label features of a data set.

    The image is the Image named by `supervised_keys`, else the feature `image`, else the only
    Image; segmentation masks (LabeledImage) do not count. The label is the ClassLabel, or sequence
    of them, named by `supervised_keys`, else `label`, else `labels`, else the only `.../label`.
    Integers and booleans under these names are labels as well; strings and floats are not, and a
    data set with no other label is unlabeled.

    Args:
      source: name of the data set, for messages.
      info: TFDS' description of the data set.
      labeled: whether labels are required.

    Raises:
      UserError: it has no image, several images with no clear choice, or a floating-point one; or
        no labels although they are required.
    """
    features = dict(_flat(info.features))
    keys = info.supervised_keys or ("", "")
    image = _image(source, features, list(_strings(keys[0])))
    kinds = {name: _kind(feature) for name, feature in features.items()}
    by_keys = [name for name in _strings(keys[1]) if _classes(features.get(name))]
    nested = [name for name in features if name.endswith("/label") and kinds[name]]
    candidates = [*(by_keys if len(by_keys) == 1 else ()), "label", "labels"]
    candidates += nested if len(nested) == 1 else ()
    label = next((name for name in candidates if kinds.get(name)), "")
    if not label:
        no_labels = f"{source} has no labels, which a labeled split needs{_label_problem(features)}"
        if labeled:
            raise UserError(no_labels)
        return Columns(image, no_labels=no_labels)
    several = kinds[label] == "several"
    clear = "labels_no_difficult" if several and label == "labels" else ""
    clear = clear if kinds.get(clear) == "several" else ""
    is_named = isinstance(features.get("file_name"), tfds.features.Text)  # as in imagenet2012
    file_name = "file_name" if is_named else ""
    return Columns(image, label, several, clear, _classes(features[label]), file_name=file_name)


def _flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flat(feature, f"{prefix}{key}/")
        else:
            yield prefix + key, feature


def _strings(keys: Any) -> Iterator[str]:
    """The names in an element of `supervised_keys`, which may be nested."""
    if isinstance(keys, str):
        yield keys
        return
    for inner in keys.values() if isinstance(keys, dict) else keys:
        yield from _strings(inner)


def _image(source: str, features: dict[str, Any], supervised: list[str]) -> str:
    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage)
    ]
    if not images:
        raise UserError(f"{source} has no Image feature, only {', '.join(sorted(features))}")
    named = [name for name in images if name in supervised]
    if len(named) == 1:
        image = named[0]
    elif "image" in images:
        image = "image"
    elif len(images) == 1:
        image = images[0]
    else:
        names = ", ".join(sorted(images))
        raise UserError(
            f"{source} has several Image features ({names}), and neither its supervised_keys nor "
            "the name 'image' selects one: prepare it with supervised_keys=(<image>, <label>)"
        )
    if np.issubdtype(features[image].np_dtype, np.floating):
        raise UserError(
            f"{source}: Image feature {image!r} has floating-point values "
            f"({_type(features[image])}): prepare it with uint8 or uint16"
        )
    return image


def _kind(feature: Any) -> str:
    """Returns whether a feature is `one` label, `several`, or "" for none."""
    if _is_sequence(feature):
        return "several" if _classes(feature) else ""
    stored = feature.get_serialized_info()
    if not isinstance(stored, tfds.features.TensorInfo) or stored.shape != ():
        return ""
    whole = np.issubdtype(stored.np_dtype, np.integer) or stored.np_dtype == np.bool_
    return "one" if whole and feature.shape == () else ""


def _classes(feature: Any) -> tuple[str, ...] | None:
    """The class names of a ClassLabel or a sequence of them."""
    inner = feature.feature if _is_sequence(feature) else feature
    if not isinstance(inner, tfds.features.ClassLabel) or not inner.num_classes:
        return None
    return tuple(inner.names) if inner.names else tuple(map(str, range(inner.num_classes)))


def _is_sequence(feature: Any) -> bool:
    return type(feature) is tfds.features.Sequence


def _type(feature: Any) -> str:
    return f"{type(feature).__name__}, {np.dtype(feature.np_dtype).name}"


def _label_problem(features: dict[str, Any]) -> str:
    """Why a feature named like a label is not one."""
    unfit = [name for name in ("label", "labels") if name in features]
    if not unfit:
        return ""
    return f": its feature {unfit[0]} is not a class label ({type(features[unfit[0]]).__name__})"
