"""Reads a run's settings, curves and results from its work directory or its summary file.

A finished member of a sweep leaves a summary, `<member>.json`, so that a report or a sweep does not
need its checkpoints.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

from etils import epath

import gsjax
from gsjax.config import defaults, settings
from gsjax.errors import UserError
from gsjax.evaluate import results
from gsjax.runtime import checkpoints, environment, files, metrics

Curve = list[tuple[int, float]]  # (step, value), ascending

_POINTS = 100  # at most, per curve in a summary
_DIGITS = 6  # significant digits of measured values in a summary
# Settings that every run must have recorded; others fall back to their defaults.
_NEEDED = ("seed", "method", "data.source", "data.image_size", "encoder.name")
_NAMING = ("method", "similarity.measure")  # reports only name this version's choices
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, UserError)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run and its measurements.

    Attributes:
      name: name of its work directory.
      config: every setting, nested as in the config, with defaults for missing ones.
      data: facts about the images: `num_images`.
      member: its place in a sweep: `label`, `seed`, `value` of the swept setting and label of its
        `reference`; or empty.
      starts: entries of `environment.json`.
      step: step of the newest checkpoint.
      num_steps: length of the training in steps.
      curves: {metric: curve}.
      results: {job: entries of its `results/<job>.json`}.
      folder: the work directory, if available.
    """

    name: str
    config: dict[str, Any]
    data: dict[str, Any]
    member: dict[str, Any]
    starts: list[dict[str, Any]]
    step: int
    num_steps: int
    curves: dict[str, Curve]
    results: dict[str, list[dict[str, Any]]]
    folder: epath.Path | None = None

    @property
    def finished(self) -> bool:
        """Whether the run was trained to the end."""
        return self.step >= self.num_steps


# The fields of a summary: all but the path of the work directory.
_WRITTEN = [field.name for field in dataclasses.fields(Run) if field.name != "folder"]


def read(workdir: epath.Path, member: Mapping[str, Any] | None = None) -> Run:
    """Reads a work directory.

    Raises:
      UserError: it holds no run, or one of its files is damaged.
    """
    file = workdir / "config.json"
    try:
        content = json.loads(file.read_text())
        config, data = _complete(content["config"]), content["data"]
        epoch_steps = data["num_images"] // config["batch_size"]
        num_steps = config["num_steps"] or config["num_epochs"] * epoch_steps
    except FileNotFoundError:
        raise UserError(f"no run in {workdir} (config.json is missing)") from None
    except _DAMAGE as error:
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    steps = checkpoints.saved_steps(workdir)
    found = files.with_suffix(workdir / "results", ".json")
    run = Run(
        name=workdir.name,
        config=config,
        data=data,
        member=dict(member or {}),
        starts=environment.read(workdir),
        step=steps[-1] if steps else 0,
        num_steps=num_steps,
        curves=_curves(workdir),
        results={path.stem: results.read(path) for path in found},
        folder=workdir,
    )
    try:
        _check(run)
    except _DAMAGE as error:
        raise UserError(f"{workdir} is damaged ({type(error).__name__}: {error})") from error
    return run


def write_summary(run: Run, file: epath.Path) -> None:
    """Writes the summary file of a finished run."""
    content = {name: getattr(run, name) for name in _WRITTEN}
    content["config"] = _without_folders(run.config)
    content["curves"] = {metric: _rounded(thin(curve)) for metric, curve in run.curves.items()}
    content["results"] = {
        job: [_portable(entry) for entry in entries] for job, entries in run.results.items()
    }
    content["gsjax"] = gsjax.__version__
    with files.write_errors(file):
        files.write_text(file, json.dumps(content, sort_keys=True) + "\n")


def read_summary(file: epath.Path) -> Run:
    """Reads a summary written by `write_summary`.

    Raises:
      UserError: it is not a valid summary.
    """
    try:
        content = json.loads(file.read_text())
        fields = {name: content[name] for name in _WRITTEN}
        fields["config"] = _complete(fields["config"])
        fields["step"], fields["num_steps"] = int(fields["step"]), int(fields["num_steps"])
        fields["curves"] = _measured(
            (int(step), metric, float(value))
            for metric, curve in fields["curves"].items()
            for step, value in curve
        )
        for entries in fields["results"].values():
            results.check(entries)
        run = Run(**fields)
        _check(run)
    except _DAMAGE as error:
        raise UserError(
            f"{file} is not a run summary ({type(error).__name__}: {error}): move it away"
        ) from error
    return run


