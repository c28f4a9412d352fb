"""Recognizes who wrote a weights file, from its keys.

A file may hold several networks, heads, optimizer states and more. An encoder is wherever its
family's marking keys follow a common prefix; the prefix and the keys next to it tell the format.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from gsjax.config.schema import Value
from gsjax.errors import UserError
from gsjax.models import ENCODERS
from gsjax.models.weights import folder
from gsjax.models.weights.family import Family, Format
from gsjax.models.weights.pytorch import Tensor
from gsjax.models.weights.reader import Content, shown
from gsjax.runtime import files

# Parts of a prefix that tell nothing: containers, DataParallel, torch.compile, VISSL's trunk.
WRAPPERS = {
    *("state_dict", "model", "module", "_orig_mod", "net"),
    *("classy_state_dict", "base_model", "trunk", "_feature_blocks"),
}
_TARGETS = {
    *("encoder_k", "momentum_encoder", "momentum_backbone", "key_backbone"),
    *("backbone_momentum", "target_net"),
    *("teacher", "teacher_backbone", "state_dict_ema", "model_ema", "ema"),
}
_LIGHTLY = ("backbone", "student_backbone", "teacher_backbone", "key_backbone", "backbone_momentum")
_ZERO_ONE = {"data.mean": "0,0,0", "data.std": "1,1,1"}
_IMAGENET = {"data.mean": "0.485,0.456,0.406", "data.std": "0.229,0.224,0.225"}


class Network(NamedTuple):
    """An encoder in a file.

    Attributes:
      family: module with the names of its weights.
      prefix: what its keys begin with.
      is_target: whether it is a target network (momentum encoder, key encoder, teacher).
    """

    family: Family
    prefix: str
    is_target: bool

    @property
    def role(self) -> tuple[str, ...]:
        """The parts of the prefix that tell something."""
        return tuple(part for part in self.prefix.split(".") if part and part not in WRAPPERS)


class Found(NamedTuple):
    """What a weights file or folder holds.

    Attributes:
      content: the file's tensors.
      network: the encoder chosen in it.
      format: who wrote it, in words.
      settings: {dotted key: value} of the settings that belong to it.
      image_size: side of the images that its position embedding, if it has one, is for.
      doubt: what may be wrong with the format, and how to correct it; "" if nothing.
    """

    content: Content
    network: Network
    format: str
    settings: dict[str, Value]
    image_size: int = 0
    doubt: str = ""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns {name without prefix: shape} of the encoder's tensors and what is among them."""
        prefix = self.network.prefix
        tensors = self.content.tensors
        return {
            key.removeprefix(prefix): tensors[key].shape
            for key in tensors
            if key.startswith(prefix)
        }


def recognize(content: Content, wanted: str) -> Found:
    """Finds the encoder in a file; its settings still have to be checked.

    Args:
      content: the file.
      wanted: online, target, or auto for the one that is published as the encoder.

    Raises:
      UserError: there is none, or not the one that is wanted.
    """
    content = content._replace(tensors=_named(content.tensors))
    network = _choose(content, list(_networks(content.tensors)), wanted)
    found = Found(content, network, "", {})
    shapes = found.shapes()
    try:
        settings: dict[str, Value] = network.family.settings(shapes)
    except ValueError as error:
        raise UserError(f"{files.shown(content.path)}: {network.prefix}{error}") from error
    encoder = settings["encoder.name"]
    if encoder not in ENCODERS:
        raise UserError(
            f"{files.shown(content.path)} holds a {encoder}; gsjax has {', '.join(ENCODERS)}"
        )
    facts = _Facts(network, shapes, content)
    of_folder = folder.settings(content, encoder, network.family)
    form = Format(*of_folder) if of_folder else _format(facts)
    image_size = int(settings["data.image_size"])
    settings |= {**_IMAGENET, **network.family.of_format(form.name, settings), **form.settings}
    doubt = f"{files.shown(content.path)} {form.doubt}" if form.doubt else ""
    return found._replace(format=form.name, settings=settings, image_size=image_size, doubt=doubt)


