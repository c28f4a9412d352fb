"""Scores of groups of runs, their paired differences, and the conclusions in words."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from gsjax.config import settings
from gsjax.report.collect import Study
from gsjax.report.groups import Group, baseline_of
from gsjax.sweep import runs

CONFIDENCE = 0.95
PRIMARY = "kNN top-1"  # the score in the thesis' figures, measured in every pre-training run
_CALIBRATION = "calibration error"
# Settings that affect the kNN accuracy of raw pixels.
_PIXEL_SETTINGS = (
    *("data.source", "data.num_images", "data.labeled_split", "data.test_split"),
    *("data.image_size", "data.mean", "data.std", "knn.preset", "knn.k"),
)


class Cell(NamedTuple):
    """What a table shows, and the number it sorts by."""

    text: str
    value: float | None = None


class Difference(NamedTuple):
    """A paired difference: its mean over shared seeds, and the confidence interval around it.

    `low` and `high` are None for a single pair.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


def scores(run: runs.Run) -> dict[str, float]:
    """Returns all scores of a run at the end of training; empty if it is unfinished."""
    return _scores(run, run.num_steps) if run.finished else {}


def _scores(run: runs.Run, step: int) -> dict[str, float]:
    """Returns the finite scores at a step; step 0 is the untrained encoder."""
    found = {}
    for at, value in run.curves.get("knn/top1", []):
        if at == step:
            found[PRIMARY] = value
    for job, entries in run.results.items():
        if job == "diagnostics" and not step:
            continue  # they measure the heads, which differ between methods
        for entry in entries:
            if (entry["step"] or 0) == step:
                variant = entry.get("variant", "")
                for score, value in entry["scores"].items():
                    found[f"{score_name(job, entry['dataset'], score)}{variant}"] = value
    return {name: value for name, value in found.items() if math.isfinite(value)}


def score_name(job: str, dataset: str, score: str) -> str:
    """Returns the name in tables of a score from `results/<job>.json`."""
    metric = score.partition("/")[2].removeprefix(f"{dataset}_").replace("_", " ")
    if job == "diagnostics":
        return metric.replace("std sqrt d", "std x sqrt(d)")
    return f"{job}, {dataset}, {metric}"


def floors(groups: Sequence[Group]) -> dict[str, dict[str, list[float]]]:
    """Returns {"raw pixels" or "untrained encoder": {score: values, one per seed}}.

    If encoders or images differ between groups, there is one entry for each kind.
    """
    pixels: dict[str, dict[str, list[float]]] = {}
    untrained: dict[str, dict[str, dict[int, float]]] = {}
    varying = {
        key
        for group in groups
        for key in group.shaping
        if _shapes_untrained(key) and group.shaping[key] != groups[0].shaping.get(key)
    }
    for group in groups:
        for run in group.runs:
            label = _qualified("raw pixels", group, varying & set(_PIXEL_SETTINGS))
            if run.curves.get("knn/pixels_top1"):
                value = run.curves["knn/pixels_top1"][0][1]
                pixels.setdefault(label, {PRIMARY: [value]})
            label = _qualified("untrained encoder", group, varying)
            for score, value in _scores(run, 0).items():
                seeds = untrained.setdefault(label, {}).setdefault(score, {})
                seeds.setdefault(run.config["seed"], value)
    return pixels | {
        label: {score: list(seeds.values()) for score, seeds in found.items()}
        for label, found in untrained.items()
    }


def _shapes_untrained(key: str) -> bool:
    """Whether a setting affects the kNN accuracy of an untrained encoder."""
    return key in _PIXEL_SETTINGS or (key.startswith("encoder.") and key != "encoder.dtype")


def _qualified(label: str, group: Group, varying: Collection[str]) -> str:
    """Returns the label with the settings that distinguish it from others of its kind."""
    keys = sorted(group.shaping.keys() & varying)
    parts = [f"{key}={settings.text(group.shaping[key])}" for key in keys]
    return f"{label} ({', '.join(parts)})" if parts else label


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Compares {seed: value} over shared seeds by Student's t; None if there are none.

    The interval holds the mean difference with 95 % confidence if differences are normal.
    """
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    n = len(differences)
    if not n:
        return None
    mean = float(np.mean(differences))
    if n == 1:
        return Difference(mean, None, None, 1)
    spread = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread
    return Difference(mean, mean - half, mean + half, n)


def by_seed(group: Group, score: str) -> dict[int, float]:
    """Returns {seed: value} of a score over the finished runs."""
    found = {run.config["seed"]: scores(run).get(score) for run in group.finished}
    return {seed: value for seed, value in found.items() if value is not None}


def score_names(groups: Sequence[Group]) -> list[str]:
    """Returns the names of all scores that any group has, the primary one first."""
    names: dict[str, None] = {PRIMARY: None}
    for group in groups:
        for run in group.finished:
            names.update(dict.fromkeys(scores(run)))
    return list(names)


def difference(group: Group, groups: Sequence[Group], score: str) -> Difference | None:
    """Returns a group's paired difference from its baseline; None if they cannot be compared."""
    baseline = baseline_of(group, groups)
    if not baseline or (score == _CALIBRATION and _target_psi(group) != _target_psi(baseline)):
        return None
    return paired(by_seed(group, score), by_seed(baseline, score))


