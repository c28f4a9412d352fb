"""The thesis' four pre-training runs on CIFAR-10 and their evaluations (figures 7 and 8, tables).

python -m gsjax.main --job sweep --config configs/sweeps/thesis_cifar10.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="SimCLR and SimSiam on CIFAR-10, with and without graded similarity",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
            Arm("SimSiam", "simsiam_cifar10"),
            Arm("SimSiam-GS", "simsiam_gs_cifar10"),
        ),
        jobs=("linear",),
        shows=("Figure 7a", "Figure 8a", "Table 1"),
    )