def is_counter(key: str) -> bool:
    """Whether a key is a BatchNorm's number of batches, which no evaluation reads."""
    return key.endswith("num_batches_tracked")


def _format(facts: "_Facts") -> Format:
    """Returns the first format that matches."""
    for matches, form in _FORMATS:
        if matches(facts):
            return form
    if facts.role == ():
        prefix, tensors = facts.network.prefix, facts.content.tensors
        return facts.network.family.plain_format(
            facts.shapes, lambda key: tensors[prefix + key].array()
        )
    return Format("unknown source")


def _converted(name: str, settings: Mapping[str, Value]) -> Format:
    """A format that only the order and the counters of a file tell from torchvision's."""
    usual = {**_IMAGENET, "encoder.padding": "torch"}
    advice = " ".join(f"{key}={usual[key]}" for key in settings if key in usual)
    doubt = (
        f"looks like {name}, but only its counters and order say so; if it is another one, set "
        f"{advice}"
    )
    return Format(name, settings, doubt)


def _families() -> list[Family]:
    rows = {row.names: row for row in ENCODERS.values() if row.names}
    return [row.load_names() for row in rows.values()]


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the numbers of an nn.Sequential's children, as lightly's examples have them."""
    for family in _families():
        for children in family.CHILDREN:
            first, second = (_numbered(mark, children) for mark in family.MARKS)
            prefixes = {
                prefix
                for key in tensors
                if (prefix := key.removesuffix(second)) != key and f"{prefix}{first}" in tensors
            }
            for prefix in prefixes:
                tensors = {
                    prefix + family.named_child(key.removeprefix(prefix), children)
                    if key.startswith(prefix)
                    else key: tensor
                    for key, tensor in tensors.items()
                }
    return tensors


def _numbered(key: str, children: tuple[str, ...]) -> str:
    name, _, rest = key.partition(".")
    return f"{children.index(name)}.{rest}"


def _networks(tensors: Iterable[str]) -> Iterator[Network]:
    keys = set(tensors)
    students = any("student_backbone." in key for key in keys)
    for family in _families():
        for key in sorted(keys):
            prefix = key.removesuffix(family.MARKS[0])
            if prefix == key or prefix[-1:] not in ("", "."):
                continue
            if all(prefix + mark in keys for mark in family.MARKS):
                network = Network(family, prefix, False)
                # In lightly's DINO, `backbone` is the teacher.
                is_target = bool(_TARGETS.intersection(network.role)) or (
                    students and network.role == ("backbone",)
                )
                yield network._replace(is_target=is_target)


def _choose(content: Content, networks: list[Network], wanted: str) -> Network:
    file = files.shown(content.path)
    if not networks:
        if not content.tensors:
            raise UserError(f"{file} holds no tensors: save a model's state_dict, not the model")
        some = ", ".join(map(shown, sorted(content.tensors)[:3]))
        raise UserError(f"{file} holds no encoder that gsjax knows; its keys: {some} ...")
    has_students = any("student" in part for n in networks for part in n.role)
    prefers_target = wanted == "target" or (wanted == "auto" and has_students)
    chosen = [network for network in networks if network.is_target == prefers_target]
    if not chosen and wanted == "auto":
        chosen = networks
    if not chosen:
        raise UserError(f"encoder.network={wanted}: {file} has no such network; use auto")
    # mmselfsup stores the backbone a second time, as a part of its method.
    chosen = [network for network in chosen if network.role == ("backbone",)] or chosen
    if len(chosen) > 1:
        prefixes = ", ".join(repr(shown(network.prefix)) for network in chosen)
        raise UserError(f"{file} holds several encoders, under {prefixes}: save one of them alone")
    return chosen[0]


class _Facts(NamedTuple):
    """What the formats differ in.

    Attributes:
      network: the chosen encoder.
      shapes: {name without prefix: shape} of what is under its prefix.
      content: the whole file.
    """

    network: Network
    shapes: Mapping[str, tuple[int, ...]]
    content: Content

    @property
    def role(self) -> tuple[str, ...]:
        return self.network.role

    def has(self, *names: str) -> bool:
        """Whether each name is a part of some key."""
        keys = self.content.tensors
        return all(any(f".{name}." in f".{key}" for key in keys) for name in names)

    def has_any(self, *names: str) -> bool:
        """Whether one of the names is a part of some key."""
        return any(self.has(name) for name in names)

    def is_converted_simclr(self) -> bool:
        """Whether the file looks like that of tonylins' convert.py: a model never trained here."""
        counters = [t for k, t in self.content.tensors.items() if is_counter(k)]
        return (
            self.content.entries == ("state_dict",)
            and self.network.prefix == "state_dict."
            and "fc.weight" in self.shapes
            and bool(counters)
            and all(tensor.shape == () and tensor.array() == 0 for tensor in counters)
        )

    def is_converted_byol(self) -> bool:
        """Whether the file looks like that of chigur's convert.py: all statistics come last."""
        keys = list(self.content.tensors)
        are_statistics = ["running_" in key for key in keys]
        return (
            self.network.prefix == ""
            and "fc.weight" in self.shapes
            and not any(map(is_counter, keys))
            and are_statistics == sorted(are_statistics)
        )


