"""Projector depth; SimSiam-GS may need fewer layers (thesis, section 7.2).

python -m gsjax.main --job sweep --config configs/sweeps/projector.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Layers of the projector on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
            Arm("SimSiam", "simsiam_cifar10"),
            Arm("SimSiam-GS", "simsiam_gs_cifar10"),
        ),
        overrides={"num_epochs": 200},
        axis="projector.num_layers",
        values=(1, 2, 3),
    )
