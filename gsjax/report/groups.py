"""Groups runs that differ only in the seed, for a report to compare."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gsjax.config import choices, defaults, settings
from gsjax.methods import METHODS
from gsjax.sweep.runs import Run

# These do not affect the encoder, but do affect what the kNN monitor measures on it.
_MONITOR_SETTINGS = ("data.labeled_split", "data.test_split", "knn.preset", "knn.k")
_NOT_COMPARED = ("seed", "num_left_out")
_UNGRADED_SCALE = 0.5  # with it, graded NT-Xent at psi = 1 is NT-Xent plus a constant
_METHOD_SETTINGS = ("learning_rate",)  # of the linear evaluation; each method has its own


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
      label: their name in tables and figures.
      value: value of the swept setting, if there is one.
      runs: the runs, sorted by seed.
      shaping: {key: value} of every setting except the seed that affects training or its kNN
        accuracy, without those of methods, encoders and optimizers not chosen, and the number of
        images.
      reference: label of the group to compare with, or "".
    """

    label: str
    value: settings.Value | None
    runs: tuple[Run, ...]
    shaping: dict[str, Any]
    reference: str = ""

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that were trained to the end."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def is_baseline(self) -> bool:
        """Whether these runs train without graded similarity.

        Includes lambda = 0, where psi is 1, if the positive term has the same weight.
        """
        s = self.shaping
        weight = s.get("similarity.scale", _UNGRADED_SCALE)  # not every method has one
        psi_is_1 = s["similarity.threshold"] == 0 and weight == _UNGRADED_SCALE
        return s["similarity.measure"] == "none" or psi_is_1

    @property
    def method(self) -> str:
        """The method's name, the same with and without graded similarity."""
        return METHODS[self.shaping["method"]].label

    @property
    def epoch_steps(self) -> int:
        """Steps per epoch."""
        return self.shaping["data.num_images"] // self.shaping["batch_size"]

    @property
    def name(self) -> str:
        """The label, with the value of the swept setting if there is one."""
        return name_of(self.label, self.value)


def name_of(label: str, value: settings.Value | None) -> str:
    """Returns the name of a group in tables."""
    return label if value is None else f"{label} at {settings.text(value)}"


def label_of(config: Mapping[str, Any]) -> str:
    """Names a run by its method: SimCLR, SimCLR-GS, SimSiam-GS, IoU, BYOL-GS, weight, ..."""
    flat = _flat(config)
    name, measure = METHODS[flat["method"]].label, flat["similarity.measure"]
    if measure == "none":
        return name
    parts = [f"{name}-GS"]
    if measure != "ioa":
        parts.append("IoU")
    if flat["similarity.form"] != "regress":
        parts.append(flat["similarity.form"])
    if flat["similarity.scale"] != 1:
        parts.append(f"scale {flat['similarity.scale']:g}")
    return ", ".join(parts)


def shaping(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of `Group.shaping`, with defaults for missing ones."""
    found = settings.shaping(config) | {key: _flat(config)[key] for key in _MONITOR_SETTINGS}
    found["data.num_images"] = data.get("num_images")
    left_out = choices.unused(config) | {"seed"}
    return {key: value for key, value in found.items() if key not in left_out}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return settings.flatten(defaults.get_config()) | settings.flatten(config)


def group_runs(found: Sequence[Run]) -> tuple[tuple[Group, ...], tuple[tuple[str, str], ...]]:
    """Groups runs that differ only in the seed, in the order of each group's first run.

    Returns:
      The groups, and (run, why it is left out) for runs that repeat another's settings and seed. Of
      those, the one that got furthest counts, or else the one with more results.
    """
    together: dict[str, list[Run]] = {}
    for run in separate_protocols(found):
        about = [run.member.get("label") or label_of(run.config), run.member.get("value")]
        key = json.dumps([about, shaping(run.config, run.data)], sort_keys=True)
        together.setdefault(key, []).append(run)
    groups, repeated = [], []
    for runs in together.values():
        by_seed: dict[int, Run] = {}
        for run in sorted(runs, key=lambda run: (-run.step, -len(_entries(run)))):
            first = by_seed.setdefault(run.config["seed"], run)
            if first is not run:
                repeated.append((run.name, f"same settings and seed as {first.name}"))
        first = runs[0]
        groups.append(
            Group(
                first.member.get("label") or label_of(first.config),
                first.member.get("value"),
                tuple(by_seed[seed] for seed in sorted(by_seed)),
                shaping(first.config, first.data),
                first.member.get("reference", ""),
            )
        )
    return _disambiguate(groups), tuple(repeated)


def _disambiguate(groups: list[Group]) -> tuple[Group, ...]:
    """Adds to identical names the settings in which the groups differ."""
    renamed = []
    for group in groups:
        twins = [other for other in groups if other.name == group.name]
        keys = [k for k, v in group.shaping.items() if any(t.shaping.get(k) != v for t in twins)]
        if keys:
            detail = ", ".join(f"{key}={settings.text(group.shaping[key])}" for key in keys)
            group = dataclasses.replace(group, label=f"{group.label} ({detail})")
        renamed.append(group)
    return tuple(renamed)


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """Returns the group's reference or, if it names none, its counterpart; None if there is none.

    The counterpart has no graded similarity and otherwise equal settings. Of several, prefers one
    with no overlap measure at all.
    """
    if group.reference:
        named = [other for other in groups if other.label == group.reference]
        same = [other for other in named if other.value == group.value]
        return next(iter(same or named), None)
    if group.is_baseline:
        return None

    def rest(one: Group) -> dict[str, Any]:
        return {k: v for k, v in one.shaping.items() if not k.startswith("similarity.")}

    found = [other for other in groups if other.is_baseline and rest(other) == rest(group)]
    return min(found, key=lambda other: other.shaping["similarity.measure"] != "none", default=None)


def separate_protocols(found: Sequence[Run]) -> list[Run]:
    """Adds a `variant` to results of one job and dataset that were measured in several ways.

    The variant names the settings in which they differ, so that a table never mixes them.
    """
    protocols: dict[tuple[str, str], list[dict[tuple[str, ...], Any]]] = {}
    for run in found:
        for job, entry in _entries(run):
            protocols.setdefault((job, entry["dataset"]), []).append(_protocol(run, entry))
    separated: list[Run] = []
    for run in found:
        results: dict[str, list[dict[str, Any]]] = {job: [] for job in run.results}
        for job, entry in _entries(run):
            own = _protocol(run, entry)
            others = protocols[job, entry["dataset"]]
            keys = [k for k in own if any(k in other and other[k] != own[k] for other in others)]
            # The training's settings already say what diagnostics are measured on.
            if keys and job != "diagnostics":
                detail = ", ".join(f"{key[-1]}={_short(own[key])}" for key in keys)
                entry = {**entry, "variant": f" ({detail})"}
            results[job].append(entry)
        separated.append(dataclasses.replace(run, results=results))
    return separated


def _entries(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [(job, entry) for job, entries in run.results.items() for entry in entries]


def _protocol(run: Run, entry: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Returns the settings of a measurement; those specific to a method are keyed by its name."""
    return {
        (run.config["method"], key) if key in _METHOD_SETTINGS else (key,): value
        for key, value in entry.get("protocol", {}).items()
        if key not in _NOT_COMPARED
    }


def _short(value: Any) -> str:
    return settings.text(value) if isinstance(value, (str, int, float)) else json.dumps(value)
