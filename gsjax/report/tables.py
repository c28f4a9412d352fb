"""The tables of a report."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gsjax.config import settings
from gsjax.config.defaults import SETTINGS
from gsjax.methods import METHODS
from gsjax.report import thesis
from gsjax.report.collect import Study
from gsjax.report.compare import (
    PRIMARY,
    Cell,
    by_seed,
    difference,
    difference_cell,
    floors,
    length_of,
    score_name,
    score_names,
    scores,
    spread_cell,
)
from gsjax.report.groups import Group, baseline_of, label_of

_NOT_RUN = Cell("not run")
_HIDDEN = ("top5", "mP@1", "mP@5", "positive distance", "negative distance")  # too many columns


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page, `<name>.csv` and tables.md; the page collapses a `folded` one."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


def results_table(study: Study, name: str) -> Table:
    """One row per group: means and standard deviations over seeds, and the primary difference.

    Raw pixels and the untrained encoder come first; groups that were not run are shown as missing.
    """
    names = [n for n in score_names(study.groups) if not _is_hidden(n)]
    header = ("", "seeds", PRIMARY, "difference from the baseline (95 % interval)", *names[1:])
    rows = []
    for label, found in floors(study.groups).items():
        is_pixels = label.startswith("raw pixels")  # they have no other score and no seed
        cells = [
            spread_cell(found.get(score, []))
            if score == PRIMARY or (_is_of_encoder(score) and not is_pixels)
            else Cell("")
            for score in names
        ]
        seeds = max(len(values) for values in found.values())
        seeds_cell = Cell("") if is_pixels else Cell(str(seeds), seeds)
        rows.append((Cell(label), seeds_cell, cells[0], Cell(""), *cells[1:]))
    for group in study.groups:
        done = len(group.finished)
        cells = [spread_cell(list(by_seed(group, score).values()), done) for score in names]
        seeds_cell = Cell(str(done), done)
        reason = _difference_or_reason(group, study.groups)
        rows.append((Cell(group.name), seeds_cell, cells[0], reason, *cells[1:]))
    for label in study.absent:
        rows.append((Cell(label), Cell("0", 0), *[Cell("missing")] * (len(names) + 1)))
    caption = (
        f"{study.title}: mean (standard deviation over seeds) at the end of training; accuracy and "
        f"mAP in %. The difference is in {PRIMARY}; its interval is by Student's t over the seeds "
        "that both have, for this comparison alone."
    )
    return Table(name, caption, header, tuple(rows))


def _is_of_encoder(score: str) -> bool:
    """Whether an untrained encoder can have the score; diagnostics measure the heads."""
    return ", " in score


def _is_hidden(score: str) -> bool:
    return score.partition(" (")[0].endswith(_HIDDEN)


def runs_table(study: Study, name: str) -> Table:
    """One row per finished run, from which everything else can be computed."""
    names = score_names(study.groups)
    rows = []
    for group in study.groups:
        for run in group.finished:
            found = scores(run)
            cells = [_plain_cell(found.get(score)) for score in names]
            rows.append((Cell(group.name), _plain_cell(run.config["seed"]), *cells))
    caption = "Every finished run, unrounded."
    return Table(name, caption, ("", "seed", *names), tuple(rows), folded=True)


def _plain_cell(value: float | None) -> Cell:
    return Cell("missing") if value is None else Cell(f"{value:.6g}", value)


def _difference_or_reason(group: Group, groups: Sequence[Group]) -> Cell:
    if (group.reference or not group.is_baseline) and baseline_of(group, groups) is None:
        return Cell("no baseline")
    return difference_cell(difference(group, groups, PRIMARY), group)


def differences_table(study: Study, name: str) -> Table | None:
    """Every score of every group against its baseline; None if nothing can be paired."""
    rows = []
    for group in study.groups:
        baseline = baseline_of(group, study.groups)
        for score in score_names(study.groups):
            found = difference(group, study.groups, score)
            if baseline and found:
                cells = (Cell(group.name), Cell(baseline.name), Cell(score))
                pairs = Cell(str(found.pairs), found.pairs)
                rows.append((*cells, difference_cell(found, group), pairs))
    if not rows:
        return None
    header = ("", "baseline", "score", "difference (95 % interval)", "pairs of seeds")
    caption = (
        "Paired differences: same seed, same crops. Each interval is for its comparison alone: of "
        "20 without any effect, one is expected to exclude 0."
    )
    return Table(name, caption, header, tuple(rows), folded=True)


def thesis_tables(studies: Sequence[Study]) -> list[Table]:
    """The thesis' tables that a study reproduces or a run has a score for, next to our numbers.

    Studies that name a table take precedence in its cells.
    """
    tables = []
    for table in thesis.TABLES:
        ordered = sorted(studies, key=lambda study: table.name not in study.shows)
        groups = [group for study in ordered for group in study.groups]
        is_repeated = any(table.name in study.shows for study in studies)
        header = [""]
        for column in table.columns:
            header += [f"{column.label}: thesis", "ours"]
        rows = []
        for i, method in enumerate(thesis.METHODS):
            cells = [Cell(method)]
            for column in table.columns:
                printed = column.values[i] if column.values else None
                cells.append(Cell("", None) if printed is None else Cell(f"{printed:.2f}", printed))
                cells.append(_ours(groups, method, column))
            rows.append(tuple(cells))
        if is_repeated or any(cell != _NOT_RUN for row in rows for cell in row[2::2]):
            tables.append(Table(table.name, table.caption, tuple(header), tuple(rows)))
    return tables


def _ours(groups: Sequence[Group], method: str, column: thesis.Column) -> Cell:
    """Returns the first of our scores for a cell, and how many more there are.

    In brackets: the group, unless its name is just the method; encoder, batch size and length of
    training; number of seeds; evaluation settings that are not defaults.
    """
    found = list(_matching(groups, method, column))
    if not found:
        return _NOT_RUN
    group, score = found[0]
    values = list(by_seed(group, score).values())
    cell = spread_cell(values)
    details = [group.name] if group.name != method else []
    details += [length_of(group), f"{len(values)} {'seed' if len(values) == 1 else 'seeds'}"]
    details += _evaluated(group, column, score)
    more = f"; and {len(found) - 1} more above" if len(found) > 1 else ""
    return Cell(f"{cell.text} [{', '.join(details)}{more}]", cell.value)


def _matching(
    groups: Sequence[Group], method: str, column: thesis.Column
) -> Iterator[tuple[Group, str]]:
    """Yields the groups, and their scores, that were trained and measured on a column's data."""
    wanted = score_name(column.job, column.dataset, column.score)
    for group in groups:
        is_method = label_of(group.runs[0].config) == method
        if is_method and group.shaping["data.source"] == column.trained_on:
            for score in score_names([group]):
                if score.partition(" (")[0] == wanted and by_seed(group, score):
                    yield group, score


