"""Contact sheets: rows of small pictures with captions, in a single HTML file."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from gsjax.runtime import files

_SIDE, _QUALITY = 160, 85  # of a picture: the longer side in pixels, JPEG quality
_STYLE = """
:root { --text: #1f2328; --soft: #57606a; --line: #d0d7de; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9aa4af; --line: #30363d; --back: #0d1117; }
}
body { margin: 0 auto; max-width: 1240px; padding: 1rem; color: var(--text);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, figcaption { color: var(--soft); font-size: .8125rem; }
.row { display: flex; flex-wrap: wrap; gap: .75rem; border-bottom: 1px solid var(--line);
  padding-bottom: 1rem; }
figure { margin: 0; width: 160px; }
img { display: block; max-width: 100%; height: 160px; object-fit: contain; object-position: left; }
"""


class Cell(NamedTuple):
    """A picture with its caption.

    Attributes:
      image: uint8 [H, W, 3].
      caption: one line.
    """

    image: np.ndarray
    caption: str


class Row(NamedTuple):
    """A row of the sheet."""

    title: str
    cells: Sequence[Cell]


def write(file: epath.Path, title: str, note: str, rows: Sequence[Row]) -> None:
    """Writes a sheet as one HTML file that needs no other.

    Args:
      file: the file.
      title: title of the page.
      note: a line below it.
      rows: the rows.
    """
    body = "\n".join(_row(row) for row in rows)
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(note)}</p>\n{body}\n</body>\n</html>\n"
    )
    with files.write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, text)


def _row(row: Row) -> str:
    cells = "\n".join(_cell(cell) for cell in row.cells)
    return (
        f'<section><h2>{html.escape(row.title)}</h2>\n<div class="row">\n{cells}\n</div></section>'
    )


def _cell(cell: Cell) -> str:
    caption = html.escape(cell.caption)
    url = _data_url(cell.image)
    return f'<figure><img src="{url}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _data_url(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
