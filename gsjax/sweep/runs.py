"""What a run has left behind, read from its work directory or from the one file that sums it up.

A finished member of a sweep leaves `<member>.json`: its settings, curves and results, without
which a report or a sweep needs no checkpoint.
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

_POINTS = 100  # of a curve in a summary, at most
_DIGITS = 6  # significant ones of its measured values
# Settings without which nobody knows what a run was; others have their defaults.
_NEEDED = ("seed", "method", "data.source", "data.image_size", "encoder.name")
_NAMING = ("method", "similarity.measure")  # reports have names for the choices of this version
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, UserError)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and what was measured on it.

    Attributes:
      name: of its work directory.
      config: every setting, nested as in the config, with the defaults of those it lacked.
      data: facts about the images: `num_images`.
      member: what a sweep says of it: `label`, `seed`, `value` of the swept setting; or nothing.
      starts: entries of `environment.json`.
      step: of the newest checkpoint.
      num_steps: length of the training.
      curves: {metric: curve}.
      results: {job: entries of its `results/<job>.json`}.
      folder: the work directory, where it is at hand.
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
        """Whether the whole training was done."""
        return self.step >= self.num_steps


# What a summary holds: all but the place of the work directory.
_WRITTEN = [field.name for field in dataclasses.fields(Run) if field.name != "folder"]


def read(workdir: epath.Path, member: Mapping[str, Any] | None = None) -> Run:
    """Reads a work directory.

    Raises:
      UserError: it holds no run, or a file of it is damaged.
    """
    file = workdir / "config.json"
    try:
        content = json.loads(file.read_text())
        config, data = _complete(content["config"]), content["data"]
        epoch_steps = data["num_images"] // config["batch_size"]
        num_steps = config["num_steps"] or config["num_epochs"] * epoch_steps
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run (there is no config.json)") from None
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
    """Writes the one small file of a finished run."""
    content = {name: getattr(run, name) for name in _WRITTEN}
    content["config"] = _without_folders(run.config)
    content["curves"] = {metric: _rounded(thin(curve)) for metric, curve in run.curves.items()}
    content["results"] = {
        job: [_portable(entry) for entry in entries] for job, entries in run.results.items()
    }
    content["gsjax"] = gsjax.__version__
    with files.told(file):
        files.write_text(file, json.dumps(content, sort_keys=True) + "\n")


def read_summary(file: epath.Path) -> Run:
    """Reads what `write_summary` wrote.

    Raises:
      UserError: it is no such file.
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
            f"{file} is no summary of a run ({type(error).__name__}: {error}): move it away"
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
    """The settings, with the defaults of those that are lacking.

    Raises:
      KeyError: one is lacking that has to be there.
      TypeError, AttributeError, UserError: one has another type or cannot be.
    """
    known = settings.flatten(config)
    lacking = [key for key in _NEEDED if key not in known]
    if lacking:
        raise KeyError(", ".join(lacking))
    complete = {**defaults.get_config().to_dict(), **config}
    for group, default in defaults.get_config().to_dict().items():
        if isinstance(default, dict):
            _expect(group, complete[group], Mapping)
            complete[group] = {**default, **complete[group]}
    flat = settings.flatten(complete)
    for key, setting in defaults.SETTINGS.items():
        if key not in _NAMING:  # another version of gsjax may have further choices
            setting = dataclasses.replace(setting, choices=())
        setting.check(key, flat.get(key))
    return complete


def _check(run: Run) -> None:
    """Makes sure that all but the config, which `_complete` checks, has its type.

    Raises:
      KeyError, TypeError, ValueError, AttributeError: something has another one.
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
    """Makes sure of the types in `Run.member`.

    Raises:
      TypeError, AttributeError: something has another one.
    """
    _expect("label of the member", member.get("label", ""), str)
    _expect("value of the member", member.get("value"), (int, float, str, NoneType))


def _expect(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of the type {type(value).__name__}")


def _curves(workdir: epath.Path) -> dict[str, Curve]:
    return _measured(
        (record["step"], metric, float(value))
        for record in metrics.read_records(workdir)
        for metric, value in record.items()
        if metric != "step" and value is not None
    )


def _measured(points: Iterable[tuple[int, str, float]]) -> dict[str, Curve]:
    """{metric: curve} of (step, metric, value) without what is not finite."""
    curves: dict[str, Curve] = {}
    for step, metric, value in points:
        if math.isfinite(value):
            curves.setdefault(metric, []).append((step, value))
    return curves


def thin(curve: Curve) -> Curve:
    """At most `_POINTS` points: both ends as they are, between them means of consecutive points.

    A mean stands at the last of its steps, and all but the last are of equally many points.
    """
    if len(curve) <= _POINTS:
        return curve
    first, *inner, last = curve
    size = math.ceil(len(inner) / (_POINTS - 2))
    groups = [inner[i : i + size] for i in range(0, len(inner), size)]
    means = [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
    return [first, *means, last]


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the folders of data, which are others on every machine."""
    return {
        name: _without_folders(value)
        if isinstance(value, Mapping)
        else ("" if name == "data_dir" else value)
        for name, value in config.items()
    }


def _portable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A result in short, without the place of the checkpoint, which is gone where it goes."""
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
