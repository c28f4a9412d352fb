"""Batch sizes from 128 to 2048 (thesis, figure 12).

python -m gsjax.main --job sweep --config configs/sweeps/batch_size.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Batch size of SimCLR and SimCLR-GS on CIFAR-10, 800 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
        ),
        axis="batch_size",
        values=(128, 256, 512, 1024, 2048),
        shows=("Figure 12",),
    )
