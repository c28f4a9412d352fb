"""Which features of a TFDS data set hold its picture and its label."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gsjax.errors import UserError


class Columns(NamedTuple):
    """The features that are read; those of a nested FeaturesDict are named as `inputs/image`.

    Attributes:
      image: name of the picture.
      label: name of the label, "" for none.
      several: whether a picture has several labels.
      clear: of several labels, name of the feature with those that are not difficult; "" for none.
      class_names: of the labels, or None.
      no_labels: where there are none, the message for whoever needs them.
    """

    image: str
    label: str = ""
    several: bool = False
    clear: str = ""
    class_names: tuple[str, ...] | None = None
    no_labels: str = ""


def choose(source: str, info: tfds.core.DatasetInfo, labeled: bool) -> Columns:
    """Chooses the picture and the label of a data set.

    The picture is the Image that `supervised_keys` names, else the feature `image`, else the only
    Image there is; a segmentation mask (LabeledImage) is none. The label is the ClassLabel, or the
    sequence of them, that `supervised_keys` names, else `label`, else `labels`, else the only
    `.../label`. Whole numbers and truth values under these names are labels as well; texts and
    real numbers are not, and a data set without another label is one without labels.

    Args:
      source: name of the data set, for messages.
      info: of the data set.
      labeled: whether it needs labels.

    Raises:
      UserError: it has no picture, or several of which none stands out, or one of real numbers; or
        no labels where it needs them.
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
        no_labels = f"{source} has no labels, which a labeled split needs{_why(features)}"
        if labeled:
            raise UserError(no_labels)
        return Columns(image, no_labels=no_labels)
    several = kinds[label] == "several"
    clear = "labels_no_difficult" if several and label == "labels" else ""
    clear = clear if kinds.get(clear) == "several" else ""
    return Columns(image, label, several, clear, _classes(features[label]))


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
        raise UserError(f"{source} has no feature of type Image: {', '.join(sorted(features))}")
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
            f"{source} has several features of type Image ({names}), and neither its "
            "supervised_keys nor the name image says which one holds the pictures: prepare it with "
            "supervised_keys=(<image>, <label>)"
        )
    if np.issubdtype(features[image].np_dtype, np.floating):
        raise UserError(
            f"{source}: its Image feature {image!r} holds real numbers ({_type(features[image])}), "
            "not colors: prepare it with uint8 or uint16"
        )
    return image


def _kind(feature: Any) -> str:
    """Whether a feature is `one` label, `several`, or "" for none."""
    if _is_sequence(feature):
        return "several" if _classes(feature) else ""
    stored = feature.get_serialized_info()
    if not isinstance(stored, tfds.features.TensorInfo) or stored.shape != ():
        return ""
    whole = np.issubdtype(stored.np_dtype, np.integer) or stored.np_dtype == np.bool_
    return "one" if whole and feature.shape == () else ""


def _classes(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes of a ClassLabel or of a sequence of them."""
    inner = feature.feature if _is_sequence(feature) else feature
    if not isinstance(inner, tfds.features.ClassLabel) or not inner.num_classes:
        return None
    return tuple(inner.names) if inner.names else tuple(map(str, range(inner.num_classes)))


def _is_sequence(feature: Any) -> bool:
    return type(feature) is tfds.features.Sequence


def _type(feature: Any) -> str:
    return f"{type(feature).__name__}, {np.dtype(feature.np_dtype).name}"


def _why(features: dict[str, Any]) -> str:
    """Why the features whose names sound like labels are none."""
    unfit = [name for name in ("label", "labels") if name in features]
    if not unfit:
        return ""
    return f": its feature {unfit[0]} is no class label ({type(features[unfit[0]]).__name__})"
