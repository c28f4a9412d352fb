"""Random crops and flips only, without color changes or blur (thesis, figure 11).

python -m gsjax.main --job sweep --config configs/sweeps/no_augmentation.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Crops and flips only, on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimSiam", "simsiam_cifar10"),
            Arm("SimSiam-GS", "simsiam_gs_cifar10"),
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
        ),
        overrides={
            "num_epochs": 200,
            "augment.jitter": 0.0,
            "augment.gray": 0.0,
            "augment.blur": 0.0,
        },
        shows=("Figure 11",),
    )
