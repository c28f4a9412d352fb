"""A report's figures, drawn with matplotlib: a small SVG for the page and a PNG for elsewhere.

The SVG takes its text color from the page, so that it is readable in light and dark mode.
"""

import dataclasses
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsjax.report import compare, draw
from gsjax.report.collect import Study
from gsjax.report.groups import Group
from gsjax.sweep.plans import slug
from gsjax.sweep.runs import Run

_TEXT = "#010203"  # placeholder for the page's text color in the SVG
_SIZE = (4.6, 3.2)  # inches
_KNN = "knn/top1"
_CURVES = {  # metric: (title, axis)
    _KNN: ("kNN accuracy during pre-training", "top-1, %"),
    "train/loss": ("Loss", "loss"),
    "train/embedding_std": ("Spread of the embeddings (0 is collapse)", "std x sqrt(d)"),
    "train/positive_distance": ("Distance between the two views", "distance"),
    "train/rankme": ("Effective rank of the embeddings (RankMe)", "rank"),
    "train/alignment": ("Alignment: squared distance of the views", "mean d^2"),
    "train/uniformity": ("Uniformity over images (0 is collapse)", "log mean exp(-2 d^2)"),
    "train/learning_rate": ("Learning rate", "learning rate"),
    "train/images_per_second": ("Speed", "images/s"),
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure: its title, how to read it, the SVG and the name of the PNG."""

    title: str
    note: str
    svg: str
    file: str


class Panels:
    """Draws the figures of a study; each group keeps its color in all of them.

    Attributes:
      damaged: a line for each file that could not be drawn, filled by `all`.
    """

    def __init__(self, study: Study, folder: epath.Path, prefix: str) -> None:
        """Writes PNGs to `folder/<prefix>_<name>.png`."""
        self._study, self._folder, self._prefix = study, folder, prefix
        self._colors = draw.colors(study)
        # With epochs of different length, curves over steps are not comparable.
        self._in_epochs = len({group.epoch_steps for group in study.groups}) > 1
        self.damaged: list[str] = []

    def all(self) -> list[Panel]:
        """Returns every figure that the study's runs have data for."""
        panels = [self._over_axis()]
        panels += self._accuracies()
        panels += [self._curves(metric) for metric in _CURVES if metric != _KNN]
        panels += self._histograms()
        panels += [self._calibration(i, group) for i, group in enumerate(self._study.groups)]
        panels += [self._map(i, group) for i, group in enumerate(self._study.groups)]
        return [panel for panel in panels if panel]

    def _render(self, name: str, title: str, note: str, fill: Callable[[Axes], None]) -> Panel:
        name = f"{self._prefix}_{name}"
        svg, png = render(name, title, fill)
        (self._folder / f"{name}.png").write_bytes(png)
        return Panel(title, note, svg, f"{name}.png")

    def _accuracies(self) -> list[Panel | None]:
        """Returns one panel, or one per method if there are several, as in figures 7 and 8."""
        methods = list(dict.fromkeys(group.method for group in self._study.groups))
        if len(methods) < 2:
            return [self._curves(_KNN)]
        return [self._curves(_KNN, method) for method in methods]

    def _curves(self, metric: str, method: str = "") -> Panel | None:
        """Draws the curves of all groups, or of one method's groups."""
        title, unit = _CURVES[metric]
        groups = [g for g in self._study.groups if any(metric in run.curves for run in g.runs)]
        name = metric.replace("/", "_")
        if method:
            groups = [group for group in groups if group.method == method]
            title, name = f"{method}: {title}", f"{name}_{slug(method)}"
        if not groups:
            return None

        def fill(axes: Axes) -> None:
            draw.curves(axes, groups, metric, self._colors, self._in_epochs)
            axes.set_ylabel(unit)

        notes = []
        if any(group.is_baseline for group in groups):
            notes.append("Dashed: without graded similarity.")
        if any(len(group.runs) > 1 for group in groups):
            notes.append("Thick: mean over seeds, where all have values; thin: each seed.")
        return self._render(name, title, " ".join(notes), fill)

    def _over_axis(self) -> Panel | None:
        axis = self._study.axis
        on_axis = [group for group in self._study.groups if group.value is not None]
        if not any(compare.by_seed(group, compare.PRIMARY) for group in on_axis):
            return None
        note = "Line: mean over seeds; points: each seed."
        title = f"kNN accuracy by {axis}"
        return self._render("axis", title, note, lambda axes: draw.over_axis(axes, self._study))

    def _histograms(self) -> list[Panel | None]:
        """Returns one panel per combination of crop distribution and psi."""
        by_key: dict[str, list[tuple[Group, Run, dict]]] = {}
        for group in self._study.groups:
            found = _diagnosed(group.runs)
            if found:
                by_key.setdefault(_overlap_key(*found), []).append((group, *found))
        return [self._histogram(matching) for matching in by_key.values()]

    def _histogram(self, matching: list[tuple[Group, Run, dict]]) -> Panel | None:
        first, *rest = sorted(matching, key=lambda drawn: drawn[0].is_baseline)
        group, run, entry = first
        note = f"Pairs of crops from {entry['dataset']}, sampled as in {run.name}."
        others = [other.name for other, _, _ in rest]
        if others:
            note += f" Same distribution: {', '.join(others)}."
        name, title = f"overlap_{slug(group.name)}", f"{group.name}: overlap of the crops and psi"
        return self._try(
            lambda: self._render(
                name, title, note, lambda axes: draw.histograms(axes, entry["details"])
            ),
            run,
        )

    def _calibration(self, i: int, group: Group) -> Panel | None:
        found = _diagnosed(group.runs)
        if not found:
            return None
        run, entry = found
        note = _seed(run)
        if group.is_baseline or group.shaping.get("similarity.form", "regress") != "regress":
            note += " The dashed line is the target of eq. 7, not used in this run."
        error = entry["scores"].get("diagnostics/calibration_error", math.nan)
        if math.isfinite(error):
            note += f" Mean distance from the dashed line: {compare.number(error)}."
        name, title = f"calibration_{i}_{slug(group.name)}", f"{group.name}: distance by overlap"

        def make() -> Panel:
            bins = entry["details"]["calibration"]
            notes = f"{note} {draw.large_bins(bins)[1]}".rstrip()
            color = self._colors[group.name]
            return self._render(
                name, title, notes, lambda axes: draw.calibration(axes, bins, color)
            )

        return self._try(make, run)

    def _map(self, i: int, group: Group) -> Panel | None:
        for run in group.runs:
            file = run.folder / "diagnostics" / "map.json" if run.folder else None
            if file and file.exists():
                break
        else:
            return None
        return self._try(
            lambda: self._render(
                f"map_{i}_{slug(group.name)}",
                f"{group.name}: map of the representations",
                f"UMAP of test images by cosine distance, colored by label. {_seed(run)}",
                lambda axes: draw.scatter_map(axes, json.loads(file.read_text())),
            ),
            run,
        )

    def _try(self, make: Callable[[], Panel], run: Run) -> Panel | None:
        """Draws from one of the run's files; notes it in `damaged` if that fails."""
        try:
            return make()
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.damaged.append(f"diagnostics of {run.name} ({type(error).__name__}: {error})")
            return None


def render(name: str, title: str, fill: Callable[[Axes], None]) -> tuple[str, bytes]:
    """Returns a figure as an SVG to embed in a page with others, and as a PNG with its title."""
    drawn = {}
    for kind, color in (("svg", _TEXT), ("png", "#222222")):
        style: dict[Any, Any] = {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "text.color": color,
            "text.parse_math": False,  # a label may contain $
            "axes.labelcolor": color,
            "axes.edgecolor": color,
            "xtick.color": color,
            "ytick.color": color,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "legend.fontsize": 8,
            "legend.frameon": False,
        }
        with matplotlib.rc_context(style), warnings.catch_warnings():
            # The browser has the glyphs that matplotlib's own font lacks.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            figure = Figure(figsize=_SIZE, layout="constrained")
            fill(figure.add_subplot())
            if kind == "png":
                figure.suptitle(title, fontsize=10)
            buffer = io.BytesIO()
            metadata = _NO_METADATA if kind == "svg" else None
            figure.savefig(
                buffer, format=kind, dpi=160, transparent=kind == "svg", metadata=metadata
            )
        drawn[kind] = buffer.getvalue()
    return _inline(drawn["svg"].decode(), name), drawn["png"]


def _inline(svg: str, name: str) -> str:
    """Makes an SVG embeddable: unique identifiers, and the page's color and width."""
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    svg = re.sub(r' width="[^"]+pt" height="[^"]+pt"', "", svg, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))

    def own(match: re.Match) -> str:
        tag = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", match[0])
        return re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", tag)

    return re.sub(r"<[^>]+>", own, svg)


def _seed(run: Run) -> str:
    seed = f"Seed {run.config['seed']}"
    return f"{seed}." if run.finished else f"{seed}, unfinished: step {run.step}."


def _diagnosed(found: Sequence[Run]) -> tuple[Run, dict] | None:
    """Returns the first run with diagnostics of its newest checkpoint, and that result."""
    for run in found:
        for entry in run.results.get("diagnostics", []):
            if entry["step"] is not None and entry["step"] == run.step:
                return run, entry
    return None


def _overlap_key(run: Run, entry: Mapping[str, Any]) -> str:
    """Returns all that IoA and psi of crop pairs depend on, apart from chance."""
    protocol = entry.get("protocol", {})
    augment = [protocol.get("augment", {}).get(key) for key in ("crop", "min_scale", "max_scale")]
    return json.dumps([entry["dataset"], augment, run.config["crops"], protocol.get("psi")])
