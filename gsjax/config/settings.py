"""Builds a checked configuration from a config file and `--config.key=value` overrides.

Imports neither JAX nor TensorFlow, so that a wrong setting is reported right away. What depends
on devices or data is checked where they are opened.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from etils import epath

from gsjax.config import config_file, defaults, per_view, weights_settings
from gsjax.config.defaults import SETTINGS
from gsjax.config.schema import Kind, Value
from gsjax.data import find_source
from gsjax.errors import UserError
from gsjax.jobs import JOBS
from gsjax.methods import METHODS
from gsjax.models import ENCODERS
from gsjax.trackers import TRACKERS
from gsjax.train import OPTIMIZERS

# Free settings that an evaluation does not take from the run: it may run on another machine, and
# says itself what it evaluates.
_OF_EACH_START = (
    "platform",
    "encoder.attention",
    "encoder.weights",
    "encoder.network",
    "checkpoint.load",
    "log.tracker",
)


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
    """Runs a config file's `get_config()`; without a path, returns the built-in defaults.

    Raises:
      UserError: the file is missing, fails or does not return a configuration.
    """
    if not path:
        return defaults.get_config()
    try:
        config = config_file.run(path, "get_config")
    except config_file.UnknownKey as error:
        raise UserError(
            f"{error.where}: unknown setting {error.key}; did you mean {_nearest(error.key)}?"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{path}: get_config() must return a ConfigDict")
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
    """Sets keys of `config` from text, in the type of each key's default.

    Raises:
      UserError: a key is unknown, or a text is not a value of the key's type.
    """
    for key, text in overrides.items():
        _check_known(key)
        value = SETTINGS[key].parse(key, text)
        with config.unlocked():
            config.update_from_flattened_dict({key: value})


def of_evaluation(
    workdir: str, path: str | None, overrides: Mapping[str, str]
) -> ml_collections.ConfigDict:
    """Returns the configuration of a job that evaluates a run's encoder.

    Settings that shape training come from the `config.json` of the run: the one that holds the
    checkpoint that `checkpoint.load` names, or the work directory. All others come from the config
    file (from the run if there is none) and the overrides. With `checkpoint.load=none`, all
    come from the config file and the overrides. With `encoder.weights`, that file replaces the run.

    Raises:
      UserError: there is no run, or an override contradicts it.
    """
    config = load(path)
    override(config, overrides)
    if config.encoder.weights:
        weights_settings.apply(config, overrides)
    chosen = config.checkpoint.load
    if chosen == "none" or config.encoder.weights:
        return config
    folder = epath.Path(workdir).expanduser()
    if chosen != "latest" and not chosen.isdecimal():
        named = epath.Path(chosen).expanduser()
        folder = next((p for p in (named, named.parent.parent) if _has_run(p)), folder)
    file = folder / "config.json"
    for key, value in read_run(file).items():
        setting = SETTINGS[key]
        if key in overrides:
            if setting.kind is Kind.SHAPES and setting.parse(key, overrides[key]) != value:
                raise UserError(
                    f"{key}={overrides[key]} contradicts {file}, which has {_shown(value)}: "
                    "omit it, evaluations read it from there"
                )
        elif setting.kind is not Kind.FREE or not (path or key in _OF_EACH_START):
            with config.unlocked():
                config.update_from_flattened_dict({key: value})
    return config


def _has_run(folder: epath.Path) -> bool:
    return (folder / "config.json").exists()


def read_run(file: epath.Path) -> dict[str, Value]:
    """Returns {key: value} of a run's `config.json`, with defaults for missing keys.

    Raises:
      UserError: there is no such file, or it is damaged or from another version.
    """
    try:
        run = flatten(json.loads(file.read_text())["config"])
    except FileNotFoundError:
        raise UserError(
            f"no run in {file.parent} (config.json is missing): choose the --workdir of a trained "
            "run, or evaluate the untrained encoder with --config.checkpoint.load=none"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    for key, value in run.items():
        if key in SETTINGS:
            try:
                SETTINGS[key].check(key, value)
            except UserError as error:
                raise UserError(f"{file}: {error}") from error
        elif not _is_free(key):  # a removed free setting no longer matters
            raise UserError(f"{file} has {key}, a setting unknown to this version of gsjax")
    return _defaults() | {key: value for key, value in run.items() if key in SETTINGS}


def _defaults() -> dict[str, Value]:
    return {key: setting.default for key, setting in SETTINGS.items()}


def _is_free(key: str) -> bool:
    """Whether a setting may change; an unknown one may if its whole group is free."""
    group = [key] if key in SETTINGS else _group(key.partition(".")[0])
    return bool(group) and all(SETTINGS[name].kind is Kind.FREE for name in group)


def _group(name: str) -> list[str]:
    return [key for key in SETTINGS if key.startswith(f"{name}.")]


def _check_known(key: str) -> None:
    if key in SETTINGS:
        return
    if _group(key):
        raise UserError(f"{key} is a group of settings; set one of its keys, such as {key}.NAME=")
    raise UserError(f"unknown setting {key}; did you mean {_nearest(key)}?")


def _nearest(key: str) -> str:
    """Returns the known key that `key` was meant to be: misspelled or in the wrong group."""
    leaf = key.rpartition(".")[2]
    leaves = {name.rpartition(".")[2]: name for name in SETTINGS}
    near_leaf = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.8)
    if near:
        return near[0]
    if near_leaf:
        return leaves[near_leaf[0]]
    return difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0)[0]


def check(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Checks all values, also against each other, and returns `config` locked.

    Raises:
      UserError: a key is unknown or missing, or a value has the wrong type or is impossible.
    """
    flat = flatten(config)
    for key in flat:
        _check_known(key)
    for key, setting in SETTINGS.items():
        if key not in flat:
            raise UserError(f"{key} is missing; start from gsjax.config.defaults.get_config()")
        setting.check(key, flat[key])
    for message in _contradictions(config):
        raise UserError(message)
    return config.lock()


