"""Scale of the positive term in eq. 10; at psi = 1, scale 0.5 matches NT-Xent.

python -m gsjax.main --job sweep --config configs/sweeps/scale.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Scale of the positive term of SimCLR-GS on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR-GS", "simclr_gs_cifar10"),
            Arm("SimCLR", "simclr_cifar10", is_on_axis=False),
        ),
        overrides={"num_epochs": 200},
        axis="similarity.scale",
        values=(0.25, 0.5, 1.0, 2.0),
    )
