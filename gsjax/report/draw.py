"""Draws the figures of a report on matplotlib axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from gsjax.report import compare
from gsjax.report.collect import Study
from gsjax.report.groups import Group
from gsjax.sweep.runs import Run, thin

Line = list[tuple[float, float]]  # (step or epoch, value), ascending

GRAY = "#888888"
# Readable on white and on black.
_COLORS = ("#3b82c4", "#e07b39", "#3f9b5c", "#b65fc2", "#c9a227", "#35a3b5", "#d1495b", GRAY)
_MIN_BIN_COUNT = 20  # smallest calibration bin to draw; a pair of views counts in both directions
_FEW = 5  # most legend entries at full size
_MAX_CLASSES = 12  # most classes that a map's legend names


def colors(study: Study) -> dict[str, str]:
    """Returns a color per group, along a scale if the groups are values of an axis."""
    if not study.axis:
        return {g.name: _COLORS[i % len(_COLORS)] for i, g in enumerate(study.groups)}
    scale = matplotlib.colormaps["plasma"]
    last = max(len(study.groups) - 1, 1)
    return {
        group.name: matplotlib.colors.to_hex(scale(0.1 + 0.7 * i / last))
        for i, group in enumerate(study.groups)
    }


def curves(
    axes: Axes,
    groups: Sequence[Group],
    metric: str,
    color: Mapping[str, str],
    in_epochs: bool = False,
) -> None:
    """Draws a thin line per seed and a thick one for the mean, over steps or epochs."""
    for group in groups:
        lines = [scaled(run, metric) for run in group.runs if metric in run.curves]
        if in_epochs:
            lines = [[(at / group.epoch_steps, value) for at, value in line] for line in lines]
        dashes = "--" if group.is_baseline else "-"
        style: dict[str, Any] = {"color": color[group.name], "linestyle": dashes}
        if len(lines) > 1:
            for line in lines:
                axes.plot(*zip(*line, strict=True), linewidth=0.6, alpha=0.5, **style)
        mean = mean_curve(lines)
        if not mean:
            continue
        few = metric == "knn/top1" or len(mean) == 1
        axes.plot(
            *zip(*mean, strict=True),
            label=legend_text(group.name),
            linewidth=1.6,
            marker="o" if few else None,
            markersize=3,
            **style,
        )
    if metric == "knn/top1":
        for label, found in compare.floors(groups).items():
            if label.startswith("raw pixels"):
                value = found[compare.PRIMARY][0]
                axes.axhline(value, color=GRAY, linestyle=":", label=legend_text(label))
    axes.set_xlabel("epoch" if in_epochs else "step")
    _legend(axes)


def scaled(run: Run, metric: str) -> Line:
    """Returns the curve; spread times sqrt(d), so that 1 is the whole sphere at any width."""
    is_spread = metric == "train/embedding_std"
    factor = math.sqrt(run.config["projector"]["out_dim"]) if is_spread else 1.0
    return [(step, factor * value) for step, value in thin(run.curves[metric])]


def mean_curve(found: Sequence[Line]) -> Line:
    """Averages curves where all overlap, at the points of the shortest, interpolating linearly.

    Empty if one curve ends before another begins.
    """
    last = min(curve[-1][0] for curve in found)
    first = max(curve[0][0] for curve in found)
    if first > last:
        return []
    shortest = min(found, key=len)
    places = [at for at, _ in shortest if first <= at <= last] or [last]
    values = []
    for curve in found:
        at, value = zip(*curve, strict=True)
        values.append(np.interp(places, at, value))
    return list(zip(places, np.mean(values, axis=0).tolist(), strict=True))


def over_axis(axes: Axes, study: Study) -> None:
    """Draws kNN accuracy over the swept setting; groups not on it are horizontal lines."""
    lines: dict[str, list[tuple[Any, list[float]]]] = {}
    level: dict[str, list[float]] = {}
    for group in study.groups:
        values = list(compare.by_seed(group, compare.PRIMARY).values())
        if not values:
            continue
        if group.value is None:
            level[group.name] = values
        else:
            lines.setdefault(group.label, []).append((group.value, values))
    places = [at for points in lines.values() for at, _ in points]
    is_number = all(isinstance(at, (int, float)) and not isinstance(at, bool) for at in places)
    for i, (label, points) in enumerate(lines.items()):
        if is_number:
            points = sorted(points)
        else:
            points = [(str(at), values) for at, values in points]
        means = [float(np.mean(values)) for _, values in points]
        color = _COLORS[i % len(_COLORS)]
        text = legend_text(label)
        axes.plot([at for at, _ in points], means, marker="o", label=text, color=color)
        for at, values in points:
            axes.scatter([at] * len(values), values, s=8, color=color)
    for i, (label, values) in enumerate(level.items()):
        color = _COLORS[-1 - i % len(_COLORS)]
        mean = float(np.mean(values))
        axes.axhline(mean, color=color, linestyle="--", label=legend_text(label))
    if study.axis == "batch_size":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.set_xlabel(study.axis)
    axes.set_ylabel("kNN top-1, %")
    _legend(axes)


def histograms(axes: Axes, details: Mapping[str, Any]) -> None:
    """Draws histograms of IoA and psi of crop pairs, side by side in each bin."""
    for offset, name, label in ((0.0, "ioa", "IoA"), (0.5, "psi", "psi")):
        counts = np.asarray(details[f"{name}_histogram"])
        left = (np.arange(len(counts)) + offset) / len(counts)
        share = counts / max(counts.sum(), 1)
        axes.bar(left, share, 0.5 / len(counts), align="edge", label=label)
    axes.set_xlabel("overlap of the two crops, and psi")
    axes.set_ylabel("fraction of pairs")
    axes.legend()


def large_bins(bins: Mapping[str, Any]) -> tuple[list[int], str]:
    """Returns the calibration bins that are worth drawing, and a note on the others.

    If none is, as in a tiny run, returns all non-empty ones.
    """
    filled = [i for i, count in enumerate(bins["count"]) if count]
    large = [i for i in filled if bins["count"][i] >= _MIN_BIN_COUNT]
    if len(large) == len(filled):
        return large, ""
    if large:
        return large, f"Bins with fewer than {_MIN_BIN_COUNT} directions are omitted."
    return filled, f"All bins have fewer than {_MIN_BIN_COUNT} directions."


def calibration(axes: Axes, bins: Mapping[str, Any], color: str) -> None:
    """Draws embedding distance by IoA, next to what graded similarity asks for."""
    rows, _ = large_bins(bins)
    middle = [(bins["ioa_low"][i] + bins["ioa_high"][i]) / 2 for i in rows]
    column = {name: [bins[name][i] for i in rows] for name in bins}
    for low, high, alpha in (("q10", "q90", 0.2), ("q25", "q75", 0.3)):
        label = f"{low[1:]}th to {high[1:]}th percentile"
        axes.fill_between(middle, column[low], column[high], color=color, alpha=alpha, label=label)
    axes.plot(middle, column["mean"], color=color, marker="o", markersize=3, label="mean")
    axes.plot(middle, column["target"], color=GRAY, linestyle="--", label="1 - psi")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, max([1.5, *(1.05 * value for value in column["q90"])]))
    axes.set_xlabel("IoA of the two crops")
    axes.set_ylabel("distance between the embeddings")
    axes.legend()


def scatter_map(axes: Axes, places: Mapping[str, Any]) -> None:
    """Draws the map of the representations, one color per label."""
    x, y = np.asarray(places["x"]), np.asarray(places["y"])
    labels = np.asarray(places["label"] or [0] * len(x))
    names = places["class_names"] or []
    shown = np.unique(labels).tolist()
    with_legend = 1 < len(shown) <= _MAX_CLASSES
    for i, number in enumerate(shown):
        inside = labels == number
        name = names[number] if 0 <= number < len(names) else str(number)
        axes.scatter(
            x[inside],
            y[inside],
            s=3,
            color=matplotlib.colormaps["tab20"](i % 20),
            label=legend_text(name) if with_legend else None,
            rasterized=True,  # thousands of points as one image
        )
    axes.set_xticks([])
    axes.set_yticks([])
    if with_legend:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, fontsize=7)


def legend_text(label: str) -> str:
    """Makes a label visible in legends: matplotlib skips those starting with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _legend(axes: Axes) -> None:
    """Draws a legend that leaves room for the lines, even with many entries."""
    names = len(axes.get_legend_handles_labels()[0])
    if names:
        axes.legend(fontsize=6 if names > _FEW else 8, ncols=2 if names > _FEW else 1)
