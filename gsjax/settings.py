"""From a config file and `--config.key=value` overrides to a checked configuration.

Imports neither JAX nor TensorFlow, so that a wrong setting is told at once. What only devices or
data can tell is checked where they are opened.
"""

import difflib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from etils import epath

from gsjax import config_file, defaults
from gsjax.errors import UserError

Value = int | float | str | bool

_OF_MACHINE = ("data.memory_gb",)  # shapes a training's order, but no evaluation

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("simclr", "simsiam"),
    "encoder.name": ("resnet18", "resnet34", "resnet50", "resnet101"),
    "encoder.stem": ("imagenet", "cifar"),
    "encoder.dtype": ("float32", "bfloat16", "float64"),
    "similarity.measure": ("ioa", "iou", "none"),
    "loss.siamese": ("mse", "cosine"),
    "augment.crop": ("torchvision", "tf", "byol"),
    "optimizer.name": ("lars", "sgd"),
    "optimizer.scaling": ("linear", "sqrt", "none"),
    "knn.preset": ("thesis", "instdisc"),
    "retrieval.protocol": ("thesis", "aspect", "multiscale"),
}
# Numbers must lie in [low, high]; those not named in [0, _MAX_INT or _MAX_FLOAT].
_MAX_INT, _MAX_FLOAT, _MAX_DIM = 2**31 - 1, 1e6, 2**16
_RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (2, _MAX_INT),
    "data.image_size": (8, 4096),
    "encoder.width": (1, _MAX_DIM),
    "projector.num_layers": (1, 100),
    "projector.hidden_dim": (1, _MAX_DIM),
    "projector.out_dim": (1, _MAX_DIM),
    "predictor.hidden_dim": (1, _MAX_DIM),
    "similarity.threshold": (0, 1),
    "similarity.scale": (1e-6, _MAX_FLOAT),
    "loss.temperature": (1e-6, _MAX_FLOAT),
    "augment.min_scale": (1e-6, 1),
    "augment.max_scale": (1e-6, 1),
    "augment.flip": (0, 1),
    "augment.jitter": (0, 1),
    "augment.hue": (0, 0.5),
    "augment.grey": (0, 1),
    "augment.blur": (0, 1),
    "augment.min_sigma": (1e-3, _MAX_FLOAT),
    "optimizer.momentum": (0, 0.9999),
    "features.batch_size": (1, _MAX_INT),
    "linear.num_epochs": (1, _MAX_INT),
    "linear.batch_size": (1, _MAX_INT),
    "linear.momentum": (0, 0.9999),
    "linear.min_scale": (1e-6, 1),
    "linear.flip": (0, 1),
    "transfer.max_iterations": (1, _MAX_INT),
    "retrieval.image_size": (16, 65536),
    "diagnostics.num_images": (2, _MAX_INT),
    "checkpoint.every_steps": (1, _MAX_INT),
    "checkpoint.keep": (1, _MAX_INT),
    "log.every_steps": (1, _MAX_INT),
    "profile.first_step": (1, _MAX_INT),
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of a nested configuration."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (Mapping, ml_collections.ConfigDict)):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def load(path: str | None) -> ml_collections.ConfigDict:
    """Runs the `get_config()` of a config file; without a path, the embedded defaults.

    Raises:
      UserError: the file is missing, fails or returns something else than a configuration.
    """
    if not path:
        return defaults.get_config()
    try:
        config = config_file.run(path, "get_config")
    except config_file.UnknownKey as error:
        nearest = _nearest(error.key, flatten(defaults.get_config()))
        raise UserError(
            f"{error.where}: unknown setting {error.key}; the nearest known one is {nearest}"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{path}: get_config() must return the configuration it made")
    return config


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits `--config.key=value` and `--config.key value` from the other arguments."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        match = re.match(r"--?config\.([^=]+)(?:=(.*))?$", argument, re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        key, text = match.groups()
        text = next(arguments, None) if text is None else text
        if text is None or text.startswith("--"):
            raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE")
        overrides[key] = text
    return rest, overrides


def override(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets `config`'s keys from text, in the type that each key's default has.

    Raises:
      UserError: an unknown key, or a text that is no value of the key's type.
    """
    known = flatten(defaults.get_config())
    for key, text in overrides.items():
        _check_known(key, known)
        value = _parse(key, text, known[key])
        with config.unlocked():
            config.update_from_flattened_dict({key: value})


def of_evaluation(
    workdir: str, path: str | None, overrides: Mapping[str, str]
) -> ml_collections.ConfigDict:
    """The configuration of a job on the encoder of a run.

    What shapes training comes from `config.json` of the run: the one that holds the checkpoint that
    `checkpoint.load` names, or the work directory. Everything else comes from the config file, or
    from the run where there is none, and from the overrides. With `checkpoint.load=none` all comes
    from the config file and the overrides.

    Raises:
      UserError: no run is there, or an override contradicts it.
    """
    config = load(path)
    override(config, overrides)
    chosen = config.checkpoint.load
    if chosen == "none":
        return config
    folder = epath.Path(workdir).expanduser()
    if chosen != "latest" and not chosen.isdecimal():
        parent = epath.Path(chosen).expanduser().parent.parent
        folder = parent if (parent / "config.json").exists() else folder
    file = folder / "config.json"
    try:
        run = flatten(json.loads(file.read_text())["config"])
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no run (there is no config.json): name the --workdir of a "
            "pre-training, or measure the untrained encoder with --config.checkpoint.load=none"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    known = flatten(defaults.get_config())
    for key, value in run.items():
        is_shaping = not _is_harmless(key)
        if key not in known:
            if is_shaping:  # a harmless one that is gone is of no interest any more
                raise UserError(f"{file} holds {key}, a setting that this gsjax does not know")
            continue
        try:
            _check_value(key, value, known[key])
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        given = key in overrides
        if is_shaping and given and key not in _OF_MACHINE:
            if _parse(key, overrides[key], known[key]) != value:
                raise UserError(
                    f"{key}={overrides[key]} contradicts {file}, which has {value}: "
                    "an evaluation takes it from there, leave it out"
                )
        if not given and (is_shaping or not path):
            with config.unlocked():
                config.update_from_flattened_dict({key: value})
    with config.unlocked():
        config.checkpoint.load = chosen  # not the one that the run itself began from
    return config


def _is_harmless(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in defaults.HARMLESS)


def _parse(key: str, text: str, default: Value) -> Value:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() in ("true", "1", "yes", "false", "0", "no"):
            return text.lower() in ("true", "1", "yes")
        raise UserError(f"{key}: {text!r} is not true or false")
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise UserError(f"{key}: {text!r} is not {kind}") from None


def _check_known(key: str, known: Mapping[str, Value]) -> None:
    if key in known:
        return
    if any(name.startswith(f"{key}.") for name in known):
        raise UserError(f"{key} is a group of settings; set one of its keys, such as {key}.NAME=")
    raise UserError(f"unknown setting {key}; the nearest known one is {_nearest(key, known)}")


def _nearest(key: str, known: Mapping[str, Value]) -> str:
    """Returns the known key that `key` was meant to be: misspelt, or in the wrong group."""
    leaf = key.rpartition(".")[2]
    leaves = {name.rpartition(".")[2]: name for name in known}
    near_leaf = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if near:
        return near[0]
    if near_leaf:
        return leaves[near_leaf[0]]
    return difflib.get_close_matches(key, known, n=1, cutoff=0)[0]


def check(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config` completed and locked, when every value is possible by itself.

    Raises:
      UserError: an unknown key, a wrong type, or a value that cannot be.
    """
    known = flatten(defaults.get_config())
    flat = flatten(config)
    for key in flat:
        _check_known(key, known)
    for key, default in known.items():
        if key not in flat:
            raise UserError(f"{key} is missing; start from gsjax.defaults.get_config()")
        _check_value(key, flat[key], default)
    for message in _contradictions(config):
        raise UserError(message)
    return config.lock()


def _check_value(key: str, value: Any, default: Value) -> None:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    allowed = (float, int) if isinstance(default, float) else (type(default),)
    if type(value) not in allowed:
        raise UserError(f"{key} is {value!r}; it must be {kinds[type(default)]}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UserError(f"{key} is {value!r}; it must be one of {', '.join(_CHOICES[key])}")
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        low, high = _RANGES.get(key, (0, _MAX_INT if isinstance(default, int) else _MAX_FLOAT))
        if not low <= value <= high:
            bounds = f"from {low:g} to {high:g}"
            if high >= _MAX_FLOAT:  # that bound is of interest only to who passes it
                bounds = f"at most {high:.0f}" if value > high else f"at least {low:g}"
            raise UserError(f"{key} is {value}; it must be {bounds}")
    if key in ("data.mean", "data.std"):
        triple(key, value)


def triple(key: str, text: str) -> tuple[float, float, float]:
    """Reads three comma-separated numbers, one per colour channel."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{key} is {text!r}; it must be three numbers with commas between"
        ) from None
    low = 1e-6 if key == "data.std" else 0
    if not all(low <= part <= 1 for part in (red, green, blue)):
        raise UserError(f"{key} is {text!r}; every number must be from {low:g} to 1")
    return red, green, blue


def _contradictions(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.num_steps == 0 and config.num_epochs == 0:
        yield "num_epochs and num_steps are both 0; one of them must be positive"
    if 0 < config.num_steps < config.profile.first_step and config.profile.num_steps:
        yield "profile.first_step is after the last step"
    if config.augment.min_scale > config.augment.max_scale:
        yield "augment.min_scale is above augment.max_scale"
    if config.augment.min_sigma > config.augment.max_sigma:
        yield "augment.min_sigma is above augment.max_sigma"
    if config.data.labelled_split and not config.data.test_split:
        yield "data.test_split is empty, data.labelled_split is not; the kNN monitor needs both"
    if not config.data.source:
        yield "data.source is empty; give a TFDS name, folder or photos"
    if config.data.source == "folder" and not config.data.data_dir:
        yield "data.source is folder; data.data_dir must name the folder"
    if config.features.source == "folder" and not config.features.data_dir:
        yield "features.source is folder; features.data_dir must name the folder"
    if "/" in config.features.name:
        yield f"features.name is {config.features.name!r}; it is a file's name without a folder"
    if config.features.data_dir and not config.features.source:
        yield "features.data_dir is set; say with features.source what it is: folder or a TFDS name"
    if config.method == "simsiam":
        if config.similarity.scale != 1:
            yield (
                f"similarity.scale is {config.similarity.scale:g}; SimSiam has no such scale "
                "(eq. 3 and eq. 8 agree at psi = 1), leave it at 1"
            )
        if not config.projector.last_bn:
            yield "projector.last_bn is false; SimSiam collapses without it, set it to true"
        if config.loss.siamese == "cosine" and config.similarity.measure != "none":
            yield (
                "loss.siamese is cosine; graded similarity regresses a distance (eq. 8), "
                "so cosine needs similarity.measure=none"
            )
    elif config.optimizer.fix_pred_lr:
        yield "optimizer.fix_pred_lr is true; only SimSiam has a predictor"
    if not config.checkpoint.load:
        yield "checkpoint.load is empty; give latest, none, a step or a path"


def shaping_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists "key: old -> new" for what shapes training and differs.

    A key that `old` lacks had the default: the setting is younger than the run.
    """
    shaping_old, shaping_new = shaping(old), shaping(new)
    return [
        f"{key}: {shaping_old[key]} -> {shaping_new.get(key)}"
        for key in sorted(shaping_old)
        if shaping_old[key] != shaping_new.get(key)
    ]


def shaping(config: Mapping[str, Any]) -> dict[str, Value]:
    """{key: value} of the settings that shape a training, with the defaults of those it lacks."""
    flat = flatten(defaults.get_config()) | flatten(config)
    return {key: value for key, value in flat.items() if not _is_harmless(key)}


def text(value: Value) -> str:
    """A value as tables and names show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe() -> str:
    """Returns one line per setting, its default and its comment, read from `gsjax.defaults`."""
    source = pathlib.Path(defaults.__file__).read_text()
    lines = re.findall(r"^    (\w+)\.(\w+) = (.+?)  # (.+)$", source, re.MULTILINE)
    return "\n".join(
        f"  {name if group == 'config' else f'{group}.{name}'} = {value}\n      {comment}"
        for group, name, value, comment in lines
    )
