"""Draws figures: example pairs with their crops and psi, and what a query retrieves."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _TEXT = 160, 12, 34  # sides in pixels of the figure
_COLORS = ((255, 140, 0), (0, 160, 255))  # of the global views
_LOCAL_COLORS = ((60, 170, 80), (180, 90, 200), (200, 170, 30), (50, 170, 180))
_HEIGHT, _FRAME, _LABEL = 140, 4, 22  # of a retrieved image, its frame and the line below
_NUM_RESULTS, _FONT, _MAX_WORD = 10, 14, 20  # the last in characters
_SIGN = 11  # side of the sign next to the word, so that color is not the only cue
_RIGHT, _WRONG, _JUNK = (0, 140, 60), (205, 35, 35), (130, 130, 130)
_STROKES: dict[str, list[list[tuple[float, float]]]] = {  # of the signs, in units of a side
    "right": [[(0, 0.55), (0.35, 0.95), (1, 0.05)]],
    "wrong": [[(0.05, 0.05), (0.95, 0.95)], [(0.05, 0.95), (0.95, 0.05)]],
    "junk": [[(0, 0.5), (1, 0.5)]],
    "": [],
}
_MARKS = {"right": _RIGHT, "wrong": _WRONG, "junk": _JUNK, "": (255, 255, 255)}


def draw_views(
    originals: Sequence[np.ndarray],
    boxes: np.ndarray,
    views: Sequence[np.ndarray],
    psi: np.ndarray,
) -> np.ndarray:
    """Draws a row per image: the original with all crop boxes, then the augmented views.

    Below each view is its graded similarity to the global views.

    Args:
      originals: N images uint8 [H, W, 3].
      boxes: [N, V, 4] top, left, height, width in pixels of the original.
      views: V views [N, S, S, 3] in [0, 1], augmented, not normalized; local ones may be smaller.
      psi: [N, V, W] graded similarity of every view to the global ones.

    Returns:
      The figure, uint8 [H, W, 3].
    """
    side = max(view.shape[1] for view in views)
    height = len(originals) * (_CELL + _TEXT + _GAP) + _GAP
    width = (len(views) + 1) * (_CELL + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    colors = [_color(view, psi.shape[2]) for view in range(len(views))]
    for row, original in enumerate(originals):
        top = _GAP + row * (_CELL + _TEXT + _GAP)
        _draw_original(canvas, original, boxes[row], colors, (_GAP, top))
        for i, color in enumerate(colors):
            left = _GAP + (i + 1) * (_CELL + _GAP)
            pixels = np.round(np.clip(views[i][row], 0, 1) * 255).astype(np.uint8)
            cell = round(_CELL * pixels.shape[0] / side)
            view = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(view, (left, top))
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), outline=color, width=3)
            others = [w for w in range(psi.shape[2]) if w != i]
            found = "  ".join(f"{i + 1}>{w + 1}: {psi[row, i, w]:.2f}" for w in others)
            text = f"view {i + 1}\npsi {found}"
            draw.text((left, top + _CELL + 2), text, fill=color)
    return np.asarray(canvas)


def _color(view: int, num_global: int) -> tuple[int, int, int]:
    if view < num_global:
        return _COLORS[view % len(_COLORS)]
    return _LOCAL_COLORS[(view - num_global) % len(_LOCAL_COLORS)]


def draw_ranking(
    query: np.ndarray,
    results: Sequence[np.ndarray],
    marks: Sequence[str],
    box: Sequence[float] | None = None,
    words: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws a query and, to its right, the first ten images it retrieves, best first.

    Below each result is its rank and whether it is right (green tick), wrong (red cross) or junk
    (gray dash; neither right nor wrong). All have the same height, unless they are more than twice
    as wide.

    Args:
      query: uint8 [H, W, 3].
      results: uint8 [H, W, 3] each; those after the tenth are left out.
      marks: right, wrong or junk for each of the results, or "" for neither.
      box: x0, y0, x1, y1 of the object in pixels of the query, to draw into it.
      words: text below the query and below each of the results, truncated; "query" and the
        marks if None.

    Returns:
      The figure, uint8 [H, W, 3].
    """
    shrunk = _shrink(query, _HEIGHT, 2 * _HEIGHT)
    if box is not None:
        scale = shrunk.height / len(query)
        x0, y0, x1, y1 = box
        _draw_box(shrunk, (y0, x0, y1 - y0, x1 - x0), scale, _COLORS[0])
    words = [word[:_MAX_WORD] for word in words or ("query", *marks)]
    pictures = [shrunk, *(_shrink(image, _HEIGHT, 2 * _HEIGHT) for image in results[:_NUM_RESULTS])]
    widths = [
        max(picture.width + 2 * _FRAME, _label_width(word))
        for picture, word in zip(pictures, words, strict=False)  # results are cut, words are not
    ]
    width = sum(widths) + _GAP * (len(widths) + 2)  # a double gap after the query
    height = _HEIGHT + 2 * _FRAME + _LABEL + 2 * _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    left = _GAP
    for rank, picture in enumerate(pictures):
        top = _GAP + (_HEIGHT - picture.height) // 2
        label = left + _FRAME, _GAP + _HEIGHT + 2 * _FRAME + 4
        if rank == 0:
            draw.text(label, words[0], fill="black", font=ImageFont.load_default(_FONT))
        else:
            size = picture.width + 2 * _FRAME, picture.height + 2 * _FRAME
            canvas.paste(_MARKS[marks[rank - 1]], (left, top, left + size[0], top + size[1]))
            _draw_mark(draw, rank, marks[rank - 1], words[rank], label)
        canvas.paste(picture, (left + _FRAME, top + _FRAME))
        left += widths[rank] + _GAP * (2 if rank == 0 else 1)
    return np.asarray(canvas)


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks figures uint8 [H, W, 3] vertically; pads narrower ones with white."""
    width = max(row.shape[1] for row in rows)
    sides = [[(0, 0), (0, width - row.shape[1]), (0, 0)] for row in rows]
    padded = [np.pad(row, s, constant_values=255) for row, s in zip(rows, sides, strict=True)]
    return np.concatenate(padded)


def save(picture: np.ndarray, path: epath.Path) -> None:
    """Writes uint8 [H, W, 3] as a PNG file, also to gs://."""
    with path.open("wb") as file:
        Image.fromarray(picture).save(file, format="PNG")