def triple(key: str, text: str) -> tuple[float, float, float]:
    """Parses three comma-separated numbers, one per color channel."""
    red, green, blue = SETTINGS[key].numbers(key, text)
    return red, green, blue


def _contradictions(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.num_steps == 0 and config.num_epochs == 0:
        yield "num_epochs and num_steps are both 0; one of them must be positive"
    if 0 < config.num_steps < config.profile.first_step and config.profile.num_steps:
        yield "profile.first_step is after the last step"
    yield from per_view.too_long(config)
    of_views = per_view.augmentations(config.augment)
    if any(view.min_scale > view.max_scale for view in of_views):
        yield "augment.min_scale is above augment.max_scale"
    if any(view.min_sigma > view.max_sigma for view in of_views):
        yield "augment.min_sigma is above augment.max_sigma"
    crops = config.crops
    if crops.local_min_scale > crops.local_max_scale:
        yield "crops.local_min_scale is above crops.local_max_scale"
    if 0 < crops.local_size < 8:
        yield f"crops.local_size is {crops.local_size}; it must be 0 or at least 8"
    if crops.min_overlap > crops.max_overlap:
        yield "crops.min_overlap is above crops.max_overlap"
    if config.data.labeled_split and not config.data.test_split:
        yield "data.test_split is empty, but data.labeled_split is not; the kNN monitor needs both"
    if not config.data.source:
        yield "data.source is empty; give a TFDS name, folder, list or photos"
    if config.schedule.final_learning_rate and not config.optimizer.learning_rate:
        yield "optimizer.learning_rate is 0, but schedule.final_learning_rate is not"
    encoder = ENCODERS[config.encoder.name]
    if config.loss.chunks > 1 and encoder.batch_norm:
        yield (
            f"loss.chunks={config.loss.chunks} needs an encoder without BatchNorm; "
            f"{config.encoder.name} has statistics of the whole batch: use remat=true instead"
        )
    method, form = METHODS[config.method], config.similarity.form
    if config.similarity.measure == "none" and form != "regress":
        yield f"similarity.form={form} needs an overlap: set similarity.measure to ioa or iou"
    if config.similarity.measure != "none" and not method.graded:
        yield f"{method.label} has no graded form; set similarity.measure=none"
    rows = (
        method,
        encoder,
        OPTIMIZERS[config.optimizer.name],
        find_source(config.data.source),
        *([TRACKERS[config.log.tracker]] if config.log.tracker != "none" else []),
        *JOBS.values(),
    )
    for row in rows:
        yield from row.check(config)
    if not config.checkpoint.load:
        yield "checkpoint.load is empty; give latest, none, a path or (in evaluations) a step"


def shaping_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists "key: old -> new" for settings that differ but may not change in a work directory.

    A key missing from `old` had its default: the setting is newer than the run.
    """
    shaping_old, shaping_new = shaping(old), shaping(new)
    return [
        f"{key}: {_shown(shaping_old[key])} -> {_shown(shaping_new.get(key))}"
        for key in sorted(shaping_old)
        if shaping_old[key] != shaping_new.get(key) and not _is_start(key)
    ]


def with_start_of(former: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested configuration with the settings of the first start, as recorded."""
    flat = _defaults() | flatten(former)
    merged = ml_collections.ConfigDict(dict(config))
    merged.update_from_flattened_dict({key: flat[key] for key in SETTINGS if _is_start(key)})
    return merged.to_dict()


def _is_start(key: str) -> bool:
    return key in SETTINGS and SETTINGS[key].kind is Kind.STARTS


def all_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Lists "key: one -> other" for all differences except folders, which may vary by machine."""
    ours, theirs = flatten(one), flatten(other)
    return [
        f"{key}: {_shown(ours[key])} -> {_shown(theirs[key])}"
        for key in sorted(ours)
        if ours[key] != theirs[key] and not key.endswith(".data_dir")
    ]


def _shown(value: Value | None) -> str:
    if value is None:
        return "unknown to this version of gsjax"
    return str(value) if value != "" else '""'


def shaping(config: Mapping[str, Any]) -> dict[str, Value]:
    """Returns {key: value} of all settings that are not free, with defaults for missing ones."""
    flat = _defaults() | flatten(config)
    return {key: value for key, value in flat.items() if not _is_free(key)}


def text(value: Value) -> str:
    """Formats a value for tables and names."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe() -> str:
    """Returns two lines per setting: default, allowed values, help, and a * if it is free."""
    lines = ["  (settings marked * may change when training resumes in the same --workdir)"]
    for key, setting in SETTINGS.items():
        mark = "*" if setting.kind is Kind.FREE else " "
        allowed = f"  ({setting.allowed})" if setting.allowed else ""
        lines += [f"{mark} {key} = {setting.written}{allowed}", f"      {setting.help}"]
    return "\n".join(lines)
