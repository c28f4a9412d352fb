"""Example pairs as a picture: the crops in the original, the augmented views, and psi."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

_CELL, _GAP, _TEXT = 160, 12, 34  # sides in pixels of the drawn picture
_COLOURS = ((255, 140, 0), (0, 160, 255))  # first and second view


def draw_pairs(
    originals: Sequence[np.ndarray],
    boxes: np.ndarray,
    views: np.ndarray,
    psi: np.ndarray,
) -> np.ndarray:
    """Draws a row per pair: the original with both crop boxes, then the two augmented views.

    Args:
      originals: N images uint8 [H, W, 3].
      boxes: [N, 2, 4] top, left, height, width in pixels of the original.
      views: [N, 2, S, S, 3] in [0, 1], augmented, not normalised.
      psi: [N, 2] graded similarity, first to second view and back.

    Returns:
      The picture, uint8 [H, W, 3].
    """
    height = len(originals) * (_CELL + _TEXT + _GAP) + _GAP
    canvas = Image.new("RGB", (3 * (_CELL + _GAP) + _GAP, height), "white")
    draw = ImageDraw.Draw(canvas)
    for row, original in enumerate(originals):
        top = _GAP + row * (_CELL + _TEXT + _GAP)
        _draw_original(canvas, original, boxes[row], (_GAP, top))
        for i in range(2):
            left = _GAP + (i + 1) * (_CELL + _GAP)
            pixels = np.round(np.clip(views[row, i], 0, 1) * 255).astype(np.uint8)
            view = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            canvas.paste(view, (left, top))
            draw.rectangle(
                (left, top, left + _CELL - 1, top + _CELL - 1), outline=_COLOURS[i], width=3
            )
        line = f"psi 1>2: {psi[row, 0]:.2f}\npsi 2>1: {psi[row, 1]:.2f}"
        draw.text((_GAP, top + _CELL + 2), line, fill="black")
        draw.text((2 * _GAP + _CELL, top + _CELL + 2), "view 1", fill=_COLOURS[0])
        draw.text((3 * _GAP + 2 * _CELL, top + _CELL + 2), "view 2", fill=_COLOURS[1])
    return np.asarray(canvas)


def _draw_original(canvas, original, boxes, place) -> None:
    height, width = original.shape[:2]
    scale = _CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(original).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(small)
    for box, colour in zip(boxes, _COLOURS, strict=True):
        top, left, box_height, box_width = (float(side) * scale for side in box)
        corner = left + max(box_width - 1, 0), top + max(box_height - 1, 0)
        draw.rectangle((left, top, *corner), outline=colour, width=2)
    canvas.paste(small, place)
