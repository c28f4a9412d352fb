"""Threshold lambda of graded similarity, from 0 to 1 (thesis, figure 10).

python -m gsjax.main --job sweep --config configs/sweeps/threshold.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Threshold lambda of SimCLR-GS on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
            Arm("SimCLR", "simclr_cifar10", is_on_axis=False),
        ),
        overrides={"num_epochs": 200},
        axis="similarity.threshold",
        values=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        shows=("Figure 10",),
    )
