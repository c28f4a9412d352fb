"""Draws pages/assets/graded_similarity.png, the picture of the README: crops, psi, distance.

python docs/picture.py
"""

import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gsjax import similarity
from gsjax.data import photos

BOXES = np.array([[40, 190, 150, 150], [20, 110, 260, 260]], np.float32)  # top, left, height, width
COLOURS = ("#e07b39", "#3b82c4")
THRESHOLD = 0.5


def main():
    photograph = photos.photographs()["astronaut"]
    ioa = [float(similarity.ioa(BOXES[i], BOXES[1 - i])) for i in range(2)]
    psi = [float(similarity.graded(value, THRESHOLD)) for value in ioa]
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    whole, one, other, line = figure.subplots(1, 4, width_ratios=(1, 0.8, 0.8, 1.3))
    whole.imshow(photograph)
    whole.set_title("two crops of a picture", fontsize=10)
    for name, axes, box, color in zip("ij", (one, other), BOXES, COLOURS, strict=True):
        top, left, height, width = box.astype(int)
        whole.add_patch(Rectangle((left, top), width, height, fill=False, color=color, lw=3))
        axes.imshow(photograph[top : top + height, left : left + width])
        axes.set_title(f"view {name}", color=color, fontsize=10)
    for axes in (whole, one, other):
        axes.set_xticks([])
        axes.set_yticks([])
    overlap = np.linspace(0, 1, 200)
    target = 1 - np.asarray(similarity.graded(overlap, THRESHOLD))
    line.plot(overlap, target, color="#444444", label="graded similarity: 1 - psi")
    line.axhline(0, color="#444444", linestyle="--", label="SimCLR, SimSiam: 0")
    for name, at, value, color in zip(("i to j", "j to i"), ioa, psi, COLOURS, strict=True):
        line.scatter([at], [1 - value], color=color, zorder=3, clip_on=False)
        text = f"{name}: IoA {at:.2f}, psi {value:.2f}"
        line.annotate(
            text,
            (at, 1 - value),
            (-4, 12),
            textcoords="offset points",
            color=color,
            fontsize=8,
            ha="right" if at > 0.6 else "left",
        )
    line.set_xlabel("overlap of the crops (IoA)")
    line.set_ylabel("distance asked for")
    line.legend(fontsize=8, frameon=False)
    line.spines[["top", "right"]].set_visible(False)
    assets = pathlib.Path(__file__).parent / "pages" / "assets"
    figure.savefig(assets / "graded_similarity.png", dpi=130)


if __name__ == "__main__":
    main()
