"""Writes the page, tables.md and the CSV files of a report."""

import base64
import csv
import dataclasses
import io
import re
from collections.abc import Sequence

import jinja2
from etils import epath
from PIL import Image

from gsjax.errors import UserError
from gsjax.report.figures import Panel
from gsjax.report.tables import Table
from gsjax.runtime import files

_ESCAPED = r"\\\1"  # escapes what would end a cell or begin a tag
_MAX_WIDTH = 1200  # of a picture on the page, in pixels


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a run, as a data URL."""

    title: str
    url: str


@dataclasses.dataclass(frozen=True)
class Section:
    """What the page shows of a study; `absent` is a line on what it does not show."""

    title: str
    shows: Sequence[str]
    lines: Sequence[str]
    tables: Sequence[Table]
    panels: Sequence[Panel]
    pictures: Sequence[Picture]
    missing: Sequence[tuple[str, str]]
    absent: str


def picture(title: str, file: epath.Path) -> Picture:
    """Reads a picture and shrinks it to the page's width.

    Raises:
      UserError: it is damaged.
    """
    try:
        # No other format: for some of them, Pillow runs a program on the file.
        image = Image.open(io.BytesIO(file.read_bytes()), formats=["PNG"]).convert("RGB")
    except (OSError, SyntaxError) as error:  # not an image, or truncated
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    if image.width > _MAX_WIDTH:
        size = _MAX_WIDTH, round(image.height * _MAX_WIDTH / image.width)
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Picture(title, f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def write(
    folder: epath.Path,
    sections: Sequence[Section],
    thesis: Sequence[Table],
    background: Sequence[Table],
    damaged: Sequence[str],
    byline: str,
) -> None:
    """Writes index.html, tables.md and a CSV file for each table.

    Args:
      folder: the report's folder.
      sections: the studies.
      thesis: tables of the thesis, with our numbers.
      background: settings and environments.
      damaged: a line for each file that could not be read.
      byline: the program and the time, in one line.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gsjax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html").render(
        sections=sections, thesis=thesis, background=background, damaged=damaged, byline=byline
    )
    files.write_text(folder / "index.html", page)
    tables = [table for section in sections for table in section.tables]
    tables += [*thesis, *background]
    for table in tables:
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(table.header)
        writer.writerows([cell.text for cell in row] for row in table.rows)
        name = f"{table.name.lower().replace(' ', '_')}.csv"
        files.write_text(folder / name, rows.getvalue())
    text = [f"# {byline}"]
    for section in sections:
        text += [f"## {section.title}", *section.lines]
        if section.missing:
            text.append("\n".join(f"- {name}: {why}" for name, why in section.missing))
        text += [_markdown(table) for table in section.tables]
    text += [_markdown(table) for table in (*thesis, *background)]
    files.write_text(folder / "tables.md", "\n\n".join(text) + "\n")


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(re.sub(r'([|<])', _ESCAPED, cell) for cell in cells)} |"

    rows = [line([cell.text for cell in row]) for row in table.rows]
    return "\n".join(
        [table.caption, "", line(table.header), line(["---"] * len(table.header)), *rows]
    )
