"""The thesis' four pre-training runs on STL-10 and their evaluations (figures 7 and 8, tables).

python -m gsjax.main --job sweep --config configs/sweeps/thesis_stl10.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="SimCLR and SimSiam on STL-10, with and without graded similarity",
        arms=(
            Arm("SimCLR", "simclr_stl10"),
            Arm("SimCLR-GS", "simclr_gs_stl10"),
            Arm("SimSiam", "simsiam_stl10"),
            Arm("SimSiam-GS", "simsiam_gs_stl10"),
        ),
        jobs=("linear",),
        shows=("Figure 7b", "Figure 8b", "Table 1"),
    )