# The first that matches; of files with the encoder alone, its family tells the format.
_FORMATS: tuple[tuple[Callable[[_Facts], bool], Format], ...] = (
    (lambda f: "_feature_blocks" in f.network.prefix, Format("VISSL")),
    (
        lambda f: f.role in (("encoder_q",), ("encoder_k",)) and "fc.2.weight" in f.shapes,
        Format("MoCo v2"),
    ),
    (lambda f: f.role in (("encoder_q",), ("encoder_k",)), Format("MoCo v1")),
    (lambda f: f.has("base_encoder"), Format("MoCo v3")),
    (
        lambda f: f.role in (("teacher", "backbone"), ("student", "backbone")),
        Format("DINO", {"features.interpolation": "bicubic"}),
    ),
    (lambda f: f.role == ("encoder",) and f.has("encoder.fc", "predictor"), Format("SimSiam")),
    (
        lambda f: (
            f.role == ("encoder",)
            and {key.split(".")[0] for key in f.content.tensors} == {"encoder", "projector"}
        ),
        Format("Spijkervet's SimCLR", _ZERO_ONE),
    ),
    (lambda f: f.role == ("backbone",) and f.has_any("neck", "head"), Format("mmselfsup")),
    (lambda f: "target_net" in f.role, Format("mmselfsup")),
    (
        lambda f: (
            f.has_any("projection_head", "online_classifier", "student_head", "prediction_head")
            and f.role[-1:] in [(name,) for name in _LIGHTLY]
        ),
        Format("lightly"),
    ),
    (lambda f: f.role == ("backbone",) and f.has("model", "bn"), Format("Barlow Twins")),
    (lambda f: f.role == ("backbone",) and f.has("model", "projector"), Format("VICReg")),
    (
        lambda f: (
            f.role in (("momentum_backbone",), ("momentum_encoder",))
            or (f.role in (("backbone",), ("encoder",)) and f.has_any("projector", "classifier"))
        ),
        Format("solo-learn"),
    ),
    (
        lambda f: f.role == () and f.has("projection_head") and f.has("prototypes"),
        Format("SwAV", {"data.std": "0.228,0.224,0.225"}),
    ),
    # Google's code keeps pixels in [0, 1].
    (
        _Facts.is_converted_simclr,
        _converted(
            "SimCLR of Google, converted by tonylins",
            {**_ZERO_ONE, "encoder.padding": "same_pool"},
        ),
    ),
    (
        _Facts.is_converted_byol,
        _converted("BYOL of DeepMind, converted by chigur", {"encoder.padding": "same"}),
    ),
)
