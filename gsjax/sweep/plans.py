"""What a file in `configs/sweeps/` returns: arms, seeds and values of a setting to combine.

Imports neither JAX nor TensorFlow, so that every member is checked before anything starts.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from gsjax.config import config_file, settings
from gsjax.errors import UserError
from gsjax.jobs import JOBS

# The jobs that write results/<job>.json.
EVALUATIONS = [n for n, job in JOBS.items() if job.configured_by == "run" and job.records]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the alternatives that a sweep compares.

    Attributes:
      label: its name in tables and figures.
      config: a file, without `.py`, in the folder above the sweep's, i.e. `configs/`.
      overrides: {key: value} applied to it.
      is_on_axis: whether it runs at every value of the sweep's axis; otherwise once, unchanged.
      reference: label of the arm that reports compare it with; "" for the one without graded
        similarity and with otherwise equal settings.
    """

    label: str
    config: str
    overrides: Mapping[str, settings.Value] = dataclasses.field(default_factory=dict)
    is_on_axis: bool = True
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All combinations of seeds, values and arms; seeds vary slowest, arms fastest.

    Members with the same seed share initial weights, image order and crops, so that their
    differences can be paired.

    Invalid arguments raise a ValueError, to which `load` adds the file and line.

    Attributes:
      title: the question it answers, in one line.
      arms: the alternatives to compare.
      seeds: seeds of each arm.
      overrides: {key: value} applied to every arm's config, before the arm's own.
      axis: the setting that takes each of `values`, or "".
      values: values of the axis.
      jobs: evaluations after each training; diagnostics always run.
      shows: figures and tables of the thesis that it reproduces, such as "Figure 9".
    """

    title: str
    arms: Sequence[Arm]
    seeds: Sequence[int] = (5,)
    overrides: Mapping[str, settings.Value] = dataclasses.field(default_factory=dict)
    axis: str = ""
    values: Sequence[settings.Value] = ()
    jobs: Sequence[str] = ()
    shows: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "values", "jobs", "shows"):
            if not isinstance(getattr(self, name), (tuple, list)):
                raise ValueError(f"{name} is not a tuple; write a single element as (x,)")
        if not self.arms or not self.seeds:
            raise ValueError("arms and seeds must not be empty")
        if bool(self.axis) != bool(self.values):
            raise ValueError("axis and values go together: give both or neither")
        on_axis = [arm for arm in self.arms if arm.is_on_axis]
        if self.axis and not on_axis:
            raise ValueError(f"no arm is on the axis {self.axis}")
        overrides = [self.overrides, *(arm.overrides for arm in self.arms)]
        if self.axis == "seed" or any("seed" in part for part in overrides):
            raise ValueError("set seed only through seeds")
        if any(self.axis in arm.overrides for arm in on_axis):
            raise ValueError(f"an arm on the axis overrides {self.axis}")
        labels = {arm.label for arm in self.arms}
        for arm in self.arms:
            if arm.reference and arm.reference not in labels - {arm.label}:
                raise ValueError(f"the reference of {arm.label!r} is no other arm's label")
        for job in self.jobs:
            if job not in EVALUATIONS:
                known = ", ".join(EVALUATIONS)
                raise ValueError(f"jobs contains {job!r}; those with scores are {known}")


@dataclasses.dataclass(frozen=True)
class Member:
    """One training run of a sweep, with its checked configuration."""

    name: str
    label: str
    seed: int
    value: settings.Value | None
    config: ml_collections.ConfigDict
    reference: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """Its place in the sweep, as files of the sweep hold it."""
        return {
            "label": self.label,
            "seed": self.seed,
            "value": self.value,
            "reference": self.reference,
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep and its members, in index order."""

    sweep: Sweep
    members: tuple[Member, ...]

    def member(self, index: int) -> Member:
        """Returns the member that `--sweep_index` names.

        Raises:
          UserError: there is no such member.
        """
        if not 0 <= index < len(self.members):
            names = ", ".join(f"{i} {member.name}" for i, member in enumerate(self.members))
            raise UserError(f"--sweep_index={index}: the members of this sweep are {names}")
        return self.members[index]


def load(path: str | None, overrides: Mapping[str, str]) -> Plan:
    """Loads a file of `configs/sweeps/`; command-line `overrides` apply to every member.

    Raises:
      UserError: the file does not exist or returns no sweep, or a member's settings are impossible
        or identical to another member's.
    """
    if not path:
        raise UserError("--job sweep needs --config FILE, a file in configs/sweeps/")
    try:
        sweep = config_file.run(path, "get_sweep")
    except config_file.UnknownKey as error:
        raise UserError(f"{error.where}: unknown setting {error.key}") from error
    if not isinstance(sweep, Sweep):
        raise UserError(f"{path}: get_sweep() must return a gsjax.sweep.plans.Sweep")
    for key in ("seed", sweep.axis):
        if key and key in overrides:
            raise UserError(f"--config.{key} is already set by the sweep {path}")
    folder = config_file.find(path, "get_sweep").resolve().parent.parent
    members: list[Member] = []
    for seed, value, arm in _combinations(sweep):
        changes = {**sweep.overrides, **arm.overrides, "seed": seed}
        name = f"{slug(arm.label)}-seed{seed}"
        if value is not None:
            changes[sweep.axis] = value
            point = f"{sweep.axis.rpartition('.')[2]}_{_in_path(value)}"
            name = f"{slug(arm.label)}-{point}-seed{seed}"
        try:
            config = settings.load(str(folder / f"{arm.config}.py"))
            settings.override(config, {key: str(part) for key, part in changes.items()})
            settings.override(config, overrides)
            settings.check(config)
        except UserError as error:
            raise UserError(f"{path}, member {name}: {error}") from error
        for other in members:
            if other.name == name:
                raise UserError(f"{path}: two members are named {name}; change a label")
            if other.config == config:  # e.g. an override sets what distinguishes an arm
                raise UserError(f"{path}: members {other.name} and {name} are identical")
        members.append(Member(name, arm.label, seed, value, config, arm.reference))
    return Plan(sweep, tuple(members))


def _combinations(sweep: Sweep) -> Iterator[tuple[int, settings.Value | None, Arm]]:
    for seed in sweep.seeds:
        yield from ((seed, None, arm) for arm in sweep.arms if not (sweep.axis and arm.is_on_axis))
        for value in sweep.values:
            yield from ((seed, value, arm) for arm in sweep.arms if arm.is_on_axis)


def _in_path(value: settings.Value) -> str:
    return re.sub(r"[^\w.+-]+", "_", settings.text(value))


def slug(label: str) -> str:
    """Makes a label usable as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "_", label.lower()).strip("_")