def _target_psi(group: Group) -> set[str]:
    """Returns the psi that the calibration error of its runs is measured against."""
    entries = [entry for run in group.finished for entry in run.results.get("diagnostics", [])]
    return {str(entry.get("protocol", {}).get("psi")) for entry in entries}


def spread_cell(values: Sequence[float], seeds: int = 0) -> Cell:
    """Formats the mean (standard deviation), and the number of seeds if not all have a value.

    "missing" if nothing was measured.
    """
    if not values:
        return Cell("missing")
    mean = float(np.mean(values))
    text = number(mean)
    if len(values) > 1:
        text += f" ({float(np.std(values, ddof=1)):.{_digits(mean)}f})"
    if len(values) < seeds:
        text += f" [{len(values)} of {seeds} seeds]"
    return Cell(text, mean)


def difference_cell(found: Difference | None, group: Group) -> Cell:
    """Formats the mean and interval of a difference, or says why there is none."""
    if group.is_baseline and not group.reference:
        return Cell("baseline")
    if found is None:
        return Cell("missing")
    if found.low is None or found.high is None:
        return Cell(f"{signed(found.mean)[0]} (one seed: no interval)", found.mean)
    mean, low, high = signed(found.mean, found.low, found.high)
    return Cell(f"{mean} ({low} to {high})", found.mean)


def number(value: float) -> str:
    """Formats a number with two decimals, or more if it is small."""
    return f"{value:.{_digits(value)}f}"


def signed(*values: float) -> list[str]:
    """Formats values with signs and the same number of decimals: two, or more if all are small."""
    digits = _digits(*values)
    return [f"{round(value, digits) + 0.0:+.{digits}f}" for value in values]


def _digits(*values: float) -> int:
    """Returns how many decimals to show: two, or enough for three digits if all are small."""
    largest = max(abs(value) for value in values)
    return 2 if largest >= 0.1 or largest == 0 else 2 - math.floor(math.log10(largest))


def length_of(group: Group, axis: str = "") -> str:
    """Describes what affects scores most, so that nobody mistakes a short run for the thesis'.

    Leaves out the swept setting `axis`, in which groups differ.
    """
    length, unit = (
        ("num_steps", "steps") if group.shaping["num_steps"] else ("num_epochs", "epochs")
    )
    parts = {
        "encoder.name": "{}",
        "encoder.width": "width {}",
        "batch_size": "batch {}",
        length: f"{{}} {unit}",
    }
    keys = [key for key in parts if key in group.shaping and key != axis]
    return ", ".join(parts[key].format(group.shaping[key]) for key in keys)


def headline(study: Study) -> list[str]:
    """Says in sentences what was compared and found, claiming nothing beyond the intervals."""
    finished = [group for group in study.groups if group.finished]
    lines = [f"{study.title}: no run has finished."]
    if finished:
        data = ", ".join(dict.fromkeys(str(group.shaping["data.source"]) for group in finished))
        by_length: dict[str, list[Group]] = {}
        for group in finished:
            by_length.setdefault(length_of(group, study.axis), []).append(group)
        compared = "; ".join(f"{_names(study, of)} ({length})" for length, of in by_length.items())
        count = sum(len(group.finished) for group in finished)
        finished_runs = f"{count} finished {'run' if count == 1 else 'runs'}"
        lines = [f"{study.title}: {compared} on {data}; {finished_runs}."]
    for group in finished:
        values = by_seed(group, PRIMARY)
        if not values:
            lines.append(f"{group.name}: {PRIMARY} missing.")
            continue
        text = f"{group.name}: {PRIMARY} {spread_cell(list(values.values())).text} %"
        found = difference(group, study.groups, PRIMARY)
        baseline = baseline_of(group, study.groups)
        if found and baseline:
            text += f", {_verdict(found)} {baseline.name}"
        lines.append(f"{text}.")
    known = [
        f"{label} {spread_cell(found[PRIMARY]).text} %"
        for label, found in floors(study.groups).items()
        if PRIMARY in found
    ]
    if known:
        lines.append(f"For comparison: {', '.join(known)}.")
    if study.missing:
        lines.append(f"Missing: {len(study.missing)}, listed below.")
    return lines


def _names(study: Study, groups: Sequence[Group]) -> str:
    """Returns the labels, with their values of the axis."""
    values: dict[str, list[str]] = {}
    for group in groups:
        of_label = values.setdefault(group.label, [])
        of_label += [] if group.value is None else [settings.text(group.value)]
    return "; ".join(
        f"{label} at {study.axis} = {', '.join(found)}" if found else label
        for label, found in values.items()
    )


def _verdict(found: Difference) -> str:
    if found.low is None or found.high is None:
        return f"{signed(found.mean)[0]} points (one seed, so no interval) relative to"
    mean, low, high = signed(found.mean, found.low, found.high)
    text = f"{mean} points (95 % interval {low} to {high}, {found.pairs} pairs)"
    if found.low > 0:
        return f"{text}: higher than"
    if found.high < 0:
        return f"{text}: lower than"
    return f"{text}: no clear difference from"
