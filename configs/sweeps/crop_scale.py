"""Smallest crop area, as a fraction of the image.

python -m gsjax.main --job sweep --config configs/sweeps/crop_scale.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Smallest crop of SimCLR and SimCLR-GS on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
        ),
        overrides={"num_epochs": 200},
        axis="augment.min_scale",
        values=(0.04, 0.08, 0.2, 0.4, 0.6),
    )