def is_summary(file: epath.Path) -> bool:
    """Whether a file looks like what `write_summary` wrote."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "curves" in content and "config" in content


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings, with defaults for missing ones.

    Raises:
      KeyError: a required setting is missing.
      TypeError, AttributeError, UserError: a setting has the wrong type or an impossible value.
    """
    known = settings.flatten(config)
    missing = [key for key in _NEEDED if key not in known]
    if missing:
        raise KeyError(", ".join(missing))
    complete = {**defaults.get_config().to_dict(), **config}
    for group, default in defaults.get_config().to_dict().items():
        if isinstance(default, dict):
            _expect(group, complete[group], Mapping)
            complete[group] = {**default, **complete[group]}
    flat = settings.flatten(complete)
    for key, setting in defaults.SETTINGS.items():
        if key not in _NAMING:  # another version of gsjax may have more choices
            setting = dataclasses.replace(setting, choices=())
        setting.check(key, flat.get(key))
    return complete


def _check(run: Run) -> None:
    """Checks the types of everything but the config, which `_complete` checks.

    Raises:
      KeyError, TypeError, ValueError, AttributeError: something is missing or has the wrong type.
    """
    _expect("name", run.name, str)
    _expect("data.num_images", run.data["num_images"], int)
    if run.data["num_images"] < run.config["batch_size"]:
        raise ValueError("data.num_images is less than batch_size")
    check_member(run.member)
    for start in run.starts:
        _expect("an entry of starts", start, Mapping)
        _expect("packages of a start", start.get("packages", {}), Mapping)
    for job, entries in run.results.items():
        for entry in entries:
            _expect(f"step of {job}", entry["step"], (int, NoneType))
            _expect(f"dataset of {job}", entry["dataset"], str)
            for part in ("protocol", "details"):
                _expect(f"{part} of {job}", entry.get(part, {}), Mapping)
            for score, value in entry["scores"].items():
                _expect(score, value, (int, float))


def check_member(member: Mapping[str, Any]) -> None:
    """Checks the types in `Run.member`.

    Raises:
      TypeError, AttributeError: something has the wrong type.
    """
    _expect("label of the member", member.get("label", ""), str)
    _expect("reference of the member", member.get("reference", ""), str)
    _expect("value of the member", member.get("value"), (int, float, str, NoneType))


def _expect(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} has type {type(value).__name__}")


def _curves(workdir: epath.Path) -> dict[str, Curve]:
    return _measured(
        (record["step"], metric, float(value))
        for record in metrics.read_records(workdir)
        for metric, value in record.items()
        if metric != "step" and value is not None
    )


def _measured(points: Iterable[tuple[int, str, float]]) -> dict[str, Curve]:
    """Groups (step, metric, value) into {metric: curve}, skipping non-finite values."""
    curves: dict[str, Curve] = {}
    for step, metric, value in points:
        if math.isfinite(value):
            curves.setdefault(metric, []).append((step, value))
    return curves


def thin(curve: Curve) -> Curve:
    """Returns at most `_POINTS` points: both ends unchanged, means of consecutive points between.

    Each mean is placed at the last of its steps; all but the last average equally many points.
    """
    if len(curve) <= _POINTS:
        return curve
    first, *inner, last = curve
    size = math.ceil(len(inner) / (_POINTS - 2))
    groups = [inner[i : i + size] for i in range(0, len(inner), size)]
    means = [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
    return [first, *means, last]


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings without data folders, which differ between machines."""
    return {
        name: _without_folders(value)
        if isinstance(value, Mapping)
        else ("" if name == "data_dir" else value)
        for name, value in config.items()
    }


def _portable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result, rounded and without its checkpoint's path, which is machine-specific."""
    short = {name: value for name, value in entry.items() if name != "checkpoint"}
    return short | {name: _rounded(entry.get(name, {})) for name in ("scores", "details")}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value