def _draw_original(canvas, original, boxes, colors, place) -> None:
    small = _shrink(original, _CELL, _CELL)
    scale = _CELL / max(original.shape[:2])
    for box, color in zip(boxes, colors, strict=True):
        _draw_box(small, box, scale, color)
    canvas.paste(small, place)


def _shrink(image: np.ndarray, height: int, width: int) -> Image.Image:
    """Resizes an image to fit into height and width, keeping its aspect ratio."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _label_width(word: str) -> int:
    """Width in pixels of a result's line (rank up to 10), the minimum width of the result."""
    return round(ImageFont.load_default(_FONT).getlength(f"10{word}")) + _SIGN + 2 * _GAP


def _draw_mark(
    draw: ImageDraw.ImageDraw, rank: int, mark: str, word: str, place: tuple[int, int]
) -> None:
    """Draws the line below a result: its rank, the sign of the mark and a word."""
    font = ImageFont.load_default(_FONT)
    draw.text(place, str(rank), fill="black", font=font)
    x, y = place[0] + font.getlength(str(rank)) + 6, place[1] + 3
    for stroke in _STROKES[mark]:
        points = [(x + right * _SIGN, y + down * _SIGN) for right, down in stroke]
        draw.line(points, fill=_MARKS[mark], width=3)
    draw.text((x + _SIGN + 5, place[1]), word, fill=_MARKS[mark], font=font)


def _draw_box(picture: Image.Image, box: Sequence[float], scale: float, color) -> None:
    """Draws a box (top, left, height, width), given in pixels of the original."""
    top, left, height, width = (float(side) * scale for side in box)
    corner = left + max(width - 1, 0), top + max(height - 1, 0)
    ImageDraw.Draw(picture).rectangle((left, top, *corner), outline=color, width=2)
