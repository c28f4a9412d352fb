"""Four methods with and without graded similarity (the thesis' further research, section 7.2).

python -m gsjax.main --job sweep --config configs/sweeps/methods.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="SimCLR, SimSiam, MoCo v2 and BYOL on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
            Arm("SimSiam", "simsiam_cifar10"),
            Arm("SimSiam-GS", "simsiam_gs_cifar10"),
            Arm("MoCo v2", "mocov2_cifar10"),
            Arm("MoCo v2-GS", "mocov2_gs_cifar10"),
            Arm("BYOL", "byol_cifar10"),
            Arm("BYOL-GS", "byol_gs_cifar10"),
        ),
        seeds=(5, 6, 7),
        overrides={"num_epochs": 200},
    )
