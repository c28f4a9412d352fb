"""Five seeds per method; the thesis has one (its section 7.1).

python -m gsjax.main --job sweep --config configs/sweeps/seeds.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="SimCLR and SimSiam on CIFAR-10, 200 epochs, five seeds",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
            Arm("SimSiam", "simsiam_cifar10"),
            Arm("SimSiam-GS", "simsiam_gs_cifar10"),
        ),
        seeds=(5, 6, 7, 8, 9),
        overrides={"num_epochs": 200},
        jobs=("linear",),
    )