def _evaluated(group: Group, column: thesis.Column, score: str) -> list[str]:
    """Returns the non-default settings of a score's evaluation, such as linear.num_epochs=1.

    Always includes those that distinguish it from the group's other scores in the column.
    """
    wanted = score_name(column.job, column.dataset, column.score)
    changed: dict[str, None] = {}
    for run in group.finished:
        for entry in run.results.get(column.job, ()):
            if entry["step"] == run.num_steps and f"{wanted}{entry.get('variant', '')}" == score:
                changed.update(dict.fromkeys(_changed(column.job, entry, run.config["method"])))
    variant = score.partition(" (")[2].removesuffix(")")
    distinguishing = [
        part for part in variant.split(", ") if part and f"{column.job}.{part}" not in changed
    ]
    return [*changed, *distinguishing]


def _changed(job: str, entry: Mapping[str, Any], method: str) -> list[str]:
    """Returns the settings in a result's protocol that are not the job's defaults."""
    protocol = entry.get("protocol", {})
    usual = {
        name: SETTINGS[f"{job}.{name}"].default for name in protocol if f"{job}.{name}" in SETTINGS
    }
    if job == "linear":
        usual["learning_rate"] = METHODS[method].linear_learning_rate
    if protocol.get("protocol") == "thesis":  # of retrieval, at the training image size
        usual.pop("image_size", None)
    return [
        f"{job}.{name}={settings.text(protocol[name])}"
        for name, value in usual.items()
        if protocol.get(name, value) != value
    ]
