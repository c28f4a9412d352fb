"""The tables of a report."""

import dataclasses
from collections.abc import Sequence

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

_HIDDEN = ("top5", "mP@1", "mP@5", "positive distance", "negative distance")  # too many columns


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page, `<name>.csv` and tables.md; the page folds a long one up."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


def results_table(study: Study, name: str) -> Table:
    """A row for each group: means and standard deviations over seeds, and the primary difference.

    Raw pixels and the untrained encoder come first; groups that were not run are there, missing.
    """
    names = [n for n in score_names(study.groups) if not _is_hidden(n)]
    header = ("", "seeds", PRIMARY, "difference to the baseline (95 % interval)", *names[1:])
    rows = []
    for label, found in floors(study.groups).items():
        is_pixels = label.startswith("raw pixels")  # they have no other score, and no seed
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
        why = _difference_or_why(group, study.groups)
        rows.append((Cell(group.name), seeds_cell, cells[0], why, *cells[1:]))
    for label in study.absent:
        rows.append((Cell(label), Cell("0", 0), *[Cell("missing")] * (len(names) + 1)))
    caption = (
        f"{study.title}: mean (standard deviation over seeds) at the end of the training; accuracy "
        f"and mAP in %. The difference is of {PRIMARY}; its interval is of this comparison alone, "
        "by Student's t over seeds that both have."
    )
    return Table(name, caption, header, tuple(rows))


def _is_of_encoder(score: str) -> bool:
    """Whether an untrained encoder can have it; diagnostics are of the heads."""
    return ", " in score


def _is_hidden(score: str) -> bool:
    return score.partition(" (")[0].endswith(_HIDDEN)


def runs_table(study: Study, name: str) -> Table:
    """A row for each finished run, from which everything else can be calculated."""
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


def _difference_or_why(group: Group, groups: Sequence[Group]) -> Cell:
    if not group.is_baseline and baseline_of(group, groups) is None:
        return Cell("no baseline here")
    return difference_cell(difference(group, groups, PRIMARY), group)


def differences_table(study: Study, name: str) -> Table | None:
    """Every score of every graded group against its baseline; None where nothing can be paired."""
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
        "Paired differences: same seed, same crops. Each interval is of its comparison alone: of "
        "20 without any effect, one is expected to leave out 0."
    )
    return Table(name, caption, header, tuple(rows), folded=True)


def thesis_tables(studies: Sequence[Study]) -> list[Table]:
    """The thesis' tables that a study repeats, its figures beside ours."""
    tables = []
    for table in thesis.TABLES:
        repeating = [study for study in studies if table.name in study.shows]
        groups = [group for study in repeating for group in study.groups]
        if not repeating:
            continue
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
        tables.append(Table(table.name, table.caption, tuple(header), tuple(rows)))
    return tables


def _ours(groups: Sequence[Group], method: str, column: thesis.Column) -> Cell:
    """Our figure for a cell, with what the training differs in from the thesis' recipe."""
    wanted = score_name(column.job, column.dataset, column.score)
    for group in groups:
        if label_of(group.runs[0].config) != method:
            continue
        if group.shaping["data.source"] != column.trained_on:
            continue
        for score in score_names([group]):
            plain, _, variant = score.partition(" (")
            values = list(by_seed(group, score).values())
            if plain == wanted and values:
                cell = spread_cell(values)
                details = ", ".join(
                    part for part in (length_of(group), variant.rstrip(")")) if part
                )
                return Cell(f"{cell.text} [{details}]", cell.value)
    return Cell("not run")
